"""Lines and tables of unknown programs, which are read by the names of their keys, and what is said of the rest."""

import json
import math
from typing import Any

import pytest
from helpers import logformats
from helpers.logformats import PEAK
from helpers.logsamples import loss

from jaxgpt import logs
from jaxgpt.logs.history import Evaluation, History


def read(text: str) -> History:
    return logs.read_text(text, "log")


def unread(history: History) -> list[str]:
    """The notes on lines and columns that were not read."""
    marks = ("not used", "could not be read", "unknown form")
    return [note for note in history.notes if any(mark in note for mark in marks)]


def test_generic_lines() -> None:
    history = read(logformats.keyvalue())
    assert [step.step for step in history.steps] == list(range(0, 1000, 10))
    assert history.steps[5].loss == pytest.approx(loss(50), abs=1e-4)
    assert (history.steps[5].learning_rate, history.steps[5].seconds) == (PEAK, 0.25)
    assert history.evaluations[-1] == Evaluation(990, pytest.approx(loss(990) + 0.02, abs=1e-4), line=111)
    stated = history.metadata
    assert stated.total_steps == 5000
    facts = {"weight_decay": 0.1, "optimizer": "muon", "vocab_size": 50257.0, "dropout": 0.0}
    assert facts.items() <= dict(stated.hyperparameters).items()
    assert "'Train loss' as the training loss" in history.notes[0]


MEGATRON = """ iteration      100/  500000 | consumed samples: 25600 | elapsed time per iteration (ms): 4000.1 | \
learning rate: 1.500E-04 | global batch size:   256 | lm loss: 6.512345E+00 | loss scale: 1.0 | grad norm: 1.234 |
 validation loss at iteration 100 | lm loss value: 6.400000E+00 | lm loss PPL: 6.018450E+02 |
"""


@pytest.mark.parametrize(
    ("text", "step", "train", "val"),
    [
        ("step=100 loss=3.21\n", 100, 3.21, None),
        ("iter: 100 | train_loss: 3.2 | val_loss: 3.4 | lr 3e-4\n", 100, 3.2, 3.4),
        ("{'step': 100, 'loss': 3.2, 'aux_loss': 0.1}\n", 100, 3.2, None),
        ('{"it": 100, "train": {"loss": 3.2}}\n', 100, 3.2, None),
        ("[2024-01-01 10:00:00] step [100/1000] aux loss: 0.1 loss: 3.2\n", 100, 3.2, None),
        (" 10%|#  | 100/1000 [00:10<01:30,  9.80it/s, loss=3.2]\n", 100, 3.2, None),
        ("iteration: 100 / 20000 | consumed_tokens: 26.2M | elapsed_time_per_iteration_ms: 5.1K | lm_loss: 7.1\n",
         100, 7.1, None),
        (MEGATRON, 100, 6.512345, 6.4),
        ("Validation loss at step 100: 3.5\n", 100, None, 3.5),
        ("step train_loss val_loss\n100 3.2 3.4\n", 100, 3.2, 3.4),
        ("# step  loss\n100  3.2\n", 100, 3.2, None),
        ("100/5000 | loss 3.2 | 0.25 s/step\n", 100, 3.2, None),
        ("train | step 100 | loss 3.2\nvalid | step 100 | loss 3.4\n", 100, 3.2, 3.4),
        ("step 100 | Train 3.2 | Val 3.4\n", 100, 3.2, 3.4),
        ("{'step': 100, 'loss': tensor(3.2)}\n", 100, 3.2, None),
    ],
)  # fmt: skip
def test_lines_of_unknown_programs(text: str, step: int, train: float | None, val: float | None) -> None:
    history = read(text)
    evaluation = history.evaluations[0] if history.evaluations else Evaluation(step)
    assert (evaluation.step, evaluation.val) == (step, val)
    losses = [record.loss for record in history.steps if record.step == step]
    assert (losses or [evaluation.train])[0] == train


@pytest.mark.parametrize(
    "text", ["The step loss is low.\n", "step 5 of the recipe: at a loss\n", "aux_loss=0.1 step=3\n"]
)
def test_prose_and_other_losses_are_not_logs(text: str) -> None:
    with pytest.raises(logs.DataError, match="D041"):
        read(text)


def test_lines_that_cannot_be_read_are_counted() -> None:
    torn = logformats.llama2c() + "9999999999 | loss 3.0 | lr 1e-3 | 5ms\n"
    assert unread(read(torn)) == [f"1 line could not be read (first: line {len(torn.splitlines())})"]
    assert unread(read("step,val_loss\n10,3.6\n1e30,3.5\n-5,3.4\n")) == ["2 lines could not be read (first: line 3)"]


def test_a_log_whose_steps_are_of_unknown_form_is_refused() -> None:
    """One evaluation of nanoGPT's form does not make it nanoGPT's log."""
    text = "step 0: train loss 11.6, val loss 11.6\n"
    unknown = "".join(f"{step} :: loss {loss(step):.4f}\n" for step in range(0, 110, 10))
    with pytest.raises(logs.DataError, match=r"D041.*11 lines with a loss of unknown form \(first: line 2\)"):
        read(text + unknown)
    assert unread(read(text + unknown[:60])) == ["3 lines with a loss of unknown form (first: line 2)"]
    assert read(text + "".join(f"step {line}" for line in unknown.splitlines(True))).format == "keyvalue"


def test_a_table_whose_rows_are_all_dropped_is_refused() -> None:
    with pytest.raises(logs.DataError, match="2 lines could not be read") as caught:
        read("step,val_loss\nx7,3.6\ny8,3.5\n")
    assert "reads its own run folders" in caught.value.help
    with pytest.raises(logs.DataError, match="without a header") as caught:
        read("0 10.9 10.9\n10 9.0 9.1\n")
    assert caught.value.help == "name its columns: --columns step,train,val"


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";"])
def test_columns_named_by_the_user(separator: str) -> None:
    rows = [(step, f"{loss(step):.4f}", f"{loss(step) + 0.02:.4f}", "7") for step in (0, 10, 20)]
    text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    history = logs.read_text(text, "log", columns="step,train,val,other")
    expected = [(step, float(train), float(val)) for step, train, val, _ in rows]
    assert [(e.step, e.train, e.val) for e in history.evaluations] == expected
    assert unread(history) == ["not used: other (3 values)"]


@pytest.mark.parametrize("text", ["loss: 3.21\nloss: 3.11\n", '{"epoch": 1, "train_loss": 3.2}\n'])
def test_losses_without_steps_are_refused(text: str) -> None:
    with pytest.raises(logs.DataError, match=r"D042.*name a loss but no step") as caught:
        read(text)
    assert "step=100 loss=3.21" in caught.value.help


def test_losses_are_read_from_perplexities() -> None:
    history = read("step,train_loss,val_ppl\n" + "".join(f"{step},3.5,{math.exp(3.6)}\n" for step in (10, 20)))
    assert [e.val for e in history.evaluations] == [pytest.approx(3.6)] * 2


def test_losses_in_bits_are_converted() -> None:
    """fairseq prints the loss to base 2, beside a perplexity that shows it."""
    text = "".join(f"| num_updates={step} | loss={5.2} | ppl={2**5.2:.2f} | lr=0.0003\n" for step in (100, 200))
    history = read(text)
    assert [step.loss for step in history.steps] == [pytest.approx(5.2 * math.log(2), abs=1e-3)] * 2
    assert "converted to nats" in history.notes[0]
    nats = read(f"step=100 loss=3.5 ppl={math.exp(3.5)}\n")
    assert nats.steps[0].loss == 3.5


def test_table_with_an_index_as_pandas_prints_it() -> None:
    history = read("   step  train_loss  val_loss\n0   100      3.6000    3.7000\n1   200      3.5000    3.6000\n")
    assert [(e.step, e.val) for e in history.evaluations] == [(100, 3.7), (200, 3.6)]


ROWS = [{"step": step, "train_loss": loss(step), "lr": 6e-4} for step in range(0, 100, 10)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.mark.parametrize(
    "document",
    [ROWS, {"run": "a", "history": ROWS}, {"metrics": COLUMNS}, {n: dict(enumerate(c)) for n, c in COLUMNS.items()}],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_documents(document: Any, indent: int | None) -> None:
    history = read(json.dumps(document, indent=indent))
    assert history.format == "jsonlines"
    assert [(step.step, step.loss) for step in history.steps] == [(row["step"], row["train_loss"]) for row in ROWS]
    assert '"train_loss"' in history.lines[history.steps[3].line - 1]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{}", "[[]]", '{"a": [[1]]}', '[{"a": 1}, 2]', "[" * 100_000, '{"a": {"b": 1']
)
def test_other_json_documents_are_refused(text: str) -> None:
    with pytest.raises(logs.DataError, match="D041"):
        read(text)


def test_units_of_thousands() -> None:
    line = "iteration: {0} / 20000 | consumed_tokens: {1}M | elapsed_time_per_iteration_ms: 5.1K | lm_loss: 7.1\n"
    history = read(line.format(100, 52.4) + line.format(200, 104.8))
    assert [step.seconds for step in history.steps] == [5.1, 5.1]
    assert history.metadata.tokens_per_step == 524_000


def test_losses_beside_the_loss_are_not_read() -> None:
    history = read("step=5 moe train loss: 0.1, aux loss: 0.2, loss: 3.2\n")
    assert [step.loss for step in history.steps] == [3.2]


@pytest.mark.parametrize("end", ["0.25 s/step", "250ms/step", "4.0 it/s", "dt=0.25", "time: 250.00ms"])
def test_step_times_of_unknown_programs(end: str) -> None:
    assert [step.seconds for step in read(f"step=100 loss=3.2 | {end}\n").steps] == [0.25]


def test_timestamps_are_the_clock_of_unknown_programs() -> None:
    lines = [f"2025-04-01 12:00:{step // 4:02d},000 INFO step={step} loss=3.2\n" for step in range(0, 200, 20)]
    assert {step.seconds for step in read("".join(lines)).steps[1:]} == {0.25}


def test_of_a_long_line_the_beginning_counts() -> None:
    assert [step.step for step in read("step=5 loss=3.0 " + "x=1 " * 500_000).steps] == [5]
    with pytest.raises(logs.DataError, match="D041"):
        read("x " * 500_000 + "step=5 loss=3.0")
