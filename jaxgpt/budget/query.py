"""From a config, its file and its data to what the law and the tables are asked: recipe, corpus, unique tokens."""

import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.budget import scaling_law
from jaxgpt.budget.scaling_law import CORPORA, Corpus, Recipe, ScalingQuery
from jaxgpt.config import Config, Optim, schedule
from jaxgpt.config.model_size import parameters
from jaxgpt.data import manifest
from jaxgpt.errors import ConfigError, DataError, JaxgptError

AUDIT = "audit.json"
SUFFIX = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
FITTED_BATCH = (2**17, 2**21)  # tokens per step of the runs behind the law


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The different tokens at hand: how many, who says so; `raw` is the count before duplicates are taken off."""

    unique: float | None
    source: str
    raw: float | None = None


def config_recipe(config: Config, steps: int) -> Recipe:
    """What of the config's recipe moves the loss of a run of `steps`."""
    return make_recipe(config.optim, steps, parameters(config.model), config.tokens_per_step, config.model.dropout)


def make_recipe(optim: Optim, steps: int, size: float, tokens_per_step: float, dropout: float) -> Recipe:
    """The same of a run that is known by its numbers: `size` is all parameters."""
    steps = max(steps, 1)
    share = schedule.end_share(optim, steps)
    tuned = scaling_law.tuned_learning_rate(size)
    different = []
    if not 0.3 < optim.learning_rate / tuned < 3:
        different.append(f"a peak learning rate of {optim.learning_rate:g} (tuned runs of this size: {tuned:.1e})")
    if share > 0.3:
        different.append(f"a last learning rate of {share:.0%} of the peak (the law's runs end at 0 to 10 %)")
    if not FITTED_BATCH[0] <= tokens_per_step <= FITTED_BATCH[1]:
        different.append(f"{tokens_per_step:,} tokens per step (the law's runs: 131,072 to 2,097,152)")
    if optim.weight_decay > 0.3 or dropout > 0.1:
        different.append("more regularisation than the law's runs")
    if optim.warmup_steps > 0.35 * steps:
        different.append(f"a warmup of {optim.warmup_steps / steps:.0%} of the run")
    return Recipe(learning_rate=optim.learning_rate, end_share=share, differences=tuple(different))


def build_query(config: Config, steps: int, corpus: Corpus, unique: float | None) -> ScalingQuery:
    """The question for a run of `steps` steps that is annealed at its end."""
    return ScalingQuery(
        parameters=parameters(config.model),
        tokens=float(steps) * config.tokens_per_step,
        recipe=config_recipe(config, steps),
        corpus=corpus,
        unique=unique,
        ceiling=math.log(config.model.vocab_size),
    )


def find_corpus(name: str) -> Corpus:
    """The corpus of that name in any spelling; `ConfigError` C040 with the names if there is none."""
    plain = {re.sub(r"[^a-z0-9]", "", known): known for known in CORPORA} | {
        "owt": "openwebtext",
        "owt2": "openwebtext2",
    }
    word = re.sub(r"[^a-z0-9]", "", name.lower())
    if word in plain:
        return CORPORA[plain[word]]
    close = difflib.get_close_matches(word, plain, n=1, cutoff=0.5)
    hint = f"did you mean {plain[close[0]]}? " if close else ""
    raise ConfigError("C040", f"the corpus {name!r} is not known", f"{hint}There are: {', '.join(CORPORA)}")


def config_corpus(config: Config, text: str) -> tuple[Corpus, str]:
    """The corpus that the config's file or data folder names, and who says so; unknown where none does.

    Losses are per token of GPT-2's vocabulary: a config of another size has no offset that is known.
    """
    least, most = scaling_law.GPT2_VOCAB_SIZES
    if not least <= config.model.vocab_size <= most or config.data.train_tokenizer:
        why = f"its {config.model.vocab_size:,} tokens are not GPT-2's, so no published loss can be compared"
        return CORPORA["unknown"], why
    marked = re.search(r"^\s*corpus:\s*([\w-]+)\s*$", text, re.MULTILINE)
    if marked and marked[1] in CORPORA:
        return CORPORA[marked[1]], "the config's own text says so"
    for place, words in (("data.path", config.data.path), ("the config's own text", text)):
        found = match_corpus(words)
        if found.name != "unknown":
            return found, f"assumed, because {place} says so"
    return CORPORA["unknown"], "neither the config nor --corpus names one"


def match_corpus(text: str) -> Corpus:
    """The corpus that `text` names; unknown where it names none."""
    flat = re.sub(r"edu-?fineweb", "fineweb-edu", text.lower().replace("_", "-")).replace("than fineweb-edu", "")
    for name in ("fineweb-edu", "fineweb", "openwebtext2", "openwebtext", "refinedweb", "c4"):
        if re.search(rf"(?<![a-z]){name}(?![a-z])", flat):
            return CORPORA[name]
    return CORPORA["unknown"]


def stated_tokens(text: str) -> float | None:
    """`about 3.68B unique tokens` in a config's text as a number."""
    found = re.search(r"([\d.,]+)\s*([kmbt])\s+unique\s+tokens", text, re.IGNORECASE)
    return None if not found else float(found[1].replace(",", "")) * SUFFIX[found[2].lower()]


def count_tokens(folder: Path, block: int) -> Tokens:
    """What `manifest.json` and `audit.json` of a folder of shards say; no shard is opened.

    Raises `DataError` D002 or D018 for the manifest, D013 if the training split is shorter than a window of
    `block` + 1 tokens, and `ConfigError` C047 for an audit that cannot be read.
    """
    if not (folder / manifest.FILE_NAME).is_file():
        held = _foreign_tokens(folder)
        if held:
            check_corpus(held, block)
            return Tokens(unique=held, raw=held, source=f"the size of the token files in {folder}")
        help = f"python -m jaxgpt.prepare SOURCE --out {folder}, or --unique-tokens N"
        raise DataError("D002", f"no {manifest.FILE_NAME} in '{folder}'", help)
    split = manifest.read_manifest(folder).splits.get("train")
    raw = float(split.tokens if split else 0)
    check_corpus(raw, block)
    audit = folder / AUDIT
    if not audit.is_file():
        return Tokens(unique=raw, raw=raw, source=f"{folder}/{manifest.FILE_NAME}; not audited for duplicates")
    return Tokens(unique=_audited(audit), raw=raw, source=f"{audit}: effective unique tokens")


def _foreign_tokens(folder: Path) -> float:
    """Training tokens of nanoGPT's headerless file or of llm.c's shards, by their sizes; 0 if there are none."""
    plain = folder / "train.bin"
    if plain.is_file():
        return plain.stat().st_size // 2
    return float(sum(max(path.stat().st_size - 1024, 0) // 2 for path in folder.glob("*_train_*.bin")))


def _audited(path: Path) -> float:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        split = values.get("splits", {}).get("train", values)  # the figure of the whole counts validation too
        effective = split["effective_unique_tokens"]
        if isinstance(effective, bool) or not isinstance(effective, int | float) or not 0 < effective < math.inf:
            raise ValueError(f"effective_unique_tokens is {effective!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{path} is no audit: {error if not isinstance(error, KeyError) else f'it has no {error}'}"
        raise ConfigError("C047", what, "audit the folder again, or give --unique-tokens") from error
    return float(effective)


def check_corpus(unique: float, block: int) -> None:
    """Raises `DataError` D013 if that many tokens hold no window of `block` + 1."""
    if unique < block + 1:
        what = f"{unique:,.0f} tokens in all; one sequence needs {block + 1:,}"
        raise DataError("D013", what, "more text, or a smaller --model.block-size")


def available_tokens(config: Config, unique: float | None, folder: Path | None, text: str) -> Tokens:
    """The different tokens: as given, as the folder says, as the config's own folder or text says; else unknown."""
    block = config.model.block_size
    if unique is not None:
        check_corpus(unique, block)
        return Tokens(unique=unique, raw=unique, source="--unique-tokens")
    if folder is not None:
        return count_tokens(folder, block)
    try:
        return count_tokens(Path(config.data.path), block)
    except JaxgptError as error:
        if error.code != "D002":
            raise
    stated = stated_tokens(text)
    if stated is not None:
        return Tokens(unique=stated, raw=stated, source="stated in the config's text")
    return Tokens(unique=None, source="unknown: no token is counted as repeated")
