"""What a device can do: dense bfloat16 peak with float32 accumulation, the denominator of every MFU shown.

Sources: NVIDIA's architecture whitepapers and data sheets (without sparsity). Consumer Ada and Ampere cards are
scaled from the RTX 4090 (165.2 TFLOP/s, 512 tensor cores at 2,520 MHz) and RTX 3090 (71.0, 328 at 1,695 MHz) by
tensor cores x boost clock, as llm.c's mfu.h does: an RTX 4070 has 184 at 2,475 MHz.
"""

import re

PEAK_TFLOPS = {
    "RTX 3080": 59.4,
    "RTX 3090": 71.0,
    "RTX A6000": 154.8,
    "RTX 4070": 58.3,
    "RTX 4070 Ti": 80.2,
    "RTX 4080": 97.5,
    "RTX 4090": 165.2,
    "L4": 121.0,
    "L40S": 362.0,
    "A10": 125.0,
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H200": 989.4,
}


def peak_flops(name: str) -> float | None:
    """Peak of the device of that name (as drivers and JAX spell it) in FLOP/s; None if it is not in the table."""
    words = set(_words(name))
    fitting = [known for known in PEAK_TFLOPS if set(_words(known)) <= words]
    if not fitting:
        return None
    return PEAK_TFLOPS[max(fitting, key=lambda known: len(_words(known)))] * 1e12


def _words(name: str) -> list[str]:
    """`NVIDIA GeForce RTX 4070 Ti`, `rtx4070ti` and `NVIDIA H100 80GB HBM3` as comparable words."""
    spaced = re.sub(r"(rtx|gtx)(?=\d)|(?<=\d)(?=ti\b|super\b)", r"\1 ", name.lower())
    return re.findall(r"[a-z0-9]+", spaced)
