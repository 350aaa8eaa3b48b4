"""What is known of the run behind a log: its schedule, size and data, each from the best source that has it."""

from jaxgpt.diagnose.context.run_context import Baseline, RunContext, resolve_context

__all__ = ["Baseline", "RunContext", "resolve_context"]
