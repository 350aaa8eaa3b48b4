"""jaxgpt's run folders and their `log.jsonl` (see `jaxgpt.runs.log`)."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

from jaxgpt.config import Config
from jaxgpt.errors import CheckpointError, ConfigError, JaxgptError
from jaxgpt.logs import reader
from jaxgpt.logs.collector import Collector
from jaxgpt.logs.history import Evaluation, History, LogTraits, Step
from jaxgpt.logs.reader import parse_finite, parse_number, parse_step, valid_duration
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import StopReason
from jaxgpt.utils.files import read_json

NAME = "jaxgpt"
TRAITS = LogTraits(is_jaxgpt_run=True, fixed_eval_set=True)
MARKERS = ('"kind"',)
PATTERN = re.compile(r'\{"kind": "(?:step|eval|start)"')


class Reader(reader.Reader):
    """Reads line by line into a `Collector`. A line that a crash tore is skipped."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._last_time: float | None = None  # of the record before, by the same process
        self._compiling = False
        self._pause_seconds = 0.0

    def line(self, line_no: int, text: str) -> None:
        """Reads one line."""
        start = text.find("{")
        if start < 0:
            return
        try:
            record = json.loads(text[start:])
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict):
            self._record(line_no, record)

    def _record(self, line_no: int, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        time = parse_finite(record.get("time"))
        step = parse_step(record.get("step"))
        if kind == "start":
            self._start(line_no, record, step or 0)
        elif kind == "rewind" and step is not None:
            self._add_pause(time)
            self._log.rewind(step, line_no)
        elif kind == "stop":
            self._log.metadata["stop_reason"] = StopReason.from_record(record)
        elif kind == "step" and step is not None:
            self._step(line_no, record, step, time)
        elif kind == "eval" and step is not None:
            self._evaluation(line_no, record, step, time)
        elif kind == "save" and step is not None:
            self._add_pause(time)
            self._log.add_save(step)
        elif kind == "sample":
            self._add_pause(time)
        self._last_time = time

    def _add_pause(self, time: float | None) -> float | None:
        """Counts and returns the seconds since the record before, in which the run evaluated, sampled or saved."""
        if time is None or self._last_time is None or self._compiling:
            return None
        seconds = valid_duration(time - self._last_time)
        self._pause_seconds += seconds or 0.0
        return seconds

    def _start(self, line_no: int, record: dict[str, Any], steps_done: int) -> None:
        self._log.header(line_no)
        self._log.metadata.pop("stop_reason", None)
        if steps_done == 0:
            self._pause_seconds = 0.0
        self._compiling = True
        try:
            self._log.config = Config.from_dict(record["config"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ConfigError):
            self._log.note(f"this version cannot read the config in line {line_no}")
        device = record.get("device")
        if isinstance(device, dict) and isinstance(device.get("kind"), str):
            self._log.metadata["device"] = device["kind"]
            self._log.metadata["device_count"] = parse_step(device.get("count")) or None

    def _step(self, line_no: int, record: dict[str, Any], step: int, time: float | None) -> None:
        self._log.add(
            Step(
                step=step,
                loss=parse_number(record.get("loss")),
                seconds=valid_duration(parse_number(record.get("seconds"))),
                learning_rate=parse_number(record.get("learning_rate")),
                grad_norm=parse_number(record.get("grad_norm")),
                line=line_no,
                step_only=not self._compiling,
                time=time,
            )
        )
        self._compiling = False

    def _evaluation(self, line_no: int, record: dict[str, Any], step: int, time: float | None) -> None:
        self._log.add(
            Evaluation(
                step=step,
                val=parse_number(record.get("val_loss")),
                train=parse_number(record.get("train_loss")),
                standard_error=parse_finite(record.get("val_standard_error", record.get("train_standard_error"))),
                line=line_no,
                seconds=self._add_pause(time),
            )
        )

    def end(self) -> None:
        """Adds the metadata that the config contains."""
        self._log.metadata["pause_seconds"] = self._pause_seconds
        if self._log.config is not None:
            self._log.metadata |= _config_metadata(self._log.config)


def _config_metadata(config: Config) -> dict[str, Any]:
    return {
        "tokens_per_step": parse_number(config.tokens_per_step),
        "total_steps": config.run.steps,
        "eval_tokens": parse_number(config.run.eval_tokens),
    }


def add_folder_facts(history: History, folder: RunFolder) -> History:
    """`history` with what the run folder contains beside the log: its config, and the size of the training data.

    The log has no config if its first lines are lost. Files that are not those of the run are a warning.
    """
    if not folder.config_file.exists() and not folder.data_file.exists():
        return history  # a log alone
    try:
        folder.check_files()
    except CheckpointError as error:
        history = history.with_warning(f"{error.message}.")
    if problem := folder.log_problem():
        history = history.with_warning(f"{folder.log_file}: {problem}.")
    config = history.config
    facts: dict[str, Any] = {}
    if config is None:
        with suppress(JaxgptError):
            config = folder.config()
            facts = _config_metadata(config)
    unique = _train_tokens(folder)
    if history.metadata.unique_tokens is None and unique and unique > 0:
        facts["unique_tokens"] = unique
    return replace(history, config=config, metadata=replace(history.metadata, **facts))


def _train_tokens(folder: RunFolder) -> float | None:
    """The size of the training data in the folder's `data.json`, if it has one."""
    try:
        return parse_finite(read_json(folder.data_file)["train_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
