"""Dataclass fields that carry their help text and range, and dataclasses that check them.

The sections of a run's config and the options of a command are both described this way: the annotation gives a field's
type (int, float, bool, str, Literal, a tuple of str or int, or one of these or None), `field` gives the rest. The
command line and its `--help` are made from the same description (`jaxgpt.config.options`).
"""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from functools import cache
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from jaxgpt.errors import ConfigError

MAX_INTEGER = 2**63 - 1  # what the compiled extension and array shapes can hold
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
HELP = "--help explains every option"


def field(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    metavar: str = "",
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field with its default, its help text (with the unit) and the range of its values.

    `parse` reads the option's text where the type alone does not say how; `metavar` stands for the value in `--help`.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "parse": parse, **limits})


class Checked:
    """A dataclass whose fields are checked when it is made: each against its type and range, then by `check`."""

    title: ClassVar[str]  # heading of its options in --help
    summary: ClassVar[str]  # the line below that heading
    error_code: ClassVar[str]  # code of every error; empty: C007 to C017, by the kind of error

    def __init_subclass__(cls, title: str = "", error_code: str = "") -> None:
        cls.title = title or cls.__name__.lower()
        cls.summary = (cls.__doc__ or "").split("\n")[0]  # empty under python -OO, which removes docstrings
        cls.error_code = error_code

    def __post_init__(self) -> None:
        for name, (dataclass_field, kind) in field_types(type(self)).items():
            label = self.label(name)
            value = validate(label, getattr(self, name), kind, dataclass_field.metadata, self.error_code)
            object.__setattr__(self, name, value)
        self.check()

    @classmethod
    def label(cls, name: str) -> str:
        """How messages call the field `name`."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises `ConfigError` where fields contradict each other."""


class Section(Checked):
    """A section of `Config`; messages call its fields `section.field`."""

    @classmethod
    def label(cls, name: str) -> str:
        return f"{cls.__name__.lower()}.{name}"


class OptionGroup(Checked):
    """Options of a command; messages call them as they are typed, such as `--unique-tokens`."""

    @classmethod
    def label(cls, name: str) -> str:
        return "--" + name.replace("_", "-")


def field_types(cls: Any) -> Mapping[str, tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass with their types, by name."""
    return _field_types(cls)


@cache
def _field_types(cls: type[Any]) -> Mapping[str, tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(cls)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(cls)}


def field_default(field: dataclasses.Field[Any]) -> Any:
    """The default of `field`; None if it has none."""
    return None if field.default is MISSING else field.default


def optional_type(kind: Any) -> Any:
    """X if `kind` is `X | None`, else None."""
    return get_args(kind)[0] if get_origin(kind) in (Union, types.UnionType) else None


def validate(label: str, value: Any, kind: Any, limits: Mapping[str, Any], code: str = "") -> Any:
    """Returns `value` as the type `kind`; raises `ConfigError` with `label`, the value and what is needed."""
    if optional_type(kind) is not None:
        return None if value is None else validate(label, value, optional_type(kind), limits, code)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ConfigError(code or "C017", f"{label} = {value!r} is not known", f"one of: {choices}")
        return value
    if get_origin(kind) is tuple:
        if isinstance(value, str):
            raise ConfigError(code or "C007", f"{label} = {value!r}; a list is needed", HELP)
        return tuple(validate(label, item, get_args(kind)[0], limits, code) for item in value)
    if kind not in TYPE_NAMES:
        return value
    if isinstance(value, bool) is not (kind is bool):
        default_code = "C008" if isinstance(value, bool) else "C007"
        raise ConfigError(code or default_code, f"{label} = {value!r}; {TYPE_NAMES[kind]} is needed", HELP)
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind):
        raise ConfigError(code or "C007", f"{label} = {value!r}; {TYPE_NAMES[kind]} is needed", HELP)
    if kind is str and "\0" in value:
        raise ConfigError(code or "C007", f"{label} = {value!r}; text without null characters is needed", HELP)
    if kind in (int, float):
        _check_range(label, value, limits, code)
    return value


def _check_range(label: str, value: float, limits: Mapping[str, Any], code: str) -> None:
    if not math.isfinite(value):
        raise ConfigError(code or "C008", f"{label} = {value} is not finite", HELP)
    ge, gt, le, lt = (limits.get(name) for name in ("ge", "gt", "le", "lt"))
    if le is None and isinstance(value, int):
        le = MAX_INTEGER
    if ge is not None and value < ge:
        raise ConfigError(code or "C009", f"{label} = {value}; must be {ge:g} or more", HELP)
    if gt is not None and value <= gt:
        raise ConfigError(code or "C009", f"{label} = {value}; must be above {gt:g}", HELP)
    if le is not None and value > le:
        raise ConfigError(code or "C009", f"{label} = {value}; must be {le:g} or less", HELP)
    if lt is not None and value >= lt:
        raise ConfigError(code or "C016", f"{label} = {value}; must be below {lt:g}", HELP)
