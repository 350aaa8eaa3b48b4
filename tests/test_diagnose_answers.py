"""What a diagnosis says of unusual runs, what it asks for, and that its sentences are complete."""

import math
import re
from dataclasses import replace

import pytest
from helpers import logsamples
from helpers.synthetic_runs import CONFIRMED, COSINE, make_run
from test_diagnose_owner_log import OPTIONS, TEXTS

from jaxgpt import logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History


def diagnosed(text: str, **options: object) -> Diagnosis:
    history = logs.read_text(text, "out.log")
    return diagnose(history, resolve_context(history, Options(**options)), now=0.0)  # type: ignore[arg-type]


def statuses(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.id: finding.status for finding in diagnosis.findings}


# --- more epochs than were ever measured -----------------------------------------------------------------------------


def custom(steps: int) -> str:
    lines = ["tokens per iteration will be: 262,144", "found vocab_size = 44902 (inside data/custom/meta.pkl)"]
    lines.append("number of parameters: 119.52M")
    for step in range(0, steps, 10):
        lines.append(f"iter {step}: loss {4.5 + 6.3 * (1 + step / 30) ** -1:.4f}, time 33700.00ms, mfu 0.96%")
    return "\n".join(lines)


@pytest.mark.parametrize(("unique", "epochs"), [(47_316_670.0, "3,324"), (2e8, "786")])
def test_too_many_epochs_have_no_forecast(unique: float, epochs: str) -> None:
    diagnosis = diagnosed(custom(400), unique_tokens=unique, total_steps=600_000)
    assert diagnosis.forecast is None
    assert f"{epochs} epochs are outside the repetition law" in messages.forecast_sentence(diagnosis)
    assert statuses(diagnosis)["repetition-risk"] == "confirmed"
    first = messages.first_steps(diagnosis)[0]
    assert "Train on more text" in first.action
    assert first.gain is None


def test_no_forecast_is_worse_than_a_guess() -> None:
    for steps in (1000, 100_000):
        diagnosis = diagnosed(custom(400), unique_tokens=1e6, total_steps=steps)
        assert diagnosis.forecast is None or diagnosis.forecast.mean <= math.log(44_902)


# --- NaN before the first update -------------------------------------------------------------------------------------

RESUMED = """tokens per iteration will be: 65,536
Resuming training from out
number of parameters: 303.09M
step 178000: train loss nan, val loss nan
iter 178000: loss nan, time 904.10ms, mfu 8.10%
iter 178010: loss nan, time 900.10ms, mfu 8.10%
"""
BEFORE = (
    "tokens per iteration will be: 65,536\nstep 177000: train loss 2.9, val loss 3.0\niter 177990: loss 2.9, time 9ms\n"
)
LATER = (
    RESUMED.replace("loss nan", "loss 2.95")
    + "iter 178020: loss nan, time 9.00ms\niter 178030: loss nan, time 9.00ms\n"
)


@pytest.mark.parametrize("text", [RESUMED, BEFORE + RESUMED, RESUMED.replace("178", "0").replace("Resuming", "In")])
def test_nan_before_the_first_update(text: str) -> None:
    diagnosis = diagnosed(text, total_steps=600_000)
    assert statuses(diagnosis)["divergence"] == "ruled out"
    assert diagnosis.findings[0].id == "recipe-or-bug"
    assert "before the first update: the fault is in the weights it started from" in messages.summary(diagnosis)[2]
    assert messages.first_steps(diagnosis)[0].action.startswith("Look for NaN in the starting weights")
    assert diagnosis.forecast is None


def test_nan_after_updates_is_a_divergence() -> None:
    """The peak learning rate is assumed: its value is not blamed."""
    diagnosis = diagnosed(LATER, total_steps=600_000)
    assert statuses(diagnosis)["divergence"] == "confirmed"
    actions = [step.action for step in messages.first_steps(diagnosis)]
    assert actions[0].startswith("Use a third of the peak learning rate")
    assert "0.0006" not in " ".join(actions)


# --- what it asks for ------------------------------------------------------------------------------------------------

PRINTED = "model_params:17059912\ntrain_batch_tokens:524288 train_seq_len:1024 iterations:200 warmup_steps:20\n"
STATED = {  # facts that the log states, and words that ask for them
    "nanogpt": (
        logsamples.NANOGPT_HEAD + logsamples.nanogpt(),
        ("--schedule", "--total-steps", "--batch-tokens", "--params", "--weight-decay", "--dropout", "and now"),
    ),
    "llmc": (logsamples.LLMC_HEAD + logsamples.llmc(), ("--schedule", "--total-steps", "--params", "--batch-tokens")),
    "jaxgpt": (
        logsamples.jsonl(logsamples.jaxgpt_records()),
        ("--schedule", "--total-steps", "--params", "--weight-decay", "--dropout"),
    ),
    "modded": (logsamples.modded(), ("--schedule", "--total-steps")),
    "derived from modded": (PRINTED + logsamples.modded(), ("--params", "--batch-tokens")),
}


@pytest.mark.parametrize("name", STATED)
def test_it_never_asks_for_what_the_log_states(name: str) -> None:
    text, asked = STATED[name]
    missing = "; ".join(diagnosed(text).missing)
    assert [words for words in asked if words in missing] == []


def test_without_unique_tokens_it_asks_for_them_alone() -> None:
    """Epoch 1 ends nowhere yet: no losses of its end are asked for."""
    context, history = make_run({"unique_tokens": None, "sources": {}})
    findings = {finding.id: finding for finding in diagnose(history, context, now=0.0).findings}
    asked = {condition.missing for condition in findings["overfitting"].conditions if condition.result is None}
    assert "epoch" not in " ".join(asked)


# --- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "history"), [run for runs in CONFIRMED.values() for run in runs])
def test_every_sentence_is_complete(context: RunContext, history: History) -> None:
    diagnosis = diagnose(history, context, now=0.0)
    sentences = [*messages.summary(diagnosis), *map(messages.recommendation_sentence, diagnosis.recommendations)]
    for sentence in sentences:
        assert sentence.endswith(".")
        assert not re.search(r"\b(brings|by|until|of|about|the|instead)\.$|about the same|: *\.|  ", sentence), sentence


def test_an_action_that_gains_nothing_is_not_advised() -> None:
    """The rest of the schedule lowers the learning rate by 0.1 %, whose gain rounds to nothing."""
    context, history = make_run({"optim": replace(COSINE, min_lr=9.98e-4)}, done=1800)
    diagnosis = diagnose(history, context, now=0.0)
    assert statuses(diagnosis)["not-annealed"] == "confirmed"
    assert diagnosis.recommendations
    assert [item.action for item in diagnosis.recommendations if "Let the run finish" in item.action] == []


@pytest.mark.parametrize("name", TEXTS)
def test_three_sentences_about_a_real_run(name: str) -> None:
    history = logs.read_text(TEXTS[name], "owner")
    diagnosis = diagnose(history, resolve_context(history, OPTIONS), now=0.0)
    _, forecast, help_ = messages.summary(diagnosis)
    loss = re.search(r"will end at a validation loss of (3\.\d+)", forecast)
    assert loss
    assert 3.50 <= float(loss[1]) <= 3.56
    for sentence in (help_, messages.limits_sentence(diagnosis)):
        assert sentence.startswith(
            "Nothing is broken, and it is not stuck: the model is about as good as its size allows"
        )
        assert "what would help most: for the same compute, train a 158M model" in sentence
