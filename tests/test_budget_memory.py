"""Memory: the state is XLA's own count, the rest grows as its parts do."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from jaxgpt.budget import memory
from jaxgpt.budget.devices import DEVICES
from jaxgpt.config import Config, Data, Model, Run
from jaxgpt.config.files import load_config
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.mesh import make_mesh

SMALL = {
    "gpt2": Model(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=256, dtype="float32", attention="xla"),
    "biased": Model(n_layer=1, n_head=4, n_embd=64, block_size=32, vocab_size=512, bias=True, dtype="float32"),
    "modern": Model(
        architecture="modern",
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=64,
        block_size=64,
        vocab_size=256,
        dtype="float32",
    ),
    "untied": Model(
        n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=256, tie_embeddings=False, dtype="float32"
    ),
}


def compiled(config: Config) -> Any:
    """XLA's own account of the update on one CPU device."""
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    optimizer = optim.make(config.optim, config.run.steps)
    state = step.abstract_state(config, optimizer, mesh)
    tokens = jax.ShapeDtypeStruct((config.data.accum, config.data.micro_batch, config.model.block_size + 1), np.uint16)
    update = step.compile_train_step(config, step.graph(config.model), optimizer, mesh)
    return update.lower(state, tokens).compile().memory_analysis()


def small(model: Model, micro_batch: int = 2) -> Config:
    base = Config(model=model, data=Data(micro_batch=micro_batch, accum=2), run=Run(steps=5000))
    return base.replace({"model": {"attention": "xla"}, "mesh": {"data_parallel": 1}})


@pytest.mark.parametrize("name", sorted(SMALL))
def test_state_is_what_xla_counts_as_argument_beside_the_tokens(name: str) -> None:
    config = small(SMALL[name])
    tokens = config.data.accum * config.data.micro_batch * (config.model.block_size + 1) * 2
    assert memory.state_bytes(config.model) == compiled(config).argument_size_in_bytes - tokens


@pytest.mark.parametrize("name", ["quickstart", "books", "fineweb40m", "fineweb40m_modern", "gpt2_124m"])
def test_state_is_the_bytes_of_every_configs_own_state(name: str) -> None:
    config = load_config(name).replace({"model": {"dtype": "float32", "attention": "xla"}})
    state = jax.eval_shape(partial(step.init_state, config, optim.make(config.optim, config.run.steps)))
    assert memory.state_bytes(config.model) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    held = memory.estimate(config)
    assert held.parameters + held.optimizer == memory.state_bytes(config.model)


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_activations_grow_with_the_micro_batch_as_xlas_temporaries_do(name: str) -> None:
    """XLA's CPU backend fuses less than a GPU's, so the two agree in their size, not to the byte."""
    model = SMALL[name]
    measured = [compiled(small(model, rows)).temp_size_in_bytes for rows in (8, 32)]
    held = [memory.estimate(small(model, rows), flash=False) for rows in (8, 32)]
    planned = [part.activations + part.workspace + part.logits for part in held]
    assert 0.6 < (planned[1] - planned[0]) / (measured[1] - measured[0]) < 1.7


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    config, usable = load_config("fineweb40m"), DEVICES["RTX 4070"].usable
    most = memory.max_micro_batch(config, usable)
    assert memory.estimate(config, most).total <= usable * memory.GIB < memory.estimate(config, most + 1).total
    assert most < memory.max_micro_batch(config, usable, remat=memory.REMAT_BLOCKS)
    assert memory.max_micro_batch(config, 0.5) == 0


def test_the_loss_holds_as_many_logits_as_its_chunks() -> None:
    """`cross_entropy._chunks` makes as few equal chunks as the limit allows."""
    model = Model(loss_chunk=4096)
    assert [memory.loss_chunk(model, tokens) for tokens in (16_384, 4_097, 1_000)] == [4096, 2049, 1000]
    dense = load_config("fineweb40m").replace({"model": {"loss_chunk": 16_384}})
    assert memory.estimate(dense).logits > 3 * memory.estimate(load_config("fineweb40m")).logits


def test_written_out_attention_keeps_its_probabilities() -> None:
    model = load_config("fineweb40m").model
    assert memory.block_bytes(model, flash=False) > 3 * memory.block_bytes(model, flash=True)


# Arguments and temporaries, in GB, of the updates that XLA 0.10.2 compiles for an H100 (bench/program.py): config,
# micro-batch, and the policies none, attention and blocks.
COMPILED = """
    fineweb40m          8   2.595  2.213  1.419
    fineweb40m         16   3.870  3.104  1.517
    fineweb40m         32   6.405  4.886  1.712
    fineweb40m_modern   8   2.693  2.163  1.408
    fineweb40m_modern  16   4.073  3.013  1.503
    fineweb40m_modern  32   6.832  4.713  1.711
    gpt2_124m           8   5.435  4.675  3.164
    gpt2_124m          16   7.895  6.374  3.353
    gpt2_124m          32  12.815  9.774  3.967
"""


@pytest.mark.parametrize("line", COMPILED.strip().splitlines(), ids=lambda line: " ".join(line.split()[:2]))
def test_the_plan_is_what_a_gpus_compiler_counts_and_room_for_libraries(line: str) -> None:
    name, rows, *counts = line.split()
    base = load_config(name)
    sequences = base.data.micro_batch * base.data.accum
    for remat, counted in zip(("none", "attention", "blocks"), counts, strict=True):
        data = {"micro_batch": int(rows), "accum": sequences // int(rows)}
        held = memory.estimate(base.replace({"data": data, "model": {"remat": remat}}))
        program = (held.total - memory.LIBRARIES) / (1 + memory.FRAGMENTS)
        least, most = {"none": (0.98, 1.02), "attention": (0.975, 1.04), "blocks": (1.0, 1.16)}[remat]
        assert least < program / (float(counted) * 1e9) < most
