"""What JAX itself says, asked in a process of its own, because it can fail to import, abort, or wait for ever.

    python -m jaxgpt.doctor.probe

prints one JSON object per line, each before the next question is put: the last line shows how far it came.
"""

import json
import mmap
import time
import warnings
from collections.abc import Callable
from typing import Any

PAGE = mmap.PAGESIZE


def say(stage: str, **facts: Any) -> None:
    print(json.dumps({"stage": stage, **facts}), flush=True)


def main() -> None:
    """Imports JAX, names its devices, and tries what `train` uses of a GPU."""
    say("import")
    warnings.simplefilter("ignore")
    import jax

    say("devices", jax=jax.__version__)
    started = time.perf_counter()
    found = jax.devices()
    device = found[0]
    names = [other.device_kind for other in found]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    seconds = time.perf_counter() - started
    say("kernel", platform=device.platform, devices=names, seconds=seconds, bytes_limit=limit)
    say("attention", kernel=attempt(lambda: multiply(jax)))
    if device.platform == "gpu":
        say("dma_map", cudnn=attempt(lambda: attend(jax)))
        say("done", dma_map=attempt(lambda: direct_copy(jax, device)))
    else:
        say("done")


def attempt(function: Callable[[], None]) -> str:
    """Nothing if `function` works, else the first line of why it does not."""
    try:
        function()
    except Exception as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return ""


def multiply(jax: Any) -> None:
    """A compiled matrix product."""
    size = 64
    ones = jax.numpy.ones((size, size))
    if float(jax.jit(lambda a: (a @ a).sum())(ones)) != size**3:
        raise ArithmeticError("a product of ones is not their number")


def attend(jax: Any) -> None:
    """cuDNN's attention, forward and backward, on a few tokens in bfloat16."""
    x_BxTxHxC = jax.numpy.ones((1, 128, 2, 64), jax.numpy.bfloat16)

    def total(q: Any) -> Any:
        return jax.nn.dot_product_attention(q, q, q, is_causal=True, implementation="cudnn").astype("float32").sum()

    jax.block_until_ready(jax.jit(jax.grad(total))(x_BxTxHxC))


def direct_copy(jax: Any, device: Any) -> None:
    """A page-aligned buffer, registered with the client and copied to the device."""
    import numpy as np

    sent = np.frombuffer(mmap.mmap(-1, 16 * PAGE), np.uint16)  # JAX may hold it for longer than we do
    sent[:] = np.arange(len(sent))
    address = sent.ctypes.data
    device.client.dma_map(address, sent.nbytes)
    try:
        arrived = np.array(jax.device_put(sent, device).block_until_ready())
    finally:
        device.client.dma_unmap(address)
    if not (arrived == sent).all():
        raise ArithmeticError("the copy differs from what was sent")


if __name__ == "__main__":
    main()
