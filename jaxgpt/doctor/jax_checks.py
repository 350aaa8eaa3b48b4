"""Runs the probe of JAX as a process and evaluates its answers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxgpt.config.attention import AMPERE
from jaxgpt.doctor.finding import GIB, Finding, Status
from jaxgpt.errors import cuda_install
from jaxgpt.utils.formatting import pluralize

COMMAND = (sys.executable, "-m", "jaxgpt.doctor.probe")
STAGES = {
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
CUDNN_HELP = "--model.attention xla works without it; pip install --upgrade nvidia-cudnn-cu12 (or cu13)"
DMA_MAP_HELP = "nothing: batches are copied once more, below 0.1 % of a step"
# Name, fact of the probe, status if it fails, text if it works, help if it fails.
GPU_FEATURES: tuple[tuple[str, str, Status, str, str], ...] = (
    ("cuDNN attention", "cudnn", "problem", "runs, forward and backward", CUDNN_HELP),
    ("dma_map", "dma_map", "warning", "batches are copied directly from the loader's buffers", DMA_MAP_HELP),
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The facts that the probe printed; `ending` is why it did not complete, empty if it did.

    `complaint` is the most informative line of its stderr, also of a complete probe: only there does JAX say why it
    does not use a GPU.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    ending: str = ""
    complaint: str = ""
    timed_out: bool = False


class Probe:
    """A probe that runs while the other checks do."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        pipe = subprocess.PIPE
        env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the GPU memory is checked at the same time
        self._process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace", env=env)

    def answer(self, seconds: float) -> Answer:
        """Waits for at most `seconds`; then ends the probe and returns what it has printed so far."""
        try:
            stdout, stderr = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            stdout, stderr = self._process.communicate()
            return replace(parse_answer(stdout, stderr), ending=f"no answer within {seconds:g} s", timed_out=True)
        except BaseException:
            self.end()
            raise
        answer = parse_answer(stdout, stderr)
        code = self._process.returncode
        failure = f"it was ended by signal {-code}" if code < 0 else answer.complaint or f"it ended with status {code}"
        return replace(answer, ending=failure if code else "")

    def end(self) -> None:
        self._process.kill()


def parse_answer(stdout: str, stderr: str = "") -> Answer:
    """Merges the probe's lines into one answer; ignores other lines."""
    facts: dict[str, Any] = {}
    for line in stdout.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "stage" in values:
            facts |= values
    stage = str(facts.pop("stage", ""))
    return Answer(facts=facts, stage=stage, complaint=_most_informative_line(stderr))


def evaluate(answer: Answer, gpus: int, platforms: str = "", driver_ok: bool = True) -> list[Finding]:
    """Findings about JAX on a machine whose driver sees `gpus` GPUs.

    `platforms` is JAX_PLATFORMS; `driver_ok` says whether all checks of the driver passed.
    """
    findings = [check_devices(answer, gpus, platforms, driver_ok)]
    if answer.facts.get("kernel"):
        findings.append(Finding("compilation", "problem", answer.facts["kernel"], "see the first line of the error"))
    if answer.facts.get("platform") == "gpu":
        findings += [_check_feature(answer, *feature) for feature in GPU_FEATURES]
    return findings


def check_devices(answer: Answer, gpus: int, platforms: str = "", driver_ok: bool = True) -> Finding:
    """Whether JAX starts, and on which devices."""
    facts = answer.facts
    if "platform" not in facts:
        message = f"failed {STAGES.get(answer.stage, answer.stage)}: {_why(answer, platforms)}"
        return Finding("JAX", "problem", message, _help(answer, platforms))
    devices, version = facts["devices"], facts["jax"]
    text = f"{version} on {facts['platform']}: {len(devices)} × {devices[0]}"
    if facts["platform"] == "gpu":
        limit = facts.get("bytes_limit")
        return Finding("JAX", "ok", text + (f", {limit / GIB:.1f} GiB for JAX" if limit else ""))
    if gpus and "cpu" not in platforms:
        message = f"{text}, although the driver sees {pluralize(gpus, 'GPU')}"
        message += f"; JAX printed: {answer.complaint}" if answer.complaint else ""
        fix = cuda_install("--force-reinstall 'jax[cuda13]'") if driver_ok else "fix the problems above"
        return Finding("JAX", "problem", message, f"runs would silently train on the CPU: {fix}")
    return Finding("JAX", "ok", text)


def _check_feature(answer: Answer, name: str, fact: str, failure: Status, success: str, help: str) -> Finding:
    """Whether the probe could use a feature of the GPU; `fact` is empty if it could, else the reason why not."""
    capability = answer.facts.get("capability")
    if fact == "cudnn" and capability and float(capability) < AMPERE:
        return Finding(name, "ok", f"not on GPUs of compute capability {capability}: runs use XLA's attention")
    reason = answer.facts.get(fact, answer.ending or "not tried")
    return Finding(name, failure, reason, help) if reason else Finding(name, "ok", success)


def _why(answer: Answer, platforms: str) -> str:
    """Why the probe found no device, with an explanation if the exception has no message."""
    if not answer.ending.replace(".", "_").isidentifier():
        return answer.ending or "it printed nothing"
    if answer.stage == "devices" and platforms:
        return f"JAX finds no device of JAX_PLATFORMS={platforms}"
    return f"{answer.ending}, without a reason"


def _help(answer: Answer, platforms: str) -> str:
    if answer.timed_out and answer.stage in ("", "import"):
        return SLOW
    if answer.stage == "devices" and platforms and not answer.timed_out:
        return "unset JAX_PLATFORMS, and run the doctor again"
    return HELP.get(answer.stage, "python -c 'import jax; print(jax.devices())'")


def _most_informative_line(stderr: str) -> str:
    """The last line that is an exception with a message, else the last line, else an empty string."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception): \S", line)]
    return (exceptions or lines or [""])[-1][:300]
