"""How fast the run goes: whether it has slowed down, and what holds it back."""

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import step_time
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.diagnose.checks.analysis import RunAnalysis
from jaxgpt.diagnose.completion.trend import Trend, find_trend
from jaxgpt.diagnose.finding import Condition, Finding, any_of, unknown

SLOWER = 0.05  # of the pace: a smaller change is one of the room's temperature
LEAST_TIMES = 16  # lines with a time in which a change can be seen
PAUSES = 0.10  # of the time so far for evaluation and saving
BEYOND = 1.1  # times the roofline's slow end


def throughput(run: RunAnalysis) -> Finding:
    question = f"a step takes {SLOWER:.0%} longer than before"
    steps, seconds = _times(run)
    if len(seconds) < LEAST_TIMES:
        return Finding(id="throughput", conditions=(unknown(question, f"times of {LEAST_TIMES} steps or more"),))
    change = run.completion.trend if run.completion else find_trend(steps, seconds)
    if change is None:
        middle = float(np.median(seconds))
        return Finding(id="throughput", conditions=(Condition(question, f"{middle:.3g} s per step throughout", False),))
    line = next((s.line for s in run.history.steps if s.step >= change.since), 0)
    held = Condition(question, _changed(change), change.change >= SLOWER, (line,))
    return Finding(id="throughput", conditions=(held,), weight=1e-3 * max(change.change, 0.0))


def _changed(change: Trend) -> str:
    way = "since" if change.kind == "jump" else "steadily since"
    return f"{change.before:.3g} s before, {change.after:.3g} s now ({change.change:+.0%}), {way} step {change.since:,}"


def _times(
    run: RunAnalysis,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps with a duration that is theirs alone, and those durations."""
    rows = [(s.step, s.seconds) for s in run.history.steps if s.pure and s.seconds is not None and s.seconds > 0]
    finite = [(step, seconds) for step, seconds in rows if np.isfinite(seconds)]
    return np.array([s for s, _ in finite], np.int64), np.array([t for _, t in finite], np.float64)


def pace(run: RunAnalysis) -> Finding:
    """Supported if something other than the step's arithmetic sets the pace, or a hoped-for one cannot be had."""
    question = "something other than the card's arithmetic holds the run back, or more is hoped for than it can do"
    held = any_of(question, (_pauses(run), _roofline(run), _hoped(run)))
    return Finding(id="input-or-overhead-bound", conditions=(held,), weight=5e-4)


def _pauses(run: RunAnalysis) -> Condition:
    question = f"evaluation and saving take {PAUSES:.0%} of the time"
    _, seconds = _times(run)
    spent = run.history.metadata.pauses or _inside(run)
    if not len(seconds) or not spent:
        return unknown(question, "what evaluations take (our log.jsonl, or nanoGPT's output with its iter lines)", "")
    training = float(np.median(seconds)) * run.steps_done
    share = spent / (spent + training)
    return Condition(question, f"evaluation and saving take {share:.0%} of the time", share >= PAUSES)


def _inside(run: RunAnalysis) -> float:
    """Seconds above the pace in lines that hold an evaluation or a save, those that compile left out."""
    _, seconds = _times(run)
    if not len(seconds):
        return 0.0
    usual, begins = float(np.median(seconds)), {0, *run.history.starts}
    mixed = [s.seconds for s in run.history.steps if not s.pure and s.step not in begins and s.seconds is not None]
    return float(sum(max(value - usual, 0.0) for value in mixed if np.isfinite(value)))


def _roofline(run: RunAnalysis) -> Condition:
    question = "a step takes longer than the card's roofline at its worst"
    config, device = run.context.config, run.context.device
    _, seconds = _times(run)
    if not len(seconds):
        return unknown(question, "the time of a step", "")
    middle = float(np.median(seconds))
    if config is None or device is None:
        return unknown(question, "the card and the model: --gpu NAME --config NAME", f"{middle:.3g} s per step")
    allowed = step_time.roofline(config, device, _software(run))
    held = middle > BEYOND * allowed.high
    bound = "data, another program or its clock" if held else "its arithmetic"
    found = (
        f"{middle:.3g} s per step; {device.name} allows {allowed.low:.3g} to {allowed.high:.3g}, "
        f"MFU {step_time.mfu(config, middle, device):.0%}: bound by {bound}"
    )
    return Condition(question, found, held)


def _software(run: RunAnalysis) -> str:
    return "jaxgpt" if run.history.format == "jaxgpt" else "nanogpt"


def _hoped(run: RunAnalysis) -> Condition:
    question = "the pace that is hoped for is beyond the card"
    config, device, hoped = run.context.config, run.context.device, run.context.target_step_time
    if hoped is None:
        return Condition(question, "", False)
    if config is None or device is None:
        return unknown(
            question, "the card and the model: --gpu NAME --config NAME", f"{hoped:g} s per step are hoped for"
        )
    least = step_time.roofline(config, device, _software(run)).low
    needs = config.tokens_per_step * flops_per_token(config.model) / hoped / 1e12
    found = f"{hoped:g} s per step would need {needs:,.0f} TFLOP/s; {device.name} has {device.tflops:g}"
    return Condition(question, found, hoped < least)
