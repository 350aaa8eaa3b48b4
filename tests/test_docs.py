"""The documentation matches the code: error codes, configs, links, paths and names."""

import ast
import re
import runpy
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jaxgpt import errors
from jaxgpt.config.files import built_in_configs

ROOT = Path(__file__).parents[1]
MAPS = ("CONTRIBUTING.md", "docs/design.md", "docs/glossary.md")
PLACEHOLDERS = ("VERB", "NAME", "RUN", "STEP", "DIR", "FILE", "OUT", "…")


def python_sources() -> list[Path]:
    return [*(ROOT / "jaxgpt").rglob("*.py"), *(ROOT / "bench").glob("*.py")]


def error_kinds() -> dict[str, Any]:
    """The registry of error codes, by letter."""
    return tomllib.loads((ROOT / "jaxgpt" / "error_codes.toml").read_text())


def test_registry_lists_every_raised_error_code_and_no_other() -> None:
    sources = [*python_sources(), *(ROOT / "rust_loader" / "src").rglob("*.rs")]
    raised = {code for path in sources for code in re.findall(r'"([A-Z]0\d{2})"', path.read_text())}
    assert len(raised) > 100
    assert raised == {code for kind in error_kinds().values() for code in kind["codes"]}


def test_registry_and_error_classes_agree() -> None:
    kinds = error_kinds()
    assert {letter: kind["exit_status"] for letter, kind in kinds.items()} == errors.EXIT_STATUS
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    checked = 0
    for path in python_sources():
        for name, code in re.findall(r"\b(\w+Error)\(\s*\"([A-Z]0\d{2})\"", path.read_text()):
            checked += 1
            base = classes[kinds[code[0]]["class"]]
            assert name not in classes or issubclass(classes[name], base), f"{path}: {name}({code})"
    assert checked > 150


def test_code_of_an_error_subclass_is_fixed() -> None:
    subclasses = {"NoShardsError": "D002", "NoLogError": "D043", "SideError": "C063"}
    for path in python_sources():
        for name, code in re.findall(r"\b(\w+Error)\(\s*\"([A-Z]0\d{2})\"", path.read_text()):
            assert subclasses.get(name, code) == code, path
            assert name in subclasses or code not in subclasses.values(), f"{path}: {code} has a class of its own"


def test_no_caller_branches_on_an_error_code() -> None:
    compared = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in python_sources()
        for match in re.finditer(r"\.code\b\s*(==|!=|in)\s", path.read_text())
    ]
    assert compared == []


def test_error_page_is_made_from_the_registry() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "errors.py"))["page"]()
    assert (ROOT / "docs" / "errors.md").read_text() == page


def test_the_readme_names_exactly_the_bundled_configs() -> None:
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert built_in_configs()
    assert sorted(table) == built_in_configs()


def test_links_in_the_documentation_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())]
    local = [(page, link) for page, link in links if not link.startswith("http")]
    assert len(local) > 20
    missing = [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()]
    assert missing == []


def test_the_changelog_begins_with_unreleased_changes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    first = re.search(r"^## (.+)\n+(.+)", text, re.MULTILINE)
    assert first is not None
    assert first[1] == "Unreleased"
    assert not first[2].startswith("#"), "the section is empty"


def test_paths_and_names_in_the_maps_of_the_code_exist() -> None:
    mentioned = [(page, name) for page in MAPS for name in paths_in((ROOT / page).read_text())]
    assert len(mentioned) > 50
    missing = [f"{page}: {name}" for page, name in mentioned if not is_in_repository(name)]
    assert missing == []


def paths_in(text: str) -> list[str]:
    """The paths of the repository among the words in backticks, some with `:NAME` of a definition behind them."""
    words = re.findall(r"`([^`\s]+)`", text)
    roots = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir())
    paths = [word for word in words if re.match(rf"({roots})/", word)]
    return [path for path in paths if not any(part in path for part in PLACEHOLDERS)]


def is_in_repository(path: str) -> bool:
    """True if the file or folder exists and, after a colon, the module defines that name at its top level."""
    file, _, name = path.partition(":")
    if not name:
        return (ROOT / file).exists()
    return (ROOT / file).is_file() and name in top_level_names(ROOT / file)


def top_level_names(module: Path) -> set[str]:
    """The functions, classes and constants that a Python module defines."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def test_layers_of_the_design_match_the_import_contract() -> None:
    contract = (ROOT / ".importlinter").read_text()
    listed = re.search(r"^layers =\n((?:    .+\n)+)", contract, re.MULTILINE)
    assert listed is not None
    layers = [set(line.split(" | ")) for line in re.findall(r"^    (.+)$", listed[1], re.MULTILINE)]
    documented: dict[int, set[str]] = {}
    for layer, packages in re.findall(
        r"^\| (\d+) \| (`jaxgpt/[^|]+) \|", (ROOT / "docs/design.md").read_text(), re.MULTILINE
    ):
        names = {Path(package).stem for package in re.findall(r"`([^`]+)`", packages)}
        documented.setdefault(int(layer), set()).update(names)
    assert [documented[layer] for layer in sorted(documented)] == [layer for layer in layers if layer != {"__main__"}]


# Words of early versions that a reader of the field does not know, and the plain ones that replaced them.
REPLACED = {
    r"to the bit": "bitwise identical",
    r"by hand": "custom VJP",
    r"lawless|unlicensed": "the scaling law does not apply",
    r"learned by heart": "memorized",
    r"teaches less": "diminishing returns",
    r"what is no|that is none|is no (shard|number|log)|are no log": "what is not",
    r"in turns": "interleaved",
    r"in vain": "without a gain",
    r"the (house|road|floors?|first stones?)": "architecture, pipeline, layers",
    r"mend(s|ed)?": "fix",
    r"anew|computed again": "from scratch, recomputed",
    r"(goes|go|going|went) on": "resume, continue",
    r"held (against|beside|aside)|stands? (beside|above|behind|in front)": "compared with",
    r"its fall|fall of the rate|brought down|at its last value": "decay, final learning rate",
    r"how frequent each token": "unigram baseline",
    r"whoever|who draws": "a user",
    r"a run of ours|our lines|is ours": "jaxgpt's",
    r"verdicts?|judg(e|es|ed)|twins?|proofs?|promis(e|es|ed)": "finding, check, baseline run, backtest, plan",
    r"the same (of a run|for any model) (that|and)": "a sentence that makes sense on its own",
}


def test_replaced_words_do_not_return() -> None:
    folders = [ROOT / name for name in ("jaxgpt", "docs", "bench", "rust_loader/src", ".ci", "configs")]
    kinds = (".py", ".pyi", ".rs", ".md", "")
    files = [*ROOT.glob("*.md"), *(file for folder in folders for file in folder.rglob("*") if file.suffix in kinds)]
    texts = {file: file.read_text(errors="replace") for file in files if file.is_file()}
    assert len(texts) > 200
    changelog = ROOT / "CHANGELOG.md"
    texts[changelog] = re.sub(r"^\| `.*", "", texts[changelog], flags=re.MULTILINE)  # old names beside the new ones
    returned = [
        f"{file.relative_to(ROOT)}: {match[0]!r} (write: {plain})"
        for file, text in texts.items()
        for word, plain in REPLACED.items()
        for match in re.finditer(rf"\b({word})\b", text, re.IGNORECASE)
    ]
    assert returned == []


def example(title: str) -> str:
    """The indented block below a heading of docs/clusters.md."""
    section = (ROOT / "docs" / "clusters.md").read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines))


def test_the_kubernetes_example_is_yaml_that_mounts_its_volumes() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(example("Kubernetes"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert [volume["name"] for volume in pod["volumes"]] == list(folders)
    assert f"--run.dir {folders['shared']}/" in container["command"][-1]
    assert f"--coordinator {job['metadata']['name']}-0.{pod['subdomain']}:" in container["command"][-1]
    assert f"--num-processes {job['spec']['completions']} " in container["command"][-1]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [errors.PREEMPTED]


def test_the_skypilot_example_is_yaml_with_a_volume() -> None:
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load(example("SkyPilot"))
    (folder,) = task["volumes"]
    assert f"--run.dir {folder}/" in task["run"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [errors.PREEMPTED]


def test_the_slurm_example_is_a_script_that_requeues() -> None:
    script = example("Slurm")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert f"[ $status -eq {errors.PREEMPTED} ] && scontrol requeue" in script
