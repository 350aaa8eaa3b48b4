"""Trains small runs with one planted cause each, and their clean baselines, as test data for the diagnosis.

    python bench/planted.py [--only NAME ...] [--work DIR] [--out DIR]

Each run is `python -m jaxgpt.train` in a process of its own on the CPU, a minute or less on 2 cores, on the source code
of Python's standard library (prepared under DIR, temporary by default, with a vocabulary of 1,024). Of each run, its
`log.jsonl` with figures cut to 5 digits, `config.json` and `data.json` go to `--out` (`tests/planted`), nothing else.
The validation text is the same for all; only the cause and its requirements differ from the baseline. Measured losses
(2 x86 cores, Python 3.11's library; nats per token, unigram entropy 5.84):

    run              arguments differs                                          final val  baseline
    clean            cosine from 6e-3 to 0, warmup 35, 0.03 epochs                  4.824
    lr-10x           peak 6e-2                                                      5.497  4.824
    two-layers       2 layers of width 16                                           5.055  4.824
    tiny-corpus      7,168 unique tokens, 50 epochs                              8.150  4.824 (5.444 at step 98)
    shuffled-labels  from step 175 on, tokens in random order                       5.860  4.824 (5.183 at step 168)
    no-decay         constant 1.2e-2                                                4.710  4.657
    no-decay-baseline    1.2e-2, decaying to 0 over the last 70 steps                    4.657
    no-warmup        6 layers of width 128, 3e-3, beta2 0.999, no warmup            5.772  4.971
    no-warmup-baseline   the same with 30 steps of warmup, 150 steps as well            4.971

`no-decay` has a baseline of its own: after 350 steps the loss still falls so fast that a constant 6e-3 beats the
cosine of `clean` (4.664). So has `no-warmup`: smaller models do not mind its absence (docs/experiments.md).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jaxgpt import _loader
from jaxgpt.config import Config, Data, Mesh, Model, Optim, Run
from jaxgpt.config.files import write_config
from jaxgpt.data import dataset

STEPS, EPOCHS, DIGITS = 350, 50, 5
DERIVED = ("mfu", "tokens_per_second")  # fields of a step that follow from others
OUT = Path(__file__).parents[1] / "tests" / "planted"
Tokens = npt.NDArray[np.uint16]

CLEAN = Config(
    model=Model(n_layer=3, n_head=4, n_embd=64, block_size=64, vocab_size=1024, loss_chunk=1024),
    data=Data(micro_batch=16, accum=1),
    optim=Optim(learning_rate=6e-3, min_lr=0.0, warmup_steps=35, beta2=0.99),
    mesh=Mesh(device="cpu"),
    run=Run(steps=STEPS, eval_every=14, eval_tokens=16_384, save_every=STEPS, log_every=50, trackers=()),
)


class Planted(NamedTuple):
    """A cause: the changes of the clean config, and the folder of tokens it reads ("base" unless made for it)."""

    changes: Mapping[str, dict[str, Any]] = MappingProxyType({})
    tokens: str = "base"


# Wide and deep enough, and with moments slow enough, for a first update at the peak rate to do lasting harm.
DEEPER: dict[str, dict[str, Any]] = {
    "model": {"n_layer": 6, "n_embd": 128},
    "run": {"steps": 150, "eval_every": 10, "save_every": 150},
}
STEEP = {"learning_rate": 3e-3, "beta2": 0.999}

RUNS = {
    "clean": Planted(),
    "lr-10x": Planted({"optim": {"learning_rate": 6e-2}}),
    "no-decay": Planted({"optim": {"learning_rate": 1.2e-2, "schedule": "constant"}}),
    "no-decay-baseline": Planted({"optim": {"learning_rate": 1.2e-2, "schedule": "wsd", "decay_steps": 70}}),
    "tiny-corpus": Planted(tokens="tiny"),
    "no-warmup": Planted(DEEPER | {"optim": STEEP | {"warmup_steps": 0}}),
    "no-warmup-baseline": Planted(DEEPER | {"optim": STEEP | {"warmup_steps": 30}}),
    "two-layers": Planted({"model": {"n_layer": 2, "n_head": 2, "n_embd": 16}}),
    "shuffled-labels": Planted({"data": {"order": "sequential"}}, tokens="shuffled"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Small runs with a planted cause each, and a clean baseline.")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help="these runs only")
    parser.add_argument("--work", type=Path, help="where tokens and runs are kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the records (default: {OUT})")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxgpt-planted-") as temporary:
        work = options.work or Path(temporary)
        for name in options.only:
            run = train(name, RUNS[name], work)
            keep(run, options.out / name)
            print(f"{name}: {summary(run)}", flush=True)


def train(name: str, planted: Planted, work: Path) -> Path:
    """Trains it from the beginning and returns the run's folder."""
    folder = work / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    paths = {"data": {"path": str(tokens(planted.tokens, work))}, "run": {"name": name, "dir": str(work / "runs")}}
    config = CLEAN.replace(dict(planted.changes)).replace(paths)
    file = write_config(config, work / f"{name}.py")
    command = [sys.executable, "-m", "jaxgpt.train", "--config", str(file), "--yes"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def tokens(name: str, work: Path) -> Path:
    """The folder of tokens of that name, made if it is not there."""
    base, folder = work / "base", work / name
    if not base.exists():
        arguments = ["python-stdlib", "--train-tokenizer", str(CLEAN.model.vocab_size), "--val-tokens", "1_000_000"]
        subprocess.run([sys.executable, "-m", "jaxgpt.prepare", *arguments, "--out", str(base)], check=True)
    if not folder.exists():
        makers: dict[str, Callable[[Tokens], Tokens]] = {"tiny": tiny, "shuffled": shuffled}
        data = dataset.open_folder(base)
        folder.mkdir()
        write(folder / "train_000000.bin", makers[name](data.train.ids(0, data.train.tokens).astype("<u2")))
        shutil.copy(base / "val_000000.bin", folder)
        shutil.copy(base / "tokenizer.json", folder)
    return folder


def tiny(train: Tokens) -> Tokens:
    """A fiftieth of the tokens that the run reads, in windows from all over the corpus."""
    block = CLEAN.model.block_size
    return windows(train, CLEAN.tokens_per_step * STEPS // EPOCHS // block)


def shuffled(train: Tokens) -> Tokens:
    """The tokens that the run reads in order: text, and from the middle on text with its tokens shuffled."""
    text = windows(train, CLEAN.tokens_per_step * STEPS // CLEAN.model.block_size + 1)
    half = CLEAN.tokens_per_step * STEPS // 2
    text[half:] = np.random.default_rng(1).permutation(text[half:])
    return text


def windows(train: Tokens, count: int) -> Tokens:
    """`count` distinct random blocks of `train`, concatenated."""
    block = CLEAN.model.block_size
    blocks = train[: len(train) // block * block].reshape(-1, block)
    chosen = np.random.default_rng(0).permutation(len(blocks))[:count]
    return blocks[chosen].ravel()


def write(path: Path, ids: Tokens) -> None:
    with _loader.ShardWriter(path) as writer:
        writer.append(ids)
        writer.finish()


def keep(run: Path, out: Path) -> None:
    """Copies the files that a diagnosis reads; numbers are rounded to five digits."""
    out.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (out / "log.jsonl").write_text("".join(json.dumps(compact(r)) + "\n" for r in records))
    config = compact(json.loads((run / "config.json").read_text()))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copy(run / "data.json", out)


def compact(value: Any, name: str = "") -> Any:
    """`value` with short floats, without the machine's folders and without `DERIVED`."""
    if isinstance(value, dict):
        return {key: compact(item, key) for key, item in value.items() if key not in DERIVED}
    if isinstance(value, list):
        return [compact(item) for item in value]
    if isinstance(value, float):
        return round(value, 2) if name == "time" else float(f"{value:.{DIGITS}g}")
    if isinstance(value, str) and name in ("path", "dir"):
        return Path(value).name
    return value


def summary(run: Path) -> str:
    """The run's last evaluation and its best one."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = [record for record in records if record["kind"] == "eval"]
    last, best = scores[-1], min(scores, key=lambda record: float(record["val_loss"]))
    seconds = records[-1]["time"] - records[0]["time"]
    val, train = float(last["val_loss"]), float(last["train_loss"])
    return f"val {val:.4f}, train {train:.4f}; best val {best['val_loss']:.4f} at {best['step']}; {seconds:.0f} s"


if __name__ == "__main__":
    main()
