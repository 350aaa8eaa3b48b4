"""What to do about a verdict, with the command that does it and the gain that the laws expect, in nats.

Gains are against the end that the run is heading for. Intervals are of 80 %; a gain that is not known has none.
"""

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from jaxgpt.budget import query as question
from jaxgpt.budget import scaling_law
from jaxgpt.budget import search as inverse
from jaxgpt.budget.recommend import WORTH, best_for, tokens_shown
from jaxgpt.budget.scaling_law import FITTED_RATIO
from jaxgpt.config import Config
from jaxgpt.config.model_size import parameters
from jaxgpt.diagnose import commands, whatif
from jaxgpt.diagnose.mixture import Forecast
from jaxgpt.diagnose.verdict import Advice, Verdict
from jaxgpt.diagnose.verdicts import failures, recipe, repetition
from jaxgpt.diagnose.verdicts.case import CALM, RANDOM_TEXT_ERROR, RANDOM_TEXT_TOKENS, Case
from jaxgpt.errors import ConfigError
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


def advise(case: Case, verdict: Verdict) -> tuple[Advice, ...]:
    """What to do if the verdict is supported; nothing if it is not."""
    if verdict.status != "supported" or verdict.id not in ADVISERS:
        return ()
    return tuple(one for one in ADVISERS[verdict.id](case) if one.gain is None or one.gain > 0)


def ordered(verdicts: Sequence[Verdict]) -> tuple[Advice, ...]:
    """All advice, each thing once: what surely gains first, by its gain; then what may; then what has no figure."""
    held = {one.what: one for verdict in verdicts for one in verdict.advice}
    return tuple(sorted(held.values(), key=_rank))


def _rank(one: Advice) -> tuple[int, float]:
    gain = one.gain or 0.0
    sure = one.low is not None and one.low > 0
    return (0 if sure else 1 if one.gain is not None else 2), -gain


def _gaining(what: str, command: str, gain: float, sd: float) -> Advice:
    return Advice(what=what, command=command, gain=gain, low=gain - Z80 * sd, high=gain + Z80 * sd)


def _train(case: Case, changes: commands.Changes, name: str = "", *, fork: bool | int = False) -> str:
    return commands.train(case.history, case.setting, changes, name=name, fork=fork)


def _heading(case: Case) -> Forecast | None:
    return case.forecast or (case.posterior.final() if case.posterior else None)


def more_text(case: Case) -> list[Advice]:
    """Twice the different tokens; by the repetition law alone, which needs no level of the loss."""
    unique = case.setting.unique_tokens
    if not unique or not case.setting.tokens_per_step:
        return []
    what = f"train on twice the different tokens ({tokens_shown(2 * unique)} instead of {tokens_shown(unique)})"
    if (case.setting.parameters or 0.0) < repetition.LAW_FROM:
        return [Advice(what=what)]
    gain = (case.repetition(case.total) or 0.0) - (case.repetition(case.total, 2 * unique) or 0.0)
    return [_gaining(what, "", gain, REPEATED * gain)]


def best_checkpoint(case: Case) -> list[Advice]:
    lowest = int(case.vals.values.argmin())
    gain = float(case.vals.values[-1] - case.vals.values[lowest])
    what = f"take the checkpoint of step {case.vals.steps[lowest]:,.0f}, where validation was lowest"
    own = case.setting.config.run if case.setting.config and case.history.format == commands.OWN else None
    command = shlex.join(["python", "-m", "jaxgpt.evaluate", f"{own.dir}/{own.name}", "--step", "best"]) if own else ""
    return [_gaining(what, command, gain, math.sqrt(2) * (case.error or 0.0))]


def regularise(case: Case) -> list[Advice]:
    """Stronger weight decay and dropout; what it gains was seen at sizes that the repetition law knows."""
    what, changes = (
        "more weight decay, and dropout",
        {"optim": {"weight_decay": STRONG_DECAY}, "model": {"dropout": 0.1}},
    )
    command = _train(case, changes, "regularised")
    cost = case.repetition(case.total)
    if cost is None or (case.setting.parameters or 0.0) < repetition.LAW_FROM:
        return [Advice(what=what, command=command)]
    return [_gaining(what, command, MENDED * cost, MENDED_SD * cost)]


def no_dropout(case: Case) -> list[Advice]:
    return [Advice(what="train without dropout", command=_train(case, {"model": {"dropout": 0.0}}, "no-dropout"))]


def larger_model(case: Case) -> list[Advice]:
    """The best shape for as many FLOPs, where the law was fitted."""
    config, heading = case.setting.config, _heading(case)
    if case.twin is not None:
        return _as_large_as_twin(case)
    if case.asked is None or case.unlicensed or config is None:
        return []
    now = heading.mean if heading else case.law.loss if case.law else math.nan
    best, chosen = best_for(case.asked), _shape(case, config)
    if best is None or chosen is None:
        return []
    loss = scaling_law.expect(
        question.ask(chosen, chosen.run.steps, case.setting.corpus, case.setting.unique_tokens)
    ).loss
    model = chosen.model
    what = (
        f"for as many FLOPs, a model of {parameters(model) / 1e6:,.0f}M parameters on "
        f"{tokens_shown(chosen.run.steps * chosen.tokens_per_step)} tokens"
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
    return [_gaining(what, _train(case, changes, "larger"), now - loss, PAIR)]


def _as_large_as_twin(case: Case) -> list[Advice]:
    config, excess = case.twin.setting.config if case.twin else None, case.excess
    if config is None or excess is None:
        return []
    what = f"a model of the twin's size, {parameters(config.model):,} parameters"
    command = _train(case, {"model": {name: getattr(config.model, name) for name in SHAPE}}, "larger")
    return [_gaining(what, command, excess.value, excess.error)]


def _shape(case: Case, config: Config) -> Config | None:
    """The shape of the ladder that ends lowest for the run's 6 N D within the law's range."""
    asked = case.asked
    if asked is None:
        return None
    product, found = asked.parameters * asked.tokens, list[tuple[float, Config]]()
    for shape in inverse.SHAPES:
        try:
            shaped = inverse.shaped(config, *shape)
        except ConfigError:
            continue
        if case.setting.device is not None:
            shaped = inverse.with_batch(shaped, case.setting.device) or shaped
        size = parameters(shaped.model)
        steps = int(product / size / shaped.tokens_per_step)
        if steps < inverse.LEAST_STEPS or steps * shaped.tokens_per_step < FITTED_RATIO * size:
            continue
        planned = inverse.with_steps(shaped, steps)
        expected = scaling_law.expect(question.ask(planned, steps, case.setting.corpus, case.setting.unique_tokens))
        if not expected.outside:
            found.append((expected.loss, planned))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def longer(case: Case) -> list[Advice]:
    """A quarter more steps, if that gains what one run can show."""
    if case.done >= case.total and case.setting.total_steps is None:
        return []
    return _ending(case, whatif.longer(case.setting, MORE_STEPS, _kept(case)), "go on for")


def anneal(case: Case) -> list[Advice]:
    """To end with a lower rate, or to end now."""
    found = _ending(case, whatif.lowered(case.setting, _kept(case)), "bring the learning rate down to 0:")
    heading = _heading(case)
    if heading is not None and case.now is not None and case.anneal and case.done < case.total:
        stopped = whatif.stopped(case.setting, case.done)
        if stopped is not None and case.setting.optim.schedule == "constant":
            found += _ending(case, stopped, "or sooner:")
        elif case.share(case.total) is not None and (case.share(case.total) or 0.0) < (case.share(case.done) or 0.0):
            left = case.posterior.remaining_drop(case.done) if case.posterior else None
            if left is not None and left[0] > 0:
                what = f"let the schedule go on to step {case.total:,}: its fall alone brings"
                found.append(_gaining(what, _train(case, {}), *left))
    return found


def _kept(case: Case) -> int:
    """Updates that another end leaves as they are: none of a run that is over."""
    return 0 if case.done >= case.total else case.done


def _ending(case: Case, ending: whatif.Ending | None, words: str) -> list[Advice]:
    """An ending as advice, its gain against the end that the run is heading for."""
    heading = _heading(case)
    if ending is None or case.posterior is None or heading is None:
        return []
    rates = ending.rates(case.setting)
    gain = float(case.posterior.at([case.total])[0][0] - case.posterior.at([ending.steps], rates)[0][0])
    drop, sd = case.posterior.drop
    spread = math.hypot(gain * sd / max(abs(drop), 1e-3), 0.5 * WORTH)
    command = whatif.command(case.history, case.setting, ending)
    return [_gaining(f"{words} {ending.what}", command, gain, spread)] if gain > 0 else []


def gentler(case: Case) -> list[Advice]:
    """A lower peak rate from the last good checkpoint on."""
    optim = case.setting.optim
    rate = float(f"{optim.learning_rate / GENTLER:.2g}")
    if case.twin is not None and case.twin.setting.optim.learning_rate < optim.learning_rate:
        rate = case.twin.setting.optim.learning_rate
    changed = {"optim": {"learning_rate": rate, "min_lr": min(optim.min_lr, rate / 10)}}
    command = _train(case, changed, "gentler", fork=_last_good(case))
    what = f"a peak learning rate of {rate:g} instead of {optim.learning_rate:g}"
    what += ", from the last good checkpoint on" if case.done < case.total else ""
    return [Advice(what=what, command=command)]


def _last_good(case: Case) -> bool | int:
    """The last checkpoint saved before the loss rose; the newest where nothing rose, none where each came later."""
    broken = failures.broken_at(case)
    if broken is None:
        return True
    before = [saved for saved in case.history.saves if saved <= broken]
    return before[-1] if before else False


def lower_rate(case: Case) -> list[Advice]:
    gain = case.excess or case.anneal
    found = gentler(case)
    return [_gaining(found[0].what, found[0].command, gain.value, max(gain.error, 0.3 * gain.value))] if gain else found


def larger_evaluation(case: Case) -> list[Advice]:
    """As many tokens as show the fall that is expected."""
    fall = case.expected_fall
    if not fall or fall <= 0 or case.setting.fixed_eval:
        return []
    tokens = math.ceil((CALM * RANDOM_TEXT_ERROR / fall) ** 2 * RANDOM_TEXT_TOKENS / 1e6) * 1_000_000
    if tokens > 10_000_000:
        tokens = 10_000_000
    what = f"evaluate on {tokens:,} tokens, the same ones every time, so that a fall of {fall:.3f} shows"
    return [Advice(what=what, command=_train(case, {"run": {"eval_tokens": tokens}}, "larger-eval", fork=True))]


def mend_recipe(case: Case) -> list[Advice]:
    optim, found = case.setting.optim, list[Advice]()
    if recipe.schedule(case).holds:
        found.append(
            Advice(
                what="let the schedule end with the run",
                command=_train(case, {"optim": {"decay_steps": None}}, "to-the-end"),
            )
        )
    steps = case.total // 10
    if recipe.warmup(case).holds:
        what = f"a warmup of {steps:,} steps"
        found.append(Advice(what=what, command=_train(case, {"optim": {"warmup_steps": steps}}, "warmed-up")))
    twin = case.twin
    if twin is not None and optim.warmup_steps < twin.setting.optim.warmup_steps / 2:
        steps = twin.setting.optim.warmup_steps
        gain = case.excess
        command = _train(case, {"optim": {"warmup_steps": steps}}, "warmed-up")
        what = f"warm up for {steps:,} steps, as the twin does"
        found.append(_gaining(what, command, gain.value, gain.error) if gain else Advice(what=what, command=command))
    if recipe.jumped(case).holds:
        found.append(Advice(what="look at the data where the loss jumped: order, labels, a broken shard"))
    return found or [Advice(what="train a short run on known data with a known recipe, and compare (--twin RUN)")]


def calmer(case: Case) -> list[Advice]:
    clip = case.setting.optim.grad_clip
    if 0 < clip <= 0.5:
        return []
    what = "clip gradients at a norm of 0.5, which takes the height off such spikes"
    return [Advice(what=what, command=_train(case, {"optim": {"grad_clip": 0.5}}, "clipped", fork=True))]


def other_batches(case: Case) -> list[Advice]:
    if case.history.format == commands.OWN:
        return []
    return [Advice(what="give the resumed process another seed of the data, so that it does not read its start again")]


def fewer_pauses(case: Case) -> list[Advice]:
    config = case.setting.config
    if config is None or case.done >= case.total:
        return []
    changes = {"run": {"eval_every": 2 * config.run.eval_every, "save_every": 2 * config.run.save_every}}
    what = "evaluate and save half as often, if that is what takes the time"
    return [Advice(what=what, command=_train(case, changes))]


def look_at_the_machine(case: Case) -> list[Advice]:
    return [Advice(what="look at the card's temperature, clock and other programs since then (nvidia-smi)")]


ADVISERS: dict[str, Callable[[Case], list[Advice]]] = {
    "overfitting": more_text,
    "severe-overfitting": lambda case: [*best_checkpoint(case), *more_text(case)],
    "repetition-risk": more_text,
    "data-limited": more_text,
    "missing-regularisation": regularise,
    "needless-regularisation": no_dropout,
    "capacity-limited": lambda case: [*larger_model(case), *longer(case)],
    "lr-too-high": lower_rate,
    "not-annealed": anneal,
    "noise-not-plateau": lambda case: [*larger_evaluation(case), *longer(case)],
    "recipe-or-bug": mend_recipe,
    "divergence": gentler,
    "loss-spikes": calmer,
    "resume-seam": other_batches,
    "throughput": look_at_the_machine,
    "pace": fewer_pauses,
}
