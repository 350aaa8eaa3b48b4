"""`python -m jaxgpt.init [NAME]`: writes a config file to edit, from a built-in config or from three answers."""

import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgpt import errors
from jaxgpt.config import Run
from jaxgpt.config.command import print_configs
from jaxgpt.config.files import built_in_configs, config_source, find_config, load_config, read_source
from jaxgpt.config.options import Parser
from jaxgpt.errors import ConfigError, DataError, JaxgptError, printable
from jaxgpt.utils.files import check_writable, write_text

DESCRIPTION = """Writes a config file to edit: a copy of a built-in config. It never overwrites a file.

Without NAME it asks three questions, if it runs in a terminal: your text, the built-in config to start from, and the
name of the run.
"""
DEFAULT = "shakespeare_char"


def main(argv: Sequence[str]) -> None:
    """Writes the config and prints what to do next. Raises `ConfigError` C041 if the file exists."""
    parser = Parser("init", DESCRIPTION, "[NAME] [--out FILE]")
    parser.add_argument("config", nargs="?", metavar="NAME", help="a built-in config (python -m jaxgpt.config)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: NAME.py)")
    options = parser.parse(argv)
    if options.config is None and not sys.stdin.isatty():
        names = ", ".join(built_in_configs())
        raise ConfigError("C006", "no config is given", f"python -m jaxgpt.init NAME; there are: {names}")
    if options.config:
        name = Path(options.config).stem
        text = read_source(find_config(options.config))
    else:
        name, text = _ask()
    out = options.out or Path(f"{name}.py")
    if check_writable("--out", out).exists():
        raise ConfigError("C041", f"'{out}' exists already", "--out FILE names another file")
    write_text(out, text)
    shown = printable(str(out))
    print(f"{shown} is yours to edit; python -m jaxgpt.train --help explains every field")
    print(f"next: python -m jaxgpt.train --config {shown}")
    print(f"      python -m jaxgpt.budget --config {shown}   (first, for a long run: its time, memory and loss)")


def _ask() -> tuple[str, str]:
    """The name of the run and the content of its config file, from three answers."""
    source = _answer("Your text (a file, a folder or a pattern such as books/*.txt)", "", _check_text)
    print_configs()
    base = _answer("The config to start from", DEFAULT, find_config)
    name = _answer("The name of the run", Path(source).stem.strip("*") or "mine", lambda name: Run(name=name))
    data: dict[str, Any] = {"path": f"data/{name}", "sources": (source,)}
    if Path(source).is_file():
        data["val_tokens"] = None  # a tenth of the text
    changed = load_config(base).replace({"data": data, "run": {"name": name}})
    return name, config_source(changed, f"The run {name}, with the settings of {Path(base).stem}.")


def _answer(question: str, default: str, check: Callable[[str], object]) -> str:
    """The answer to a question, asked again as long as `check` raises a `JaxgptError` for it."""
    while True:
        try:
            answer = input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
            check(answer)
        except EOFError:
            raise KeyboardInterrupt from None
        except JaxgptError as error:
            print(error)
        else:
            return answer


def _check_text(text: str) -> None:
    if not ((Path(text).exists() and text) or glob.glob(text) or "://" in text):
        raise DataError("D023", f"no file matches {text!r}", "give the path of a file or folder")


if __name__ == "__main__":
    sys.exit(errors.run(main))
