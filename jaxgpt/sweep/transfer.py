"""The learning rate for a larger model, from that of a smaller one."""

from jaxgpt.config import Config
from jaxgpt.utils.report import Command, Paragraph, Section

# A rate is proportional to width^-1 (AdamW) or width^-1/2 (Muon), and to (tokens per step)^BATCH_POWER: docs/sweep.md.
ADAM_WIDTH_POWER, MUON_WIDTH_POWER, BATCH_POWER = -1.0, -0.5, 0.29
RULE = (
    "The rule: the rate falls as 1/width with AdamW (µP, Yang et al. 2022; width^(−0.91 ± 0.30) among the best rates "
    "of StepLaw's runs) and as 1/√width with Muon (the spectral condition of Yang et al. 2023: an update of constant "
    "RMS has a spectral norm that grows as √width). It rises with the tokens per step to the power of 0.29 (StepLaw). "
    "Depth and length have no factor. Expect it to be right within a factor of 2 (docs/sweep.md)."
)


def transfer_rate(source: Config, target: Config) -> float:
    """The peak learning rate of `target` that corresponds to that of `source`, with the source's optimizer."""
    power = MUON_WIDTH_POWER if "muon" in source.optim.optimizer else ADAM_WIDTH_POWER
    wider = target.model.n_embd / source.model.n_embd
    batch = target.tokens_per_step / source.tokens_per_step
    return float(source.optim.learning_rate * wider**power * batch**BATCH_POWER)


def transfer_section(source: Config, target: Config, name: str) -> Section:
    """The learning rate for the config `target`, called `name`, and the command that trains it."""
    rate = transfer_rate(source, target)
    final = rate * target.optim.min_lr / (target.optim.learning_rate or 1.0)
    words = (
        f"A peak learning rate of {rate:.2g} for {name} (width {target.model.n_embd:,}, {target.tokens_per_step:,} "
        f"tokens per step), from {source.optim.learning_rate:g} at width {source.model.n_embd:,} and "
        f"{source.tokens_per_step:,} tokens per step, with {source.optim.optimizer}."
    )
    options = f"--optim.optimizer {source.optim.optimizer} --optim.learning-rate {rate:.2g} --optim.min-lr {final:.2g}"
    command = Command(f"python -m jaxgpt.train --config {name} {options}")
    return Section(f"Transfer to {name}", (Paragraph(words), Paragraph(RULE), command))
