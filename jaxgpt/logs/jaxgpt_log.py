"""Our own run folders and their `log.jsonl` (see `runlog`)."""

import json
import re
from dataclasses import replace
from typing import Any

from jaxgpt.config import Config
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.logs.collector import Collector, duration, finite, number, whole
from jaxgpt.logs.history import Evaluation, History, Step
from jaxgpt.runs.folder import RunFolder

NAME = "jaxgpt"
MARKS = ('"kind"',)
KNOWN = re.compile(r'\{"kind": "(?:step|eval|start)"')


class Reader:
    """Reads line by line into a `Collector`; a line that a crash tore is left out."""

    def __init__(self, collector: Collector) -> None:
        self._found = collector
        self._time: float | None = None  # of the record before, of the same process
        self._compiling = False
        self._pauses = 0.0

    def line(self, at: int, text: str) -> None:
        begin = text.find("{")
        try:
            record = json.loads(text[begin:]) if begin >= 0 else None
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict):
            self._record(at, record)

    def _record(self, at: int, record: dict[str, Any]) -> None:
        kind, time, step = record.get("kind"), finite(record.get("time")), whole(record.get("step"))
        if kind == "start":
            self._start(at, record, step or 0)
        elif kind == "stop":
            self._found.facts["end"] = str(record.get("reason"))
        elif kind == "step" and step is not None:
            self._step(at, record, step, time)
        elif kind == "eval" and step is not None:
            self._evaluation(at, record, step, time)
        elif kind == "save" and step is not None:
            self._pause(time)
            self._found.saved(step)
        self._time = time

    def _pause(self, time: float | None) -> float | None:
        """The seconds since the record before, which ended a step: what is being recorded took them."""
        spent = None if time is None or self._time is None or self._compiling else duration(time - self._time)
        self._pauses += spent or 0.0
        return spent

    def _start(self, at: int, record: dict[str, Any], done: int) -> None:
        self._found.header(at)
        self._found.facts.pop("end", None)
        self._pauses = 0.0 if done == 0 else self._pauses
        self._compiling = True
        try:
            self._found.config = Config.from_dict(record["config"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ConfigError):
            self._found.note(f"the config in line {at} cannot be read by this version")
        device = record.get("device")
        if isinstance(device, dict) and isinstance(device.get("kind"), str):
            self._found.facts["device"] = device["kind"]

    def _step(self, at: int, record: dict[str, Any], step: int, time: float | None) -> None:
        seconds = duration(number(record.get("seconds")))
        loss, rate, norm = (number(record.get(name)) for name in ("loss", "learning_rate", "grad_norm"))
        self._found.step(Step(step, loss, seconds, rate, norm, at, not self._compiling, time))
        self._compiling = False

    def _evaluation(self, at: int, record: dict[str, Any], step: int, time: float | None) -> None:
        val, train = number(record.get("val_loss")), number(record.get("train_loss"))
        error = finite(record.get("val_standard_error", record.get("train_standard_error")))
        self._found.evaluation(Evaluation(step, val, train, error, at, self._pause(time)))

    def end(self) -> None:
        self._found.facts["pauses"] = self._pauses
        if self._found.config is not None:
            self._found.facts |= stated(self._found.config)


def stated(config: Config) -> dict[str, Any]:
    """What a config says of its run."""
    return {
        "tokens_per_step": number(config.tokens_per_step),
        "total_steps": config.run.steps,
        "eval_tokens": number(config.run.eval_tokens),
    }


def with_config(history: History, folder: RunFolder) -> History:
    """`history` with the config of its folder where its log has none, as of a run whose first lines are lost."""
    if history.config is not None:
        return history
    try:
        config = folder.config()
    except JaxgptError:
        return history
    return replace(history, config=config, metadata=replace(history.metadata, **stated(config)))


def completed(history: History, folder: RunFolder) -> History:
    """`history` with what its folder says beside the log: its config, and how much text the run had."""
    return with_tokens(with_config(history, folder), folder)


def with_tokens(history: History, folder: RunFolder) -> History:
    """`history` with the size of the run's training text, if its folder's `data.json` tells."""
    try:
        tokens = json.loads(folder.data_file.read_text(encoding="utf-8"))["train_tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return history
    unique = finite(tokens)
    if history.metadata.unique_tokens is not None or not unique or unique < 0:
        return history
    return replace(history, metadata=replace(history.metadata, unique_tokens=unique))
