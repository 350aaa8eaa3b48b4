"""The sample command: its output, the options that it refuses, and answers that do not wait for JAX."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

import jaxgpt
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


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that continues every prompt with the letters b, c and d."""
    model = SimpleNamespace(step=7)
    monkeypatch.setattr("jaxgpt.training.jax_setup.configure_jax", lambda: None)
    monkeypatch.setattr(sample, "find_run", lambda *_: CheckpointRef(RunFolder(tmp_path)))
    monkeypatch.setattr("jaxgpt.training.loaded_model.load_model", lambda _: model)
    monkeypatch.setattr("jaxgpt.generation.sampler.generate_texts", lambda *_, **__: iter(["bcd"]))
    monkeypatch.setattr("jaxgpt.generation.sampler.stream_text", lambda *_, **__: iter("bcd"))


@pytest.mark.usefixtures("loaded")
def test_json_has_the_texts_and_where_they_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample.main(["run", "--prompt", "a", "--json"])
    assert json.loads(capsys.readouterr().out) == {"run": str(tmp_path), "step": 7, "prompt": "a", "texts": ["bcd"]}


@pytest.mark.usefixtures("loaded")
def test_each_line_of_input_is_continued(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nx\n"))
    sample.main(["run", "--interactive"])
    assert capsys.readouterr().out == "abcd\nxbcd\n"


def test_ctrl_c_ends_an_answer_and_not_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: str) -> Iterator[str]:
        yield "b"
        if prompt == "a":
            raise KeyboardInterrupt
        yield "c"

    monkeypatch.setattr("sys.stdin", io.StringIO("a\nx\n"))
    sample.answer_prompts(interrupted)
    assert capsys.readouterr().out == "ab\nxbc\n"


def test_python_api(finished: Path) -> None:
    model = jaxgpt.load("a", 20)
    text = model.generate("!", 12, seed=3)
    assert text == "".join(model.stream("!", 12, seed=3))
    assert model.model.step == 20
    assert model.generate("!", 12, seed=4) != text


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
