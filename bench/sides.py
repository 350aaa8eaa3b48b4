"""One side of a comparison: a config with compiler options, compiled and run."""

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.files import write_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.loaded_model import resolve_auto
from jaxgpt.training.mesh import batch_sharding, make_mesh


@dataclass(frozen=True)
class Variant:
    """A named config with its compiler options."""

    name: str
    config: Config
    compiler: tuple[tuple[str, str], ...] = ()


def parse_variant(config: Config, text: str) -> Variant:
    """`config` changed by the `KEY=VALUE,…` of a --set; raises `ConfigError` for an unknown field or value."""
    words: list[str] = []
    compiler: list[tuple[str, str]] = []
    for part in re.split(r",(?=[\w.-]*=)", text):  # values may contain commas
        key, sign, value = part.partition("=")
        if not sign:
            raise ConfigError("C009", f"--set {text!r}: {part!r} is not KEY=VALUE", "--set model.remat=blocks")
        if key.startswith("xla_"):
            xla_value = {"true": "True", "false": "False"}.get(value, value)  # XLA accepts only these spellings
            compiler.append((key, xla_value))
        else:
            words += [f"--{key}", value]
    changed = override_config(config, words) if words else config
    return Variant(text, changed, tuple(compiler))


def override_config(config: Config, words: Sequence[str]) -> Config:
    """`config` with command-line options applied."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_config(config, Path(folder) / "config.py")
        return parse_config(Parser("train", ""), ["--config", str(file), *words])[0]


def end_of_text(config: Config) -> int | None:
    """An end-of-text token for a step on random tokens, if the config needs one: the last one of the vocabulary."""
    return config.model.vocab_size - 1 if config.data.block_cross_document_attention else None


class SharedState:
    """The training state that sides with equal shapes share, because a small GPU has no room for several."""

    def __init__(self) -> None:
        self.state: Any = None


class Side:
    """A compiled variant and the state it trains, which `pool` holds by shape."""

    def __init__(self, variant: Variant, pool: dict[str, SharedState]) -> None:
        self.mesh = make_mesh(variant.config.mesh, variant.config.data.micro_batch)
        self.config = resolve_auto(variant.config, self.mesh)
        self.optimizer = optim.make_optimizer(self.config)
        self._variant = variant
        self.program: Any = None
        self._shared = pool.setdefault(str(self._abstract_state()), SharedState())

    def _abstract_state(self) -> Any:
        return step.abstract_state(self.config, self.optimizer, self.mesh)

    def compile(self) -> float:
        """Compiles the program from scratch and returns the seconds of tracing and compiling."""
        jax.clear_caches()
        config, mesh = self.config, self.mesh
        shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
        tokens = jax.ShapeDtypeStruct(shape, np.uint16, sharding=batch_sharding(mesh))
        state = self._abstract_state()
        started = time.perf_counter()
        eot = end_of_text(config)
        update = step.compile_train_step(config, step.model_graphdef(config.model), self.optimizer, mesh, eot)
        lowered = update.lower(state, tokens)
        self.program = lowered.compile(compiler_options=dict(self._variant.compiler) or None)
        return time.perf_counter() - started

    def run(self, blocks: Sequence[jax.Array] | Any) -> float:
        """Trains one step on each block, waits for the end, and returns the last loss."""
        state = self._shared.state
        self._shared.state = None  # a step that fails has donated it
        state = state or step.compile_init(self.config, self.optimizer, self.mesh)()
        for block in blocks:
            state, metrics = self.program(state, block)
        loss = float(metrics.loss)
        self._shared.state = state
        return loss

    def memory(self) -> dict[str, Any]:
        """The bytes that the compiled program needs, as XLA counts them."""
        memory = self.program.memory_analysis()
        parts = {
            "arguments": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        }
        return parts | {"live_bytes": sum(parts.values())}


def compile_times(side: Side) -> dict[str, float]:
    """Seconds to compile with an empty compilation cache, and then with the filled one."""
    with tempfile.TemporaryDirectory() as folder, compilation_cache_in(folder):
        return {"compile_cold_s": side.compile(), "compile_warm_s": side.compile()}


@contextmanager
def compilation_cache_in(folder: str) -> Iterator[None]:
    """A context in which compiled programs are cached in `folder`."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
