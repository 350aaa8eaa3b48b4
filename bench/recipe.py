"""Recipes compared at a small scale: steps and processor time to the final loss of nanoGPT's recipe.

    python bench/recipe.py PARQUET [MORE …] --out FOLDER [--stage tune] [--workers 2] [--steps 1000] [--json FILE]

A model of 4 layers, width 128 and 256 tokens of context, with its own vocabulary of 4,096 tokens, on 2,048 tokens per
step. `--stage tune` trains every trial of `TUNING` on the first file; the default stage trains every recipe of
`RECIPES` with three seeds on the other files, which tuning did not see. The validation text is that of the stage's own
files. Each trial is an ordinary run in FOLDER, on one core: the same command continues an interrupted comparison and
reads finished trials.

The last columns are fractions of the nanoGPT recipe's steps and processor time: the length whose final loss is that of
nanoGPT's recipe, interpolated between runs of several lengths, as a schedule that decays must be run for each. Errors
are standard errors over seeds. Milliseconds are processor time of interleaved steps, on all cores.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import common
import jax
import numpy as np
from sides import Side, Variant

from jaxgpt.config import Config, Data, Model, Run
from jaxgpt.config.files import write_config
from jaxgpt.runs import log as runlog
from jaxgpt.training.mesh import batch_sharding

BLOCK = 256
BASE = Config(
    model=Model(n_layer=4, n_head=4, n_embd=128, block_size=BLOCK, vocab_size=4096, loss_chunk=1024),
    data=Data(micro_batch=8, accum=1),
    run=Run(eval_tokens=262_144, log_every=50, trackers=(), keep_best=0, keep_latest=1),
)
Changes = Mapping[str, Mapping[str, Any]]
Plan = Sequence[tuple[Sequence[float], Mapping[str, Changes]]]


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
        run = {"name": self.name, "dir": str(runs), "steps": self.steps, "seed": self.seed}
        changes["run"] = {**run, "eval_every": self.steps, "save_every": 150}
        changes["data"] = {**changes.get("data", {}), "path": str(data), "seed": self.seed}
        return BASE.replace(changes)


class Result(NamedTuple):
    """The final validation loss of a trial, in nats per token; NaN if it failed."""

    trial: Trial
    loss: float


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
    if runlog.read_stop_reason(folder / "log.jsonl") != runlog.DONE:
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
            return Result(trial, float("nan"))
    losses = [record["val_loss"] for record in runlog.read_log(folder / "log.jsonl") if record["kind"] == "eval"]
    print(f"{trial.name}: {losses[-1]:.4f}", file=sys.stderr)
    return Result(trial, losses[-1])


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

NANOGPT, ADAMW, MUON = "nanoGPT", "tuned AdamW", "our recipe"
OWN_RATE = "our recipe, AdamW with its own rate"
MUON_RATE, ADAMW_RATES = 8e-3, (4e-3, 16e-3, 32e-3, 64e-3)
TUNED_MODERN = merge(MODERN, to_zero(MUON_RATE, "muon"))
# Lengths relative to nanoGPT's recipe, and recipes.
TUNING: Plan = (
    ((1.0,), {f"{NANOGPT} {rate:g}": cosine(rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)}),
    ((0.45, 1.0), {f"{ADAMW} {rate:g}": merge(MODERN, to_zero(rate, "adamw")) for rate in (2e-3, 4e-3, 8e-3, 16e-3)}),
    ((0.45,), {f"{MUON} {rate:g}": merge(MODERN, to_zero(rate, "muon")) for rate in (4e-3, 8e-3, 16e-3)}),
    ((0.45,), {f"NorMuon {rate:g}": merge(MODERN, to_zero(rate, "normuon")) for rate in (4e-3, 8e-3, 16e-3)}),
    ((0.45,), {f"{OWN_RATE} {rate:g}": merge(TUNED_MODERN, optim(adamw_lr=rate)) for rate in ADAMW_RATES}),
)
REPORT: Plan = (
    ((1.0,), {NANOGPT: cosine(2e-3)}),
    ((0.3, 0.45, 0.8), {ADAMW: merge(MODERN, to_zero(4e-3, "adamw"))}),
    ((0.2, 0.3, 0.45), {MUON: TUNED_MODERN}),
    ((0.15, 0.3), {OWN_RATE: merge(TUNED_MODERN, optim(adamw_lr=32e-3))}),
    (
        (0.45,),
        {
            "NorMuon": merge(MODERN, to_zero(MUON_RATE, "normuon")),
            "GPT-2 block": to_zero(MUON_RATE, "muon"),
            "cosine to a tenth": merge(MODERN, cosine(MUON_RATE), optim(optimizer="muon")),
        },
    ),
)


def make_trials(plan: Plan, steps: int, seeds: Sequence[int]) -> list[Trial]:
    return [
        Trial(recipe, round(length * steps), seed, changes)
        for lengths, recipes in plan
        for recipe, changes in recipes.items()
        for length in lengths
        for seed in seeds
    ]


def summarize(results: Sequence[Result], processor_ms: Mapping[str, float]) -> list[list[str]]:
    """A row for each recipe and length: loss with its standard error, steps and time to nanoGPT's loss."""
    losses: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        losses[result.trial.recipe][result.trial.steps].append(result.loss)
    full, goals = next(iter(losses[NANOGPT].items()))
    rows = []
    for recipe, by_steps in losses.items():
        reached = [steps_to_loss(by_steps, seed, goal) / full for seed, goal in enumerate(goals)]
        relative = processor_ms[recipe] / processor_ms[NANOGPT]
        for steps, values in by_steps.items():
            cells = [format_mean(reached), format_mean([relative * fraction for fraction in reached])]
            rows.append([recipe, str(steps), format_mean(values), f"{processor_ms[recipe]:.0f}", *cells])
    return rows


def steps_to_loss(by_steps: Mapping[int, Sequence[float]], seed: int, goal: float) -> float:
    """The length whose final loss is `goal`: linear in its logarithm between two lengths; NaN outside them."""
    points = sorted((values[seed], steps) for steps, values in by_steps.items())
    losses, lengths = (np.array(column) for column in zip(*points))
    if not losses[0] <= goal <= losses[-1]:
        return float("nan")
    return float(np.exp(np.interp(goal, losses, np.log(lengths))))


def format_mean(values: Sequence[float]) -> str:
    """Mean and standard error; a dash where a value is missing."""
    if np.isnan(values).any():
        return "–"
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.4f} ± {error:.4f}"


def measure_steps(trials: Sequence[Trial], data: Path, rounds: int = 9, steps: int = 4) -> dict[str, float]:
    """Milliseconds of processor time per step of each recipe: the median of interleaved rounds."""
    sides, times = {}, defaultdict(list)
    for trial in {trial.recipe: trial for trial in trials}.values():
        side = Side(Variant(trial.recipe, trial.config(data, data)), {})
        side.compile()
        shape = (1, side.config.data.micro_batch, BLOCK + 1)
        tokens = np.random.default_rng(0).integers(0, BASE.model.vocab_size, shape, dtype=np.uint16)
        blocks = [jax.device_put(tokens, batch_sharding(side.mesh))] * steps
        side.run(blocks)
        sides[trial.recipe] = partial(side.run, blocks)
    for _ in range(rounds):
        for recipe, run in sides.items():
            started = time.process_time()
            run()
            times[recipe].append(1000 * (time.process_time() - started) / steps)
    return {recipe: float(np.median(values)) for recipe, values in times.items()}


def prepare(files: Sequence[Path], folder: Path) -> None:
    """Prepares the data once, before several trials need it."""
    if (folder / "manifest.json").exists():
        return
    command = [sys.executable, "-m", "jaxgpt.prepare", *map(str, files), "--out", str(folder)]
    options = ["--train-tokenizer", str(BASE.model.vocab_size), "--val-tokens", "300000"]
    subprocess.run([*command, *options], check=True, env={**os.environ, "PYTHONPATH": str(common.ROOT)})


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="PARQUET")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="data and runs")
    parser.add_argument("--stage", choices=["tune", "report"], default="report")
    parser.add_argument("--steps", type=common.positive_int, default=600, help="of nanoGPT's recipe")
    parser.add_argument("--seeds", type=common.positive_int, default=3, help="of --stage report")
    parser.add_argument("--workers", type=common.positive_int, default=2, help="trials at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args(argv)
    common.check_output_path(options.json)
    tune = options.stage == "tune"
    folder = options.out / options.stage
    prepare(options.files[:1] if tune else options.files[1:], folder / "data")
    trials = make_trials(TUNING if tune else REPORT, options.steps, [1] if tune else range(1, options.seeds + 1))
    results = run_trials(trials, folder / "data", folder, options.workers)
    if tune:
        rows = [[result.trial.recipe, str(result.trial.steps), f"{result.loss:.4f}"] for result in results]
        print(common.table(rows, ("recipe and rate", "steps", "validation loss")))
        return
    rows = summarize(results, measure_steps(trials, folder / "data"))
    header = ("recipe", "steps", "validation loss", "ms per step", "steps to nanoGPT's loss", "time to it")
    print(common.table(rows, header))
    figures = [[result.trial.recipe, result.trial.steps, result.trial.seed, result.loss] for result in results]
    environment = common.describe_environment()
    common.write_json(options.json, {"environment": environment, "trials": figures, "table": [header, *rows]})


if __name__ == "__main__":
    sys.exit(common.run(main))
