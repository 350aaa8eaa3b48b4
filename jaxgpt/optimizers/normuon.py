"""NorMuon (Li et al. 2025, arXiv 2510.05491): Muon with a second moment for each output neuron."""

from typing import TYPE_CHECKING, Any

from jaxgpt.optimizers.muon import UPDATE_RMS, Muon

if TYPE_CHECKING:
    import jax
    import optax

    from jaxgpt.config import Optim

EPSILON = 1e-8


class NorMuon(Muon):
    """Muon whose updates have the same root mean square for every output neuron."""

    name = "normuon"
    summary = "Muon with updates of equal size for all output neurons"
    loss_gain = (0.045, 0.03)  # as Muon's: no public comparison at this size separates them

    def make_update(self, optim: "Optim", dtype: Any) -> "optax.GradientTransformation":
        import optax

        return optax.chain(super().make_update(optim, dtype), _scale_by_neuron(optim.beta2))

    def state_size(self, inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs


def _scale_by_neuron(beta2: float) -> "optax.GradientTransformation":
    """Divides each column of a matrix [inputs, outputs] by its running RMS, then sets the matrix's to `UPDATE_RMS`."""
    import jax
    import jax.numpy as jnp
    import optax

    def init(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1], jnp.float32), params)

    def accumulate(mean_square: "jax.Array", update: "jax.Array") -> "jax.Array":
        return beta2 * mean_square + (1 - beta2) * jnp.mean(update**2, axis=0)

    def scale(update: "jax.Array", mean_square: "jax.Array") -> "jax.Array":
        scaled = update / (jnp.sqrt(mean_square)[None] + EPSILON)
        return UPDATE_RMS * scaled / (jnp.sqrt(jnp.mean(scaled**2)) + EPSILON)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        state = jax.tree.map(accumulate, state, updates)
        return jax.tree.map(scale, updates, state), state

    return optax.GradientTransformation(init, update)
