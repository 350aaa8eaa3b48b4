"""Config files: Python programs that define `config = Config(...)`, found by path or by a built-in config's name.

The built-in ones are in jaxgpt/config/presets and are read through `importlib.resources`, so they also work in a zip.
"""

import ast
import re
import traceback
from contextlib import suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jaxgpt.config.fields import field_types
from jaxgpt.config.schema import Config, sections
from jaxgpt.errors import ConfigError, did_you_mean

OWNERS = "|".join(["Config", *(section.__name__ for section in sections().values())])
UNKNOWN_FIELD = re.compile(rf"\b({OWNERS})\.__init__\(\) got an unexpected keyword argument '(\w+)'")  # Python's words


def load_config(name: str | Path) -> Config:
    """The config of the file `name`, or of the built-in config of that name. Runs the file.

    Raises `ConfigError` C001 to C004 if it is missing or wrong, and the config's own errors with the file's line.
    """
    path = find_config(str(name))
    source = read_source(path)
    namespace: dict[str, Any] = {"__name__": "jaxgpt_config", "__file__": str(path)}
    try:
        exec(compile(source, str(path), "exec"), namespace)
    except SyntaxError as error:
        raise ConfigError("C002", f"{path}:{error.lineno or 1}: {error.msg}", "fix this line") from error
    except ConfigError as error:
        raise error.replace(message=f"{error.message} ({path}:{_line(error, str(path))})") from error
    except (Exception, SystemExit) as error:  # a file that ends the program is no config
        if field := UNKNOWN_FIELD.search(str(error)):
            raise _unknown_field(field, f"{path}:{_line(error, str(path))}") from error
        message = f"{path}:{_line(error, str(path))}: {type(error).__name__}: {error}"
        raise ConfigError("C004", message, "fix the file") from error
    config = namespace.get("config")
    if not isinstance(config, Config):
        raise ConfigError(
            "C003", f"{path} defines no 'config = Config(...)'", "see jaxgpt/config/presets/quickstart.py"
        )
    return config


def read_source(path: Traversable) -> str:
    """The text of a config file. Raises `ConfigError` C002 if it is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{path} is not a text file ({error.reason} at byte {error.start})"
        raise ConfigError("C002", message, "name a config file, or save it as UTF-8") from error


def write_config(config: Config, file: Path) -> Path:
    """Writes `config` as a config file, which `load_config` and `--config` read; returns `file`."""
    file.write_text(config_source(config, "Written by jaxgpt."), encoding="utf-8")
    return file


def config_source(config: Config, docstring: str) -> str:
    """The text of a config file: the docstring, and every field of `config` that differs from its default."""
    names = [section.__name__ for section in sections().values()]
    lines = [f'"""{docstring}"""', "", f"from jaxgpt.config import Config, {', '.join(names)}", "", "config = Config("]
    for name, section in sections().items():
        values = vars(getattr(config, name)).items()
        changed = [f"{field}={value!r}" for field, value in values if value != getattr(section(), field)]
        lines.append(f"    {name}={section.__name__}({', '.join(changed)}),")
    return "\n".join([*lines, ")"]) + "\n"


def find_config(name: str) -> Traversable:
    """The config file at that path, or the built-in one of that name; else `ConfigError` C001."""
    candidates: list[Traversable] = [Path(name)]
    if Path(name).parent in (Path(), Path("configs")):  # the built-in ones are in configs/ of the repository
        candidates += [_presets() / Path(name).name, _presets() / f"{name}.py"]
    with suppress(OSError):  # a name may be too long for a file
        for path in candidates:
            if path.is_file():
                return path
    guess = did_you_mean(Path(name).stem, built_in_configs())
    raise ConfigError("C001", f"config {name!r} not found", f"{guess}there are: {available_configs()}")


def built_in_configs() -> list[str]:
    """The names of the configs that come with jaxgpt."""
    return sorted(entry.name.removesuffix(".py") for entry in _presets().iterdir() if entry.name.endswith(".py"))


def summarize_config(name: str) -> str:
    """The first line of a built-in config's docstring."""
    docstring = ast.get_docstring(ast.parse(find_config(name).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def available_configs() -> str:
    """The configs in ./configs, else the built-in ones, as a list for messages."""
    local = [path.as_posix() for path in sorted(Path("configs").glob("*.py"))]
    return ", ".join(local or built_in_configs())


def _unknown_field(found: "re.Match[str]", place: str) -> ConfigError:
    """C005 for a keyword that a section, or `Config` itself, does not have."""
    owner, name = found.groups()
    own = {section.__name__: field_types(section) for section in sections().values()}
    names = list(own.get(owner, sections()))
    help = did_you_mean(name, names) or f"{owner} has: {', '.join(names)}"
    return ConfigError("C005", f"{owner} has no field {name!r} ({place})", help.strip())


def _presets() -> Traversable:
    return files("jaxgpt.config") / "presets"


def _line(error: BaseException, path: str) -> int:
    """The line of `path` that was running when `error` was raised; 0 if none was."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return (lines and lines[-1]) or 0
