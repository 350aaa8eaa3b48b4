"""Tests JAX in a separate process, because it can fail to import, abort, or hang.

    python -m jaxgpt.doctor.probe

prints one JSON object per line, each before the next step starts: the last line shows how far it got.
"""

import json
import mmap
import time
import warnings
from collections.abc import Callable
from typing import Any

PAGE = mmap.PAGESIZE


def print_stage(stage: str, **facts: Any) -> None:
    print(json.dumps({"stage": stage, **facts}), flush=True)


def main() -> None:
    """Imports JAX, lists its devices, and tries what `train` uses on a GPU."""
    print_stage("import")
    warnings.simplefilter("ignore")
    import jax

    print_stage("devices", jax=jax.__version__)
    started = time.perf_counter()
    devices = jax.devices()
    device = devices[0]
    names = [device.device_kind for device in devices]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    seconds = time.perf_counter() - started
    print_stage("kernel", platform=device.platform, devices=names, seconds=seconds, bytes_limit=limit)
    capability = str(getattr(device, "compute_capability", ""))
    print_stage("attention", kernel=attempt(lambda: check_matmul(jax)), capability=capability)
    if device.platform == "gpu":
        print_stage("dma_map", cudnn=attempt(lambda: check_attention(jax)))
        print_stage("done", dma_map=attempt(lambda: check_direct_copy(jax, device)))
    else:
        print_stage("done")


def attempt(function: Callable[[], None]) -> str:
    """Returns an empty string if `function` works, else the first line of its error."""
    try:
        function()
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return ""


def check_matmul(jax: Any) -> None:
    """Compiles and checks a matrix product."""
    size = 64
    ones = jax.numpy.ones((size, size))
    if float(jax.jit(lambda a: (a @ a).sum())(ones)) != size**3:
        raise ArithmeticError("a sum of products of ones is wrong")


def check_attention(jax: Any) -> None:
    """Runs cuDNN's attention forward and backward on a few tokens in bfloat16."""
    x_BxTxHxC = jax.numpy.ones((1, 128, 2, 64), jax.numpy.bfloat16)

    def total(q: Any) -> Any:
        return jax.nn.dot_product_attention(q, q, q, is_causal=True, implementation="cudnn").astype("float32").sum()

    jax.block_until_ready(jax.jit(jax.grad(total))(x_BxTxHxC))


def check_direct_copy(jax: Any, device: Any) -> None:
    """Copies a page-aligned buffer that is registered with the client to the device."""
    import numpy as np

    sent = np.frombuffer(mmap.mmap(-1, 16 * PAGE), np.uint16)  # JAX may keep a reference to it
    sent[:] = np.arange(len(sent))
    address = sent.ctypes.data
    device.client.dma_map(address, sent.nbytes)
    try:
        received = np.array(jax.device_put(sent, device).block_until_ready())
    finally:
        device.client.dma_unmap(address)
    if not (received == sent).all():
        raise ArithmeticError("the copy differs from what was sent")


if __name__ == "__main__":
    main()
