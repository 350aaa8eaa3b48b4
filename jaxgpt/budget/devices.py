"""What a device can do: `devices.toml` has the figures and their sources.

`tflops` is the dense bfloat16 rate of the matrix units with float32 accumulation, the denominator of every MFU. It is
neither the sparse rate, which is twice as high, nor the rate with float16 accumulation, which consumer cards reach at
twice the speed. Devices without bfloat16 have float16's rate and their float32 rate.
"""

import difflib
import math
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jaxgpt.config.options import parse_number
from jaxgpt.errors import ConfigError

GEFORCE_FLOP = 4 * 128  # operations per multiprocessor and clock: 4 tensor cores, 64 multiply-adds each
CONTEXT_GIB = 0.6  # CUDA's context and the libraries' handles
DESKTOP_GIB = 0.8  # a desktop with a browser, on a card that drives a screen
CPU = "cpu"
NO_BFLOAT16 = {
    "pascal": "no tensor cores: jaxgpt trains in float32 and without fused attention",
    "volta": "no bfloat16: jaxgpt trains in float16 with loss scaling and without fused attention",
    "turing": "no bfloat16: jaxgpt trains in float16 with loss scaling and without fused attention",
}  # by family
# Dense products that a watt of the board sustains: an H200 does 788 TFLOP/s at 700 W. The others are assumptions from
# the node's efficiency; only the A10 was compared with a published speed (docs/budget-accuracy.md).
TFLOPS_PER_WATT = {"volta": 0.35, "turing": 0.45, "ampere": 0.5, "ampere-hbm": 0.8, "ada": 0.85, "hopper": 1.13}
CUSTOM_HELP = "--gpu 'tflops=125,bandwidth=900,memory=16,watts=300' (TFLOP/s, GB/s, GiB, W) for another device"
CUSTOM_FIELDS = ("tflops", "bandwidth", "memory", "watts")


@dataclass(frozen=True, kw_only=True)
class Device:
    """`tflops` dense 16-bit with fp32 accumulation, `bandwidth` in GB/s, `memory` in GiB, `watts` of the board."""

    name: str
    tflops: float
    bandwidth: float
    memory: float
    watts: float
    source: str
    family: str
    drives_screen: bool = False
    half_rate: bool = False  # GeForce: products with float32 accumulation run at half of the tensor cores' speed

    @property
    def note(self) -> str:
        """What a reader should know about the device; empty for most."""
        return NO_BFLOAT16.get(self.family, "")

    @property
    def has_bfloat16(self) -> bool:
        """Whether its tensor cores have bfloat16, and with it cuDNN's attention."""
        return self.family not in NO_BFLOAT16

    @property
    def sustained_tflops(self) -> float:
        """What products can sustain within the board's power: the rated figure, or less on a card with few watts."""
        return min(self.tflops, TFLOPS_PER_WATT.get(self.family, math.inf) * self.watts)

    @property
    def usable(self) -> float:
        """GiB left for a run: memory less the driver's context and, on a card for screens, a desktop's use."""
        return self.memory - CONTEXT_GIB - (DESKTOP_GIB if self.drives_screen else 0.0)


def _load_devices(tables: dict[str, Any]) -> dict[str, Device]:
    devices = {}
    for group in tables["groups"]:
        shared = {key: value for key, value in group.items() if key not in ("columns", "devices")}
        for cells in group["devices"]:
            values = shared | dict(zip(group["columns"], cells, strict=True))
            if "boost_ghz" in values:
                values["tflops"] = round(
                    values.pop("multiprocessors") * GEFORCE_FLOP * values.pop("boost_ghz") / 1e3, 1
                )
            devices[values["name"]] = Device(**values)
    return devices


_TABLES = tomllib.loads(resources.files("jaxgpt.budget").joinpath("devices.toml").read_text(encoding="utf-8"))
DEVICES = _load_devices(_TABLES)
SPELLINGS: dict[str, str] = {name.lower(): name for name in DEVICES} | _TABLES["aliases"]
# Words that makers, drivers and shops add to a device's name and that do not tell two devices apart.
FILLER = {"nvidia", "geforce", "gpu", "graphics", "card", "tesla", "quadro", "generation", "blackwell", "edition", "oc"}
FILLER |= {"founders", "workstation"}
# Words that make another device of the same number.
VARIANTS = {"ti", "super", "laptop", "pro", "ada", "mobile", "max", "d", "a5000", "a4000"}


def find(name: str) -> Device:
    """The device of that name in any usual spelling, or the one that `tflops=…,bandwidth=…,memory=…,watts=…` describes.

    Raises `ConfigError` C037 with the reason for a device that is not supported, or with the nearest names.
    """
    if "=" in name:
        return custom(name)
    device = lookup(name)
    if device:
        return device
    for refused in _TABLES["refused"]:
        if set(_words(name)) & set(refused["words"]):
            raise ConfigError("C037", f"{name!r} cannot be planned: {refused['reason']}", f"cpu, or {CUSTOM_HELP}")
    words = " ".join(_words(name))
    by_similarity = sorted(SPELLINGS, key=lambda spelling: -difflib.SequenceMatcher(None, words, spelling).ratio())
    nearest = list(dict.fromkeys(SPELLINGS[spelling] for spelling in by_similarity))[:3]
    help = f"the nearest: {', '.join(nearest)}; --gpu list prints all; or cpu, or {CUSTOM_HELP}"
    raise ConfigError("C037", f"there is no GPU {name!r} in the table", help)


def custom(text: str) -> Device:
    """The device that `tflops=125,bandwidth=900,memory=16,watts=300` describes; raises `ConfigError` C037."""
    pairs = [part.partition("=") for part in text.split(",")]
    values = {name.strip().lower(): parse_number(value.strip()) for name, _, value in pairs}
    problem = _custom_problem([name.strip().lower() for name, _, _ in pairs], values)
    if problem:
        raise ConfigError("C037", f"--gpu {text!r}: {problem}", CUSTOM_HELP)
    tflops, bandwidth, memory, watts = (float(values[name]) for name in CUSTOM_FIELDS)
    return Device(
        name="custom device",
        tflops=tflops,
        bandwidth=bandwidth,
        memory=memory,
        watts=watts,
        source="--gpu",
        family="custom",
    )


def _custom_problem(names: list[str], values: Mapping[str, float | None]) -> str:
    """What is wrong with the figures of a custom device; empty if nothing is."""
    for name in names:
        if name not in CUSTOM_FIELDS:
            return f"{name!r} is not one of {', '.join(CUSTOM_FIELDS)}"
        if names.count(name) > 1:
            return f"{name} is given twice"
        if not 0 < (values[name] or 0.0) < math.inf:
            return f"{name} is not a positive number"
    missing = [name for name in CUSTOM_FIELDS if name not in values]
    if missing:
        return f"{missing[0]} is missing"
    usable = (values["memory"] or 0.0) - CONTEXT_GIB
    return "" if usable > 0 else f"the driver takes {CONTEXT_GIB:g} GiB, which leaves no memory for a run"


def table() -> str:
    """All devices as lines of text, with their figures."""
    lines = [f"{'name':<20}{'TFLOP/s':>9}{'GB/s':>7}{'GiB':>7}{'W':>6}"]
    for device in DEVICES.values():
        figures = f"{device.tflops:>9g}{device.bandwidth:>7g}{device.memory:>7g}{device.watts:>6g}"
        lines.append(f"{device.name:<20}{figures}{'' if device.has_bfloat16 else '  no bfloat16'}")
    return "\n".join([*lines, "", f"Others: cpu, or {CUSTOM_HELP}"])


def lookup(name: str) -> Device | None:
    """The device that `name` contains, as drivers, JAX and people spell it; None if it is not in the table."""
    words = _words(name)
    exact = SPELLINGS.get(" ".join(words))
    if exact:
        return DEVICES[exact]
    given = set(words)
    matches = []
    for spelling in SPELLINGS:
        needed = set(_words(spelling))
        if needed <= given and not (given - needed) & VARIANTS:
            matches.append(spelling)
    if not matches:
        return None
    return DEVICES[SPELLINGS[max(matches, key=lambda spelling: len(_words(spelling)))]]


def peak_flops(name: str) -> float | None:
    """Peak of the device of that name (as drivers and JAX spell it) in FLOP/s; None if it is not in the table."""
    device = lookup(name)
    return device.tflops * 1e12 if device else None


def local_gpu() -> str | None:
    """The name of this machine's first NVIDIA GPU, from the driver (JAX is not loaded); None if there is none."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        if model:
            return model[1].strip()
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.splitlines()[0].strip() if output.strip() else None


def _words(name: str) -> list[str]:
    """`NVIDIA GeForce RTX 4070 Ti`, `rtx4070ti` and `NVIDIA H100 80GB HBM3` as comparable words."""
    spaced = re.sub(r"(rtx|gtx)(?=[a-z]?\d)", r"\1 ", name.lower().replace("mobile", "laptop"))
    spaced = re.sub(r"(?<=\d)(?=ti|super|laptop|pcie|sxm|nvl)|(?<=ti)(?=super|laptop)", " ", spaced)
    spaced = re.sub(r"(?<=\d)\s*(gb|gib|g)\b", "gb", spaced)
    words = [word for word in re.findall(r"[a-z0-9]+", spaced) if word not in FILLER]
    bare = words and re.fullmatch(r"[1-5]0[5-9]0", words[0])  # `4070` alone
    return ["gtx" if words[0] < "2" else "rtx", *words] if bare else words
