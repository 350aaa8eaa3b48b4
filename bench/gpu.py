"""What only a GPU can show, in one command: the quickstart, and 100 steps of the reference run on random tokens.

    python bench/gpu.py --out bench/results/gpu-NAME.json          on a machine with a CUDA GPU
    python bench/gpu.py --tiny                                     the same road in a minute on a CPU

Reports tokens/s, ms per step, MFU (the formula is `budget.flops.flops_per_token` over the device's peak), peak memory,
time to the first step cold and warm, whether attention runs through cuDNN (read off the compiled program), and
whether batches are bit-identical with and without `dma_map`. Raw figures go to the JSON file with device, versions and
commit. Random tokens, not zeros: matrix units are faster on zeros.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxgpt
from jaxgpt import _loader, data, dataset, optim, runlog, runtime, step
from jaxgpt.budget.devices import peak_flops
from jaxgpt.budget.flops import flops_per_token
from jaxgpt.checkpoint import resolved
from jaxgpt.config import Config
from jaxgpt.mesh import make_mesh
from jaxgpt.overrides import load
from jaxgpt.train import train

TINY = {
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64},
    "data": {"micro_batch": 2, "accum": 2},
}


def random_tokens(folder: Path, count: int) -> None:
    """GPT-2 ids in nanoGPT's layout, uniformly drawn."""
    generator = np.random.default_rng(0)
    for name in ("train.bin", "val.bin"):
        generator.integers(0, 50257, count, dtype=np.uint16).tofile(folder / name)


def reference(folder: Path, steps: int, changes: dict[str, dict[str, Any]]) -> Config:
    """The reference run, `steps` long, without evaluation on the way."""
    base = load("fineweb40m").replace(changes)
    run = {
        "steps": steps,
        "eval_every": steps,
        "save_every": steps,
        "eval_tokens": base.model.block_size,
        "name": "ref",
    }
    return base.replace(
        {
            "data": {"path": str(folder)},
            "optim": {"warmup_steps": 10},
            "run": run | {"dir": str(folder / "runs"), "log_every": 10},
        }
    )


def timed_run(config: Config) -> dict[str, Any]:
    """Trains through the real loop and reads the run's own log."""
    started = time.time()
    folder = train(config)
    records = runlog.read(folder.log_file)
    steps = [record for record in records if record["kind"] == "step"]
    seconds = [record["seconds"] for record in steps[5:]]
    median = float(np.median(seconds))
    rate = config.tokens_per_step / median
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    memory = device.memory_stats() or {}
    return {
        "steps": len(steps),
        "ms_per_step": 1e3 * median,
        "ms_p10_p90": [1e3 * float(np.quantile(seconds, q)) for q in (0.1, 0.9)],
        "tokens_per_second": rate,
        "mfu": peak and rate * flops_per_token(config.model) / peak,
        "peak_bytes_in_use": memory.get("peak_bytes_in_use"),
        "seconds_to_first_step": steps[0]["time"] - started,
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
    }


def compiled_step(config: Config) -> dict[str, Any]:
    """What the compiled update says of itself: its attention kernels and its memory."""
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    config = resolved(config, mesh)
    optimizer, graphdef = optim.make(config.optim, config.run.steps), step.graph(config.model)
    state = step.abstract_state(config, optimizer, mesh)
    shape = (config.data.accum, config.data.micro_batch, config.model.block_size + 1)
    tokens = jax.ShapeDtypeStruct(shape, np.uint16)
    program = step.compile_train_step(config, graphdef, optimizer, mesh).lower(state, tokens).compile()
    text, memory = program.as_text(), program.memory_analysis()
    return {
        "attention": config.model.attention,
        "cudnn_attention_calls": text.count("__cudnn$fmha"),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }


def batches_agree(config: Config) -> bool | None:
    """Whether the first batches are the same tokens with `dma_map` as those that the order contract asks for."""
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    split = dataset.open_folder(config.data.path).train
    ids = split.ids(0, split.tokens)
    width, batch = config.model.block_size, config.data.micro_batch * config.data.accum
    with data.train_batches(config, split, mesh, 0, 50257) as batches:
        direct = batches.pinned
        for number, block in zip(range(6), batches, strict=False):
            first = number * batch
            starts = _loader.sample_starts(split.tokens, width, config.data.order, config.data.seed, first, batch)
            wanted = np.stack([ids[start : start + width + 1] for start in starts])
            if not np.array_equal(np.asarray(block).reshape(wanted.shape), wanted):
                return False
    return True if direct else None


def about() -> dict[str, Any]:
    """Device, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "jaxgpt": jaxgpt.__version__,
        "commit": commit or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the raw figures")
    parser.add_argument("--steps", type=int, default=100, help="steps of the reference run (default: 100)")
    parser.add_argument("--tiny", action="store_true", help="a two-layer model: shows that the script runs anywhere")
    options = parser.parse_args()
    runtime.set_up()
    found: dict[str, Any] = {"about": about()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        random_tokens(folder, 200_000 if options.tiny else 100_000_000)
        config = reference(folder, options.steps, TINY if options.tiny else {})
        found["config"] = config.to_dict()
        found["step"] = compiled_step(config)
        found["batches_identical_with_dma_map"] = batches_agree(config)
        found["cold"] = timed_run(config)
        found["warm"] = timed_run(config.replace({"run": {"name": "warm"}}))
        quick = load("quickstart").replace({"data": {"path": f"{place}/q"}, "run": {"dir": f"{place}/runs"}})
        if options.tiny:
            quick = quick.replace({"run": {"steps": 60, "eval_every": 60, "eval_tokens": 4096}})
        found["quickstart"] = timed_run(quick)
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
