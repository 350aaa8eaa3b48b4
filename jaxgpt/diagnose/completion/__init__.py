"""Estimates when a run ends: the time that its remaining steps, evaluations and saves take."""

from jaxgpt.diagnose.completion.estimate import CompletionEstimate, estimate_completion, missing_for_completion
from jaxgpt.diagnose.completion.timing import StepTimes

__all__ = ["CompletionEstimate", "StepTimes", "estimate_completion", "missing_for_completion"]
