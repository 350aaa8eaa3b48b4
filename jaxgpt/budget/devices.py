"""What a device can do: `devices.toml` has the figures and their sources.

`tflops` is the dense bfloat16 rate of the matrix units with float32 accumulation, the denominator of every MFU. It is
neither the sparse rate, which is twice as high, nor the rate with float16 accumulation, which consumer cards reach at
twice the speed.
"""

import difflib
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jaxgpt.errors import ConfigError

GEFORCE_FLOP = 4 * 128  # operations per multiprocessor and clock: 4 tensor cores, 64 multiply-adds each
CONTEXT_GIB = 0.6  # CUDA's context and the libraries' handles
DESKTOP_GIB = 0.8  # a desktop with a browser, on a card that drives a screen
CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Device:
    """`tflops` dense bf16 with fp32 accumulation, `bandwidth` in GB/s, `memory` in GiB, `watts` of the board."""

    name: str
    tflops: float
    bandwidth: float
    memory: float
    watts: float
    source: str
    family: str
    drives_screen: bool = False
    note: str = ""

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
            name = values["name"]
            devices[name] = Device(**values, note=tables["notes"].get(name, ""))
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
    """The device of that name in any usual spelling; raises `ConfigError` C037 with the nearest names."""
    device = lookup(name)
    if device:
        return device
    words = " ".join(_words(name))
    by_similarity = sorted(SPELLINGS, key=lambda spelling: -difflib.SequenceMatcher(None, words, spelling).ratio())
    nearest = list(dict.fromkeys(SPELLINGS[spelling] for spelling in by_similarity))[:3]
    raise ConfigError("C037", f"there is no GPU {name!r} in the table", f"the nearest: {', '.join(nearest)}; or cpu")


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
    bare = words and re.fullmatch(r"[345]0[5-9]0", words[0])  # `4070` alone
    return ["rtx", *words] if bare else words
