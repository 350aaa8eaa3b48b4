"""Everything that only a GPU can show, in one command.

    python bench/gpu.py --out bench/results/gpu-NAME.json [--nanogpt PATH]     on a machine with a CUDA GPU
    python bench/gpu.py --tiny                                                 the same road on a CPU

The parts, each in a process of its own so that none holds the device while another runs: the doctor; `numerics` (tests
of the update on this device against the definition); `transfer.py` (batches with and without dma_map, buffers poisoned
on release); `start.py` (the reference run through `train`, cold and warm); `step.py` (configs × micro-batches, and its
A/B sides); `attention.py` (kernels beside each other); `step.py --fit` (largest micro-batch); `sample.py`;
`vs_nanogpt.py` if a checkout of nanoGPT is named. Raw figures of all go to the JSON file after each part, with device,
versions and commit. A part that fails is noted there, the others go on, and the exit status is 1. --only names the
parts to run.

If the file is there already, from the same commit and device, the parts that it lacks are run and added: so goes on
what was interrupted.
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
    """What is to run, in order: what is quick and tells most first."""
    tiny = ["--tiny"] if options.tiny else []
    step = [str(HERE / "step.py"), *tiny]
    sets = [word for side in SIDES + (() if options.tiny else FULL_SIDES) for word in ("--set", side)]
    configs = "fineweb40m" if options.tiny else "fineweb40m,fineweb40m_modern,gpt2_124m"
    few = ["--memory", "1", "--most", "2"] if options.tiny else ["--memory", *MEMORIES, "0"]
    sampled = [str(HERE / "sample.py"), *tiny]
    wanted_device = {} if options.tiny else {"JAXGPT_TEST_DEVICE": "gpu"}
    found = [
        Part("doctor", ["-m", "jaxgpt.doctor", "--json"], ""),
        Part(
            "numerics",
            ["-m", "pytest", "-q", str(HERE.parent / "tests" / "test_training_device.py")],
            "",
            wanted_device,
        ),
        Part("transfer", [str(HERE / "transfer.py"), *tiny]),
        Part("start", [str(HERE / "start.py"), *tiny]),
        Part("step", [*step, "--configs", configs]),
        Part("attention", [str(HERE / "attention.py"), *tiny]),
        Part("sides", [*step, "--micro-batch", "2" if options.tiny else "16", *sets]),
        Part("sample", sampled),
        Part("sample_reference", [*sampled, "--config", "fineweb40m", "--prompt", "256", "--tokens", "256"]),
        Part("fit", [*step, "--fit", "--configs", configs.replace(",fineweb40m_modern", ""), *few]),
    ]
    if options.nanogpt:
        beside = [str(HERE / "vs_nanogpt.py"), "--nanogpt", str(options.nanogpt)]
        if not options.tiny:
            beside += ["--config", "fineweb40m"]
            found.append(Part("vs_nanogpt_cudnn", [*beside, "--sdpa", "cudnn"], "--json"))
        found.append(Part("vs_nanogpt", beside, "--json"))
    return found


def run(part: Part) -> tuple[Any, str]:
    """What the part found, and why it failed, or nothing."""
    if not part.out:
        done = common.run_child(part.command, JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", ""), **part.environment)
        print(done.stdout, end="", flush=True)
        said = [line for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        error = " ".join(said[-5:])[-1000:] or f"status {done.returncode}"
        return _parsed(done.stdout), error if done.returncode else ""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "out.json"
        status, last = common.run_child_and_echo([*part.command, part.out, str(file)])
        found = _parsed(file.read_text()) if file.exists() else None
    return found, (last or f"status {status}") if status else ""


def _parsed(said: str) -> Any:
    """JSON as it is, of other words the last line."""
    try:
        return json.loads(said)
    except ValueError:
        return said.strip().rpartition("\n")[2]


def gathered(found: dict[str, Any], name: str, answer: Any) -> None:
    """Puts a part's answer where readers look: the reference run's config and paces stand at the top."""
    if name == "start" and answer:
        found.update(answer)
    found.setdefault("parts", {})[name] = answer


def begun(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """What the file holds already, or the head of a new one; raises `ConfigError` C041 where they do not fit."""
    new = not options.out or not options.out.exists()
    if new:
        common.check_output_path(options.out)
    head: dict[str, Any] = {"command": ["bench/gpu.py", *argv], "about": common.describe_environment_in_child()}
    head |= {"date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), "parts": {}, "failed": {}}
    if new:
        return head
    known = _parsed(options.out.read_text(encoding="utf-8"))
    if not isinstance(known, dict) or not known.keys() >= head.keys() or _kind(known) != _kind(head):
        what = f"'{options.out}' exists, and is no result of this commit, device and kind"
        raise ConfigError("C041", what, "choose another name: nothing of yours is overwritten")
    return dict(known)


def _kind(found: dict[str, Any]) -> tuple[Any, ...]:
    """What results must share to stand in one file; files that differ from their commit share nothing."""
    commit = found["about"]["commit"]
    known = commit if commit and not commit.endswith("+") else object()
    return known, found["about"]["device"], "--tiny" in found["command"]


def wanted(options: argparse.Namespace, found: dict[str, Any]) -> list[Part]:
    """The parts that are asked for and not there yet; raises `ConfigError` C017 for a name that none has."""
    listed = parts(options)
    names = [part.name for part in listed]
    for name in options.only or []:
        if name not in names:
            raise ConfigError("C017", f"--only {name}: there is no such part", f"one of: {', '.join(names)}")
    missing = [part for part in listed if part.name not in found["parts"] or part.name in found["failed"]]
    return [part for part in missing if not options.only or part.name in options.only]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to run beside it")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="small models: shows that the script runs anywhere")
    options = parser.parse_args(argv)
    if options.nanogpt:
        check(
            Order("nanogpt", load_config("fineweb40m").to_dict(), str(options.nanogpt))
        )  # rather now than after an hour
    found = begun(options, argv)
    for part in wanted(options, found):
        print(f"== {part.name}: {' '.join(part.command)}", flush=True)
        answer, error = run(part)
        gathered(found, part.name, answer)
        found["failed"].pop(part.name, None)
        if error:
            found["failed"][part.name] = error
            print(f"failed: {error}", flush=True)
        common.write_json(options.out, found)  # after each part: what is measured is kept, whatever comes
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(common.run(main))
