"""Recipes compared at a small scale: steps and processor time to the final loss of nanoGPT's recipe.

    python bench/recipe.py PARQUET [MORE …] --out FOLDER [--stage tune] [--workers 2] [--steps 1000] [--json FILE]

A model of 4 layers, width 128 and 256 tokens of context, with its own vocabulary of 4,096 tokens, on 2,048 tokens per
step. `--stage tune` trains every trial of `TUNING` on the first file; the default stage trains every recipe of
`RECIPES` with three seeds on the other files, which tuning did not see. The validation text is that of the stage's own
files. Each trial is an ordinary run in FOLDER, on one core: the same command continues an interrupted comparison and
reads finished trials.

`steps to the loss` is the length of a run, interpolated between the lengths of a recipe, whose final loss is that of
nanoGPT's recipe; a schedule that decays must be rerun for each length. The errors are standard errors over seeds.
"""

import argparse
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import common
import numpy as np

from jaxgpt.config import Config, Data, Model, Run
from jaxgpt.config.files import write_config
from jaxgpt.runs import log as runlog

BLOCK = 256
BASE = Config(
    model=Model(n_layer=4, n_head=4, n_embd=128, block_size=BLOCK, vocab_size=4096, loss_chunk=1024),
    data=Data(micro_batch=8, accum=1),
    run=Run(eval_tokens=262_144, log_every=50, tensorboard=False, keep_best=0, keep_latest=1),
)
Changes = Mapping[str, Mapping[str, Any]]
Plan = Sequence[tuple[float, Mapping[str, Changes]]]


@dataclass(frozen=True)
class Trial:
    """A recipe at one length and seed."""

    recipe: str
    steps: int
    seed: int
    changes: Changes

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.steps}-{self.seed}".replace(" ", "-")

    def config(self, data: Path, runs: Path) -> Config:
        changes = {section: dict(values) for section, values in self.changes.items()}
        changes.setdefault("optim", {}).setdefault("warmup_steps", max(self.steps // 20, 1))
        every = max(self.steps // 4, 1)
        run = {"name": self.name, "dir": str(runs), "steps": self.steps, "seed": self.seed}
        changes["run"] = {**run, "eval_every": every, "save_every": every}
        changes["data"] = {**changes.get("data", {}), "path": str(data), "seed": self.seed}
        return BASE.replace(changes)


@dataclass(frozen=True)
class Result:
    """The end of a trial: validation loss in nats per token, and milliseconds of one core per step."""

    trial: Trial
    loss: float
    milliseconds: float


def run_trials(trials: Sequence[Trial], data: Path, runs: Path, workers: int) -> list[Result]:
    """Runs the trials, each on a core of its own, those that are not finished yet."""
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[:workers]:
        cores.put(core)

    def run(trial: Trial) -> Result:
        core = cores.get()
        try:
            return run_trial(trial, data, runs, core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, trials))


def run_trial(trial: Trial, data: Path, runs: Path, core: int) -> Result:
    folder = runs / trial.name
    if not is_finished(folder):
        runs.mkdir(parents=True, exist_ok=True)
        file = runs / f"{trial.name}.py"
        if not file.exists():
            write_config(trial.config(data, runs), file)
        command = ["taskset", "-c", str(core), sys.executable, "-m", "jaxgpt.train", "--config", str(file), "--yes"]
        flags = "--xla_cpu_multi_thread_eigen=false"
        environment = {**os.environ, "PYTHONPATH": str(common.ROOT), "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            print(f"{trial.name}: {(done.stdout + done.stderr)[-1000:].strip()}", file=sys.stderr)
            return Result(trial, float("nan"), float("nan"))
    result = read_result(trial, folder)
    print(f"{trial.name}: {result.loss:.4f}, {result.milliseconds:.0f} ms per step", file=sys.stderr)
    return result


def is_finished(folder: Path) -> bool:
    path = folder / "log.jsonl"
    return path.exists() and any(
        record["kind"] == "stop" and record.get("reason") == "done" for record in runlog.read_log(path)
    )


def read_result(trial: Trial, folder: Path) -> Result:
    records = list(runlog.read_log(folder / "log.jsonl"))
    losses = [record["val_loss"] for record in records if record["kind"] == "eval"]
    times = [1000 * record["seconds"] for record in records if record["kind"] == "step"]
    return Result(trial, losses[-1], float(np.median(times)))


def merge(*parts: Changes) -> Changes:
    """One mapping of the sections of all `parts`; the last one wins."""
    merged: dict[str, dict[str, Any]] = defaultdict(dict)
    for part in parts:
        for section, values in part.items():
            merged[section].update(values)
    return dict(merged)


def optim(**values: Any) -> Changes:
    return {"optim": values}


def cosine(rate: float) -> Changes:
    """nanoGPT's schedule: to a tenth of the peak."""
    return optim(learning_rate=rate, min_lr=rate / 10, schedule="cosine")


def to_zero(rate: float, optimizer: str, **values: Any) -> Changes:
    return optim(learning_rate=rate, min_lr=0.0, schedule="linear", optimizer=optimizer, **values)


MODERN: Changes = {"model": {"architecture": "modern", "n_inner": 344}}  # as many parameters as GPT-2's block

NANOGPT = "nanoGPT"  # the recipe whose final loss the others are to reach
# Length relative to nanoGPT's recipe, and recipes.
TUNING: tuple[tuple[float, dict[str, Changes]], ...] = (
    (1.0, {f"{NANOGPT} {rate:g}": cosine(rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)}),
    (1.0, {f"AdamW {rate:g}": merge(MODERN, to_zero(rate, "adamw")) for rate in (4e-3, 8e-3, 16e-3)}),
    (0.45, {f"Muon {rate:g}": merge(MODERN, to_zero(rate, "muon")) for rate in (4e-3, 8e-3, 16e-3, 32e-3)}),
    (0.45, {f"NorMuon {rate:g}": merge(MODERN, to_zero(rate, "normuon")) for rate in (8e-3, 16e-3)}),
)


def make_trials(plan: Plan, steps: int, seeds: Sequence[int]) -> list[Trial]:
    return [
        Trial(recipe, round(length * steps), seed, changes)
        for length, recipes in plan
        for recipe, changes in recipes.items()
        for seed in seeds
    ]


def prepare(files: Sequence[Path], folder: Path) -> None:
    """Prepares the data once, before several trials need it."""
    if (folder / "manifest.json").exists():
        return
    command = [sys.executable, "-m", "jaxgpt.prepare", *map(str, files), "--out", str(folder)]
    options = ["--train-tokenizer", "4096", "--val-tokens", "300000"]
    subprocess.run([*command, *options], check=True, env={**os.environ, "PYTHONPATH": str(common.ROOT)})


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="PARQUET")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="data and runs")
    parser.add_argument("--stage", choices=["tune", "report"], default="report")
    parser.add_argument("--steps", type=common.positive_int, default=600, help="of nanoGPT's recipe")
    parser.add_argument("--workers", type=common.positive_int, default=2, help="trials at a time")
    parser.add_argument("--only", default="", help="recipes whose name begins with this")
    options = parser.parse_args(argv)
    folder = options.out / options.stage
    files = options.files[:1] if options.stage == "tune" else options.files[1:]
    prepare(files, folder / "data")
    trials = make_trials(TUNING, options.steps, [1])
    trials = [trial for trial in trials if trial.recipe.startswith(options.only)]
    results = run_trials(trials, folder / "data", folder, options.workers)
    for result in sorted(results, key=lambda result: result.loss):
        print(f"{result.trial.name:40} {result.loss:.4f} {result.milliseconds:.0f}")


if __name__ == "__main__":
    sys.exit(common.run(main))
