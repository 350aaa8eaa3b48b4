"""Facts about the attention implementations that the model and the planner share. No JAX."""

from typing import Literal

from jaxgpt.config import Model

VOLTA = 7.0  # compute capability of the first GPUs with tensor cores, for float16 alone
AMPERE = 8.0  # compute capability of the first GPUs with bfloat16, and with cuDNN's attention for it
QUERY_CHUNKS = 4  # of the attention without cuDNN; more chunks save little work and take longer to compile
SCORES_FRACTION = (QUERY_CHUNKS + 1) / (2 * QUERY_CHUNKS)  # of the T x T scores, which those chunks compute


def default_dtype(capability: str = "") -> Literal["bfloat16", "float16", "float32"]:
    """The compute type that suits a GPU of this CUDA compute capability best; one of "" is assumed to be recent."""
    if not capability or float(capability) >= AMPERE:
        return "bfloat16"
    return "float16" if float(capability) >= VOLTA else "float32"


def cudnn_obstacle(model: Model, dtype: str, capability: str = "") -> str:
    """Why cuDNN's attention cannot run on a GPU with this compute type and CUDA compute capability; "" if it can.

    Without a `capability` the GPU is assumed to be new enough.
    """
    if capability and float(capability) < AMPERE:
        return f"it needs a GPU of compute capability {AMPERE:g} (Ampere) or newer, not {capability}"
    if dtype != "bfloat16":
        return f"it needs model.dtype = bfloat16, not {dtype}"
    if model.head_size % 8 or model.head_size > 128:
        return f"the head size {model.head_size} must be a multiple of 8 up to 128"
    return ""
