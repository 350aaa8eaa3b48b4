"""Memory of a training step on its device, in closed form, and the largest micro-batch that fits.

The training state is exact (a test compares it with XLA's own count). Activations are those that the backward pass of
`jaxgpt/model` reads: of each block its two residual inputs and their norms, queries, keys and values, the attention's
output, and the MLP's inner arrays; dropout masks are generated twice instead. The logits of a chunk turn into their
gradients in place, beside two float32 sums of the head's gradient. Flash attention saves one number per query;
attention without it saves its probabilities. With `model.remat` a block saves only its input ("blocks") or everything
but its attention's arrays ("attention"); what it does not save exists for one block at a time.

Programs that XLA compiled for an H100 need what this module says, without the libraries' workspace and fragmentation,
within 2 % without remat, within 4 % with `attention`, and up to 15 % less with `blocks` (a test).
"""

import math
from dataclasses import asdict, dataclass

from jaxgpt.config import Config, Model
from jaxgpt.config.attention import SCORES_FRACTION, cudnn_obstacle
from jaxgpt.config.model_size import block_matrices, block_matrix_parameters, parameters, position_parameters
from jaxgpt.optimizers import OPTIMIZERS
from jaxgpt.utils import stats

REMAT_BLOCKS = "blocks"  # the policy of `model.remat` that saves least
GIB = 2**30
FLOAT32 = 4
LIBRARIES = 256 * 2**20  # workspaces of cuBLASLt and cuDNN, and the compiled program
FRAGMENTS = 0.03  # of the total: alignment and holes between buffers
COUNTERS = 3 * 4  # the step's number, and Adam's and the schedule's counts, int32
JAX_MEMORY_FRACTION = 0.75  # of a device that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION changes it
MAX_MICRO_BATCH = 4096  # the search for the largest micro-batch ends here


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by purpose."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(asdict(self).values())


def estimate(config: Config, micro_batch: int | None = None, *, remat: str = "", flash: bool | None = None) -> Memory:
    """Memory of a step of `config` on each device with `micro_batch` sequences (default: the config's).

    `remat` overrides the config's policy. `flash` tells whether attention runs without saving its probabilities; by
    default it does wherever the config lets cuDNN run. The devices of `mesh.fsdp` share the state; each gathers the
    weights in the compute type and has one micro-batch's whole gradient in float32.
    """
    model = config.model
    shards = config.mesh.fsdp
    size = number_size(model)
    sequences = micro_batch or config.data.micro_batch
    tokens = sequences * model.block_size
    weights = parameters(model) + position_parameters(model)
    flash = flash_attention(model) if flash is None else flash
    saved = saved_activation_bytes(model, remat or model.remat, flash=flash)
    recomputed = block_bytes(model, flash=flash) - saved  # exists for one block at a time
    ends = (4 * model.n_embd + 2 * model.n_embd) * size  # embedding, last norm, and their gradients
    block_gradients = 2 * max(model.inner, 3 * model.n_embd) * size  # of the block in its backward pass
    token_ids = sequences * (config.data.accum * (model.block_size + 1)) * 2
    logits = loss_chunk(model, tokens) * model.vocab_size * size + 2 * FLOAT32 * model.vocab_size * model.n_embd
    # The loss ends before the blocks' backward pass begins: a step needs room for the larger of the two.
    gradient = weights * (size if shards == 1 else FLOAT32)
    backward = max(0, tokens * (recomputed + block_gradients) + gradient - logits)
    cast_weights = weights * size if size < FLOAT32 or shards > 1 else 0
    # The mask of documents, bfloat16 for cuDNN, is the same array for all layers.
    mask = 2 * tokens * model.block_size if flash and config.data.block_cross_document_attention else 0
    workspace = cast_weights + token_ids + backward + mask + LIBRARIES
    memory = Memory(
        parameters=FLOAT32 * weights // shards,
        gradients=FLOAT32 * weights // shards,  # the float32 sum over micro-batches
        optimizer=optimizer_bytes(config, weights) // shards,
        activations=tokens * (model.n_layer * saved + ends),
        logits=logits,
        workspace=workspace,
    )
    return Memory(**(asdict(memory) | {"workspace": workspace + int(FRAGMENTS * memory.total)}))


def optimizer_bytes(config: Config, weights: int) -> int:
    """Bytes of the optimizer's state: that of the blocks' matrices, and AdamW's two moments of all other weights."""
    optimizer = OPTIMIZERS[config.optim.optimizer]
    block = sum(optimizer.state_size(*shape) for shape in block_matrices(config.model))
    others = weights - block_matrix_parameters(config.model)
    return FLOAT32 * (config.model.n_layer * block + 2 * others) + COUNTERS


def number_size(model: Model) -> int:
    """Bytes of a number of the compute type; `auto` is bfloat16 on the GPUs of the device table."""
    return 4 if model.dtype == "float32" else 2


def flash_attention(model: Model) -> bool:
    """Whether training uses cuDNN's attention on a recent GPU. Attention dropout excludes it."""
    dtype = "float32" if model.dtype == "float32" else "bfloat16"
    return model.attention != "xla" and not model.attention_dropout and not cudnn_obstacle(model, dtype)


def loss_chunk(model: Model, tokens: int) -> int:
    """Tokens whose logits exist at the same time: the loss makes as few equal chunks as the limit allows."""
    return math.ceil(tokens / math.ceil(tokens / model.loss_chunk))


def block_bytes(model: Model, *, flash: bool) -> int:
    """Bytes per token that the backward pass of a block reads."""
    width = model.n_embd
    mlp = 2 * model.inner if model.architecture == "gpt2" else 3 * model.inner
    return (3 * width + mlp) * number_size(model) + attention_bytes(model, flash=flash)


def attention_bytes(model: Model, *, flash: bool) -> int:
    """Bytes per token that a block's backward pass reads between the block's input and its attention's residual sum."""
    queries = model.n_head * model.head_size
    keys = model.kv_heads * model.head_size
    numbers = model.n_embd + (queries + 2 * keys) + queries
    if model.architecture == "modern":
        numbers += queries + keys  # normalized and rotated ones beside the projected ones
    probabilities = FLOAT32 * model.n_head if flash else _probability_bytes(model)
    return numbers * number_size(model) + probabilities


def saved_activation_bytes(model: Model, remat: str, *, flash: bool) -> int:
    """Bytes per token that a block saves from its forward to its backward pass; the rest is recomputed."""
    if remat == REMAT_BLOCKS:
        return model.n_embd * number_size(model)
    recomputed = attention_bytes(model, flash=flash) if remat == "attention" else 0
    return block_bytes(model, flash=flash) - recomputed


def _probability_bytes(model: Model) -> int:
    """Of attention without a flash kernel: its softmax in float32 and in the compute type."""
    computed = 1.0 if model.attention_dropout else SCORES_FRACTION
    return int(computed * model.n_head * model.block_size * (FLOAT32 + number_size(model)))


def max_micro_batch(config: Config, usable_gib: float, *, remat: str = "", flash: bool | None = None) -> int:
    """The largest micro-batch whose step fits into `usable_gib`; 0 if none does."""
    limit = usable_gib * GIB

    def fits(size: int) -> bool:
        return estimate(config, size, remat=remat, flash=flash).total <= limit

    return stats.largest_integer(fits, MAX_MICRO_BATCH)


def candidate_micro_batches(config: Config) -> list[int]:
    """Powers of two that divide the sequences of a step, and the config's own micro-batch."""
    sequences = config.data.micro_batch * config.data.accum
    powers = [2**n for n in range(9) if sequences % 2**n == 0]
    return sorted({*powers, config.data.micro_batch})
