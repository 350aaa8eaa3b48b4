"""Commands that train what is advised, written so that the command line takes them."""

import shlex
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jaxgpt.config import Config, sections
from jaxgpt.config.files import load_config
from jaxgpt.diagnose.context import RunContext
from jaxgpt.errors import JaxgptError
from jaxgpt.logs.history import History

Changes = Mapping[str, Mapping[str, Any]]
OWN = "jaxgpt"  # the format of our logs: only such a run has checkpoints to go on from


def train(history: History, context: RunContext, changes: Changes, *, name: str = "", fork: bool | int = False) -> str:
    """`python -m jaxgpt.train …` with the run's config and `changes` to it; empty where the config is not known.

    `name` is added to the run's, as changed runs need; none goes on with the run itself. With `fork` it starts from
    the newest checkpoint of a run of ours that has steps left, or from that of the step `fork`; of others it starts
    anew. Empty as well where the changes contradict the config.
    """
    if context.config is None:
        return ""
    own = context.config.run
    try:
        config = context.config.replace({section: dict(fields) for section, fields in changes.items()})
        if name:
            config = config.replace({"run": {"name": f"{own.name[:80]}-{name}"}})
        base, words = _nearest(config, context.config_name)
    except JaxgptError:
        return ""
    place = f"{own.dir}/{own.name}" + ("" if isinstance(fork, bool) else f"/checkpoints/{fork}")
    done = history.steps_done if isinstance(fork, bool) else fork
    if fork is not False and history.format == OWN and done < config.run.steps:
        words += ["--fork", place]
    return shlex.join(["python", "-m", "jaxgpt.train", "--config", base, *words])


def _nearest(config: Config, name: str | None) -> tuple[str, list[str]]:
    """The config of that name, else the one of those that come with jaxgpt with the fewest changes; and the changes."""
    if name is not None:
        return name, overrides(config, load_config(name))
    found = [(known, overrides(config, base)) for known, base in bundled().items()]
    return min(found, key=lambda pair: len(pair[1]))


@cache
def bundled() -> dict[str, Config]:
    """The configs that come with jaxgpt."""
    folder = Path(str(resources.files("jaxgpt"))) / "configs"
    return {path.stem: load_config(path) for path in sorted(folder.glob("*.py"))}


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
