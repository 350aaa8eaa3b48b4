"""All benchmarks and tests that need a GPU, in one command.

    python bench/gpu.py --out bench/results/gpu-NAME.json [--nanogpt PATH]     on a machine with a CUDA GPU
    python bench/gpu.py --tiny                                                 the same code on a CPU

The parts run in child processes, so that each has the device for itself: the doctor; `numerics` (the train step on this
device against the oracle); `transfer.py` (batches with and without dma_map, buffers poisoned on release); `start.py`
(the reference run by `train`, cold and warm); `step.py` (configs × micro-batches, and its A/B sides); `attention.py`
(attention kernels compared); `step.py --fit` (largest micro-batch); `sample.py`; `vs_nanogpt.py` if a checkout of
nanoGPT is named. The JSON file is written after each part, with device, versions and commit. If a part fails, the file
records it, the others continue, and the exit status is 1. --only names the parts to run.

If the file exists and has the same commit and device, the missing parts are run and added, so that an interrupted run
can be resumed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
from cuda_options import SWITCHES
from rivals import Order, check

from jaxgpt.config.files import load_config
from jaxgpt.errors import ConfigError

HERE = Path(__file__).parent
SIDES = (
    "model.attention=xla",
    "model.remat=attention",
    "model.remat=blocks",
    "model.loss_chunk=8192",
)
FULL_SIDES = (
    "model.n_head=6",  # heads of 64; the tiny model is not wide enough
    *(",".join(f"{name}={value}" for name, value in switch.options.items()) for switch in SWITCHES.values()),
)
MEMORIES = ("12", "16", "24")


class Part(NamedTuple):
    """A name, a command without `--out`, and the option that takes the JSON file, if the command has one."""

    name: str
    command: list[str]
    out: str = "--out"
    environment: Mapping[str, str] = {}


def parts(options: argparse.Namespace) -> list[Part]:
    """The parts in order: quick and informative ones first."""
    tiny = ["--tiny"] if options.tiny else []
    step = [str(HERE / "step.py"), *tiny]
    sets = [word for side in SIDES + (() if options.tiny else FULL_SIDES) for word in ("--set", side)]
    configs = "fineweb40m" if options.tiny else "fineweb40m,fineweb40m_modern,gpt2_124m"
    memory_options = ["--memory", "1", "--most", "2"] if options.tiny else ["--memory", *MEMORIES, "0"]
    sample = [str(HERE / "sample.py"), *tiny]
    required_device = {} if options.tiny else {"JAXGPT_TEST_DEVICE": "gpu"}
    listed = [
        Part("doctor", ["-m", "jaxgpt.doctor", "--json"], ""),
        Part(
            "numerics",
            ["-m", "pytest", "-q", str(HERE.parent / "tests" / "test_training_device.py")],
            "",
            required_device,
        ),
        Part("transfer", [str(HERE / "transfer.py"), *tiny]),
        Part("start", [str(HERE / "start.py"), *tiny]),
        Part("step", [*step, "--configs", configs]),
        Part("attention", [str(HERE / "attention.py"), *tiny]),
        Part("sides", [*step, "--micro-batch", "2" if options.tiny else "16", *sets]),
        Part("sample", sample),
        Part("sample_reference", [*sample, "--config", "fineweb40m", "--prompt", "256", "--tokens", "256"]),
        Part("fit", [*step, "--fit", "--configs", configs.replace(",fineweb40m_modern", ""), *memory_options]),
    ]
    if options.nanogpt:
        command = [str(HERE / "vs_nanogpt.py"), "--nanogpt", str(options.nanogpt)]
        if not options.tiny:
            command += ["--config", "fineweb40m"]
            listed.append(Part("vs_nanogpt_cudnn", [*command, "--sdpa", "cudnn"], "--json"))
        listed.append(Part("vs_nanogpt", command, "--json"))
    return listed


def run(part: Part) -> tuple[Any, str]:
    """The result of a part, and its error, or an empty string."""
    if not part.out:
        done = common.run_child(part.command, JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", ""), **part.environment)
        print(done.stdout, end="", flush=True)
        lines = [line for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        error = " ".join(lines[-5:])[-1000:] or f"status {done.returncode}"
        return _parse_output(done.stdout), error if done.returncode else ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "out.json"
        status, last = common.run_child_and_echo([*part.command, part.out, str(file)])
        result = _parse_output(file.read_text()) if file.exists() else None
    return result, (last or f"status {status}") if status else ""


def _parse_output(output: str) -> Any:
    """Output as JSON, or its last line if it is not JSON."""
    try:
        return json.loads(output)
    except ValueError:
        return output.strip().rpartition("\n")[2]


def add_result(results: dict[str, Any], name: str, answer: Any) -> None:
    """Adds the result of a part; config and speed of the reference run go to the top level, where readers look."""
    if name == "start" and answer:
        results.update(answer)
    results.setdefault("parts", {})[name] = answer


def open_results(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The content of the output file, existing or new; raises `ConfigError` C041 if the existing does not match."""
    new = not options.out or not options.out.exists()
    if new:
        common.check_output_path(options.out)
    head: dict[str, Any] = {"command": ["bench/gpu.py", *argv], "about": common.describe_environment_in_child()}
    head |= {"date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), "parts": {}, "failed": {}}
    if new:
        return head
    existing = _parse_output(options.out.read_text(encoding="utf-8"))
    if not isinstance(existing, dict) or not existing.keys() >= head.keys() or _kind(existing) != _kind(head):
        message = f"'{options.out}' exists, and is not a result of this commit, device and size"
        raise ConfigError("C041", message, common.OTHER_NAME)
    return dict(existing)


def _kind(results: dict[str, Any]) -> tuple[Any, ...]:
    """What results in one file must have in common; a checkout with modified files matches nothing."""
    commit = results["about"]["commit"]
    clean_commit = commit if commit and not commit.endswith("+") else object()
    return clean_commit, results["about"]["device"], "--tiny" in results["command"]


def missing_parts(options: argparse.Namespace, results: dict[str, Any]) -> list[Part]:
    """The requested parts that have no result yet; raises `ConfigError` C017 for an unknown name."""
    listed = parts(options)
    names = [part.name for part in listed]
    for name in options.only or []:
        if name not in names:
            raise ConfigError("C017", f"--only {name}: there is no such part", f"one of: {', '.join(names)}")
    missing = [part for part in listed if part.name not in results["parts"] or part.name in results["failed"]]
    return [part for part in missing if not options.only or part.name in options.only]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to compare with")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run only these parts")
    parser.add_argument("--tiny", action="store_true", help="small models, to check that the script runs")
    options = parser.parse_args(argv)
    if options.nanogpt:
        check(
            Order("nanogpt", load_config("fineweb40m").to_dict(), str(options.nanogpt))
        )  # fails now, not after an hour
    results = open_results(options, argv)
    for part in missing_parts(options, results):
        print(f"== {part.name}: {' '.join(part.command)}", flush=True)
        answer, error = run(part)
        add_result(results, part.name, answer)
        results["failed"].pop(part.name, None)
        if error:
            results["failed"][part.name] = error
            print(f"failed: {error}", flush=True)
        common.write_json(options.out, results)  # after each part, so that nothing measured is lost
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(common.run(main))
