"""From a config and its data to a `ScalingQuery`: recipe, corpus and unique tokens."""

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt.budget import scaling_law, tokens
from jaxgpt.budget.scaling_law import CORPORA, Corpus, Recipe, ScalingQuery
from jaxgpt.config import Config, Optim, schedule
from jaxgpt.config.model_size import parameters
from jaxgpt.data import audit_files, manifest
from jaxgpt.errors import ConfigError, DataError, NoShardsError, nearest
from jaxgpt.utils.files import read_json

DECAY_FRACTION = 0.2  # of a run: a shorter decay after the warmup lowers the loss in proportion
FITTED_BATCH = (2**17, 2**21)  # tokens per step of the fitted runs


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Unique tokens of a corpus and where the number comes from; `raw` counts duplicates too. None: unknown."""

    unique: float | None
    source: str
    raw: float | None = None


def config_recipe(config: Config, steps: int) -> Recipe:
    """The recipe of `config` for a run of `steps` steps."""
    recipe = make_recipe(config.optim, steps, parameters(config.model), config.tokens_per_step, config.model.dropout)
    return replace(recipe, optimizer=config.optim.optimizer)


def make_recipe(optim: Optim, steps: int, size: float, tokens_per_step: float, dropout: float) -> Recipe:
    """The AdamW recipe of a run of `steps` steps of a model with `size` parameters, and how it differs from others."""
    steps = max(steps, 1)
    final_lr_fraction = undecayed_lr_fraction(optim, steps)
    tuned = scaling_law.tuned_learning_rate(size)
    differences = []
    if not 0.3 < optim.learning_rate / tuned < 3:
        differences.append(f"a peak learning rate of {optim.learning_rate:g} (tuned runs of this size: {tuned:.1e})")
    last_lr_fraction = schedule.final_lr_fraction(optim, steps)
    if last_lr_fraction > 0.3 and optim.warmup_steps < steps:
        differences.append(
            f"a final learning rate of {last_lr_fraction:.0%} of the peak (the fitted runs end at 0 to 10 %)"
        )
    if not FITTED_BATCH[0] <= tokens_per_step <= FITTED_BATCH[1]:
        differences.append(f"{tokens_per_step:,} tokens per step (the fitted runs: 131,072 to 2,097,152)")
    if optim.weight_decay > 0.3 or dropout > 0.1:
        differences.append("more regularization than the fitted runs")
    if optim.warmup_steps > steps:
        differences.append(f"a warmup of {optim.warmup_steps:,} steps, longer than the run")
    elif optim.warmup_steps > 0.35 * steps:
        differences.append(f"a warmup of {optim.warmup_steps / steps:.0%} of the run")
    return Recipe(
        learning_rate=optim.learning_rate,
        final_lr_fraction=final_lr_fraction,
        tokens_per_step=tokens_per_step,
        differences=tuple(differences),
    )


def undecayed_lr_fraction(optim: Optim, steps: int) -> float:
    """The final learning rate as a fraction of the peak; more where the warmup leaves little of the run for a decay.

    A run within its warmup counts as one that does not decay: 1.
    """
    decayed = 1 - min(schedule.final_lr_fraction(optim, steps), 1.0)
    after_warmup = max(steps - optim.warmup_steps, 0) / steps
    return 1 - decayed * min(after_warmup / DECAY_FRACTION, 1.0)


def build_query(config: Config, steps: int, corpus: Corpus, unique: float | None) -> ScalingQuery:
    """The query for a run of `steps` steps whose learning rate decays until its end."""
    return ScalingQuery(
        parameters=parameters(config.model),
        tokens=float(steps) * config.tokens_per_step,
        recipe=config_recipe(config, steps),
        corpus=corpus,
        unique=unique,
        ceiling=math.log(config.model.vocab_size),
        scale=tokens.config_scale(config),
    )


def find_corpus(name: str) -> Corpus:
    """The corpus of that name in any spelling; raises `ConfigError` C040 with the names that exist."""
    spellings = {_letters(corpus): corpus for corpus in CORPORA}
    spellings |= {"owt": "openwebtext", "owt2": "openwebtext2"}
    word = _letters(name)
    if word in spellings:
        return CORPORA[spellings[word]]
    close = nearest(word, spellings, similarity=0.5)
    hint = f"did you mean {spellings[close]}? " if close else ""
    raise ConfigError("C040", f"unknown corpus {name!r}", f"{hint}There are: {', '.join(CORPORA)}")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def match_corpus(name: str) -> Corpus:
    """The corpus that a dataset's or folder's name contains; the unknown corpus if none."""
    plain = re.sub(r"edu-?fineweb", "fineweb-edu", name.lower().replace("_", "-"))
    for corpus in ("fineweb-edu", "fineweb", "openwebtext2", "openwebtext", "refinedweb", "c4"):
        if re.search(rf"(?<![a-z]){corpus}(?![a-z])", plain):
            return CORPORA[corpus]
    return CORPORA["unknown"]


def config_corpus(config: Config, dataset: str = "") -> tuple[Corpus, str]:
    """The corpus of `data.corpus` or, without one, of the names of `data.path` and `dataset`; and the reason in words.

    Offsets are known per token of GPT-2's vocabulary; `jaxgpt.budget.tokens` converts them to another one.
    """
    if config.data.corpus:
        try:
            return find_corpus(config.data.corpus), "data.corpus"
        except ConfigError:
            return CORPORA["unknown"], f"no published runs on data.corpus {config.data.corpus!r}"
    for name, source in ((config.data.path, "data.path"), (dataset, "the dataset")):
        corpus = match_corpus(name)
        if corpus.name != "unknown":
            return corpus, f"assumed from the name of {source}"
    return CORPORA["unknown"], "neither data.corpus nor --corpus names one"


def folder_corpus(folder: Path) -> tuple[Corpus, str]:
    """The corpus that a folder's manifest or name suggests, and the reason in words."""
    names = [folder.resolve().name]
    if (folder / manifest.FILE_NAME).is_file():
        names = [source.name for source in manifest.read_manifest(folder).sources] + names
    for name in names:
        corpus = match_corpus(name)
        if corpus.name != "unknown":
            return corpus, f"assumed from the name {name!r}"
    return CORPORA["unknown"], f"nothing in {folder} names a corpus that is known"


def adapt_to_data(config: Config, folder: Path, given: Collection[str]) -> tuple[Config, Corpus, str]:
    """`config` for the tokens of another folder, their corpus, and the reason in words.

    The folder is what is trained on, so its vocabulary and its corpus replace the config's, except those that `given`
    names as `section.field`.
    """
    is_own = Path(config.data.path).resolve() == folder.resolve()
    config = config.replace({"data": {"path": str(folder)}})
    if is_own or "data.corpus" in given:
        return (config, *config_corpus(config))
    corpus, reason = folder_corpus(folder)
    changes: dict[str, dict[str, Any]] = {"data": {"corpus": "", "unique_tokens": None}, "model": {}}
    if corpus.name != "unknown":
        changes["data"]["corpus"] = corpus.name
    if "model.vocab_size" not in given and (folder / manifest.FILE_NAME).is_file():
        changes["model"]["vocab_size"] = padded_vocabulary(manifest.read_manifest(folder).tokenizer.vocab_size)
    return config.replace(changes), corpus, reason


def padded_vocabulary(size: int) -> int:
    """Rows of the embedding for a tokenizer of that many tokens: the next multiple of 64."""
    return 64 * math.ceil(size / 64)


def count_tokens(folder: Path, block: int) -> TokenCount:
    """Training tokens according to `manifest.json` and `audit.json` of a folder of shards; opens no shard.

    Raises `DataError` D002 or D018 for the manifest, D013 if the training split is shorter than a window of
    `block` + 1 tokens, and `ConfigError` C047 for an audit that cannot be read.
    """
    if not os.path.lexists(folder / manifest.FILE_NAME):
        count = _tokens_by_file_size(folder)
        if count:
            check_length(count, block)
            return TokenCount(unique=count, raw=count, source=f"the size of the token files in {folder}")
        help = f"python -m jaxgpt.prepare SOURCE --out {folder}, or --unique-tokens N"
        raise NoShardsError("D002", f"no {manifest.FILE_NAME} in '{folder}'", help)
    made = manifest.read_manifest(folder)
    split = made.splits.get("train")
    raw = float(split.tokens if split else 0)
    check_length(raw, block)
    audit = folder / audit_files.RECORD_NAME
    if not os.path.lexists(audit):
        return TokenCount(unique=raw, raw=raw, source=f"{folder}/{manifest.FILE_NAME}; not audited for duplicates")
    return TokenCount(
        unique=_audited_tokens(audit, made.fingerprint), raw=raw, source=f"{audit}: effective unique tokens"
    )


def _tokens_by_file_size(folder: Path) -> float:
    """Training tokens of nanoGPT's headerless file or of llm.c's shards; 0 if there are none."""
    headerless = folder / "train.bin"
    if headerless.is_file():
        return headerless.stat().st_size // 2
    return float(sum(max(path.stat().st_size - 1024, 0) // 2 for path in folder.glob("*_train_*.bin")))


def _audited_tokens(path: Path, fingerprint: str) -> float:
    try:
        values: Any = read_json(path)
        if values.get("fingerprint", fingerprint) != fingerprint:
            raise ValueError("it is of other tokens")
        split = values.get("splits", {}).get("train", values)  # the figure of the whole file counts validation too
        effective = split["effective_unique_tokens"]
        if isinstance(effective, bool) or not isinstance(effective, int | float) or not 0 < effective < math.inf:
            raise ValueError(f"effective_unique_tokens is {effective!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        message = f"{path} is not a readable audit: {reason}"
        raise ConfigError("C047", message, "repeat the audit, or give --unique-tokens") from error
    return float(effective)


def check_length(tokens: float, block: int) -> None:
    """Raises `DataError` D013 if that many tokens do not make a window of `block` + 1."""
    if tokens < block + 1:
        message = f"{tokens:,.0f} tokens in all; one sequence needs {block + 1:,}"
        raise DataError("D013", message, "more text, or a smaller --model.block-size")


def available_tokens(config: Config, unique: float | None, folder: Path | None) -> TokenCount:
    """Unique tokens: from the option, from the folder of `--data` or `data.path`, or from `data.unique_tokens`."""
    block = config.model.block_size
    if unique is not None:
        check_length(unique, block)
        return TokenCount(unique=unique, raw=unique, source="--unique-tokens")
    if folder is not None:
        return count_tokens(folder, block)
    try:
        return count_tokens(Path(config.data.path), block)
    except NoShardsError:
        pass
    if config.data.unique_tokens is not None:
        stated = float(config.data.unique_tokens)
        return TokenCount(unique=stated, raw=stated, source="data.unique_tokens")
    return TokenCount(unique=None, source="unknown, so that no token counts as repeated")
