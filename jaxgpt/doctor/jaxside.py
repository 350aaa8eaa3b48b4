"""The probe's process, and what its answers mean."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxgpt.doctor.finding import GIB, Finding

COMMAND = (sys.executable, "-m", "jaxgpt.doctor.probe")
DOING = {
    "": "to start Python",
    "import": "to import JAX",
    "devices": "to look for devices",
    "kernel": "to compile a product",
    "attention": "to run cuDNN's attention",
    "dma_map": "to register memory",
}
HELP = {
    "import": "pip install --force-reinstall jax jaxlib",
    "devices": "nvidia-smi must answer; then JAX_PLATFORMS=cpu python -m jaxgpt.doctor shows whether the CPU works",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the probe said before it ended; `ending` says why it did not come to its end, or nothing."""

    facts: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    ending: str = ""


class Probe:
    """A probe that is under way while other things are looked at."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace")

    def answer(self, seconds: float) -> Answer:
        """Waits for at most that long; then the probe is ended, and what it had said by then is the answer."""
        try:
            said, complaint = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            said, _ = self._process.communicate()
            return read(said, f"no answer within {seconds:g} s")
        except BaseException:
            self.end()
            raise
        code = self._process.returncode
        return read(said, _ending(code, complaint) if code else "")

    def end(self) -> None:
        self._process.kill()


def read(said: str, ending: str) -> Answer:
    """The probe's lines as one answer; lines that are none of its own are passed over."""
    facts: dict[str, Any] = {}
    for line in said.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "stage" in found:
            facts |= found
    stage = str(facts.pop("stage", ""))
    return Answer(facts=facts, stage=stage, ending=ending)


def judge(answer: Answer, gpus: int, asked_for: str = "") -> list[Finding]:
    """Findings about JAX on a machine whose driver sees `gpus`; `asked_for` is JAX_PLATFORMS."""
    found = [check_devices(answer, gpus, asked_for)]
    if answer.facts.get("kernel"):
        found.append(Finding("compilation", "problem", answer.facts["kernel"], "see the first line of the error"))
    if answer.facts.get("platform") == "gpu":
        found += [check_attention(answer), check_dma_map(answer)]
    return found


def check_devices(answer: Answer, gpus: int, asked_for: str = "") -> Finding:
    """Whether JAX starts, and on what."""
    facts = answer.facts
    if "platform" not in facts:
        what = f"failed {DOING.get(answer.stage, answer.stage)}: {answer.ending or 'it said nothing'}"
        return Finding("JAX", "problem", what, HELP.get(answer.stage, "python -c 'import jax; print(jax.devices())'"))
    devices, version = facts["devices"], facts["jax"]
    text = f"{version} on {facts['platform']}: {len(devices)} × {devices[0]}"
    if facts["platform"] == "gpu":
        limit = facts.get("bytes_limit")
        return Finding("JAX", "ok", text + (f", {limit / GIB:.1f} GiB for JAX" if limit else ""))
    if gpus and "cpu" not in asked_for:
        what = f"{text}, although the driver sees {gpus} GPU{'s' if gpus > 1 else ''}"
        return Finding("JAX", "problem", what, "runs would train on the CPU without a word: mend the lines above")
    return Finding("JAX", "ok", text)


def check_attention(answer: Answer) -> Finding:
    """Whether cuDNN's attention runs."""
    why = answer.facts.get("cudnn", answer.ending or "not tried")
    if why:
        how = "--model.attention xla works meanwhile; pip install --upgrade nvidia-cudnn-cu12 (or cu13)"
        return Finding("cuDNN attention", "problem", why, how)
    return Finding("cuDNN attention", "ok", "runs, forward and backward")


def check_dma_map(answer: Answer) -> Finding:
    """Whether blocks go to the device straight from the loader's buffers."""
    why = answer.facts.get("dma_map", answer.ending or "not tried")
    if why:
        return Finding("dma_map", "warning", why, "nothing: blocks are copied once more, below 0.1 % of a step")
    return Finding("dma_map", "ok", "blocks are copied straight from the loader's buffers")


def _ending(code: int, complaint: str) -> str:
    if code < 0:
        return f"it was ended by signal {-code}"
    lines = [line for line in complaint.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"it ended with status {code}"
