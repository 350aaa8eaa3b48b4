"""Measures the accuracy of the loss forecasts: writes docs/forecast-accuracy.md from recorded loss curves.

    python bench/forecast.py FORECAST_DATA [MORE …] [--out docs/forecast-accuracy.md]

Each folder contains, at any depth, an `index.csv` and a CSV for each curve (`bench/curves.py`). Every curve is cut at
20 to 90 % of its run, and its last loss is forecast from that part by the functions that `diagnose FILE.csv` calls with
the options of the run. The priors of the loss model (regressions of alpha and B) come from the complete curves of the
other families only: leave-family-out.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from baselines import METHODS
from curves import Recorded, read
from priors import learn

from jaxgpt.diagnose.forecast.annealing import MIN_EVALUATIONS
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS, LawVariant, Regression
from jaxgpt.diagnose.forecast.run_forecast import forecast_run

SHARES = (0.2, 0.3, 0.5, 0.7, 0.9)
POOLED = (0.3, 0.5, 0.7)  # shares whose intervals are pooled
MIN_CURVES = 8  # of other families, from which priors can be estimated
LAW = "annealing law"
KINDS = {"cosine": "cosine", "wsd": "WSD, trapezoid, linear", "decayed": "the same, Muon with weight decay"}
# Methods that are told less than everything: options that a user leaves out.
KNOWLEDGE: dict[str, Mapping[str, Any]] = {
    LAW: {},
    "without --weight-decay, --optimizer": {"weight_decay": None, "optimizer": None},
    "without --params (no scaling law)": {"params": None},
}


INTRODUCTION = """\
Written by `python bench/forecast.py FORECAST_DATA --out docs/forecast-accuracy.md`. All figures in nats per token; an
error is forecast minus observed. {curves} recorded curves, {core} of them with a cosine or a WSD, trapezoid or linear
schedule, fewer than 13 epochs and no spikes: those make the first tables. Every curve is cut, written as a CSV and
forecast by the functions behind `python -m jaxgpt.diagnose FILE.csv`, with the options that describe the run (schedule,
warmup, peak and final learning rate, weight decay, optimizer, parameters, tokens per step, unique tokens, corpus) and
without `--eval-tokens`. An exponential decay, which has no option, is told as a linear one."""
METHOD_NOTES = """\
A forecast uses every evaluation up to that fraction of the steps. *Last* is the mean of the last three; *log-linear* a
line in the logarithm of the step through the last half; *power* L0 + A step^-a; *Tissue* L0 + A S1^-a - C S2 with
lambda .999; *multi-power* the seven constants of the Multi-Power Law. The last three are free least-squares fits to the
same points as the annealing law's: linear coefficients exactly, an exponent on a grid of 200, the Multi-Power Law's
other constants by descent from eight starts, the published constants among them; coefficients keep the sign that their
form gives them. The annealing law's priors come from the other families alone. A family is a source: the three sizes of
the Multi-Power Law's runs are one, the 124M and 1.5B runs of modded-nanogpt's first track another, and its second and
third track one each. Where the other families have fewer than eight core curves, the shipped priors are used. The
scaling law, one more observation, was fitted to several of the FineWeb runs; the rows without it do not use it."""
PRIOR_NOTE = """\
u is sqrt(1000 (peak learning rate × weight decay + 1 / (4 steps))), both per 524,288 tokens; r is ln(tokens per
parameter / 20)."""
SELECTION_NOTE = """\
The shipped priors are regressions over the core curves. Chosen with a view of these tables, so that no left-out family
was independent of them: the six variants, the delay by the sum of learning rates, the exclusion of the first 500 steps
of a run that is less than a quarter done, that quarter instead of 30 %, the features of the regressions (of about ten
sets, by leave-family-out errors; docs/experiments.md), and their spread (of three). The figures are therefore somewhat
too good."""


@dataclass(frozen=True)
class Result:
    """A forecast of a curve by a method from a fraction of the run, and its error."""

    curve: Recorded
    share: float
    method: str
    error: float  # forecast minus the last loss
    forecast: Forecast | None = None

    @property
    def smoothed_error(self) -> float:
        """Forecast minus the smoothed end."""
        return self.error + self.curve.last - self.curve.smoothed_last

    def inside(self, level: int) -> bool:
        assert self.forecast is not None
        forecast = self.forecast
        low, high = (forecast.low80, forecast.high80) if level == 80 else (forecast.low95, forecast.high95)
        return low <= self.curve.last <= high


def evaluate_forecasts(
    curves: Sequence[Recorded],
    shares: Sequence[float] = SHARES,
    knowledge: Mapping[str, Mapping[str, Any]] = KNOWLEDGE,
    baselines: bool = True,
) -> list[Result]:
    """Every forecast of every curve: with priors from the other families, and by the baseline methods."""
    prior = _priors(curves)
    results = []
    for curve in curves:
        print(curve.name, file=sys.stderr)
        for share in shares:
            seen = curve.seen(share)
            used = seen.usable()
            if np.count_nonzero(used) <= MIN_EVALUATIONS:
                continue
            for method, changes in knowledge.items():
                forecast = forecast_run(*curve.read(share, **changes), prior(curve.family)).final_loss
                assert forecast is not None
                results.append(Result(curve, share, method, forecast.mean - curve.last, forecast))
            if baselines:
                steps, losses = seen.steps[used].astype(np.float64), seen.losses[used]
                for name, baseline in METHODS.items():
                    results.append(Result(curve, share, name, baseline(steps, losses, curve.course) - curve.last))
    return results


def _priors(curves: Sequence[Recorded]) -> Callable[[str], tuple[LawVariant, ...]]:
    """family -> variants with priors of the other families; the shipped ones where those have too few curves."""

    @cache
    def of(family: str) -> tuple[LawVariant, ...]:
        others = [curve for curve in curves if curve.core and curve.family != family]
        return learn(others) if len(others) >= MIN_CURVES else LAW_VARIANTS

    return of


def format_error(results: Sequence[Result]) -> str:
    """The mean absolute error for a table."""
    return f"{mean_absolute_error(results):.4f}" if results else "–"


def mean_absolute_error(results: Sequence[Result]) -> float:
    return float(np.mean([abs(result.error) for result in results])) if results else float("nan")


def coverage(results: Sequence[Result], level: int) -> float:
    return float(np.mean([result.inside(level) for result in results])) if results else float("nan")


def pick(results: Sequence[Result], share: float, method: str = LAW, kind: str | None = None) -> list[Result]:
    """Results of core curves, or of the curves of one kind of schedule."""
    return [
        result
        for result in results
        if result.share == share
        and result.method == method
        and (result.curve.core if kind is None else result.curve.kind == kind)
    ]


def build_report(folders: Sequence[Path], shares: Sequence[float] = SHARES) -> str:
    """The report as Markdown."""
    curves = [curve for folder in folders for curve in read(folder)]
    results = evaluate_forecasts(curves, shares)
    core = sum(curve.core for curve in curves)
    return (
        "\n\n".join(
            [
                "# Accuracy of the forecasts",
                INTRODUCTION.format(curves=len(curves), core=core),
                "## The final loss, forecast from a part of the run",
                _methods(results),
                METHOD_NOTES,
                "## Intervals of the annealing law",
                _intervals(results),
                "## By family",
                _families(results),
                "## Other curves",
                "Priors from the core curves of the other families. A drop in one step has no option and is not told.",
                _others(results),
                "## Every curve",
                _each(results),
                "## Priors",
                PRIOR_NOTE,
                _constants(curves),
                SELECTION_NOTE,
            ]
        )
        + "\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _percent(shares: Sequence[float] = SHARES) -> list[str]:
    return [f"{share:.0%}".replace("%", " %") for share in shares]


def _methods(results: Sequence[Result]) -> str:
    rows = []
    for kind, words in KINDS.items():
        for method in (*METHODS, *KNOWLEDGE):
            groups = [pick(results, share, method, kind) for share in SHARES]
            mark = "**" if method == LAW else ""
            rows.append(
                [
                    f"{words} ({len(groups[1])})",
                    f"{mark}{method}{mark}",
                    *(f"{mark}{format_error(f)}{mark}" for f in groups),
                ]
            )
        smoothed = [[result.smoothed_error for result in pick(results, share, kind=kind)] for share in SHARES]
        cells = [f"{np.mean(np.abs(errors)):.4f}" if errors else "–" for errors in smoothed]
        rows.append([f"{words} ({len(smoothed[1])})", f"{LAW}, of the smoothed end", *cells])
    return _table(["schedule (curves)", "MAE of", *_percent()], rows)


def _intervals(results: Sequence[Result]) -> str:
    rows = []
    for words, kind in (*((words, kind) for kind, words in KINDS.items()), ("all", None)):
        groups = [pick(results, share, kind=kind) for share in SHARES]
        pooled = [result for share in POOLED for result in pick(results, share, kind=kind)]
        rows.append([words, *(f"{coverage(f, 80):.2f} / {coverage(f, 95):.2f}" for f in (*groups, pooled))])
    spreads = [[r.forecast.sd for r in pick(results, share) if r.forecast] for share in SHARES]
    rows.append(["median standard deviation", *(f"{np.median(sds):.4f}" if sds else "–" for sds in spreads), ""])
    return _table(["fraction inside 80 % / 95 %", *_percent(), "30 to 70 %"], rows)


def _families(results: Sequence[Result]) -> str:
    rows = []
    for family in dict.fromkeys(result.curve.family for result in results if result.curve.core):
        groups = [[r for r in pick(results, share) if r.curve.family == family] for share in SHARES]
        bias = [float(np.mean([r.error for r in f])) if f else float("nan") for f in groups]
        pooled = [r for share in POOLED for r in pick(results, share) if r.curve.family == family]
        inside = f"{coverage(pooled, 80):.2f} / {coverage(pooled, 95):.2f}"
        errors = (f"{format_error(f)} ({b:+.4f})" for f, b in zip(groups, bias))
        rows.append([f"{family} ({max(map(len, groups))})", *errors, inside])
    head = ["family (curves): MAE (bias) of the annealing law", *_percent(), "inside 80 % / 95 %, 30 to 70 %"]
    return _table(head, rows)


def _others(results: Sequence[Result]) -> str:
    rows = []
    for kind in dict.fromkeys(result.curve.kind for result in results if not result.curve.core):
        for method in (LAW, *METHODS):
            groups = [pick(results, share, method, kind) for share in SHARES]
            inside = [f" ({coverage(f, 80):.2f})" if method == LAW and f else "" for f in groups]
            rows.append(
                [
                    f"{kind} ({max(map(len, groups))})",
                    method,
                    *(f"{format_error(f)}{i}" for f, i in zip(groups, inside)),
                ]
            )
    return _table(["curves", "MAE of (inside 80 %)", *_percent()], rows)


def _each(results: Sequence[Result]) -> str:
    rows = []
    for curve in dict.fromkeys(result.curve for result in results):
        own = {r.share: r for r in results if r.curve is curve and r.method == LAW}
        rows.append([curve.name, curve.kind, f"{curve.last:.4f}", *(_one(own.get(share)) for share in SHARES)])
    return _table(["curve", "kind", "observed", *_percent()], rows)


def _one(result: Result | None) -> str:
    return "" if result is None or result.forecast is None else f"{result.error:+.4f} ± {result.forecast.sd:.4f}"


def _constants(curves: Sequence[Recorded]) -> str:
    rows = []
    for shipped, now in zip(LAW_VARIANTS, learn([curve for curve in curves if curve.core])):
        rows.append(
            [
                f"p {shipped.p:g}, q {shipped.q:g}, {'delayed' if shipped.kernel else 'immediate'}",
                *(
                    _formula(*pair)
                    for pair in ((shipped.alpha, now.alpha), (shipped.annealing_gain, now.annealing_gain))
                ),
                f"{shipped.rho:+.2f} ({now.rho:+.2f})",
            ]
        )
    head = ["variant", "alpha, shipped (from the curves here)", "B", "correlation"]
    return _table(head, rows)


def _formula(shipped: Regression, now: Regression) -> str:
    constants = [f"{value:.3f} ({other:.3f})" for value, other in zip(shipped, now)]
    return "{} + {} u + {} r, ± {} of it".format(*constants)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FORECAST_DATA")
    parser.add_argument("--out", type=Path, help="file to write (default: print the report)")
    options = parser.parse_args()
    text = build_report(options.folders)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
