"""What a training step holds on the device, in closed form, and the largest micro-batch that fits.

The state is exact (a test compares it with XLA's own count). Activations are those that the backward pass reads, as
`model.py` makes them: of each block its two residual inputs and their norms, queries, keys and values, the attention's
output, and the MLP's inner arrays; dropout's masks are drawn again. The logits of a chunk turn into their slopes in
place, beside two float32 sums of the head's gradient. Flash attention keeps one number per query; the written-out one
keeps its probabilities. With `model.remat` a block keeps its input alone, or all but its attention's insides, and what
it does not keep exists for one block at a time. Programs that XLA compiled for an H100 need what this says, workspace
of libraries and fragments left out, within 2 % without a policy, 4 % with `attention`, and up to 15 % less with
`blocks` (a test).
"""

import math
from dataclasses import asdict, dataclass

from jaxgpt.config import Config, Model
from jaxgpt.config.attention import SCORES_FRACTION, cudnn_obstacle
from jaxgpt.config.model_size import parameters, positions
from jaxgpt.utils import stats

REMAT_BLOCKS = "blocks"  # of `model.remat`: the policy that keeps least

GIB = 2**30
FLOAT32 = 4
LIBRARIES = 256 * 2**20  # cuBLASLt's and cuDNN's workspaces and the compiled program
FRAGMENTS = 0.03  # of the whole: alignment and holes between buffers
SMALL_STEPS = 3 * 4  # the update's number, and Adam's and the schedule's counts, int32
JAX_MEMORY_FRACTION = 0.75  # of a device that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says another
LIMIT = 4096  # the largest micro-batch that is looked for


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by what they are for."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def state_bytes(model: Model) -> int:
    """Bytes of parameters and of AdamW's two moments in float32, with the counters: the whole of a `TrainState`."""
    return 3 * FLOAT32 * (parameters(model) + positions(model)) + SMALL_STEPS


def estimate(config: Config, micro_batch: int | None = None, *, remat: str = "", flash: bool | None = None) -> Memory:
    """What a step of `config` needs on each of its devices with `micro_batch` sequences (default: the config's).

    `remat` takes the place of the config's. `flash` says that attention keeps no probabilities; by
    default it does not wherever the config lets cuDNN run.
    """
    model = config.model
    size = number_size(model)
    tokens = (micro_batch or config.data.micro_batch) * model.block_size
    count = parameters(model) + positions(model)
    flash = flash_attention(model) if flash is None else flash
    kept = saved_activation_bytes(model, remat or model.remat, flash=flash)
    passing = block_bytes(model, flash=flash) - kept  # what a block computes again, while it is gone through
    ends = (4 * model.n_embd + 2 * model.n_embd) * size  # embedding, last norm, and their gradients
    backward = 2 * max(model.inner, 3 * model.n_embd) * size  # gradients of the block that is being gone through
    wide = (micro_batch or config.data.micro_batch) * (config.data.accum * (model.block_size + 1)) * 2
    state = FLOAT32 * count
    logits = loss_chunk(model, tokens) * model.vocab_size * size + 2 * FLOAT32 * model.vocab_size * model.n_embd
    # The loss is over before the blocks' backward pass begins: a step needs room for the larger of the two.
    later = max(0, tokens * (passing + backward) + count * size - logits)
    working = (count * size if size < FLOAT32 else 0) + wide + later + LIBRARIES
    part = Memory(
        parameters=state,
        gradients=state,  # the float32 sum over micro-batches
        optimizer=2 * state + SMALL_STEPS,
        activations=tokens * (model.n_layer * kept + ends),
        logits=logits,
        workspace=working,
    )
    return Memory(**(asdict(part) | {"workspace": working + int(FRAGMENTS * part.total)}))


def number_size(model: Model) -> int:
    """Bytes of a number of the compute type; `auto` is bfloat16 on the GPUs that are planned for."""
    return 4 if model.dtype == "float32" else 2


def flash_attention(model: Model) -> bool:
    """Whether training uses cuDNN's attention on a recent GPU. Attention dropout excludes it."""
    dtype = "float32" if model.dtype == "float32" else "bfloat16"
    return model.attention != "xla" and not model.attention_dropout and not cudnn_obstacle(model, dtype)


def loss_chunk(model: Model, tokens: int) -> int:
    """Tokens whose logits exist at a time: `model/loss.py` makes as few equal chunks as the limit allows."""
    return math.ceil(tokens / math.ceil(tokens / model.loss_chunk))


def block_bytes(model: Model, *, flash: bool) -> int:
    """Bytes per token that the backward pass of a block reads."""
    width, inner = model.n_embd, model.inner
    wide = 2 * inner if model.architecture == "gpt2" else 3 * inner
    return (3 * width + wide) * number_size(model) + attention_bytes(model, flash=flash)


def attention_bytes(model: Model, *, flash: bool) -> int:
    """Those of a block's bytes that stand between its input and the sum with its attention."""
    queries, keys = model.n_head * model.head_size, model.kv_heads * model.head_size
    arrays = model.n_embd + (queries + 2 * keys) + queries
    if model.architecture == "modern":
        arrays += queries + keys  # normed and turned ones beside the projected ones
    return arrays * number_size(model) + (FLOAT32 * model.n_head if flash else _probabilities(model))


def saved_activation_bytes(model: Model, remat: str, *, flash: bool) -> int:
    """Those of a block's bytes that are kept from its forward to its backward pass; the rest is computed again."""
    if remat == REMAT_BLOCKS:
        return model.n_embd * number_size(model)
    return block_bytes(model, flash=flash) - (attention_bytes(model, flash=flash) if remat == "attention" else 0)


def _probabilities(model: Model) -> int:
    """Of the written-out attention: softmax in float32 and in the compute type, of four parts of growing length."""
    fraction = 1.0 if model.attention_dropout else SCORES_FRACTION
    return int(fraction * model.n_head * model.block_size * (FLOAT32 + number_size(model)))


def max_micro_batch(config: Config, usable_gib: float, *, remat: str = "") -> int:
    """The largest micro-batch whose step fits into `usable_gib`; 0 if none does."""
    return stats.largest_integer(lambda size: estimate(config, size, remat=remat).total <= usable_gib * GIB, LIMIT)


def candidate_micro_batches(config: Config) -> list[int]:
    """Micro-batches worth naming: powers of two that divide the sequences of a step, and the config's own."""
    sequences = config.data.micro_batch * config.data.accum
    powers = [2**n for n in range(9) if sequences % 2**n == 0]
    return sorted({*powers, config.data.micro_batch})
