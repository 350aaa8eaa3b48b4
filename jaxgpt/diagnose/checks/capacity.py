"""The check whether the size of the model limits the loss."""

from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.checks import baseline
from jaxgpt.diagnose.finding import Condition, Finding, unknown

# The gain of doubling the model over that of doubling the tokens. By the scaling law it is 4.3 for 40M parameters at
# 250 tokens per parameter, and 2.3 at 20 tokens per parameter.
GAIN_RATIO = 3.0
MAX_RESIDUAL = 2.0  # standard deviations of the scaling law within which a loss is normal for the model's size


def capacity_limited(run: RunAnalysis) -> Finding:
    """Confirmed if the loss is where models of this size end, so that only a larger model would help."""
    if run.baseline is not None:
        return Finding(
            id="capacity-limited",
            conditions=(
                baseline.is_smaller(run),
                baseline.is_worse(run),
                baseline.is_otherwise_equal(run, except_for="size"),
            ),
            cost=run.loss_above_baseline.value if run.loss_above_baseline else None,
        )
    return Finding(
        id="capacity-limited",
        conditions=(_is_at_expected_level(run), _gains_more_from_size(run)),
        cost=run.law.gain_of_doubling("parameters"),
    )


def _is_at_expected_level(run: RunAnalysis) -> Condition:
    question = "the loss is within two standard deviations of what the scaling law predicts for this size and text"
    residual = run.law.residual
    if residual is None:
        return unknown(question, run.law.missing_for_residual)
    evidence = f"{residual.text} from the predicted loss"
    end = run.expected_end
    if end is not None and run.law.prediction is not None:
        name = "forecast of the end" if run.final_evaluation is None else "last evaluation"
        evidence += f"; {name} {end:.3f}, predicted {run.law.prediction.loss:.3f}"
    return Condition(question, evidence, abs(residual.value) <= MAX_RESIDUAL * residual.stderr, residual.lines)


def _gains_more_from_size(run: RunAnalysis) -> Condition:
    question = f"doubling the model would gain more than {GAIN_RATIO:g} times what doubling the tokens would"
    from_size = run.law.gain_of_doubling("parameters")
    from_tokens = run.law.gain_of_doubling("tokens")
    if from_size is None or from_tokens is None:
        return unknown(question, run.law.missing_for_query)
    prediction = run.law.prediction
    if prediction is not None and prediction.outside:
        reason = f"outside the scaling law's fitted range: {prediction.outside[0]}"
        return unknown(question, f"{reason}: a baseline run (--baseline RUN)")
    ratio = f", {from_size / from_tokens:.1f} times" if from_tokens > 0 else ""
    evidence = f"{from_size:.3f} against {from_tokens:.3f} nats{ratio}"
    return Condition(question, evidence, from_size > max(GAIN_RATIO * from_tokens, 0.0))
