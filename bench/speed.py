"""Fits `jaxgpt.budget.speed` to published speeds, and tests it on programs that it was not fitted to.

    python bench/speed.py [--out docs/budget-accuracy.md]

The logarithm of observed over modeled time is linear in `speed.features`, whether the software is from before 2024, and
the program. Weights and programs have normal priors; the fit is their posterior mean. Leave-one-program-out: each
program's speeds are predicted from those of all others. `--out` replaces the part of the document after the marker.
Needs only numpy.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import speed, step_time
from jaxgpt.budget.published_speeds import PublishedSpeed, load
from jaxgpt.budget.speed import SpeedFit
from jaxgpt.utils.stats import Z80

Array = NDArray[np.float64]
WEIGHT_SD = 0.3  # prior of each weight
# Chosen so that the interval contains at least 80 % of the left-out pairs; the likelihood prefers 0.10 and 0.19, which
# contain 9 of 14.
PROGRAM_SD, RESIDUAL_SD = 0.24, 0.15
MARKER = "<!-- bench/speed.py writes what follows -->"
TERMS = ("constant", "width", "geforce", "hopper", "before 2024")


@dataclass(frozen=True)
class Data:
    """The pairs, the logarithm of observed over modeled time, the features, and the programs."""

    pairs: list[PublishedSpeed]
    errors: Array
    features: Array
    programs: NDArray[np.str_]


def modeled_seconds(pair: PublishedSpeed) -> float:
    """The uncorrected roofline of nanoGPT-class software, with half of the all-reduce."""
    config = speed.per_device(pair.config, pair.gpus)
    shared = speed.communication_seconds(pair.config, pair.device, pair.gpus)
    return step_time.roofline(config, pair.device, "nanogpt").seconds + shared / 2


def read_data() -> Data:
    pairs = load()
    errors = [math.log(pair.seconds / modeled_seconds(pair)) for pair in pairs]
    features = [(*speed.features(pair.config.model.n_embd, pair.device), float(pair.is_old)) for pair in pairs]
    return Data(pairs, np.array(errors), np.array(features), np.array([pair.program for pair in pairs]))


def posterior(data: Data, program_sd: float, residual_sd: float) -> tuple[Array, Array, dict[str, float]]:
    """Mean and covariance of the weights, and the mean of each program's term on each class of devices.

    Half of a program's variance is its own, half that of the program on GeForce or on other cards.
    """
    classes = [_class_of(pair) for pair in data.pairs]
    names = [*dict.fromkeys(data.programs.tolist()), *dict.fromkeys(classes)]
    labels = list(zip(data.programs.tolist(), classes, strict=True))
    members = np.array([[float(name in pair) for name in names] for pair in labels])
    matrix = np.hstack([data.features, members])
    priors = [WEIGHT_SD] * data.features.shape[1] + [program_sd / math.sqrt(2)] * len(names)
    precision = matrix.T @ matrix / residual_sd**2 + np.diag(np.array(priors) ** -2.0)
    covariance = np.linalg.inv(precision)
    mean = covariance @ matrix.T @ data.errors / residual_sd**2
    count = data.features.shape[1]
    terms = dict(zip(names, mean[count:].tolist(), strict=True))
    programs = {label: terms[label] + terms[program] for program, label in labels}
    return mean[:count], covariance[:count, :count], programs


def _class_of(pair: PublishedSpeed) -> str:
    return f"{pair.program} on {'GeForce' if pair.device.half_rate else 'other cards'}"


def select(data: Data, chosen: NDArray[np.bool_]) -> Data:
    pairs = [pair for pair, is_in in zip(data.pairs, chosen, strict=True) if is_in]
    return Data(pairs, data.errors[chosen], data.features[chosen], data.programs[chosen])


def left_out(data: Data, program_sd: float = PROGRAM_SD, residual_sd: float = RESIDUAL_SD) -> list[tuple[float, float]]:
    """Mean and standard deviation of each pair's error, predicted from the other programs' pairs."""
    predictions = [(0.0, 0.0)] * len(data.pairs)
    for program in set(data.programs.tolist()):
        is_out = data.programs == program
        mean, covariance, _ = posterior(select(data, ~is_out), program_sd, residual_sd)
        for number in np.flatnonzero(is_out):
            row = data.features[number]
            sd = math.sqrt(row @ covariance @ row + program_sd**2 + residual_sd**2)
            predictions[number] = (float(row @ mean), sd)
    return predictions


def log_likelihood(data: Data, predictions: list[tuple[float, float]]) -> float:
    """Of the left-out pairs, each program counting once."""
    total = 0.0
    for program in set(data.programs.tolist()):
        members = np.flatnonzero(data.programs == program)
        scores = [_log_density(data.errors[n], *predictions[n]) for n in members]
        total += float(np.mean(scores))
    return total


def _log_density(value: float, mean: float, sd: float) -> float:
    return -0.5 * ((value - mean) / sd) ** 2 - math.log(sd)


def search_spreads(data: Data) -> tuple[float, float]:
    """The pair of standard deviations with the highest leave-one-program-out likelihood."""
    grid = [(a, b) for a in np.arange(0.10, 0.42, 0.02) for b in np.arange(0.05, 0.25, 0.02)]
    return max(grid, key=lambda pair: log_likelihood(data, left_out(data, *pair)))


def interval(data: Data, number: int, mean: float, sd: float) -> tuple[float, float, float]:
    """Expected seconds and the 80 % interval, which the kernels' best case limits."""
    pair = data.pairs[number]
    config = speed.per_device(pair.config, pair.gpus)
    fastest = speed.FASTEST * step_time.roofline(config, pair.device, "nanogpt").low
    middle = max(modeled_seconds(pair) * math.exp(mean), speed.MIDDLE * fastest)
    return middle, max(middle * math.exp(-Z80 * sd), fastest), middle * math.exp(Z80 * sd)


def fitted(data: Data) -> SpeedFit:
    """The constants of `speed.FIT`: the posterior mean for software from 2024 or later."""
    weights, covariance, _ = posterior(data, PROGRAM_SD, RESIDUAL_SD)
    weight_sd = float(np.mean([math.sqrt(row @ covariance @ row) for row in data.features]))
    constant, width, geforce, hopper = (round(float(weight), 3) for weight in weights[:4])
    sd = round(math.hypot(RESIDUAL_SD, PROGRAM_SD, weight_sd), 2)
    return SpeedFit(constant=constant, width=width, geforce=geforce, hopper=hopper, sd=sd)


def document(data: Data) -> str:
    """The part of docs/budget-accuracy.md about speeds."""
    weights, _, programs = posterior(data, PROGRAM_SD, RESIDUAL_SD)
    lines = [
        "## Speed",
        "",
        "Written by `python bench/speed.py --out docs/budget-accuracy.md`. The roofline of nanoGPT-class software, "
        "with the all-reduce, times the correction of `jaxgpt/budget/speed.py`, which is fitted to the pairs of "
        "`jaxgpt/budget/published_speeds.csv` without the program of the row. Tokens per second and device.",
        "",
        "| program | device | model | published | expected (80 %) | observed / expected time | inside |",
        "|---|---|---|---|---|---|---|",
    ]
    hits, widths, count = 0, [], 0
    for number, (mean, sd) in enumerate(left_out(data)):
        pair = data.pairs[number]
        middle, low, high = interval(data, number, mean, sd)
        tokens = pair.config.tokens_per_step / pair.gpus / 1e3
        is_inside = low <= pair.seconds <= high
        if pair.is_tested:
            count += 1
            hits += is_inside
            widths.append(math.log(high / low))
        shape = f"{pair.config.model.n_layer} × {pair.config.model.n_embd}"
        lines.append(
            f"| {pair.program}{'' if pair.is_tested else ' *'} | {pair.gpus} × {pair.device.name} | {shape} | "
            f"{tokens / pair.seconds:.1f}K | {tokens / middle:.1f}K ({tokens / high:.1f}K to {tokens / low:.1f}K) | "
            f"{pair.seconds / middle:.2f} | {'yes' if is_inside else 'no'} |"
        )
    terms = ", ".join(f"{name} {weight:+.2f}" for name, weight in zip(TERMS, weights, strict=True))
    shown = ", ".join(f"{name} {term:+.2f}" for name, term in sorted(programs.items(), key=lambda item: item[1]))
    lines += [
        "",
        f"Of the {count} pairs without a star, **{hits}** are inside the 80 % interval; its slow end is on average "
        f"**{math.exp(float(np.mean(widths))):.2f}** times its fast end. Stars: pairs that were added as data.",
        "",
        f"Terms of ln(observed / modeled time): {terms} (width: per factor e above {speed.REFERENCE_WIDTH}, "
        f"data-center cards only). Programs: {shown}. Standard deviations: {PROGRAM_SD} between programs, "
        f"{RESIDUAL_SD} between the pairs of one. The planner adds no program's term, as it plans for jaxgpt, which "
        "was not measured on a GPU, and for nanoGPT-class software in general: both intervals include the spread.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the document whose part about speeds is replaced (default: print it)")
    out = parser.parse_args().out
    data = read_data()
    print("spreads:", *(f"{value:.2f}" for value in search_spreads(data)))
    print(fitted(data))
    text = document(data)
    if out is None:
        print(text)
        return
    before = out.read_text(encoding="utf-8").partition(MARKER)[0].rstrip()
    out.write_text(f"{before}\n\n{MARKER}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
