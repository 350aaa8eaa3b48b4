"""The compute type and the attention implementation for a device: how the config's `auto` is resolved."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxgpt.config import Model
from jaxgpt.config.attention import cudnn_obstacle, default_dtype
from jaxgpt.errors import ConfigError


def compute_dtype(model: Model) -> Any:
    """The JAX type of activations; `auto` must be resolved before."""
    return {"bfloat16": jnp.bfloat16, "float16": jnp.float16, "float32": jnp.float32}[model.dtype]


def resolve_auto(model: Model, platform: str, capability: str = "") -> Model:
    """`model` with each `auto` replaced by the choice for `platform` ("cpu", "gpu") and CUDA compute capability.

    Raises `ConfigError` C023 if the config requires cuDNN's attention and it cannot run.
    """
    dtype = model.dtype
    if dtype == "auto":
        dtype = default_dtype(capability) if platform == "gpu" else "float32"
    obstacle = f"the device is a {platform}"
    if platform == "gpu":
        obstacle = cudnn_obstacle(model, dtype, capability)
    if model.attention == "cudnn" and obstacle:
        raise ConfigError("C023", f"model.attention = cudnn cannot run here: {obstacle}", "--model.attention auto")
    attention = model.attention
    if attention == "auto":
        attention = "xla" if obstacle else "cudnn"
    return dataclasses.replace(model, dtype=dtype, attention=attention)
