"""The sample command: its output, the options that it refuses, and answers that do not wait for JAX."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from jaxgpt import errors, sample
from jaxgpt.runs.folder import CheckpointRef, RunFolder


def test_samples_are_separated_by_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxgpt.training.jax_setup.configure_jax", lambda: None)
    monkeypatch.setattr(sample, "find_run", lambda *_: CheckpointRef(RunFolder(tmp_path)))
    monkeypatch.setattr("jaxgpt.training.loaded_model.load_model", lambda _: None)
    monkeypatch.setattr("jaxgpt.generation.sampler.generate_texts", lambda *_, **__: iter("bcd"))
    sample.main(["run", "--prompt", "a", "--samples", "3"])
    assert capsys.readouterr().out == ("\n" + "-" * 40 + "\n").join(["ab", "ac", "ad"]) + "\n"


def test_too_many_samples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(sample.main, ["a", "--samples", str(2**31)]) == 2
    assert "must be 1 or more, and below 2^31" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seed_out_of_range_is_refused(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    assert errors.run(sample.main, ["a", "--seed", seed]) == 2
    assert f"C009]: --seed = {seed}; must be 0 or more" in capsys.readouterr().err


def test_prompt_file_that_is_not_utf8_is_named_with_the_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("où".encode("latin-1"))
    assert errors.run(sample.main, ["a", "--prompt", f"FILE:{file}"]) == 3
    assert capsys.readouterr().err.startswith(f"error[D022]: {file} is not UTF-8 text (")


MISTYPED = {
    "run of sample": ("sample", ["nosuch"], "C024"),
    "run of evaluate": ("evaluate", ["nosuch"], "C024"),
    "option of sample": ("sample", ["a", "--top-p", "2"], "C009"),
    "config of train": ("train", ["--config", "nosuch"], "C001"),
    "field of train": ("train", ["quickstart", "--run.stepz", "3"], "C005"),
    "fork of train": ("train", ["quickstart", "--fork", "nosuch"], "C024"),
}


@pytest.mark.parametrize(("command", "argv", "code"), MISTYPED.values(), ids=MISTYPED)
def test_mistyped_command_line_is_answered_without_jax(
    tmp_path: Path, command: str, argv: list[str], code: str
) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from jaxgpt import errors, {command}\n"
        f"errors.run({command}.main, {argv!r})\n"
        "print(sorted({'jax', 'flax', 'orbax'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr.startswith(f"error[{code}]")
    assert done.stdout == "[]\n"
