"""Preparations resume after any interruption, and their bytes equal those of an uninterrupted one."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import KILLS
from helpers.corpora import files_in, parquet, stories

from jaxgpt import errors
from jaxgpt.errors import JaxgptError
from jaxgpt.prepare import ingest, sources
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.prepare.sources import base

COMMAND = """
import resource, signal
from jaxgpt import errors
from jaxgpt.prepare import command
from jaxgpt.prepare.sources import base
from jaxgpt.prepare import ingest
base.BATCH_BYTES, ingest.JOURNAL_SECONDS = 20_000, {seconds}
signal.signal(signal.SIGINT, signal.default_int_handler)
{first}
raise SystemExit(errors.run(command.main))
"""


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """As in the command: what is held out is decided on the first batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BATCH_BYTES", 20_000)
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("parts")
    return [str(parquet(folder / f"{n}.parquet", text=stories(4000, n))) for n in (1, 2)]


def options(parts: list[str], out: Path) -> dict[str, Any]:
    return {"sources": parts, "out": out, "weights": [0.6, 0.4], "val_tokens": 20_000, "shard_tokens": 60_000}


def start(parts: list[str], out: Path, seconds: float = 0.01, first: str = "") -> "subprocess.Popen[str]":
    """The command in a process of its own, with small batches, that notes how far it is after each."""
    asked = ["--weights", "0.6,0.4", "--val-tokens", "20000", "--shard-tokens", "60000"]
    code = COMMAND.format(seconds=seconds, first=first)
    command = [sys.executable, "-c", code, *parts, "--out", str(out), *asked]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.preparing")


def wait_for(process: "subprocess.Popen[str]", path: Path) -> None:
    limit = time.monotonic() + 60
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted") / "data"
    prepare(**options(parts, out))
    return files_in(out)


def test_resume_after_many_kills(tmp_path: Path, parts: list[str], uninterrupted: dict[str, bytes]) -> None:
    chance, out, kills, continued = random.Random(3), tmp_path / "data", 0, 0
    while kills < KILLS:
        begun = (hidden(out) / ".journal.json").exists()
        process = start(parts, out)
        wait_for(process, hidden(out) / ".journal.json")
        time.sleep(chance.random() ** 2)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
        continued += begun
        if out.exists():
            assert files_in(out) == uninterrupted, output
            shutil.rmtree(out)
    prepare(**options(parts, out))
    assert files_in(out) == uninterrupted
    assert continued > KILLS / 5
    assert not hidden(out).exists()


class BrokenError(Exception):
    pass


def broken_after(batches: int, monkeypatch: pytest.MonkeyPatch, starts: list[int]) -> None:
    """Lets reading fail after so many batches; `starts` gets the records from which sources are read."""
    read, left = sources.read, [batches]

    def reading(one: sources.Source, start: int = 0) -> Iterator[sources.TextBatch]:
        starts.append(start)
        for texts in read(one, start):
            left[0] -= 1
            if left[0] < 0:
                raise BrokenError
            yield texts

    monkeypatch.setattr(sources, "read", reading)


def test_resume_at_every_batch(
    tmp_path: Path, parts: list[str], uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "JOURNAL_SECONDS", 0.01)
    starts: list[int] = []
    for _ in range(100):
        with monkeypatch.context() as patch:
            broken_after(25, patch, starts)
            try:
                prepare(**options(parts, tmp_path / "data"))
                break
            except BrokenError:
                continue
    assert files_in(tmp_path / "data") == uninterrupted
    assert len({start for start in starts if start}) >= 4


def test_resume_after_a_full_disk(tmp_path: Path, parts: list[str], uninterrupted: dict[str, bytes]) -> None:
    small = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    process = start(parts, tmp_path / "data", first=small)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "error[S003]: cannot write" in output
    assert "the same command resumes where this one stopped" in output
    prepare(**options(parts, tmp_path / "data"))
    assert files_in(tmp_path / "data") == uninterrupted


def test_resume_after_ctrl_c(tmp_path: Path, parts: list[str], uninterrupted: dict[str, bytes]) -> None:
    process = start(parts, tmp_path / "data")
    wait_for(process, hidden(tmp_path / "data") / ".journal.json")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == errors.INTERRUPTED
    assert output == "interrupted: the same command resumes where this one stopped\n"
    prepare(**options(parts, tmp_path / "data"))
    assert files_in(tmp_path / "data") == uninterrupted


def test_ctrl_c_before_the_first_journal_leaves_nothing(tmp_path: Path, parts: list[str]) -> None:
    process = start(parts, tmp_path / "data", seconds=1e9)
    wait_for(process, hidden(tmp_path / "data") / ".train_000000.bin.tmp")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert list(tmp_path.iterdir()) == []


def interrupted(tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preparation that stopped on its way, with a journal."""
    monkeypatch.setattr(ingest, "JOURNAL_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        broken_after(40, patch, [])
        with pytest.raises(BrokenError):
            prepare(**options(parts, tmp_path / "data"))
    assert (hidden(tmp_path / "data") / ".journal.json").exists()
    return tmp_path / "data"


def test_other_process_holds_the_lock(tmp_path: Path, parts: list[str]) -> None:
    process = start(parts, tmp_path / "data")
    wait_for(process, hidden(tmp_path / "data") / ".journal.json")
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(JaxgptError, match=r"S001.*is being prepared by another process"):
        prepare(**options(parts, tmp_path / "data"))
    process.kill()
    process.communicate()


def test_other_settings_do_not_resume(
    tmp_path: Path, parts: list[str], uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = interrupted(tmp_path, parts, monkeypatch)
    before = files_in(hidden(out))
    with pytest.raises(JaxgptError, match=r"S017.*had other sources, val_tokens\n  help: .*--restart"):
        prepare(**options(parts[::-1], out) | {"val_tokens": 5})
    assert files_in(hidden(out)) == before
    prepare(**options(parts, out), restart=True)
    assert files_in(out) == uninterrupted


def test_changed_source_does_not_resume(tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [shutil.copy(part, tmp_path) for part in parts]
    out = interrupted(tmp_path, parts, monkeypatch)
    parquet(Path(parts[0]), text=stories(4000, 7))
    with pytest.raises(JaxgptError, match=r"D026.*1\.parquet changed since the preparation was interrupted"):
        prepare(**options(parts, out))


def test_journal_of_another_version_is_refused(
    tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = interrupted(tmp_path, parts, monkeypatch)
    path = hidden(out) / ".journal.json"
    journal = json.loads(path.read_text())
    del journal["format"]
    path.write_text(json.dumps(journal))
    with pytest.raises(JaxgptError, match=r"S017.*was made by another version of jaxgpt\n  help: --restart"):
        prepare(**options(parts, out))


def test_unreadable_journal_starts_from_scratch(
    tmp_path: Path, parts: list[str], uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = interrupted(tmp_path, parts, monkeypatch)
    (hidden(out) / ".journal.json").write_bytes(b"\x00" * 50)
    prepare(**options(parts, out))
    assert files_in(out) == uninterrupted


def test_trained_tokenizer_survives_an_interruption(
    tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(out: str) -> dict[str, Any]:
        return options(parts, tmp_path / out) | {"train_tokenizer": 400}

    prepare(**asked("uninterrupted"))
    monkeypatch.setattr(ingest, "JOURNAL_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        broken_after(110, patch, [])
        with pytest.raises(BrokenError):
            prepare(**asked("data"))
    assert (hidden(tmp_path / "data") / "tokenizer.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("jaxgpt.prepare.pipeline.make_tokenizer", None)
        prepare(**asked("data"))
    assert files_in(tmp_path / "data") == files_in(tmp_path / "uninterrupted")
