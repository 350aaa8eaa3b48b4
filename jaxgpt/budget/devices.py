"""What a device can do, and where each figure comes from.

`tflops` is the dense bfloat16 rate of the matrix units with float32 accumulation: the denominator of every MFU shown.
It is neither the sparse rate, which is twice as high, nor the one with float16 accumulation that consumer cards reach
at twice the speed. GeForce cards follow one formula, multiprocessors x 4 tensor cores x boost clock x 128 operations,
which gives exactly what NVIDIA's whitepapers print for the RTX 3080, 3090, 4090 and 5090. Boost clock, bandwidth,
memory and board power are NVIDIA's specifications; a laptop's are those of its highest power setting.
"""

import difflib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jaxgpt.errors import ConfigError

GEFORCE_FLOP = 4 * 128  # operations per multiprocessor and clock: 4 tensor cores, 64 multiply-adds each
CONTEXT_GIB = 0.6  # CUDA's context and the libraries' handles
DESKTOP_GIB = 0.8  # what a desktop with a browser holds on a card that drives a screen


@dataclass(frozen=True, kw_only=True)
class Device:
    """`tflops` dense bf16 with fp32 accumulation, `bandwidth` GB/s, `memory` GiB, `watts` of the board."""

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
        """GiB left for a run: without the driver's context and, on a card for screens, without a desktop's share."""
        return self.memory - CONTEXT_GIB - (DESKTOP_GIB if self.drives_screen else 0.0)


GA10X = "NVIDIA Ampere GA102 whitepaper, appendix A; GeForce specification pages"
AD10X = "NVIDIA Ada whitepaper, appendix A; GeForce specification pages"
GB20X = "NVIDIA RTX Blackwell whitepaper, appendix A; GeForce specification pages"

# name, multiprocessors, boost GHz, GB/s, GiB, W
GEFORCE = {
    ("ampere", GA10X): """
        RTX 3060            28 1.777  360 12 170
        RTX 3060 8GB        28 1.777  240  8 170
        RTX 3060 Ti         38 1.665  448  8 200
        RTX 3070            46 1.725  448  8 220
        RTX 3070 Ti         48 1.770  608  8 290
        RTX 3080            68 1.710  760 10 320
        RTX 3080 12GB       70 1.710  912 12 350
        RTX 3080 Ti         80 1.665  912 12 350
        RTX 3090            82 1.695  936 24 350
        RTX 3090 Ti         84 1.860 1008 24 450
        RTX 3060 Laptop     30 1.703  336  6 115
        RTX 3070 Laptop     40 1.620  448  8 125
        RTX 3070 Ti Laptop  46 1.485  448  8 125
        RTX 3080 Laptop     48 1.710  448 16 150
        RTX 3080 Ti Laptop  58 1.590  512 16 150""",
    ("ada", AD10X): """
        RTX 4060            24 2.460  272  8 115
        RTX 4060 Ti         34 2.535  288  8 160
        RTX 4060 Ti 16GB    34 2.535  288 16 165
        RTX 4070            46 2.475  504 12 200
        RTX 4070 Super      56 2.475  504 12 220
        RTX 4070 Ti         60 2.610  504 12 285
        RTX 4070 Ti Super   66 2.610  672 16 285
        RTX 4080            76 2.505  717 16 320
        RTX 4080 Super      80 2.550  736 16 320
        RTX 4090           128 2.520 1008 24 450
        RTX 4050 Laptop     20 2.370  192  6 115
        RTX 4060 Laptop     24 2.370  256  8 115
        RTX 4070 Laptop     36 2.175  256  8 115
        RTX 4080 Laptop     58 2.280  432 12 150
        RTX 4090 Laptop     76 2.040  576 16 150""",
    ("blackwell", GB20X): """
        RTX 5050            20 2.570  320  8 130
        RTX 5060            30 2.497  448  8 145
        RTX 5060 Ti         36 2.572  448  8 180
        RTX 5060 Ti 16GB    36 2.572  448 16 180
        RTX 5070            48 2.512  672 12 250
        RTX 5070 Ti         70 2.452  896 16 300
        RTX 5080            84 2.617  960 16 360
        RTX 5090           170 2.407 1792 32 575
        RTX 5060 Laptop     26 2.497  384  8 100
        RTX 5070 Laptop     36 2.347  384  8 100
        RTX 5070 Ti Laptop  46 2.220  672 12 115
        RTX 5080 Laptop     60 2.287  896 16 150
        RTX 5090 Laptop     82 2.160  896 24 150""",
}

# name, dense bf16 TFLOP/s, GB/s, GiB as the driver reports them, W, family, drives a screen, source
PROFESSIONAL = (
    ("T4", 65.0, 320, 15.0, 70, "turing", False, "NVIDIA T4 data sheet"),
    ("A10", 125.0, 600, 22.5, 150, "ampere", False, "NVIDIA A10 data sheet"),
    ("A30", 165.0, 933, 24.0, 165, "ampere", False, "NVIDIA A30 data sheet"),
    ("RTX A6000", 154.8, 768, 48.0, 300, "ampere", True, "NVIDIA Ampere GA102 whitepaper, appendix A"),
    ("A100 40GB", 312.0, 1555, 39.6, 400, "ampere-hbm", False, "NVIDIA A100 data sheet (40 GB)"),
    ("A100 80GB", 312.0, 2039, 79.3, 400, "ampere-hbm", False, "NVIDIA A100 data sheet (80 GB SXM)"),
    ("A100 80GB PCIe", 312.0, 1935, 79.3, 300, "ampere-hbm", False, "NVIDIA A100 data sheet (80 GB PCIe)"),
    ("L4", 121.0, 300, 22.5, 72, "ada", False, "NVIDIA L4 data sheet, half of the sparse figure"),
    ("L40", 181.0, 864, 45.0, 300, "ada", False, "NVIDIA L40 data sheet"),
    ("L40S", 362.0, 864, 45.0, 350, "ada", False, "NVIDIA L40S data sheet"),
    ("RTX 6000 Ada", 364.2, 960, 48.0, 300, "ada", True, "NVIDIA Ada whitepaper, appendix B"),
    ("H100", 989.4, 3350, 79.6, 700, "hopper", False, "NVIDIA Hopper whitepaper, table 2 (SXM5)"),
    ("H100 PCIe", 756.0, 2039, 79.6, 350, "hopper", False, "NVIDIA Hopper whitepaper, table 2 (PCIe)"),
    ("H100 NVL", 835.0, 3900, 93.6, 400, "hopper", False, "NVIDIA H100 NVL data sheet, half of the sparse figure"),
    ("H200", 989.4, 4800, 140.4, 700, "hopper", False, "NVIDIA H200 data sheet, half of the sparse figure"),
    ("B200", 2250.0, 8000, 179.0, 1000, "blackwell-hbm", False, "NVIDIA HGX B200 data sheet, per GPU, dense"),
    ("RTX PRO 6000", 503.8, 1792, 95.6, 600, "blackwell", True, "NVIDIA RTX Blackwell PRO whitepaper"),
    ("RTX PRO 6000 Max-Q", 438.9, 1792, 95.6, 300, "blackwell", True, "NVIDIA RTX PRO 6000 Max-Q data sheet, scaled"),
)
NOTES = {"T4": "no bfloat16: the figure is float16's, which jaxgpt does not train in; expect it to be far slower"}
ALIASES = {
    "h100 sxm": "H100",
    "h100 sxm5": "H100",
    "h100 80gb hbm3": "H100",
    "a100": "A100 80GB",
    "a100 sxm4 80gb": "A100 80GB",
    "a100 sxm4 40gb": "A100 40GB",
    "a100 pcie 40gb": "A100 40GB",
    "a6000": "RTX A6000",
    "6000 ada": "RTX 6000 Ada",
    "pro 6000": "RTX PRO 6000",
}
CPU = "cpu"


def _geforce() -> dict[str, Device]:
    found = {}
    for (family, source), rows in GEFORCE.items():
        for row in rows.strip().splitlines():
            *words, sms, clock, bandwidth, memory, watts = row.split()
            name = " ".join(words)
            found[name] = Device(
                name=name,
                tflops=round(int(sms) * GEFORCE_FLOP * float(clock) / 1e3, 1),
                bandwidth=float(bandwidth),
                memory=float(memory),
                watts=float(watts),
                source=source,
                family=family,
                drives_screen=True,
            )
    return found


DEVICES = _geforce() | {
    name: Device(
        name=name,
        tflops=tflops,
        bandwidth=bandwidth,
        memory=memory,
        watts=watts,
        source=source,
        family=family,
        drives_screen=screen,
        note=NOTES.get(name, ""),
    )
    for name, tflops, bandwidth, memory, watts, family, screen, source in PROFESSIONAL
}
SPELLINGS = {name.lower(): name for name in DEVICES} | ALIASES
# Words that makers, drivers and shops add to a device's name and that tell no two of them apart.
FILLER = {"nvidia", "geforce", "gpu", "graphics", "card", "tesla", "quadro", "generation", "blackwell", "edition", "oc"}
FILLER |= {"founders", "workstation"}


def find(name: str) -> Device:
    """The device of that name in any usual spelling; `ConfigError` C037 with the nearest names if there is none."""
    device = lookup(name)
    if device:
        return device
    words = " ".join(_words(name))
    scored = sorted(SPELLINGS, key=lambda known: -difflib.SequenceMatcher(None, words, known).ratio())
    near = list(dict.fromkeys(SPELLINGS[known] for known in scored))[:3]
    raise ConfigError("C037", f"there is no GPU {name!r} in the table", f"the nearest: {', '.join(near)}; or cpu")


def lookup(name: str) -> Device | None:
    """The device whose name is in `name` (as drivers, JAX and people spell it); None if it is not in the table."""
    words = _words(name)
    exact = SPELLINGS.get(" ".join(words))
    if exact:
        return DEVICES[exact]
    held = set(words)
    fitting = [known for known in SPELLINGS if set(_words(known)) <= held]
    variants = {"ti", "super", "laptop", "pro", "ada", "mobile", "max", "d", "a5000", "a4000"}
    fitting = [known for known in fitting if not (held - set(_words(known))) & variants]
    return DEVICES[SPELLINGS[max(fitting, key=lambda known: len(_words(known)))]] if fitting else None


def peak_flops(name: str) -> float | None:
    """Peak of the device of that name (as drivers and JAX spell it) in FLOP/s; None if it is not in the table."""
    device = lookup(name)
    return device.tflops * 1e12 if device else None


def local_gpu() -> str | None:
    """The name of this machine's first NVIDIA GPU, asked of the driver and not of JAX; None if there is none."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    question = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=3, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.splitlines()[0].strip() if answer.strip() else None


def _words(name: str) -> list[str]:
    """`NVIDIA GeForce RTX 4070 Ti`, `rtx4070ti` and `NVIDIA H100 80GB HBM3` as comparable words."""
    spaced = re.sub(r"(rtx|gtx)(?=[a-z]?\d)", r"\1 ", name.lower().replace("mobile", "laptop"))
    spaced = re.sub(r"(?<=\d)(?=ti|super|laptop|pcie|sxm|nvl)|(?<=ti)(?=super|laptop)", " ", spaced)
    spaced = re.sub(r"(?<=\d)\s*(gb|gib|g)\b", "gb", spaced)
    words = [word for word in re.findall(r"[a-z0-9]+", spaced) if word not in FILLER]
    bare = words and re.fullmatch(r"[345]0[5-9]0", words[0])  # `4070` alone
    return ["rtx", *words] if bare else words
