"""Number of parameters of a model and floating-point operations per token, in closed form."""

from jaxgpt.config import Model


def parameters(model: Model) -> int:
    """All parameters as nanoGPT counts them: a tied head once, without learned positions."""
    heads = 1 if model.tie_embeddings else 2
    return heads * model.vocab_size * model.n_embd + non_embedding_parameters(model)


def non_embedding_parameters(model: Model) -> int:
    """Parameters of the blocks and the final norm: neither token embedding, nor head, nor positions."""
    modern_vectors = 2 * model.head_size + 2 * model.n_embd
    block_vectors = _gpt2_block_vectors(model) if model.architecture == "gpt2" else modern_vectors
    norm = model.n_embd * (2 if model.bias else 1)
    return block_matrix_parameters(model) + model.n_layer * block_vectors + norm


def position_parameters(model: Model) -> int:
    """Parameters of GPT-2's learned positions, which only memory estimates count."""
    return model.block_size * model.n_embd if model.architecture == "gpt2" else 0


def attention_flops_per_token(model: Model, *, causal: bool = False) -> int:
    """Operations of scores and values for one token, forward and backward; `causal` leaves out the masked half."""
    operations = 12 * model.n_layer * model.n_head * model.head_size * model.block_size
    return operations // 2 if causal else operations


def flops_per_token(model: Model, *, causal: bool = False) -> int:
    """Operations to train on one token: 6 N + 12 L H T, nanoGPT's convention (PaLM, appendix B).

    Forward costs 2 operations per parameter and backward twice that, hence 6 N with N `parameters`: the tied matrix
    is counted once, for the head, because looking an embedding up costs nothing. Attention adds scores and values,
    2 x 2 x T x width per layer forward and twice that backward, without subtracting the causal half unless `causal`.
    Norms, softmax, activation and the optimizer are left out.
    """
    untied = 0 if model.tie_embeddings else model.vocab_size * model.n_embd
    return 6 * (parameters(model) - untied) + attention_flops_per_token(model, causal=causal)


def block_matrix_parameters(model: Model) -> int:
    """Parameters of the blocks' matrices, without norms and biases."""
    return model.n_layer * sum(inputs * outputs for inputs, outputs in block_matrices(model))


def block_matrices(model: Model) -> list[tuple[int, int]]:
    """Inputs and outputs of each matrix of a block: queries, keys, values, output; gate (modern), up, down."""
    queries = model.n_head * model.head_size
    keys = model.kv_heads * model.head_size
    attention = [(model.n_embd, queries), (model.n_embd, keys), (model.n_embd, keys), (queries, model.n_embd)]
    up = [(model.n_embd, model.inner)] * (1 if model.architecture == "gpt2" else 2)
    return [*attention, *up, (model.inner, model.n_embd)]


def _gpt2_block_vectors(model: Model) -> int:
    width, inner, attention = model.n_embd, model.inner, model.n_head * model.head_size
    return 2 * width + (3 * attention + width + inner + width + 2 * width if model.bias else 0)
