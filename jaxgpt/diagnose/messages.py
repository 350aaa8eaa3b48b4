"""Sentences of a diagnosis, as a terminal, a page and JSON show them."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.completion.trend import MIN_BLOCKS, Trend
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import format_date, format_duration

MAX_QUOTES, MAX_QUOTE_WIDTH = 3, 160  # lines of the log quoted for one finding; characters of one
PRECISE = 172_800.0  # seconds: the remaining time below which seconds are shown


class Meaning(NamedTuple):
    """What a confirmed finding says, and whether it is a problem rather than a property of the run."""

    text: str
    is_problem: bool


MEANINGS: dict[str, Meaning] = {
    "overfitting": Meaning("it memorizes repeated text, which costs validation loss", True),
    "severe-overfitting": Meaning("its validation loss rises while it repeats its text", True),
    "repetition-risk": Meaning("by its end it will have read its text so often that this costs loss", True),
    "lr-too-high": Meaning("its learning rate has been too high for too long", True),
    "capacity-limited": Meaning("the size of the model limits its loss", False),
    "data-limited": Meaning("it runs out of unique text: more would help it more than a larger model", False),
    "missing-regularization": Meaning("it overfits with little weight decay and no dropout", True),
    "unneeded-dropout": Meaning("its dropout slows its learning and prevents nothing", True),
    "noise-not-plateau": Meaning("its apparent plateau is the noise of its evaluations", False),
    "not-annealed": Meaning("its learning rate has not decayed yet, so its loss will still fall", False),
    "recipe-or-bug": Meaning("its loss is above what its size and tokens allow: its recipe, or a bug", True),
    "divergence": Meaning("it diverges", True),
    "loss-spikes": Meaning("its loss spikes", True),
    "data-reused-after-resume": Meaning("after a resume it was trained on the same text again", True),
    "throughput": Meaning("its steps have become slower", True),
    "input-or-overhead-bound": Meaning("something other than the device's arithmetic limits its speed", False),
}


class Quote(NamedTuple):
    """A line of the log with its number, which starts at 1."""

    number: int
    text: str


def summary(diagnosis: Diagnosis) -> tuple[str, str, str]:
    """The three main answers: when the run ends, at which loss, and what is wrong and what to do first."""
    return eta_sentence(diagnosis), forecast_sentence(diagnosis), summarize_problem(diagnosis)


def eta_sentence(diagnosis: Diagnosis) -> str:
    """When the run ends."""
    completion = diagnosis.completion
    if completion is None:
        return f"The time of its end is unknown without {diagnosis.no_completion}."
    if completion.done:
        return (
            f"It is done: {diagnosis.history.steps_done:,} steps, the last of them {format_date(completion.end_time)}."
        )
    interval = f"80 %: {format_duration(completion.low)} to {format_duration(completion.high)}"
    return (
        f"It ends in {format_time_left(completion.seconds)} ({interval}), "
        f"{format_date(completion.end_time)}, counted from {completion.counted_from}."
    )


def forecast_sentence(diagnosis: Diagnosis) -> str:
    """At which validation loss the run ends."""
    forecast = diagnosis.forecast
    if forecast is None:
        return f"Its final loss cannot be forecast: {diagnosis.no_forecast}."
    verb = "ended" if diagnosis.completion and diagnosis.completion.done else "will end"
    return (
        f"At {len(diagnosis.context.lr_fractions):,} steps it {verb} at a validation loss of {forecast.mean:.3f} "
        f"(80 %: {forecast.low80:.3f} to {forecast.high80:.3f}; 95 %: {forecast.low95:.3f} to {forecast.high95:.3f})."
    )


def summarize_problem(diagnosis: Diagnosis) -> str:
    """What is wrong, and the first thing to do."""
    confirmed = [finding for finding in diagnosis.findings if finding.status == "confirmed"]
    problems = [finding for finding in confirmed if MEANINGS[finding.id].is_problem]
    unknown = sum(finding.status == "unknown" for finding in diagnosis.findings)
    if not confirmed and unknown > len(diagnosis.findings) / 2:
        return f"What is wrong is not known yet: {unknown} of {len(diagnosis.findings)} checks need more information."
    is_broken = bool(confirmed) and confirmed[0] in problems
    if is_broken:
        answer = f"What is wrong: {_phrases(problems)}."
    elif confirmed:
        also = f"; in addition, {_phrases(problems)}" if problems else ""
        answer = f"Nothing is broken: {_phrases(confirmed[:1])}{also}."
    else:
        answer = "The log shows nothing wrong."
    remedies = [item for finding in problems for item in finding.recommendations] if is_broken else []
    first = next(iter((*remedies, *diagnosis.recommendations)), None)
    return f"{answer} First: {first.action}." if first else answer


def _phrases(findings: Iterable[Finding]) -> str:
    return "; ".join(f"{MEANINGS[finding.id].text} ({finding.id})" for finding in findings)


def format_time_left(seconds: float) -> str:
    """A remaining time: to the second if it is short, else to the hour."""
    return format_duration(seconds, parts=3 if seconds < PRECISE else 2)


def step_time_text(completion: CompletionEstimate) -> str:
    """`3.995 s per step (80 %: 3.60 to 4.99), from 1 line`."""
    step_time = completion.step_time
    if step_time is None:
        return "unknown"
    lines = "1 line" if step_time.steps_used == 1 else f"the last {step_time.steps_used:,} lines that count"
    return f"{step_time.seconds:.4g} s per step (80 %: {step_time.low:.4g} to {step_time.high:.4g}), from {lines}"


def trend_text(completion: CompletionEstimate) -> str:
    """Whether steps became faster or slower, by how much and since when."""
    if completion.step_time is None or completion.step_time.steps_used < MIN_BLOCKS:
        return "too few lines have a time to see one"
    if completion.trend is None:
        return "neither faster nor slower, as far as the log shows"
    return _change_text(completion.trend)


def _change_text(trend: Trend) -> str:
    direction = "slower" if trend.change > 0 else "faster"
    change = f"{abs(trend.change):.1%} {direction}: {trend.before:.4g} s per step became {trend.after:.4g} s"
    probability = "p < 0.0001" if trend.p_value < 1e-4 else f"p = {trend.p_value:.4f}"
    if trend.kind == "drift":
        return f"steadily {change} since about step {trend.since:,} ({probability})"
    return f"{change} at about step {trend.since:,} ({probability})"


def time_until(diagnosis: Diagnosis, steps: int) -> str:
    """The time until `steps` steps are done, with evaluations; a dash where it is unknown."""
    completion = diagnosis.completion
    remaining = steps - diagnosis.history.steps_done
    if completion is None or completion.step_time is None or remaining <= 0:
        return "–"
    step_time = completion.seconds / completion.steps_left if completion.steps_left else completion.step_time.seconds
    return format_duration(remaining * step_time)


def gain_text(recommendation: Recommendation) -> str:
    """`about 0.045 nats (80 %: 0.030 to 0.060)`; empty where no gain is known."""
    if recommendation.gain is None:
        return ""
    text = f"about {recommendation.gain:.3f} nats"
    if recommendation.low is None or recommendation.high is None:
        return text
    return f"{text} (80 %: {recommendation.low:.3f} to {recommendation.high:.3f})"


def quote_lines(history: History, numbers: Iterable[int]) -> list[Quote]:
    """These lines of the log; if there are many, the first two and the last."""
    shown = [number for number in dict.fromkeys(numbers) if 0 < number <= len(history.lines)]
    if len(shown) > MAX_QUOTES:
        shown = [*shown[: MAX_QUOTES - 1], shown[-1]]
    return [Quote(number, _shorten(history.lines[number - 1])) for number in shown]


def _shorten(line: str) -> str:
    line = line.strip()
    return line if len(line) <= MAX_QUOTE_WIDTH else line[: MAX_QUOTE_WIDTH - 1] + "…"


def why_ruled_out(finding: Finding) -> str:
    """The first false condition of a finding with its evidence, and what the log shows about those before it."""
    before = ""
    for condition in finding.conditions:
        if condition.result is False:
            return f"not true that {condition.question}: {condition.evidence}{before}"
        if condition.result is None and condition.lines:
            before += f"; {condition.evidence}"
    return ""
