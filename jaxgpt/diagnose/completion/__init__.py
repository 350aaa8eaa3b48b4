"""When a run ends: the time that its remaining steps, evaluations and saves take."""

from jaxgpt.diagnose.completion.estimate import (
    CompletionEstimate,
    StepTimes,
    estimate_completion,
    missing_for_completion,
)

__all__ = ["CompletionEstimate", "StepTimes", "estimate_completion", "missing_for_completion"]
