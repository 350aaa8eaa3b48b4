"""One changed bit anywhere in a run's folder or in a dataset is detected, or costs one line of the log."""

import random
from pathlib import Path

from helpers.corpora import some_texts
from helpers.flips import dataset_targets, flip_bits, run_targets
from helpers.training import run_folder

from jaxgpt.prepare.pipeline import prepare

FLIPS = 200


def test_every_flip_is_detected(finished: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(some_texts()))
    prepare([str(tmp_path / "text.txt")], prepared, tokenizer="char", val_tokens=1000)
    targets = run_targets(run_folder(finished)) + dataset_targets(prepared) + dataset_targets(finished / "data")
    flips = flip_bits(targets, random.Random(5), FLIPS + len(targets))
    assert (flips.silent, flips.crashes) == ([], [])
    assert flips.total == FLIPS + len(targets)
    kinds = {"config.json", "data.json", "tokenizer.json", "log.jsonl", "checkpoint file", "checkpoint manifest.json"}
    assert set(flips.by_kind) == kinds | {"dataset shard", "dataset manifest.json", "dataset tokenizer.json"}


def test_flips_of_a_log_and_a_dataset_manifest_alone(finished: Path, duplicates_prepared: Path) -> None:
    """The files whose damage is detected by more than one checksum of the whole file."""
    for targets, kind in (
        (run_targets(run_folder(finished)), "log.jsonl"),
        (dataset_targets(duplicates_prepared), "dataset manifest.json"),
    ):
        flips = flip_bits([target for target in targets if target.kind == kind], random.Random(6), 300)
        assert (flips.silent, flips.crashes, flips.total) == ([], [], 300)
