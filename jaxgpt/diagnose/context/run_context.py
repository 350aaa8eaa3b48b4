"""Resolves the facts of the run behind a log from the options, the log, a config and, last, assumptions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt import logs
from jaxgpt.budget import devices, query
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import CORPORA, Corpus
from jaxgpt.config import Config, Optim
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import parameters
from jaxgpt.data import audit_files
from jaxgpt.diagnose.context.endings import Ending, possible_endings
from jaxgpt.diagnose.context.facts import LOG_SOURCES, Fact, Source, nonnegative, resolve, step_count
from jaxgpt.diagnose.context.schedule import ScheduleResolver
from jaxgpt.diagnose.context.tokens import GPT2_TOKENS, TokenScale, bytes_per_token, token_scale
from jaxgpt.diagnose.options import OptimizerName, Options, optimizer_name
from jaxgpt.errors import JaxgptError, NoShardsError
from jaxgpt.logs.history import History
from jaxgpt.utils.files import read_json

GPT2_VOCAB_SIZE = 50304  # rows of nanoGPT's embedding where its log does not contain them
# The facts that are fields of a `RunContext` by the same name.
CONTEXT_FACTS = (
    "tokens_per_step", "eval_tokens", "unique_tokens", "parameters", "optimizer", "weight_decay", "dropout",
    "vocab_size", "device",
)  # fmt: skip
# How a user states a fact that is unknown.
STATED_BY = {
    "parameters": "the model's size (--params)",
    "tokens_per_step": "the tokens per step (--batch-tokens)",
    "unique_tokens": "the number of unique tokens (--unique-tokens)",
    "eval_tokens": "the size of an evaluation (--eval-tokens)",
    "total_steps": "the length of the run (--total-steps)",
    "optimizer": "the optimizer (--optimizer)",
    "weight_decay": "the weight decay (--weight-decay)",
    "dropout": "the dropout (--dropout)",
    "device": "the device (--gpu)",
    "config": "the model's config (--config)",
}
# The options of facts that have another name.
OPTION_OF = {"parameters": "params", "tokens_per_step": "batch_tokens", "device": "gpu"}
# The facts for which nanoGPT's defaults may be assumed: what they are called, and their options.
DEFAULTED = {
    "eval_tokens": ("tokens per evaluation", "--eval-tokens"),
    "weight_decay": ("weight decay", "--weight-decay"),
    "dropout": ("dropout", "--dropout"),
}


class Baseline(NamedTuple):
    """A healthy run to compare with, where the scaling law does not apply."""

    history: History
    context: "RunContext"


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Everything that a diagnosis knows of the run besides its losses. None: unknown."""

    total_steps: int | None  # None: neither log nor options tell (--total-steps)
    optim: Optim  # schedule, warmup, peak and final learning rate; of an unknown optimizer the rest is AdamW's default
    lr_fractions: NDArray[np.float64]  # [total_steps], or of the steps done if the length is unknown
    corpus: Corpus
    endings: tuple[Ending, ...] = ()  # how the run may end, where that is not known; empty: as in `lr_fractions`
    schedules: tuple[Ending, ...] = ()  # that the run may have, where nothing states its schedule
    tokens_per_step: float | None = None
    eval_tokens: float | None = None
    fixed_eval_set: bool = False  # every evaluation reads the same text
    unique_tokens: float | None = None
    parameters: float | None = None  # total; a tied head counts once
    optimizer: OptimizerName | None = None  # of the matrices
    weight_decay: float | None = None
    dropout: float | None = None
    vocab_size: int | None = None
    unigram_entropy: float | None = None  # nats per token, from the data's audit
    token_scale: TokenScale = GPT2_TOKENS
    device: Device | None = None
    config: Config | None = None
    config_name: str | None = None  # the value of `--config` in recommended commands
    schedule_known: bool = True  # False where the schedule is assumed
    baseline: Baseline | None = None
    target_step_time: float | None = None  # seconds
    target_loss: float | None = None
    sources: Mapping[str, Source] | None = None  # of each fact that is known
    assumed: tuple[str, ...] = ()  # sentences: "the schedule is assumed to be a cosine (--schedule)"

    def missing(self, *names: str) -> str:
        """What a user has to state of these facts, separated by semicolons; empty if all of them are stated."""
        stated = self.sources or {}
        return "; ".join(STATED_BY[name] for name in names if getattr(self, name) is None and name not in stated)

    @property
    def missing_schedule(self) -> str:
        """What a user has to state of the schedule; empty if its name and its length are stated."""
        is_assumed = (self.sources or {}).get("schedule", "assumption") == "assumption"
        schedule = "the schedule (--schedule)" if is_assumed and not self.schedule_known else ""
        return "; ".join(filter(None, (schedule, self.missing("total_steps"))))

    @property
    def tokens(self) -> float | None:
        """Tokens that the run reads in all its steps."""
        if self.tokens_per_step is None or self.total_steps is None:
            return None
        return self.tokens_per_step * self.total_steps

    def epochs(self, step: int) -> float | None:
        """Epochs after `step` steps."""
        if not self.tokens_per_step or not self.unique_tokens:
            return None
        return self.tokens_per_step * step / self.unique_tokens


def resolve_context(history: History, options: Options) -> RunContext:
    """Resolves the context of the run behind `history`: option > log > `--config` > assumption.

    Raises `ConfigError` for options that contradict each other or the log, and for a config that cannot be read.
    """
    user_config = load_config(options.config) if options.config is not None else None
    config = history.config or user_config
    schedule = ScheduleResolver(history, options, config)
    data_tokens, data_note = _data_tokens(history)
    facts = schedule.facts() | _run_facts(history, options, config, data_tokens)
    corpus = facts["corpus"].value
    lr_fractions = schedule.lr_fractions()
    lengths = (options.bytes_per_token, history.metadata.bytes_per_token, _audited(history, "bytes_per_token"))
    scale = token_scale(history, next(filter(None, lengths), None), facts["vocab_size"].value)
    notes = [*(fact.note for fact in facts.values()), data_note, history.metadata.assumption, scale.note]
    return RunContext(
        total_steps=schedule.total_steps.value,
        optim=schedule.optim,
        lr_fractions=lr_fractions,
        endings=possible_endings(lr_fractions, history.steps_done) if schedule.may_decay else (),
        schedules=schedule.possible_schedules(),
        corpus=corpus if corpus is not None else CORPORA["unknown"],
        **{name: facts[name].value for name in CONTEXT_FACTS},
        fixed_eval_set=history.traits.fixed_eval_set,
        unigram_entropy=_audited(history, "unigram_entropy"),
        token_scale=scale,
        config=config,
        config_name=options.config or _built_in_name(history),
        schedule_known=schedule.schedule_known,
        baseline=_load_baseline(options),
        target_step_time=options.target_step_time,
        target_loss=options.target_loss,
        sources={name: fact.source for name, fact in facts.items() if fact.source is not None},
        assumed=tuple(dict.fromkeys(note for note in notes if note)),
    )


def _load_baseline(options: Options) -> Baseline | None:
    """The run of `--baseline`. The options are about the other run: they hold for facts that its own log lacks."""
    if options.baseline is None:
        return None
    history = logs.read(options.baseline, options.batch_tokens, bytes_per_token=bytes_per_token(options))
    own = resolve_context(history, Options())
    stated = {OPTION_OF.get(name, name) for name, source in (own.sources or {}).items() if source in LOG_SOURCES}
    if options.total_steps is not None and options.total_steps < history.steps_done:
        stated.add("total_steps")
    unneeded = dict.fromkeys({"baseline", *stated} & {option.name for option in fields(Options)})
    return Baseline(history, resolve_context(history, replace(options, **unneeded)))


def _run_facts(
    history: History, options: Options, config: Config | None, data_tokens: float | None
) -> dict[str, Fact[Any]]:
    """The precedence table of all facts but the schedule."""
    log = history.metadata
    logged = log.hyperparameters
    defaults = log.defaults
    regularization = {"weight_decay": config and config.optim.weight_decay, "dropout": config and config.model.dropout}
    rows = {
        "tokens_per_step": _row(options.batch_tokens, log.tokens_per_step, config and config.tokens_per_step),
        "eval_tokens": _row(
            options.eval_tokens, log.eval_tokens, config and config.run.eval_tokens, defaults.get("eval_tokens")
        ),
        "unique_tokens": _row(options.unique_tokens, log.unique_tokens, (config and config.data.unique_tokens) or None),
        "parameters": _row(
            options.params, log.parameters, config and parameters(config.model), _estimate_parameters(logged)
        ),
        "vocab_size": _row(None, step_count(logged.get("vocab_size")) or None, config and config.model.vocab_size),
        "optimizer": _row(
            options.optimizer, _logged_optimizer(history), config and config.optim.optimizer, history.traits.optimizer
        ),
    }
    for name, value in regularization.items():
        rows[name] = _row(getattr(options, name), nonnegative(logged.get(name)), None, defaults.get(name))
        rows[name]["run config" if history.config else "config"] = value
    rows["unique_tokens"]["run config"] = data_tokens
    notes: dict[str, dict[Source, str]] = {name: {"assumption": _default_note(name, defaults)} for name in DEFAULTED}
    notes["tokens_per_step"] = {"log": _batch_note(history)}
    facts = {name: resolve(row, notes.get(name)) for name, row in rows.items()}
    return {"corpus": _corpus(history, options, config)} | facts | {"device": _device(history, options)}


def _row(option: Any, log: Any, config: Any, assumption: Any = None) -> dict[Source, Any]:
    """The values of a fact by source."""
    return {"option": option, "log": log, "config": config, "assumption": assumption}


def _batch_note(history: History) -> str:
    if not history.metadata.counted_from_tokens:
        return ""
    return f"a step is assumed to be {history.metadata.tokens_per_step:,.0f} tokens (--batch-tokens)"


def _default_note(name: str, defaults: Mapping[str, float]) -> str:
    value = defaults.get(name)
    if value is None:
        return ""
    description, option = DEFAULTED[name]
    number = f"{value:,.0f}" if value > 1 else f"{value:g}"
    return f"nanoGPT's default is assumed for the {description}: {number} ({option})"


def _estimate_parameters(logged: Mapping[str, float | bool | str]) -> float | None:
    """The parameters of a GPT of the logged depth and width."""
    layers = nonnegative(logged.get("n_layer"))
    width = nonnegative(logged.get("n_embd"))
    if not layers or not width:
        return None
    return 12 * layers * width**2 + (nonnegative(logged.get("vocab_size")) or GPT2_VOCAB_SIZE) * width


def _data_tokens(history: History) -> tuple[float | None, str]:
    """The unique tokens of the run's own data folder, and a note if the folder cannot be read."""
    if history.config is None:
        return None, ""
    try:
        return query.count_tokens(Path(history.config.data.path), history.config.model.block_size).unique, ""
    except NoShardsError:
        return None, ""
    except JaxgptError as error:
        return None, f"the run's data folder cannot be read: {error.message} (--unique-tokens)"


def _audited(history: History, figure: str) -> float | None:
    """A figure of the validation split, else of the training split, by the data's audit."""
    if history.config is None:
        return None
    try:
        record = Path(history.config.data.path) / audit_files.RECORD_NAME
        audit = read_json(record)
        split = audit["splits"].get("val") or audit["splits"]["train"]
        return nonnegative(split[figure])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _logged_optimizer(history: History) -> OptimizerName | None:
    """The optimizer that the log names."""
    name = history.metadata.hyperparameters.get("optimizer")
    return optimizer_name(name) if isinstance(name, str) and name else None


def _device(history: History, options: Options) -> Fact[Device]:
    if options.gpu is not None:
        is_cpu = options.gpu.lower() == devices.CPU
        return Fact(None if is_cpu else devices.find(options.gpu), "option")
    name = history.metadata.device
    return Fact(devices.lookup(name), "log") if name else Fact()


def _corpus(history: History, options: Options, config: Config | None) -> Fact[Corpus]:
    if options.corpus is not None:
        return Fact(query.find_corpus(options.corpus), "option")
    dataset = str(history.metadata.hyperparameters.get("dataset", ""))
    if config is None:
        corpus, reason = query.match_corpus(dataset), f"the log names {dataset!r}"
    else:
        corpus, reason = query.config_corpus(config, dataset)
    if corpus is CORPORA["unknown"]:
        return Fact(corpus, None, "the corpus is unknown, so that the level of the loss cannot be assessed (--corpus)")
    return Fact(corpus, "assumption", f"the corpus is assumed to be {corpus.name}: {reason} (--corpus)")


def _built_in_name(history: History) -> str | None:
    """The name of the built-in config that the run is named after, if any."""
    if history.config is None:
        return None
    try:
        load_config(history.config.run.name)
    except JaxgptError:
        return None
    return history.config.run.name
