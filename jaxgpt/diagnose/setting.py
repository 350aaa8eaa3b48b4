"""The run that a log belongs to: what the log, a config and the options say of it, and what had to be assumed."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling import Corpus
from jaxgpt.config import Config, Optim
from jaxgpt.logs.history import History


class Twin(NamedTuple):
    """A clean run to hold this one against, where the law says nothing of runs like it."""

    history: History
    setting: "Setting"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a diagnosis knows of the run besides its losses. None is not known."""

    total_steps: int
    optim: Optim  # schedule, warmup, peak and last rate; of an unknown optimizer the rest is AdamW's default
    rates: NDArray[np.float64]  # [total_steps] learning rate of each update as a share of the peak
    corpus: Corpus
    tokens_per_step: float | None = None
    eval_tokens: float | None = None
    fixed_eval: bool = False  # every evaluation reads the same text
    unique_tokens: float | None = None
    parameters: float | None = None  # total, a tied head once
    weight_decay: float | None = None
    dropout: float | None = None
    vocab_size: int | None = None
    unigram_entropy: float | None = None  # nats per token, from the data's audit
    device: Device | None = None
    config: Config | None = None
    config_name: str | None = None  # what `--config` would be given, for advice
    known_schedule: bool = True  # False where the schedule is assumed
    twin: Twin | None = None
    hoped_seconds: float | None = None  # per step, as somebody hopes
    assumed: tuple[str, ...] = ()  # sentences: "the schedule is assumed to be a cosine to a tenth (--schedule …)"

    @property
    def tokens(self) -> float | None:
        """Tokens that the whole run reads."""
        return None if self.tokens_per_step is None else self.tokens_per_step * self.total_steps

    def epochs(self, step: int) -> float | None:
        """Epochs after `step` updates."""
        if self.tokens_per_step is None or self.unique_tokens is None:
            return None
        return self.tokens_per_step * step / self.unique_tokens
