"""What to do about a confirmed finding: the action, its command, and the gain that the loss models expect.

Gains are in nats, relative to the loss that the run is heading for, with 80 % intervals.
"""

import math
import shlex
from collections.abc import Callable, Sequence

from jaxgpt.budget.recipes import LOSS_GAINS
from jaxgpt.budget.recommend import MEASURABLE_GAIN
from jaxgpt.diagnose.analysis import RunAnalysis
from jaxgpt.diagnose.analysis.losses import VISIBLE
from jaxgpt.diagnose.checks import faults, instabilities, invalid_losses, larger_model
from jaxgpt.diagnose.checks.repetition_gain import recoverable_cost
from jaxgpt.diagnose.context.evaluation_noise import RANDOM_TEXT_STDERR, RANDOM_TEXT_TOKENS
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast import scenarios
from jaxgpt.diagnose.suggested_commands import Changes, Checkpoint, train_command
from jaxgpt.utils.formatting import format_rough_duration, format_tokens, pluralize
from jaxgpt.utils.stats import Z80

REPETITION_SD = 0.7  # of a gain that the repetition law predicts: its spread
# Weight decay of 1.0 takes about 70 % off the cost of repetition (Lovelace et al., 2026, abstract); slowrun's best on
# 100M tokens have 0.8 to 1.6 and dropout 0.1.
USEFUL_EPOCHS = 40  # after which a further epoch is worth nothing (Muennighoff et al., 2023)
STRONG_DECAY, STRONG_DROPOUT = 0.8, 0.1
REGULARIZATION_GAIN, REGULARIZATION_GAIN_SD = 0.5, 0.2  # of the cost of repetition
LR_REDUCTION = 3.0  # by which a learning rate that broke a run is divided
VISIBLE_GAIN = 0.0005  # nats that round to more than nothing
MORE_STEPS = 0.25
MAX_EVAL_TOKENS = 10_000_000
CHECK_WEIGHTS = "Look for NaN in the starting weights and in the first batch; resume from an earlier checkpoint"
CHECK_TARGETS = "Check that no position sees its own target: the causal mask, and targets shifted by one token"
CHECK_EVALUATION = "Check that the evaluation uses the current weights, and the batches of the validation split"
SAFE_CLIP = 0.5  # gradient norm
WARMUP_SHARE = 10  # a recommended warmup is the run's length divided by it


def recommend(run: RunAnalysis, finding: Finding) -> tuple[Recommendation, ...]:
    """What to do about a finding if it is confirmed, without actions that are expected to gain nothing."""
    if finding.status != "confirmed" or finding.id not in RECOMMENDERS:
        return ()
    recommended = RECOMMENDERS[finding.id](run)
    return tuple(item for item in recommended if item.gain is None or item.gain >= VISIBLE_GAIN)


def ordered(findings: Sequence[Finding]) -> tuple[Recommendation, ...]:
    """All recommendations without duplicates: certain gains first, by size; then possible ones; then those unknown."""
    by_action = {item.action: item for finding in findings for item in finding.recommendations}
    return tuple(sorted(by_action.values(), key=_sort_key))


def _sort_key(item: Recommendation) -> tuple[int, float]:
    if item.gain is None:
        return 2, 0.0
    is_certain = item.low is not None and item.low > 0
    return (0 if is_certain else 1), -item.gain


def advise(action: str, command: str = "", gain: float | None = None, sd: float = 0.0) -> Recommendation:
    """A recommendation, with its expected gain in nats and the standard deviation of that where they are known."""
    if gain is None:
        return Recommendation(action=action, command=command)
    return Recommendation(action=action, command=command, gain=gain, low=gain - Z80 * sd, high=gain + Z80 * sd)


def _command(run: RunAnalysis, changes: Changes, name: str = "", checkpoint: Checkpoint = None) -> str:
    return train_command(run.history, run.context, changes, name=name, checkpoint=checkpoint)


def use_more_text(run: RunAnalysis) -> list[Recommendation]:
    """Twice the unique tokens. The repetition law gives the part of the cost that they save."""
    unique = run.context.unique_tokens
    if not unique or not run.context.tokens_per_step:
        return []
    action = f"Train on twice the unique tokens ({format_tokens(2 * unique)} instead of {format_tokens(unique)})"
    if run.law.outside_repetition:
        return [_stop_sooner(run, unique / run.context.tokens_per_step)]
    cost = recoverable_cost(run)
    predicted = run.law.repetition_cost(run.total_steps)
    if cost is None or not predicted:
        return [advise(action)]
    remaining = run.law.repetition_cost(run.total_steps, 2 * unique) or 0.0
    gain = cost * (1 - remaining / predicted)
    return [advise(action, "", gain, REPETITION_SD * gain)]


def _stop_sooner(run: RunAnalysis, steps_of_epoch: float) -> Recommendation:
    steps = max(round(USEFUL_EPOCHS * steps_of_epoch), 1)
    return advise(
        f"Train on more text, or for {pluralize(steps, 'step')} instead of {run.total_steps:,}: "
        f"after {USEFUL_EPOCHS} epochs, repeated text teaches hardly anything"
    )


def use_best_checkpoint(run: RunAnalysis) -> list[Recommendation]:
    """The checkpoint with the lowest validation loss, then more text."""
    val = run.losses.val
    lowest = int(val.values.argmin())
    gain = float(val.values[-1] - val.values[lowest])
    action = f"Use the checkpoint of step {val.steps[lowest]:,.0f}, where the validation loss was lowest"
    command = ""
    if run.context.config and run.history.traits.is_jaxgpt_run:
        folder = f"{run.context.config.run.dir}/{run.context.config.run.name}"
        command = shlex.join(["python", "-m", "jaxgpt.evaluate", folder, "--step", "best"])
    best = advise(action, command, gain, math.sqrt(2) * (run.losses.eval_stderr or 0.0))
    return [best, *use_more_text(run)]


def regularize(run: RunAnalysis) -> list[Recommendation]:
    """Stronger weight decay and dropout, with a gain at sizes that the repetition law covers."""
    changes: Changes = {"optim": {"weight_decay": STRONG_DECAY}, "model": {"dropout": STRONG_DROPOUT}}
    action = f"Use a weight decay of {STRONG_DECAY:g} and a dropout of {STRONG_DROPOUT:g}"
    dropout = run.context.dropout or 0.0
    if dropout >= STRONG_DROPOUT:
        changes = {"optim": {"weight_decay": STRONG_DECAY}}
        action = f"Use a weight decay of {STRONG_DECAY:g} beside the dropout of {dropout:g}"
    command = _command(run, changes, "regularized")
    cost = recoverable_cost(run)
    if cost is None:
        return [advise(action, command)]
    return [advise(action, command, REGULARIZATION_GAIN * cost, REGULARIZATION_GAIN_SD * cost)]


def remove_dropout(run: RunAnalysis) -> list[Recommendation]:
    return [advise("Train without dropout", _command(run, {"model": {"dropout": 0.0}}, "no-dropout"))]


def use_larger_model(run: RunAnalysis) -> list[Recommendation]:
    """A larger model for as many FLOPs, a better optimizer, and a longer run."""
    others = [*use_muon(run), *train_longer(run)]
    larger = larger_model.for_same_flops(run)
    if larger is None:
        return others
    command = _command(run, larger.changes, "larger")
    return [advise(larger.action, command, larger.gain.value, larger.gain.stderr), *others]


def use_muon(run: RunAnalysis) -> list[Recommendation]:
    """Muon instead of AdamW, in another run: the gain is that of public runs of 124M to 1.5B parameters."""
    if run.context.optimizer != "adamw":
        return []
    action = "In another run, use Muon for the matrices of the blocks instead of AdamW"
    changes: Changes = {"optim": {"optimizer": "muon"}}
    return [advise(action, _command(run, changes, "muon"), *LOSS_GAINS["muon"])]


def train_longer(run: RunAnalysis) -> list[Recommendation]:
    """A quarter more steps, if that gains what one run can show."""
    longer = scenarios.extend(run.context, MORE_STEPS, _fixed_steps(run))
    if longer is None or (run.is_over and run.context.total_steps is None):
        return []
    action = f"Train for {longer.steps:,} steps instead of {run.total_steps:,}{_time_until(run, longer.steps)}"
    return _scenario(run, longer, f"{action}, with the decay of the learning rate stretched to the new end")


def anneal(run: RunAnalysis) -> list[Recommendation]:
    """A lower final learning rate; and a cooldown now, or the rest of the schedule."""
    if run.is_over:
        return _anneal_finished(run)
    to_zero = scenarios.decay_to_zero(run.context, _fixed_steps(run))
    recommended = _scenario(run, to_zero, f"Let the learning rate decay to 0 by step {run.total_steps:,}")
    if run.forecast is None and run.posterior is None:
        return recommended
    if run.losses.latest_val is None or run.annealing_gain is None:
        return recommended
    cooldown = scenarios.cooldown_now(run.context, run.steps_done)
    ends_sooner = cooldown is not None and cooldown.steps < run.total_steps
    if cooldown is not None and ends_sooner and run.context.optim.schedule == "constant":
        action = f"End sooner: let the learning rate decay to 0 by step {cooldown.steps:,}"
        return recommended + _scenario(run, cooldown, action + _time_until(run, cooldown.steps))
    return recommended + _finish_schedule(run)


def _anneal_finished(run: RunAnalysis) -> list[Recommendation]:
    """To resume a run that is over for a decay; and another run of the same length with one."""
    gain = run.annealing_gain
    to_zero = scenarios.decay_to_zero(run.context, _fixed_steps(run))
    another = _scenario(run, to_zero, "In another run of this length, let the learning rate decay to 0 by its end")
    if gain is None or run.early_stop is not None:
        return another
    steps = max(1, math.ceil(scenarios.COOLDOWN_FRACTION * run.steps_done))
    action = f"Resume it for {pluralize(steps, 'step')} more in which the learning rate decays to 0"
    return [advise(action, "", gain.value, gain.stderr), *another]


def _finish_schedule(run: RunAnalysis) -> list[Recommendation]:
    """To continue until the schedule has decayed the learning rate, with the gain of that decay alone."""
    now = run.lr_fraction(run.steps_done) or 0.0
    final = run.lr_fraction(run.total_steps)
    if final is None or final >= now or run.posterior is None:
        return []
    gain, sd = run.posterior.remaining_annealing_gain(run.steps_done)
    if gain <= 0:
        return []
    action = f"Let the run finish at step {run.total_steps:,}, for the decay of its learning rate"
    return [advise(action, _command(run, {}), gain, sd)]


def _time_until(run: RunAnalysis, step: int) -> str:
    """` (6 h from now)`; empty for a run that is over, and where the step time is unknown."""
    seconds = run.seconds_until(step)
    return "" if run.is_over or seconds is None else f" ({format_rough_duration(seconds)} from now)"


def _fixed_steps(run: RunAnalysis) -> int:
    """Steps that a changed schedule leaves as they are: none for a run that is over."""
    return 0 if run.is_over else run.steps_done


def _scenario(run: RunAnalysis, ending: scenarios.Scenario | None, action: str) -> list[Recommendation]:
    """A scenario as a recommendation, if its forecast is below that of the run as it is.

    There is none for a run that was stopped early, because more steps of it were not worth their time.
    """
    if ending is None or run.posterior is None or run.early_stop is not None:
        return []
    current = float(run.posterior.predict([run.total_steps])[0][0])
    gain = current - float(run.posterior.predict([ending.steps], ending.lr_fractions(run.context))[0][0])
    if gain <= 0:
        return []
    annealing_gain, annealing_sd = run.posterior.annealing_gain
    sd = math.hypot(gain * annealing_sd / max(abs(annealing_gain), 1e-3), 0.5 * MEASURABLE_GAIN)
    return [advise(action, scenarios.scenario_command(run.history, run.context, ending), gain, sd)]


def lower_peak_lr(run: RunAnalysis) -> list[Recommendation]:
    """A lower peak learning rate, from the last checkpoint before the instability."""
    return [_lower_peak_lr(run)]


def lower_high_lr(run: RunAnalysis) -> list[Recommendation]:
    """A lower peak learning rate, with the gain of annealing."""
    gain = run.loss_above_baseline or run.annealing_gain
    if not gain:
        return [_lower_peak_lr(run)]
    return [_lower_peak_lr(run, gain.value, max(gain.stderr, 0.3 * gain.value))]


def _lower_peak_lr(run: RunAnalysis, gain: float | None = None, sd: float = 0.0) -> Recommendation:
    optim = run.context.optim
    if (run.context.sources or {}).get("peak_lr") == "assumption":
        return advise("Use a third of the peak learning rate", "", gain, sd)
    peak_lr = float(f"{optim.learning_rate / LR_REDUCTION:.2g}")
    if run.baseline is not None and run.baseline.context.optim.learning_rate < optim.learning_rate:
        peak_lr = run.baseline.context.optim.learning_rate
    changes = {"optim": {"learning_rate": peak_lr, "min_lr": min(optim.min_lr, peak_lr / 10)}}
    command = _command(run, changes, "lower-lr", _last_stable_checkpoint(run))
    action = f"Use a peak learning rate of {peak_lr:g} instead of {optim.learning_rate:g}"
    if not run.is_over:
        action += ", from the last stable checkpoint on"
    return advise(action, command, gain, sd)


def _last_stable_checkpoint(run: RunAnalysis) -> Checkpoint:
    """The last checkpoint before the loss rose; the latest if nothing rose, None if all are later."""
    step = instabilities.unstable_since(run)
    if step is None:
        return "latest"
    return max((saved for saved in run.history.saves if saved <= step), default=None)


def evaluate_on_more_tokens(run: RunAnalysis) -> list[Recommendation]:
    """An evaluation large enough to show the expected decrease, then a longer run."""
    decrease = run.expected_decrease
    if not decrease or decrease <= 0 or run.context.fixed_eval_set:
        return train_longer(run)
    needed = (VISIBLE * math.sqrt(2) * RANDOM_TEXT_STDERR / decrease) ** 2 * RANDOM_TEXT_TOKENS
    tokens = min(math.ceil(needed / 1e6) * 1_000_000, MAX_EVAL_TOKENS)
    action = f"Evaluate on {format_tokens(tokens)} tokens, always the same ones, to see decreases of {decrease:.3f}"
    command = _command(run, {"run": {"eval_tokens": tokens}}, "larger-eval", "latest")
    return [advise(action, command), *train_longer(run)]


def fix_hyperparameters(run: RunAnalysis) -> list[Recommendation]:
    """A recommendation for each fault; without any fault, a comparison with a baseline run."""
    recommended = list[Recommendation]()
    if faults.has_mismatched_schedule(run).result:
        command = _command(run, {"optim": {"decay_steps": None}}, "full-decay")
        start = "In another run, let" if run.is_finished else "Let"
        recommended.append(advise(f"{start} the schedule end with the run", command))
    if faults.has_long_warmup(run).result:
        steps = run.total_steps // WARMUP_SHARE
        recommended.append(advise(f"Warm up for {pluralize(steps, 'step')}", _warmup_command(run, steps)))
    if faults.has_short_warmup(run):
        recommended.append(_use_warmup_of_baseline(run))
    if faults.was_never_finite(run).result:
        recommended.append(advise(CHECK_WEIGHTS))
    if invalid_losses.is_zero(run).result:
        recommended.append(advise(CHECK_TARGETS))
    if invalid_losses.is_constant(run).result:
        recommended.append(advise(CHECK_EVALUATION))
    if faults.has_sudden_jump(run).result:
        recommended.append(advise("Inspect the data where the loss jumped: order, labels, a corrupt shard"))
    comparison = "Train a short run with a known recipe on known data, and compare (--baseline RUN)"
    return recommended or [advise(comparison)]


def _use_warmup_of_baseline(run: RunAnalysis) -> Recommendation:
    steps = run.baseline.context.optim.warmup_steps if run.baseline else 0
    action = f"Warm up for {pluralize(steps, 'step')}, as the baseline run does"
    gain = run.loss_above_baseline
    command = _warmup_command(run, steps)
    return advise(action, command, gain.value, gain.stderr) if gain else advise(action, command)


def _warmup_command(run: RunAnalysis, steps: int) -> str:
    return _command(run, {"optim": {"warmup_steps": steps}}, "warmed-up")


def clip_gradients(run: RunAnalysis) -> list[Recommendation]:
    if 0 < run.context.optim.grad_clip <= SAFE_CLIP:
        return []
    command = _command(run, {"optim": {"grad_clip": SAFE_CLIP}}, "clipped", "latest")
    return [advise(f"Clip gradients at a norm of {SAFE_CLIP:g}, which lowers such spikes", command)]


def change_data_seed(run: RunAnalysis) -> list[Recommendation]:
    if run.history.traits.is_jaxgpt_run:
        return []
    return [advise("Give the resumed process another data seed, so that it does not read the first batches again")]


def evaluate_less_often(run: RunAnalysis) -> list[Recommendation]:
    config = run.context.config
    if config is None or run.is_over:
        return []
    changes = {"run": {"eval_every": 2 * config.run.eval_every, "save_every": 2 * config.run.save_every}}
    return [advise("Evaluate and save half as often, if that is what takes the time", _command(run, changes))]


def check_gpu_health(run: RunAnalysis) -> list[Recommendation]:
    return [advise("Check the device's temperature, clock and other programs since then (nvidia-smi)")]


RECOMMENDERS: dict[str, Callable[[RunAnalysis], list[Recommendation]]] = {
    "overfitting": use_more_text,
    "severe-overfitting": use_best_checkpoint,
    "repetition-risk": use_more_text,
    "data-limited": use_more_text,
    "missing-regularization": regularize,
    "unneeded-dropout": remove_dropout,
    "capacity-limited": use_larger_model,
    "lr-too-high": lower_high_lr,
    "not-annealed": anneal,
    "noise-not-plateau": evaluate_on_more_tokens,
    "recipe-or-bug": fix_hyperparameters,
    "divergence": lower_peak_lr,
    "loss-spikes": clip_gradients,
    "data-reused-after-resume": change_data_seed,
    "throughput": check_gpu_health,
    "input-or-overhead-bound": evaluate_less_often,
}
