"""TensorBoard's event files: scalars in both forms, damage at any byte, and the programs that count differently."""

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from helpers.logsamples import loss

from jaxgpt import logs
from jaxgpt.errors import JaxgptError
from jaxgpt.logs.event_files import masked_checksum, read_scalars

tensorboardX = pytest.importorskip("tensorboardX")


def write(folder: Path, rows: list[tuple[int, float, dict[str, float]]]) -> Path:
    """Writes the scalars of each (step, wall time); returns the event file."""
    writer = tensorboardX.SummaryWriter(str(folder))
    for step, time, values in rows:
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, walltime=time)
    writer.add_histogram("weights", list(range(5000)), 0, bins=list(range(5000)))
    writer.close()
    return next(folder.glob("*tfevents*"))


def run_rows(last: int = 500) -> list[tuple[int, float, dict[str, float]]]:
    """A step takes 0.5 s; an evaluation of 30 s follows every hundredth."""
    rows, clock = [], 1.7e9
    for step in range(0, last + 1, 10):
        rows.append((step, clock, {"train/loss": loss(step), "train/lr": 6e-4, "train/accuracy": 0.4}))
        if step % 100 == 0:
            clock += 30.0
            rows.append((step, clock, {"eval/loss": loss(step) + 0.02}))
        clock += 5.0
    return rows


@pytest.fixture
def event_file(tmp_path: Path) -> Path:
    return write(tmp_path / "board", run_rows())


def test_event_file_and_its_folder(event_file: Path) -> None:
    for path in (event_file, event_file.parent):
        history = logs.read(path)
        assert history.format == "tensorboard"
        assert [step.step for step in history.steps] == list(range(0, 501, 10))
        assert history.steps[7].loss == pytest.approx(loss(70))
        assert history.steps[7].learning_rate == pytest.approx(6e-4)
        assert {round(step.seconds or 0, 3) for step in history.steps[1:]} == {0.5}  # without the evaluations
        expected = [(step, pytest.approx(loss(step) + 0.02)) for step in range(0, 501, 100)]
        assert [(e.step, e.val) for e in history.evaluations] == expected
        assert "not used: train/accuracy (51 values)" in history.notes
        assert '"train/loss"' in history.lines[history.steps[7].line - 1]


def test_resumed_run_has_several_event_files(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    folder.mkdir()
    write(tmp_path / "a", run_rows(300)).rename(folder / "events.out.tfevents.1.a")
    write(tmp_path / "b", run_rows(500)[25:]).rename(folder / "events.out.tfevents.2.a")
    history = logs.read(folder)
    assert [step.step for step in history.steps] == list(range(0, 501, 10))
    assert history.replays[0].last == 300


@pytest.mark.parametrize(("epoch", "done"), [("train/epoch", (99, 100)), ("epoch", (100, 101)), ("other", (100, 100))])
def test_programs_that_count_steps_differently(epoch: str, done: tuple[int, int], tmp_path: Path) -> None:
    """The Trainer counts the steps done; Lightning's evaluation at step N follows that step."""
    rows = [(step, 1.7e9 + step, {"train/loss": loss(step), epoch: 0.1, "eval/loss": 3.0}) for step in (50, 100)]
    history = logs.read(
        write(tmp_path, [(step, time, {name: values[name]}) for step, time, values in rows for name in values])
    )
    assert (history.steps[-1].step, history.evaluations[-1].step) == done


def test_scalars_of_tensors(tmp_path: Path) -> None:
    """TensorFlow 2 writes a scalar as a tensor, with its number as a field or as raw bytes."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    def event(**tensor: Any) -> bytes:
        value = Summary.Value(tag="train/loss", tensor=tensor)
        return bytes(Event(step=7, wall_time=9.0, summary=Summary(value=[value])).SerializeToString())

    raw = struct.pack("<f", 3.5)
    records = [event(dtype=1, float_val=[3.5]), event(dtype=2, double_val=[3.5]), event(dtype=1, tensor_content=raw)]
    records.append(event(dtype=1, float_val=[3.5, 1.0]))  # no scalar
    path = tmp_path / "events"
    path.write_bytes(b"".join(record(data) for data in records))
    assert [scalar and scalar.value for scalar in read_scalars(path)] == [3.5, 3.5, 3.5]


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_checksum(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]


def test_checksum_is_crc32c() -> None:
    """The check value of CRC-32C, E3069283, rotated and with the offset of the format."""
    crc = 0xE3069283
    assert masked_checksum(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_damaged_event_files(event_file: Path, tmp_path: Path) -> None:
    data = event_file.read_bytes()
    middle = data.index(b"train/loss", 4000)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data[:middle] + b"X" + data[middle + 1 :])
    history = logs.read(damaged)
    assert len(history.steps) == 51
    assert sum(step.loss is None for step in history.steps) == 1
    assert any("1 line could not be read" in warning for warning in history.warnings)
    damaged.write_bytes(data[: middle - 20])  # torn
    assert 20 < len(logs.read(damaged).steps) < 51
    damaged.write_bytes(data[:middle] + b"X" * 3 + data[middle:])
    assert any("is damaged at byte" in warning for warning in logs.read(damaged).warnings)
    damaged.write_bytes(data[:40])  # the first record alone
    with pytest.raises(JaxgptError, match="D041"):
        logs.read(damaged)


def test_large_records_are_skipped_unread(tmp_path: Path) -> None:
    """A length of 4 GB, with a valid checksum, at the end of a small file."""
    length = struct.pack("<Q", (1 << 32) - 1)
    path = tmp_path / "events"
    path.write_bytes(record(b"") + length + struct.pack("<I", masked_checksum(length)))
    assert list(read_scalars(path)) == []
    path.write_bytes(record(bytes(20_000))[:-1] + b"?")  # whose checksum would be wrong
    assert list(read_scalars(path)) == []


def test_mutated_event_files_raise_typed_errors_only(event_file: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    data = event_file.read_bytes()[:4000]
    path = tmp_path / "mutated"
    results = set()
    for _ in range(150):
        body = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        records = rng.random() < 0.5
        path.write_bytes(b"".join(record(bytes(body[at : at + 60])) for at in range(0, 3000, 60)) if records else body)
        try:
            results.add(logs.read(path).format)
        except JaxgptError as error:
            results.add(error.code)
    assert {"tensorboard", "D041"} <= results
