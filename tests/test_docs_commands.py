"""Each command of the documentation is one that its program takes; the tutorial's commands run."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.doc_commands import (
    Block,
    bench_options,
    check_command,
    commands_of_notebook,
    commands_of_page,
    commands_of_python,
    commands_of_shell,
    fenced_blocks,
)

from jaxgpt.config.command_line import field_names
from jaxgpt.config.nanogpt import UNSUPPORTED

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / ".github").rglob("*.md"))]
MODULES = [*sorted((ROOT / "jaxgpt").rglob("*.py")), *sorted((ROOT / "configs").glob("*.py"))]
OTHERS = [ROOT / "Dockerfile", ROOT / ".devcontainer/devcontainer.json", ROOT / ".github/ISSUE_TEMPLATE/bug.yml"]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TUTORIAL = ROOT / "docs/tutorial.md"

# The flags of nanoGPT's train.py and sample.py.
TRAIN_FLAGS = """
out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint init_from wandb_log wandb_project
wandb_run_name dataset gradient_accumulation_steps batch_size block_size n_layer n_head n_embd dropout bias
learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend device
dtype compile
"""
SAMPLE_FLAGS = "init_from out_dir start num_samples max_new_tokens temperature top_k seed device dtype compile"

QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_of_the_pages_are_parsed(folder: Path) -> None:
    commands = [(page.name, command) for page in PAGES for command in commands_of_page(page.read_text())]
    assert len(commands) > 100
    wrong = [f"{page}: {problem}" for page, command in commands if (problem := check_command(command, folder))]
    assert wrong == []


def test_commands_in_docstrings_and_help_are_parsed(folder: Path) -> None:
    commands = [(module.name, command) for module in MODULES for command in commands_of_python(module.read_text())]
    assert len(commands) > 40
    wrong = [f"{module}: {problem}" for module, command in commands if (problem := check_command(command, folder))]
    assert wrong == []


def test_commands_of_the_examples_are_parsed(folder: Path) -> None:
    commands = [(file.name, command) for file in NOTEBOOKS for command in commands_of_notebook(file.read_text())]
    commands += [(file.name, command) for file in OTHERS for command in commands_of_shell(file.read_text())]
    assert {name for name, _ in commands} >= {file.name for file in NOTEBOOKS}
    wrong = [f"{name}: {problem}" for name, command in commands if (problem := check_command(command, folder))]
    assert wrong == []


@pytest.mark.parametrize(
    "command",
    [
        "python -m jaxgpt.trian --config quickstart",
        "python -m jaxgpt.train --config quickstrat",
        "python -m jaxgpt.train --config quickstart --run.step 3",
        "python -m jaxgpt.train --config quickstart --run.steps many",
        "srun python -m jaxgpt.train --config mine.py --run.eval-every 0",
        "python -m jaxgpt.train --config quickstart --optim.warmup-steps 900   # longer than the run",
        "python -m jaxgpt.train",
        "jaxgpt budget --config fineweb40m --ours 20",
        "python -m jaxgpt.budget --config fineweb40m --hours soon",
        "cat out.log | python -m jaxgpt.diagnose - --totalsteps 6000",
        "python -m jaxgpt.diagnose runs/NAME --baseline",
        "python -m jaxgpt.sweep --config books --vary optim.learningrate=1e-3,3e-3",
        "python -m jaxgpt.sweep --config books",
        "python -m jaxgpt.prepare input.txt",
        "python -m jaxgpt.audit data/fineweb40m --de-dup OUT",
        "python -m jaxgpt.sample quickstart --top-p many",
        "python -m jaxgpt.export NAME --to onnx --out DIR",
        "python -m jaxgpt.checkpoint prune NAME",
        "python -m jaxgpt.checkpoint verify RUN exit status 4",
        "python -m jaxgpt.doctor --jsn && echo done",
        "python -m jaxgpt.init quickstrat",
    ],
)
def test_a_wrong_command_is_found(command: str, folder: Path) -> None:
    page = f"Text.\n\n```sh\n{command}\n```\n"
    assert [bool(check_command(found, folder)) for found in commands_of_page(page)] == [True]
    indented = f"Text.\n\n    {command}\n"
    assert commands_of_page(indented) == commands_of_page(page)


def test_scripts_and_options_of_bench_exist() -> None:
    used = {pair for page in PAGES for pair in bench_options(page.read_text())}
    assert len(used) > 20
    helpers = "".join((ROOT / "bench" / name).read_text() for name in ("common.py", "sides.py"))
    missing = [(script, option) for script, option in used if not (ROOT / script).is_file()]
    missing += [(script, option) for script, option in used if option not in (ROOT / script).read_text() + helpers]
    assert missing == []


def test_python_blocks_import_what_exists() -> None:
    blocks = [block for page in PAGES for block in fenced_blocks(page.read_text()) if block.language == "python"]
    assert len(blocks) > 3
    for block in blocks:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                missing = [name.name for name in node.names if not _has(module, name.name)]
                assert missing == [], node.module


def _has(module: object, name: str) -> bool:
    try:
        importlib.import_module(f"{getattr(module, '__name__', '')}.{name}")
    except ModuleNotFoundError:
        return hasattr(module, name)
    return True


def test_every_flag_of_nanogpt_has_its_row() -> None:
    text = (ROOT / "docs/from-nanogpt.md").read_text()
    sections = re.split(r"^## Flags of (\w+)\.py\n", text, flags=re.MULTILINE)
    rows = {name: re.findall(r"^\| `(\w+)` \| (.*?) \|", body, re.MULTILINE) for name, body in _pairs(sections[1:])}
    assert [flag for flag, _ in rows["train"]] == TRAIN_FLAGS.split()
    assert [flag for flag, _ in rows["sample"]] == SAMPLE_FLAGS.split()
    for flag, here in rows["train"]:
        assert here.startswith("*error*") == (flag in UNSUPPORTED), flag
        if flag not in UNSUPPORTED:
            option = "--" + field_names()[flag].replace("_", "-")
            assert here.startswith(f"`{option}`"), flag


def _pairs(items: list[str]) -> list[tuple[str, str]]:
    return list(zip(items[::2], [body.partition("\n## ")[0] for body in items[1::2]]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_tutorial_run(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILER}
    blocks = [block for block in fenced_blocks(TUTORIAL.read_text()) if block.language in ("sh", "python")]
    run = [block for block in blocks if not block.not_run]
    assert len(run) > 12
    for block in run:
        if "fineweb/" in block.text:
            write_parquet(folder / "fineweb")  # what a reader has downloaded
        words = shell_words(block)
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"tutorial.md:{block.line}: {done.stdout}{done.stderr}"
    assert {path.name for path in (folder / "runs").iterdir()} == {"quickstart", "reference", "fineweb40m"}


def shell_words(block: Block) -> list[str]:
    """The command that runs a block, with the options that make it small after its last line."""
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    return ["bash", "-euo", "pipefail", "-c", f"{block.text.rstrip()} {block.options}".rstrip()]


def write_parquet(folder: Path) -> None:
    """Two parquet files of documents in English."""
    from pydoc_data.topics import topics

    folder.mkdir(exist_ok=True)
    texts = list(topics.values())
    for number, part in enumerate((texts[::2], texts[1::2])):
        pq.write_table(pa.table({"text": part}), folder / f"{number:03}.parquet")
