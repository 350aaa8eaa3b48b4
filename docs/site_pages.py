"""The hook of mkdocs.yml: pages made from the README and the code, and links that work here and on GitHub alike."""

import contextlib
import importlib
import io
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jaxgpt.cli import VERBS
from jaxgpt.config import sections
from jaxgpt.config.fields import field_default, field_types
from jaxgpt.config.nanogpt import ALIASES
from jaxgpt.config.options import Parser, add_options, format_value, option_name

ROOT = Path(__file__).parents[1]
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SECTION_OF_README = re.compile(r"^<!-- README: (.+) -->\n[^\n]*\n", re.MULTILINE)  # and the line that GitHub shows
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that are not in docs/."""
    pages = {page: _read(source) for source, page in MOVED.items()}
    pages["reference/commands.md"] = commands_page()
    pages["reference/config.md"] = config_page()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with the parts of the README that it asks for and with links of the site."""
    path = page.file.src_uri
    text = SECTION_OF_README.sub(lambda match: _readme_section(match[1]), markdown)
    text = re.sub(r"\[([^\]]+)\]\(([^)\s:]+)\)", lambda match: site_link(match[1], match[2], path), text)
    return re.sub(r"^\|.*$", lambda line: _plain_pipes(line[0]), text, flags=re.MULTILINE)


def site_link(label: str, target: str, page: str) -> str:
    """A link of the repository as a link of the site; only its label where the site does not have the file."""
    file, hash, anchor = target.partition("#")
    if not file or page.startswith("reference/"):
        return f"[{label}]({target})"
    folder = "" if page in MOVED.values() or file.startswith("docs/") else "docs"
    path = posixpath.normpath(posixpath.join(folder, file))
    if path in MOVED:
        return f"[{label}]({MOVED[path]}{hash}{anchor})"
    return f"[{label}]({path.removeprefix('docs/')}{hash}{anchor})" if path.startswith("docs/") else label


def commands_page() -> str:
    """The `--help` of every command."""
    parts = ["# Commands\n\n`jaxgpt VERB` is the same as `python -m jaxgpt.VERB`. Each section is its `--help`.\n"]
    parts += [f"## {verb}\n\n```text\n{_help_of(verb)}```\n" for verb in VERBS]
    return "\n".join(parts)


def config_page() -> str:
    """Every field of the config with its option, values, default and meaning."""
    parts = [
        "# Config fields\n\nA config file is a Python program that defines `config = Config(...)`; each section below "
        "is an argument of it. Every field is also an option of `train`, `sweep` and `budget`, such as "
        "`--optim.learning-rate 3e-4`. nanoGPT's names are in brackets.\n"
    ]
    parts += [_section_table(name, section) for name, section in sections().items()]
    return "\n".join(parts)


def _section_table(name: str, section: Any) -> str:
    parser = Parser("train", "Trains.")
    add_options(parser, section)
    kinds = {action.option_strings[0]: str(action.metavar) for action in parser._actions}
    nanogpt = {label: f" (`{alias}`)" for alias, label in ALIASES.items()}
    rows = [f"## {name}\n", f"{section.summary}\n", "| option | values | default | meaning |", "|---|---|---|---|"]
    for field_name, (field, _) in field_types(section).items():
        label = section.label(field_name)
        option = option_name(label)
        default = " ".join(format_value(field_default(field))) or "empty"
        cells = [f"`{option}`{{ .option }}{nanogpt.get(label, '')}", _values(kinds[option], field), f"`{default}`"]
        cells.append(field.metadata["help"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*rows, ""])


def _values(kind: str, field: Any) -> str:
    """The values that a field takes: its type, or its choices, and its range."""
    limits = [f"{sign} {field.metadata[name]:g}" for name, sign in LIMITS.items() if field.metadata[name] is not None]
    return ", ".join([f"`{kind}`", *limits])


def _help_of(verb: str) -> str:
    os.environ["COLUMNS"] = "82"  # as wide as a block on a page
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(f"jaxgpt.{verb}").main(["--help"])
    return out.getvalue()


def _readme_section(title: str) -> str:
    """The text below a heading of the README, with links as docs/ has them."""
    _, _, rest = _read("README.md").partition(f"## {title}\n")
    assert rest, f"README.md has no section {title!r}"
    return rest.partition("\n## ")[0].strip().replace("](docs/", "](") + "\n"


def _plain_pipes(row: str) -> str:
    """A row of a table whose code has plain pipes: GitHub needs a backslash before them, MkDocs prints it."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row)


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
