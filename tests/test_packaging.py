"""What surrounds the package agrees with it: versions, extras, the notebook, workflows and images."""

import ast
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

import jaxgpt
from jaxgpt import _loader

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def read_yaml(name: str | Path) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def test_every_version_is_that_of_cargo() -> None:
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert "version" in project()["dynamic"]
    named = {
        "jaxgpt": jaxgpt.__version__,
        "extension": _loader.__version__,
        "metadata": metadata.version("jaxgpt"),
        "CITATION.cff": read_yaml("CITATION.cff")["version"],
    }
    assert named == dict.fromkeys(named, version)


def test_authors_are_those_of_the_license() -> None:
    license = re.search(r"Copyright \(c\) \d+ (.+)", (ROOT / "LICENSE").read_text())
    assert license is not None
    assert project()["authors"] == [{"name": license[1]}]
    assert read_yaml("CITATION.cff")["authors"] == [{"name": license[1]}]


def test_classifiers_name_the_pythons_that_are_required() -> None:
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project()["classifiers"]))
    assert project()["requires-python"] == f">={named[0]},<3.{int(named[-1].split('.')[1]) + 1}"


def test_extras_that_are_mentioned_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "mkdocs.yml", ROOT / "Dockerfile", *WORKFLOWS]
    pages += [*(ROOT / "jaxgpt").rglob("*.py"), *NOTEBOOKS, ROOT / ".devcontainer/devcontainer.json"]
    found = {name for page in pages for name in re.findall(r"'(?:\.|jaxgpt)\[([a-z0-9]+)\]'", page.read_text())}
    assert len(found) > 7
    assert found <= set(project()["optional-dependencies"])


def test_the_page_on_installing_lists_every_extra() -> None:
    table = (ROOT / "docs/install.md").read_text().partition("| extra | brings |")[2].partition("\n\n")[0]
    names = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    listed = re.findall(r"`(\w+)`", "".join(names))
    assert sorted(listed) == sorted(project()["optional-dependencies"])


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_pinned_actions(file: Path) -> None:
    workflow = read_yaml(file)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    uses = [step["uses"] for step in steps if "uses" in step]
    assert uses
    assert [action for action in uses if not re.fullmatch(r"[\w./-]+@v\d+\.\d+\.\d+", action)] == []
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    for path in re.findall(r"(?<![\w./])\.ci/\w+", file.read_text()):
        assert (ROOT / path).is_file()


def test_wheels_are_built_for_every_platform() -> None:
    wheel = read_yaml(".github/workflows/wheels.yml")["jobs"]["wheel"]
    platforms = {(entry["runner"].split("-")[0], entry["target"]) for entry in wheel["strategy"]["matrix"]["include"]}
    assert platforms == {("ubuntu", "x86_64"), ("ubuntu", "aarch64"), ("macos", "aarch64"), ("windows", "x64")}


@pytest.mark.parametrize("file", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_complete(file: Path) -> None:
    form = read_yaml(file)
    assert {"name", "description", "body"} <= set(form)
    assert all(entry["attributes"]["label"] for entry in form["body"] if entry["type"] != "markdown")
    identifiers = [entry["id"] for entry in form["body"] if "id" in entry]
    assert len(set(identifiers)) == len(identifiers)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_valid_and_without_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    for cell in cells:
        assert (cell.outputs, cell.execution_count) == ([], None)
        ast.parse(re.sub(r"^!", "#", cell.source, flags=re.MULTILINE))


def test_the_images_are_built_from_files_that_exist() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = [word for words in copies for word in words]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept
    build = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).is_file()
    assert any(line.endswith(f"AS {build['target']}") for line in lines)


def test_hooks_run_scripts_that_exist() -> None:
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    scripts = [word for hook in hooks for word in hook.get("entry", "").split() if word.endswith(".py")]
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
