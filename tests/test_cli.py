"""The commands, and what importing them loads."""

import subprocess
import sys

import pytest

from jaxgpt import cli, errors


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_the_commands_are_listed_and_each_explains_itself() -> None:
    listing = run("-m", "jaxgpt", "--help").stdout
    for verb in cli.VERBS:
        assert f"jaxgpt {verb}" in listing
        shown = run("-m", f"jaxgpt.{verb}", "--help")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(f"usage: python -m jaxgpt.{verb}")


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(cli.dispatch, ["trian"]) == 2
    assert "did you mean 'jaxgpt train'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module",
    [
        *(
            "jaxgpt",
            "jaxgpt.prepare",
            "jaxgpt.audit",
            "jaxgpt.config.command_line",
            "jaxgpt.config.model_size",
            "jaxgpt.data.dataset",
        ),
        *("jaxgpt.logs", "jaxgpt.diagnose.setting"),
    ],
)
def test_what_plans_and_prepares_loads_no_jax(module: str) -> None:
    loaded = "[name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'flax')]"
    code = f"import sys, {module}; print({loaded})"
    assert run("-c", code).stdout.strip() == "[]"
