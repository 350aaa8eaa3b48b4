"""What a run has taught a plan: its step time, and how its loss differs from the scaling law."""

import math
from dataclasses import dataclass, replace

from jaxgpt.budget import speed
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import Corpus
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.utils.stats import Z80

OTHER_STEP_SPREAD = 0.10  # of a step time that was measured with another model or batch
OTHER_DEVICE_SPREAD = 0.20  # or on another device
PROGRAM_SD = 0.24  # of the logarithm of a step time, between programs (docs/budget-accuracy.md)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run has taught: its step time, and how its loss differs from the scaling law.

    `measured` is the step time of `software` ("jaxgpt", or "nanogpt" for any other program) for `measured_config` on
    `measured_device` (None: the plan's). `loss_shift` in nats per GPT-2 token is added to the corpus's offset, and
    `loss_sd` replaces the offset's standard deviation; without a shift the loss is the scaling law's. `run_size` is
    the number of parameters and of GPT-2 tokens of the run that the shift comes from. `notes` are sentences that say
    why a part of the run is not used.
    """

    source: str
    measured: StepTime | None = None
    measured_config: Config | None = None
    measured_device: Device | None = None
    software: str = "jaxgpt"
    loss_shift: float | None = None
    loss_sd: float = 0.0
    run_size: tuple[float, float] | None = None
    is_assumed: bool = False  # nothing was measured: the step time is that of a typical CPU
    notes: tuple[str, ...] = ()

    def with_possible_pace(self, device: Device | None, gpus: int = 1) -> "Calibration":
        """The calibration without a step time that its device, or the plan's, cannot reach."""
        origin = self.measured_device or device
        if self.measured is None or self.measured_config is None or origin is None:
            return self
        fastest = speed.fastest(self.measured_config, origin, gpus)
        if self.measured.seconds >= fastest:
            return self
        where = f"{gpus} × {origin.name}" if gpus > 1 else origin.name
        note = (
            f"The pace of {self.source}, {self.measured.seconds:.2g} s per step, is not used: {where} cannot train a "
            f"step in less than {fastest:.2g} s. The log is of another model, device or number of devices, and the "
            "time is an estimate."
        )
        return replace(self, measured=None, notes=(*self.notes, note))

    def step_time(self, config: Config, device: Device | None, gpus: int = 1) -> StepTime | None:
        """jaxgpt's step time: the measured one, or what it says of jaxgpt if another program was measured."""
        time = self.measured_time(config, device, gpus)
        if time is None or self.software == "jaxgpt":
            return time
        factor, fastest = 1.0, 0.0
        if device is not None:
            own = speed.estimate(config, device, "jaxgpt", gpus)
            factor = own.seconds / speed.estimate(config, device, self.software, gpus).seconds
            fastest = own.low
        below = math.hypot(math.log(time.seconds / time.low), Z80 * PROGRAM_SD)
        above = math.hypot(math.log(time.high / time.seconds), Z80 * PROGRAM_SD)
        seconds = factor * time.seconds
        return replace(
            time,
            seconds=seconds,
            low=max(seconds * math.exp(-below), min(fastest, 0.9 * seconds)),
            high=seconds * math.exp(above),
            basis=f"{time.basis}, by another program; jaxgpt's was not measured: times {factor:.2f}",
        )

    def measured_time(self, config: Config, device: Device | None, gpus: int = 1) -> StepTime | None:
        """The measured program's step time, scaled by the modeled work where `config` or device are others."""
        if self.measured is None or self.measured_config is None:
            return self.measured
        origin = self.measured_device or device
        if _same_step(config, self.measured_config) and origin == device:
            return self.measured
        factor = _step_work(config, device, gpus) / _step_work(self.measured_config, origin, gpus)
        middle = self.measured.seconds
        spread = OTHER_STEP_SPREAD if origin == device else OTHER_DEVICE_SPREAD
        difference = "another model or batch" if origin == device else f"on {origin.name if origin else 'a CPU'}"
        widened = replace(
            self.measured,
            low=min(self.measured.low, middle * (1 - spread)),
            high=max(self.measured.high, middle * (1 + spread)),
            basis=f"{self.measured.basis}, times {factor:.3g} because it trained {difference}",
        )
        return widened.scaled(factor)

    def corpus(self, corpus: Corpus) -> Corpus:
        """`corpus` with the calibrated offset."""
        if self.loss_shift is None:
            return corpus
        offset = corpus.offset + self.loss_shift
        evidence = f"calibrated by {self.source}"
        return replace(corpus, offset=offset, sd=self.loss_sd, evidence=evidence, calibrated_by=self.run_size)


def _same_step(config: Config, other: Config) -> bool:
    return (config.model, config.data.micro_batch, config.data.accum) == (
        other.model,
        other.data.micro_batch,
        other.data.accum,
    )


def _step_work(config: Config, device: Device | None, gpus: int) -> float:
    """The work of a step, to compare two of them: expected seconds, or operations where there is no device."""
    if device is None:
        return float(config.tokens_per_step * flops_per_token(config.model))
    return speed.estimate(config, device, gpus=gpus).seconds
