"""The options of `diagnose` that describe the run: what its log does not say."""

import argparse
from dataclasses import dataclass
from typing import Literal

from jaxgpt.config import options
from jaxgpt.config.fields import OptionGroup, field
from jaxgpt.errors import ConfigError
from jaxgpt.logs.formats.table import has_step_and_loss, split_columns

MAX_STEPS = 10_000_000  # of a run that is analyzed step by step
OptimizerName = Literal["adamw", "muon", "soap", "shampoo", "other"]
# Words in the names of optimizers, and the optimizer that they show; the first match counts.
OPTIMIZER_WORDS: dict[str, OptimizerName] = {"muon": "muon", "soap": "soap", "shampoo": "shampoo", "adam": "adamw"}


def optimizer_name(text: str) -> OptimizerName:
    """The optimizer in any spelling (`AdamW`, `adamw_torch_fused`, `NorMuon`); "other" for one that is not known."""
    letters = text.lower()
    return next((name for word, name in OPTIMIZER_WORDS.items() if word in letters), "other")


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup, title="the run", error_code="C048"):
    """Facts that the log does not state; these options win over the log and the config.

    None where nothing is stated. Raises `ConfigError` C048 for a value out of range, C050 and C052 for options that
    contradict each other. Options that contradict the length or the peak learning rate are refused with the log at
    hand, when these are resolved.
    """

    schedule: Literal["cosine", "linear", "trapezoid", "wsd", "constant"] | None = field(
        None, "learning-rate schedule; trapezoid is wsd with a decay to 0", parse=str.lower
    )
    warmup: int | None = field(None, "steps of linear warmup", ge=0, le=MAX_STEPS)
    total_steps: int | None = field(None, "optimizer steps of the whole run", ge=1, le=MAX_STEPS)
    decay_steps: int | None = field(
        None, "cosine, linear: step that reaches --min-lr; wsd, trapezoid: steps of decay", ge=1, le=MAX_STEPS
    )
    peak_lr: float | None = field(None, "peak learning rate", ge=1e-12, le=10)
    min_lr: float | None = field(None, "learning rate at the end of the decay", ge=0, le=10)
    batch_tokens: float | None = field(
        None, "tokens per step, over all devices and micro-batches, such as 524288 or 0.5M", ge=1, le=1e12, metavar="N"
    )
    eval_tokens: float | None = field(None, "tokens per evaluation", ge=1, le=1e15, metavar="N")
    unique_tokens: float | None = field(None, "unique tokens, such as 3.68e9", ge=100, le=1e18, metavar="N")
    params: float | None = field(
        None,
        "parameters, with tied embeddings once and without learned positions, such as 124M",
        ge=1,
        le=1e15,
        metavar="N",
    )
    optimizer: Literal["adamw", "muon", "soap", "shampoo", "other"] | None = field(
        None, "optimizer of the matrices, in any usual spelling", parse=optimizer_name
    )
    weight_decay: float | None = field(None, "weight decay of the matrices", ge=0, le=1e3)
    dropout: float | None = field(None, "dropout", ge=0, lt=1)
    corpus: str | None = field(
        None, "fineweb, fineweb-edu, openwebtext, openwebtext2, refinedweb, c4 or unknown", metavar="NAME"
    )
    bytes_per_token: float | None = field(
        None, "bytes of text per token, to convert losses in bits per byte", ge=1, le=16, metavar="N"
    )
    columns: str | None = field(
        None, "names of the columns of a table without a header, such as step,train,val", metavar="NAME,NAME,..."
    )
    config: str | None = field(None, "config file, or built-in config, for what neither says", metavar="FILE")
    gpu: str | None = field(None, "device of the run, in any usual spelling", metavar="NAME")
    baseline: str | None = field(
        None, "a healthy run to compare the losses with, where the scaling law does not apply", metavar="RUN|LOG"
    )
    target_step_time: float | None = field(
        None, "seconds per step to compare with the device's roofline", ge=1e-6, le=86_400, metavar="S"
    )
    target_loss: float | None = field(
        None, "final loss (nats per token) to compare with the forecast", ge=1e-6, le=1e3, metavar="LOSS"
    )
    now: float | None = field(
        None,
        "the current time, in seconds since 1970 (default: the clock)",
        ge=0,
        le=2.5e11,  # the year 9892
        metavar="SECONDS",
    )

    def check(self) -> None:
        warmup, decay = self.warmup or 0, self.decay_steps
        if decay is not None and self.schedule in ("cosine", "linear") and decay < warmup:
            raise ConfigError("C050", f"--decay-steps {decay} ends before --warmup {warmup}", "it counts from step 0")
        if self.schedule == "constant" and (decay is not None or self.min_lr is not None):
            option = "--decay-steps" if decay is not None else "--min-lr"
            raise ConfigError("C052", f"{option} describes a decay; --schedule constant has none", "leave one out")
        if self.schedule == "trapezoid" and self.min_lr:
            message = f"--min-lr {self.min_lr:g}; a trapezoid decays to 0"
            raise ConfigError("C052", message, "--schedule wsd decays to --min-lr")
        if self.columns is not None and not has_step_and_loss(split_columns(self.columns)):
            message = f"--columns {self.columns} names no step, or no loss"
            raise ConfigError("C048", message, "name the columns in order: --columns step,train,val")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options as a group of their own."""
    options.add_options(parser, Options)


def read_options(namespace: argparse.Namespace) -> Options:
    """The options that were given."""
    return options.read_options(Options, namespace)
