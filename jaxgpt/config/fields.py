"""Fields that check themselves: the vocabulary in which `config.py` describes a run.

A field's metadata holds its help text and its range; its annotation holds its type (int, float, bool, str, Literal,
tuple of str, or one of them or None). The same two are what the command line and `--help` are made of.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from jaxgpt.errors import ConfigError


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A config field: its default, what it means (with its unit), and the closed or half-open range it allows."""
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "most": most, "below": below})


class Section:
    """A part of `Config` whose fields are checked one by one, then together by `check`."""

    summary: ClassVar[str] = ""  # the section's line in --help; docstrings are missing under python -OO

    def __post_init__(self) -> None:
        for field, kind in field_types(type(self)).items():
            place = f"{section_name(type(self))}.{field.name}"
            object.__setattr__(self, field.name, checked(place, getattr(self, field.name), kind, field.metadata))
        self.check()

    def check(self) -> None:
        """Raises `ConfigError` where two fields of this section contradict each other."""


def section_name(section: type[Any]) -> str:
    return section.__name__.lower()


def field_types(section: type[Any]) -> dict[dataclasses.Field[Any], Any]:
    hints = get_type_hints(section)
    return {field: hints[field.name] for field in fields(section)}


def field_default(field: dataclasses.Field[Any]) -> Any:
    return None if field.default is MISSING else field.default


WANTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def checked(place: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    """`value` as the field's type; raises `ConfigError` naming `place`, the value and what is needed."""
    options = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else checked(place, value, options[0], limits)
    if get_origin(kind) is Literal:
        if value not in options:
            raise ConfigError("C017", f"{place} = {value!r} is not known", f"one of: {', '.join(options)}")
        return value
    if get_origin(kind) is tuple:
        return _checked_tuple(place, value)
    if isinstance(value, bool) is not (kind is bool):
        code = "C008" if isinstance(value, bool) else "C007"
        raise ConfigError(code, f"{place} = {value!r}; {WANTED[kind]} is needed")
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind):
        raise ConfigError("C007", f"{place} = {value!r}; {WANTED[kind]} is needed")
    if kind in (int, float):
        _check_range(place, value, limits)
    return value


def _checked_tuple(place: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError("C007", f"{place} = {value!r}; a list of texts is needed")
    return tuple(value)


def _check_range(place: str, value: float, limits: Mapping[str, Any]) -> None:
    least, most, below = (limits.get(name) for name in ("least", "most", "below"))
    if not math.isfinite(value):
        raise ConfigError("C008", f"{place} = {value} is not finite")
    if least is not None and value < least:
        raise ConfigError("C009", f"{place} = {value}; must be {least:g} or more")
    if most is not None and value > most:
        raise ConfigError("C009", f"{place} = {value}; must be {most:g} or less")
    if below is not None and value >= below:
        raise ConfigError("C016", f"{place} = {value}; must be below {below:g}")
