"""One run with everything that its checks use, computed once."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from jaxgpt.diagnose.analysis.gap import TrainValGap
from jaxgpt.diagnose.analysis.law import LawComparison
from jaxgpt.diagnose.analysis.losses import FIXED_TEXT_STDERR, Losses
from jaxgpt.diagnose.analysis.series import Estimate, Series, scatter
from jaxgpt.diagnose.completion import CompletionEstimate
from jaxgpt.diagnose.context import RunContext, schedule_detection
from jaxgpt.diagnose.forecast import annealing, scenarios
from jaxgpt.diagnose.forecast.annealing import Posterior
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.logs.history import Evaluation, History
from jaxgpt.runs.log import StopReason
from jaxgpt.utils.stats import is_valid

# The annealing gain B from the peak learning rate to zero and its standard deviation in nats, and the exponent q of the
# learning rate: used where no curve could be fitted.
ANNEALING_GAIN, ANNEALING_GAIN_SD = 0.128, 0.025
ANNEALING_EXPONENT = 0.85
RECENT = 3  # evaluations whose mean difference from the baseline run counts
NOISE_EVALUATIONS = 20  # differences from the baseline run whose scatter is measured


@dataclass(frozen=True)
class RunAnalysis:
    """One run and the quantities that several checks use. Nothing here raises: what is unknown is None or empty."""

    history: History
    context: RunContext
    posterior: Posterior | None = None
    forecast: Forecast | None = None
    completion: CompletionEstimate | None = None
    baseline: "RunAnalysis | None" = None

    @property
    def steps_done(self) -> int:
        """Steps done, at most the length of the run: nanoGPT does one step more."""
        return min(self.history.steps_done, self.context.total_steps or self.history.steps_done)

    @cached_property
    def first_nonfinite(self) -> tuple[int, int] | None:
        """Step and line of the first loss or gradient norm that is not finite and has no finite one after it."""
        losses = [(step.loss, step.step, step.line) for step in self.history.steps]
        norms = [(step.grad_norm, step.step, step.line) for step in self.history.steps]
        evaluations = [(e.val, e.step, e.line) for e in self.history.evaluations]
        for rows in (losses, norms, evaluations):
            logged = [(value, step, line) for value, step, line in rows if value is not None]
            valid = [index for index, (value, _, _) in enumerate(logged) if is_valid(value)]
            first = valid[-1] + 1 if valid else 0
            if first < len(logged):
                return logged[first][1:]
        return None

    @property
    def early_stop(self) -> StopReason | None:
        """Why the run was stopped before its last step; None for one that was not."""
        reason = self.history.metadata.stop_reason
        return reason if reason is not None and reason.is_early else None

    @property
    def is_over(self) -> bool:
        return self.steps_done >= self.total_steps or self.early_stop is not None

    @property
    def is_finished(self) -> bool:
        """Whether the run is known to be over. `is_over` also counts one of unknown length."""
        return self.is_over and (self.context.total_steps is not None or self.early_stop is not None)

    @cached_property
    def lacks_last_evaluation(self) -> bool:
        """Whether the evaluation after the last step is missing or unfinished, as where the process died during it."""
        evaluations = self.history.evaluations
        if not self.is_finished or not evaluations or self.history.metadata.stop_reason is not None:
            return False
        is_cut_off = evaluations[-1].val is None and any(evaluation.val is not None for evaluation in evaluations)
        return is_cut_off or (self.history.traits.is_jaxgpt_run and evaluations[-1].step < self.total_steps)

    @cached_property
    def final_evaluation(self) -> Evaluation | None:
        """The last evaluation of a run that is over; None for other runs, and where its loss is not finite."""
        evaluations = self.losses.evaluations
        is_last = bool(evaluations) and evaluations[-1] is self.history.evaluations[-1]
        return evaluations[-1] if self.is_finished and is_last and not self.lacks_last_evaluation else None

    @property
    def expected_end(self) -> float | None:
        """The validation loss at the end of the run: measured if it is over, else forecast; None where unknown."""
        if self.final_evaluation is not None:
            return self.final_evaluation.val
        return self.forecast.mean if self.forecast is not None else None

    @property
    def total_steps(self) -> int:
        """The length of the run in steps; where nothing says it, the steps done."""
        return self.context.total_steps or max(self.steps_done, 1)

    @property
    def step_seconds(self) -> float | None:
        """The seconds of a step without evaluation and saving; None where the log has none."""
        step_time = self.completion.step_time if self.completion else None
        return step_time.seconds if step_time else None

    def seconds_until(self, steps: int) -> float | None:
        """The seconds until `steps` steps are done, with evaluation and saving; None where unknown or in the past."""
        remaining = steps - self.steps_done
        if self.completion is None or self.step_seconds is None or remaining <= 0:
            return None
        left = self.completion.steps_left
        return remaining * (self.completion.seconds / left if left else self.step_seconds)

    @cached_property
    def losses(self) -> Losses:
        return Losses(self.history, self.context)

    @cached_property
    def gap(self) -> TrainValGap:
        baseline = None if self.baseline is None else self.baseline.gap
        return TrainValGap(self.losses, self.first_epoch_steps, baseline)

    @cached_property
    def law(self) -> LawComparison:
        return LawComparison(
            self.context, self.steps_done, self.total_steps, self._annealed_val, lambda: self.losses.latest_val
        )

    def lr_fraction(self, step: int) -> float | None:
        """The learning rate of a step over the peak learning rate; None without a schedule."""
        fractions = self.context.lr_fractions
        return float(fractions[min(max(step, 0), len(fractions) - 1)]) if len(fractions) else None

    @property
    def current_lr_fraction(self) -> float | None:
        """The learning rate of the last step over the peak; None where it is only assumed."""
        is_known = self.context.schedule_known or len(schedule_detection.logged_rates(self.history.steps).rates) > 0
        return self.lr_fraction(self.steps_done - 1) if is_known else None

    @property
    def epochs(self) -> float | None:
        """Epochs done."""
        return self.context.epochs(self.steps_done)

    @cached_property
    def first_epoch_steps(self) -> float | None:
        """Steps until every unique token has been read once."""
        context = self.context
        if not context.unique_tokens or not context.tokens_per_step:
            return None
        return context.unique_tokens / context.tokens_per_step

    @cached_property
    def fit_without_prior(self) -> Posterior | None:
        """The loss model fitted to the validation losses alone: without a prior and without a repetition cost."""
        return self._fit(math.inf)

    @cached_property
    def excess_over_epoch1_forecast(self) -> Estimate | None:
        """The last validation losses minus what a fit to the first epoch predicts; None without such a fit."""
        end = self.first_epoch_steps
        if end is None or self.steps_done <= end:
            return None
        fit = self._fit(end)
        val = self.losses.val
        if fit is None or val.steps[-1] <= end:
            return None
        last = val.between(max(end, val.steps[-3]), math.inf)
        means, sds = fit.predict(last.steps.astype(np.int64))
        excess = float((last.values - means).mean())
        stderr = math.hypot(float(sds[-1]), self.losses.eval_stderr or 0.0)
        return Estimate(excess, stderr, tuple(int(line) for line in last.lines))

    def _fit(self, end: float) -> Posterior | None:
        if self.posterior is None:
            return None
        curve = self.posterior.curve
        chosen = curve.steps <= end
        try:
            return annealing.fit(
                replace(curve, steps=curve.steps[chosen], losses=curve.losses[chosen], repetition=None)
            )
        except ValueError:
            return None

    @cached_property
    def annealing_gain(self) -> Estimate | None:
        """How much a decay to a learning rate of zero, over a tenth of the steps done, would lower the loss now."""
        fraction = self.current_lr_fraction
        if fraction is None or not self.steps_done:
            return None
        if self.posterior is None:
            scale = fraction**ANNEALING_EXPONENT
            return Estimate(ANNEALING_GAIN * scale, ANNEALING_GAIN_SD * scale)
        cooldown = scenarios.cooldown(self.context.lr_fractions, self.steps_done)
        return Estimate(*self.posterior.remaining_annealing_gain(self.steps_done, cooldown))

    def _annealed_val(self) -> Estimate | None:
        """The last validation loss minus the annealing gain."""
        latest, gain = self.losses.latest_val, self.annealing_gain
        if latest is None or gain is None:
            return None
        return Estimate(latest.value - gain.value, math.hypot(gain.stderr, latest.stderr), latest.lines)

    @cached_property
    def expected_decrease(self) -> float | None:
        """How far the fitted curve falls over the plateau window, in nats."""
        window = self.losses.plateau_window
        if window is None or self.posterior is None:
            return None
        means, _ = self.posterior.predict([window.first.step, window.last.step])
        return float(means[0] - means[1])

    @cached_property
    def loss_above_baseline(self) -> Estimate | None:
        """The last validation losses minus those of the baseline run at the same steps."""
        return self.loss_above_baseline_where(lambda step: True, RECENT)

    def loss_above_baseline_where(self, condition: Callable[[int], bool], count: int | None = None) -> Estimate | None:
        """The mean difference from the baseline run's validation losses at the steps that meet `condition`.

        `count`: only the last so many. None where the two runs share no such steps.
        """
        if self.baseline is None or not len(self.baseline.losses.val):
            return None
        other = self.baseline.losses.val
        shared = self.losses.val.between(max(float(other.steps[0]), 1.0), float(other.steps[-1]) + 1)
        differences = shared.values - np.interp(shared.steps, other.steps, other.values)
        chosen = np.array([condition(int(step)) for step in shared.steps], bool)
        selected = Series(shared.steps[chosen], differences[chosen], shared.lines[chosen]).last(count or len(shared))
        if not len(selected):
            return None
        stderr = self._difference_noise(differences) / math.sqrt(len(selected))
        return Estimate(float(selected.values.mean()), stderr, tuple(int(line) for line in selected.lines[-RECENT:]))

    def _difference_noise(self, differences: np.ndarray) -> float:
        """The noise of one difference from the baseline run. Noise that both curves share cancels."""
        noise = scatter(differences[-NOISE_EVALUATIONS:])
        if noise is None:
            other = self.baseline.losses.eval_stderr if self.baseline else None
            noise = math.hypot(self.losses.eval_stderr or FIXED_TEXT_STDERR, other or FIXED_TEXT_STDERR)
        return max(noise, FIXED_TEXT_STDERR)
