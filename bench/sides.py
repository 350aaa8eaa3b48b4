"""A config and compiler options as one side of a comparison: parsed, compiled, and run."""

import json
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
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.checkpoint import resolved
from jaxgpt.training.mesh import batch_sharding, make_mesh


@dataclass(frozen=True)
class Variant:
    """A config under a name, with the compiler options that it is compiled with."""

    name: str
    config: Config
    compiler: tuple[tuple[str, str], ...] = ()


def variant(config: Config, text: str) -> Variant:
    """`config` with the `KEY=VALUE,…` of a --set; raises `ConfigError` where a field or value is not known."""
    words, compiler = [], []
    for part in re.split(r",(?=[\w.-]*=)", text):  # a value may hold commas of its own
        key, sign, value = part.partition("=")
        if not sign:
            raise ConfigError("C009", f"--set {text!r}: {part!r} is no KEY=VALUE", "--set model.remat=blocks")
        if key.startswith("xla_"):
            compiler.append((key, {"true": "True", "false": "False"}.get(value, value)))  # XLA knows no others
        else:
            words += [f"--{key}", value]
    changed = changed_config(config, words) if words else config
    return Variant(text, changed, tuple(compiler))


def changed_config(config: Config, words: Sequence[str]) -> Config:
    """`config` with options of the command line."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.py"
        values = json.dumps(config.to_dict())
        file.write_text(
            f"import json\nfrom jaxgpt.config import Config\nconfig = Config.from_dict(json.loads({values!r}))\n"
        )
        return parse_config(Parser("train", ""), ["--config", str(file), *words])[0]


class Held:
    """The training state that sides of one shape hand to each other: on a small card there is no room for many."""

    def __init__(self) -> None:
        self.state: Any = None


class Side:
    """A variant, compiled, and the state that it trains: that of `pool` for its shapes."""

    def __init__(self, wanted: Variant, pool: dict[str, Held]) -> None:
        self.mesh = make_mesh(wanted.config.mesh, wanted.config.data.micro_batch)
        self.config = resolved(wanted.config, self.mesh)
        self.optimizer = optim.make_optimizer(self.config.optim, self.config.run.steps)
        self._wanted = wanted
        self.program: Any = None
        self.held = pool.setdefault(str(self._abstract_state()), Held())

    def _abstract_state(self) -> Any:
        return step.abstract_state(self.config, self.optimizer, self.mesh)

    def compile(self) -> float:
        """Makes the program anew and returns the seconds of tracing and compiling."""
        jax.clear_caches()
        config, mesh = self.config, self.mesh
        shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
        tokens = jax.ShapeDtypeStruct(shape, np.uint16, sharding=batch_sharding(mesh))
        state = self._abstract_state()
        started = time.perf_counter()
        update = step.compile_train_step(config, step.model_graphdef(config.model), self.optimizer, mesh)
        lowered = update.lower(state, tokens)
        self.program = lowered.compile(compiler_options=dict(self._wanted.compiler) or None)
        return time.perf_counter() - started

    def run(self, blocks: Sequence[jax.Array] | Any) -> float:
        """A step on each block, to the end; returns the last loss."""
        state, self.held.state = self.held.state, None  # what fails has donated it
        state = state or step.compile_init(self.config, self.optimizer, self.mesh)()
        for block in blocks:
            state, metrics = self.program(state, block)
        loss = float(metrics.loss)
        self.held.state = state
        return loss

    def memory(self) -> dict[str, Any]:
        """The compiled program's account of the bytes that it needs."""
        held = self.program.memory_analysis()
        parts = {
            "arguments": held.argument_size_in_bytes,
            "results": held.output_size_in_bytes - held.alias_size_in_bytes,
            "temporary": held.temp_size_in_bytes,
        }
        return parts | {"live_bytes": sum(parts.values())}


def compile_times(side: Side) -> dict[str, float]:
    """Seconds to compile with an empty cache folder, and again with what the first left there."""
    with tempfile.TemporaryDirectory() as place, cache_in(place):
        return {"compile_cold_s": side.compile(), "compile_warm_s": side.compile()}


@contextmanager
def cache_in(folder: str) -> Iterator[None]:
    """A context in which compiled programs are kept in `folder`."""
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
