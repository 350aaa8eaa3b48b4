"""From a config's name and a command line to a `Config`: files, one option per field, and nanoGPT's words.

Values on the command line are text that is read as the field's type; nothing here evaluates them as code.
"""

import argparse
import difflib
import math
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import Field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jaxgpt.config import Config, sections
from jaxgpt.config.fields import field_default, field_types
from jaxgpt.errors import ConfigError

# nanoGPT's options that have another name or section here.
NANOGPT = {
    "max_iters": "run.steps",
    "batch_size": "data.micro_batch",
    "gradient_accumulation_steps": "data.accum",
    "dataset": "data.path",
    "warmup_iters": "optim.warmup_steps",
    "lr_decay_iters": "optim.decay_steps",
    "log_interval": "run.log_every",
    "eval_interval": "run.eval_every",
    "out_dir": "run.dir",
    "seed": "run.seed",
}

# nanoGPT's options whose job is done in another way.
ANSWERS = {
    "eval_iters": "evaluation is sized in tokens: --run.eval-tokens (nanoGPT's 200 iters of 16 x 1024 are 3276800)",
    "init_from": "a run resumes by itself when its folder holds a checkpoint; a new --run.name starts anew",
    "eval_only": "python -m jaxgpt.evaluate RUN",
    "always_save_checkpoint": "latest and best are both kept: --run.keep-latest, --run.keep-best",
    "decay_lr": "--optim.schedule constant",
    "compile": "the step is always compiled",
    "backend": "devices are found by JAX: --mesh.device, --mesh.data-parallel",
    "wandb_log": "the run's record is log.jsonl and TensorBoard: --run.tensorboard",
    "wandb_project": "the run's record is log.jsonl and TensorBoard: --run.tensorboard",
    "wandb_run_name": "--run.name",
    "set": "write the field as an option of its own: --optim.learning-rate 3e-4",
}

FALSE, TRUE, NONE = ("false", "no", "off", "0"), ("true", "yes", "on", "1"), ("none", "null", "auto")


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `ConfigError`s and whose options are never guessed from a prefix."""

    def __init__(self, command: str, description: str, usage: str = "") -> None:
        prog = f"python -m jaxgpt.{command}"
        super().__init__(prog=prog, description=description, usage=usage and f"{prog} {usage}", allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError("C006", message, f"{self.prog} --help")


def parse_config(parser: Parser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Adds the config's options to `parser`, reads `argv`, and returns the config and the parser's other options.

    Raises `ConfigError` C001 to C023 for whatever cannot be run.
    """
    parser.add_argument("config_file", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="a config file, or the name of one that comes with jaxgpt")
    own = {option for action in parser._actions for option in action.option_strings}
    fields = add_fields(parser)
    options, unknown = parser.parse_known_args(_canonical(argv, own))
    if unknown:
        raise _unknown(unknown[0], fields)
    config = load(options.config or options.config_file or "fineweb40m")
    return config.replace(_changes(options, fields)), options


def load(name: str | Path) -> Config:
    """The `config` that the file `name` defines; a bare name is looked up among those that come with jaxgpt."""
    path = find(str(name))
    namespace: dict[str, Any] = {"__name__": "jaxgpt_config", "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    except SyntaxError as error:
        raise ConfigError("C002", f"{path}:{error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("C002", f"{path} is not a text file ({error.reason} at byte {error.start})") from error
    except ConfigError as error:
        raise ConfigError(error.code, f"{error.message} ({path}:{_line(error, path)})", error.help) from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError("C004", f"{path}:{_line(error, path)}: {what}", "mend the file") from error
    config = namespace.get("config")
    if not isinstance(config, Config):
        raise ConfigError("C003", f"{path} defines no 'config = Config(...)'", "see configs/quickstart.py")
    return config


def find(name: str) -> Path:
    """The config file of that path or name; raises `ConfigError` C001 listing those that exist."""
    own = Path(str(resources.files("jaxgpt"))) / "configs"
    candidates = [Path(name), own / Path(name).name, own / f"{name}.py"]
    for path in candidates:
        if path.is_file():
            return path
    local = [str(path) for path in sorted(Path("configs").glob("*.py"))]
    raise ConfigError(
        "C001",
        f"config {name!r} not found",
        "there are: " + ", ".join(local or sorted(p.stem for p in own.glob("*.py"))),
    )


def add_fields(parser: argparse.ArgumentParser) -> dict[str, tuple[Field[Any], Any]]:
    """One option per field, grouped by section; returns the fields by place."""
    found: dict[str, tuple[Field[Any], Any]] = {}
    for section, kind in sections().items():
        group = parser.add_argument_group(section, kind.summary)
        for field, hint in field_types(kind).items():
            place = f"{section}.{field.name}"
            found[place] = (field, hint)
            group.add_argument(
                _option(place),
                dest=place,
                default=argparse.SUPPRESS,
                metavar=_metavar(hint),
                nargs="+" if get_origin(hint) is tuple else "?" if hint is bool else None,
                const="true" if hint is bool else None,
                help=f"{field.metadata['help']} (default: {_shown(field_default(field))})".replace("%", "%%"),
            )
    return found


def _option(place: str) -> str:
    return "--" + place.replace("_", "-")


def _places() -> dict[str, str]:
    """Each word that names a field: its place, nanoGPT's word, and its bare name where only one section has it."""
    places = [f"{section}.{field.name}" for section, kind in sections().items() for field in field_types(kind)]
    bare = Counter(place.split(".")[1] for place in places)
    short = {place.split(".")[1]: place for place in places if bare[place.split(".")[1]] == 1}
    return short | NANOGPT | {place: place for place in places}


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    if get_origin(hint) in (Union, types.UnionType):
        return f"{_metavar(get_args(hint)[0])}|none"
    if get_origin(hint) is tuple:
        return "SOURCE"
    return {int: "N", float: "X", bool: "true|false"}.get(hint, "TEXT")


def _shown(value: Any) -> str:
    if value is None or value == () or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _canonical(argv: Sequence[str], own: set[str]) -> list[str]:
    """`argv` with every spelling of a field written as its one option, and negative numbers tied to theirs.

    Options in `own` belong to the command itself and stay as they are, whatever field has the same name.
    """
    places, found = _places(), list[str]()
    for argument in argv:
        name, equals, value = argument.partition("=")
        place = places.get(name[2:].replace("-", "_")) if name.startswith("--") and name not in own else None
        if place:
            found.append(_option(place) + equals + value)
        elif found and found[-1].startswith("--") and argument.startswith("-") and _number(argument) is not None:
            found[-1] += f"={argument}"  # argparse would take -1e-3 for an option
        else:
            found.append(argument)
    return found


def _unknown(argument: str, fields: dict[str, Any]) -> ConfigError:
    word = argument.split("=")[0].lstrip("-").replace("-", "_")
    if not argument.startswith("-"):
        return ConfigError("C006", f"{argument!r} is not understood", "options are written --section.field value")
    if word in ANSWERS:
        return ConfigError("C005", f"there is no option '--{word}'", ANSWERS[word])
    close = difflib.get_close_matches(word, [*fields, *NANOGPT], n=1, cutoff=0.5)
    hint = f"did you mean {NANOGPT.get(close[0], close[0])!r}?" if close else "--help lists the fields"
    return ConfigError("C005", f"unknown field {word!r}", hint)


def _changes(options: argparse.Namespace, fields: dict[str, tuple[Field[Any], Any]]) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    for place, (_, hint) in fields.items():
        if hasattr(options, place):
            section, name = place.split(".")
            changes.setdefault(section, {})[name] = from_text(place, getattr(options, place), hint)
    return changes


def from_text(place: str, text: Any, hint: Any) -> Any:
    """The value of type `hint` that `text` spells; what spells none is returned as it is, for the field to refuse."""
    if get_origin(hint) in (Union, types.UnionType):
        return None if text.lower() in NONE else from_text(place, text, get_args(hint)[0])
    if get_origin(hint) is tuple:
        return tuple(text)
    if hint is bool:
        return True if text.lower() in TRUE else False if text.lower() in FALSE else text
    if hint is int:
        number = _number(text)
        whole = number is not None and math.isfinite(number) and number == int(number)
        return _integer(text, number) if whole and number is not None else text if number is None else number
    if hint is float:
        number = _number(text)
        return text if number is None else number
    return {"cuda": "gpu"}.get(text, text) if place == "mesh.device" else text


def _integer(text: str, number: float) -> int:
    """Exact where the text is a plain integer: a float would round one above 2**53."""
    try:
        return int(text.replace(",", ""))
    except ValueError:
        return int(number)


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _line(error: BaseException, path: Path) -> int:
    """The line of `path` that was running when `error` was raised."""
    lines = [0]
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1]
