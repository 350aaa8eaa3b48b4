"""How long the run is and how its learning rate goes. An option beats the log, that a config, that an assumption.

Rates in the log are evidence: the schedule is recognised from them where they follow one, and where they follow none
they stand for the part that was seen.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from jaxgpt.config import Config, Optim, schedule
from jaxgpt.diagnose.context import schedule_detection
from jaxgpt.diagnose.context.schedule_detection import DetectedSchedule, LoggedRates
from jaxgpt.diagnose.options import MAX_STEPS, Options
from jaxgpt.errors import ConfigError
from jaxgpt.logs.history import History

USUAL_RATE, USUAL_WARMUP = 6e-4, 2000  # nanoGPT's
WORDS = {"cosine": "a cosine", "linear": "a line", "wsd": "a hold with a linear fall", "constant": "constant"}
Schedule = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Length, optimizer and schedule; `rates` are shares of the peak, of all updates or, without a length, so far."""

    total_steps: int | None
    optim: Optim
    rates: NDArray[np.float64]
    schedule_known: bool
    assumed: tuple[str, ...]


def resolve(history: History, options: Options, config: Config | None) -> Recipe:
    """The recipe of the run. Raises `ConfigError` C049 to C051 for options that its log refutes."""
    return _Reading(history, options, config).recipe()


class _Reading:
    """The sources of each fact side by side."""

    def __init__(self, history: History, options: Options, config: Config | None) -> None:
        self._history, self._options, self._config = history, options, config
        self._words = history.metadata.hyperparameters
        self._own = history.config.optim if history.config else None
        self._given = config.optim if config else None
        self._log = schedule_detection.logged_rates(history.steps)
        self._assumed: list[str] = []
        self._total = self._length()
        self._seen = None if self._own else schedule_detection.detect_schedule(self._log, self._total)

    def recipe(self) -> Recipe:
        name, known = self._schedule()
        if self._total is None:
            self._total = self._length_of_fall(name)
        optim = self._optim(name)
        curve = self._curve(optim)
        return Recipe(
            total_steps=self._total,
            optim=optim,
            rates=curve,
            schedule_known=known and self._total is not None,
            assumed=tuple(self._assumed),
        )

    def _length(self) -> int | None:
        done, given, stated = self._updates(), self._options.total_steps, self._history.metadata.total_steps
        if given is not None:
            if given < done:
                what = f"--total-steps {given:,} is below step {done:,}, which the log has"
                raise ConfigError("C049", what, f"--total-steps {done} or more")
            return given
        for total in (stated, self._config.run.steps if self._config else None):
            if total is not None and 1 <= total <= MAX_STEPS:
                if total >= done:
                    return total
                self._assume(f"the run is longer than the {total:,} steps that it was set to", "--total-steps")
        return None

    def _updates(self) -> int:
        """The last step that the log names: nanoGPT makes one update more than its `max_iters`."""
        steps, evaluations = self._history.steps, self._history.evaluations
        return max([records[-1].step for records in (steps, evaluations) if records], default=0)

    def _seen_updates(self) -> int:
        """Updates done, as far as they are looked at one by one."""
        done = self._updates()
        if done > MAX_STEPS:
            self._assume(
                f"{done:,} steps are taken for steps; if they are tokens, name their column so", "--batch-tokens"
            )
        return min(done, MAX_STEPS)

    def _length_of_fall(self, name: Schedule) -> int | None:
        """The step at which the rates of the log are at their end, if they tell."""
        end = self._seen.end if self._seen and self._seen.schedule == name else None
        decay = whole(self._words.get("lr_decay_iters"))
        done = self._updates()
        for step in (end, decay):
            if step is not None and 0.98 * done <= step <= MAX_STEPS:
                total = max(round(step), done)
                where = "would come to 0" if self._seen and step > done and name != "cosine" else "has fallen"
                self._assume(f"the run is assumed to end at step {total:,}, where its rate {where}", "--total-steps")
                return total
        return None

    def _schedule(self) -> tuple[Schedule, bool]:
        """The schedule's name, and whether anything but an assumption says so."""
        given, words = self._options.schedule, str(self._words.get("schedule", ""))
        if given:
            return "wsd" if given == "trapezoid" else given, True
        if self._own:
            return self._own.schedule, True
        if words in WORDS:
            return cast(Schedule, words), True
        if self._words.get("decay_lr") is False:
            return "constant", True
        if self._seen and self._seen.schedule != "constant":
            self._assume(f"the schedule is read off the logged rates: {WORDS[self._seen.schedule]}", "--schedule")
            return self._seen.schedule, True
        if self._given:
            return self._given.schedule, True
        if self._seen:
            self._assume("the learning rate has not fallen so far; it is assumed to stay", "--schedule")
            return "constant", False
        if len(self._log.rates) >= schedule_detection.MIN_POINTS and self._seen is None:
            self._assume("the logged rates follow no known schedule; the last one is assumed to stay", "--schedule")
            return "constant", False
        if "lr_decay_iters" in self._words or "min_lr" in self._words:
            return "cosine", True
        if self._history.format == "modded":
            self._assume("the schedule is assumed to be a trapezoid, as modded-nanogpt's are", "--schedule")
            return "wsd", False
        self._assume("the schedule is assumed to be a cosine", "--schedule")
        return "cosine", False

    def _optim(self, name: Schedule) -> Optim:
        peak, warmup = self._peak(), self._warmup()
        least = self._least(name, peak)
        base = self._own or self._given or Optim()
        decay = self._options.weight_decay
        known = decay if decay is not None else positive(self._words.get("weight_decay"))
        return replace(
            base,
            learning_rate=peak,
            min_lr=peak if name == "constant" else least,
            schedule=name,
            warmup_steps=warmup,
            decay_steps=self._decay(name, warmup),
            weight_decay=base.weight_decay if known is None else known,
        )

    def _peak(self) -> float:
        seen = None
        if len(self._log.rates) and not self._history.metadata.relative_rate:
            seen = self._seen.peak if self._seen else float(self._log.rates.max())
        own, config = self._own, self._given
        for value in (
            self._options.peak_lr,
            _of(own, "learning_rate"),
            positive(self._words.get("learning_rate")),
            seen,
            _of(config, "learning_rate"),
        ):
            if value is not None and 0 < value <= 10:
                return value
        self._assume(f"the peak learning rate is assumed to be {USUAL_RATE:g}", "--peak-lr")
        return USUAL_RATE

    def _warmup(self) -> int:
        longest = self._total if self._total is not None else MAX_STEPS
        own, config, seen = self._own, self._given, self._seen
        for value in (
            self._options.warmup,
            _of(own, "warmup_steps"),
            whole(self._words.get("warmup_iters")),
            _of(seen, "warmup"),
            _of(config, "warmup_steps"),
        ):
            if value is not None:
                if value > longest and value == self._options.warmup:
                    what = f"--warmup {value} is longer than the run of {longest:,} steps"
                    raise ConfigError("C050", what, "shorten it, or give --total-steps")
                return min(value, longest)
        usual = USUAL_WARMUP if self._total is None else min(USUAL_WARMUP, self._total // 10)
        if seen and seen.begin is not None:
            usual = min(round(seen.begin), longest)
        self._assume(f"a warmup of {usual:,} steps is assumed", "--warmup")
        return usual

    def _least(self, name: Schedule, peak: float) -> float:
        own, config, options, seen = self._own, self._given, self._options, self._seen
        if options.min_lr is not None:
            if options.min_lr > peak and name != "constant":
                what = f"--min-lr {options.min_lr:g} is above the peak of {peak:g}"
                raise ConfigError("C051", what, f"--min-lr {peak / 10:g}, or --peak-lr")
            return options.min_lr
        if options.schedule == "trapezoid" or name == "constant":
            return 0.0
        recognised = None if seen is None or seen.schedule != name else seen.least / seen.peak * peak
        share = positive(self._words.get("end_share"))
        for value in (
            _of(own, "min_lr"),
            positive(self._words.get("min_lr")),
            None if share is None else min(share, 1.0) * peak,
            recognised,
            _of(config, "min_lr"),
        ):
            if value is not None:
                return min(value, peak)
        self._assume(f"the last learning rate is assumed to be {peak / 10:g}, a tenth of the peak", "--min-lr")
        return peak / 10

    def _decay(self, name: Schedule, warmup: int) -> int | None:
        """The schedule's `decay_steps`, which fits the run's length."""
        if name == "constant":
            return None
        own, config, seen, total = self._own, self._given, self._seen, self._total
        fitting = seen if seen and seen.schedule == name else None
        value = self._options.decay_steps
        if value is None and own:
            value = own.decay_steps
        if value is None and not own:
            word = "warmdown_iters" if name == "wsd" else "lr_decay_iters"
            value = whole(self._words.get(word)) or _recognised_decay(fitting, total)
        if value is None and config and config.schedule == name and not own and not fitting:
            value = config.decay_steps
        if value is None and name == "wsd" and fitting is None:
            self._assume("the fall of the rate is assumed to take the last fifth of the run", "--decay-steps")
        if value is None or total is None:
            return value
        if name == "wsd":
            if value + warmup > total and value == self._options.decay_steps:
                what = f"--decay-steps {value} and a warmup of {warmup} are longer than the run of {total:,} steps"
                raise ConfigError("C050", what, "shorten one of them")
            return max(min(value, total - warmup), 1)
        return max(value, warmup, 1)

    def _curve(self, optim: Optim) -> NDArray[np.float64]:
        """Shares of the peak: the schedule's, and of the part seen the log's own where it follows none."""
        steps = self._total if self._total is not None else max(self._seen_updates(), 1)
        shape = optim if self._total is not None else replace(optim, schedule="constant")  # a fall needs an end
        curve = schedule.learning_rates(shape, steps) / (optim.learning_rate or 1.0)
        if (
            self._own
            or len(self._log.rates) < schedule_detection.MIN_POINTS
            or (self._seen and self._seen.warmup is not None)
        ):
            return curve
        peak = self._seen.peak if self._seen else float(self._log.rates.max())
        if peak == 0 and self._options.schedule is None:
            return np.zeros(steps)
        return _overlaid(curve, self._log, peak, self._seen is None and self._options.schedule is None)

    def _assume(self, sentence: str, option: str) -> None:
        self._assumed.append(f"{sentence} ({option})")


def _of(owner: Any, name: str) -> Any:
    """A field of what may be missing."""
    return None if owner is None else getattr(owner, name)


def _recognised_decay(seen: DetectedSchedule | None, total: int | None) -> int | None:
    if seen is None or seen.end is None:
        return None
    if seen.fall is not None:
        return max(round(seen.fall), 1)
    return None if total is None or abs(seen.end - total) < 0.005 * total else max(round(seen.end), 1)


def _overlaid(curve: NDArray[np.float64], log: LoggedRates, peak: float, stays: bool) -> NDArray[np.float64]:
    """`curve` with the logged rates over the part seen; behind it the last one where it `stays`."""
    seen = min(int(log.updates[-1]) + 1, len(curve))
    if not peak > 0:
        return curve
    curve = curve.copy()
    first = min(int(log.updates[0]), seen)
    curve[first:seen] = np.interp(np.arange(first, seen), log.updates, log.rates / peak)
    if stays:
        curve[seen:] = log.rates[-1] / peak
    return curve


def positive(value: Any) -> float | None:
    """A finite number from 0 on, as a log's settings hold it; else None."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return float(number) if number is not None and 0 <= number < 1e18 else None


def whole(value: Any) -> int | None:
    number = positive(value)
    return int(number) if number is not None and number <= MAX_STEPS else None
