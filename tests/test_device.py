"""The update as `train` would make it on the device at hand, against the oracle: on a GPU with cuDNN's attention.

Tests take the CPU unless told otherwise: `JAX_PLATFORMS= python -m pytest tests/test_device.py` takes the GPU that is
there. `bench/gpu.py` does so, and says by JAXGPT_TEST_DEVICE=gpu that a CPU will not do.
"""

import os
from typing import Any

import jax
import pytest
from test_program import BIASED, MODERN, assert_as_the_oracle, compiled, configured

from jaxgpt.model import gpt

# Heads of sizes that cuDNN takes.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64},
    "modern": MODERN,
    "biased": BIASED | {"n_embd": 32},
    "one sequence of eight": {"n_embd": 32, "block_size": 8, "micro_batch": 1, "accum": 1},
    "modern, one sequence at a time": MODERN | {"micro_batch": 1, "loss_chunk": 500},
}


def attention(dtype: str, changes: dict[str, Any]) -> str:
    settings = configured(**changes | {"dtype": dtype, "attention": "auto"}).model
    return gpt.resolve(settings, jax.default_backend()).attention


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_of_this_devices_update_are_the_oracles(name: str, dtype: str) -> None:
    changes = SHAPES[name] | {"attention": attention(dtype, SHAPES[name])}
    precision = "highest" if dtype == "float32" else "default"  # a GPU would take TF32
    with jax.default_matmul_precision(precision):
        assert_as_the_oracle(dtype, changes)


def test_attention_is_cudnns_on_a_gpu_and_nowhere_else() -> None:
    changes = SHAPES["gpt2"] | {"dtype": "bfloat16", "attention": attention("bfloat16", SHAPES["gpt2"])}
    on_gpu = jax.default_backend() == "gpu"
    assert jax.default_backend() == os.environ.get("JAXGPT_TEST_DEVICE", jax.default_backend())
    assert (changes["attention"] == "cudnn") == on_gpu
    assert ("__cudnn$fmha" in compiled(configured(**changes)).as_text()) == on_gpu
