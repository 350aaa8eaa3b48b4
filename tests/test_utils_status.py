"""The line that says what a command does: on a terminal only."""

import io

import pytest

from jaxgpt.utils.status import show_status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_is_printed_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), "loading JAX …\n"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        show_status("loading JAX …")
        assert stream.getvalue() == expected
