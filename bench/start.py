"""A whole run: `train` in a child process, started without and with a compilation cache.

    python bench/start.py [--config fineweb40m] [--steps 100] [--out bench/results/start-NAME.json]

Random tokens. `first_step_s` goes from the start of the process to its first logged step, `warm` with the cache that
`cold` filled in a new folder. ms per step are those in the run's log, from the sixth step on.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

from jaxgpt.budget.devices import peak_flops
from jaxgpt.config import Config
from jaxgpt.config.files import load_config, write_config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.errors import ConfigError
from jaxgpt.runs import log as runlog

TINY: dict[str, Any] = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64},
    "data": {"micro_batch": 2, "accum": 2},
}
NOT_STEADY = 5  # steps at the start of a run that are left out of its step time


def make_config(name: str, folder: Path, steps: int, changes: dict[str, Any]) -> Config:
    """The config with `steps` steps on one device, evaluated only at the end."""
    base = load_config(name).replace(changes)
    run = {"steps": steps, "eval_every": steps, "save_every": steps, "eval_tokens": base.model.block_size}
    run |= {"dir": str(folder / "runs"), "log_every": 10, "sample_prompt": "", "trackers": ()}
    data, one = {"path": str(folder), "sources": ()}, {"data_parallel": 1}
    return base.replace({"data": data, "optim": {"warmup_steps": 1}, "run": run, "mesh": one})


def time_run(config: Config, name: str, folder: Path, cache: Path) -> dict[str, Any]:
    """Trains in a child process and reads the log of the run."""
    config = config.replace({"run": {"name": name}})
    file = write_config(config, folder / f"{name}.py")
    started = time.time()
    command = ["-m", "jaxgpt.train", "--config", str(file), "--yes"]
    done = common.run_child(command, JAX_COMPILATION_CACHE_DIR=str(cache))
    if done.returncode:
        print(done.stderr[-2000:].strip(), file=sys.stderr)
        raise SystemExit(done.returncode)
    records = runlog.read_log(folder / "runs" / name / "log.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    device = next(record["device"]["kind"] for record in records if record["kind"] == "start")
    seconds = [record["seconds"] for record in steps[NOT_STEADY:]]
    median, peak = float(np.median(seconds)), peak_flops(device)
    rate = config.tokens_per_step / median
    return {
        "steps": len(steps),
        "first_step_s": steps[0]["time"] - started,
        "ms_per_step": 1e3 * median,
        "ms_p10_p90": [1e3 * float(np.quantile(seconds, q)) for q in (0.1, 0.9)],
        "tokens_per_second": rate,
        "mfu": peak and rate * flops_per_token(config.model) / peak,
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
    }


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fineweb40m", help="a config (default: fineweb40m)")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run (default: 100)")
    parser.add_argument("--tiny", action="store_true", help="a two-layer model, to check that the script runs")
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    options = parser.parse_args(argv)
    if options.steps <= NOT_STEADY:
        raise ConfigError(
            "C009", f"--steps = {options.steps}; must be above {NOT_STEADY}, the steps that are not timed"
        )
    common.check_output_path(options.out)
    steps = min(options.steps, 8) if options.tiny else options.steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.random_tokens(folder, 200_000 if options.tiny else 100_000_000)
        config = make_config(options.config, folder, steps, TINY if options.tiny else {})
        results: dict[str, Any] = {"config": config.to_dict()}
        for cache in ("cold", "warm"):
            one = results[cache] = time_run(config, cache, folder, folder / "cache")
            print(f"{cache}: first step after {one['first_step_s']:.1f} s, {one['ms_per_step']:.4g} ms per step")
    common.write_json(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(common.run(main))
