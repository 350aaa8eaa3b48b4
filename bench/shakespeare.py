"""Training on one text by characters: the config `shakespeare_char` beside nanoGPT's own command for a CPU.

    python bench/shakespeare.py input.txt --nanogpt PATH [--nanogpt-python PYTHON] [--only jaxgpt] [--json FILE]
                                [--any.field VALUE …]

PATH is a checkout of nanoGPT; it is not changed. PYTHON is an interpreter with PyTorch (default: this one). nanoGPT
runs the command that its README gives for a CPU, but evaluates only at the beginning and at the end, there on 200
batches, so that the loss has little noise. Both split the text in the same way: its last tenth is for validation.

The sides run one after the other, each a process from its start to its last evaluation; jaxgpt also prepares the text
and compiles. Processor time is that of all threads: half of it is the time on two idle cores if both are used evenly.
"""

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

from jaxgpt.config import Config
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.files import write_config
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.runs import log as runlog

TRAIN_FRACTION = 0.9
README_OPTIONS = (
    "--device=cpu --compile=False --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
FINAL_LOSS = re.compile(r"step (\d+): train loss ([\d.]+), val loss ([\d.]+)")


def run_timed(command: Sequence[str], folder: Path) -> tuple[str, dict[str, float]]:
    """The output of `command`, run in `folder`, with its wall-clock and processor seconds; exits if it fails."""
    before = os.times()
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=child_environment(), check=False)
    seconds = time.perf_counter() - started
    after = os.times()
    if done.returncode:
        print((done.stdout + done.stderr)[-2000:].strip(), file=sys.stderr)
        raise SystemExit(done.returncode)
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, {"seconds": seconds, "processor_seconds": processor}


def child_environment() -> dict[str, str]:
    """The environment with an absolute path to jaxgpt, because the sides run in other folders."""
    return {**os.environ, "PYTHONPATH": str(common.ROOT)}


def run_jaxgpt(config: Config, text: Path, folder: Path) -> dict[str, Any]:
    """Trains `config` on `text`, prepared first, and reads the loss of its last evaluation."""
    data = {"path": str(folder / "data"), "sources": (str(text.resolve()),)}
    config = config.replace({"data": data, "run": {"dir": str(folder / "runs")}})
    file = write_config(config, folder / "config.py")
    _, times = run_timed([sys.executable, "-m", "jaxgpt.train", "--config", str(file)], folder)
    records = runlog.read_log(folder / "runs" / config.run.name / "log.jsonl")
    losses = [record["val_loss"] for record in records if record["kind"] == "eval"]
    return {"val_loss": losses[-1], "steps": config.run.steps, **times}


def run_nanogpt(checkout: Path, python: str, text: Path, folder: Path) -> dict[str, Any]:
    """Trains nanoGPT in a copy of its code and reads the loss of its last evaluation."""
    for name in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout / name, target)
    write_nanogpt_data(text.read_text(encoding="utf-8"), folder / "data" / "shakespeare_char")
    options = [*README_OPTIONS.split(), "--eval_interval=2000", "--eval_iters=200"]
    output, times = run_timed([python, "train.py", "config/train_shakespeare_char.py", *options], folder)
    step, _, val_loss = FINAL_LOSS.findall(output)[-1]
    return {"val_loss": float(val_loss), "steps": int(step), **times}


def write_nanogpt_data(text: str, folder: Path) -> None:
    """The files that nanoGPT's data/shakespeare_char/prepare.py writes."""
    characters = sorted(set(text))
    ids = {character: number for number, character in enumerate(characters)}
    end = int(TRAIN_FRACTION * len(text))
    folder.mkdir(parents=True)
    for name, part in (("train", text[:end]), ("val", text[end:])):
        np.array([ids[character] for character in part], np.uint16).tofile(folder / f"{name}.bin")
    meta = {"vocab_size": len(characters), "stoi": ids, "itos": dict(enumerate(characters))}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


def parse_arguments(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    parser = Parser("shakespeare", (__doc__ or "").split("\n\n")[0], "input.txt --nanogpt PATH [options]")
    parser.prog = "python bench/shakespeare.py"
    parser.add_argument("text", type=Path, metavar="TEXT", help="a text file in UTF-8")
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    parser.add_argument("--nanogpt-python", default=sys.executable, metavar="PYTHON", help="interpreter with PyTorch")
    parser.add_argument("--only", choices=["jaxgpt", "nanogpt"], help="run one side alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    config, options = parse_config(parser, ["--config", "shakespeare_char", *argv])
    if not options.text.is_file():
        raise DataError("D023", f"source '{options.text}' not found", "name a text file")
    if options.only != "jaxgpt" and not (options.nanogpt and (options.nanogpt / "train.py").is_file()):
        message = f"'{options.nanogpt}' is not a checkout of nanoGPT: it has no train.py"
        raise ConfigError("C060", message, "git clone karpathy/nanoGPT, then --nanogpt PATH")
    return config, options


def main(argv: Sequence[str]) -> None:
    config, options = parse_arguments(argv)
    common.check_output_path(options.json)
    sides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in [options.only] if options.only else ["jaxgpt", "nanogpt"]:
            (folder / side).mkdir()
            print(f"training {side}", file=sys.stderr)
            if side == "jaxgpt":
                sides[side] = run_jaxgpt(config, options.text, folder / side)
            else:
                sides[side] = run_nanogpt(options.nanogpt, options.nanogpt_python, options.text, folder / side)
    header = ("", "validation loss", "steps", "seconds", "processor seconds")
    print(common.table([(side, *figures.values()) for side, figures in sides.items()], header))
    common.write_json(options.json, {"config": config.to_dict(), "sides": sides})


if __name__ == "__main__":
    sys.exit(common.run(main))
