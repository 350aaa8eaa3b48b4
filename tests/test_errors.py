"""Errors as a user sees them: exit status, one sentence, what to do next, and an unchanged disk.

Each test runs the real command, in this process where a subprocess would not show more.
"""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training import arguments, random_tokens, start_training, write_shard

import jaxgpt
from jaxgpt import errors, train
from jaxgpt.config import sections
from jaxgpt.config.fields import field_types
from jaxgpt.errors import JaxgptError, NoShardsError, StorageError, printable

Refused = Callable[..., str]


def listing(folder: Path) -> dict[str, Any]:
    """Every path below `folder`, and when it was last changed."""
    return {str(path): os.lstat(path).st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Trains with the options given after the tiny run's own: it must end with that status and words, and no trace."""

    def run(status: int, words: str, *options: str, help: str = "") -> str:
        before = listing(workspace)
        assert errors.run(train.main, [*arguments(workspace), *options]) == status
        out, err = capsys.readouterr()
        assert err.startswith(f"error[{words}"), err
        assert help in err.partition("\n  help: ")[2], err
        assert "Traceback" not in out + err
        assert len(err.splitlines()) <= 2
        assert listing(workspace) == before
        return err

    return run


# --- the config ------------------------------------------------------------------------------------------------------


def test_missing_config_lists_the_existing_ones(refused: Refused, workspace: Path) -> None:
    refused(2, "C001]: config 'configs/run.py' not found", "--config", "configs/run.py", help="fineweb40m")
    (workspace / "configs").mkdir()
    (workspace / "configs/mine.py").write_text("")
    refused(
        2, "C001]: config 'configs/run.py' not found", "--config", "configs/run.py", help="there are: configs/mine.py"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("config = (1 +\n", "C002]: run.py:1: '(' was never closed"),
        ("import os\n\nconfig = Config(\n  model==2)", "C004]: run.py:3: NameError"),
        ("x = 1\n", "C003]: run.py defines no 'config = Config(...)'"),
        ("config = {'model': {}}\n", "C003]: run.py defines no 'config = Config(...)'"),
        ("1 / 0\n", "C004]: run.py:1: ZeroDivisionError: division by zero"),
        (
            "from jaxgpt.config import *\n\nconfig = Config(model=Model(n_layer=0))",
            "C009]: model.n_layer = 0; must be 1 or more (run.py:3)",
        ),
    ],
)
def test_mistake_in_a_config_file_names_its_line(refused: Refused, workspace: Path, text: str, words: str) -> None:
    (workspace / "run.py").write_text(text)
    refused(2, words, "--config", "run.py")


def test_binary_config_file_is_an_error(refused: Refused, workspace: Path) -> None:
    (workspace / "run.py").write_bytes(b"\xff\xfe\x00")
    refused(2, "C002]: run.py is not a text file", "--config", "run.py")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words", "help"),
    [
        ("--optim.learning_rat=1", "C005]: unknown field 'optim.learning_rat'", "did you mean 'optim.learning_rate'?"),
        ("--model.n_layer=twelve", "C007]: model.n_layer = 'twelve'; a whole number is needed", ""),
        ("--model.n_layer=2.5", "C007]: model.n_layer = 2.5; a whole number is needed", ""),
        ("--optim.learning_rate=nan", "C008]: optim.learning_rate = nan is not finite", ""),
        ("--optim.weight_decay=inf", "C008]: optim.weight_decay = inf is not finite", ""),
        ("--model.n_layer=0", "C009]: model.n_layer = 0; must be 1 or more", ""),
        ("--data.micro_batch=-4", "C009]: data.micro_batch = -4; must be 1 or more", ""),
        ("--model.n_head=7", "C010]: n_embd 32 is not divisible by n_head 7", "nearest: 4, 8"),
        ("--optim.warmup_steps=21", "C014]: optim.warmup_steps = 21 is longer than the run (run.steps = 20)", "2"),
        ("--optim.min_lr=0.5", "C015]: optim.min_lr = 0.5 is above optim.learning_rate = 0.01", "--optim.min-lr 0.001"),
        ("--optim.beta2=1", "C016]: optim.beta2 = 1.0; must be below 1", ""),
        ("--optim.beta1=-0.1", "C009]: optim.beta1 = -0.1; must be 0 or more", ""),
        ("--optim.schedule=cubic", "C017]: optim.schedule = 'cubic' is not known", "cosine, linear, constant, wsd"),
        ("--model.vocab_size=63", "C018]: model.vocab_size 63 is smaller than the tokenizer's 64", "128"),
        ("--run.name=../b", "C019]: run.name = '../b' cannot name a folder", "letters, digits"),
        ("--run.name=a/b", "C019]: run.name = 'a/b' cannot name a folder", ""),
        ("--run.name=..", "C019]: run.name = '..' cannot name a folder", ""),
        ("--run.name=a\x1b[2J", "C019]: run.name = 'a\\x1b[2J' cannot name a folder", ""),
        ("--run.name=", "C019]: run.name = '' cannot name a folder", ""),
        (
            "--device=gpu",
            "C020]: mesh.device is 'gpu', but JAX sees only: cpu",
            "cuda12 for drivers below 580; python -m jaxgpt.doctor",
        ),
        (
            "--data.micro_batch=7",
            "C013]: data.micro_batch = 7 is not divisible by 2 devices",
            "--data.micro-batch 6 or 8",
        ),
        (
            "--mesh.data_parallel=64",
            "C013]: mesh.data_parallel = 64; JAX sees 2 cpu device(s)",
            "--mesh.data-parallel 2",
        ),
        ("--wandb_log=True", "C005]: there is no option '--wandb_log'", "--run.trackers wandb"),
        ("--fork=none", "C024]: no run in 'none'", "train one first"),
    ],
)
def test_invalid_value_names_its_field(refused: Refused, option: str, words: str, help: str) -> None:
    refused(2, words, option, help=help)


def test_heads_of_modern_must_fit(refused: Refused) -> None:
    modern = ("--model.architecture=modern", "--model.n_head=4")
    refused(2, "C011]: head size 9 is odd", *modern, "--model.n_embd=36", help="--model.head-dim 10")
    refused(2, "C012]: model.n_kv_head = 3 does not divide n_head = 4", *modern, "--model.n_kv_head=3", help="1, 2, 4")


def test_every_field_refuses_a_value_of_another_type(refused: Refused) -> None:
    for section, kind in sections().items():
        for name, (_, hint) in field_types(kind).items():
            if hint not in (str, tuple[str, ...]):
                assert f"{section}.{name} = 'twelve'" in refused(2, "C0", f"--{section}.{name}=twelve")


def test_option_value_that_looks_like_code_is_text(refused: Refused, workspace: Path) -> None:
    code = "__import__('os').system('touch pwned')"
    refused(2, "C007]: model.n_layer = ", f"--model.n_layer={code}")
    refused(2, "C019]: run.name = ", f"--run.name={code}")
    refused(3, "D002]: no token shards in '$(touch pwned)'", "--data.path=$(touch pwned)")
    refused(2, "C001]: config ", "--config", code)


# --- the data --------------------------------------------------------------------------------------------------------


def test_missing_data_names_the_command_that_makes_it(refused: Refused, workspace: Path) -> None:
    make = "python -m jaxgpt.prepare SOURCE --out data/none"
    refused(3, "D002]: no token shards in 'data/none'", "--data.path=data/none", help=make)
    (workspace / "empty").mkdir()
    refused(3, "D002]: no token shards in 'empty'", "--data.path=empty", help="jaxgpt.prepare SOURCE --out empty")
    (workspace / "file").write_text("")
    refused(3, "D002]: no token shards in 'file': it is a file", "--data.path=file")


def test_missing_sources_leave_no_data_folder(refused: Refused) -> None:
    err = refused(3, "D0", "--data.path=new", "--data.sources", "nothing/*.txt")
    assert "nothing/*.txt" in err


def header(count: int) -> bytes:
    values = np.zeros(256, "<i4")
    values[:3] = [20240520, 1, count]
    return values.tobytes()


def zip_file(shard: Path) -> None:
    shard.write_bytes(b"PK\x03\x04" + bytes(3000))


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size - 256)


def grown(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + bytes(8))


def a_negative_count(shard: Path) -> None:
    shard.write_bytes(header(-1) + bytes(2000))


def an_impossible_count(shard: Path) -> None:
    shard.write_bytes(header(2**31 - 1) + bytes(2000))


def a_foreign_token(shard: Path) -> None:
    tokens = random_tokens(1000, 0)
    tokens[321] = 64
    write_shard(shard, tokens)


def a_short_corpus(shard: Path) -> None:
    write_shard(shard, random_tokens(12, 0))


def an_empty_file(shard: Path) -> None:
    shard.write_bytes(b"")


def a_fifo(shard: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)


def a_folder(shard: Path) -> None:
    shard.unlink()
    shard.mkdir()


def a_device(shard: Path) -> None:
    shard.unlink()
    shard.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (zip_file, "D003", "is not a token shard (starts with 50 4b 03 04: a zip file)"),
        (cut, "D007", "header says 1,000 tokens, file holds 872 (256 bytes short)"),
        (grown, "D007", "header says 1,000 tokens"),
        (a_negative_count, "D008", "-1"),
        (an_impossible_count, "D00", "2,147,483,647"),
        (a_foreign_token, "D010", "token 64 at position 321; the tokenizer's vocabulary is 64"),
        (a_short_corpus, "D013", "12 tokens in all; one sequence needs 17"),
        (an_empty_file, "D0", "train_000000.bin"),
        (a_fifo, "D015", "train_000000.bin"),
        (a_folder, "D015", "train_000000.bin"),
        (a_device, "D015", "train_000000.bin"),
    ],
)
def test_unusable_shard_is_named_with_its_problem(
    refused: Refused, workspace: Path, damage: Callable[[Path], None], code: str, words: str
) -> None:
    damage(workspace / "data/train_000000.bin")
    err = refused(3, code)
    assert words in err
    if damage is not a_short_corpus:
        assert "train_000000.bin" in err


# --- as a process ----------------------------------------------------------------------------------------------------


def test_process_prints_the_error_and_nothing_else(workspace: Path) -> None:
    before = listing(workspace)
    with start_training(workspace, {"model.n_head": 7}) as run:
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "")
    assert err == "error[C010]: n_embd 32 is not divisible by n_head 7\n  help: nearest: 4, 8\n"
    assert listing(workspace) == before


def test_missing_gpu_is_an_error_whatever_jax_platforms_says(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    before = listing(workspace)
    with start_training(workspace, {"mesh.device": "gpu"}) as run:
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "")
    assert err.startswith("error[C020]: mesh.device is 'gpu', but JAX sees only: none (JAX_PLATFORMS=cuda)")
    assert "Traceback" not in err
    assert listing(workspace) == before


# --- the error classes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "status"), [("C001", 2), ("D001", 3), ("K001", 4), ("N001", 5), ("S001", 7)])
def test_letter_of_a_code_gives_the_exit_status(capsys: pytest.CaptureFixture[str], code: str, status: int) -> None:
    assert errors.run(failing(JaxgptError(code, "what", "how")), []) == status
    assert capsys.readouterr().err == f"error[{code}]: what\n  help: how\n"


def failing(error: BaseException) -> Callable[[Any], None]:
    def main(_: Any) -> None:
        raise error

    return main


def test_os_error_of_a_file_is_a_storage_error(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(28, "No space left on device", "runs/a/config.json")
    assert errors.run(failing(full), []) == 7
    assert capsys.readouterr().err.startswith("error[S009]: No space left on device: runs/a/config.json\n")


def test_os_error_of_memory_or_a_bug_keeps_its_traceback() -> None:
    for bug in (OSError(errno.ENOMEM, "Cannot allocate memory"), OSError(errno.EBADF, "Bad file descriptor")):
        with pytest.raises(OSError, match=bug.strerror):
            errors.run(failing(bug), [])
    with pytest.raises(OSError, match="Cannot allocate"):
        errors.run(failing(OSError(errno.ENOMEM, "Cannot allocate memory", "shard.bin")), [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_full_or_forbidden_disk_needs_no_file_name(capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert errors.run(failing(OSError(number, os.strerror(number))), []) == 7
    assert capsys.readouterr().err.startswith(f"error[S009]: {os.strerror(number)}\n")


def test_replaced_error_keeps_class_and_code() -> None:
    error = NoShardsError("D002", "no shards", "make some")
    assert (type(error.replace(help="x")), str(error.replace(help="x"))) == (
        NoShardsError,
        "error[D002]: no shards\n  help: x",
    )
    assert str(error.replace(message="y")) == "error[D002]: y\n  help: make some"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(StorageError):
        errors.run(failing(StorageError("S001", "what")), ["--debug"])


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        errors.run(failing(ZeroDivisionError()), [])


def test_names_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\u202eb\n") == "a\\x1b[2J\\x07\\u202eb\n"
    assert "\x1b" not in str(JaxgptError("D002", "no token shards in '\x1b]0;pwned\x07'", "\x1b[2J"))


@pytest.mark.parametrize(
    ("verb", "module", "status", "words"),
    [
        ("train", "argparse", -signal.SIGINT, ""),  # before `errors.run`, where Python would print a traceback
        ("train", "jax", 130, "stopped before the first step; nothing is lost\n"),
        ("budget", "numpy", 130, "interrupted\n"),
    ],
)
def test_interrupt_while_a_command_imports_shows_no_traceback(
    tmp_path: Path, verb: str, module: str, status: int, words: str
) -> None:
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / f"{module}.py").write_text(kill)  # found on the path before the real one
    paths = os.pathsep.join([str(tmp_path), str(Path(jaxgpt.__file__).parents[1])])
    done = interruptible([sys.executable, "-m", f"jaxgpt.{verb}", "quickstart"], paths)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", words)


def interruptible(command: list[str], paths: str) -> subprocess.CompletedProcess[str]:
    """Runs it with Python's own handling of SIGINT, which a background shell turns off."""
    heeds = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    started = [sys.executable, "-c", heeds, *command]
    return subprocess.run(started, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)


def test_other_program_that_imports_jaxgpt_keeps_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/__init__.py").write_text("import jaxgpt\n")
    kill = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "theirs/__main__.py").write_text(f"{kill}except KeyboardInterrupt:\n    print('theirs')\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(jaxgpt.__file__).parents[1])])
    done = interruptible([sys.executable, "-m", "theirs", "jaxgpt.train"], paths)
    assert (done.returncode, done.stdout, done.stderr) == (0, "theirs\n", "")


def test_command_restores_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert errors.run(lambda _: os.kill(os.getpid(), signal.SIGINT), []) == 130
    finally:
        signal.signal(signal.SIGINT, before)
