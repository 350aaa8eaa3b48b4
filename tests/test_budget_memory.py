"""Memory: the state is XLA's own count, the rest grows as its parts do."""

from functools import partial

import jax
import pytest
from helpers.h100_memory import H100_MEMORY
from helpers.programs import compile_step, small_config

from jaxgpt.budget import memory
from jaxgpt.budget.devices import DEVICES
from jaxgpt.config import Config, Model
from jaxgpt.config.files import built_in_configs, load_config
from jaxgpt.optimizers import OPTIMIZERS
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step

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


def state_bytes(config: Config) -> int:
    """The planned bytes of a `TrainState`."""
    estimate = memory.estimate(config)
    return estimate.parameters + estimate.optimizer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", sorted(SMALL))
def test_state_is_what_xla_counts_without_the_tokens(name: str, optimizer: str) -> None:
    config = small_config(SMALL[name]).replace({"optim": {"optimizer": optimizer}})
    tokens = config.data.accum * config.data.micro_batch * (config.model.block_size + 1) * 2
    assert state_bytes(config) == compile_step(config).memory_analysis().argument_size_in_bytes - tokens


@pytest.mark.parametrize("name", built_in_configs())
def test_state_has_the_bytes_of_the_real_state(name: str) -> None:
    config = load_config(name).replace({"model": {"dtype": "float32", "attention": "xla"}})
    state = jax.eval_shape(partial(step.init_state, config, optim.make_optimizer(config)))
    assert state_bytes(config) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_activations_grow_as_xlas_temporaries_do(name: str) -> None:
    """XLA's CPU backend fuses less than a GPU's, so the two agree in their size, not to the byte."""
    model = SMALL[name]
    measured = [compile_step(small_config(model, rows)).memory_analysis().temp_size_in_bytes for rows in (8, 32)]
    estimates = [memory.estimate(small_config(model, rows), flash=False) for rows in (8, 32)]
    planned = [part.activations + part.workspace + part.logits for part in estimates]
    assert 0.6 < (planned[1] - planned[0]) / (measured[1] - measured[0]) < 1.7


def test_max_micro_batch_fits_and_the_next_does_not() -> None:
    config, usable = load_config("fineweb40m"), DEVICES["RTX 4070"].usable
    most = memory.max_micro_batch(config, usable)
    assert memory.estimate(config, most).total <= usable * memory.GIB < memory.estimate(config, most + 1).total
    assert most < memory.max_micro_batch(config, usable, remat=memory.REMAT_BLOCKS)
    assert memory.max_micro_batch(config, 0.5) == 0


def test_loss_stores_the_logits_of_one_chunk() -> None:
    """`model.loss._chunks` makes as few equal chunks as the limit allows."""
    model = Model(loss_chunk=4096)
    assert [memory.loss_chunk(model, tokens) for tokens in (16_384, 4_097, 1_000)] == [4096, 2049, 1000]
    dense = load_config("fineweb40m").replace({"model": {"loss_chunk": 16_384}})
    assert memory.estimate(dense).logits > 3 * memory.estimate(load_config("fineweb40m")).logits


def test_attention_without_cudnn_saves_its_probabilities() -> None:
    model = load_config("fineweb40m").model
    assert memory.block_bytes(model, flash=False) > 3 * memory.block_bytes(model, flash=True)


def test_mask_of_documents_is_stored_once() -> None:
    """In a program compiled for an H100, temporaries grow by 33,554,432 bytes (bench/program.py)."""
    config = load_config("fineweb40m_modern")
    masked = config.replace({"data": {"block_cross_document_attention": True}})
    added = memory.estimate(masked).total - memory.estimate(config).total
    assert added / (1 + memory.FRAGMENTS) == pytest.approx(33_554_432, rel=1e-6)
    dropped = {"model": {"attention_dropout": 0.1}}
    assert memory.estimate(masked.replace(dropped)) == memory.estimate(config.replace(dropped))


@pytest.mark.parametrize("line", H100_MEMORY.strip().splitlines(), ids=lambda line: " ".join(line.split()[:2]))
def test_plan_agrees_with_programs_compiled_for_an_h100(line: str) -> None:
    name, rows, *counts = line.split()
    base = load_config(name).replace({"optim": {"optimizer": "adamw"}})  # as in the compiled programs
    sequences = base.data.micro_batch * base.data.accum
    for remat, counted in zip(("none", "attention", "blocks"), counts, strict=True):
        data = {"micro_batch": int(rows), "accum": sequences // int(rows)}
        estimate = memory.estimate(base.replace({"data": data, "model": {"remat": remat}}))
        program = (estimate.total - memory.LIBRARIES) / (1 + memory.FRAGMENTS)
        least, most = {"none": (0.98, 1.02), "attention": (0.975, 1.04), "blocks": (1.0, 1.16)}[remat]
        assert least < program / (float(counted) * 1e9) < most


CPU_PEAKS = """
quickstart  8  1   389
books       8  2   815
fineweb40m  1  2 2,879
fineweb40m  2  2 3,870
fineweb40m  4  1 5,787
"""  # config, micro-batch, accumulation, peak MiB of a process of two steps on a CPU (docs/experiments.md)


@pytest.mark.parametrize("line", CPU_PEAKS.strip().splitlines())
def test_plan_agrees_with_the_peaks_measured_on_a_cpu(line: str) -> None:
    """The plan neither refuses what fits nor is far below what the process takes with its libraries."""
    name, rows, accum, peak = line.split()
    data = {"micro_batch": int(rows), "accum": int(accum)}
    config = load_config(name).replace({"data": data, "model": {"dtype": "float32", "attention": "xla"}})
    planned = memory.estimate(config).total / 2**20
    assert 0.75 < planned / float(peak.replace(",", "")) < 1.1
