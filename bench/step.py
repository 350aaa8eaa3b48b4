"""The training step: tokens/s, ms, MFU, memory, compile time and data stall, for configs and micro-batches.

    python bench/step.py --configs fineweb40m,gpt2_124m --micro-batch 4 8 16 32 --out bench/results/step-NAME.json
    python bench/step.py --set model.attention=xla --set model.remat=blocks
    python bench/step.py --fit --memory 12 16 24                 the largest micro-batch, by trial
    python bench/step.py --tiny                                  the same road in a minute on a CPU

A micro-batch takes as many accumulations as keep the tokens of the config's step. Each cell runs in a process of its
own, so that its peak memory is its own and a device that is full ends that cell alone. In a cell, steps that the real
loader feeds, steps on the same blocks already on the device, and the steps of each --set are timed in turns; --set
takes fields of the config and xla_NAME=VALUE (compiler options), several joined by commas.

MFU is tokens/s × (6 N + 12 L H T) / peak: `budget.flops.flops_per_token`, nanoGPT's convention, over the dense bf16
rate in `budget.devices`. `live_bytes` is the compiled program's own account (arguments, results that are not donated,
temporaries); `peak_bytes_in_use` what the device's allocator handed out at most, in a cell without --set. Neither is
what JAX reserves at its start. The compile times are of a fresh cache folder, first without and then with its entry.
With --memory on a GPU, a trial may use that share of it; on a CPU `live_bytes` is held against it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxgpt import data, dataset, optim, runtime, step
from jaxgpt.budget.devices import peak_flops
from jaxgpt.budget.flops import flops_per_token
from jaxgpt.budget.memory import JAX_SHARE
from jaxgpt.checkpoint import resolved
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError
from jaxgpt.mesh import make_mesh, over_batch
from jaxgpt.overrides import Parser, load, parse_config

GIB = 2**30
TINY: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "loss_chunk": 64},
    "data": {"micro_batch": 2, "accum": 2},
}
FULL = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "error[C022]")
MOST = 1024


@dataclass(frozen=True)
class Variant:
    """A config under a name, with the compiler options that it is compiled with."""

    name: str
    config: Config
    compiler: tuple[tuple[str, str], ...] = ()


def variant(config: Config, text: str) -> Variant:
    """`config` with the `KEY=VALUE,…` of a --set; raises `ConfigError` where a field or value is not known."""
    words, compiler = [], []
    for part in text.split(","):
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


def sized(config: Config, micro_batch: int) -> Config:
    """`config` with that micro-batch and the same tokens per step, as nearly as whole accumulations allow."""
    accum = max(1, round(config.data.micro_batch * config.data.accum / micro_batch))
    return config.replace({"data": {"micro_batch": micro_batch, "accum": accum}})


class Side:
    """A variant, compiled, with a state of its own."""

    def __init__(self, wanted: Variant) -> None:
        self.mesh = make_mesh(wanted.config.mesh, wanted.config.data.micro_batch)
        self.config = resolved(wanted.config, self.mesh)
        self.optimizer = optim.make(self.config.optim, self.config.run.steps)
        self._wanted = wanted
        self.program: Any = None
        self.state: Any = None

    def compile(self) -> float:
        """Makes the program anew and returns the seconds of tracing and compiling."""
        jax.clear_caches()
        config, mesh = self.config, self.mesh
        shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
        tokens = jax.ShapeDtypeStruct(shape, np.uint16, sharding=over_batch(mesh))
        state = step.abstract_state(config, self.optimizer, mesh)
        started = time.perf_counter()
        update = step.compile_train_step(config, step.graph(config.model), self.optimizer, mesh)
        lowered = update.lower(state, tokens)
        self.program = lowered.compile(compiler_options=dict(self._wanted.compiler) or None)
        return time.perf_counter() - started

    def begin(self) -> None:
        self.state = step.compile_init(self.config, self.optimizer, self.mesh)()

    def run(self, blocks: Sequence[jax.Array] | Any) -> float:
        """A step on each block, to the end; returns the last loss."""
        for block in blocks:
            self.state, metrics = self.program(self.state, block)
        return float(metrics.loss)

    def memory(self) -> dict[str, Any]:
        """The compiled program's account of the bytes that it needs."""
        held = self.program.memory_analysis()
        parts = {
            "arguments": held.argument_size_in_bytes,
            "results": held.output_size_in_bytes - held.alias_size_in_bytes,
            "temporary": held.temp_size_in_bytes,
        }
        return parts | {"live_bytes": sum(parts.values())}


def cell(base: Config, sets: Sequence[str], folder: Path, rounds: int, updates: int) -> dict[str, Any]:
    """Everything that is measured of one config at one micro-batch."""
    config = base.replace(
        {"data": {"path": str(folder)}, "optim": {"warmup_steps": 1}, "run": {"steps": max(2, rounds * updates)}}
    )
    sides = {"base": Side(Variant("base", config))} | {text: Side(variant(config, text)) for text in sets}
    compiled = {name: compile_times(side) for name, side in sides.items()}
    resident = on_device(sides["base"], folder)
    for side in sides.values():
        side.begin()
        side.run(resident[:1])
    took = common.in_turns(works(sides, resident, folder, updates), rounds)
    memory = (jax.devices()[0].memory_stats() or {}) if not sets else {}
    return {
        "micro_batch": config.data.micro_batch,
        "accum": config.data.accum,
        "tokens_per_step": config.tokens_per_step,
        "config": sides["base"].config.to_dict(),
        "attention": sides["base"].config.model.attention,
        "cudnn_attention_calls": sides["base"].program.as_text().count("__cudnn$fmha"),
        "peak_bytes_in_use": memory.get("peak_bytes_in_use"),
        "stall": ratio(took["loader"], took["base"]),
        "sides": {
            name: figures(sides[name if name in sides else "base"], seconds, updates)
            | (compiled.get(name) or {})
            | {"ratio": ratio(seconds, took["base"])}
            for name, seconds in took.items()
        },
    }


def works(
    sides: dict[str, Side], resident: list[jax.Array], folder: Path, updates: int
) -> dict[str, Callable[[], Any]]:
    """What is timed in turns: the base and each set on blocks on the device, and the base behind the loader."""
    position = dict.fromkeys([*sides, "loader"], 0)
    base = sides["base"]
    split = dataset.open_folder(folder).train
    loader = data.train_batches(base.config, split, base.mesh, 0, common.GPT2_SIZE)
    stream = iter(loader)

    def chosen(name: str) -> list[jax.Array]:
        start = position[name]
        position[name] = start + updates
        return [resident[number % len(resident)] for number in range(start, start + updates)]

    found: dict[str, Callable[[], Any]] = {
        name: lambda name=name, side=side: side.run(chosen(name)) for name, side in sides.items()
    }
    return found | {"loader": lambda: base.run(next(stream) for _ in range(updates))}


def on_device(side: Side, folder: Path, most: int = 32) -> list[jax.Array]:
    """The loader's first blocks, copied, on the device."""
    split = dataset.open_folder(folder).train
    with data.train_batches(side.config, split, side.mesh, 0, common.GPT2_SIZE) as batches:
        copies = [np.array(block) for block, _ in zip(batches, range(most), strict=False)]
    return [jax.device_put(copy, over_batch(side.mesh)).block_until_ready() for copy in copies]


def compile_times(side: Side) -> dict[str, float]:
    """Seconds to compile with an empty cache folder, and again with what the first left there."""
    before = jax.config.jax_compilation_cache_dir
    with tempfile.TemporaryDirectory() as place:
        try:
            jax.config.update("jax_compilation_cache_dir", place)
            compilation_cache.reset_cache()
            return {"compile_cold_s": side.compile(), "compile_warm_s": side.compile()}
        finally:
            jax.config.update("jax_compilation_cache_dir", before)
            compilation_cache.reset_cache()


def figures(side: Side, seconds: Sequence[float], updates: int) -> dict[str, Any]:
    """Of one side: ms per step, tokens/s, MFU and memory."""
    each = [taken / updates for taken in seconds]
    rate = side.config.tokens_per_step / float(np.median(each))
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "ms_per_step": common.spread([1e3 * one for one in each]),
        "tokens_per_second": rate,
        "mfu": rate * flops_per_token(side.config.model) / peak if peak else None,
        "memory": side.memory(),
    }


def ratio(these: Sequence[float], those: Sequence[float]) -> dict[str, Any]:
    """These over those, round by round: median with spread."""
    return common.spread([one / other for one, other in zip(these, those, strict=True)])


def trial(
    options: argparse.Namespace, config: str, micro_batch: int, sets: Sequence[str], share: float
) -> dict[str, Any]:
    """One cell in a process of its own: its figures, or `{"error": …}`, with `full` if the memory was too small."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "cell.json"
        words = ["--cell", "--configs", config, "--micro-batch", str(micro_batch), "--out", str(out)]
        words += ["--rounds", str(options.rounds), "--updates", str(options.updates), "--tokens", str(options.tokens)]
        words += [word for text in sets for word in ("--set", text)] + (["--tiny"] if options.tiny else [])
        environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.4f}"} if share else {}
        done = common.child([__file__, *words], **environment)
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(out.read_text())
            return found
    last = [line for line in done.stderr.splitlines() if line.strip()][-3:]
    return {
        "micro_batch": micro_batch,
        "full": any(word in done.stderr for word in FULL) or done.returncode == -9,
        "error": " ".join(last)[-500:] or f"status {done.returncode}",
    }


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number up to `most` that fits, if all below one that fits do: doubled, then halved in; 0 if none."""
    below, above = 0, 1
    while above <= most and fits(above):
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if middle <= most and fits(middle) else (below, middle)
    return below


def fit(options: argparse.Namespace, config: str) -> list[dict[str, Any]]:
    """The largest micro-batch of each remat policy within each of --memory (GiB), or in the whole device."""
    found = []
    for gib in options.memory or [0.0]:
        for policy in ("none", "attention", "blocks"):
            tried: dict[int, dict[str, Any]] = {}

            def fits(size: int, gib: float = gib, policy: str = policy, tried: dict[int, Any] = tried) -> bool:
                answer = trial(options, f"{config}:model.remat={policy}", size, (), options.share(gib))
                if "error" in answer and not answer["full"]:
                    raise SystemExit(f"micro-batch {size}: {answer['error']}")
                tried[size] = {"live_bytes": None} if "error" in answer else answer["sides"]["base"]["memory"]
                live = tried[size]["live_bytes"]
                return live is not None and (not gib or options.on_gpu or live <= gib * GIB)

            size = largest(fits, options.most)
            found.append({"config": config, "gib": gib or None, "remat": policy, "micro_batch": size, "tried": tried})
            print(f"{config}: {policy:<9} {f'{gib:g} GiB' if gib else 'whole device':<13} {size}", flush=True)
    return found


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every config at every micro-batch."""
    found = []
    for config in options.configs.split(","):
        for size in options.micro_batch:
            answer = trial(options, config, size, options.set, 0.0) | {"name": config}
            found.append(answer)
            print(said(answer), flush=True)
    return found


def said(answer: dict[str, Any]) -> str:
    """A cell as a table: a row for each side."""
    if "error" in answer:
        return f"{answer['name']}, micro-batch {answer['micro_batch']}: {answer['error']}"
    rows = []
    for name, side in answer["sides"].items():
        ms = side["ms_per_step"]
        rate, live = side["tokens_per_second"], side["memory"]["live_bytes"] / GIB
        times = (side.get("compile_cold_s"), side.get("compile_warm_s"))
        rows.append(
            (name, ms["median"], ms["p10"], ms["p90"], rate, side["mfu"], live, *times, side["ratio"]["median"])
        )
    header = ("side", "ms/step", "p10", "p90", "tokens/s", "MFU", "live GiB", "compile s", "cached s", "ratio")
    peak = answer["peak_bytes_in_use"]
    title = f"{answer['name']}, {answer['micro_batch']} × {answer['accum']}, attention {answer['attention']}"
    title += f", peak {peak / GIB:.2f} GiB" if peak else ""
    return f"{title}\n{common.table(rows, header)}"


def named(text: str) -> Config:
    """A config by name, changed by what follows a colon: `fineweb40m:model.remat=blocks`."""
    name, _, changes = text.partition(":")
    config = load(name)
    return variant(config, changes).config if changes else config


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--configs", default="fineweb40m", help="names or files, joined by commas (default: fineweb40m)")
    add("--micro-batch", type=int, nargs="+", help="sequences of a micro-batch (default: 4 8 16 32)")
    add("--set", action="append", default=[], metavar="KEY=VALUE,…", help="a further side; may be given several times")
    add("--rounds", type=int, help="turns of each side (default: 10)")
    add("--updates", type=int, help="steps timed in a turn (default: 3)")
    add("--tokens", type=int, default=0, help="random tokens in the file (default: 100 million; 200,000 with --tiny)")
    add("--fit", action="store_true", help="find the largest micro-batch of each remat policy instead")
    add("--memory", type=float, nargs="*", default=[], metavar="GIB", help="with --fit: GiB to keep within")
    add("--most", type=int, default=MOST, help=f"with --fit: the largest micro-batch to try (default: {MOST})")
    add("--tiny", action="store_true", help="a one-layer model: shows that the script runs anywhere")
    add("--out", type=Path, help="JSON file for the raw figures")
    add("--cell", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (2 if options.tiny else 10)
    options.updates = options.updates or (1 if options.tiny else 3)
    options.micro_batch = options.micro_batch or ([2] if options.tiny else [4, 8, 16, 32])
    options.tokens = options.tokens or (200_000 if options.tiny else 100_000_000)
    if options.fit:
        options.rounds, options.updates = 1, 2
    return options


def device() -> dict[str, Any]:
    """What the device is, asked in a process that gives it back."""
    code = "import json, common, jax; d = jax.devices()[0]; limit = (d.memory_stats() or {}).get('bytes_limit'); "
    code += "print(json.dumps(common.about() | {'bytes_limit': limit}))"
    done = common.child(["-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {code}"])
    if done.returncode:
        raise SystemExit(done.stderr.strip() or "JAX does not start; python -m jaxgpt.doctor says why")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str]) -> int:
    options = parsed(argv)
    if options.cell:
        runtime.set_up()
        with tempfile.TemporaryDirectory() as place:
            common.random_tokens(Path(place), options.tokens)
            config = named(options.configs)
            config = sized(config.replace(TINY) if options.tiny else config, options.micro_batch[0])
            common.write(options.out, cell(config, options.set, Path(place), options.rounds, options.updates))
        return 0
    for text in options.configs.split(","):
        for one in ["", *options.set]:
            variant(named(text), one) if one else named(text)  # a mistake is told before an hour of work
    found: dict[str, Any] = {"about": device(), "command": ["bench/step.py", *argv]}
    options.on_gpu = found["about"]["platform"] == "gpu"
    given = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", JAX_SHARE))
    whole = (found["about"]["bytes_limit"] or 0) / given / GIB
    options.memory = [gib for gib in options.memory if not options.on_gpu or gib <= whole]
    options.share = lambda gib: gib / whole if options.on_gpu and gib else 0.0
    if options.fit:
        found["fit"] = [one for config in options.configs.split(",") for one in fit(options, config)]
    else:
        found["cells"] = sweep(options)
    common.write(options.out, found)
    return int(any("error" in one for one in found.get("cells", [])))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as error:
        sys.exit(str(error))
