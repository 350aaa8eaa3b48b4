"""What is measured during a run, as plain values: one step, one evaluation, the time that is left. Loads no JAX."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from jaxgpt.utils.eta import Eta
from jaxgpt.utils.signals import write_stderr


class StepRecord(NamedTuple):
    """One optimizer step: `step` counts the steps before it; the loss is the batch mean in nats per token."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    mfu: float | None
    epoch: float


class Score(NamedTuple):
    """Mean loss in nats per token over `windows` windows, its standard error, and the loss in bits per byte."""

    loss: float
    standard_error: float
    windows: int
    bits_per_byte: float | None

    @classmethod
    def from_losses(cls, losses: np.ndarray[Any, Any], tokens_per_byte: float | None = None) -> "Score":
        """The score of the windows with the mean `losses`, in nats per token; their spread gives the standard error."""
        mean = float(np.mean(losses, dtype=np.float64))
        count = len(losses)
        error = float(np.std(losses, ddof=1, dtype=np.float64)) / math.sqrt(count) if count > 1 else math.nan
        bits_per_byte = tokens_per_byte and mean / math.log(2) * tokens_per_byte
        return cls(mean, error, count, bits_per_byte)

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits per byte"
        return f"{self.loss:.4f} ± {self.standard_error:.4f}{bits}"


class Scores(NamedTuple):
    """The evaluation of a model; `val` is None where the data has no validation split."""

    train: Score
    val: Score | None

    @property
    def main(self) -> Score:
        """The score that checkpoints are compared by: the validation split's if there is one."""
        return self.val or self.train

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Scores":
        """The scores of an `eval` record of the log: the inverse of `flat`. Raises `KeyError` if some are missing."""
        train, val = (
            Score(*(record[f"{split}_{field}"] for field in Score._fields)) if f"{split}_loss" in record else None
            for split in ("train", "val")
        )
        if train is None:
            raise KeyError("train_loss")
        return cls(train, val)

    def flat(self) -> dict[str, float | int | None]:
        """`train_loss`, `val_loss`, `val_standard_error` and so on, for the log."""
        return {
            f"{name}_{field}": value
            for name, score in (("train", self.train), ("val", self.val))
            if score
            for field, value in score._asdict().items()
        }


class BestEvaluation(NamedTuple):
    """The evaluation with the lowest loss: the steps before it and its loss, infinite if there is none."""

    step: int
    loss: float


class LossForecast(Protocol):
    """The loss that is expected at the end of the run, in nats per token, with its 80 % interval."""

    @property
    def mean(self) -> float: ...
    @property
    def low80(self) -> float: ...
    @property
    def high80(self) -> float: ...


class Display:
    """Shows a run to a person; this one shows nothing. `live` if it shows the forecast."""

    live = False

    def restore(self, records: Iterable[dict[str, Any]]) -> None:
        """Shows what the log has of the steps before a resume."""

    def step(self, record: StepRecord, remaining: Eta | None) -> None: ...
    def scores(self, step: int, scores: Scores) -> None: ...
    def forecast(self, forecast: LossForecast | None) -> None: ...
    def saved(self, step: int) -> None: ...
    def print(self, text: str) -> None: ...
    def close(self) -> None: ...

    def notify(self, text: str) -> None:
        """Shows a sentence at once; called by signal handlers."""
        write_stderr(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
