"""The train step on the local device, compared with the oracle: on a GPU with cuDNN's attention.

Tests run on the CPU by default. `JAX_PLATFORMS= python -m pytest tests/test_training_device.py` uses a GPU.
`bench/gpu.py` does so, and sets JAXGPT_TEST_DEVICE=gpu to fail without one.
"""

import os
from typing import Any

import jax
import pytest
from helpers.programs import BIASED, MODERN, assert_matches_oracle, compile_step, make_config

from jaxgpt.model import backend

# With head sizes that cuDNN supports.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64},
    "modern": MODERN,
    "biased": BIASED | {"n_embd": 32},
    "one sequence of eight": {"n_embd": 32, "block_size": 8, "micro_batch": 1, "accum": 1},
    "modern, one sequence at a time": MODERN | {"micro_batch": 1, "loss_chunk": 500},
}


def attention(dtype: str, changes: dict[str, Any]) -> str:
    settings = make_config(**changes | {"dtype": dtype, "attention": "auto"}).model
    return backend.resolve_auto(settings, jax.default_backend()).attention


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_on_this_device_match_the_oracle(name: str, dtype: str) -> None:
    changes = SHAPES[name] | {"attention": attention(dtype, SHAPES[name])}
    precision = "highest" if dtype == "float32" else "default"  # a GPU would use TF32 by default
    with jax.default_matmul_precision(precision):
        assert_matches_oracle(dtype, changes)


def test_attention_is_cudnns_on_a_gpu_only() -> None:
    changes = SHAPES["gpt2"] | {"dtype": "bfloat16", "attention": attention("bfloat16", SHAPES["gpt2"])}
    on_gpu = jax.default_backend() == "gpu"
    assert jax.default_backend() == os.environ.get("JAXGPT_TEST_DEVICE", jax.default_backend())
    assert (changes["attention"] == "cudnn") == on_gpu
    assert ("__cudnn$fmha" in compile_step(make_config(**changes)).as_text()) == on_gpu
