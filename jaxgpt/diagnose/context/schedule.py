"""Resolves the length of a run and its learning-rate schedule.

Learning rates in the log are evidence: if they follow a schedule, it is detected from them; if they do not, they stand
for the part of the run that was logged.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from jaxgpt.config import Config, Optim, schedule
from jaxgpt.diagnose.context import endings, schedule_detection
from jaxgpt.diagnose.context.endings import Ending, ScheduleName
from jaxgpt.diagnose.context.facts import Fact, Source, nonnegative, resolve, step_count
from jaxgpt.diagnose.context.schedule_detection import DetectedSchedule, LoggedRates
from jaxgpt.diagnose.options import MAX_STEPS, Options
from jaxgpt.errors import ConfigError
from jaxgpt.logs.history import History
from jaxgpt.utils.formatting import pluralize

DESCRIPTIONS = {"cosine": "a cosine", "linear": "linear", "wsd": "constant with a linear decay", "constant": "constant"}
DEFAULT_PEAK_LR, DEFAULT_WARMUP = 6e-4, 2000  # nanoGPT's
MAX_LR = 10.0
NEAR_END = 0.005  # relative: a detected end this close to the run's length is the run's length


@dataclass(frozen=True)
class ScheduleResolver:
    """Resolves each fact of the schedule once, from options, log and config, with its source.

    `config` is the run's own config, if it was logged, else the one that `--config` names. The facts raise
    `ConfigError` C049 to C051 for options that the log contradicts.
    """

    history: History
    options: Options
    config: Config | None

    def facts(self) -> dict[str, Fact[Any]]:
        """All facts by name."""
        return {
            "total_steps": self.total_steps,
            "schedule": self.schedule,
            "peak_lr": self.peak_lr,
            "warmup": self.warmup,
            "min_lr": self.min_lr,
            "decay_steps": self.decay_steps,
            "steps_done": self.steps_done,
        }

    @property
    def schedule_known(self) -> bool:
        """Whether neither the schedule nor the length is assumed."""
        return self.schedule.source != "assumption" and self.total_steps.value is not None

    @cached_property
    def total_steps(self) -> Fact[int]:
        """The length of the run; without a stated one, the step at which its learning rate has decayed."""
        return self._stated_total if self._stated_total.value is not None else self._end_of_decay()

    @cached_property
    def _stated_total(self) -> Fact[int]:
        option = self.options.total_steps
        if option is not None and option < self._last_step:
            message = f"--total-steps {option:,} is below step {self._last_step:,}, which the log has"
            raise ConfigError("C049", message, f"--total-steps {self._last_step} or more")
        totals = {"log": self.history.metadata.total_steps, "config": self.config.run.steps if self.config else None}
        valid = {name: total for name, total in totals.items() if total is not None and 1 <= total <= MAX_STEPS}
        exceeded = next((total for total in valid.values() if total < self._last_step), None)
        candidates: dict[Source, int | None] = {"option": option}
        for source in ("log", "config"):
            total = valid.get(source)
            candidates[source] = total if total is not None and total >= self._last_step else None
        note = "" if exceeded is None else f"the run exceeds its configured {pluralize(exceeded, 'step')}"
        fact = resolve(candidates)
        return fact if fact.source == "option" or not note else fact._replace(note=f"{note} (--total-steps)")

    def _end_of_decay(self) -> Fact[int]:
        end = self._matching.end if self._matching else None
        for step in (end, step_count(self._logged("lr_decay_iters"))):
            if step is None or not 0.98 * self._last_step <= step <= MAX_STEPS:
                continue
            total = max(round(step), self._last_step)
            extrapolated = self.detected is not None and step > self._last_step and self.schedule.value != "cosine"
            event = "would reach 0" if extrapolated else "has decayed"
            note = f"the run is assumed to end at step {total:,}, where its learning rate {event} (--total-steps)"
            return Fact(total, "assumption", " ".join(filter(None, (self._stated_total.note, note))))
        return self._estimated_total()

    def _estimated_total(self) -> Fact[int]:
        estimate = self.history.metadata.estimated_total_steps
        if estimate is None or not self._last_step <= estimate <= MAX_STEPS:
            return self._stated_total
        note = f"the run is assumed to take about {estimate:,} steps, by the remaining time in its log (--total-steps)"
        return Fact(estimate, "assumption", note)

    @property
    def _last_step(self) -> int:
        """The last step that the log names: nanoGPT does one step more than its `max_iters`."""
        records = (self.history.steps, self.history.evaluations)
        return max((entries[-1].step for entries in records if entries), default=0)

    @cached_property
    def steps_done(self) -> Fact[int]:
        """Steps done, at most `MAX_STEPS`."""
        if self._last_step <= MAX_STEPS:
            return Fact(self._last_step, "log")
        note = f"{self._last_step:,} is read as a number of steps; if it counts tokens, name its column tokens"
        return Fact(MAX_STEPS, "log", f"{note} (--batch-tokens)")

    @cached_property
    def logged(self) -> LoggedRates:
        """The learning rates in the log."""
        return schedule_detection.logged_rates(self.history.steps)

    @cached_property
    def detected(self) -> DetectedSchedule | None:
        """The schedule that the logged learning rates follow; None for a run whose config is logged."""
        if self.history.config:
            return None
        return schedule_detection.detect_schedule(self.logged, self._stated_total.value)

    @property
    def _matching(self) -> DetectedSchedule | None:
        """The detected schedule if it is the resolved one."""
        return self.detected if self.detected and self.detected.schedule == self.schedule.value else None

    @cached_property
    def schedule(self) -> Fact[ScheduleName]:
        """The name of the schedule."""
        option = self.options.schedule
        logged = str(self._logged("schedule") or "")
        if logged not in DESCRIPTIONS:
            logged = self._schedule_of_hyperparameters()
        detected = self.detected.schedule if self.detected and self.detected.schedule != "constant" else None
        assumed, reason = self._assumed_schedule()
        notes: dict[Source, str] = {"assumption": f"{reason} (--schedule)"}
        if detected:
            notes["logged rates"] = f"the logged rates show the schedule: {DESCRIPTIONS[detected]} (--schedule)"
        candidates: dict[Source, ScheduleName | None] = {
            "option": "wsd" if option == "trapezoid" else option,
            "log": cast(ScheduleName, logged) if logged else None,
            "logged rates": detected,
            "assumption": assumed,
        }
        return resolve(candidates | self._from_config("schedule"), notes)

    def _schedule_of_hyperparameters(self) -> ScheduleName | Literal[""]:
        """The schedule that nanoGPT's or modded-nanogpt's hyperparameters belong to; empty if none is logged."""
        if self._logged("decay_lr") is False:
            return "constant"
        if self._logged("lr_decay_iters") is not None:
            return "cosine"
        return "wsd" if self._logged("warmdown_iters") is not None else ""

    def _assumed_schedule(self) -> tuple[ScheduleName, str]:
        if self.detected:
            return "constant", "the learning rate has not decayed so far; it may stay, or decay over the last 5 to 40 %"
        if len(self.logged.rates) >= schedule_detection.MIN_POINTS:
            return "constant", "the logged learning rates follow no known schedule; the last one is assumed to stay"
        others = "the forecast also counts with other schedules"
        if self.history.traits.default_schedule == "wsd":
            return "wsd", f"the schedule is assumed to be a trapezoid, as modded-nanogpt's are; {others}"
        return "cosine", f"the schedule is assumed to be a cosine; {others}"

    @cached_property
    def peak_lr(self) -> Fact[float]:
        """The highest learning rate."""
        candidates: dict[Source, float | None] = {
            "option": self.options.peak_lr,
            "log": nonnegative(self._logged("learning_rate")),
            "logged rates": self._logged_peak() if not self.history.traits.lr_is_relative else None,
            "assumption": DEFAULT_PEAK_LR,
        }
        candidates |= self._from_config("learning_rate")
        plausible = {name: rate for name, rate in candidates.items() if rate is not None and 0 < rate <= MAX_LR}
        note = f"the peak learning rate is assumed to be {DEFAULT_PEAK_LR:g} (--peak-lr)"
        return resolve(plausible, {"assumption": note})

    def _logged_peak(self) -> float | None:
        """The peak of the logged learning rates; None if there are none."""
        if self.detected:
            return self.detected.peak
        return float(self.logged.rates.max()) if len(self.logged.rates) else None

    @cached_property
    def warmup(self) -> Fact[int]:
        """Steps of warmup, at most the run's length."""
        length = self._length_or_limit
        option = self.options.warmup
        if option is not None and option > length:
            message = f"--warmup {option} exceeds the run's length of {length:,}"
            raise ConfigError("C050", message, "shorten it, or give --total-steps")
        assumed = self._assumed_warmup()
        candidates: dict[Source, int | None] = {
            "option": option,
            "log": step_count(self._logged("warmup_iters")),
            "logged rates": self.detected.warmup if self.detected else None,
            "assumption": assumed,
        }
        candidates |= self._from_config("warmup_steps")
        fact = resolve(candidates, {"assumption": f"a warmup of {pluralize(assumed, 'step')} is assumed (--warmup)"})
        return fact._replace(value=min(fact.known, length))

    def _assumed_warmup(self) -> int:
        if self.detected and self.detected.begin is not None:
            return min(round(self.detected.begin), self._length_or_limit)
        return min(DEFAULT_WARMUP, self.total_steps.value // 10) if self.total_steps.value else DEFAULT_WARMUP

    @property
    def _length_or_limit(self) -> int:
        return MAX_STEPS if self.total_steps.value is None else self.total_steps.value

    @cached_property
    def min_lr(self) -> Fact[float]:
        """The learning rate at the end of the decay, at most the peak; 0 for a constant schedule."""
        peak = self.peak_lr.known
        option = self.options.min_lr
        is_constant = self.schedule.value == "constant"
        if option is not None:
            if option > peak and not is_constant:
                message = f"--min-lr {option:g} is above the peak of {peak:g}"
                raise ConfigError("C051", message, f"--min-lr {peak / 10:g}, or --peak-lr")
            return Fact(option, "option")
        if self.options.schedule == "trapezoid" or is_constant:
            return Fact(0.0, "option" if self.options.schedule else self.schedule.source)
        logged = nonnegative(self._logged("min_lr"))
        fraction = nonnegative(self._logged("final_lr_fraction"))
        if logged is None and fraction is not None:
            logged = min(fraction, 1.0) * peak
        candidates: dict[Source, float | None] = {
            "log": logged,
            "logged rates": self._matching.final / self._matching.peak * peak if self._matching else None,
            "assumption": peak / 10,
        }
        candidates |= self._from_config("min_lr")
        note = f"the final learning rate is assumed to be {peak / 10:g}, a tenth of the peak (--min-lr)"
        fact = resolve(candidates, {"assumption": note})
        return fact._replace(value=min(fact.known, peak))

    @cached_property
    def decay_steps(self) -> Fact[int]:
        """The schedule's `decay_steps`, limited to the run's length; unknown for a constant schedule."""
        if self.schedule.value == "constant":
            return Fact()
        is_wsd = self.schedule.value == "wsd"
        fact = self._stated_decay_steps()
        if fact.value is None and is_wsd and self._matching is None:
            fact = Fact(None, "assumption", "the decay is assumed to take the last fifth of the run (--decay-steps)")
        total = self.total_steps.value
        if fact.value is None or total is None:
            return fact
        warmup = self.warmup.known
        if not is_wsd:
            return fact._replace(value=max(fact.value, warmup, 1))
        if fact.value + warmup > total and fact.source == "option":
            message = f"--decay-steps {fact.value} and a warmup of {warmup} exceed the run's length of {total:,}"
            raise ConfigError("C050", message, "shorten one of them")
        return fact._replace(value=max(min(fact.value, total - warmup), 1))

    def _stated_decay_steps(self) -> Fact[int]:
        candidates: dict[Source, int | None] = {"option": self.options.decay_steps}
        if not self.history.config:
            name = "warmdown_iters" if self.schedule.value == "wsd" else "lr_decay_iters"
            candidates["log"] = step_count(self._logged(name)) or None
            candidates["logged rates"] = self._detected_decay_steps()
        has_same_schedule = self.config and self.config.optim.schedule == self.schedule.value and not self._matching
        if self.history.config or has_same_schedule:
            candidates |= self._from_config("decay_steps")
        return resolve(candidates)

    def _detected_decay_steps(self) -> int | None:
        detected = self._matching
        if detected is None or detected.end is None:
            return None
        if detected.decay_steps is not None:
            return max(round(detected.decay_steps), 1)
        total = self.total_steps.value
        if total is None or abs(detected.end - total) < NEAR_END * total:
            return None
        return max(round(detected.end), 1)

    @cached_property
    def optim(self) -> Optim:
        """The optimizer's config with the resolved schedule; of an unknown optimizer the rest is AdamW's default."""
        base = self.config.optim if self.config else Optim()
        peak = self.peak_lr.known
        logged_decay = nonnegative(self._logged("weight_decay"))
        weight_decay = resolve({"option": self.options.weight_decay, "log": logged_decay, "config": base.weight_decay})
        return replace(
            base,
            learning_rate=peak,
            min_lr=peak if self.schedule.value == "constant" else self.min_lr.known,
            schedule=self.schedule.known,
            warmup_steps=self.warmup.known,
            decay_steps=self.decay_steps.value,
            weight_decay=weight_decay.known,
        )

    def lr_fractions(self) -> NDArray[np.float64]:
        """The learning rate of each step over the peak; logged rates replace those of a schedule that they contradict.

        Without a known length the steps done are covered, as a decay needs an end.
        """
        total = self.total_steps.value
        steps = total if total is not None else max(self.steps_done.known, 1)
        optim = self.optim if total is not None else replace(self.optim, schedule="constant")
        fractions = schedule.learning_rates(optim, steps) / (optim.learning_rate or 1.0)
        follows_detected = self.detected is not None and self.detected.warmup is not None
        if self.history.config or len(self.logged.rates) < schedule_detection.MIN_POINTS or follows_detected:
            return fractions
        peak = self._logged_peak() or 0.0
        if peak == 0 and self.options.schedule is None:
            return np.zeros(steps)
        return _overlay(fractions, self.logged, peak, stays=self.detected is None and self.options.schedule is None)

    @property
    def may_decay(self) -> bool:
        """Whether the learning rate is constant so far and nothing says that it stays."""
        return self.schedule.source == "assumption" and self.detected is not None and self.total_steps.value is not None

    def possible_schedules(self) -> tuple[Ending, ...]:
        """The schedules that the run may have where neither options, log, rates nor config state one; else empty."""
        total = self.total_steps.value
        has_rates = len(self.logged.rates) >= schedule_detection.MIN_POINTS
        if self.schedule.source != "assumption" or total is None or has_rates:
            return ()
        return endings.possible_schedules(self.optim, total, self.history.traits.default_schedule)

    def _from_config(self, field: str) -> dict[Source, Any]:
        """The value of an optimizer field in the config, by its source."""
        if self.config is None:
            return {}
        return {"run config" if self.history.config else "config": getattr(self.config.optim, field)}

    def _logged(self, name: str) -> float | bool | str | None:
        return self.history.metadata.hyperparameters.get(name)


def _overlay(fractions: NDArray[np.float64], log: LoggedRates, peak: float, stays: bool) -> NDArray[np.float64]:
    """`fractions` with the logged rates over `peak` where they were logged; after them the last one if it `stays`."""
    if not peak > 0:
        return fractions
    fractions = fractions.copy()
    end = min(int(log.steps[-1]) + 1, len(fractions))
    start = min(int(log.steps[0]), end)
    fractions[start:end] = np.interp(np.arange(start, end), log.steps, log.rates / peak)
    if stays:
        fractions[end:] = log.rates[-1] / peak
    return fractions
