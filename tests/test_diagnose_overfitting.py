"""A character model that overfits, as nanoGPT's shakespeare_char with its published losses, and where its log ends."""

import numpy as np
import pytest

from jaxgpt import logs
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.checks.repetition_gain import cost_shown, recoverable_cost
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, diagnose
from jaxgpt.diagnose.finding import Finding
from jaxgpt.diagnose.options import Options

HEAD = """max_iters = 5000
lr_decay_iters = 5000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100
dropout = {dropout}
batch_size = 64
block_size = 256

tokens per iteration will be: 16,384
found vocab_size = 65 (inside data/shakespeare_char/meta.pkl)
number of parameters: 10.65M
"""
TRAIN = (4.2874, 1.9639, 1.5304, 1.367, 1.2775, 1.2056, 1.1567, 1.1025, 1.0549, 1.0101, 0.9583, 0.9113, 0.8658)
VAL = (4.2823, 2.0676, 1.7326, 1.5917, 1.5219, 1.4919, 1.4852, 1.4723, 1.4811, 1.4883, 1.4988, 1.5231, 1.5323)
UNIQUE = 1_003_854.0


def diagnosed(last: int, *, dropout: float = 0.2, **options: object) -> Diagnosis:
    """The diagnosis of the log until its evaluation after `last` steps."""
    lines = [HEAD.format(dropout=dropout)]
    for index, (train, val) in enumerate(zip(TRAIN, VAL)):
        if 250 * index <= last:
            lines.append(f"step {250 * index}: train loss {train:.4f}, val loss {val:.4f}")
            lines.append(f"iter {250 * index}: loss {train + 0.1:.4f}, time 760.00ms, mfu 0.48%")
    history = logs.read_text("\n".join(lines), "out.log")
    return diagnose(history, resolve_context(history, Options(**options)), now=0.0)  # type: ignore[arg-type]


def confirmed(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.id: finding for finding in diagnosis.findings if finding.status == "confirmed"}


@pytest.mark.parametrize("unique", [UNIQUE, None])
@pytest.mark.parametrize("last", [2500, 2750, 3000])
def test_a_rise_for_750_steps_is_severe_overfitting(last: int, unique: float | None) -> None:
    diagnosis = diagnosed(last, unique_tokens=unique)
    assert {"severe-overfitting", "overfitting"} <= set(confirmed(diagnosis))
    assert "the validation loss rises while" in messages.problem_sentence(diagnosis)
    assert messages.first_steps(diagnosis)[0].action.startswith("Use the checkpoint of step 1,750")


@pytest.mark.parametrize("last", [1500, 1750, 2000])
def test_it_overfits_before_validation_rises(last: int) -> None:
    findings = confirmed(diagnosed(last, unique_tokens=UNIQUE))
    assert "overfitting" in findings
    assert not {"severe-overfitting", "lr-too-high", "noise-not-plateau", "not-annealed"} & set(findings)


@pytest.mark.parametrize("last", [1500, 2000, 2500])
def test_unknown_repetition_has_no_forecast(last: int) -> None:
    diagnosis = diagnosed(last)
    assert diagnosis.forecast is None
    assert "without the number of unique tokens (--unique-tokens)" in messages.forecast_sentence(diagnosis)
    assert not {"lr-too-high", "noise-not-plateau", "not-annealed"} & set(confirmed(diagnosis))


@pytest.mark.parametrize(("dropout", "words"), [(0.2, "a dropout of 0.2"), (0.0, "no dropout")])
def test_regularization_is_that_of_the_log(dropout: float, words: str) -> None:
    diagnosis = diagnosed(3000, dropout=dropout, unique_tokens=UNIQUE)
    finding = confirmed(diagnosis)["missing-regularization"]
    assert messages.meaning(finding) == f"the run overfits with a weight decay of 0.1 and {words}"
    expected = "beside the dropout of 0.2" if dropout else "a dropout of 0.1"
    assert expected in finding.recommendations[0].action


def test_a_named_config_is_no_evidence() -> None:
    """The config has a weight decay and a dropout, but the log has neither."""
    rows = "".join(f"{250 * index},{train},{val}\n" for index, (train, val) in enumerate(zip(TRAIN, VAL)))
    history = logs.read_text(f"step,train_loss,val_loss\n{rows}", "out.csv")
    facts = {"config": "shakespeare_char", "unique_tokens": UNIQUE, "batch_tokens": 16_384.0}
    diagnosis = diagnose(history, resolve_context(history, Options(**facts)), now=0.0)  # type: ignore[arg-type]
    findings = {finding.id: finding for finding in diagnosis.findings}
    assert findings["overfitting"].status == "confirmed"
    assert findings["missing-regularization"].status == "unknown"
    assert "the weight decay (--weight-decay)" in " ".join(diagnosis.missing)
    assert findings["unneeded-dropout"].status != "confirmed"


def test_training_losses_that_lag_early_are_not_memorized() -> None:
    """Training losses are means over the steps before, so that they lag behind a loss that falls quickly."""
    rows = [f"{step},{3.2 + 120 / step:.4f},{3.2 + 60 / step:.4f}" for step in range(200, 10_001, 200)]
    history = logs.read_text("step,train_loss,val_loss\n" + "\n".join(rows), "out.csv")
    options = Options(total_steps=20_000, params=124e6, batch_tokens=524_288.0, corpus="fineweb")
    assert diagnose(history, resolve_context(history, options), now=0.0).forecast is not None


@pytest.mark.parametrize("every", [1, 500])  # losses between two rows: each step's, or one mean beside the evaluation
def test_growth_of_the_gap_is_without_the_lag_of_means(every: int) -> None:
    """The mean of the steps since the row before is above a loss that falls, without any repetition."""
    steps = np.arange(1, 10_001)
    losses = 3 + 6 * (1 + steps / 60) ** -0.6
    means = losses.reshape(-1, every).mean(axis=1)
    rows = [
        f"{step},{mean:.4f},{losses[step - 1] if step % 500 == 0 else ''}"
        for step, mean in zip(steps[every - 1 :: every], means)
    ]
    history = logs.read_text("step,train_loss,val_loss\n" + "\n".join(rows), "out.csv")
    options = Options(total_steps=20_000, params=124e6, batch_tokens=524_288.0, unique_tokens=524_288.0 * 600)
    growth = diagnose(history, resolve_context(history, options), now=0.0).analysis.gap.growth
    assert growth is not None
    assert growth.value == pytest.approx(0.0, abs=0.012)


def test_a_gap_below_zero_for_good_is_kept() -> None:
    """With dropout the train loss stays above the validation loss, and overfitting narrows the distance."""
    rows = [f"{step},{3 + 60 / step:.4f},{2.8 + 60 / step + 1e-5 * step:.4f}" for step in range(500, 10_001, 500)]
    history = logs.read_text("step,train_loss,val_loss\n" + "\n".join(rows), "out.csv")
    options = Options(total_steps=20_000, batch_tokens=1000.0, unique_tokens=1000.0 * 2000)
    gap = diagnose(history, resolve_context(history, options), now=0.0).analysis.gap
    assert gap.points[-1].value == pytest.approx(-0.1, abs=1e-3)
    assert gap.growth is not None
    assert gap.growth.value == pytest.approx(0.075, abs=0.015)


@pytest.mark.parametrize(("last", "total"), [(1750, 5000), (3000, 3000)])
def test_gains_need_a_cost_that_the_curve_shows(last: int, total: int) -> None:
    """The repetition law expects more than a nat, which would bring the loss below the training loss."""
    diagnosis = diagnosed(last, unique_tokens=UNIQUE, total_steps=total)
    run = diagnosis.analysis
    predicted, shown = run.law.repetition_cost(total), cost_shown(run)
    assert predicted is not None
    assert shown is not None
    assert predicted > 2.9 * shown
    assert recoverable_cost(run) is None
    advised = [item for item in diagnosis.recommendations if item.action.startswith(("Train on twice", "Use a weight"))]
    assert len(advised) == 2
    assert [item.gain for item in advised] == [None, None]
