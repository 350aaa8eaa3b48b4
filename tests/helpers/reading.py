"""What the tests of sources share: reading them whole, and in a process with little memory."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.errors import JaxgptError
from jaxgpt.prepare.sources import Skipped, Source, TextBatch, find_sources, read

LITTLE = 400_000_000  # bytes of address space beyond what the interpreter and its libraries take


def batches_of(path: str | Path, text_column: str | None = None, start: int = 0) -> list[TextBatch]:
    return [batch for source in find_sources([str(path)], text_column) for batch in read(source, start)]


def texts_in(batches: Iterable[TextBatch]) -> list[str]:
    return [str(text) for batch in batches for text in batch.texts]


def texts_of(path: str | Path, text_column: str | None = None, start: int = 0) -> list[str]:
    return texts_in(batches_of(path, text_column, start))


def skipped_in(batches: Iterable[TextBatch]) -> Skipped:
    total = Skipped()
    for batch in batches:
        total.add(batch.skipped)
    return total


def refused(code: str, path: str | Path, text_column: str | None = None) -> JaxgptError:
    """The error of finding and reading `path`; it names the file."""
    with pytest.raises(JaxgptError) as caught:
        batches_of(path, text_column)
    assert caught.value.code == code, caught.value
    assert str(path) in caught.value.message
    assert caught.value.help
    return caught.value


def check_every_start(source: Source, records: list[str | None]) -> None:
    """Reading from any record on gives the tail of `records`; and each batch says how many records it ends after."""
    for start in range(len(records) + 1):
        batches = list(read(source, start))
        assert texts_in(batches) == [text for text in records[start:] if text], start
        count = start
        for batch in batches:
            read_records = len(batch.texts) + batch.skipped.null + batch.skipped.empty + batch.skipped.unreadable
            assert batch.records == (count := count + read_records)
        assert count == len(records)


def refused_in_little_memory(code: str, path: Path) -> str:
    """The message of reading `path` in a process that gets `LITTLE` more memory than it has when it begins."""
    program = f"""
import resource, sys
from jaxgpt.prepare.sources import find_sources, read
from jaxgpt.errors import JaxgptError
size = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + {LITTLE}, size + {LITTLE}))
try:
    print(sum(len(batch.texts) for source in find_sources([sys.argv[1]]) for batch in read(source)), "texts")
except JaxgptError as error:
    print(error.code, error.message)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=200)
    actual, _, message = done.stdout.strip().partition(" ")
    assert actual == code, done.stdout + done.stderr
    assert str(path) in message
    return message


def caught(call: Callable[[], Any], kind: type[Exception]) -> Any:
    """What `call` returns, or the error of this `kind` that it raises."""
    try:
        return call()
    except kind as error:
        return error
