"""Results of tuning in the user's cache, by device, versions and the step that was tuned."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jaxgpt
from jaxgpt.budget.tuned_steps import step_values, tuning_folder
from jaxgpt.config import Config
from jaxgpt.tune.candidates import Candidate
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
    """Keeps `tuned`; without a cache that can be written, the next time measures again."""
    values = {
        "device": tuned.device,
        "step": step_values(config),
        "winner": tuned.winner.name,
        "changes": tuned.winner.changes,
        "default_seconds": tuned.default_seconds,
        "winner_seconds": tuned.winner_seconds,
        "programs": [[each.candidate.name, each.step_seconds, each.problem] for each in tuned.outcomes],
    }
    file = cache_file(config, tuned.device)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(values, indent=1) + "\n")
    except OSError:
        return


def read_result(config: Config, device: dict[str, Any]) -> Tuned | None:
    """The result for `config` on `device`; None if there is none that can be read."""
    try:
        values = read_json(cache_file(config, device))
        winner = Candidate(values["winner"], values["changes"])
        return Tuned(winner, float(values["default_seconds"]), float(values["winner_seconds"]), device, [])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tuned_fields(config: Config) -> dict[str, dict[str, Any]]:
    """The values of `config` that tuning may change."""
    return {
        section: {name: getattr(getattr(config, section), name) for name in names}
        for section, names in TUNED_FIELDS.items()
    }
