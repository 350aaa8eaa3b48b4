"""The record of a run: complete lines of exact JSON, whatever the disk does."""

import json
import math
import os
from pathlib import Path

import pytest
from helpers.training import STEPS, arguments, leaf_bytes, records, run_folder, saved_state, tiny_config

from jaxgpt import errors, train
from jaxgpt.runs import log as runlog
from jaxgpt.runs.log import DONE, RunLog, StopReason, read_log, read_stop_reason


def refuse(constant: str) -> None:
    raise ValueError(constant)


def test_every_line_is_strict_json_with_kind_and_time(finished: Path) -> None:
    lines = run_folder(finished).log_file.read_text(encoding="utf-8").splitlines()
    log = [json.loads(line, parse_constant=refuse) for line in lines]
    assert all(isinstance(record["time"], float) for record in log)
    assert log[0]["kind"] == "start"
    assert log[-1] == {"kind": "stop", "time": log[-1]["time"], "reason": "done"}
    assert [record["step"] for record in log if record["kind"] == "step"] == list(range(STEPS))
    assert log[0]["config"] == tiny_config(finished).to_dict()
    assert {"jaxgpt", "jax", "python"} <= log[0]["versions"].keys()


def test_floats_are_exact_and_nonfinite_ones_are_text(tmp_path: Path) -> None:
    values = {"a": 0.1 + 0.2, "b": float.fromhex("0x1.0a3d7p+1"), "c": 5e-324, "d": math.nan, "e": -math.inf}
    with RunLog(tmp_path / "log") as log:
        log.write("step", **values)
    record = json.loads((tmp_path / "log").read_text().splitlines()[0], parse_constant=refuse)
    assert {name: record[name] for name in "abc"} == {name: values[name] for name in "abc"}
    assert (record["d"], record["e"]) == ("nan", "-inf")


def test_record_is_readable_before_the_next_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log") as log:
        log.write("step", step=0)
        assert [record["step"] for record in read_log(tmp_path / "log")] == [0]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_line_cut_off_by_a_crash_is_skipped_and_ended(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log"
    with RunLog(path) as log:
        log.write("step", step=0)
    os.truncate(path, path.stat().st_size - cut)
    with RunLog(path) as log:
        log.write("step", step=1)
    assert [record["step"] for record in read_log(path) if record["kind"] == "step"] == [0, 1]
    assert len(path.read_text().splitlines()) == 4


def test_lines_that_are_not_records_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"kind": "step", "step": 0}\r\n\n[1]\nnull\n{"kind"\n\xff\xfe\n{"kind": "step", "step": 1}')
    assert [record["step"] for record in read_log(path)] == [0, 1]


def test_error_that_ended_a_run_is_recorded(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt(), errors.StorageError("S005", "full")):
        with pytest.raises(type(error)), RunLog(tmp_path / "log"):
            raise error
    assert [record["reason"] for record in read_log(tmp_path / "log")] == ["KeyboardInterrupt", "S005"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"reason": "done"}, DONE),
        ({"reason": "N001"}, StopReason("N001")),
        ({"reason": "early-stop", "detail": "overfitting: at 28 %"}, StopReason("early-stop", "overfitting: at 28 %")),
        ({"reason": "early-stop: overfitting: at 28 %"}, StopReason("early-stop", "overfitting: at 28 %")),  # 0.1
    ],
)
def test_stop_reason_is_read_from_new_and_old_logs(tmp_path: Path, record: dict[str, str], reason: StopReason) -> None:
    path = tmp_path / "log"
    path.write_text(json.dumps({"kind": "stop", "time": 1.0} | record) + "\n")
    assert read_stop_reason(path) == reason
    with path.open("a") as log:
        log.write('{"kind": "start", "time": 2.0}\n')
    assert read_stop_reason(path) is None


def test_stop_reason_is_written_and_read(tmp_path: Path) -> None:
    reason = StopReason("early-stop", "little to gain")
    with RunLog(tmp_path / "log") as log:
        log.stop_reason = reason
    assert read_stop_reason(tmp_path / "log") == reason


def test_full_disk_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with RunLog(tmp_path / "log") as log:
        for number in range(1000):
            log.write("step", step=number)
    assert capsys.readouterr().err == (
        f"warning: the log has gaps from here on: {tmp_path / 'log'}: No space left on device\n"
    )


def test_temporarily_full_disk_leaves_a_gap_of_whole_records(tmp_path: Path) -> None:
    class Disk:
        """Takes nothing, then half of a line, then everything."""

        def __init__(self) -> None:
            self.taken, self.calls = b"", 0

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls == 1:
                raise OSError(28, "No space left on device")
            part = data[: len(data) // 2] if self.calls == 2 else data
            self.taken += part
            return len(part)

        def close(self) -> None: ...

    with RunLog(tmp_path / "log") as log:
        log._file.close()
        disk = log._file = Disk()  # type: ignore[assignment]
        for number in range(4):
            log.write("step", step=number)
    (tmp_path / "log").write_bytes(disk.taken)
    assert [record["step"] for record in read_log(tmp_path / "log") if record["kind"] == "step"] == [2, 3]


def test_full_disk_under_the_log_does_not_change_the_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = run_folder(finished, "full")
    full.path.mkdir()
    full.log_file.symlink_to("/dev/full")
    assert errors.run(train.main, arguments(finished, {"run.name": "full"})) == 0
    assert capsys.readouterr().err.count("warning: the log has gaps") == 1
    assert leaf_bytes(saved_state(tiny_config(finished, {"run.name": "full"}))) == leaf_bytes(
        saved_state(tiny_config(finished))
    )
    assert len(records(run_folder(finished))) == STEPS


def test_log_that_cannot_be_opened_is_a_storage_error(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(workspace).log_file.mkdir(parents=True)
    assert errors.run(train.main, arguments(workspace)) == 7
    err = capsys.readouterr().err
    assert err.startswith("error[S002]: ")
    assert "log.jsonl" in err


def test_reading_a_missing_log_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runlog.read_log(tmp_path / "none")


def test_device_has_no_records() -> None:
    assert runlog.read_log(Path("/dev/zero")) == []
    assert read_stop_reason(Path("/dev/zero")) is None
