"""Suggests a model and a length for a folder of tokens on a device: the run with the lowest predicted loss.

A run may read the data 20 times and take a day on a GPU, or ten minutes on a CPU. A model gets at least the scaling
law's 15 tokens per parameter, except the smallest. Runs that end within `CLOSE` of the lowest loss count as equal, and
the shortest of them wins.
"""

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgpt.budget import plan, query, scaling_law, search, speed
from jaxgpt.budget.devices import Device
from jaxgpt.budget.scaling_law import Corpus, LossPrediction
from jaxgpt.config import Config
from jaxgpt.config.command_line import changed_options
from jaxgpt.config.files import load_config
from jaxgpt.config.model_size import flops_per_token, parameters
from jaxgpt.data import manifest
from jaxgpt.utils.formatting import format_hours, format_hours_range, pluralize

CPU_SECONDS = 600.0
GPU_SECONDS = 86_400.0
CLOSE = 0.02  # nats
LENGTHS = [1.25**-power for power in range(16)]  # of the longest possible run
MIN_TOKENS = 1000  # of a training split that anything can be learned from
MIN_WINDOWS = 64  # of the data, for a context length to suit it
MIN_BLOCK = 16
BYTE_VOCABULARY = 256  # a smaller vocabulary may lack a letter of the base config's prompt
RECIPE = {"optimizer": "muon", "schedule": "linear"}  # docs/recipe.md; `search.with_shape` sets the rates


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A run for some data on a device: the built-in config `base` with changes, its times in seconds and its loss.

    `loss` is None where the scaling law cannot predict it.
    """

    base: str
    config: Config
    device_name: str
    epochs: float
    seconds: float
    seconds_low: float
    seconds_high: float
    loss: LossPrediction | None

    def command(self) -> str:
        """The command that trains it."""
        options = changed_options(self.config, load_config(self.base))
        return shlex.join(["python", "-m", "jaxgpt.train", "--config", self.base, *options])

    def sentence(self) -> str:
        """Size, length and time, such as `a 1.3M model for 800 steps (2.1 epochs): about 8 min on this CPU (4–15)`."""
        size = f"{parameters(self.config.model) / 1e6:.1f}M"
        steps = pluralize(self.config.run.steps, "step")
        time = f"about {format_hours(self.seconds)} on {self.device_name}"
        spread = format_hours_range(self.seconds_low, self.seconds_high, self.seconds)
        loss = "" if self.loss is None else f", validation loss about {self.loss.loss:.2f}"
        epochs = f"{self.epochs:.1f} epochs" if self.epochs >= 0.1 else "less than 0.1 epochs"
        return f"a {size} model for {steps} ({epochs}): {time} ({spread}){loss}"


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    config: Config
    loss: float  # without the limit of guessing, so that tiny models can be compared
    seconds: float


def suggest_run(folder: Path, device: Device | None, max_epochs: float = plan.MAX_EPOCHS) -> Suggestion | None:
    """The run to train on the tokens in `folder`, on `device` or, without one, on this machine's CPU.

    None if there are too few tokens to train on. Raises `DataError` D002 or D018 for the manifest.
    """
    vocabulary = manifest.read_manifest(folder).tokenizer.vocab_size
    unique = query.count_tokens(folder, block=0).unique or 0.0
    if unique < MIN_TOKENS:
        return None
    corpus, _ = query.folder_corpus(folder)
    base = "books" if device is None else "fineweb40m_modern"
    config = _adapt(load_config(base), folder, vocabulary, unique, corpus)
    candidates = list(_candidates(config, unique, device, max_epochs))
    lowest = min(candidate.loss for candidate in candidates)
    best = min((one for one in candidates if one.loss <= lowest + CLOSE), key=lambda one: one.seconds).config
    time = speed.expected(best, device)
    prediction = scaling_law.predict_loss(query.build_query(best, best.run.steps, corpus, unique))
    return Suggestion(
        base=base,
        config=best,
        device_name="this CPU" if device is None else device.name,
        epochs=best.run.steps * best.tokens_per_step / unique,
        seconds=plan.run_seconds(best, best.run.steps, time.seconds),
        seconds_low=plan.run_seconds(best, best.run.steps, time.low),
        seconds_high=plan.run_seconds(best, best.run.steps, time.high),
        loss=prediction if prediction.is_informative else None,
    )


def _adapt(config: Config, folder: Path, vocabulary: int, unique: float, corpus: Corpus) -> Config:
    """`config` for the data of `folder`: all but the size of the model, the batch and the length."""
    block = config.model.block_size
    while block > MIN_BLOCK and unique < MIN_WINDOWS * block:
        block //= 2
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-")[:100] or "run"
    run: dict[str, Any] = {"name": name}
    if vocabulary < BYTE_VOCABULARY:
        run["sample_prompt"] = ""
    known = "" if corpus.name == "unknown" else corpus.name
    vocabulary = query.padded_vocabulary(vocabulary)
    model = {"architecture": "modern", "block_size": block, "vocab_size": vocabulary}
    data = {"path": str(folder), "corpus": known, "unique_tokens": None}
    return config.replace({"model": model, "data": data, "optim": RECIPE, "run": run})


def _candidates(base: Config, unique: float, device: Device | None, max_epochs: float) -> Iterator[_Candidate]:
    """Runs of each shape that fit the device's memory and the limits of time and repetition, longest first."""
    limit = CPU_SECONDS if device is None else GPU_SECONDS
    for layers, width in search.SHAPES:
        shaped = search.with_shape(base, layers, width)
        is_smallest = (layers, width) == search.SHAPES[0]
        tokens_per_second = shaped.tokens_per_step / speed.expected(shaped, device).seconds
        longest = min(max_epochs * unique, limit * tokens_per_second)
        for fraction in LENGTHS:
            tokens = fraction * longest
            is_fitted = tokens >= scaling_law.FITTED_RATIO * parameters(shaped.model)
            config = _with_length(shaped, tokens, unique, device) if is_fitted or is_smallest else None
            if config is None:
                break
            seconds = plan.run_seconds(config, config.run.steps, speed.expected(config, device).seconds)
            if seconds <= limit or (is_smallest and fraction == LENGTHS[-1]):
                asked = query.build_query(config, config.run.steps, scaling_law.CORPORA["unknown"], unique)
                loss = scaling_law.predict_loss(replace(asked, ceiling=math.inf)).loss
                yield _Candidate(config=config, loss=loss, seconds=seconds)


def _with_length(config: Config, tokens: float, unique: float, device: Device | None) -> Config | None:
    """`config` as a run on that many tokens; None if not even one sequence fits the device's memory."""
    block = config.model.block_size
    batch = min(best_batch(tokens * flops_per_token(config.model)), tokens / search.WANTED_STEPS)
    sequences = 2 ** max(0, round(math.log2(batch / block)))
    micro_batch = min(sequences, search.CPU_MICRO_BATCH)
    batched: Config | None = config.replace({"data": {"micro_batch": micro_batch, "accum": sequences // micro_batch}})
    if device is not None and batched is not None:
        batched = search.with_batch(batched, device)
    if batched is None:
        return None
    steps = _round_down(max(search.MIN_STEPS, int(tokens / batched.tokens_per_step)))
    interval = max(1, min(500, steps // 4))
    run = {"name": config.run.name, "eval_every": interval, "save_every": interval}
    return search.with_steps(batched, steps, unique).replace({"run": run})


def best_batch(flops: float) -> float:
    """Tokens per step for a run of that many FLOPs: DeepSeek LLM's fit (arXiv 2401.02954), at most 2^19."""
    return float(min(0.2920 * flops**0.3271, 2.0**19))


def _round_down(count: int) -> int:
    """To two digits."""
    digit = int(10 ** max(0, int(math.log10(count)) - 1))
    return count // digit * digit
