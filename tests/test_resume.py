"""A run that was killed, crashed or stopped and goes on is the run that was left alone, to the last bit."""

import random
import signal
import time
from pathlib import Path

import pytest
from test_train import (
    Changes,
    Crash,
    after_step,
    arguments,
    bits,
    command,
    crash,
    folder_of,
    losses,
    place,
    records,
    saved_state,
    tiny,
    write_tokens,
    xla_cache,
)

from jaxgpt import errors, train
from jaxgpt.runs.folder import RunFolder

__all__ = ["place", "xla_cache"]  # fixtures

STEPS = 40
EPOCHS = {"run.steps": STEPS, "run.save_every": 3, "run.eval_every": STEPS}  # five epochs of 62 windows
NOISY = EPOCHS | {"model.dropout": 0.2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Path:
    """The place of the run that was left alone, a process like those that are killed."""
    place = tmp_path_factory.mktemp("whole")
    write_tokens(place / "data")
    finish(place)
    return place


def finish(place: Path) -> None:
    with command(place, NOISY) as run:
        run.communicate(timeout=120)
    assert run.returncode == 0


def kill_when_told(place: Path, line: str, saving: bool = False) -> int:
    """Starts or resumes the run and kills it at the first line that begins with `line`; returns its status.

    With `saving` it is killed when the next save has begun and is not on the disk yet.
    """
    with command(place, NOISY) as run:
        assert run.stdout
        for said in run.stdout:
            if said.startswith(line):
                if saving:
                    wait_for_a_save_under_way(place)
                run.kill()
                break
    return run.returncode


def wait_for_a_save_under_way(place: Path) -> None:
    end = time.monotonic() + 20
    while not list(folder_of(place).checkpoints.glob("*tmp*")):
        assert time.monotonic() < end


def assert_same_run(place: Path, whole: Path, changes: Changes) -> None:
    assert losses(folder_of(place)) == losses(folder_of(whole))
    assert bits(saved_state(tiny(place, changes))) == bits(saved_state(tiny(whole, changes)))


def test_a_run_killed_five_times_is_bit_identical_to_one_left_alone(place: Path, whole: Path) -> None:
    source = random.Random(20240520)
    first = source.randrange(4, 8)
    kills = [("iter 0:", False), (f"iter {first}:", False), ("iter 8", False), ("saving checkpoint of step 15", True)]
    for line, saving in [*kills, (f"iter {source.randrange(22, 36)}:", False)]:
        assert kill_when_told(place, line, saving) == -signal.SIGKILL
    finish(place)
    assert len(records(folder_of(place), "start")) == 6
    assert_same_run(place, whole, NOISY)


def test_a_run_that_crashed_four_times_is_bit_identical_to_one_left_alone(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (5, 11, 17, 32):  # two in the first two epochs, one just after a boundary
        with monkeypatch.context() as patch:
            after_step(patch, number, crash)
            with pytest.raises(Crash):
                train.train(tiny(place, NOISY))
    train.train(tiny(place, NOISY))
    assert [record["step"] for record in records(folder_of(place), "start")] == [0, 3, 9, 15, 30]
    assert losses(folder_of(place)).keys() == set(range(STEPS))
    alone = tiny(place, NOISY | {"run.name": "alone"})
    train.train(alone)
    assert losses(folder_of(place)) == losses(folder_of(place, "alone"))
    assert bits(saved_state(tiny(place, NOISY))) == bits(saved_state(alone))


def test_evaluations_do_not_disturb_the_run(place: Path) -> None:
    train.train(tiny(place, EPOCHS))
    often = tiny(place, EPOCHS | {"run.name": "b", "run.eval_every": 1, "run.save_every": 7})
    train.train(often)
    assert losses(folder_of(place, "b")) == losses(folder_of(place))
    assert bits(saved_state(often)) == bits(saved_state(tiny(place, EPOCHS)))


def test_the_seed_decides(place: Path) -> None:
    short = {"run.steps": 3, "run.eval_every": 3}
    found = []
    for name, seeds in {"a": {}, "b": {"run.seed": 1}, "c": {"data.seed": 1}, "again": {}}.items():
        train.train(tiny(place, short | {"run.name": name} | seeds))
        found.append(losses(folder_of(place, name)))
    assert found[0] == found[3]
    assert found[0] != found[1] != found[2] != found[0]


def test_a_fork_goes_on_from_the_newest_checkpoint_of_another_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train(tiny(place))
    longer = {"run.name": "longer", "run.steps": 30}
    assert errors.run(train.main, [*arguments(place, longer), "--fork", str(folder_of(place).path)]) == 0
    assert list(losses(folder_of(place, "longer"))) == list(range(20, 30))
    assert records(folder_of(place, "longer"), "start")[0]["fork"] == str(folder_of(place).path)


def test_a_fork_that_is_interrupted_goes_on_from_its_own_checkpoint(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.train(tiny(place))
    longer = tiny(place, {"run.name": "longer", "run.steps": 30})
    with monkeypatch.context() as patch:
        after_step(patch, 26, crash)
        with pytest.raises(Crash):
            train.train(longer, train.Fork(folder_of(place)))
    train.train(longer, train.Fork(folder_of(place)))
    starts = [record["step"] for record in records(folder_of(place, "longer"), "start")]
    assert starts == [20, 24]
    assert len(losses(folder_of(place, "longer"))) == 10


def test_a_fork_with_nothing_left_to_do_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.train(tiny(place))
    again = [*arguments(place, {"run.name": "b"}), "--fork", str(folder_of(place).path)]
    assert errors.run(train.main, again) == 2
    assert "error[C030]: run.steps = 20; the run to fork has 20 steps already" in capsys.readouterr().err
    assert not folder_of(place, "b").path.exists()


def test_a_fork_on_another_tokenizer_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.train(tiny(place))
    tokenizer = place / "data/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"?"', '"other"'))
    assert errors.run(train.main, [*arguments(place, {"run.name": "b"}), "--fork", "runs/a"]) == 4
    assert "error[K002]: 'runs/a' was started with another tokenizer" in capsys.readouterr().err
    assert not (RunFolder(place / "runs/b")).path.exists()
