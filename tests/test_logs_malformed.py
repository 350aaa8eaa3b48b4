"""Logs with a history of their own: prefixes, encodings, seams, torn lines, sizes; and files that are not logs."""

import os
from pathlib import Path

import fuzz_logs
import pytest
from helpers import logformats, logsamples
from helpers.logsamples import loss

from jaxgpt import errors, logs
from jaxgpt.errors import DataError
from jaxgpt.logs import collector, lines

PLAIN = logsamples.NANOGPT_HEAD + logsamples.nanogpt()
ALL = logsamples.ALL | logformats.SAMPLES
PREFIXES = ["2024-05-01 12:00:00,123 INFO ", "[rank0]: ", "wandb: ", "0: ", "[2024-05-01T12:00:00Z] gpu-1 | ", "\t"]


def assert_same_history(text: str, like: str = PLAIN) -> None:
    """Asserts that both texts are read as the same history."""
    history, expected = logs.read_text(text, "log"), logs.read_text(like, "log")
    assert (history.format, history.steps, history.evaluations) == (
        expected.format,
        expected.steps,
        expected.evaluations,
    )
    assert (history.metadata, history.starts) == (expected.metadata, expected.starts)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("table", "lightning")])
def test_any_prefix(name: str, prefix: str) -> None:
    text = ALL[name]
    if name == "modded":  # its log is a file, whose source is not prefixed
        text = text[text.index("step:0") :]
    assert_same_history("".join(prefix + line + "\n" for line in text.splitlines()), text)


@pytest.mark.parametrize("name", ALL)
def test_windows_line_ends(name: str) -> None:
    text = ALL[name]
    assert_same_history(text.replace("\n", "\r\n"), text)
    assert_same_history(text.removesuffix("\n"), text)
    assert_same_history("\ufeff" + text, text)


def test_colors_and_progress_bars() -> None:
    colored = PLAIN.replace("iter ", "\x1b[1;32miter \x1b[0m").replace("loss ", "loss \x1b[31m")
    assert_same_history(colored.replace(", time", "\x1b[0m, time"))
    bars = "\n".join(f"  3%|▎ | 1/30\r 97%|█▉| 29/30\r\x1b[K{line}" for line in PLAIN.splitlines())
    assert_same_history(bars)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    data = PLAIN.encode(encoding)
    (tmp_path / "log").write_bytes(b"\xfe\xff" + data if encoding == "utf-16-be" else data)
    history = logs.read(tmp_path / "log")
    assert history.steps == logs.read_text(PLAIN, "log").steps
    assert list(history.lines) == PLAIN.splitlines()


def test_garbage_and_a_torn_last_line(tmp_path: Path) -> None:
    body = [line.encode() for line in PLAIN.splitlines()]
    body[40:40] = [bytes(range(256)).replace(b"\n", b""), b"\xff" * 100_000, b"Traceback (most recent call last):"]
    (tmp_path / "log").write_bytes(b"\n".join(body) + b"\niter 1010: loss 3.2, ti")
    history, expected = logs.read(tmp_path / "log"), logs.read_text(PLAIN, "log")
    assert [step._replace(line=0) for step in history.steps[:-1]] == [step._replace(line=0) for step in expected.steps]
    assert history.steps[-1][:3] == (1010, 3.2, None)
    assert history.lines[history.steps[30].line - 1].startswith(f"iter {history.steps[30].step}:")


def test_last_of_several_runs_is_read() -> None:
    first = "Overriding: dropout = 0.2\ntokens per iteration will be: 1,024\n" + logsamples.nanogpt(0, 300, 100)
    last = "Overriding: max_iters = 50\ntokens per iteration will be: 2,048\n" + logsamples.nanogpt(0, 40, 20)
    history = logs.read_text(first + last, "log")
    assert (history.steps_done, history.starts, history.replays) == (41, (0,), ())
    assert (history.metadata.tokens_per_step, history.metadata.total_steps) == (2048, 50)
    assert "dropout" not in history.metadata.hyperparameters
    assert history.notes == ("the file contains 2 runs; the last one is used",)


def test_restart_without_a_header() -> None:
    text = logsamples.nanogpt(0, 740, 10_000) + logsamples.nanogpt(600, 900, 10_000)
    history = logs.read_text(text, "log")
    assert [(replay.first, replay.last) for replay in history.replays] == [(600, 740)]
    assert history.starts == (0, 600)
    assert [step.step for step in history.steps] == list(range(0, 901, 10))


def test_single_line_out_of_order_is_sorted_in() -> None:
    text = (
        logsamples.nanogpt(0, 200, 10_000) + "iter 55: loss 4.0, time 5.00ms\n" + logsamples.nanogpt(210, 300, 10_000)
    )
    history = logs.read_text(text, "log")
    assert [step.step for step in history.steps] == sorted([*range(0, 301, 10), 55])
    assert (history.replays, history.starts) == ((), (0,))
    assert "out of order" in history.notes[0]


def test_lines_of_all_processes_count_once() -> None:
    ordered = "".join(f"[rank0]: {line}\n[rank1]: {line}\n" for line in PLAIN.splitlines())
    assert len(logs.read_text(ordered, "log").steps) == 101
    assert logs.read_text(ordered, "log").replays == ()


@pytest.mark.parametrize(
    "line",
    [
        "iter 1000000000000000000000000000000: loss 3.1, time 5.00ms",
        "iter 5: loss 1e400, time 1e400ms",
        "iter 5: loss 3.1, time -5.00ms",
        "iter 5: loss ٣, time 5.00ms",
        "step 99999999999: train loss 1, val loss 2",
        '{"kind": "step", "step": 1e400, "loss": 1}',
        '{"kind": "step", "step": ' + "9" * 5000 + "}",
        '{"kind": "step", "step": true, "seconds": {}}',
        '{"kind": "start", "config": {"optim": 5}}',
        '{"kind": "start", "config": {"data": {"micro_batch": 1e300}}}',
        '{"kind": "eval", "step": 2, "val_loss": [1]}',
        "[" * 100_000,
        "s:3 trl:nan lr:1e999 norm:-inf",
        "step:3/0 val_loss:nan train_time:nanms",
    ],
)
def test_absurd_numbers_are_ignored(line: str) -> None:
    for text in (PLAIN, logsamples.ALL["jaxgpt"], logsamples.llmc(), logsamples.modded()):
        before = logs.read_text(text, "log")
        history = logs.read_text(text + line + "\n", "log")
        assert history.format == before.format
        assert history.steps_done == before.steps_done
        assert all(step.seconds is None or 0 < step.seconds < 86_400 for step in history.steps)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_tables(separator: str) -> None:
    history = logs.read_text(logsamples.table(separator), "log")
    assert (history.format, history.metadata.tokens_per_step) == ("table", 524_288)
    assert [e.step for e in history.evaluations] == list(range(0, 2001, 100))
    assert history.evaluations[1].train == pytest.approx(loss(100), abs=1e-4)
    assert (history.evaluations[2].train, history.steps[2].loss) == (None, None)
    assert history.steps[2].learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iter,loss,val\n10,3.5,3.6\n20,3.4,3.5\n", [(10, 3.6, 3.5), (20, 3.5, 3.4)]),
        ("val_loss,step\n3.6,10\n,20\n3.4,30\n", [(10, 3.6, None), (30, 3.4, None)]),
        (
            '"Step","run-1 - val/loss","run-1 - val/loss__MIN"\n10,3.6,3.6\n20,3.5,3.5\n',
            [(10, 3.6, None), (20, 3.5, None)],
        ),
        ("# comment\n\nIteration;Validation Loss\n10;3,6\n1000;3,5\n", [(10, 3.6, None), (1000, 3.5, None)]),
        ("tokens,val_loss\n524288000,3.6\n1048576000,3.5\n", [(1000, 3.6, None), (2000, 3.5, None)]),
        ("step,val_loss\n30,3.4\n20,3.5\n10,3.6\n", [(10, 3.6, None), (20, 3.5, None), (30, 3.4, None)]),
        ("step,val_loss\n10,3.6\nx,y\n20,nan\n1e30,3\n-5,3\n", [(10, 3.6, None)]),
        (logsamples.MARKDOWN, [(12_000, 3.5935, 3.61), (13_500, 3.57, None), (14_500, 3.5696, 3.6415)]),
    ],
)
def test_tables_from_other_tools(text: str, expected: list[tuple[int, float, float | None]]) -> None:
    history = logs.read_text(text, "log")
    assert [(e.step, e.val, e.train) for e in history.evaluations if e.val == e.val] == expected
    assert history.format == "table"


def test_tokens_become_steps_of_the_given_batch(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("tokens,val_loss\n1000000,3.6\n2000000,3.5\n")
    assert [e.step for e in logs.read(tmp_path / "log", batch_tokens=1000.0).evaluations] == [1000, 2000]
    history = logs.read(tmp_path / "log")
    assert history.metadata.counted_from_tokens
    assert "--batch-tokens" in history.notes[0]


@pytest.mark.parametrize("text", ["", "\n\n", "hello\nworld\n", "\x00\x01\x02", "a,b\n1,2\n", "{}", "step,val_loss\n"])
def test_unknown_text_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text(text)
    assert errors.run(lambda argv: void(logs.read(argv[0])), [str(tmp_path / "log")]) == 3
    message = capsys.readouterr().err
    assert message.startswith(f"error[D041]: the log '{tmp_path}/log' ")
    assert ("is empty" in message) is (text == "")
    for name in ("log.jsonl", "nanoGPT", "llm.c", "modded-nanogpt", "nanochat", "build-nanogpt", "step,tokens,lr"):
        assert name in message


def void(_: object) -> None:
    pass


def test_paths_that_are_not_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.log").write_text(PLAIN)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text(PLAIN)
    os.mkfifo(tmp_path / "pipe")
    expected = {"trian.log": ("D043", "train.log"), "nothing": ("D043", ""), "other": ("D044", "other/a.txt")}
    for path, (code, hint) in (expected | {"pipe": ("D045", ""), "": ("D044", "train.log")}).items():
        with pytest.raises(DataError) as caught:
            logs.read(path)
        assert caught.value.code == code
        assert hint in caught.value.help
    with pytest.raises(DataError, match="no column 'step' or 'tokens'") as caught:
        logs.read_text("epoch,val_loss\n1,3.5\n", "log")
    assert caught.value.code == "D042"


def test_large_file_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as in memory, line by line, with chunks that end anywhere."""
    text = "\r\n".join([*PLAIN.splitlines(), "é" * 1000, "\xff", "iter 1010: loss 3.1, time 5.00ms"])
    path = tmp_path / "log"
    path.write_bytes(text.encode())
    in_memory = logs.read(path)
    monkeypatch.setattr(lines, "MAX_IN_MEMORY", 1000)
    monkeypatch.setattr(lines, "INDEX_EVERY", 7)
    for chunk in (1, 7, 64, 100_000):
        monkeypatch.setattr(lines, "CHUNK_BYTES", chunk)
        history = logs.read(path)
        assert isinstance(history.lines, lines.FileLines)
        assert list(history.lines) == list(in_memory.lines) == [history.lines[i] for i in range(len(history.lines))]
        assert (history.steps, history.evaluations) == (in_memory.steps, in_memory.evaluations)
    assert history.lines[-1] == in_memory.lines[-1]
    assert history.lines[3:5] == list(in_memory.lines[3:5])
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 50)
    path.write_bytes(b"x" * 1000 + b"\n" + text.encode())
    assert len(next(iter(logs.read(path).lines))) == 50


def test_too_many_records_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "MAX_RECORDS", 50)
    history = logs.read_text(PLAIN, "log")
    assert 25 <= len(history.steps) <= 50
    assert (history.steps[0].step, history.steps_done) == (0, 1001)
    assert "dropped" in history.notes[0]


def test_mutated_logs_raise_typed_errors_only() -> None:
    results = fuzz_logs.run(20_000, seed=3, report=print)
    assert set(logsamples.ALL) | set(logformats.SAMPLES) | {"D041"} <= set(results)
