"""What less repetition would gain: as much as the repetition law predicts, and no more than the curve shows."""

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.checks.repetition import (
    DAMAGE_PER_GAP_GROWTH,
    LAW_MIN_PARAMETERS,
    LAW_UNCERTAINTY,
    SHOULD_SHOW,
)


def recoverable_cost(run: RunAnalysis) -> float | None:
    """What repetition will have cost by the end, in nats, at most what the curve shows.

    None where the repetition law does not apply, where it disagrees with the curve by more than its uncertainty, and
    where the loss without this cost would be negative.
    """
    predicted = run.law.repetition_cost(run.total_steps)
    if predicted is None or (run.context.parameters or 0.0) < LAW_MIN_PARAMETERS:
        return None
    shown = cost_shown(run)
    if shown is not None and predicted > LAW_UNCERTAINTY * shown:
        return None
    cost = predicted if shown is None else min(predicted, shown)
    end = run.expected_end
    return None if end is not None and cost >= end else cost


def cost_shown(run: RunAnalysis) -> float | None:
    """What repetition will have cost by the end, in nats, by the curve and the forecast.

    It is half of the growth of the gap to the training loss or, if larger, the rise of validation; and what the
    forecast adds to the last validation loss. None while the curve cannot show a cost yet, and without a gap.
    """
    predicted = run.law.repetition_cost(run.steps_done) or 0.0
    latest = run.losses.latest_val
    if not run.gap.points or latest is None or (predicted < SHOULD_SHOW and not run.is_over):
        return None
    rise = run.losses.rise.height if run.losses.rise else 0.0
    end = latest.value if run.expected_end is None else run.expected_end
    return max(DAMAGE_PER_GAP_GROWTH * _gap_growth(run), rise, 0.0) + max(end - latest.value, 0.0)


def _gap_growth(run: RunAnalysis) -> float:
    """The growth of the gap in nats; the gap itself, where its growth is unknown or larger."""
    gap = run.gap.points[-1].value
    growth = run.gap.growth
    return min(growth.value, gap) if growth is not None and growth.exact else gap
