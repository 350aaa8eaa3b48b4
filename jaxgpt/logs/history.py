"""What a log says of a run, in one form for every format; what it does not say is None.

A step's `step` counts the updates before it, an evaluation's the updates behind it: nanoGPT's `iter 100` is the
hundred-and-first update, its `step 100` is measured before it. Losses are in nats per token, times in seconds. `line`
is the place in the file (1 is the first line), so that every verdict can show what it rests on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxgpt.config import Config


class Step(NamedTuple):
    """One update. `loss` may be NaN or infinite; not `pure` are `seconds` that hold compiling, evaluation or saving."""

    step: int
    loss: float | None = None
    seconds: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    line: int = 0
    pure: bool = True
    time: float | None = None  # of the record, seconds since 1970


class Evaluation(NamedTuple):
    """Losses on fixed or random text after `step` updates, both without dropout; `seconds` it took if the log says."""

    step: int
    val: float | None = None
    train: float | None = None
    standard_error: float | None = None
    line: int = 0
    seconds: float | None = None


class Replay(NamedTuple):
    """Updates `first` to `last` (inclusive) that stand twice, because the run went on from an earlier state."""

    first: int
    last: int
    line: int


@dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """Facts of the run that its log states."""

    parameters: float | None = None  # total, a tied head once, positions left out
    tokens_per_step: float | None = None
    total_steps: int | None = None
    eval_tokens: float | None = None
    unique_tokens: float | None = None
    device: str | None = None
    end: str | None = None  # why the run stopped, in our log's words
    pauses: float = 0.0  # seconds of evaluation and saving, where the log tells them apart
    single_batch_loss: bool = False  # a step's loss is that of one micro-batch, not of the whole batch
    smoothed_loss: bool = False  # a step's loss is a running mean
    relative_rate: bool = False  # a step's learning rate is its share of a peak that the log does not name
    counted_from_tokens: bool = False  # steps are tokens over an assumed `tokens_per_step`
    hyperparameters: Mapping[str, float | bool | str] = field(default_factory=dict)  # under nanoGPT's names


@dataclass(frozen=True, kw_only=True)
class History:
    """The last run of a log: of a step that stands twice, the later line. Steps and evaluations ascend."""

    source: str
    format: str
    steps: tuple[Step, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    saves: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()  # updates done when each process of the run began
    replays: tuple[Replay, ...] = ()
    config: Config | None = None
    metadata: RunMetadata = field(default_factory=RunMetadata)
    lines: Sequence[str] = ()  # the file's text, for evidence; of a large file read when asked for
    notes: tuple[str, ...] = ()  # how what is odd in the file was understood, one sentence each

    @property
    def steps_done(self) -> int:
        """Updates that the log shows to be done."""
        trained = self.steps[-1].step + 1 if self.steps else 0
        return max(trained, self.evaluations[-1].step if self.evaluations else 0)
