"""The code blocks and commands of the documentation, and whether the commands' own parsers take them."""

import ast
import contextlib
import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from jaxgpt import checkpoint, cli, sample, train
from jaxgpt.budget import options as budget_options
from jaxgpt.config.command_line import parse_config, read_config
from jaxgpt.config.files import built_in_configs, find_config
from jaxgpt.config.options import Parser, read_options
from jaxgpt.diagnose import command as diagnose_command
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.sweep import command as sweep_command
from jaxgpt.sweep.grid import parse_vary

ANY_CONFIG = "fineweb40m"  # for the placeholder NAME and for config files that a reader has
PLACEHOLDERS = {"N": "1", "I": "0", "…": "1"}
NOTE = re.compile(r"<!-- (not run|tested with): (.+) -->")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block, with the note before it: `<!-- not run: REASON -->` or `<!-- tested with: OPTIONS -->`."""

    language: str
    text: str
    line: int
    not_run: str
    options: str


class Command(NamedTuple):
    """A command of jaxgpt as a page shows it."""

    verb: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(["jaxgpt", self.verb, *self.arguments])


def fenced_blocks(text: str) -> list[Block]:
    """The fenced code blocks of a Markdown page."""
    blocks = []
    for match in FENCE.finditer(text):
        line_before = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        note = NOTE.fullmatch(line_before)
        notes = {note[1]: note[2]} if note else {}
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(match[1], match[2], line, notes.get("not run", ""), notes.get("tested with", "")))
    return blocks


def commands_of_page(text: str) -> list[Command]:
    """The commands in the fenced and indented blocks and in the inline code of a Markdown page."""
    blocks = [block.text for block in fenced_blocks(text) if block.language in ("sh", "")]
    outside = FENCE.sub("", text)
    indented = "\n".join(line[4:] for line in outside.splitlines() if line.startswith("    "))
    inline = [code.replace("\\|", "|") for code in re.findall(r"(?<!`)`([^`\n]+)`", outside)]
    inline = [code for code in inline if re.match(r"(python -m )?jaxgpt[. ]\w+ .", code)]  # more than its name
    return [command for part in (*blocks, indented, *inline) for command in commands_of_shell(part)]


def commands_of_python(source: str) -> list[Command]:
    """The commands in the lines of a module's strings that begin with one, such as the examples of `--help`."""
    nodes = list(ast.walk(ast.parse(source)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}  # of f-strings
    constants = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in parts]
    texts = [text for text in constants if isinstance(text, str)]
    texts = [text for text in texts if re.search(r"^ +python -m jaxgpt\.\w+ ", text, re.MULTILINE)]
    return [command for text in texts for command in commands_of_shell(text)]


def commands_of_notebook(text: str) -> list[Command]:
    """The commands that the cells of a notebook start with `!`."""
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line[1:] for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith("!")]
    return commands_of_shell("\n".join(lines))


def commands_of_shell(text: str) -> list[Command]:
    """The commands of jaxgpt in lines of a shell, without their pipes, redirections and comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [command for line in joined.splitlines() if "jaxgpt" in line for command in _commands_of_line(line)]


def _commands_of_line(line: str) -> Iterator[Command]:
    line = re.sub(r"\$\([^)]*\)|\$\{?\w+\}?", "1", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe of a sentence
        return
    parts: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("();<>|&"):
            parts.append([])
        else:
            parts[-1].append(PLACEHOLDERS.get(word.strip("[]"), word.strip("[]")))
    yield from filter(None, map(_command, parts))


def _command(words: Sequence[str]) -> Command | None:
    """The command of jaxgpt among the words, after others such as `srun`."""
    for index, word in enumerate(words):
        module = words[index + 2] if words[index + 1 : index + 2] == ["-m"] and index + 2 < len(words) else ""
        if word == "python" and (module == "jaxgpt" or module.startswith("jaxgpt.")):
            rest = [*module.split(".")[1:2], *words[index + 3 :]]
        elif word == "jaxgpt" and index == 0:
            rest = list(words[1:])
        else:
            continue
        return Command(rest[0], tuple(rest[1:])) if rest and rest[0] != "VERB" else None
    return None


def bench_options(text: str) -> list[tuple[str, str]]:
    """Each script of bench/ in the commands of a page, and the options that follow it there."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    found = re.findall(r"python (bench/\w+\.py)([^`#\n]*)", joined)
    return [(script, option) for script, rest in found for option in ["", *re.findall(r"--[a-z-]+", rest)]]


def check_command(command: Command, folder: Path) -> str:
    """What the command's own parser and the config say against a command; empty if nothing.

    `folder` is the current one; config files that the command names and a reader has written are made there.
    """
    arguments = [ANY_CONFIG if _is_config_name(word, before) else word for before, word in _pairs(command.arguments)]
    for word in arguments:
        if word.endswith(".py") and "=" not in word and word.removesuffix(".py").isidentifier():
            (folder / word).write_text(find_config(ANY_CONFIG).read_text(encoding="utf-8"), encoding="utf-8")
    if command.verb not in cli.VERBS:
        return f"there is no command {command.verb!r}"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            CHECKS.get(command.verb, _parse_only)(arguments, command.verb)
    except SystemExit:  # after --help
        return ""
    except JaxgptError as error:
        return f"{command}: {error}"
    return ""


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(["", *words], words)


def _is_config_name(word: str, before: str) -> bool:
    return word in ("NAME", "FILE") and before in ("--config", "")


def _parse_only(arguments: Sequence[str], verb: str) -> Any:
    """The options that the parser of `verb` reads; the command ends there."""
    parse = Parser.parse

    class Parsed(Exception):
        pass

    def parse_and_end(parser: Parser, *rest: Any) -> None:
        raise Parsed(parse(parser, *rest))

    main = importlib.import_module(f"jaxgpt.{verb}").main
    try:
        with patch.object(Parser, "parse", parse_and_end):
            main(arguments)
    except Parsed as parsed:
        return parsed.args[0]
    raise AssertionError(f"{verb} has no parser")


def _check_train(arguments: Sequence[str], verb: str) -> None:
    parse_config(train.make_parser(), arguments)


def _check_sweep(arguments: Sequence[str], verb: str) -> None:
    _, options = parse_config(sweep_command.make_parser(), arguments)
    varied = [parse_vary(text) for text in options.vary]
    if not varied:
        raise ConfigError("C070", "nothing to vary")


def _check_budget(arguments: Sequence[str], verb: str) -> None:
    options = budget_options.parse(arguments)
    for group in budget_options.GROUPS:
        read_options(group, options)
    if options.config:
        read_config(options)


def _check_diagnose(arguments: Sequence[str], verb: str) -> None:
    options = diagnose_command.read(arguments).options
    if options.config:
        find_config(options.config)


def _check_sample(arguments: Sequence[str], verb: str) -> None:
    sample._parse(arguments)  # and its ranges


def _check_checkpoint(arguments: Sequence[str], verb: str) -> None:
    checkpoint._parse(arguments)


def _check_config(arguments: Sequence[str], verb: str) -> None:
    name = _parse_only(arguments, verb).config
    if name and name not in built_in_configs():
        find_config(name)


CHECKS = {
    "train": _check_train,
    "sweep": _check_sweep,
    "budget": _check_budget,
    "diagnose": _check_diagnose,
    "sample": _check_sample,
    "checkpoint": _check_checkpoint,
    "config": _check_config,
    "init": _check_config,
}
