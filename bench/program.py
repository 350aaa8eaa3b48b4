"""The update as a GPU's compiler makes it, without a GPU: its kernels, traffic and memory, and what no run can beat.

    python bench/program.py [--config fineweb40m] [--gpu H200] [--set model.remat=blocks …] [--kernels 20] [--json FILE]

XLA compiles for a device that it is told of. It needs JAX's CUDA plugin (`pip install '.[cuda13]'`, or cuda12) and no
GPU; without one it cannot try kernels out, so products are those of its heuristics and not of its autotuner. Each --set
(see bench/step.py) is compiled beside the config as it is.

`bound` is the milliseconds that each kernel's traffic takes at the memory's bandwidth or its products at the matrix
units' peak, whichever is longer, over all kernels: a floor if nothing stays in the cache. `likely` takes 88 % of the
bandwidth and 75 % of the peak, and 2 microseconds per launch. Neither is a measurement.
"""

import argparse
import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # else JAX looks for the GPU that the plugin is for

import common
import hlo
import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track
from sides import Variant, variant

from jaxgpt.budget import devices
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import attention_flops_per_token
from jaxgpt.errors import ConfigError
from jaxgpt.model import backend
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.mesh import batch_sharding

SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, LAUNCH = 0.88, 0.75, 2e-6  # within the ranges of budget.time, which says why
NO_PLUGIN = "this needs JAX's CUDA plugin, though no GPU"


class Chip(NamedTuple):
    """What XLA asks about a GPU beside what `budget.devices` knows, from NVIDIA's specifications."""

    name: str  # as the driver says it
    capability: tuple[int, int]
    cores: int
    ghz: float
    shared_kib: tuple[int, int]  # of a core, and the most of a block
    threads: int  # of a core
    cache_mib: int


CHIPS = {
    "H100": Chip("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, (228, 227), 2048, 50),
    "H200": Chip("NVIDIA H200", (9, 0), 132, 1.98, (228, 227), 2048, 50),
    "A100 80GB": Chip("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, (164, 163), 2048, 40),
    "RTX 3090": Chip("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, (100, 99), 1536, 6),
    "RTX 4070": Chip("NVIDIA GeForce RTX 4070", (8, 9), 46, 2.475, (100, 99), 1536, 36),
    "RTX 4090": Chip("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, (100, 99), 1536, 72),
}


def described(device: devices.Device) -> str:
    """`device` in the words of XLA's `GpuTargetConfigProto`; raises `ConfigError` C037 for one not in `CHIPS`."""
    chip = CHIPS.get(device.name)
    if chip is None:
        raise ConfigError(
            "C037", f"XLA cannot be told of {device.name!r} here", f"--gpu with one of: {', '.join(CHIPS)}"
        )
    (major, minor), (shared, block) = chip.capability, chip.shared_kib
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {chip.threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared << 10} shared_memory_per_block_optin: {block << 10}
  core_count: {chip.cores} fpus_per_core: {64 if chip.capability == (8, 0) else 128} clock_rate_ghz: {chip.ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {round(device.bandwidth * 1e9)} device_memory_size: {round(device.memory * 2**30)}
  l2_cache_size: {chip.cache_mib << 20} registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ {_numbers("nvidia-cudnn")} }}
runtime_version {{ {_numbers("nvidia-cuda-runtime")} patch: 0 }}
device_description_str: "{chip.name}"
"""


def _numbers(package: str) -> str:
    """`major: 9 minor: 28` of an installed NVIDIA package, whose name ends in its CUDA's or not."""
    for ending in ("", "-cu13", "-cu12"):
        try:
            major, minor = importlib.metadata.version(package + ending).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"major: {major} minor: {minor}"
    raise ConfigError("C042", f"{NO_PLUGIN}: {package} is not installed", "pip install '.[cuda13]'")


def compiled(wanted: Variant, device: devices.Device) -> Any:
    """The config's update, compiled for one `device` that need not exist."""
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=described(device), topology="1x1x1")
    except RuntimeError as error:
        raise ConfigError("C042", f"{NO_PLUGIN}: {error}", "pip install '.[cuda13]'") from error
    config = replace(wanted.config, model=backend.resolve_auto(wanted.config.model, "gpu"))
    mesh = Mesh(np.array(topology.devices[:1]), ("data",))
    optimizer = optim.make_optimizer(config.optim, config.run.steps)
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    tokens = jax.ShapeDtypeStruct(shape, np.uint16, sharding=batch_sharding(mesh))
    update = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, mesh)
    lowered = update.lower(step.abstract_state(config, optimizer, mesh), tokens)
    try:
        return lowered.compile(compiler_options=dict(wanted.compiler) or None)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError("C042", f"XLA does not compile {wanted.name!r}: {error}", "another --set") from error


def told(program: Any, config: Config, device: devices.Device) -> dict[str, Any]:
    """What the program is: bytes of memory, and kernels by part with their bounds in milliseconds of a step."""
    found = with_attention(hlo.kernels(program.as_text()), config)
    memory = program.memory_analysis()
    parts: dict[str, list[hlo.Kernel]] = {}
    for kernel in found:
        parts.setdefault(part(kernel, config), []).append(kernel)
    return {
        "live_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "whole": summed(found, device),
        "parts": {name: summed(kernels, device) for name, kernels in sorted(parts.items())},
        "kernels": [kernel._asdict() | {"ms": 1e3 * kernel.count * bound(kernel, device)} for kernel in found],
    }


def with_attention(found: list[hlo.Kernel], config: Config) -> list[hlo.Kernel]:
    """The kernels with cuDNN's operations, causal: two products forward and five backward, of seven in all."""
    m = config.model
    seventh = config.data.micro_batch * m.block_size * attention_flops_per_token(m, causal=True) // (6 * m.n_layer)
    return [k._replace(flops=seventh * (5 if "bwd" in k.source else 2)) if k.kind == "attention" else k for k in found]


def part(kernel: hlo.Kernel, config: Config) -> str:
    """Which of the planner's kernels it belongs to; what runs once per step is apart."""
    head = str(config.model.vocab_size) in re.findall(r"\d+", kernel.shape)
    head = head or ("->md" in kernel.source) or ("while/body/closed_call/jvp()/while" in kernel.source)
    if kernel.count == 1 and kernel.kind == "pass" and not re.search(r"closed_call|jvp", kernel.source):
        return "once per step"
    if kernel.kind == "pass":
        return "loss and embedding, passes" if head else "blocks, passes"
    return "attention" if kernel.kind == "attention" else "head, products" if head else "blocks, products"


def summed(found: list[hlo.Kernel], device: devices.Device) -> dict[str, float]:
    """Launches, GB, TFLOP, and the two times, of a step."""
    return {
        "launches": hlo.total(found, lambda _: 1),
        "gb": hlo.total(found, lambda kernel: kernel.bytes / 1e9),
        "tflop": hlo.total(found, lambda kernel: kernel.flops / 1e12),
        "bound_ms": 1e3 * hlo.total(found, lambda kernel: bound(kernel, device)),
        "likely_ms": 1e3 * hlo.total(found, lambda kernel: likely(kernel, device)),
    }


def bound(kernel: hlo.Kernel, device: devices.Device) -> float:
    """Seconds of one run at full bandwidth and at full peak, whichever is longer."""
    return max(kernel.bytes / (device.bandwidth * 1e9), kernel.flops / (device.tflops * 1e12))


def likely(kernel: hlo.Kernel, device: devices.Device) -> float:
    """The same at the shares that kernels reach, and with a launch."""
    memory, products = device.bandwidth * 1e9 * SHARE_OF_BANDWIDTH, device.tflops * 1e12 * SHARE_OF_PEAK
    return max(kernel.bytes / memory, kernel.flops / products) + LAUNCH


def said(name: str, found: dict[str, Any], kernels: int) -> str:
    """One program as tables."""
    header = ["part", "launches", "GB", "TFLOP", "bound ms", "likely ms"]
    rows = [[part, *row.values()] for part, row in (found["parts"] | {"whole step": found["whole"]}).items()]
    text = f"\n{name}: temporaries {found['temporary_bytes'] / 1e9:.2f} GB, all {found['live_bytes'] / 1e9:.2f} GB\n"
    text += common.table(rows, header)
    first = sorted(found["kernels"], key=lambda kernel: -kernel["ms"])[:kernels]
    lines = [[k["ms"], k["count"], k["bytes"] / 1e6, k["name"], k["shape"][:44], k["source"][-50:]] for k in first]
    return text + ("\n" + common.table(lines, ["bound ms", "runs", "MB", "kernel", "result", "of"]) if lines else "")


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fineweb40m")
    parser.add_argument("--gpu", default="H200")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE,…")
    parser.add_argument("--kernels", type=int, default=0, help="the longest kernels to list")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    common.check_output_path(args.json)
    if args.kernels < 0:
        raise ConfigError("C009", f"--kernels = {args.kernels}; must be 0 or more")
    device, config, console = devices.find(args.gpu), load_config(args.config), Console(stderr=True)
    found: dict[str, Any] = {}
    wanted = [Variant("as it is", config), *(variant(config, text) for text in dict.fromkeys(args.set))]
    for each in track(wanted, description=f"compiling for {device.name}", console=console, transient=True):
        started = time.perf_counter()
        program = compiled(each, device)
        found[each.name] = {"compile_seconds": time.perf_counter() - started, **told(program, each.config, device)}
    for name, program in found.items():
        print(said(name, program, args.kernels))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    common.write_json(args.json, {"gpu": device.name, "commit": common.git_commit(), **versions, "programs": found})


if __name__ == "__main__":
    sys.exit(common.run(main))
