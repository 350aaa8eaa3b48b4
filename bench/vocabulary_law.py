"""What a vocabulary's size costs at equal text and at equal FLOPs, from the published runs of Tao et al. (2024).

    git clone https://github.com/sail-sg/scaling-with-vocab
    python bench/vocabulary_law.py scaling-with-vocab

Their `exp_data.csv` has six models of 33M to 1.13B parameters outside the embedding, each with ten vocabularies from
4,096 to 96,256, at 20 points of one run at a constant learning rate. Its loss is relative to each vocabulary's unigram
entropy, which favors small vocabularies. With the entropies of their published token probabilities it becomes bits per
character, the same text for all. The differences are from the mean of 24,576, 32,768 and 48,128;
`jaxgpt/budget/vocabulary.py` has the result at equal text.
"""

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np

# Tokens per 0.22326 characters of SlimPajama: their experiments/preliminary/fit_tokenization_func.py.
CHARACTERS = 0.22326
TOKENS = {
    4096: 0.07380,
    6144: 0.06894,
    8192: 0.06593,
    10240: 0.06387,
    16384: 0.06034,
    24576: 0.05801,
    32768: 0.05668,
    48128: 0.05529,
    64512: 0.05447,
    96256: 0.05364,
}
REFERENCES = (24576, 32768, 48128)
PARTS = (0.5, 0.75, 1.0)  # of the text or FLOPs that every vocabulary's run reaches


class Point(NamedTuple):
    """Billions of characters, 10^18 FLOPs, and the loss in bits per character."""

    characters: float
    flops: float
    bits: float


Runs = dict[float, dict[int, list[Point]]]


def read_runs(folder: Path) -> Runs:
    """The points of each model, by parameters outside the embedding, and vocabulary."""
    entropies = {size: read_entropy(folder, size) for size in TOKENS}
    runs: Runs = defaultdict(lambda: defaultdict(list))
    with (folder / "exp_data.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            size, outside = int(float(row["vocab_size"])), float(row["Non_vocab_parameters"])
            per_character = TOKENS[size] / CHARACTERS
            flops = float(row["FLOPs"])
            trained = flops / 6 / (outside + size * float(row["embed_dim"]))
            bits = (float(row["Lossu"]) + entropies[size]) * per_character / math.log(2)
            runs[outside][size].append(Point(trained / per_character / 1e9, flops / 1e18, bits))
    return runs


def read_entropy(folder: Path, size: int) -> float:
    """The unigram entropy of a vocabulary in nats per token."""
    file = folder / "experiments/token_lookup_probabilities_json" / f"tokenid_probabilities_{size}.json"
    probabilities = np.array(list(json.loads(file.read_text(encoding="utf-8")).values()))
    probabilities /= probabilities.sum()
    return float(-(probabilities * np.log(probabilities)).sum())


def differences(by_size: dict[int, list[Point]], field: str) -> dict[int, float]:
    """Bits per character of each vocabulary above the references', at equal text or FLOPs; the mean of `PARTS`."""
    reached = min(max(getattr(point, field) for point in points) for points in by_size.values())
    at = np.log([part * reached for part in PARTS])
    bits = {}
    for size, points in by_size.items():
        ordered = sorted(points)
        known = np.log([getattr(point, field) for point in ordered])
        bits[size] = float(np.interp(at, known, [point.bits for point in ordered]).mean())
    reference = float(np.mean([bits[size] for size in REFERENCES]))
    return {size: value - reference for size, value in bits.items()}


def print_table(runs: Runs, field: str) -> None:
    """Differences by model, their mean and its standard error."""
    columns = {outside: differences(by_size, field) for outside, by_size in sorted(runs.items())}
    rows = []
    for size in TOKENS:
        values = [column[size] for column in columns.values()]
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        rows.append([size, *(f"{value:+.4f}" for value in values), f"{np.mean(values):+.4f} ± {error:.4f}"])
    print(f"bits per character at equal {field}, by parameters outside the embedding")
    print(common.table(rows, ("vocabulary", *(f"{outside / 1e6:.0f}M" for outside in columns), "mean")))


def print_slope(runs: Runs) -> None:
    """The cost of each halving below 24,576 at equal text: the slope of each model, their mean and deviation."""
    slopes = []
    for by_size in runs.values():
        costs = differences(by_size, "characters")
        halvings = {size: math.log2(REFERENCES[0] / size) for size in TOKENS if size < REFERENCES[0]}
        slopes.append(sum(n * costs[s] for s, n in halvings.items()) / sum(n * n for n in halvings.values()))
    print(
        f"for each halving below {REFERENCES[0]:,}: {np.mean(slopes):.4f}, {np.std(slopes, ddof=1):.4f} between models"
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkout of sail-sg/scaling-with-vocab")
    runs = read_runs(parser.parse_args(argv).folder)
    print_table(runs, "flops")
    print_table(runs, "characters")
    print_slope(runs)


if __name__ == "__main__":
    sys.exit(common.run(main))
