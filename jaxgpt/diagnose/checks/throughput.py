"""Checks of the speed of a run: whether its steps have become slower, and what limits their time."""

import numpy as np
from numpy.typing import NDArray

from jaxgpt.budget import speed, step_time
from jaxgpt.budget.devices import Device
from jaxgpt.config import Config
from jaxgpt.config.model_size import flops_per_token
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.once import once_per_run
from jaxgpt.diagnose.completion.trend import Trend, find_trend
from jaxgpt.diagnose.finding import Condition, Finding, any_of, unknown
from jaxgpt.utils.stats import Floats

SLOWER = 0.05  # of the step time: a smaller change can come from the room's temperature
MUCH_SLOWER = 0.5  # of the step time: a smaller change is a minor finding
MIN_TIMES = 16  # step times in which a change can be seen
LONG_PAUSES = 0.10  # of the time so far, for evaluation and saving
ABOVE_EXPECTED = 1.1  # times the slow end of the expected step time


def slower_steps(run: RunAnalysis) -> Finding:
    """Confirmed if the steps have become slower."""
    question = f"a step takes {SLOWER:.0%} longer than before"
    steps, seconds = _step_times(run)
    if len(seconds) < MIN_TIMES:
        return Finding(id="throughput", conditions=(unknown(question, f"times of {MIN_TIMES} steps or more"),))
    change = run.completion.trend if run.completion else find_trend(steps, seconds)
    if change is None:
        evidence = f"{float(np.median(seconds)):.3g} s per step throughout"
        return Finding(id="throughput", conditions=(Condition(question, evidence, False),))
    line = next((step.line for step in run.history.steps if step.step >= change.since), 0)
    condition = Condition(question, _describe(change), change.change >= SLOWER, (line,))
    is_minor = run.is_finished or change.change < MUCH_SLOWER
    return Finding(id="throughput", conditions=(condition,), is_minor=is_minor)


def _describe(change: Trend) -> str:
    since = "since" if change.kind == "jump" else "steadily since"
    return (
        f"{change.before:.3g} s before, {change.after:.3g} s now ({change.change:+.0%}), {since} step {change.since:,}"
    )


@once_per_run
def _step_times(run: RunAnalysis) -> tuple[NDArray[np.int64], Floats]:
    """Steps and their seconds, without those that include other work."""
    rows = [(s.step, s.seconds) for s in run.history.steps if s.step_only and s.seconds is not None and s.seconds > 0]
    finite = [(step, seconds) for step, seconds in rows if np.isfinite(seconds)]
    steps = np.array([step for step, _ in finite], np.int64)
    return steps, np.array([seconds for _, seconds in finite], np.float64)


@once_per_run
def _median_step_time(run: RunAnalysis) -> float | None:
    _, seconds = _step_times(run)
    return float(np.median(seconds)) if len(seconds) else None


def input_or_overhead_bound(run: RunAnalysis) -> Finding:
    """Confirmed if something other than arithmetic limits the step time, or a target step time is out of reach."""
    question = "something other than the device's arithmetic slows the run, or the target step time is out of reach"
    condition = any_of(question, (_has_long_pauses(run), _is_above_expected(run), _has_impossible_target(run)))
    return Finding(id="input-or-overhead-bound", conditions=(condition,))


def _has_long_pauses(run: RunAnalysis) -> Condition:
    question = f"evaluation and saving take {LONG_PAUSES:.0%} of the time"
    median = _median_step_time(run)
    pauses = run.history.metadata.pause_seconds or _logged_pauses(run)
    if median is None or not pauses:
        return unknown(question, "the time that evaluations and saves take")
    fraction = pauses / (pauses + median * run.steps_done)
    return Condition(question, f"evaluation and saving take {fraction:.0%} of the time", fraction >= LONG_PAUSES)


def _logged_pauses(run: RunAnalysis) -> float:
    """Seconds beyond the usual step time in lines that include an evaluation or a save, without those that compile."""
    usual = _median_step_time(run)
    if usual is None:
        return 0.0
    compiling = {0, *run.history.starts}
    mixed = [
        s.seconds for s in run.history.steps if not s.step_only and s.step not in compiling and s.seconds is not None
    ]
    return float(sum(max(seconds - usual, 0.0) for seconds in mixed if np.isfinite(seconds)))


def _is_above_expected(run: RunAnalysis) -> Condition:
    question = "a step takes longer than the slow end of what is expected of the device"
    config = run.context.config
    device = run.context.device
    median = _median_step_time(run)
    if median is None:
        return unknown(question, "the time of a step")
    if config is None or device is None:
        return unknown(question, run.context.missing("device", "config"), f"{median:.3g} s per step")
    gpus = device_count(run, config)
    expected = speed.estimate(config, device, software_of(run), gpus)
    is_above = median > ABOVE_EXPECTED * expected.high
    limit = "data, another program or its clock" if is_above else "its arithmetic"
    evidence = (
        f"{median:.3g} s per step; {_describe_devices(gpus, device)} expected to take "
        f"{expected.low:.3g} to {expected.high:.3g}, "
        f"MFU {step_time.mfu(config, median, device) / gpus:.0%}: limited by {limit}"
    )
    return Condition(question, evidence, is_above)


def device_count(run: RunAnalysis, config: Config) -> int:
    """The devices that share each micro-batch; 1 where they do not divide it, or nothing says it."""
    gpus = run.history.metadata.device_count or config.mesh.count
    return 1 if config.data.micro_batch % gpus else gpus


def _describe_devices(gpus: int, device: Device) -> str:
    """`A100 is` or `8 x A100 are`."""
    return f"{device.name} is" if gpus == 1 else f"{gpus} x {device.name} are"


def software_of(run: RunAnalysis) -> str:
    """The software whose roofline applies to the run."""
    return "jaxgpt" if run.history.traits.is_jaxgpt_run else "nanogpt"


def _has_impossible_target(run: RunAnalysis) -> Condition:
    question = "the target step time is beyond the device"
    config = run.context.config
    device = run.context.device
    target = run.context.target_step_time
    if target is None:
        return Condition(question, "", False)
    if config is None or device is None:
        return unknown(question, run.context.missing("device", "config"), f"target {target:g} s per step")
    gpus = device_count(run, config)
    fastest = step_time.roofline(speed.per_device(config, gpus), device, software_of(run)).low
    needed = config.tokens_per_step * flops_per_token(config.model) / target / 1e12
    have = f"{device.name} has" if gpus == 1 else f"{gpus} x {device.name} have"
    evidence = f"{target:g} s per step would need {needed:,.0f} TFLOP/s; {have} {gpus * device.tflops:,.5g} TFLOP/s"
    return Condition(question, evidence, target < fastest)
