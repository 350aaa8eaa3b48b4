"""Writes docs/errors.md from jaxgpt/error_codes.toml: python docs/errors.py"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "errors.md"
INTRODUCTION = """# Errors

Each error is `error[CODE]: what is wrong (the value, and where)`, then `help: what to do next`, on stderr. `--debug`
shows the traceback instead. Before the checks of config, data and run folder have passed, nothing is compiled or
overwritten. `train` may prepare the data first, and creates the run folder with its lock. This page is made from
`jaxgpt/error_codes.toml` by `docs/errors.py`.

| exit status | | codes |
|---|---|---|
| 0 | done | |
| 1 | a bug, or an error of JAX | |
"""
SIGNALS = """| 75 | stopped by SIGTERM, SIGHUP or SIGUSR1, saved: safe to requeue | |
| 130 | stopped by Ctrl-C, saved | |
| 134 | process 0 of several died, and JAX aborted this one ([clusters.md](clusters.md)) | |
| 128 + N | ended at once by a second signal, number N; the last checkpoint is valid | |

What `train` does at a signal, a hang or a full disk is in [reliability.md](reliability.md).
"""


def page() -> str:
    """The page: the exit statuses, then a table of codes for each letter."""
    kinds = tomllib.loads((ROOT / "jaxgpt" / "error_codes.toml").read_text(encoding="utf-8"))
    text = INTRODUCTION
    for letter, kind in kinds.items():
        text += f"| {kind['exit_status']} | {kind['summary']} | {letter}… |\n"
    text += SIGNALS
    for kind in kinds.values():
        text += f"\n## {kind['title']}\n\n| code | meaning |\n|---|---|\n"
        for code, meaning in kind["codes"].items():
            text += f"| {code} | {meaning} |\n"
    return text


if __name__ == "__main__":
    OUT.write_text(page(), encoding="utf-8")
