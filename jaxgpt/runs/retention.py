"""Which checkpoints of a run are kept: the rule of the run itself and of `checkpoint prune`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxgpt.config import Run


class Policy:
    """Orbax's `PreservationPolicy` with the settings of `run`.

    `losses` has the validation losses, by step. `unstable_since` returns the step of a divergence, or None.
    """

    def __init__(self, run: Run, losses: Mapping[int, float], unstable_since: Callable[[], int | None]) -> None:
        self._run = run
        self._losses = losses
        self._unstable_since = unstable_since

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """For each checkpoint, in ascending order, whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        run = self._run
        kept = kept_steps(
            steps,
            self._losses,
            latest=run.keep_latest,
            best=run.keep_best,
            every=run.keep_every,
            unstable_since=self._unstable_since(),
        )
        return [step in kept for step in steps]


def kept_steps(
    steps: Sequence[int],
    losses: Mapping[int, float],
    *,
    latest: int,
    best: int,
    every: int | None = None,
    unstable_since: int | None = None,
) -> set[int]:
    """The `latest` newest of the ascending `steps`, the `best` with the lowest loss, and the multiples of `every`.

    Of a run whose loss has risen for good or is not finite since step `unstable_since`, also the newest from before.
    Of steps with the same loss, the older one is better. A step without a finite loss is never among the best.
    """
    evaluated = [step for step in steps if losses.get(step, math.inf) < math.inf]
    kept = {*steps[-latest:], *sorted(evaluated, key=lambda step: losses[step])[:best]}
    if unstable_since is not None:
        kept |= set([step for step in steps if step <= unstable_since][-1:])
    return kept | {step for step in steps if every and step % every == 0}
