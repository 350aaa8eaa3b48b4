"""AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019)."""

from typing import TYPE_CHECKING, Any

from jaxgpt.optimizers.base import Optimizer

if TYPE_CHECKING:
    import optax

    from jaxgpt.config import Optim


class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    name = "adamw"
    summary = "AdamW for all parameters"
    update_bytes = 34.0
    loss_gain = (0.0, 0.0)

    def make_update(self, optim: "Optim", dtype: Any) -> "optax.GradientTransformation":
        import optax

        del dtype
        return optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2, eps=optim.eps)

    def state_size(self, inputs: int, outputs: int) -> int:
        return 2 * inputs * outputs
