"""From a command line to a `Config`: a config file, changed by one option per field or by nanoGPT's names."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.config.fields import field_types
from jaxgpt.config.files import available_configs, built_in_configs, load_config
from jaxgpt.config.nanogpt import ALIASES, UNSUPPORTED
from jaxgpt.config.options import Parser, add_options, format_value, given_values, option_name
from jaxgpt.config.schema import Config, sections
from jaxgpt.errors import ConfigError, nearest

FORM = "options are written --section.field value"


def parse_config(parser: Parser, argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Adds the config's options to `parser`, reads `argv`, and returns the config and all options.

    The options have the config's name as `config`. Raises `ConfigError` C001 to C023 for what cannot be run.
    """
    options = parse_options(parser, argv)
    return read_config(options), options


def parse_options(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Adds the config's options to `parser` and reads `argv`; no config has to be given yet."""
    own_options = parser.option_names()
    parser.add_argument("config_file", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="a config file, or the name of a built-in config")
    for section in sections().values():
        add_options(parser, section)
    options = parser.parse(use_field_options(argv, own_options), lambda word: _unknown_field(word, own_options))
    options.config = _config_name(options)
    return options


def read_config(options: argparse.Namespace) -> Config:
    """The config of `parse_options`. Raises `ConfigError` C006 if none is given, C001 to C023 if it is wrong."""
    if options.config is None:
        raise ConfigError("C006", "no config is given", f"add --config NAME; there are: {available_configs()}")
    changes = {name: given_values(section, options) for name, section in sections().items()}
    return load_config(options.config).replace(changes)


def changed_options(config: Config, base: Config) -> list[str]:
    """The options that make `config` of `base`, exactly: the inverse of reading them."""
    words: list[str] = []
    for name, section in sections().items():
        for field in field_types(section):
            value = getattr(getattr(config, name), field)
            if value != getattr(getattr(base, name), field):
                option, values = option_name(section.label(field)), format_value(value)
                words += [f"{option}={values[0]}"] if values[0].startswith("-") else [option, *values]
    return words


def field_names() -> dict[str, str]:
    """Every name of a field: its own (`run.steps`), nanoGPT's, and its bare name where only one section has it."""
    fields = [section.label(name) for section in sections().values() for name in field_types(section)]
    count = Counter(label.split(".")[1] for label in fields)
    bare = {label.split(".")[1]: label for label in fields if count[label.split(".")[1]] == 1}
    return bare | ALIASES | {label: label for label in fields}


def use_field_options(argv: Sequence[str], own_options: Sequence[str]) -> list[str]:
    """`argv` with every name of a field replaced by its option; `own_options` are the command's and stay."""
    names = field_names()
    words = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        label = names.get(name[2:].replace("-", "_")) if name.startswith("--") and name not in own_options else None
        words.append(option_name(label) + equals + value if label else argument)
    return words


def _config_name(options: argparse.Namespace) -> str | None:
    """The config that is given: by --config, alone, or last of a list that took it for one of its values."""
    if options.config_file and options.config_file.startswith("-"):
        raise ConfigError("C006", f"{options.config_file!r} is not an option or a config", FORM)
    if options.config and options.config_file:
        raise ConfigError("C006", f"two configs are given: {options.config} and {options.config_file}")
    name: str | None = options.config or options.config_file
    for values in vars(options).values():
        if name is None and isinstance(values, list) and len(values) > 1 and _is_config(values[-1]):
            name = values.pop()
    return name


def _is_config(name: str) -> bool:
    return name in built_in_configs() or (name.endswith(".py") and Path(name).is_file())


def _unknown_field(argument: str, own_options: Sequence[str]) -> ConfigError:
    word = argument.split("=")[0].lstrip("-").replace("-", "_")
    if not argument.startswith("-"):
        return ConfigError("C006", f"{argument!r} is not an option or a config", FORM)
    if word in UNSUPPORTED:
        return ConfigError("C005", f"there is no option '--{word}'", UNSUPPORTED[word])
    own = {option.lstrip("-").replace("-", "_"): option for option in own_options}
    close = nearest(word, [*field_names().values(), *ALIASES, *own], similarity=0.5)
    option = close and (own.get(close) or ALIASES.get(close, close))
    hint = f"did you mean {option!r}?" if option else "--help lists the fields"
    return ConfigError("C005", f"unknown field {word!r}", hint)
