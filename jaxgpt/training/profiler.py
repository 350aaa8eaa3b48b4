"""A trace of a few steps by JAX's profiler (`run.profile`)."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from jaxgpt.config import Run
from jaxgpt.training import distributed


class Profiler:
    """Traces the steps of `run.profile` into `folder`. Does nothing without them, or if they are over at a resume.

    Of several processes, only process 0 traces, with its own devices: all run the same program, and JAX names the files
    of a trace by host and second, so that processes on one host would write the same file.
    """

    def __init__(self, run: Run, folder: Path, report: Callable[[str], None]) -> None:
        self._first, self._end = run.profiled_steps
        self._folder = folder
        self._report = report
        self._is_tracing = False

    def before_step(self, step: int) -> None:
        """Starts the trace before the first of its steps. `step` counts the steps that are done."""
        if step == self._first and distributed.is_main():
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def after_step(self, step: int, result: object) -> None:
        """Ends the trace after the last of its steps, when the device has `result`, and reports how to open it."""
        if self._is_tracing and step >= self._end:
            jax.block_until_ready(result)
            self.__exit__(None, None, None)
            opening = f"pip install xprof, then xprof --logdir {self._folder}"
            self._report(f"profile of steps {self._first} to {self._end}: {opening}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
