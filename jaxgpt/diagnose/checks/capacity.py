"""The model as the limit."""

from jaxgpt.diagnose.checks import baseline
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.checks.repetition import worse
from jaxgpt.diagnose.finding import Condition, Finding, unknown

RATIO = 3.0  # gain of twice the model over that of twice the tokens: 4.3 for the reference run, 2.3 at 20 tokens
# per parameter, by the law (`scaling`)
LEVEL = 2.0  # standard deviations of the law within which a level is normal for its size


def capacity_limited(run: RunAnalysis) -> Finding:
    """Whether the loss is where a model of this size ends, and only a larger one would help."""
    if run.baseline is not None:
        smaller = baseline.smaller(run)
        return Finding(
            id="capacity-limited",
            conditions=(smaller, worse(run), baseline.otherwise_equal(run, but="size")),
            weight=run.loss_above_baseline.value if run.loss_above_baseline else 0.0,
        )
    return Finding(
        id="capacity-limited",
        conditions=(_level(run), _ratio(run)),
        weight=_gain(run, "parameters") or 0.0,
    )


def _gain(run: RunAnalysis, what: str) -> float | None:
    return None if run.query is None else run.gain(**{what: 2 * getattr(run.query, what)})


def _level(run: RunAnalysis) -> Condition:
    question = "the loss is within two standard deviations of what the law expects of this size and text"
    level = run.residual_from_law
    if level is None:
        why = run.law_inapplicable_reason or "no validation loss after the warmup"
        return unknown(question, f"{why}: a clean baseline to compare with (--baseline RUN)")
    found = f"{level.value:+.3f} ± {level.error:.3f} from the law"
    if run.forecast is not None and run.predicted_loss is not None:
        found += f"; forecast of the end {run.forecast.mean:.3f}, the law's {run.predicted_loss.loss:.3f}"
    return Condition(question, found, abs(level.value) <= LEVEL * level.error, level.lines)


def _ratio(run: RunAnalysis) -> Condition:
    question = f"twice the model would gain more than {RATIO:g} times what twice the tokens would"
    size, tokens = _gain(run, "parameters"), _gain(run, "tokens")
    if size is None or tokens is None:
        return unknown(question, "the model's size and tokens per step: --params, --batch-tokens, or --config NAME")
    if run.predicted_loss is not None and run.predicted_loss.outside:
        return unknown(
            question,
            f"outside the law's fitted range: {run.predicted_loss.outside[0]}: a clean baseline (--baseline RUN)",
        )
    times = f", {size / tokens:.1f} times" if tokens > 0 else ""
    return Condition(question, f"{size:.3f} against {tokens:.3f} nats{times}", size > max(RATIO * tokens, 0.0))
