"""Muon (Jordan et al. 2024): Nesterov momentum, orthogonalized by Newton-Schulz iterations."""

from typing import TYPE_CHECKING, Any

from jaxgpt.optimizers.base import Optimizer

if TYPE_CHECKING:
    import optax

    from jaxgpt.config import Optim

ITERATIONS = 5
FIRST_MOMENTUM = 0.85  # of a warmup: that of modded-nanogpt's records
UPDATE_RMS = 0.2  # AdamW's typical one, so that both share a learning rate (Liu et al. 2025)


class Muon(Optimizer):
    """Sets the singular values of the momentum to about 1 and its root mean square to that of an AdamW update."""

    name = "muon"
    summary = "Muon for the matrices of the blocks"
    update_bytes = 190.0  # counted in the program that XLA makes of fineweb40m_modern for an H100 (bench/program.py)
    loss_gain = (0.045, 0.02)  # 12 public runs of 124M to 1.5B parameters at 5 to 26 tokens per parameter

    def make_update(self, optim: "Optim", dtype: Any) -> "optax.GradientTransformation":
        import optax

        from jaxgpt.optimizers.orthogonalize import orthogonalize_all

        def orthogonalized(momenta: Any, _: Any) -> Any:
            return orthogonalize_all(momenta, ITERATIONS, UPDATE_RMS, dtype)

        return optax.chain(_momentum(optim), optax.stateless(orthogonalized))

    def state_size(self, inputs: int, outputs: int) -> int:
        return inputs * outputs

    def update_flops(self, inputs: int, outputs: int) -> float:
        short, long = sorted((inputs, outputs))
        return ITERATIONS * (4.0 * short * short * long + 2.0 * short**3)


def _momentum(optim: "Optim") -> "optax.GradientTransformation":
    """Nesterov momentum, constant or rising."""
    import optax

    if not optim.momentum_warmup:
        return optax.trace(optim.momentum, nesterov=True)
    rising = optax.linear_schedule(FIRST_MOMENTUM, optim.momentum, optim.momentum_warmup)
    trace = optax.inject_hyperparams(optax.trace, static_args=("nesterov", "accumulator_dtype"))
    return trace(decay=rising, nesterov=True)
