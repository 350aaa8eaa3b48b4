"""Commands that train what is advised, written so that the command line takes them."""

import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from jaxgpt.config import Config
from jaxgpt.config.command_line import changed_options
from jaxgpt.config.files import built_in_configs, load_config
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
        return name, changed_options(config, load_config(name))
    found = [(known, changed_options(config, base)) for known, base in bundled().items()]
    return min(found, key=lambda pair: len(pair[1]))


@cache
def bundled() -> dict[str, Config]:
    """The configs that come with jaxgpt."""
    return {name: load_config(name) for name in built_in_configs()}
