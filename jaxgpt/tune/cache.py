"""Results of tuning in the user's cache, by device, versions and the step that was tuned."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jaxgpt
from jaxgpt.budget.tuned_steps import positive, step_values, tuning_folder
from jaxgpt.config import Config
from jaxgpt.errors import ConfigError
from jaxgpt.tune.candidates import Candidate, Changes
from jaxgpt.tune.search import Tuned
from jaxgpt.utils.files import read_json, write_text

TUNED_FIELDS = {
    "data": ("micro_batch", "accum"),
    "model": ("loss_chunk", "remat", "attention"),
    "mesh": ("compiler_options",),
}


def cache_file(config: Config, device: dict[str, Any]) -> Path:
    """Where the result for `config` on `device` is kept: its name stands for all that the program depends on."""
    key = json.dumps([device, jaxgpt.__version__, step_values(config)], sort_keys=True)
    return tuning_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def write_result(config: Config, tuned: Tuned) -> None:
    """Keeps `tuned`. Raises `OSError` if the cache cannot be written."""
    values = {
        "device": tuned.device,
        "step": step_values(config),
        "tuned_step": step_values(tuned.winner.apply(config)),
        "winner": tuned.winner.name,
        "changes": tuned.winner.changes,
        "default_seconds": tuned.default_seconds,
        "winner_seconds": tuned.winner_seconds,
        "programs": [[each.candidate.name, each.step_seconds, each.problem] for each in tuned.outcomes],
    }
    file = cache_file(config, tuned.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(values, indent=1) + "\n")


def read_result(config: Config, device: dict[str, Any]) -> Tuned | None:
    """The result for `config` on `device`; None if there is none that can be used."""
    try:
        values = read_json(cache_file(config, device))
        winner = Candidate(str(values["winner"]), values["changes"])
        tuned = Tuned(winner, positive(values["default_seconds"]), positive(values["winner_seconds"]), device, [])
        is_valid = _is_tuning(winner.changes) and winner.apply(config).tokens_per_step == config.tokens_per_step
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None
    return tuned if is_valid else None


def _is_tuning(changes: Changes) -> bool:
    """Whether `changes` has no other fields than those that tuning may change."""
    return all(set(fields) <= set(TUNED_FIELDS.get(section, ())) for section, fields in changes.items())


def tuned_fields(config: Config) -> Changes:
    """The values of `config` that tuning may change."""
    return {
        section: {name: getattr(getattr(config, section), name) for name in names}
        for section, names in TUNED_FIELDS.items()
    }
