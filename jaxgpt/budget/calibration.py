"""What a run has taught a plan: its step time, and how its loss differs from the scaling law."""

from dataclasses import dataclass, replace

from jaxgpt.budget import speed
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import Corpus
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token

OTHER_STEP_SPREAD = 0.10  # of a step time that was measured with another model or batch


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run has taught: its step time, and how its loss differs from the scaling law.

    `measured` is the step time of `measured_config`. `loss_shift` in nats is added to the corpus's offset, and
    `loss_sd` replaces the offset's standard deviation; without a shift the loss is the scaling law's.
    """

    source: str
    measured: StepTime | None = None
    measured_config: Config | None = None
    loss_shift: float | None = None
    loss_sd: float = 0.0
    is_assumed: bool = False  # nothing was measured: the step time is that of a typical CPU

    def step_time(self, config: Config, device: Device | None, gpus: int = 1) -> StepTime | None:
        """The measured step time, scaled by the modeled work where `config` has another model or batch."""
        if self.measured is None or self.measured_config is None or _same_step(config, self.measured_config):
            return self.measured
        factor = _step_work(config, device, gpus) / _step_work(self.measured_config, device, gpus)
        middle = self.measured.seconds
        widened = replace(
            self.measured,
            low=min(self.measured.low, middle * (1 - OTHER_STEP_SPREAD)),
            high=max(self.measured.high, middle * (1 + OTHER_STEP_SPREAD)),
            basis=f"{self.measured.basis}, times {factor:.3g} because it trained another model or batch",
        )
        return widened.scaled(factor)

    def corpus(self, corpus: Corpus) -> Corpus:
        """`corpus` with the calibrated offset."""
        if self.loss_shift is None:
            return corpus
        offset = corpus.offset + self.loss_shift
        return replace(corpus, offset=offset, sd=self.loss_sd, evidence=f"calibrated by {self.source}")


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
