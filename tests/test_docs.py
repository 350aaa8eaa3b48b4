"""The documents say what the code does."""

import re
from pathlib import Path

from jaxgpt.config.files import built_in_configs

ROOT = Path(__file__).parents[1]


def test_every_error_code_is_explained_and_no_other() -> None:
    sources = [
        *(ROOT / "jaxgpt").rglob("*.py"),
        *(ROOT / "bench").glob("*.py"),
        *(ROOT / "rust_loader" / "src").rglob("*.rs"),
    ]
    raised = {code for path in sources for code in re.findall(r'"([CDKNHS]0\d{2})"', path.read_text())}
    explained = set(re.findall(r"^\| ([CDKNHS]0\d{2}) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE))
    assert raised == explained


def test_the_readme_names_every_config_and_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert built_in_configs()
    for name in built_in_configs():
        assert f"`{name}`" in text
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
