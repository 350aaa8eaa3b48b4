"""Shell commands that train a changed run. `jaxgpt.train` reads them back as exactly the config that was forecast."""

import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from jaxgpt.config import Config
from jaxgpt.config.command_line import changed_options
from jaxgpt.config.files import built_in_configs, load_config
from jaxgpt.diagnose.context import RunContext
from jaxgpt.errors import JaxgptError
from jaxgpt.logs.history import History

Changes = Mapping[str, Mapping[str, Any]]  # by section and field
Checkpoint = int | Literal["latest"] | None
MAX_NAME = 80  # characters of a run's name in the name of a changed run


def train_command(
    history: History, context: RunContext, changes: Changes, *, name: str = "", checkpoint: Checkpoint = None
) -> str:
    """`python -m jaxgpt.train …` with the run's config and `changes`; empty where no such command exists.

    `name` is appended to the run's name: a changed run needs a name of its own, and without one the run itself resumes.
    `checkpoint` is the checkpoint to fork from: a step or the latest. Runs that are over, and those of other software,
    start from scratch. There is no command if the config is unknown or if the changes contradict it.
    """
    if context.config is None:
        return ""
    run = context.config.run
    try:
        config = context.config if history.traits.is_jaxgpt_run else _config_of_run(context.config, context)
        config = config.replace({section: dict(fields) for section, fields in changes.items()})
        if name:
            config = config.replace({"run": {"name": f"{run.name[:MAX_NAME]}-{name}"}})
        base, words = _shortest_overrides(config, context.config_name)
    except JaxgptError:
        return ""
    start = checkpoint if isinstance(checkpoint, int) else history.steps_done
    if checkpoint is not None and history.traits.is_jaxgpt_run and start < config.run.steps:
        folder = f"{run.dir}/{run.name}"
        words += ["--fork", folder if checkpoint == "latest" else f"{folder}/checkpoints/{checkpoint}"]
    return shlex.join(["python", "-m", "jaxgpt.train", "--config", base, *words])


def _config_of_run(config: Config, context: RunContext) -> Config:
    """`config` with the length of the run, which an option or the log may state."""
    return config if context.total_steps is None else config.replace({"run": {"steps": context.total_steps}})


def _shortest_overrides(config: Config, name: str | None) -> tuple[str, list[str]]:
    """The config `name`, or the built-in one closest to `config`, and the options that make `config` of it."""
    if name is not None:
        return name, changed_options(config, load_config(name))
    candidates = [(built_in, changed_options(config, base)) for built_in, base in _built_in_configs().items()]
    return min(candidates, key=lambda candidate: len(candidate[1]))


@cache
def _built_in_configs() -> dict[str, Config]:
    """The configs that come with jaxgpt, by name."""
    return {name: load_config(name) for name in built_in_configs()}
