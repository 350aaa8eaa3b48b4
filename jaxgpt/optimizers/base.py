"""What an optimizer is: an update rule for the matrices of the blocks, with the facts that a plan needs.

The embeddings, the LM head, norms and biases always have AdamW.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import optax

    from jaxgpt.config import Optim


class Optimizer(ABC):
    """An optimizer of the matrices of the blocks. Methods import JAX where they need it, so that plans do not."""

    name: ClassVar[str]
    summary: ClassVar[str]  # for --help
    update_bytes: ClassVar[float]  # memory traffic of an update per weight
    loss_gain: ClassVar[tuple[float, float]]  # nats below AdamW's final loss, and the standard deviation of that

    @abstractmethod
    def make_update(self, optim: "Optim", dtype: Any) -> "optax.GradientTransformation":
        """Turns gradients of matrices [inputs, outputs] into updates of AdamW's size, before rate and weight decay.

        `dtype` is the type in which large matrix products may be computed; state and updates are float32.
        """

    @abstractmethod
    def state_size(self, inputs: int, outputs: int) -> int:
        """Float32 numbers of optimizer state for a matrix [inputs, outputs]."""

    def update_flops(self, inputs: int, outputs: int) -> float:
        """Operations of the matrix products that update a matrix [inputs, outputs]."""
        del inputs, outputs
        return 0.0
