"""One candidate in a process of its own: `python -m jaxgpt.tune.trial REQUEST.json` checks it, then times its steps.

The first step starts from the run's own initialization on fixed random tokens. Its loss, its gradient norm and the
optimizer's state after it, which is linear in the gradient or in its square, have to agree with the reference.

    A micro-batches   B sequences per micro-batch   W window = block + 1 tokens
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgpt.config import Config
from jaxgpt.errors import JaxgptError
from jaxgpt.training import jax_setup, step
from jaxgpt.training import optimizer as optim
from jaxgpt.training.loaded_model import resolve_auto
from jaxgpt.training.mesh import batch_sharding, make_mesh
from jaxgpt.utils.files import read_json, write_text

MIN_STEPS = 3
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # of the optimizer's state; of the loss a tenth
TOKEN_SEED = 0


class Request(NamedTuple):
    """What to measure: a config's values, seconds of timed steps, and the files of the reference and the result."""

    config: dict[str, Any]
    seconds: float
    reference: str
    result: str


def run(request: Request) -> dict[str, Any]:
    """The result: the device, `problem` if the first step differs from the reference, and the seconds of each step."""
    jax_setup.configure_jax()
    config = Config.from_dict(request.config)
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    config = resolve_auto(config, mesh)
    result: dict[str, Any] = {"device": _device(mesh) | {"attention": config.model.attention}}
    if request.seconds <= 0:
        return result
    optimizer = optim.make_optimizer(config)
    state = step.compile_init(config, optimizer, mesh)()
    eot = config.model.vocab_size - 1 if config.data.block_cross_document_attention else None
    program = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, mesh, eot)
    tokens_AxBxW = jax.device_put(_random_tokens(config), batch_sharding(mesh))
    state, metrics = program(state, tokens_AxBxW)
    first = _first_step(state, metrics)
    reference = Path(request.reference)
    if reference.exists():
        with np.load(reference) as arrays:
            result["problem"] = compare(first, dict(arrays), TOLERANCES[config.model.dtype])
    else:
        np.savez(reference, **first)
    return result | {"step_seconds": _time_steps(program, state, tokens_AxBxW, request.seconds)}


def compare(first: dict[str, Any], reference: dict[str, Any], tolerance: float) -> str:
    """What differs from the reference by more than rounding, in words; "" if nothing does."""
    loss, expected = float(first["loss"]), float(reference["loss"])
    if not abs(loss - expected) <= tolerance / 10 * abs(expected):
        return f"loss {loss:.6g} instead of {expected:.6g}"
    for name in sorted(reference.keys() - {"loss"}):
        difference = np.linalg.norm(first[name] - reference[name])
        if not difference <= tolerance * np.linalg.norm(reference[name]):
            relative = difference / (np.linalg.norm(reference[name]) or 1)
            return f"{name} differs by {relative:.2g} of its norm"
    return ""


def _first_step(state: step.TrainState, metrics: step.Metrics) -> dict[str, Any]:
    """The loss, the gradient norm, and each kind of optimizer state as one vector."""
    vectors: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state.opt_state)):
        if np.issubdtype(leaf.dtype, np.floating) and leaf.size:
            kind = next((key.name for key in reversed(path) if isinstance(key, jax.tree_util.GetAttrKey)), "state")
            vectors.setdefault(f"optimizer state {kind}", []).append(np.ravel(leaf))
    arrays = {name: np.concatenate(parts) for name, parts in vectors.items()}
    return {"loss": np.float64(metrics.loss), "gradient norm": np.float64(metrics.grad_norm), **arrays}


def _time_steps(program: Any, state: Any, tokens_AxBxW: jax.Array, seconds: float) -> list[float]:
    taken: list[float] = []
    started = time.perf_counter()
    while len(taken) < MIN_STEPS or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        state, metrics = program(state, tokens_AxBxW)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - before)
    return taken


def _random_tokens(config: Config) -> np.ndarray[Any, Any]:
    """The same windows in the same order for every division into micro-batches, [A, B, W]."""
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    dtype = np.uint16 if config.model.vocab_size <= 1 << 16 else np.uint32
    return np.random.default_rng(TOKEN_SEED).integers(0, config.model.vocab_size, shape, dtype=dtype)


def _device(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What a result depends on beside the config."""
    device = mesh.devices.flat[0]
    client = device.client
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "driver": str(client.platform_version),
        "count": mesh.devices.size,
        "jax": jax.__version__,
    }


def result_or_error(request: Request) -> dict[str, Any]:
    """The result, or `error`, the parts of a `JaxgptError`, or `failure`, the text of any other error."""
    try:
        return run(request)
    except JaxgptError as error:
        return {"error": error.args}
    except Exception as error:  # of any type: XLA's or the device's
        return {"failure": f"{type(error).__name__}: {error}"}


def end_with_parent(reference: Path) -> None:
    """Waits for the end of stdin, which comes when the process that tunes has been killed, and ends this one."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    reference.unlink(missing_ok=True)  # as large as the optimizer's state
    os._exit(1)


def main() -> None:
    request = Request(**read_json(Path(sys.argv[1])))
    threading.Thread(target=end_with_parent, args=(Path(request.reference),), daemon=True).start()
    write_text(Path(request.result), json.dumps(result_or_error(request)))


if __name__ == "__main__":
    main()
