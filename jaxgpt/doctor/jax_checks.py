"""The probe's process, and what its answers mean."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
SLOW = "a slow disk or a busy machine may need longer: --seconds 600"
REINSTALL = "pip install --force-reinstall 'jax[cuda13]', or cuda12 for drivers below 580"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the probe said before it ended; `ending` says why it did not come to its end, or nothing.

    `complaint` is the most telling line of its stderr, also where it came to its end: JAX says only there why it leaves
    a GPU aside.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    ending: str = ""
    complaint: str = ""
    timed_out: bool = False


class Probe:
    """A probe that is under way while other things are looked at."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        pipe = subprocess.PIPE
        small = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else it would be found to hold the memory
        self._process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=small)

    def answer(self, seconds: float) -> Answer:
        """Waits for at most that long; then the probe is ended, and what it had said by then is the answer."""
        try:
            said, stderr = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            said, stderr = self._process.communicate()
            return replace(read(said, stderr), ending=f"no answer within {seconds:g} s", timed_out=True)
        except BaseException:
            self.end()
            raise
        answer = read(said, stderr)
        return replace(answer, ending=_ending(self._process.returncode, answer.complaint))

    def end(self) -> None:
        self._process.kill()


def read(said: str, stderr: str = "") -> Answer:
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
    return Answer(facts=facts, stage=stage, complaint=_telling(stderr))


def judge(answer: Answer, gpus: int, asked_for: str = "", troubled: bool = False) -> list[Finding]:
    """Findings about JAX on a machine whose driver sees `gpus`.

    `asked_for` is JAX_PLATFORMS; `troubled` says that what was looked at before was not all well.
    """
    found = [check_devices(answer, gpus, asked_for, troubled)]
    if answer.facts.get("kernel"):
        found.append(Finding("compilation", "problem", answer.facts["kernel"], "see the first line of the error"))
    if answer.facts.get("platform") == "gpu":
        found += [check_attention(answer), check_dma_map(answer)]
    return found


def check_devices(answer: Answer, gpus: int, asked_for: str = "", troubled: bool = False) -> Finding:
    """Whether JAX starts, and on what."""
    facts = answer.facts
    if "platform" not in facts:
        what = f"failed {DOING.get(answer.stage, answer.stage)}: {_why(answer, asked_for)}"
        return Finding("JAX", "problem", what, _remedy(answer, asked_for))
    devices, version = facts["devices"], facts["jax"]
    text = f"{version} on {facts['platform']}: {len(devices)} × {devices[0]}"
    if facts["platform"] == "gpu":
        limit = facts.get("bytes_limit")
        return Finding("JAX", "ok", text + (f", {limit / GIB:.1f} GiB for JAX" if limit else ""))
    if gpus and "cpu" not in asked_for:
        what = f"{text}, although the driver sees {gpus} GPU{'s' if gpus > 1 else ''}"
        what += f"; JAX said: {answer.complaint}" if answer.complaint else ""
        how = "mend the lines above" if troubled else REINSTALL
        return Finding("JAX", "problem", what, f"runs would train on the CPU without a word: {how}")
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


def _why(answer: Answer, asked_for: str) -> str:
    """Why the probe did not get as far as a device; the name of an exception alone tells nobody anything."""
    if not answer.ending.replace(".", "_").isidentifier():
        return answer.ending or "it said nothing"
    if answer.stage == "devices" and asked_for:
        return f"JAX finds no device of JAX_PLATFORMS={asked_for}"
    return f"{answer.ending}, without a reason"


def _remedy(answer: Answer, asked_for: str) -> str:
    if answer.timed_out and answer.stage in ("", "import"):
        return SLOW
    if answer.stage == "devices" and asked_for and not answer.timed_out:
        return "unset JAX_PLATFORMS, and ask the doctor again"
    return HELP.get(answer.stage, "python -c 'import jax; print(jax.devices())'")


def _ending(code: int, complaint: str) -> str:
    if code < 0:
        return f"it was ended by signal {-code}"
    return (complaint or f"it ended with status {code}") if code else ""


def _telling(stderr: str) -> str:
    """The last line that is an exception with its words, else the last one at all; nothing if there is none."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception): \S", line)]
    return (exceptions or lines or [""])[-1][:300]
