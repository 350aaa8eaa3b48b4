"""How fast the run goes: whether it has slowed down, and what holds it back."""

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import step_time as time
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.diagnose.trend import Trend, trend
from jaxgpt.diagnose.verdict import Condition, Verdict
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.diagnose.verdicts.said import any_of, unknown

SLOWER = 0.05  # of the pace: a smaller change is one of the room's temperature
LEAST_TIMES = 16  # lines with a time in which a change can be seen
PAUSES = 0.10  # of the time so far for evaluation and saving
BEYOND = 1.1  # times the roofline's slow end


def throughput(case: Case) -> Verdict:
    asks = f"a step takes {SLOWER:.0%} longer than before"
    steps, seconds = _times(case)
    if len(seconds) < LEAST_TIMES:
        return Verdict(id="throughput", conditions=(unknown(asks, f"times of {LEAST_TIMES} steps or more"),))
    change = case.arrival.trend if case.arrival else trend(steps, seconds)
    if change is None:
        middle = float(np.median(seconds))
        return Verdict(id="throughput", conditions=(Condition(asks, f"{middle:.3g} s per step throughout", False),))
    line = next((s.line for s in case.history.steps if s.step >= change.since), 0)
    held = Condition(asks, _changed(change), change.change >= SLOWER, (line,))
    return Verdict(id="throughput", conditions=(held,), weight=1e-3 * max(change.change, 0.0))


def _changed(change: Trend) -> str:
    way = "since" if change.kind == "jump" else "steadily since"
    return f"{change.before:.3g} s before, {change.after:.3g} s now ({change.change:+.0%}), {way} step {change.since:,}"


def _times(
    case: Case,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps with a duration that is theirs alone, and those durations."""
    rows = [(s.step, s.seconds) for s in case.history.steps if s.pure and s.seconds is not None and s.seconds > 0]
    finite = [(step, seconds) for step, seconds in rows if np.isfinite(seconds)]
    return np.array([s for s, _ in finite], np.int64), np.array([t for _, t in finite], np.float64)


def pace(case: Case) -> Verdict:
    """Supported if something other than the step's arithmetic sets the pace, or a hoped-for one cannot be had."""
    asks = "something other than the card's arithmetic holds the run back, or more is hoped for than it can do"
    held = any_of(asks, (_pauses(case), _roofline(case), _hoped(case)))
    return Verdict(id="pace", conditions=(held,), weight=5e-4)


def _pauses(case: Case) -> Condition:
    asks = f"evaluation and saving take {PAUSES:.0%} of the time"
    _, seconds = _times(case)
    spent = case.history.stated.pauses or _inside(case)
    if not len(seconds) or not spent:
        return unknown(asks, "what evaluations take (our log.jsonl, or nanoGPT's output with its iter lines)", "")
    training = float(np.median(seconds)) * case.done
    share = spent / (spent + training)
    return Condition(asks, f"evaluation and saving take {share:.0%} of the time", share >= PAUSES)


def _inside(case: Case) -> float:
    """Seconds above the pace in lines that hold an evaluation or a save, those that compile left out."""
    _, seconds = _times(case)
    if not len(seconds):
        return 0.0
    usual, begins = float(np.median(seconds)), {0, *case.history.starts}
    mixed = [s.seconds for s in case.history.steps if not s.pure and s.step not in begins and s.seconds is not None]
    return float(sum(max(value - usual, 0.0) for value in mixed if np.isfinite(value)))


def _roofline(case: Case) -> Condition:
    asks = "a step takes longer than the card's roofline at its worst"
    config, device = case.setting.config, case.setting.device
    _, seconds = _times(case)
    if not len(seconds):
        return unknown(asks, "the time of a step", "")
    middle = float(np.median(seconds))
    if config is None or device is None:
        return unknown(asks, "the card and the model: --gpu NAME --config NAME", f"{middle:.3g} s per step")
    allowed = time.modelled(config, device, _software(case))
    held = middle > BEYOND * allowed.high
    bound = "data, another program or its clock" if held else "its arithmetic"
    found = (
        f"{middle:.3g} s per step; {device.name} allows {allowed.low:.3g} to {allowed.high:.3g}, "
        f"MFU {time.mfu(config, middle, device):.0%}: bound by {bound}"
    )
    return Condition(asks, found, held)


def _software(case: Case) -> str:
    return "jaxgpt" if case.history.format == "jaxgpt" else "nanogpt"


def _hoped(case: Case) -> Condition:
    asks = "the pace that is hoped for is beyond the card"
    config, device, hoped = case.setting.config, case.setting.device, case.setting.hoped_seconds
    if hoped is None:
        return Condition(asks, "", False)
    if config is None or device is None:
        return unknown(asks, "the card and the model: --gpu NAME --config NAME", f"{hoped:g} s per step are hoped for")
    least = time.modelled(config, device, _software(case)).low
    needs = config.tokens_per_step * flops_per_token(config.model) / hoped / 1e12
    found = f"{hoped:g} s per step would need {needs:,.0f} TFLOP/s; {device.name} has {device.tflops:g}"
    return Condition(asks, found, hoped < least)
