"""Steps with thousands separators or that restart, and losses in bits per byte alone."""

import math
from pathlib import Path

import pytest

from jaxgpt import logs
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.context.tokens import bytes_per_token
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import DataError


def test_steps_with_thousands_separators() -> None:
    lines = [f"step {step:,}: train loss 4.0, val loss {4 - step / 1e4}" for step in range(0, 3000, 500)]
    lines += [f"iter {step:,}: loss 3.9, time 250.00ms" for step in (2600, 2700)]
    history = logs.read_text("\n".join(lines), "log")
    assert [evaluation.step for evaluation in history.evaluations] == list(range(0, 3000, 500))
    assert [step.step for step in history.steps] == [2600, 2700]


def test_bits_per_byte_alone_are_refused() -> None:
    with pytest.raises(DataError, match="the bytes per token are unknown") as caught:
        logs.read_text("step,val_bpb\n100,2.0238\n200,1.7511\n300,1.5596\n", "table")
    assert caught.value.code == "D042"


def test_restart_of_evaluations_is_noted() -> None:
    steps = [*range(100, 1100, 100), *range(100, 600, 100)]
    rows = "".join(f"{step},{4 - step / 1e4}\n" for step in steps)
    history = logs.read_text("step,val_loss\n" + rows, "table")
    assert [evaluation.step for evaluation in history.evaluations] == list(range(100, 600, 100))
    note = "the steps restart in line 12; the run from there on is read, and the evaluations of steps 100 to 1,000"
    assert any(warning.startswith(note) for warning in history.warnings)
    assert not logs.read_text("step,val_loss\n100,4\n200,3\n300,2\n", "table").warnings


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("step 0.1k | loss 3.2\nstep 0.2k | loss 3.1\nstep 1.5K | loss 3.0\n", None),
        ("step 0.1k/2k: loss 3.2\nstep 0.2k/2k: loss 3.1\nstep 1.5k/2k: loss 3.0\n", 2000),
        ("iter 100/2.0k loss 3.2\niter 200/2.0k loss 3.1\niter 1,500/2.0k loss 3.0\n", 2000),
        ("[0.1k/2k] loss 3.2\n[0.2k/2k] loss 3.1\n[1.5k/2k] loss 3.0\n", 2000),
        ("step,loss\n0.1k,3.2\n0.2k,3.1\n1.5k,3.0\n", None),
        ('{"step": "0.1k", "loss": 3.2}\n{"step": "0.2k", "loss": 3.1}\n{"step": "1.5k", "loss": 3.0}\n', None),
    ],
)
def test_steps_in_thousands(text: str, total: int | None) -> None:
    history = logs.read_text(text, "log")
    assert [step.step for step in history.steps] == [100, 200, 1500]
    assert history.metadata.total_steps == total


BITS = "step,val_bpb\n" + "".join(f"{step},{0.9 + 40 / step:.4f}\n" for step in range(100, 2001, 100))


def diagnosed(text: str, **options: object) -> Diagnosis:
    known = Options(total_steps=4000, batch_tokens=524_288.0, params=124e6, **options)  # type: ignore[arg-type]
    history = logs.read_text(text, "table", bytes_per_token=bytes_per_token(known))
    return diagnose(history, resolve_context(history, known), now=0.0)


def test_bits_per_byte_with_a_stated_length_of_tokens() -> None:
    stated = diagnosed(BITS, bytes_per_token=4.5, corpus="fineweb")
    named = diagnosed(BITS.replace("\n", ",4.5\n").replace("bpb,4.5", "bpb,bytes_per_token"))
    for diagnosis in (stated, named):
        assert diagnosis.history.evaluations[-1].val == pytest.approx(0.92 * math.log(2) * 4.5)
        assert diagnosis.context.token_scale.value == 1.0
        assert not any("bytes" in assumed for assumed in diagnosis.context.assumed)
    assert "with 4.500 bytes per token" in stated.history.notes[0]


@pytest.mark.parametrize(
    ("options", "length", "reason"),
    [
        ({"corpus": "fineweb"}, 4.6, "a token is assumed to be 4.60 bytes: GPT-2's tokenizer on English text"),
        ({"config": "quickstart"}, 2.797, "a token is assumed to be 2.80 bytes: a vocabulary of 2,048"),
    ],
)
def test_bits_per_byte_with_an_assumed_length_of_tokens(
    options: dict[str, str], length: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the repository may have quickstart's tokens, with their own length
    diagnosis = diagnosed(BITS, **options)
    assert diagnosis.history.evaluations[-1].val == pytest.approx(0.92 * math.log(2) * length, rel=1e-3)
    assert f"{reason} (--bytes-per-token)" in diagnosis.context.assumed
    assert diagnosis.forecast is not None


def test_the_log_tells_more_than_an_assumed_length_of_tokens() -> None:
    rows = "".join(f"{step},{2 + 80 / step},{(2 + 80 / step) / math.log(2) / 4.1}\n" for step in range(100, 2001, 100))
    assert diagnosed("step,train_loss,val_bpb\n" + rows, corpus="fineweb").history.metadata.bytes_per_token == (
        pytest.approx(4.1)
    )
