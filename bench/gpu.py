"""Everything that only a GPU can show, in one command.

    python bench/gpu.py --out bench/results/gpu-NAME.json [--nanogpt PATH]     on a machine with a CUDA GPU
    python bench/gpu.py --tiny                                                 the same road on a CPU

The parts, each in a process of its own so that none holds the device while another runs: the doctor; `transfer.py`
(batches with and without dma_map, slots poisoned on release); `start.py` (the reference run through `train`, cold and
warm); `step.py` (configs × micro-batches, and its A/B sides); `attention.py` (kernels beside each other); `step.py
--fit` (largest micro-batch); `sample.py`; `vs_nanogpt.py` if a checkout of nanoGPT is named. What each says is printed
as it comes; raw figures of all go to the JSON file, with device, versions and commit. A part that fails is noted there,
the others go on, and the exit status is 1. --only names the parts to run.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
from cuda_options import SWITCHES

HERE = Path(__file__).parent
SIDES = (
    "model.attention=xla",
    "model.remat=attention",
    "model.remat=blocks",
    "model.loss_chunk=8192",
)
FULL_SIDES = (
    "model.n_head=6",  # heads of 64; the tiny model is not wide enough
    "xla_gpu_enable_command_buffer=+WHILE",
    *(",".join(f"{name}={value}" for name, value in switch.options.items()) for switch in SWITCHES.values()),
)
MEMORIES = ("12", "16", "24")


class Part(NamedTuple):
    """A name, a command without `--out`, and the option that takes the JSON file; none where it prints JSON."""

    name: str
    command: list[str]
    out: str = "--out"


def parts(options: argparse.Namespace) -> list[Part]:
    """What is to run, in order: what is quick and tells most first."""
    tiny = ["--tiny"] if options.tiny else []
    step = [str(HERE / "step.py"), *tiny]
    sets = [word for side in SIDES + (() if options.tiny else FULL_SIDES) for word in ("--set", side)]
    configs = "fineweb40m" if options.tiny else "fineweb40m,fineweb40m_modern,gpt2_124m"
    few = ["--memory", "1", "--most", "2"] if options.tiny else ["--memory", *MEMORIES, "0"]
    sampled = [str(HERE / "sample.py"), *tiny]
    found = [
        Part("doctor", ["-m", "jaxgpt.doctor", "--json"], ""),
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
    return [part for part in found if not options.only or part.name in options.only]


def run(part: Part) -> tuple[Any, str]:
    """The part's JSON, if it wrote any, and why it failed, or nothing."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "out.json"
        done = common.child([*part.command, *([part.out, str(file)] if part.out else [])])
        said = file.read_text() if file.exists() else "" if part.out else done.stdout
    if part.out:
        print(done.stdout, flush=True)
    last = [line for line in done.stderr.splitlines() if line.strip()][-5:]
    error = (" ".join(last)[-1000:] or f"status {done.returncode}") if done.returncode else ""
    return (json.loads(said) if said else None), error


def gathered(found: dict[str, Any], name: str, answer: Any) -> None:
    """Puts a part's answer where readers look: the reference run's config and paces stand at the top."""
    if name == "start" and answer:
        found.update(answer)
    elif name == "step" and answer:
        found["about"] = answer["about"]
    found.setdefault("parts", {})[name] = answer


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT to run beside it")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="two-layer models: shows that the script runs anywhere")
    options = parser.parse_args(argv)
    found: dict[str, Any] = {"command": ["bench/gpu.py", *argv], "commit": common.commit(), "failed": {}}
    for part in parts(options):
        print(f"== {part.name}: {' '.join(part.command)}", flush=True)
        answer, error = run(part)
        gathered(found, part.name, answer)
        if error:
            found["failed"][part.name] = error
            print(f"failed: {error}", flush=True)
        common.write(options.out, found)  # after each part: what is measured is kept, whatever comes
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
