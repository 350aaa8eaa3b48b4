"""What to do about a finding, with the command that does it and the gain that the laws expect, in nats.

Gains are against the end that the run is heading for. Intervals are of 80 %; a gain that is not known has none.
"""

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from jaxgpt.budget import query, scaling_law, search
from jaxgpt.budget.recommend import MEASURABLE_GAIN, best_model_for
from jaxgpt.budget.scaling_law import FITTED_RATIO
from jaxgpt.config import Config
from jaxgpt.config.model_size import parameters
from jaxgpt.diagnose import suggested_commands
from jaxgpt.diagnose.checks import instabilities, recipe, repetition
from jaxgpt.diagnose.checks.analysis import CALM, RANDOM_TEXT_ERROR, RANDOM_TEXT_TOKENS, RunAnalysis
from jaxgpt.diagnose.finding import Finding, Recommendation
from jaxgpt.diagnose.forecast import scenarios
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.errors import ConfigError
from jaxgpt.utils.formatting import format_tokens
from jaxgpt.utils.stats import Z80

PAIR = 0.037  # nats: sd of a difference of two runs by the law: its leave-one-out error of .026, twice
REPEATED = 0.7  # of a gain in repetition, one sd: the repetition law's spread
# Weight decay of 1.0 takes about 70 % off the cost of repetition (Lovelace et al., 2026, abstract); slowrun's best on
# 100M tokens have 0.8 to 1.6 and dropout 0.1.
STRONG_DECAY, MENDED, MENDED_SD = 0.8, 0.5, 0.2
GENTLER = 3.0  # by how much a rate that broke a run is lowered
MORE_STEPS = 0.25
SHAPE = ("n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "n_inner")
RATES = ("learning_rate", "min_lr", "warmup_steps", "decay_steps")


def advise(run: RunAnalysis, finding: Finding) -> tuple[Recommendation, ...]:
    """What to do if the finding is supported; nothing if it is not."""
    if finding.status != "confirmed" or finding.id not in ADVISERS:
        return ()
    return tuple(one for one in ADVISERS[finding.id](run) if one.gain is None or one.gain > 0)


def ordered(findings: Sequence[Finding]) -> tuple[Recommendation, ...]:
    """All advice, each thing once: what surely gains first, by its gain; then what may; then what has no figure."""
    held = {one.what: one for finding in findings for one in finding.recommendations}
    return tuple(sorted(held.values(), key=_rank))


def _rank(one: Recommendation) -> tuple[int, float]:
    gain = one.gain or 0.0
    sure = one.low is not None and one.low > 0
    return (0 if sure else 1 if one.gain is not None else 2), -gain


def _gaining(what: str, command: str, gain: float, sd: float) -> Recommendation:
    return Recommendation(what=what, command=command, gain=gain, low=gain - Z80 * sd, high=gain + Z80 * sd)


def _train(run: RunAnalysis, changes: suggested_commands.Changes, name: str = "", *, fork: bool | int = False) -> str:
    return suggested_commands.train(run.history, run.context, changes, name=name, fork=fork)


def _heading(run: RunAnalysis) -> Forecast | None:
    return run.forecast or (run.posterior.final_loss() if run.posterior else None)


def more_text(run: RunAnalysis) -> list[Recommendation]:
    """Twice the different tokens; by the repetition law alone, which needs no level of the loss."""
    unique = run.context.unique_tokens
    if not unique or not run.context.tokens_per_step:
        return []
    what = f"train on twice the different tokens ({format_tokens(2 * unique)} instead of {format_tokens(unique)})"
    if (run.context.parameters or 0.0) < repetition.LAW_FROM:
        return [Recommendation(what=what)]
    gain = (run.repetition_cost(run.total_steps) or 0.0) - (run.repetition_cost(run.total_steps, 2 * unique) or 0.0)
    return [_gaining(what, "", gain, REPEATED * gain)]


def best_checkpoint(run: RunAnalysis) -> list[Recommendation]:
    lowest = int(run.val_losses.values.argmin())
    gain = float(run.val_losses.values[-1] - run.val_losses.values[lowest])
    what = f"take the checkpoint of step {run.val_losses.steps[lowest]:,.0f}, where validation was lowest"
    own = run.context.config.run if run.context.config and run.history.format == suggested_commands.OWN else None
    command = shlex.join(["python", "-m", "jaxgpt.evaluate", f"{own.dir}/{own.name}", "--step", "best"]) if own else ""
    return [_gaining(what, command, gain, math.sqrt(2) * (run.eval_stderr or 0.0))]


def regularise(run: RunAnalysis) -> list[Recommendation]:
    """Stronger weight decay and dropout; what it gains was seen at sizes that the repetition law knows."""
    what, changes = (
        "more weight decay, and dropout",
        {"optim": {"weight_decay": STRONG_DECAY}, "model": {"dropout": 0.1}},
    )
    command = _train(run, changes, "regularised")
    cost = run.repetition_cost(run.total_steps)
    if cost is None or (run.context.parameters or 0.0) < repetition.LAW_FROM:
        return [Recommendation(what=what, command=command)]
    return [_gaining(what, command, MENDED * cost, MENDED_SD * cost)]


def no_dropout(run: RunAnalysis) -> list[Recommendation]:
    return [
        Recommendation(what="train without dropout", command=_train(run, {"model": {"dropout": 0.0}}, "no-dropout"))
    ]


def larger_model(run: RunAnalysis) -> list[Recommendation]:
    """The best shape for as many FLOPs, where the law was fitted."""
    config, heading = run.context.config, _heading(run)
    if run.baseline is not None:
        return _as_large_as_baseline(run)
    if run.query is None or run.law_inapplicable_reason or config is None:
        return []
    now = heading.mean if heading else run.predicted_loss.loss if run.predicted_loss else math.nan
    best, chosen = best_model_for(run.query), _shape(run, config)
    if best is None or chosen is None:
        return []
    loss = scaling_law.predict_loss(
        query.build_query(chosen, chosen.run.steps, run.context.corpus, run.context.unique_tokens)
    ).loss
    model = chosen.model
    what = (
        f"for as many FLOPs, a model of {parameters(model) / 1e6:,.0f}M parameters on "
        f"{format_tokens(chosen.run.steps * chosen.tokens_per_step)} tokens"
    )
    fields = {
        name: getattr(model, name) for name in ("n_layer", "n_head", "n_embd", "n_kv_head", "head_dim", "n_inner")
    }
    optim = {name: getattr(chosen.optim, name) for name in ("learning_rate", "min_lr", "warmup_steps", "decay_steps")}
    changes: dict[str, dict[str, Any]] = {
        "model": fields,
        "optim": optim,
        "data": {"micro_batch": chosen.data.micro_batch, "accum": chosen.data.accum},
        "run": {"steps": chosen.run.steps},
    }
    return [_gaining(what, _train(run, changes, "larger"), now - loss, PAIR)]


def _as_large_as_baseline(run: RunAnalysis) -> list[Recommendation]:
    config, excess = run.baseline.context.config if run.baseline else None, run.loss_above_baseline
    if config is None or excess is None:
        return []
    what = f"a model of the baseline's size, {parameters(config.model):,} parameters"
    command = _train(run, {"model": {name: getattr(config.model, name) for name in SHAPE}}, "larger")
    return [_gaining(what, command, excess.value, excess.error)]


def _shape(run: RunAnalysis, config: Config) -> Config | None:
    """The shape of the ladder that ends lowest for the run's 6 N D within the law's range."""
    asked = run.query
    if asked is None:
        return None
    product, found = asked.parameters * asked.tokens, list[tuple[float, Config]]()
    for shape in search.SHAPES:
        try:
            shaped = search.with_shape(config, *shape)
        except ConfigError:
            continue
        if run.context.device is not None:
            shaped = search.with_batch(shaped, run.context.device) or shaped
        size = parameters(shaped.model)
        steps = int(product / size / shaped.tokens_per_step)
        if steps < search.MIN_STEPS or steps * shaped.tokens_per_step < FITTED_RATIO * size:
            continue
        planned = search.with_steps(shaped, steps)
        expected = scaling_law.predict_loss(
            query.build_query(planned, steps, run.context.corpus, run.context.unique_tokens)
        )
        if not expected.outside:
            found.append((expected.loss, planned))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def longer(run: RunAnalysis) -> list[Recommendation]:
    """A quarter more steps, if that gains what one run can show."""
    if run.steps_done >= run.total_steps and run.context.total_steps is None:
        return []
    return _ending(run, scenarios.extend(run.context, MORE_STEPS, _kept(run)), "go on for")


def anneal(run: RunAnalysis) -> list[Recommendation]:
    """To end with a lower rate, or to end now."""
    found = _ending(run, scenarios.decay_to_zero(run.context, _kept(run)), "bring the learning rate down to 0:")
    heading = _heading(run)
    if (
        heading is not None
        and run.current_val_loss is not None
        and run.annealing_gain
        and run.steps_done < run.total_steps
    ):
        stopped = scenarios.cooldown_now(run.context, run.steps_done)
        if stopped is not None and run.context.optim.schedule == "constant":
            found += _ending(run, stopped, "or sooner:")
        elif run.lr_fraction(run.total_steps) is not None and (run.lr_fraction(run.total_steps) or 0.0) < (
            run.lr_fraction(run.steps_done) or 0.0
        ):
            left = run.posterior.remaining_annealing_gain(run.steps_done) if run.posterior else None
            if left is not None and left[0] > 0:
                what = f"let the schedule go on to step {run.total_steps:,}: its fall alone brings"
                found.append(_gaining(what, _train(run, {}), *left))
    return found


def _kept(run: RunAnalysis) -> int:
    """Updates that another end leaves as they are: none of a run that is over."""
    return 0 if run.steps_done >= run.total_steps else run.steps_done


def _ending(run: RunAnalysis, ending: scenarios.Scenario | None, words: str) -> list[Recommendation]:
    """An ending as advice, its gain against the end that the run is heading for."""
    heading = _heading(run)
    if ending is None or run.posterior is None or heading is None:
        return []
    rates = ending.lr_fractions(run.context)
    gain = float(run.posterior.predict([run.total_steps])[0][0] - run.posterior.predict([ending.steps], rates)[0][0])
    drop, sd = run.posterior.annealing_gain
    spread = math.hypot(gain * sd / max(abs(drop), 1e-3), 0.5 * MEASURABLE_GAIN)
    command = scenarios.scenario_command(run.history, run.context, ending)
    return [_gaining(f"{words} {ending.what}", command, gain, spread)] if gain > 0 else []


def gentler(run: RunAnalysis) -> list[Recommendation]:
    """A lower peak rate from the last good checkpoint on."""
    optim = run.context.optim
    rate = float(f"{optim.learning_rate / GENTLER:.2g}")
    if run.baseline is not None and run.baseline.context.optim.learning_rate < optim.learning_rate:
        rate = run.baseline.context.optim.learning_rate
    changed = {"optim": {"learning_rate": rate, "min_lr": min(optim.min_lr, rate / 10)}}
    command = _train(run, changed, "gentler", fork=_last_good(run))
    what = f"a peak learning rate of {rate:g} instead of {optim.learning_rate:g}"
    what += ", from the last good checkpoint on" if run.steps_done < run.total_steps else ""
    return [Recommendation(what=what, command=command)]


def _last_good(run: RunAnalysis) -> bool | int:
    """The last checkpoint saved before the loss rose; the newest where nothing rose, none where each came later."""
    broken = instabilities.broken_at(run)
    if broken is None:
        return True
    before = [saved for saved in run.history.saves if saved <= broken]
    return before[-1] if before else False


def lower_rate(run: RunAnalysis) -> list[Recommendation]:
    gain = run.loss_above_baseline or run.annealing_gain
    found = gentler(run)
    return [_gaining(found[0].what, found[0].command, gain.value, max(gain.error, 0.3 * gain.value))] if gain else found


def larger_evaluation(run: RunAnalysis) -> list[Recommendation]:
    """As many tokens as show the fall that is expected."""
    fall = run.expected_decrease
    if not fall or fall <= 0 or run.context.fixed_eval_set:
        return []
    tokens = math.ceil((CALM * RANDOM_TEXT_ERROR / fall) ** 2 * RANDOM_TEXT_TOKENS / 1e6) * 1_000_000
    if tokens > 10_000_000:
        tokens = 10_000_000
    what = f"evaluate on {tokens:,} tokens, the same ones every time, so that a fall of {fall:.3f} shows"
    return [Recommendation(what=what, command=_train(run, {"run": {"eval_tokens": tokens}}, "larger-eval", fork=True))]


def mend_recipe(run: RunAnalysis) -> list[Recommendation]:
    optim, found = run.context.optim, list[Recommendation]()
    if recipe.schedule(run).result:
        found.append(
            Recommendation(
                what="let the schedule end with the run",
                command=_train(run, {"optim": {"decay_steps": None}}, "to-the-end"),
            )
        )
    steps = run.total_steps // 10
    if recipe.warmup(run).result:
        what = f"a warmup of {steps:,} steps"
        found.append(Recommendation(what=what, command=_train(run, {"optim": {"warmup_steps": steps}}, "warmed-up")))
    baseline = run.baseline
    if baseline is not None and optim.warmup_steps < baseline.context.optim.warmup_steps / 2:
        steps = baseline.context.optim.warmup_steps
        gain = run.loss_above_baseline
        command = _train(run, {"optim": {"warmup_steps": steps}}, "warmed-up")
        what = f"warm up for {steps:,} steps, as the baseline does"
        found.append(
            _gaining(what, command, gain.value, gain.error) if gain else Recommendation(what=what, command=command)
        )
    if recipe.jumped(run).result:
        found.append(Recommendation(what="look at the data where the loss jumped: order, labels, a broken shard"))
    return found or [
        Recommendation(what="train a short run on known data with a known recipe, and compare (--baseline RUN)")
    ]


def calmer(run: RunAnalysis) -> list[Recommendation]:
    clip = run.context.optim.grad_clip
    if 0 < clip <= 0.5:
        return []
    what = "clip gradients at a norm of 0.5, which takes the height off such spikes"
    return [Recommendation(what=what, command=_train(run, {"optim": {"grad_clip": 0.5}}, "clipped", fork=True))]


def other_batches(run: RunAnalysis) -> list[Recommendation]:
    if run.history.format == suggested_commands.OWN:
        return []
    return [
        Recommendation(
            what="give the resumed process another seed of the data, so that it does not read its start again"
        )
    ]


def fewer_pauses(run: RunAnalysis) -> list[Recommendation]:
    config = run.context.config
    if config is None or run.steps_done >= run.total_steps:
        return []
    changes = {"run": {"eval_every": 2 * config.run.eval_every, "save_every": 2 * config.run.save_every}}
    what = "evaluate and save half as often, if that is what takes the time"
    return [Recommendation(what=what, command=_train(run, changes))]


def look_at_the_machine(run: RunAnalysis) -> list[Recommendation]:
    return [Recommendation(what="look at the card's temperature, clock and other programs since then (nvidia-smi)")]


ADVISERS: dict[str, Callable[[RunAnalysis], list[Recommendation]]] = {
    "overfitting": more_text,
    "severe-overfitting": lambda run: [*best_checkpoint(run), *more_text(run)],
    "repetition-risk": more_text,
    "data-limited": more_text,
    "missing-regularization": regularise,
    "unneeded-dropout": no_dropout,
    "capacity-limited": lambda run: [*larger_model(run), *longer(run)],
    "lr-too-high": lower_rate,
    "not-annealed": anneal,
    "noise-not-plateau": lambda run: [*larger_evaluation(run), *longer(run)],
    "recipe-or-bug": mend_recipe,
    "divergence": gentler,
    "loss-spikes": calmer,
    "data-reused-after-resume": other_batches,
    "throughput": look_at_the_machine,
    "input-or-overhead-bound": fewer_pauses,
}
