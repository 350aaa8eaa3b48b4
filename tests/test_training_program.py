"""The train step as a program: arrays and memory when compiled for a CPU or lowered for CUDA, and its numbers."""

import importlib.util
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers.jaxprs import scan_inputs
from helpers.programs import (
    BIASED,
    MODERN,
    abstract_step,
    assert_matches_oracle,
    compile_step,
    make_config,
    random_tokens,
)

from jaxgpt.config import Config
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step

ROOT = Path(__file__).parents[1]
both_architectures = pytest.mark.parametrize("changes", [{}, MODERN], ids=["gpt2", "modern"])


def state_bytes(config: Config) -> int:
    state = jax.eval_shape(partial(step.init_state, config, optim.make_optimizer(config)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def max_elements(shapes: list[str]) -> int:
    return max(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)


def expected_max_elements(config: Config) -> int:
    """Elements of the largest expected array: a table, a chunk's logits, the MLP's inner array, a chunk's scores."""
    m, rows = config.model, config.data.micro_batch
    scores = math.ceil(m.block_size / 4) * m.block_size
    chunk = math.ceil(rows * m.block_size / math.ceil(rows * m.block_size / m.loss_chunk))
    inner = max(m.inner, (m.n_head + 2 * m.kv_heads) * m.head_size)
    return max(m.vocab_size * m.n_embd, chunk * m.vocab_size, rows * m.block_size * inner, rows * m.n_head * scores)


@both_architectures
def test_a_compiled_step_never_has_all_logits_or_all_scores(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    m, rows = config.model, config.data.micro_batch
    elements = max_elements(re.findall(r"\b[a-z]\w*\[([\d,]+)\]\{", compile_step(config).as_text()))
    assert (
        elements
        <= expected_max_elements(config)
        < min(rows * m.block_size * m.vocab_size, rows * m.n_head * m.block_size**2)
    )


@both_architectures
def test_state_is_updated_in_place_and_temporaries_are_bounded(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    m, memory = config.model, compile_step(config).memory_analysis()
    assert memory.alias_size_in_bytes == state_bytes(config)
    tokens = config.data.micro_batch * m.block_size
    parameters = state_bytes(config) / 3
    # Floats that a layer keeps per token for its gradient: norms and residuals, q, k, v and y in two layouts each, the
    # MLP's inner arrays, and the probabilities of the four chunks. Gradients exist twice, as sum and as addend.
    per_token = 8 * m.n_embd + 8 * m.n_head * m.head_size + 5 * m.inner + m.n_head * 0.625 * m.block_size
    stored = tokens * m.n_layer * per_token
    assert memory.temp_size_in_bytes < 4 * (stored + 6 * expected_max_elements(config)) + 3 * parameters


@both_architectures
def test_scan_takes_bfloat16_weights_and_sums_float32_gradients(
    changes: dict[str, Any],
) -> None:
    config = make_config(dtype="bfloat16", **changes)
    function, state = abstract_step(config)
    loop = next(e for e in jax.make_jaxpr(function)(state, random_tokens(config)).eqns if e.primitive.name == "scan")
    constants, carry = scan_inputs(loop)
    matrices = sorted(leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2)
    assert sorted(aval.shape for aval in constants if aval.dtype == "bfloat16") == matrices
    assert not [aval.shape for aval in constants if aval.dtype == "float32" and aval.ndim >= 2]
    assert len(carry) == len(jax.tree.leaves(state.params))
    assert {aval.dtype.name for aval in carry} == {"float32"}


SHAPES = {
    "gpt2": {},
    "modern": MODERN,
    "biased": BIASED,
    "one sequence of seven": {"block_size": 7, "micro_batch": 1, "accum": 1},
    "modern, one sequence at a time": MODERN | {"micro_batch": 1, "loss_chunk": 500},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_match_the_oracle(name: str, dtype: str) -> None:
    assert_matches_oracle(dtype, SHAPES[name])


@pytest.mark.parametrize(("name", "dtype"), [("biased", "float32"), ("modern", "float32"), ("gpt2", "bfloat16")])
def test_gpu_code_paths_match_the_oracle(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All GPU code paths except cuDNN's attention also run on a CPU."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))
    assert_matches_oracle(dtype, SHAPES[name])


def switches() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("cuda_options", ROOT / "bench" / "cuda_options.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.SWITCHES)


@pytest.mark.parametrize("name", sorted(switches()))
def test_xla_accepts_every_option_of_the_cuda_benchmark(name: str) -> None:
    assert jax.jit(lambda x: x + 1, compiler_options=switches()[name].options)(1) == 2


CUDNN = "jax._src.cudnn.fused_attention_stablehlo"


@both_architectures
def test_cuda_program_uses_cudnn_without_scores_or_all_logits(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{CUDNN}.check_cudnn_version", lambda: 91000)  # otherwise it asks the library
    config = make_config(dtype="bfloat16", attention="cudnn", **changes | {"n_embd": 32, "head_dim": None})
    m = config.model
    function, state = abstract_step(config)
    traced = jax.jit(function, donate_argnums=0).trace(state, random_tokens(config))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"__cudnn\$fmhaSoftmax(Backward)?\b", text)
    assert (calls.count(""), calls.count("Backward")) == (m.n_layer, m.n_layer)
    shapes = {tuple(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)+)[a-z]", text)}
    assert not [shape for shape in shapes if shape[-2:] == (m.block_size, m.block_size)]
    assert max(map(math.prod, shapes)) < config.data.micro_batch * m.block_size * m.vocab_size
    norms = 2 * m.n_layer + 1 + (2 * m.n_layer if m.architecture == "modern" else 0)
    # The barriers of the norms' sums and of each attention's three products; none of those for the CPU.
    assert len(re.findall(r"= stablehlo\.optimization_barrier", text)) == norms + m.n_layer
