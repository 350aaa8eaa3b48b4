"""Commands that train what is advised, written so that the command line takes them."""

import shlex
from collections.abc import Mapping
from typing import Any

from jaxgpt.config import Config, sections
from jaxgpt.diagnose.setting import Setting
from jaxgpt.errors import JaxgptError
from jaxgpt.logs.history import History
from jaxgpt.overrides import load

Changes = Mapping[str, Mapping[str, Any]]
BASE = "fineweb40m"  # the config that a run without one by name is written as changes to
OWN = "jaxgpt"  # the format of our logs: only such a run has checkpoints to go on from


def train(history: History, setting: Setting, changes: Changes, *, fork: str = "") -> str:
    """`python -m jaxgpt.train …` with the run's config and `changes` to it; empty where the config is not known.

    With `fork`, a word for the new run's name, it goes on from the newest checkpoint of a run of ours; of a log of
    other software it starts anew. Empty as well where the changes contradict the config.
    """
    if setting.config is None:
        return ""
    own, name = setting.config.run, setting.config_name or BASE
    try:
        config = setting.config.replace({section: dict(fields) for section, fields in changes.items()})
        if fork:
            config = config.replace({"run": {"name": f"{own.name[:80]}-{fork}"}})
        words = ["python", "-m", "jaxgpt.train", "--config", name, *overrides(config, load(name))]
    except JaxgptError:
        return ""
    goes_on = ["--fork", f"{own.dir}/{own.name}"] if fork and history.format == OWN else []
    return shlex.join([*words, *goes_on])


def overrides(config: Config, base: Config) -> list[str]:
    """The options that make `config` of `base`."""
    words = []
    for section in sections():
        mine, other = config.to_dict()[section], base.to_dict()[section]
        for field, value in mine.items():
            if value != other[field]:
                words += [f"--{section}.{field.replace('_', '-')}", *_words(value)]
    return words


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value] or ["none"]
    if value is None:
        return ["none"]
    return [str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)]
