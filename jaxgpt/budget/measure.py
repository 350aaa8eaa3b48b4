"""Measurements in a process of their own, so that the planner itself never loads JAX: `--measure` and `--pilot`."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from jaxgpt.budget import calibrate
from jaxgpt.budget.calibrate import Record
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError
from jaxgpt.runs import training_process

MEASURED_STEPS = 24
MEASURED_ACCUM = 2
LEAST_PILOT = 20
GPT2_SIZE = 50257


def measure(config: Config) -> Record:
    """Trains some steps of `config` on random tokens here and returns their record, seconds for whole steps.

    The accumulation is cut to two micro-batches and scaled up. Raises `ConfigError` C045 if training fails.
    """
    accum = min(MEASURED_ACCUM, config.data.accum)
    with tempfile.TemporaryDirectory(prefix="jaxgpt-measure-") as place:
        folder = Path(place)
        _random_tokens(folder, config)
        short = _short(config, folder, MEASURED_STEPS, accum)
        found = calibrate.read(str(_train(short, folder)))
    whole = config.data.accum / accum
    return dataclasses.replace(
        found,
        source=f"{len(found.seconds)} steps of {accum} micro-batches here",
        seconds=tuple(seconds * whole for seconds in found.seconds),
        evaluations=(),
        config=config,
    )


def pilot(config: Config, seconds: float) -> Record:
    """Trains `config` on its own data for about that long, its rate falling at the end, and returns the record.

    The run is kept in `runs/pilot-…`. Raises `ConfigError` C045 if training fails or no such run is long enough.
    """
    per_step = float(np.median(measure(config).seconds))
    steps = int(seconds / per_step)
    if steps < LEAST_PILOT:
        what = f"{seconds:g} s are {steps} steps of {per_step:.3g} s; a pilot needs {LEAST_PILOT}"
        raise ConfigError("C045", what, f"--pilot {LEAST_PILOT * per_step / 60:.0f}m, or a smaller step")
    name = f"pilot-{config.run.name}"[:90]
    number = next(n for n in range(1, 10_000) if not (Path(config.run.dir) / f"{name}-{n}").exists())
    optim = {"warmup_steps": min(config.optim.warmup_steps, steps // 10), "decay_steps": None}
    run = {"name": f"{name}-{number}", "steps": steps, "eval_every": steps, "save_every": steps, "sample_prompt": ""}
    with tempfile.TemporaryDirectory(prefix="jaxgpt-pilot-") as place:
        return calibrate.read(str(_train(config.replace({"optim": optim, "run": run}), Path(place), shown=True)))


def _short(config: Config, folder: Path, steps: int, accum: int) -> Config:
    run = {"name": "measure", "dir": str(folder / "runs"), "steps": steps, "eval_every": steps, "save_every": steps}
    run |= {"eval_tokens": config.model.block_size, "sample_prompt": "", "tensorboard": False, "log_every": steps}
    return config.replace(
        {
            "data": {"path": str(folder), "accum": accum, "sources": ()},
            "optim": {"warmup_steps": 1, "decay_steps": None},
            "run": run,
        }
    )


def _random_tokens(folder: Path, config: Config) -> None:
    """Ids in nanoGPT's layout, drawn evenly: matrix units are faster on zeros."""
    size = max(1_000_000, 4 * config.tokens_per_step) + config.model.block_size + 1
    most = min(GPT2_SIZE, config.model.vocab_size)
    ids = np.random.default_rng(0).integers(0, most, min(size, 20_000_000), dtype=np.uint16)
    ids.tofile(folder / "train.bin")
    ids[::-1].tofile(folder / "val.bin")  # other text: training on its own validation is refused
    if config.model.vocab_size < GPT2_SIZE:  # files without a manifest count as GPT-2's unless a tokenizer lies there
        model = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(config.model.vocab_size)}, "unk_token": "w0"}
        (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def _train(config: Config, folder: Path, *, shown: bool = False) -> Path:
    """Runs `jaxgpt.train` in a process of its own, its lines on our stderr if `shown`, and returns the run's folder."""
    ended = training_process.train_in_subprocess(config, folder, echo=shown)
    if ended.returncode:
        what = f"training for the measurement failed: {ended.stderr_tail}"
        raise ConfigError("C045", what, "mend that, or leave it out")
    return Path(config.run.dir) / config.run.name
