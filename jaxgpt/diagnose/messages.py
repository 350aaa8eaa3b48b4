"""Sentences of a diagnosis, as a terminal, a page and JSON show them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.completion.estimate import FILE_CHANGE, LAST_RECORD
from jaxgpt.diagnose.completion.timing import Timing
from jaxgpt.diagnose.completion.trend import MIN_BLOCKS, Trend
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.logs.history import Evaluation, History
from jaxgpt.utils.formatting import (
    MINUS,
    format_change,
    format_date,
    format_duration_interval,
    format_loss,
    format_losses,
    format_rough_duration,
    pluralize,
)

MAX_QUOTES, MAX_QUOTE_WIDTH = 3, 160  # lines of the log quoted for one finding; characters of one
MANY_STEPS = 1000  # whose time is shown where the length of the run is unknown
MAX_PROBLEMS = 2  # in a sentence; the others often result from them
LARGE_GAIN = 0.1  # nats, which are shown with two digits instead of three


class Meaning(NamedTuple):
    """What a confirmed finding says, and whether it is a problem rather than a property of the run."""

    text: str
    is_problem: bool


MEANINGS: dict[str, Meaning] = {
    "overfitting": Meaning("the run memorizes repeated text, which costs validation loss", True),
    "severe-overfitting": Meaning("the validation loss rises while the run repeats its text", True),
    "repetition-risk": Meaning("by its end the run will have read its text so often that this costs loss", True),
    "lr-too-high": Meaning("the learning rate has been too high for too long", True),
    "capacity-limited": Meaning("the model is about as good as its size allows", False),
    "data-limited": Meaning("unique text is running out: more of it would help more than a larger model", False),
    "missing-regularization": Meaning("the run overfits with little weight decay", True),
    "unneeded-dropout": Meaning("dropout slows the learning and prevents nothing", True),
    "noise-not-plateau": Meaning(
        "the apparent plateau is noise: evaluations are too small to show the decrease", False
    ),
    "not-annealed": Meaning("the learning rate has not decayed yet, so the loss will still fall", False),
    "recipe-or-bug": Meaning("the loss is above what size and tokens allow: the recipe, or a bug", True),
    "divergence": Meaning("the run diverges", True),
    "loss-spikes": Meaning("the loss spikes", True),
    "data-reused-after-resume": Meaning("after a resume the run was trained on the same text again", True),
    "throughput": Meaning("the steps have become slower", True),
    "input-or-overhead-bound": Meaning("something other than the device's arithmetic limits the speed", False),
}


class Quote(NamedTuple):
    """A line of the log with its number, which starts at 1."""

    number: int
    text: str


def summary(diagnosis: Diagnosis) -> tuple[str, str, str]:
    """The three main answers: when the run ends, at which loss, and what is wrong and what to do first."""
    first = first_steps(diagnosis)[:1]
    problem = problem_sentence(diagnosis)
    if first and limits_sentence(diagnosis) != problem:
        problem = _joined(problem, recommendation_sentence(first[0]))
    else:
        problem = " ".join([problem, *(recommendation_sentence(step) for step in first)])
    return eta_sentence(diagnosis), forecast_sentence(diagnosis), problem


def limits_sentence(diagnosis: Diagnosis) -> str:
    """What is wrong; where nothing is, what limits the loss and what would help most, in one sentence."""
    sentence = problem_sentence(diagnosis)
    first = first_steps(diagnosis)[:1]
    _, problems = _confirmed(diagnosis)
    return sentence if problems or not first else _joined(sentence, f"{first[0].action}.")


def _joined(sentence: str, remedy: str) -> str:
    return f"{sentence.removesuffix('.')}; what would help most: {remedy[0].lower()}{remedy[1:]}"


def eta_sentence(diagnosis: Diagnosis) -> str:
    """When the run ends."""
    completion = diagnosis.completion
    done = diagnosis.analysis.steps_done
    stop = diagnosis.analysis.early_stop
    if stop:
        total = pluralize(diagnosis.analysis.total_steps, "step")
        return f"It stopped early, after {done:,} of {total}: {stop.detail or 'the log has no reason'}."
    if completion is None:
        return f"When it ends is unknown without {diagnosis.no_completion}.{_time_of_steps(diagnosis)}"
    if completion.done:
        return _end_sentence(diagnosis, completion)
    time_left = format_duration_interval(completion.seconds, completion.low, completion.high)
    end = format_date(completion.end_time)
    return f"It ends in about {time_left}, {end}, counted from {completion.counted_from}."


def _end_sentence(diagnosis: Diagnosis, completion: CompletionEstimate) -> str:
    """That a run has done all of its steps, and when, as far as the log or its file tells."""
    steps = pluralize(diagnosis.analysis.steps_done, "step")
    if diagnosis.analysis.lacks_last_evaluation:
        return f"It has done all of its {steps}, but the log ends before the evaluation that follows them."
    date = format_date(completion.end_time)
    if completion.counted_from == FILE_CHANGE:
        return f"It is done: {steps}; the log has no times, and its file was last changed {date}."
    when = f", the last of them {date}" if completion.counted_from == LAST_RECORD else ""
    return f"It is done: {steps}{when}."


def _time_of_steps(diagnosis: Diagnosis) -> str:
    """The time of many steps, for a run of unknown length; empty where no step has a time."""
    step_time = Timing.from_history(diagnosis.history, 0).step_time
    if step_time is None:
        return ""
    seconds = format_rough_duration(MANY_STEPS * step_time.seconds)
    return f" {MANY_STEPS:,} steps take about {seconds} ({step_time.seconds:.4g} s per step)."


def forecast_sentence(diagnosis: Diagnosis) -> str:
    """At which validation loss the run ends."""
    forecast = diagnosis.forecast
    if diagnosis.final_evaluation is not None:
        return _measured_loss(diagnosis.analysis.losses.evaluations)
    if forecast is None:
        return f"There is no forecast of its validation loss: {diagnosis.no_forecast}."
    mean, low, high = format_losses(forecast.mean, forecast.low80, forecast.high80)
    steps = pluralize(len(diagnosis.context.lr_fractions), "step")
    doubt = "; its schedule is unknown, and --schedule narrows this" if diagnosis.context.schedules else ""
    return f"At {steps} it will end at a validation loss of {mean} (80 %: {low} to {high}){doubt}."


def _measured_loss(evaluations: Sequence[Evaluation]) -> str:
    """The last validation loss of a run that is over, and the lowest one if that was earlier."""
    last = evaluations[-1]
    lowest = min(evaluations, key=lambda evaluation: evaluation.val or 0.0)
    error = f" ± {last.standard_error:.3f}" if last.standard_error else ""
    text = f"It ended at a validation loss of {format_loss(last.val or 0.0)}{error}, measured at step {last.step:,}"
    if lowest is last:
        return f"{text}."
    return f"{text}; the lowest, {format_loss(lowest.val or 0.0)}, was at step {lowest.step:,}."


def problem_sentence(diagnosis: Diagnosis) -> str:
    """What is wrong, or what limits the loss where nothing is."""
    confirmed, problems = _confirmed(diagnosis)
    unknown = sum(finding.status == "unknown" for finding in diagnosis.findings)
    if not confirmed and unknown > len(diagnosis.findings) / 2:
        total = len(diagnosis.findings)
        if diagnosis.analysis.is_finished:
            return f"The log shows nothing wrong; {unknown} of {total} checks lack data."
        return f"Too early to tell whether something is wrong: {unknown} of {total} checks need more data."
    if not confirmed:
        return "The log shows nothing wrong."
    if _is_broken(diagnosis):
        return f"What is wrong: {_phrases(problems[:MAX_PROBLEMS])}."
    if confirmed[0] in problems:
        return f"Nothing is broken, but {_phrases(problems[:MAX_PROBLEMS])}."
    seems_stuck = any(finding.id == "noise-not-plateau" for finding in confirmed)
    start = "Nothing is broken, and it is not stuck" if seems_stuck else "Nothing is broken"
    first = _phrases(confirmed[:1])
    if not problems:
        return f"{start}: {first}."
    return f"{first[0].upper()}{first[1:]}. In addition, {_phrases(problems[:MAX_PROBLEMS])}."


def _is_broken(diagnosis: Diagnosis) -> bool:
    """Whether the first confirmed finding is a problem, and not a minor one."""
    confirmed, problems = _confirmed(diagnosis)
    return bool(confirmed) and confirmed[0] in problems and not confirmed[0].is_minor


def _confirmed(diagnosis: Diagnosis) -> tuple[list[Finding], list[Finding]]:
    """The confirmed findings, and those of them that are problems."""
    confirmed = [finding for finding in diagnosis.findings if finding.status == "confirmed"]
    return confirmed, [finding for finding in confirmed if MEANINGS[finding.id].is_problem]


def first_steps(diagnosis: Diagnosis) -> list[Recommendation]:
    """All recommendations; if something is broken, its remedies come first."""
    _, problems = _confirmed(diagnosis)
    remedies = [item for finding in problems for item in finding.recommendations] if _is_broken(diagnosis) else []
    return list({item.action: item for item in (*remedies, *diagnosis.recommendations)}.values())


def _phrases(findings: Iterable[Finding]) -> str:
    return "; ".join(meaning(finding) for finding in findings)


def meaning(finding: Finding) -> str:
    """What a confirmed finding says, in one phrase."""
    return finding.meaning or MEANINGS[finding.id].text


def recommendation_sentence(recommendation: Recommendation) -> str:
    """`Train without dropout.`, or with a gain `For the same compute, …: about 0.23 lower (80 %: 0.18 to 0.28).`"""
    gain = recommendation.gain
    if gain is None:
        return f"{recommendation.action}."
    digits = 2 if gain >= LARGE_GAIN else 3
    text = f"{recommendation.action}: about {format_change(-gain, digits)}"
    if recommendation.low is None or recommendation.high is None:
        return f"{text}."
    low, high = (f"{value:.{digits}f}".replace("-", MINUS) for value in (recommendation.low, recommendation.high))
    return f"{text} (80 %: {low} to {high})."


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
    seconds = diagnosis.analysis.seconds_until(steps)
    return "–" if seconds is None else format_rough_duration(seconds)


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
