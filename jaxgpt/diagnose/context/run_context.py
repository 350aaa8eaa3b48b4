"""The run that a log belongs to: what the log, a config and the options say of it, and what had to be assumed."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxgpt import logs
from jaxgpt.budget import devices, query
from jaxgpt.budget.devices import Device
from jaxgpt.budget.query import TokenCount
from jaxgpt.budget.scaling_law import CORPORA, Corpus
from jaxgpt.config import Config, Optim
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import parameters
from jaxgpt.diagnose.context import hyperparameters
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import JaxgptError
from jaxgpt.logs.history import History


class Baseline(NamedTuple):
    """A clean run to hold this one against, where the law says nothing of runs like it."""

    history: History
    context: "RunContext"


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a diagnosis knows of the run besides its losses. None is not known."""

    total_steps: int | None  # None: nothing says how long the run is (--total-steps)
    optim: Optim  # schedule, warmup, peak and last rate; of an unknown optimizer the rest is AdamW's default
    lr_fractions: NDArray[np.float64]  # [total_steps], or of the steps seen if the length is not known
    corpus: Corpus
    tokens_per_step: float | None = None
    eval_tokens: float | None = None
    fixed_eval_set: bool = False  # every evaluation reads the same text
    unique_tokens: float | None = None
    parameters: float | None = None  # total, a tied head once
    weight_decay: float | None = None
    dropout: float | None = None
    vocab_size: int | None = None
    unigram_entropy: float | None = None  # nats per token, from the data's audit
    device: Device | None = None
    config: Config | None = None
    config_name: str | None = None  # what `--config` would be given, for advice
    schedule_known: bool = True  # False where the schedule is assumed
    baseline: Baseline | None = None
    target_step_time: float | None = None  # per step, as somebody hopes
    target_loss: float | None = None  # a final loss that somebody claims
    assumed: tuple[str, ...] = ()  # sentences: "the schedule is assumed to be a cosine to a tenth (--schedule …)"

    @property
    def tokens(self) -> float | None:
        """Tokens that the whole run reads."""
        if self.tokens_per_step is None or self.total_steps is None:
            return None
        return self.tokens_per_step * self.total_steps

    def epochs(self, step: int) -> float | None:
        """Epochs after `step` updates."""
        if not self.tokens_per_step or not self.unique_tokens:
            return None
        return self.tokens_per_step * step / self.unique_tokens


def resolve_context(history: History, options: Options) -> RunContext:
    """The context of the run behind `history`: an option beats the log, the log `--config`, that an assumption.

    Raises `ConfigError` for options that contradict each other or the log, and for a config that cannot be read.
    """
    given = load_config(options.config) if options.config is not None else None
    config = history.config or given
    found = hyperparameters.resolve(history, options, given if history.config is None else history.config)
    facts = _Facts(history, options, config, given, list(found.assumed))
    tokens = facts.unique_tokens()
    corpus = facts.corpus()
    return RunContext(
        total_steps=found.total_steps,
        optim=found.optim,
        lr_fractions=found.rates,
        corpus=corpus,
        tokens_per_step=facts.tokens_per_step(),
        eval_tokens=facts.eval_tokens(),
        fixed_eval_set=facts.fixed_eval_set(),
        unique_tokens=tokens,
        parameters=facts.parameters(),
        weight_decay=facts.regularisation("weight_decay", config.optim.weight_decay if config else None, 0.1),
        dropout=facts.regularisation("dropout", config.model.dropout if config else None, 0.0),
        vocab_size=facts.vocab_size(),
        unigram_entropy=facts.unigram_entropy(),
        device=facts.device(),
        config=config,
        config_name=options.config or facts.bundled_name(),
        schedule_known=found.schedule_known,
        baseline=_baseline(options),
        target_step_time=options.target_step_time,
        target_loss=options.target_loss,
        assumed=tuple(facts.assumed),
    )


def _baseline(options: Options) -> Baseline | None:
    """The run that `--baseline` names; what it does not say of itself is as in the options."""
    if options.baseline is None:
        return None
    history = logs.read(options.baseline, options.batch_tokens)
    return Baseline(history, resolve_context(history, replace(options, baseline=None, total_steps=None)))


FIXED = ("jaxgpt", "llmc", "modded", "nanochat", "buildnanogpt")  # formats whose evaluation reads the same text always


@dataclass
class _Facts:
    """What is known of the run besides its schedule, from all sources; `assumed` grows."""

    history: History
    options: Options
    config: Config | None
    given: Config | None  # what --config names
    assumed: list[str]

    def _word(self, name: str) -> float | None:
        return hyperparameters.positive(self.history.metadata.hyperparameters.get(name))

    @property
    def _nanogpt_header(self) -> bool:
        """nanoGPT prints what differs from its defaults, and this log has the place where it does."""
        return self.history.format == "nanogpt" and "tokens_per_iteration" in self.history.metadata.hyperparameters

    def tokens_per_step(self) -> float | None:
        stated, config = self.history.metadata.tokens_per_step, self.config
        value = first(self.options.batch_tokens, stated, float(config.tokens_per_step) if config else None)
        if value is not None and value == stated and self.history.metadata.counted_from_tokens:
            self.assumed.append(f"a step is assumed to be {value:,.0f} tokens (--batch-tokens)")
        return value

    def eval_tokens(self) -> float | None:
        stated, config = self.history.metadata.eval_tokens, self.config
        value = first(self.options.eval_tokens, stated, float(config.run.eval_tokens) if config else None)
        if value is None and self._nanogpt_header:
            sizes = [self._word(name) or usual for name, usual in (("batch_size", 12), ("block_size", 1024))]
            value = 200 * sizes[0] * sizes[1]
            self.assumed.append(f"an evaluation is assumed to be 200 batches, {value:,.0f} tokens (--eval-tokens)")
        return value

    def fixed_eval_set(self) -> bool:
        ours = self.history.format == "nanogpt" and not self.history.metadata.single_batch_loss
        return ours or self.history.format in FIXED

    def unique_tokens(self) -> float | None:
        stated = None if self.config is None else self.config.data.unique_tokens
        counted = (self.options.unique_tokens, self._data().unique, self.history.metadata.unique_tokens)
        return first(*counted, None if stated is None else float(stated))

    def _data(self) -> TokenCount:
        """What the run's own folder of tokens says; nothing where it cannot be reached or read."""
        if self.history.config is None:
            return TokenCount(unique=None, source="")
        try:
            return query.count_tokens(Path(self.history.config.data.path), self.history.config.model.block_size)
        except JaxgptError as error:
            if error.code != "D002":
                self.assumed.append(f"the run's data tells nothing: {error.message} (--unique-tokens)")
            return TokenCount(unique=None, source="")

    def unigram_entropy(self) -> float | None:
        """Of the validation text where the audit has one, in nats per token."""
        if self.history.config is None:
            return None
        try:
            held = json.loads((Path(self.history.config.data.path) / query.AUDIT).read_text(encoding="utf-8"))
            entropy = (held["splits"].get("val") or held["splits"]["train"])["unigram_entropy"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return hyperparameters.positive(entropy)

    def parameters(self) -> float | None:
        found = first(self.options.params, self.history.metadata.parameters)
        if found is not None or self.config is not None:
            return found if found is not None or self.config is None else float(parameters(self.config.model))
        layers, width = self._word("n_layer"), self._word("n_embd")
        if not layers or not width:
            return None
        return 12 * layers * width**2 + (self._word("vocab_size") or 50304) * width

    def regularisation(self, name: str, config: float | None, usual: float) -> float | None:
        found = first(getattr(self.options, name), self._word(name), config)
        if found is None and self._nanogpt_header:
            words = name.replace("_", " ")
            self.assumed.append(f"a {words} of {usual:g} is assumed, nanoGPT's (--{name.replace('_', '-')})")
            return usual
        return found

    def vocab_size(self) -> int | None:
        if self.config is not None:
            return self.config.model.vocab_size
        return hyperparameters.whole(self.history.metadata.hyperparameters.get("vocab_size"))

    def device(self) -> Device | None:
        if self.options.gpu is not None:
            return None if self.options.gpu.lower() == devices.CPU else devices.find(self.options.gpu)
        return devices.lookup(self.history.metadata.device) if self.history.metadata.device else None

    def corpus(self) -> Corpus:
        if self.options.corpus is not None:
            return query.find_corpus(self.options.corpus)
        named = str(self.history.metadata.hyperparameters.get("dataset", ""))
        config = self.config
        if config is None:
            found, why = query.match_corpus(named), f"the log names {named!r}"
        else:
            found, why = query.config_corpus(config, named)
        unknown = found is CORPORA["unknown"]
        self.assumed.append(
            "no corpus is named, so that the level of the loss cannot be judged (--corpus)"
            if unknown
            else f"the corpus is taken to be {found.name}: {why} (--corpus)"
        )
        return found

    def bundled_name(self) -> str | None:
        """The name of the config that comes with jaxgpt which the run was started with, if its name says so."""
        if self.history.config is None:
            return None
        try:
            load_config(self.history.config.run.name)
        except JaxgptError:
            return None
        return self.history.config.run.name


def first(*values: float | None) -> float | None:
    """The first value that is known."""
    return next((value for value in values if value is not None), None)
