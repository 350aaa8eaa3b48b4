"""One side of `bench/vs_nanogpt.py` in a child process: `python bench/rivals.py` reads lines from its parent.

The first line is an `Order` as JSON: which side to build, the config, the path of nanoGPT. The answer is one line,
{"versions": …} or {"error": [code, message, help]}. Each further line is a number of steps, answered by a `Turn`. Every
side trains on the same random tokens, which are on the device before the clock starts. Sides work only when asked, so
the parent runs one side at a time.

    A micro-batches   B sequences per micro-batch   W window = T + 1 tokens   T block
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError

BLOCKS = 8  # step blocks of tokens, used cyclically
Update = Callable[[], Any]  # starts one step and returns its loss, which may not be computed yet
Wait = Callable[[Any], float]  # waits for all started work and fetches the loss


@dataclass(frozen=True)
class Order:
    """Which side to build: `kind` jaxgpt, nanogpt or flax; the config, with `auto` unresolved."""

    kind: str
    config: dict[str, Any]
    nanogpt: str = ""
    compiled: bool = False
    sdpa: str = "default"
    cores: int = 0  # 0: all

    def parsed(self) -> Config:
        """The config on one device, as the other sides use one."""
        return Config.from_dict(self.config).replace({"mesh": {"data_parallel": 1}})


def token_blocks(config: Config) -> list[np.ndarray]:
    """Step blocks [A, B, W] of ids as frequent as words (Zipf), so that embedding gradients collide as in text."""
    random = np.random.default_rng(0)
    weights_V = 1 / (np.arange(config.model.vocab_size) + 2.7)
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    ids_V = random.permutation(config.model.vocab_size)
    draw = lambda: random.choice(ids_V, size=shape, p=weights_V / weights_V.sum())  # noqa: E731
    return [draw().astype(np.uint16 if config.model.vocab_size <= 1 << 16 else np.int32) for _ in range(BLOCKS)]


def jaxgpt_side(order: Order) -> tuple[Update, Wait, dict[str, str]]:
    """The train step as `jaxgpt.train` compiles it."""
    import jax

    import jaxgpt
    from jaxgpt.training import jax_setup, loaded_model, mesh, step
    from jaxgpt.training import optimizer as optim

    jax_setup.configure_jax()
    config = order.parsed()
    devices = mesh.make_mesh(config.mesh, config.data.micro_batch)
    config = loaded_model.resolve_auto(config, devices)
    optimizer = optim.make_optimizer(config)
    state = step.compile_init(config, optimizer, devices)()
    train_step = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, devices)
    blocks = cycle([jax.device_put(block, mesh.batch_sharding(devices)) for block in token_blocks(config)])

    def update() -> Any:
        nonlocal state
        state, metrics = train_step(state, next(blocks))
        return metrics.loss

    wait = lambda loss: float(jax.block_until_ready((state, loss))[1])  # noqa: E731
    return update, wait, {"jaxgpt": jaxgpt.__version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def flax_side(order: Order) -> tuple[Update, Wait, dict[str, str]]:
    """The model written as in the documentation of Flax and optax."""
    import flax
    import jax
    import plain_flax

    config = order.parsed()
    train_step, state = plain_flax.build(config)
    blocks = cycle([jax.device_put(block) for block in token_blocks(config)])

    def update() -> Any:
        nonlocal state
        state, loss = train_step(state, next(blocks))
        return loss

    wait = lambda loss: float(jax.block_until_ready((state, loss))[1])  # noqa: E731
    return update, wait, {"flax": flax.__version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind}


def check(order: Order) -> None:
    """Checks nanoGPT's side before anything is built; raises `ConfigError` C060, C061 or C062."""
    if not (Path(order.nanogpt) / "model.py").is_file():
        message = f"'{order.nanogpt}' is not a checkout of nanoGPT: it has no model.py"
        raise ConfigError("C060", message, "git clone karpathy/nanoGPT, then --nanogpt PATH")
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("C061", "PyTorch is not installed here", "pip install torch")
    nanogpt_size(order.parsed())


def nanogpt_module(folder: Path) -> ModuleType:
    """nanoGPT's model.py as a module; raises `ConfigError` C060 if it is another model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module  # its dataclass looks up its module
    spec.loader.exec_module(module)
    if not (hasattr(module, "GPT") and hasattr(module, "GPTConfig")):
        raise ConfigError("C060", f"'{folder}/model.py' has no GPT and GPTConfig", "--nanogpt PATH")
    return module


def nanogpt_side(order: Order) -> tuple[Update, Wait, dict[str, str]]:
    """nanoGPT's model and optimizer, with the step of its train.py."""
    import torch

    config, module = order.parsed(), nanogpt_module(Path(order.nanogpt))
    device = "cuda" if torch.cuda.is_available() and config.mesh.device != "cpu" else "cpu"
    if order.sdpa == "cudnn" and device == "cpu":
        raise ConfigError("C064", "--sdpa cudnn needs a CUDA GPU that PyTorch sees; it sees none", "--sdpa default")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(config.run.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    model = module.GPT(module.GPTConfig(**nanogpt_size(config))).to(device)
    for block in model.transformer.h:  # nanoGPT uses one dropout rate; attention gets its own here
        block.attn.dropout = block.attn.attn_dropout.p = config.model.attention_dropout
    o = config.optim
    optimizer = model.configure_optimizers(o.weight_decay, o.learning_rate, (o.beta1, o.beta2), device)
    called = torch.compile(model) if order.compiled else model
    dtype = {"auto": "bfloat16" if device == "cuda" else "float32"}.get(config.model.dtype, config.model.dtype)
    half = dtype == "bfloat16"
    blocks = cycle([_pairs(torch, block, device) for block in token_blocks(config)])

    def precision() -> Any:
        return torch.amp.autocast(device, dtype=torch.bfloat16) if half else contextlib.nullcontext()

    def update() -> Any:
        pairs = next(blocks)
        for inputs_BxT, targets_BxT in pairs:
            with precision(), _sdpa(torch, order.sdpa):
                _, loss = called(inputs_BxT, targets_BxT)
                loss = loss / len(pairs)
            loss.backward()
        if o.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach() * len(pairs)

    def wait(loss: Any) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss)

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return update, wait, {"torch": torch.__version__, "device": name, "dtype": dtype}


def nanogpt_size(config: Config) -> dict[str, Any]:
    """The model as arguments of nanoGPT's GPTConfig; raises `ConfigError` C062 for what nanoGPT does not have."""
    m = config.model
    unsupported = {
        "architecture = modern": m.architecture != "gpt2",
        "activation = gelu_tanh": m.activation != "gelu",
        "an untied head": not m.tie_embeddings,
        "head_dim or n_inner": m.head_size * m.n_head != m.n_embd or m.inner != 4 * m.n_embd,
    }
    missing = [name for name, present in unsupported.items() if present]
    if missing:
        raise ConfigError("C062", f"nanoGPT has no {missing[0]}", "compare with a config that it has too: books")
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    return {name: getattr(m, name) for name in names}


def _pairs(torch: Any, block_AxBxW: np.ndarray, device: str) -> list[tuple[Any, Any]]:
    """Inputs and targets of each micro-batch, in int64 like those of nanoGPT's get_batch."""
    ids = block_AxBxW.astype(np.int64)
    put = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)  # noqa: E731
    return [(put(ids_BxW[:, :-1]), put(ids_BxW[:, 1:])) for ids_BxW in ids]


def _sdpa(torch: Any, which: str) -> Any:
    if which == "default":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)


SIDES = {"jaxgpt": jaxgpt_side, "flax": flax_side, "nanogpt": nanogpt_side}


class Turn(NamedTuple):
    """Per step: seconds, and seconds of processor time of all threads; and the last loss."""

    seconds: float
    cpu_seconds: float
    loss: float


def turn(update: Update, wait: Wait, count: int) -> Turn:
    """Measures `count` steps, after one that wakes the threads."""
    wait(update())
    start, start_cpu = time.perf_counter(), time.process_time()
    loss = 0.0
    for _ in range(count):
        loss = update()
    loss = wait(loss)
    return Turn((time.perf_counter() - start) / count, (time.process_time() - start_cpu) / count, loss)


@contextlib.contextmanager
def redirect_stdout_to_stderr() -> Iterator[Any]:
    """Yields the real stdout for answers; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


def main() -> None:
    with redirect_stdout_to_stderr() as answers:

        def answer(message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        order = Order(**json.loads(sys.stdin.readline()))
        try:
            if order.cores:  # before a library starts its threads
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-order.cores :])
            update, wait, versions = SIDES[order.kind](order)
            turn(update, wait, 2)  # compiles
        except JaxgptError as error:
            answer({"error": [error.code, error.message, error.help]})
            return
        answer({"versions": versions})
        for line in sys.stdin:
            answer(turn(update, wait, int(line)))


if __name__ == "__main__":
    main()
