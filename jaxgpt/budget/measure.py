"""Measures step time and loss by short trainings in a process of their own: `--measure` and `--pilot`.

The planner itself never loads JAX.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from jaxgpt.budget import calibrate
from jaxgpt.budget.calibrate import RunRecord
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError
from jaxgpt.runs import training_process

MEASURED_STEPS = 24
MEASURED_ACCUM = 2
MIN_PILOT_STEPS = 20
GPT2_SIZE = 50257
MAX_RANDOM_TOKENS = 20_000_000


def measure(config: Config) -> RunRecord:
    """Trains some steps of `config` on random tokens and returns their seconds, for whole steps.

    The accumulation is cut to two micro-batches and scaled up. Raises `ConfigError` C045 if training fails.
    """
    accum = min(MEASURED_ACCUM, config.data.accum)
    with tempfile.TemporaryDirectory(prefix="jaxgpt-measure-") as temporary:
        folder = Path(temporary)
        _write_random_tokens(folder, config)
        run_folder = _train(_short_config(config, folder, accum), folder)
        record = calibrate.read_record(str(run_folder))
    factor = config.data.accum / accum
    return dataclasses.replace(
        record,
        source=f"{len(record.seconds)} steps of {accum} micro-batches",
        seconds=tuple(seconds * factor for seconds in record.seconds),
        evaluations=(),
        config=config,
    )


def pilot(config: Config, seconds: float) -> RunRecord:
    """Trains `config` on its own data for about `seconds`, with a full decay, and returns the record.

    The run stays in `runs/pilot-…`. Raises `ConfigError` C045 if training fails or the time is too short.
    """
    step_seconds = float(np.median(measure(config).seconds))
    steps = int(seconds / step_seconds)
    if steps < MIN_PILOT_STEPS:
        message = f"{seconds:g} s are {steps} steps of {step_seconds:.3g} s; a pilot needs {MIN_PILOT_STEPS}"
        help = f"--pilot {MIN_PILOT_STEPS * step_seconds / 60:.0f}m, or a smaller step"
        raise ConfigError("C045", message, help)
    name = f"pilot-{config.run.name}"[:90]
    number = next(n for n in range(1, 10_000) if not (Path(config.run.dir) / f"{name}-{n}").exists())
    run = {"name": f"{name}-{number}", "steps": steps, "eval_every": steps, "save_every": steps, "sample_prompt": ""}
    optim = {"warmup_steps": min(config.optim.warmup_steps, steps // 10), "decay_steps": None}
    with tempfile.TemporaryDirectory(prefix="jaxgpt-pilot-") as temporary:
        run_folder = _train(config.replace({"optim": optim, "run": run}), Path(temporary), echo=True)
        return calibrate.read_record(str(run_folder))


def _short_config(config: Config, folder: Path, accum: int) -> Config:
    steps = MEASURED_STEPS
    run = {"name": "measure", "dir": str(folder / "runs"), "steps": steps, "eval_every": steps, "save_every": steps}
    run |= {"eval_tokens": config.model.block_size, "sample_prompt": "", "trackers": (), "log_every": steps}
    return config.replace(
        {
            "data": {"path": str(folder), "accum": accum, "sources": ()},
            "optim": {"warmup_steps": 1, "decay_steps": None},
            "run": run,
        }
    )


def _write_random_tokens(folder: Path, config: Config) -> None:
    """Writes uniform ids in nanoGPT's layout. They are not zeros, on which matrix units are faster."""
    vocabulary = config.model.vocab_size
    count = max(1_000_000, 4 * config.tokens_per_step) + config.model.block_size + 1
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(GPT2_SIZE, vocabulary), min(count, MAX_RANDOM_TOKENS), dtype=np.uint16)
    ids.tofile(folder / "train.bin")
    ids[::-1].tofile(folder / "val.bin")  # other text: training refuses to train on its own validation split
    if vocabulary < GPT2_SIZE:  # without a tokenizer beside them such files count as GPT-2's
        model = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(vocabulary)}, "unk_token": "w0"}
        (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def _train(config: Config, folder: Path, *, echo: bool = False) -> Path:
    """Runs `jaxgpt.train` in a process of its own, with its progress on stderr if `echo`; returns the run's folder."""
    result = training_process.train_in_subprocess(config, folder, echo=echo)
    if result.returncode:
        message = f"training for the measurement failed: {result.stderr_tail}"
        raise ConfigError("C045", message, "fix that, or leave the measurement out")
    return Path(config.run.dir) / config.run.name
