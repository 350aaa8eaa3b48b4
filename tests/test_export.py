"""`python -m jaxgpt.export`, and runs that start from the weights it writes."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub_server import Hub
from helpers.torch_file import write_torch_file
from helpers.training import TINY, arguments, copy_workspace, run_folder, saved_state, tiny_config, write_tokens
from test_convert_nanogpt import nanogpt_state

from jaxgpt import errors, export, train
from jaxgpt.config.options import format_value
from jaxgpt.convert import huggingface
from jaxgpt.convert.source import read_weights
from jaxgpt.convert.weights import Weights
from jaxgpt.runs.folder import CheckpointRef
from jaxgpt.training.initial_weights import named_arrays
from jaxgpt.training.loaded_model import load_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

MODERN = {"model.architecture": "modern", "model.n_kv_head": 1, "model.dropout": 0.0, "run.steps": 4}


@pytest.fixture(scope="module")
def modern_run(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Path:
    workspace = tmp_path_factory.mktemp("modern")
    write_tokens(workspace / "data")
    train.train(tiny_config(workspace, MODERN))
    return workspace


@pytest.fixture
def modern(modern_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_workspace(modern_run, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(*options: str) -> int:
    return errors.run(export.main, ["a", *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}


def trained(workspace: Path, changes: dict[str, Any], *more: str) -> int:
    return errors.run(train.main, [*arguments(workspace, changes), *more])


@pytest.mark.parametrize("kind", ["finished", "modern"])
def test_an_export_has_the_runs_weights_and_says_so(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = request.getfixturevalue(kind)
    assert exported("--out", "hf") == 0
    assert "its logits differ from the run's by" in capsys.readouterr().out
    run = run_folder(workspace)
    own = named_arrays(load_model(CheckpointRef(run)).params)
    read = read_weights("hf").arrays
    assert all(np.array_equal(read[name], own[name]) for name in own)
    card = Path("hf/README.md").read_text()
    losses = [json.loads(line) for line in run.log_file.read_text().splitlines() if '"eval"' in line]
    assert f"{losses[-1]['val_loss']:.4f} ± " in card
    assert "| tokens seen |" in card
    assert "## Plan and actual run" in card


def test_weights_are_byte_identical_after_a_round_trip(modern: Path) -> None:
    frozen = {**MODERN, "run.name": "b", "run.steps": 1, "optim.learning_rate": 0.0, "optim.min_lr": 0.0}
    frozen |= {"optim.warmup_steps": 0}
    assert exported("--out", "first") == 0
    assert trained(modern, frozen, "--init-from", "first") == 0
    assert errors.run(export.main, ["b", "--out", "second"]) == 0
    assert contents(Path("first")) == contents(Path("second"))


def test_a_run_from_given_weights_starts_at_their_loss_and_resumes_without_them(
    modern: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported("--out", "hf") == 0
    other = {key: value for key, value in MODERN.items() if not key.startswith("model.")}
    values = {name: value for name, value in (TINY | other).items() if not name.startswith("model.")}
    options = [f"--{name}={','.join(format_value(value))}" for name, value in values.items()]
    line = ["--config", "quickstart", "--yes", *options, "--data.path=data", "--run.dir=runs", "--run.name=b"]
    assert errors.run(train.main, [*line, "--init-from", "hf", "--run.steps=2"]) == 0
    assert "new, with the weights of hf" in capsys.readouterr().out
    first, *_, last = (json.loads(text)["val_loss"] for text in eval_lines(run_folder(modern, "b").log_file))
    *_, source = (json.loads(text)["val_loss"] for text in eval_lines(run_folder(modern).log_file))
    assert first == pytest.approx(source, abs=1e-5)
    assert last != first
    shutil.rmtree("hf")
    assert errors.run(train.main, [*line, "--init-from", "hf", "--run.steps=2"]) == 0
    assert "is done" in capsys.readouterr().out


def eval_lines(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if '"kind": "eval"' in line]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.n-layer=3", "error[C083]: model.n_layer = 3; the weights of run.init_from have 2"),
        ("--model.block-size=64", "model.block_size = 64; the weights of run.init_from have 16"),
        ("--init-from=none", "error[C081]: there are no weights 'none'"),
    ],
)
def test_an_option_cannot_contradict_the_weights(
    option: str, message: str, modern: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported("--out", "hf") == 0
    line = ["--config", "quickstart", "--yes", "--run.name=b", "--run.dir=runs", "--data.path=data"]
    assert errors.run(train.main, [*line, "--init-from=hf", option]) == 2  # the last --init-from counts
    assert message in capsys.readouterr().err
    assert not Path("runs/b").exists()


def test_data_of_another_tokenizer_is_refused(modern: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported("--out", "hf") == 0
    file = Path("hf/tokenizer.json")
    values = json.loads(file.read_text())
    values["model"]["vocab"] = {token: 63 - number for token, number in values["model"]["vocab"].items()}
    file.write_text(json.dumps(values))
    assert trained(modern, {**MODERN, "run.name": "b"}, "--init-from", "hf") == 4
    assert "error[K002]: the data was made with the tokenizer" in capsys.readouterr().err


def test_nanogpts_checkpoint_is_fine_tuned_and_exported(finished: Path) -> None:
    run = load_model(CheckpointRef(run_folder(finished)))
    arrays = {name: np.asarray(array) for name, array in named_arrays(run.params).items()}
    write_torch_file(finished / "ckpt.pt", nanogpt_state(Weights(run.config.model, arrays)))
    frozen = {"run.name": "b", "run.steps": 1, "optim.learning_rate": 0.0, "optim.min_lr": 0.0, "optim.warmup_steps": 0}
    assert trained(finished, frozen, "--init-from", "ckpt.pt") == 0
    state = named_arrays(saved_state(tiny_config(finished, frozen)).params)
    assert all(np.array_equal(state[name], arrays[name]) for name in arrays)


def test_train_exports_at_the_end(modern: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(modern, MODERN | {"run.name": "b", "run.export": "hf"}) == 0
    assert "exported runs/b/export/hf-4: Qwen3ForCausalLM" in capsys.readouterr().out.replace(f"{modern}/", "")
    assert (modern / "runs/b/export/hf-4/model.safetensors").is_file()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_nothing_is_overwritten(to: str, modern: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").write_text("mine")
    assert exported("--to", to, "--out", "out") == 7
    assert "error[S012]: 'out' exists" in capsys.readouterr().err
    assert Path("out").read_text() == "mine"


def test_files_that_compute_something_else_are_not_kept(
    modern: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface, "logits", lambda folder, tokens_T: np.zeros((len(tokens_T), 64), np.float32))
    assert exported("--out", "hf") == 3
    assert "error[D047]: the exported model's logits differ from the run's by" in capsys.readouterr().err
    assert not [name for name in os.listdir() if "hf" in name]


def test_bfloat16_is_compared_with_a_looser_bound(modern: Path) -> None:
    assert exported("--out", "hf", "--dtype", "bfloat16") == 0
    assert huggingface.read_tensors(Path("hf"))["model.norm.weight"].dtype == "bfloat16"


def test_a_gguf_file_needs_a_byte_level_vocabulary(modern: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    assert exported("--to", "gguf", "--out", "a.gguf") == 2
    assert "has a vocabulary other than byte-level BPE, which has no counterpart" in capsys.readouterr().err
    assert not Path("a.gguf").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        for name, value in {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_abc"}.items():
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


def test_pushed_folder_is_the_written_one(modern: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported("--out", "hf", "--push", "o/new") == 0
    assert f"uploaded: {hub.url}/o/new" in capsys.readouterr().out
    assert hub.pushed == {file.name: file.read_bytes() for file in Path("hf").iterdir()}
    writing = {token for path, _, token in hub.asked if path.endswith(("/create", "/main"))}
    assert writing == {"Bearer hf_abc"}


def test_refused_push_leaves_the_folder(modern: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.status = 401
    assert exported("--out", "hf", "--push", "o/new") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == "error[C035]: o/new does not exist on the hub, or is private (401)"
    assert lines[-1] == "  help: 'hf' is complete; upload it later: hf upload o/new hf"
    assert Path("hf/model.safetensors").is_file()


def test_push_without_the_library_is_refused_at_once(
    modern: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert exported("--out", "hf", "--push", "o/new") == 2
    assert "error[C034]" in capsys.readouterr().err
    assert not Path("hf").exists()


def test_push_uploads_a_hugging_face_folder_only(modern: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported("--to", "gguf", "--out", "a.gguf", "--push", "o/n") == 2
    assert "error[C039]: --push uploads a Hugging Face folder" in capsys.readouterr().err
