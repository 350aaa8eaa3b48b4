"""The diagnosis in words: what a terminal and a page both say."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.completion.trend import MIN_BLOCKS, Trend
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.scenarios import ScenarioForecast
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import format_date, format_duration

MOST_LINES, WIDEST_LINE = 3, 160  # of the log, quoted for one condition; characters of one
PRECISE = 172_800.0  # seconds ahead up to which a duration is said to the second

# What each finding says where it is supported, and whether it is something that went wrong.
MEANING: dict[str, tuple[str, bool]] = {
    "overfitting": ("it learns repeated text by heart, and validation pays for it", True),
    "severe-overfitting": ("its validation loss turns back while it repeats its text", True),
    "repetition-risk": ("by its end it will have read its text so often that this costs loss", True),
    "lr-too-high": ("its learning rate has been too high for too long", True),
    "capacity-limited": ("the size of the model sets its level", False),
    "data-limited": ("it runs out of different text: more of it would help more than a larger model", False),
    "missing-regularization": ("nothing holds the repetition back: little weight decay, no dropout", True),
    "unneeded-dropout": ("its dropout holds it back and protects it from nothing", True),
    "noise-not-plateau": ("what looks like a plateau is the noise of its evaluations", False),
    "not-annealed": ("its learning rate has still to fall, and its loss with it", False),
    "recipe-or-bug": ("it stands above what its size and tokens reach: its recipe, or a bug", True),
    "divergence": ("it diverges", True),
    "loss-spikes": ("its loss spikes", True),
    "data-reused-after-resume": ("after a resume it was trained on the same text again", True),
    "throughput": ("its steps have become slower", True),
    "input-or-overhead-bound": ("something other than the text it reads sets its pace", False),
}


class Quote(NamedTuple):
    """A line of the log."""

    number: int
    text: str


def opening(found: Diagnosis) -> tuple[str, str, str]:
    """The three sentences that a person came for: when it ends, where it ends, what is wrong and what to do first."""
    return arrives(found), ends(found), matter(found)


def arrives(found: Diagnosis) -> str:
    """When it ends."""
    held = found.completion
    if held is None:
        return f"When it ends cannot be told without {found.no_completion}."
    if held.done:
        return f"It is done: {found.history.steps_done:,} steps, the last of them {format_date(held.clock)}."
    return (
        f"It ends in {left(held.seconds)} (80 %: {format_duration(held.low)} to {format_duration(held.high)}), "
        f"{format_date(held.clock)}, counted from {held.counted_from}."
    )


def ends(found: Diagnosis) -> str:
    """Where it ends."""
    steps, forecast = len(found.context.lr_fractions), found.forecast
    if forecast is None:
        return f"Where it ends cannot be told: {found.no_forecast}."
    verb = "ended" if found.completion and found.completion.done else "will end"
    return (
        f"At {steps:,} steps it {verb} at a validation loss of {forecast.mean:.3f} "
        f"(80 %: {forecast.low80:.3f} to {forecast.high80:.3f}; 95 %: {forecast.low95:.3f} to {forecast.high95:.3f})."
    )


def matter(found: Diagnosis) -> str:
    """What is wrong, and the first thing to do."""
    held = [finding for finding in found.findings if finding.status == "confirmed"]
    wrong = [finding for finding in held if MEANING[finding.id][1]]
    unclear = sum(finding.status == "unknown" for finding in found.findings)
    if not held and unclear > len(found.findings) / 2:
        return f"What is wrong cannot be told yet: {unclear} of {len(found.findings)} causes need more than is known."
    if not held:
        said = "Nothing is wrong that the log shows."
    elif held[0] in wrong:
        said = f"What is wrong: {phrases(wrong)}."
    else:
        also = f"; beside that, {phrases(wrong)}" if wrong else ""
        said = f"Nothing is broken: {phrases(held[:1])}{also}."
    cures = [advice for finding in wrong if held[0] in wrong for advice in finding.recommendations]
    first = next(iter((*cures, *found.recommendations)), None)
    return f"{said} First: {first.what.rstrip('.')}." if first else said


def phrases(findings: Iterable[Finding]) -> str:
    return "; ".join(f"{MEANING[finding.id][0]} ({finding.id})" for finding in findings)


def left(seconds: float) -> str:
    """A time ahead: to the second where that is near, else to the hour."""
    return format_duration(seconds, parts=3 if seconds < PRECISE else 2)


def pace(held: CompletionEstimate) -> str:
    """`3.995 s per step (3.60 to 4.99), from 1 line`."""
    if held.pace is None:
        return "not known"
    lines = "1 line" if held.pace.steps_used == 1 else f"the last {held.pace.steps_used:,} lines that count"
    return f"{held.pace.seconds:.4g} s per step (80 %: {held.pace.low:.4g} to {held.pace.high:.4g}), from {lines}"


def trend(held: CompletionEstimate) -> str:
    """Faster or slower, by how much, since when."""
    if held.pace is None or held.pace.steps_used < MIN_BLOCKS:
        return "too few lines have a time to see one"
    if held.trend is None:
        return "neither faster nor slower, as far as the log shows"
    return changed(held.trend)


def changed(held: Trend) -> str:
    way = "slower" if held.change > 0 else "faster"
    becomes = f"{abs(held.change):.1%} {way}: {held.before:.4g} s per step became {held.after:.4g} s"
    sure = "p < 0.0001" if held.chance < 1e-4 else f"p = {held.chance:.4f}"
    if held.kind == "drift":
        return f"steadily {becomes} since about step {held.since:,} ({sure})"
    return f"{becomes} at about step {held.since:,} ({sure})"


def interval(low: float, high: float) -> str:
    return f"{low:.3f}–{high:.3f}"


def cells(forecast: Forecast) -> tuple[str, str, str]:
    """Loss, 80 % and 95 %."""
    middle = f"{forecast.mean:.3f}"
    return middle, interval(forecast.low80, forecast.high80), interval(forecast.low95, forecast.high95)


def endings(found: Diagnosis) -> list[ScenarioForecast]:
    """The end that the run is heading for, and the others."""
    if found.forecast is None:
        return []
    return [ScenarioForecast("as it runs", len(found.context.lr_fractions), found.forecast), *found.scenarios]


def until(found: Diagnosis, steps: int) -> str:
    """How long it takes until `steps` are done, evaluations included; a dash where that is not known."""
    held, ahead = found.completion, steps - found.history.steps_done
    if held is None or held.pace is None or ahead <= 0:
        return "–"
    each = held.seconds / held.steps_left if held.steps_left else held.pace.seconds
    return format_duration(ahead * each)


def claims(found: Diagnosis) -> tuple[str, ...]:
    """Each claim, whether it is possible, and the reason."""
    return tuple(f"{one.claim}: {'possible' if one.possible else 'impossible'}; {one.reason}" for one in found.claims)


def gain(advice: Recommendation) -> str:
    """`about 0.045 nats (80 %: 0.030 to 0.060)`; empty where no law says."""
    if advice.gain is None:
        return ""
    said = f"about {advice.gain:.3f} nats"
    if advice.low is None or advice.high is None:
        return said
    return f"{said} (80 %: {advice.low:.3f} to {advice.high:.3f})"


def behind(finding: Finding) -> list[int]:
    """The numbers of the log's lines behind a finding, each once."""
    return sorted({line for condition in finding.conditions for line in condition.lines})


def quotes(history: History, numbers: Iterable[int]) -> list[Quote]:
    """These lines of the log; of many the first two and the last."""
    held = [number for number in dict.fromkeys(numbers) if 0 < number <= len(history.lines)]
    if len(held) > MOST_LINES:
        held = [*held[: MOST_LINES - 1], held[-1]]
    return [Quote(number, _short(history.lines[number - 1])) for number in held]


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= WIDEST_LINE else line[: WIDEST_LINE - 1] + "…"


def refuted(finding: Finding) -> str:
    """The first condition that a finding fails on, as a question with its answer, and what the log shows before it."""
    shown = ""
    for condition in finding.conditions:
        if condition.result is False:
            return f"{condition.question}? {condition.evidence}{shown}"
        if condition.result is None and condition.lines:
            shown += f"; {condition.evidence}"
    return ""


def unmeasured(finding: Finding) -> list[str]:
    """What would have to be measured or given for an answer, one thing each."""
    held = [condition.missing for condition in finding.conditions if condition.result is None]
    return list(dict.fromkeys(part for text in held for part in text.split("; ") if part))


def needs(found: Diagnosis) -> list[tuple[str, list[str]]]:
    """What is not known, and the findings that wait for it; what most of them wait for first."""
    waiting: dict[str, list[str]] = {}
    for finding in found.findings:
        for need in unmeasured(finding) if finding.status == "unknown" else ():
            waiting.setdefault(need, []).append(finding.id)
    return sorted(waiting.items(), key=lambda item: -len(item[1]))
