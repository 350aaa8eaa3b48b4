"""The step as a program: what the module compiled for a CPU and the one lowered for CUDA hold, and its numbers."""

import dataclasses
import importlib.util
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from helpers import oracle

from jaxgpt import config
from jaxgpt.config import Config, Data, Model
from jaxgpt.training import mesh, step
from jaxgpt.training import optimizer as optim

ROOT = Path(__file__).parents[1]
# Sizes of which no product is another's, so that an array's element count tells what it is.
MODEL = Model(
    n_layer=2, n_head=2, n_embd=24, block_size=52, vocab_size=510, dtype="float32", attention="xla", loss_chunk=25
)
MODERN: dict[str, Any] = {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "tie_embeddings": False, "head_dim": 8}
BIASED: dict[str, Any] = {"bias": True, "activation": "gelu_tanh"}
both_architectures = pytest.mark.parametrize("changes", [{}, MODERN], ids=["gpt2", "modern"])


def configured(*, accum: int = 2, micro_batch: int = 3, **changes: Any) -> Config:
    return Config(model=dataclasses.replace(MODEL, **changes), data=Data(accum=accum, micro_batch=micro_batch))


def tokens(cfg: Config) -> np.ndarray:
    shape = (cfg.data.accum, cfg.data.micro_batch, cfg.model.block_size + 1)
    return np.random.default_rng(0).integers(0, cfg.model.vocab_size, shape).astype(np.uint16)


def compiled(cfg: Config) -> Any:
    place = mesh.make_mesh(config.Mesh(data_parallel=1), cfg.data.micro_batch)
    optimizer = optim.make(cfg.optim, cfg.run.steps)
    program = step.compile_train_step(cfg, step.graph(cfg.model), optimizer, place)
    return program.lower(step.abstract_state(cfg, optimizer, place), tokens(cfg)).compile()


def state_bytes(cfg: Config) -> int:
    state = jax.eval_shape(partial(step.init_state, cfg, optim.make(cfg.optim, cfg.run.steps)))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def largest(shapes: list[str]) -> int:
    return max(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)


def allowed(cfg: Config) -> int:
    """Elements of the largest array that the design has: a table, a chunk's logits, an MLP's inner, a part's scores."""
    m, rows = cfg.model, cfg.data.micro_batch
    part = math.ceil(m.block_size / 4) * m.block_size
    chunk = math.ceil(rows * m.block_size / math.ceil(rows * m.block_size / m.loss_chunk))
    inner = max(m.inner, (m.n_head + 2 * m.kv_heads) * m.head_size)
    return max(m.vocab_size * m.n_embd, chunk * m.vocab_size, rows * m.block_size * inner, rows * m.n_head * part)


@both_architectures
def test_a_compiled_step_holds_neither_all_logits_nor_all_scores(changes: dict[str, Any]) -> None:
    cfg = configured(**changes)
    m, rows = cfg.model, cfg.data.micro_batch
    found = largest(re.findall(r"\b[a-z]\w*\[([\d,]+)\]\{", compiled(cfg).as_text()))
    assert found <= allowed(cfg) < min(rows * m.block_size * m.vocab_size, rows * m.n_head * m.block_size**2)


@both_architectures
def test_the_state_is_updated_in_place_and_temporaries_keep_to_their_bound(changes: dict[str, Any]) -> None:
    cfg = configured(**changes)
    m, memory = cfg.model, compiled(cfg).memory_analysis()
    assert memory.alias_size_in_bytes == state_bytes(cfg)
    places, parameters = cfg.data.micro_batch * m.block_size, state_bytes(cfg) / 3
    # Floats that a layer keeps per token for its gradient: norms and residuals, q, k, v and y in two layouts each, the
    # MLP's insides, and the probabilities of the four parts; gradients stand twice, as sum and as addend.
    kept = 8 * m.n_embd + 8 * m.n_head * m.head_size + 5 * m.inner + m.n_head * 0.625 * m.block_size
    assert memory.temp_size_in_bytes < 4 * (places * m.n_layer * kept + 6 * allowed(cfg)) + 3 * parameters


@both_architectures
def test_matrices_enter_the_loop_over_micro_batches_cast_and_gradients_add_up_in_float32(
    changes: dict[str, Any],
) -> None:
    cfg = configured(dtype="bfloat16", **changes)
    optimizer = optim.make(cfg.optim, cfg.run.steps)
    function = partial(step.train_step, cfg=cfg, graphdef=step.graph(cfg.model), optimizer=optimizer)
    state = jax.eval_shape(partial(step.init_state, cfg, optimizer))
    loop = next(e for e in jax.make_jaxpr(function)(state, tokens(cfg)).eqns if e.primitive.name == "scan")
    constants = [v.aval for v in loop.invars[: loop.params["num_consts"]]]
    matrices = sorted(leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim >= 2)
    assert sorted(aval.shape for aval in constants if aval.dtype == "bfloat16") == matrices
    assert not [aval.shape for aval in constants if aval.dtype == "float32" and aval.ndim >= 2]
    carried = [v.aval for v in loop.invars[loop.params["num_consts"] :][: loop.params["num_carry"]]]
    assert len(carried) == len(jax.tree.leaves(state.params))
    assert {aval.dtype.name for aval in carried} == {"float32"}


def gradient(cfg: Config) -> tuple[step.Metrics, step.Params, step.Params]:
    """What one update measured, the parameters before it, and its gradient, seen through a descent of rate 1."""
    optimizer = optax.sgd(1.0)
    state = step.init_state(cfg, optimizer)
    after, metrics = jax.jit(partial(step.train_step, cfg=cfg, graphdef=step.graph(cfg.model), optimizer=optimizer))(
        state, tokens(cfg)
    )
    return metrics, state.params, jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)


SHAPES = {
    "gpt2": {},
    "modern": MODERN,
    "biased": BIASED,
    "one sequence of seven": {"block_size": 7, "micro_batch": 1, "accum": 1},
    "modern, one sequence at a time": MODERN | {"micro_batch": 1, "loss_chunk": 500},
}


def assert_as_the_oracle(dtype: str, changes: dict[str, Any]) -> None:
    cfg = configured(dtype=dtype, **changes)
    metrics, params, grads = gradient(cfg)
    windows = tokens(cfg).reshape(-1, cfg.model.block_size + 1)
    loss, expected = oracle.gradient(params, cfg.to_dict()["model"], windows)
    norm = float(optax.tree.norm(expected))
    near_loss, near = (1e-6, 1e-5) if dtype == "float32" else (2e-4, 0.015)
    assert float(metrics.loss) == pytest.approx(loss, rel=near_loss)
    assert float(optax.tree.norm(optax.tree.sub(grads, expected))) < near * norm


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_of_an_update_are_the_oracles(name: str, dtype: str) -> None:
    assert_as_the_oracle(dtype, SHAPES[name])


@pytest.mark.parametrize(("name", "dtype"), [("biased", "float32"), ("modern", "float32"), ("gpt2", "bfloat16")])
def test_they_are_with_the_kernels_of_a_gpu_too(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but cuDNN's attention run on a CPU as they are."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays))
    assert_as_the_oracle(dtype, SHAPES[name])


def switches() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("cuda_options", ROOT / "bench" / "cuda_options.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.SWITCHES)


@pytest.mark.parametrize("name", sorted(switches()))
def test_this_xla_knows_every_option_that_is_to_be_tried(name: str) -> None:
    assert jax.jit(lambda x: x + 1, compiler_options=switches()[name].options)(1) == 2


CUDNN = "jax._src.cudnn.fused_attention_stablehlo"


@both_architectures
def test_on_cuda_attention_is_cudnns_and_no_array_holds_scores_or_all_logits(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{CUDNN}.check_cudnn_version", lambda: 91000)  # it is asked of the library itself
    cfg = configured(dtype="bfloat16", attention="cudnn", **changes | {"n_embd": 32, "head_dim": None})
    m, optimizer = cfg.model, optim.make(cfg.optim, cfg.run.steps)
    function = partial(step.train_step, cfg=cfg, graphdef=step.graph(m), optimizer=optimizer)
    state = jax.eval_shape(partial(step.init_state, cfg, optimizer))
    traced = jax.jit(function, donate_argnums=0).trace(state, tokens(cfg))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"__cudnn\$fmhaSoftmax(Backward)?\b", text)
    assert (calls.count(""), calls.count("Backward")) == (m.n_layer, m.n_layer)
    shapes = {tuple(map(int, found.split("x")[:-1])) for found in re.findall(r"tensor<((?:\d+x)+)[a-z]", text)}
    assert not [shape for shape in shapes if shape[-2:] == (m.block_size, m.block_size)]
    assert max(map(math.prod, shapes)) < cfg.data.micro_batch * m.block_size * m.vocab_size
    m = cfg.model
    norms = 2 * m.n_layer + 1 + (2 * m.n_layer if m.architecture == "modern" else 0)
    # Those of the norms' sums and of the three products of each attention; none of the CPU's.
    assert len(re.findall(r"= stablehlo\.optimization_barrier", text)) == norms + m.n_layer
