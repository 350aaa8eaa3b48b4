"""Vocabularies of several sizes, compared at equal training FLOPs in bits per byte of the same held-out documents.

    taskset -c 1 python bench/vocabulary.py PARQUET [MORE …] --out FOLDER [--model small wide] [--seeds 1 2 3]
                                            [--sizes 4096 …] [--trillions 5.2] [--json FILE]

Byte-level BPE vocabularies are trained on the text with `prepare --train-tokenizer`; 50,304 is GPT-2's vocabulary,
padded as every config pads it. Each trial trains `bench/recipe.py`'s recipe (Qwen3's block, Muon, linear decay to zero)
on 2,048 tokens per step for as many steps as `--trillions` 10^12 training FLOPs allow
(`jaxgpt.config.model_size.flops_per_token`). A context of 256 tokens and a step of 2,048 tokens have fewer bytes with a
small vocabulary. The learning rate is the same for all sizes.

The validation documents are those that GPT-2's preparation chose: a preparation takes the documents with the lowest
hashes up to a number of tokens, so that the number of tokens that these documents have in another vocabulary chooses
the same ones. Documents and bytes are compared, and all of them are evaluated. Each trial is an ordinary run in FOLDER:
the same command continues an interrupted comparison and reads finished trials.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import recipe
from recipe import Trial

from jaxgpt.config import Config, model_size
from jaxgpt.data import dataset, manifest, tokenizer
from jaxgpt.data.manifest import SplitEntry
from jaxgpt.runs import log as runlog

GPT2_ROWS = 50_304
GPT2_VAL_TOKENS = 65_536
STEP_TOKENS = 2_048
HEADER_BYTES = 1_024  # of a shard, before its uint16 tokens
WIDE: recipe.Changes = {"model": {"architecture": "modern", "n_layer": 6, "n_head": 6, "n_embd": 192, "n_inner": 512}}
MODELS: dict[str, recipe.Changes] = {
    "small": recipe.TUNED_MODERN,
    "wide": recipe.merge(WIDE, recipe.to_zero(6.7e-3, "muon")),  # the small one's rate times (192 / 128)^-0.42
}


@dataclass(frozen=True)
class VocabularyTrial(Trial):
    """A trial that evaluates all of its validation split, and as much of the training split."""

    val_tokens: int

    def config(self, data: Path, runs: Path) -> Config:
        return super().config(data, runs).replace({"run": {"eval_tokens": self.val_tokens}})


def prepare_vocabularies(files: Sequence[Path], sizes: Sequence[int], folder: Path) -> dict[int, Path]:
    """A folder of tokens for each size, all with the validation documents of GPT-2's; exits if they differ."""
    gpt2 = folder / "data" / str(GPT2_ROWS)
    run_prepare(files, gpt2, "--val-tokens", str(GPT2_VAL_TOKENS))
    folders = {}
    for size in sizes:
        folders[size] = gpt2 if size == GPT2_ROWS else prepare_like(gpt2, files, size, folder / "data")
        ours, theirs = val_split(folders[size]), val_split(gpt2)
        if (ours.documents, ours.bytes) != (theirs.documents, theirs.bytes):
            raise SystemExit(f"{folders[size]} and {gpt2} have other validation documents: remove both")
    return folders


def prepare_like(gpt2: Path, files: Sequence[Path], size: int, folder: Path) -> Path:
    """Trains a vocabulary and prepares `files` with it and the validation documents of `gpt2`."""
    trained = folder / f"{size}-tokenizer"
    run_prepare(files, trained, "--train-tokenizer", str(size), "--val-tokens", str(GPT2_VAL_TOKENS))
    name = str(trained / "tokenizer.json")
    documents = tokenizer.load(name).encode_batch(read_documents(gpt2))
    wanted = sum(len(document) + 1 for document in documents)  # an end-of-text token follows each
    run_prepare(files, folder / str(size), "--tokenizer", name, "--val-tokens", str(wanted))
    return folder / str(size)


def read_documents(folder: Path) -> list[str]:
    """The texts of the validation documents of a folder."""
    data = dataset.open_folder(folder)
    shards = [np.fromfile(folder / shard.name, "<u2", offset=HEADER_BYTES) for shard in val_split(folder).shards]
    tokens = np.concatenate(shards)
    ends = np.flatnonzero(tokens == data.tokenizer.eot)
    return [data.tokenizer.decode(part[part != data.tokenizer.eot]) for part in np.split(tokens, ends + 1)[:-1]]


def run_prepare(files: Sequence[Path], folder: Path, *options: str) -> None:
    if not (folder / "manifest.json").exists():
        command = [sys.executable, "-m", "jaxgpt.prepare", *map(str, files), "--out", str(folder), *options]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(common.ROOT)})


def val_split(folder: Path) -> SplitEntry:
    return manifest.read_manifest(folder).splits["val"]


def make_trial(name: str, size: int, seed: int, flops: float, data: Path) -> VocabularyTrial:
    """A trial of as many steps as the FLOPs allow."""
    changes = recipe.merge(MODELS[name], {"model": {"vocab_size": size}})
    model = recipe.BASE.replace(changes).model
    steps = round(flops / (STEP_TOKENS * model_size.flops_per_token(model)))
    return VocabularyTrial(f"{name}-{size}", steps, seed, changes, val_split(data).tokens)


def run_trials(trials: Sequence[VocabularyTrial], folders: dict[int, Path], runs: Path) -> list[dict[str, Any]]:
    """Runs the trials one after the other; their facts and results."""
    results = []
    for trial in trials:
        data = folders[trial.changes["model"]["vocab_size"]]
        started = time.perf_counter()
        recipe.run_trials([trial], data, runs, workers=1)
        results.append(describe(trial, data, runs))
        print(f"{trial.name}: {results[-1]} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return results


def describe(trial: VocabularyTrial, data: Path, runs: Path) -> dict[str, Any]:
    """A trial's size, length and final validation loss."""
    records = [record for record in runlog.read_log(runs / trial.name / "log.jsonl") if record["kind"] == "eval"]
    split = val_split(data)
    model = trial.config(data, runs).model
    per_token = model_size.flops_per_token(model)
    return {
        "model": trial.recipe.split("-")[0],
        "non_embedding_parameters": model_size.non_embedding_parameters(model),
        "width": model.n_embd,
        "vocabulary": model.vocab_size,
        "seed": trial.seed,
        "steps": trial.steps,
        "tokens": trial.steps * STEP_TOKENS,
        "flops": trial.steps * STEP_TOKENS * per_token,
        "head_flops": 6 * model.vocab_size * model.n_embd / per_token,
        "bytes_per_token": split.bytes / split.tokens,
        "val_documents": split.documents,
        "val_bytes": split.bytes,
        "val_loss": records[-1]["val_loss"],
        "val_bits_per_byte": records[-1]["val_bits_per_byte"],
    }


def summarize(results: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """A row for each model and vocabulary, with the difference from GPT-2's vocabulary seed by seed."""
    groups: dict[tuple[str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        groups[result["model"], result["vocabulary"]][result["seed"]] = result
    rows = []
    for (name, size), by_seed in groups.items():
        gpt2 = groups.get((name, GPT2_ROWS), {})
        first = next(iter(by_seed.values()))
        bits = {seed: result["val_bits_per_byte"] for seed, result in by_seed.items()}
        changes = [bits[seed] - gpt2[seed]["val_bits_per_byte"] for seed in bits if seed in gpt2]
        megabytes = first["tokens"] * first["bytes_per_token"] / 1e6
        facts = [name, size, first["bytes_per_token"], first["head_flops"], first["steps"], megabytes, len(bits)]
        rows.append([*facts, recipe.format_mean(list(bits.values())), recipe.format_mean(changes) if changes else None])
    return rows


HEADER = ("model", "vocabulary", "bytes/token", "head's FLOPs", "steps", "MB", "seeds", "bits per byte", "change")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="PARQUET")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="data and runs")
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["small"])
    parser.add_argument("--sizes", type=common.positive_int, nargs="+", default=[4096, 8192, 16384, 32768, GPT2_ROWS])
    parser.add_argument("--seeds", type=common.positive_int, nargs="+", default=[1], metavar="SEED")
    parser.add_argument("--trillions", type=float, default=5.2, help="10^12 FLOPs of a trial")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args(argv)
    common.check_output_path(options.json)
    folders = prepare_vocabularies(options.files, options.sizes, options.out)
    flops = options.trillions * 1e12
    trials = [
        make_trial(name, size, seed, flops, folders[size])
        for seed in options.seeds
        for name in options.model
        for size in options.sizes
    ]
    results = run_trials(trials, folders, options.out / f"{options.trillions:g}")
    print(common.table(summarize(results), HEADER))
    common.write_json(options.json, {"environment": common.describe_environment(), "trials": results})


if __name__ == "__main__":
    sys.exit(common.run(main))
