"""Command-line options from dataclasses: one option per field, with its type, range, default and help.

Values are text that is read as the field's type; nothing evaluates them as code.
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from jaxgpt.config.fields import Checked, Section, field_default, field_types, optional_type
from jaxgpt.errors import ConfigError, nearest

FALSE = ("false", "no", "off", "0")
TRUE = ("true", "yes", "on", "1")
NONE = ("none", "null", "auto")
SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}

Group = TypeVar("Group", bound=Checked)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` C006, takes negative numbers and guesses no option from a prefix."""

    def __init__(self, command: str, description: str, usage: str = "", examples: str = "") -> None:
        prog = f"python -m jaxgpt.{command}"
        usage = usage and f"{prog} {usage}"
        super().__init__(prog=prog, usage=usage, allow_abbrev=False, formatter_class=_HelpFormatter)
        first, *details = description.strip().split("\n\n")
        self.description = "\n\n".join([first, *([examples.rstrip()] if examples else []), *details])

    def parse(
        self, argv: Sequence[str], unknown_argument: Callable[[str], ConfigError] | None = None
    ) -> argparse.Namespace:
        """Reads the command line; raises `unknown_argument`'s error, or C006, for an argument left over."""
        if "_ARGCOMPLETE" in os.environ:
            from jaxgpt.config.completion import complete  # only where a shell completes the line

            complete(self)
        options, unknown = self.parse_known_args(attach_negative_numbers(argv))
        if unknown:
            raise (unknown_argument or self.unknown_argument)(unknown[0])
        return options

    def option_names(self) -> list[str]:
        """Every option string that was added so far."""
        return [name for action in self._actions for name in action.option_strings]

    def unknown_argument(self, argument: str) -> ConfigError:
        """The error for an argument that no option or positional takes, with the nearest option."""
        name = argument.split("=")[0]
        close = nearest(name, self.option_names()) if name.startswith("-") else None
        return ConfigError(
            "C006",
            f"unexpected argument {argument!r}",
            f"did you mean {close}?" if close else f"{self.prog} --help",
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError("C006", message, f"{self.prog} --help")


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description by itself, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph if paragraph.startswith("examples:") else fill(paragraph, width, indent)
            for paragraph in paragraphs
        )


def add_options(parser: argparse.ArgumentParser, cls: type[Checked]) -> None:
    """Adds one option per field of the dataclass `cls`, as a group of their own."""
    group = parser.add_argument_group(cls.title, cls.summary)
    for name, (field, kind) in field_types(cls).items():
        label = cls.label(name)
        help = field.metadata["help"] + _default_text(cls, field)
        described: dict[str, Any] = {"dest": label, "default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
        if kind is bool and not issubclass(cls, Section):
            described |= {"action": "store_const", "const": "true"}
        else:
            described |= _value_arguments(cls, field, kind)
        group.add_argument(option_name(label), **described)


def given_values(cls: type[Checked], options: argparse.Namespace) -> dict[str, Any]:
    """The values of `cls`'s fields that the command line gives, by field name, read as their types."""
    values = {}
    for name, (field, kind) in field_types(cls).items():
        text = getattr(options, cls.label(name), None)
        if text is not None:
            values[name] = parse_value(text, kind, field.metadata["parse"])
    return values


def read_options(cls: type[Group], options: argparse.Namespace) -> Group:
    """The dataclass `cls` from the command line; raises its `ConfigError`s for values that it refuses."""
    return cls(**given_values(cls, options))


def option_name(label: str) -> str:
    """The option of the field that messages call `label`: `--run.eval-every` for `run.eval_every`."""
    return "--" + label.removeprefix("--").replace("_", "-")


def parse_value(text: Any, kind: Any, parse: Callable[[str], Any] | None = None) -> Any:
    """The value of type `kind` that `text` spells. Text that spells none is returned, for the field to refuse."""
    if parse is not None:
        return parse(text)
    if optional_type(kind) is not None:
        inner = optional_type(kind)
        return None if inner is not str and text.lower() in NONE else parse_value(text, inner)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        words = list(text) if item is str else _words(text, item)
        return () if words == ["none"] else tuple(parse_value(word, item) for word in words)
    if kind is bool:
        word = text.lower()
        return True if word in TRUE else False if word in FALSE else text
    if kind is int:
        return parse_int(text)
    if kind is float:
        return parse_number(text, default=text)
    return text


def _words(texts: Sequence[str], kind: Any) -> list[str]:
    """The words of `texts`, of which each is a value of type `kind`; names may be separated by commas."""
    text = " ".join(texts)
    if get_origin(kind) is Literal:
        text = text.replace(",", " ")
    return text.split() or [""]


def format_value(value: Any) -> list[str]:
    """The words that `parse_value` reads as exactly `value`: the inverse, for printed commands."""
    if value is None or value == ():
        return ["none"]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [str(item) for item in value] if isinstance(value, tuple) else [str(value)]


def parse_int(text: str) -> Any:
    """The whole number that `text` spells (`20000`, `20_000`, `2e4`, `20k`), else its number, else `text`."""
    try:
        return int(text.replace(",", ""))  # exact: a float would round a number above 2**53
    except ValueError:
        number = parse_number(text, default=text)
        whole = isinstance(number, float) and math.isfinite(number) and number == int(number)
        return int(number) if whole else number


def parse_number(text: str, default: Any = None) -> Any:
    """The number that `text` spells (`3.68e9`, `3.68B`, `1,000`), else `default`."""
    digits = text.strip().replace(",", "")
    scale = SUFFIXES.get(digits[-1:].lower(), 1.0)
    try:
        return float(digits if scale == 1.0 else digits[:-1]) * scale
    except ValueError:
        return default


def integer(text: str) -> int:
    """An argparse type: a whole number in any spelling of `parse_int`."""
    value = parse_int(text)
    if not isinstance(value, int):
        raise argparse.ArgumentTypeError(f"{text!r}; a whole number is needed")
    return value


def attach_negative_numbers(argv: Sequence[str]) -> list[str]:
    """`argv` with each negative number after an option joined to it by "=": argparse takes -1e-3 for an option."""
    words: list[str] = []
    for argument in argv:
        negative = argument.startswith("-") and parse_number(argument) is not None
        if negative and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={argument}"
        else:
            words.append(argument)
    return words


def _value_arguments(cls: type[Checked], field: Field[Any], kind: Any) -> dict[str, Any]:
    """What argparse is told of an option that takes values."""
    inner = optional_type(kind) or kind
    metavar = field.metadata["metavar"] or _metavar(inner)
    if issubclass(cls, Section) and optional_type(kind) is not None:
        metavar += "|none"
    nargs = "+" if get_origin(inner) is tuple else "?" if kind is bool else None
    return {"metavar": metavar, "nargs": nargs, "const": "true" if kind is bool else None}


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is tuple:
        return _metavar(get_args(kind)[0])
    return {int: "N", float: "X", bool: "true|false"}.get(kind, "TEXT")


def _default_text(cls: type[Checked], field: Field[Any]) -> str:
    """` (default: …)` for --help; empty for options that are simply not given by default."""
    default = field_default(field)
    if default in (None, (), "", False) and not issubclass(cls, Section):
        return ""
    return f" (default: {' '.join(format_value(default)) or 'none'})"
