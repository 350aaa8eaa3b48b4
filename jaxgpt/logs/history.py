"""The contents of a run's log in one form for every format. What the log does not contain is None.

The `step` of a `Step` counts the optimizer steps before it, that of an `Evaluation` the steps before its measurement:
nanoGPT's `iter 100` is the 101st step, and its `step 100` is measured before that one. Losses are in nats per token,
times in seconds. `line` is the line number in the file (the first is 1), so that every finding can show its evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Self

from jaxgpt.config import Config
from jaxgpt.runs.log import StopReason


class Step(NamedTuple):
    """One optimizer step. `loss` may be NaN or infinite.

    `step_only` is False where `seconds` also contain compilation, evaluation or saving.
    """

    step: int
    loss: float | None = None
    seconds: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    line: int = 0
    step_only: bool = True
    time: float | None = None  # of the record, seconds since 1970


class Evaluation(NamedTuple):
    """Losses without dropout after `step` steps, and the seconds that the evaluation took."""

    step: int
    val: float | None = None
    train: float | None = None
    standard_error: float | None = None
    line: int = 0
    seconds: float | None = None


class BytesPerToken(NamedTuple):
    """Bytes per token that a user states, or that are assumed and from what."""

    value: float
    assumed_from: str = ""


class Replay(NamedTuple):
    """Steps `first` to `last` (inclusive) that were done twice, because the run resumed from an earlier state."""

    first: int
    last: int
    line: int


class LogTraits(NamedTuple):
    """Properties of the software that wrote a log. Each format module declares its own."""

    is_jaxgpt_run: bool = False  # the log of a jaxgpt run folder, whose checkpoints can be resumed and forked
    fixed_eval_set: bool = False  # every evaluation reads the same text
    total_is_last_step: bool = False  # steps are numbered 0 to total_steps, so that there is one more
    repeats_data_on_resume: bool = False  # a resumed run draws the batches of its start again
    lr_is_relative: bool = False  # learning rates are fractions of a peak that the log does not contain
    default_schedule: Literal["cosine", "linear", "wsd"] | None = None  # of the software, if there is a usual one
    optimizer: Literal["adamw", "muon"] | None = None  # of the software's matrices; None where it has several


@dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """Facts of the run that its log contains."""

    parameters: float | None = None  # total; a tied head counts once, position embeddings do not count
    tokens_per_step: float | None = None
    total_steps: int | None = None
    estimated_total_steps: int | None = None  # by the remaining time that the program prints
    eval_tokens: float | None = None
    unique_tokens: float | None = None
    bytes_per_token: float | None = None  # of the validation text
    device: str | None = None
    device_count: int | None = None  # devices that share a step
    stop_reason: StopReason | None = None  # of a jaxgpt run that has ended
    pause_seconds: float = 0.0  # total of evaluation, sampling and saving, where the log separates them from the steps
    assumption: str = ""  # how losses in bits per byte were converted, if that was assumed
    counted_from_tokens: bool = False  # steps are tokens divided by an assumed `tokens_per_step`
    hyperparameters: Mapping[str, float | bool | str] = field(default_factory=dict)  # under nanoGPT's names
    defaults: Mapping[str, float] = field(default_factory=dict)  # the software's, of what the log leaves out


@dataclass(frozen=True, kw_only=True)
class History:
    """The last run of a log. Steps and evaluations ascend; of a step that was logged twice, the later line counts."""

    source: str
    format: str
    traits: LogTraits = field(default_factory=LogTraits)
    steps: tuple[Step, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    saves: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()  # steps done when each process of the run started
    replays: tuple[Replay, ...] = ()
    config: Config | None = None
    metadata: RunMetadata = field(default_factory=RunMetadata)
    lines: Sequence[str] = ()  # the file's text, for evidence; read on demand from a large file
    notes: tuple[str, ...] = ()  # how irregularities of the file were interpreted, one sentence each
    warnings: tuple[
        str, ...
    ] = ()  # those of the notes that a short report repeats: lines and losses that were not read

    def with_warning(self, sentence: str) -> Self:
        return replace(self, notes=(*self.notes, sentence), warnings=(*self.warnings, sentence))

    @property
    def steps_done(self) -> int:
        """Optimizer steps that the log shows to be done."""
        trained = self.steps[-1].step + 1 if self.steps else 0
        evaluated = self.evaluations[-1].step if self.evaluations else 0
        return max(trained, evaluated)
