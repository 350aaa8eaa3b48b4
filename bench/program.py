"""The train step compiled for a GPU without a GPU: its kernels, traffic, memory and a lower bound of its time.

    python bench/program.py [--config fineweb40m] [--gpu H200] [--set model.remat=blocks …] [--kernels 20] [--json FILE]

XLA compiles for a device that is described to it. This needs JAX's CUDA plugin (`pip install '.[cuda13]'`, or cuda12)
but not a GPU. Without one XLA cannot autotune, so its heuristics choose the kernels of matrix products. Each --set (see
bench/step.py) is compiled in addition to the unchanged config.

`bound` is the milliseconds that each kernel's traffic takes at the memory's bandwidth or its products at the matrix
units' peak, whichever is longer, summed over all kernels: a lower bound if nothing stays in the cache. `likely` assumes
88 % of the bandwidth, 75 % of the peak and 2 microseconds per launch. Neither is a measurement.
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
from sides import Variant, end_of_text, parse_variant

from jaxgpt.budget import devices
from jaxgpt.config import Config
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import attention_flops_per_token
from jaxgpt.errors import ConfigError
from jaxgpt.model import backend
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.mesh import AXES, batch_sharding

# Within the ranges of budget.step_time, which gives the reasons.
BANDWIDTH_EFFICIENCY = 0.88
PEAK_EFFICIENCY = 0.75
LAUNCH_SECONDS = 2e-6
NO_PLUGIN = "this needs JAX's CUDA plugin, though no GPU"


class Chip(NamedTuple):
    """What XLA needs to know about a GPU besides `budget.devices`, from NVIDIA's specifications."""

    name: str  # as reported by the driver
    capability: tuple[int, int]
    cores: int
    ghz: float
    shared_kib: tuple[int, int]  # per core, and the maximum per block
    threads: int  # per core
    cache_mib: int


CHIPS = {
    "H100": Chip("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, (228, 227), 2048, 50),
    "H200": Chip("NVIDIA H200", (9, 0), 132, 1.98, (228, 227), 2048, 50),
    "A100 80GB": Chip("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, (164, 163), 2048, 40),
    "RTX 3090": Chip("NVIDIA GeForce RTX 3090", (8, 6), 82, 1.695, (100, 99), 1536, 6),
    "RTX 4070": Chip("NVIDIA GeForce RTX 4070", (8, 9), 46, 2.475, (100, 99), 1536, 36),
    "RTX 4090": Chip("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, (100, 99), 1536, 72),
}


def target_description(device: devices.Device) -> str:
    """`device` as XLA's `GpuTargetConfigProto`; raises `ConfigError` C037 if it is not in `CHIPS`."""
    chip = CHIPS.get(device.name)
    if chip is None:
        raise ConfigError(
            "C037", f"XLA cannot compile for {device.name!r} here", f"--gpu with one of: {', '.join(CHIPS)}"
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
dnn_version_info {{ {_version_fields("nvidia-cudnn")} }}
runtime_version {{ {_version_fields("nvidia-cuda-runtime")} patch: 0 }}
device_description_str: "{chip.name}"
"""


def _version_fields(package: str) -> str:
    """`major: 9 minor: 28` of an installed NVIDIA package, whose name may end in the CUDA version."""
    for ending in ("", "-cu13", "-cu12"):
        try:
            major, minor = importlib.metadata.version(package + ending).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"major: {major} minor: {minor}"
    raise ConfigError("C042", f"{NO_PLUGIN}: {package} is not installed", "pip install '.[cuda13]'")


def compile_for(variant: Variant, device: devices.Device) -> Any:
    """The train step of the config, compiled for one `device`, which need not exist."""
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=target_description(device), topology="1x1x1"
        )
    except RuntimeError as error:
        raise ConfigError("C042", f"{NO_PLUGIN}: {error}", "pip install '.[cuda13]'") from error
    config = replace(variant.config, model=backend.resolve_auto(variant.config.model, "gpu"))
    mesh = Mesh(np.array(topology.devices[:1]).reshape(1, 1), AXES)
    optimizer = optim.make_optimizer(config)
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    tokens = jax.ShapeDtypeStruct(shape, np.uint16, sharding=batch_sharding(mesh))
    update = step.compile_train_step(config, step.model_graphdef(config.model), optimizer, mesh, end_of_text(config))
    lowered = update.lower(step.abstract_state(config, optimizer, mesh), tokens)
    try:
        return lowered.compile(compiler_options=dict(variant.compiler) or None)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError("C042", f"XLA does not compile {variant.name!r}: {error}", "another --set") from error


def analyze(program: Any, config: Config, device: devices.Device) -> dict[str, Any]:
    """Memory in bytes, and the kernels by group with their lower bounds in milliseconds per step."""
    kernels = with_attention_flops(hlo.kernels(program.as_text()), config)
    memory = program.memory_analysis()
    groups: dict[str, list[hlo.Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel_group(kernel, config), []).append(kernel)
    return {
        "live_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "whole": summarize(kernels, device),
        "parts": {name: summarize(group, device) for name, group in sorted(groups.items())},
        "kernels": [kernel._asdict() | {"ms": 1e3 * kernel.count * bound(kernel, device)} for kernel in kernels],
    }


def with_attention_flops(kernels: list[hlo.Kernel], config: Config) -> list[hlo.Kernel]:
    """The kernels with the causal operations of cuDNN's attention: two products forward and five backward."""
    m = config.model
    seventh = config.data.micro_batch * m.block_size * attention_flops_per_token(m, causal=True) // (6 * m.n_layer)
    return [
        kernel._replace(flops=seventh * (5 if "bwd" in kernel.source else 2)) if kernel.kind == "attention" else kernel
        for kernel in kernels
    ]


def kernel_group(kernel: hlo.Kernel, config: Config) -> str:
    """The group of the planner's model that a kernel belongs to; passes that run once per step are separate."""
    head = str(config.model.vocab_size) in re.findall(r"\d+", kernel.shape)
    head = head or ("->md" in kernel.source) or ("while/body/closed_call/jvp()/while" in kernel.source)
    if kernel.count == 1 and kernel.kind == "pass" and not re.search(r"closed_call|jvp", kernel.source):
        return "once per step"
    if kernel.kind == "pass":
        return "loss and embedding, passes" if head else "blocks, passes"
    return "attention" if kernel.kind == "attention" else "head, products" if head else "blocks, products"


def summarize(kernels: list[hlo.Kernel], device: devices.Device) -> dict[str, float]:
    """Launches, GB, TFLOP and both times of a step."""
    return {
        "launches": hlo.total(kernels, lambda _: 1),
        "gb": hlo.total(kernels, lambda kernel: kernel.bytes / 1e9),
        "tflop": hlo.total(kernels, lambda kernel: kernel.flops / 1e12),
        "bound_ms": 1e3 * hlo.total(kernels, lambda kernel: bound(kernel, device)),
        "likely_ms": 1e3 * hlo.total(kernels, lambda kernel: likely(kernel, device)),
    }


def bound(kernel: hlo.Kernel, device: devices.Device) -> float:
    """Seconds of one run at full bandwidth and at full peak, whichever is longer."""
    return max(kernel.bytes / (device.bandwidth * 1e9), kernel.flops / (device.tflops * 1e12))


def likely(kernel: hlo.Kernel, device: devices.Device) -> float:
    """Seconds of one run at the efficiency that kernels reach, with a launch."""
    memory, products = device.bandwidth * 1e9 * BANDWIDTH_EFFICIENCY, device.tflops * 1e12 * PEAK_EFFICIENCY
    return max(kernel.bytes / memory, kernel.flops / products) + LAUNCH_SECONDS


def format_program(name: str, program: dict[str, Any], kernels: int) -> str:
    """One program as tables."""
    header = ["part", "launches", "GB", "TFLOP", "bound ms", "likely ms"]
    rows = [[part, *row.values()] for part, row in (program["parts"] | {"whole step": program["whole"]}).items()]
    text = (
        f"\n{name}: temporaries {program['temporary_bytes'] / 1e9:.2f} GB, all {program['live_bytes'] / 1e9:.2f} GB\n"
    )
    text += common.table(rows, header)
    first = sorted(program["kernels"], key=lambda kernel: -kernel["ms"])[:kernels]
    lines = [[k["ms"], k["count"], k["bytes"] / 1e6, k["name"], k["shape"][:44], k["source"][-50:]] for k in first]
    return text + ("\n" + common.table(lines, ["bound ms", "runs", "MB", "kernel", "result", "of"]) if lines else "")


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fineweb40m")
    parser.add_argument("--gpu", default="H200")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE,…")
    parser.add_argument("--kernels", type=int, default=0, help="how many of the longest kernels to list")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(words)
    common.check_output_path(args.json)
    if args.kernels < 0:
        raise ConfigError("C009", f"--kernels = {args.kernels}; must be 0 or more")
    device, config, console = devices.find(args.gpu), load_config(args.config), Console(stderr=True)
    programs: dict[str, Any] = {}
    variants = [Variant("as it is", config), *(parse_variant(config, text) for text in dict.fromkeys(args.set))]
    for each in track(variants, description=f"compiling for {device.name}", console=console, transient=True):
        started = time.perf_counter()
        program = compile_for(each, device)
        programs[each.name] = {
            "compile_seconds": time.perf_counter() - started,
            **analyze(program, each.config, device),
        }
    for name, program in programs.items():
        print(format_program(name, program, args.kernels))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    common.write_json(args.json, {"gpu": device.name, "commit": common.git_commit(), **versions, "programs": programs})


if __name__ == "__main__":
    sys.exit(common.run(main))
