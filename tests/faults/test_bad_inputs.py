"""Every kind of bad input: one typed error with its value and place, what to do next, and nothing is made.

More of them: tests/test_errors.py (config, shards), test_sizes.py and test_special_files.py here.
"""

import gzip
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.torch_file import write_torch_file
from helpers.training import Crash, arguments, crash, random_tokens, run_folder, tiny_config, write_shard

from jaxgpt import cli, errors, train
from jaxgpt.convert.initial import resolve_network
from jaxgpt.errors import ConfigError
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.runs.log import RunLog
from jaxgpt.training.session import TrainingSession

pytestmark = pytest.mark.timeout(100)  # what waits for a pipe waits for ever

Setup = Callable[[], object]
TRAIN = Path("data/train_000000.bin")
VAL = Path("data/val_000000.bin")
HEADER = 1024
ESC = "\x1b[2J"
CONFIG = "from jaxgpt.config import *\nconfig = Config({})\n"
TEXTS = [f"Document {number} is about the number {number * number}.\n" * 20 for number in range(100)]


@dataclass(frozen=True)
class Case:
    """A command line and what is done before it. `changes`: what a refusal may change nevertheless."""

    command: str
    status: int
    words: str
    help: str
    setup: Setup = lambda: None
    options: tuple[str, ...] = ()
    changes: tuple[str, ...] = field(default=())

    def argv(self) -> list[str]:
        verb, *words = self.command.split()
        runs = {"new": {"run.name": "new"}, "resume": {}, "fork": {"run.name": "new", "run.steps": 40}}
        if verb in runs:
            words = [*arguments(Path(), runs[verb]), *words]
            words += ["--fork", "a"] if verb == "fork" else []
            verb = "train"
        return [verb, *words, *self.options]


# --- what is done before ----------------------------------------------------------------------------------------------


def write(name: str | Path, content: str | bytes) -> Setup:
    def action() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    return action


def config(text: str) -> Setup:
    return write("c.py", text)


def header(index: int, value: int) -> Setup:
    """Replaces a number in the header of the training shard."""

    def action() -> None:
        content = bytearray(TRAIN.read_bytes())
        content[4 * index : 4 * index + 4] = np.array(value, "<i4").tobytes()
        TRAIN.write_bytes(content)

    return action


def token(path: Path, position: int, value: int) -> Setup:
    def action() -> None:
        content = bytearray(path.read_bytes())
        content[HEADER + 2 * position : HEADER + 2 * position + 2] = np.array(value, "<u2").tobytes()
        path.write_bytes(content)

    return action


def resize(path: Path, difference: int) -> Setup:
    def action() -> None:
        content = path.read_bytes()
        path.write_bytes(content[:difference] if difference < 0 else content + bytes(difference))

    return action


def parquet(**columns: object) -> Setup:
    return lambda: pq.write_table(pa.table(columns), "x.parquet", row_group_size=50)


def cut_parquet() -> None:
    parquet(text=TEXTS)()
    resize(Path("x.parquet"), -2000)()


def damaged_parquet() -> None:
    parquet(text=TEXTS)()
    content = bytearray(Path("x.parquet").read_bytes())
    content[500:550] = b"\xff" * 50
    Path("x.parquet").write_bytes(content)


def other_data() -> None:
    """The folder `other`, made with another tokenizer than the run's."""
    write("t.txt", "".join(TEXTS))()
    prepare(["t.txt"], "other", tokenizer="char", val_tokens=1000, suggest=False)


def prepared(name: str) -> Setup:
    """The folder `p`, whose manifest names the file `name` as its training shard."""

    def action() -> None:
        write("t.txt", "".join(TEXTS))()
        prepare(["t.txt"], "p", tokenizer="char", val_tokens=1000, suggest=False)
        manifest = Path("p/manifest.json")
        manifest.write_text(manifest.read_text().replace('"train_000000.bin"', f'"{name}"'))

    return action


def linked_shard() -> None:
    prepared("train_000000.bin")()
    Path("p/train_000000.bin").unlink()
    Path("p/train_000000.bin").symlink_to("/etc/passwd")


def damage_all_checkpoints() -> None:
    for step in run_folder(Path()).checkpoints.iterdir():
        (step / "state/_METADATA").unlink()


def nanogpt_weights(value: float) -> Setup:
    """`ckpt.pt` of a network with a single layer, one of whose parameters is `value`."""
    width, vocabulary, block = 8, 64, 16
    shapes = {"wte": (vocabulary, width), "wpe": (block, width), "h.0.ln_1": (width,), "h.0.ln_2": (width,)}
    shapes |= {"h.0.attn.c_attn": (3 * width, width), "h.0.attn.c_proj": (width, width), "ln_f": (width,)}
    shapes |= {"h.0.mlp.c_fc": (4 * width, width), "h.0.mlp.c_proj": (width, 4 * width)}

    def action() -> None:
        tensors = {f"transformer.{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
        tensors["transformer.h.0.mlp.c_fc.weight"][3, 4] = value
        settings = {"n_layer": 1, "n_head": 2, "n_embd": width, "block_size": block, "vocab_size": vocabulary}
        write_torch_file(Path("ckpt.pt"), {"model_args": {**settings, "bias": False}, "model": tensors})

    return action


# --- the table --------------------------------------------------------------------------------------------------------

LOCATED = "--config c.py"
NAMES = "letters, digits"
EXPLAINED = "--help explains"
CASES = {
    # The config file.
    "config file missing": Case("train configs/run.py", 2, "C001]: config 'configs/run.py' not found", "fineweb40m"),
    "config is a folder": Case("train --config data", 2, "C001]: config 'data' not found", "there are: "),
    "config name too long": Case(f"train --config {'a' * 300}", 2, "C001]: config 'aaa", "there are: "),
    "config name with controls": Case(f"train --config a{ESC}", 2, r"C001]: config 'a\x1b[2J' not", "there are: "),
    "syntax error": Case(f"train {LOCATED}", 2, "C002]: c.py:3: '(' was", "fix this line", config("x = 1\n\nf(\n")),
    "null in the config file": Case(f"train {LOCATED}", 2, "C002]: c.py:1: source", "fix this line", config("x\0")),
    "config is not text": Case(f"train {LOCATED}", 2, "C002]: c.py is not a text", "UTF-8", write("c.py", b"\xfc\xdf")),
    "no config in the file": Case(f"train {LOCATED}", 2, "C003]: c.py defines no 'config", "presets", config("")),
    "config is a class": Case(
        f"train {LOCATED}", 2, "C003]: c.py defines no", "presets", config("from jaxgpt.config import Config as config")
    ),
    "config file exits": Case(
        f"train {LOCATED}", 2, "C004]: c.py:2: SystemExit: 0", "fix the file", config("import sys\nsys.exit(0)")
    ),
    "config file writes controls": Case(
        f"train {LOCATED}", 2, r"C004]: c.py:1: ValueError: a\x1b[2J", "fix", config(f"raise ValueError('a{ESC}')")
    ),
    "unknown field": Case(
        "train quickstart --optim.learning_rat 1", 2, "C005]: ", "did you mean 'optim.learning_rate'"
    ),
    "unknown field in the file": Case(
        f"train {LOCATED}",
        2,
        "C005]: Optim has no field 'learning_rat' (c.py:2)",
        "did you mean 'learning_rate'?",
        config(CONFIG.format("optim=Optim(learning_rat=1)")),
    ),
    "unknown section in the file": Case(
        f"train {LOCATED}",
        2,
        "C005]: Config has no field 'optin' (c.py:2)",
        "did you mean 'optim'?",
        config(CONFIG.format("optin=1")),
    ),
    "word for a number": Case(
        "train quickstart --model.n_layer twelve", 2, "C007]: model.n_layer = 'twelve'; a whole number", EXPLAINED
    ),
    "section of another kind": Case(
        f"train {LOCATED}",
        2,
        "C007]: model is of the type Optim; a Model(...) is needed (c.py:2)",
        "model=Model(...)",
        config(CONFIG.format("model=Optim()")),
    ),
    "null in a text": Case(
        f"train {LOCATED}",
        2,
        r"C007]: run.dir = 'a\x00'; text without null characters is needed (c.py:2)",
        EXPLAINED,
        config(CONFIG.format("run=Run(dir='a\\0')")),
    ),
    "bool for a number": Case(
        f"train {LOCATED}",
        2,
        "C008]: model.n_layer = True; a whole number is needed (c.py:2)",
        EXPLAINED,
        config(CONFIG.format("model=Model(n_layer=True)")),
    ),
    "NaN for a number": Case("new --optim.learning_rate nan", 2, "C008]: optim.learning_rate = nan is not", EXPLAINED),
    "number beyond a float": Case("new --optim.eps 1e400", 2, "C008]: optim.eps = inf is not finite", EXPLAINED),
    "zero size": Case("new --model.n_layer 0", 2, "C009]: model.n_layer = 0; must be 1 or more", EXPLAINED),
    "negative size": Case("new --data.micro_batch=-4", 2, "C009]: data.micro_batch = -4; must be 1", EXPLAINED),
    "heads": Case("train gpt2_124m --model.n_head=7", 2, "C010]: n_embd 768 is not divisible", "nearest: 6, 8"),
    "odd head with RoPE": Case(
        "new --model.architecture modern --model.n_embd 21 --model.n_head 3", 2, "C011]: head size 7", "n_embd / n_head"
    ),
    "key/value heads": Case(
        "new --model.architecture modern --model.n_head 4 --model.n_kv_head 3",
        2,
        "C012]: model.n_kv_head = 3",
        "1, 2, 4",
    ),
    "batch and devices": Case(
        "new --data.micro_batch 3", 2, "C013]: data.micro_batch = 3 is not", "--data.micro-batch 2 or"
    ),
    "too few devices": Case("new --mesh.data_parallel 8", 2, "C013]: mesh.data_parallel = 8; JAX sees 2", "parallel 2"),
    "warmup": Case(
        "new --optim.warmup_steps 30", 2, "C014]: optim.warmup_steps = 30 is longer", "--optim.warmup-steps 2"
    ),
    "min_lr": Case("new --optim.min_lr 1", 2, "C015]: optim.min_lr = 1 is above", "--optim.min-lr 0.001"),
    "beta of one": Case("new --optim.beta1 1", 2, "C016]: optim.beta1 = 1.0; must be below 1", EXPLAINED),
    "vocabulary": Case(
        "new --model.vocab_size 63", 2, "C018]: model.vocab_size 63 is smaller", "--model.vocab-size 128"
    ),
    "option that looks like code": Case(
        "new --model.n_layer=__import__('os').mkdir('pwned')",
        2,
        "C007]: model.n_layer = ",
        EXPLAINED,
    ),
    "name that looks like code": Case("new --run.name=$(mkdir${IFS}pwned)", 2, "C019]: run.name = '$(mkdir", NAMES),
    **{
        f"run name {name!r}": Case("new", 2, "C019]: run.name = ", NAMES, options=(f"--run.name={name}",))
        for name in ("a/b", "..", "", "a\nb", ESC, "a\u202eb", "\udcff", "a" * 101, "-x")
    },
    # The run folder.
    "run with another config": Case(
        "resume --model.n_layer 3", 4, "K001]: 'runs/a' was started with another config: model.n_layer 2 → 3", "--fork"
    ),
    "run.dir is a file": Case("new --run.dir f", 7, "S002]: 'f/new' cannot be written: ", "--run.dir", write("f", "")),
    "run.dir is a link to itself": Case(
        "new --run.dir l", 7, "S002]: 'l/new' cannot", "--run.dir", lambda: os.symlink("l", "l")
    ),
    "run.dir too long": Case(f"new --run.dir {'a' * 300}", 7, "S002]: 'aaa", "--run.dir"),
    "log is a folder": Case(
        "new",
        7,
        "S002]: 'runs/new' cannot be written: 'runs/new/log.jsonl' is",
        "--run.name",
        write("runs/new/log.jsonl/x", ""),
    ),
    "config.json is a folder": Case(
        "new", 4, "K005]: 'runs/new' is not a run folder", "start a new run", write("runs/new/config.json/x", "")
    ),
    # The data.
    "data folder missing": Case(
        "new --data.path d/x", 3, "D002]: no token shards in 'd/x'", "jaxgpt.prepare SOURCE --out d/x"
    ),
    "data folder empty": Case(
        "new --data.path d", 3, "D002]: no token shards in 'd'", "--out d", lambda: os.mkdir("d")
    ),
    "data folder is a file": Case(
        "new --data.path f", 3, "D002]: no token shards in 'f': it", "folder", write("f", "x")
    ),
    "zip file as shard": Case(
        "new", 3, f"D003]: {TRAIN} is not a token shard (starts with 50", "prepare", write(TRAIN, b"PK\3\4" * 999)
    ),
    "empty shard": Case(
        "new", 3, f"D003]: {TRAIN} is not a token shard (the file is empty)", "prepare", write(TRAIN, "")
    ),
    "unknown version": Case(
        "new", 3, f"D003]: {TRAIN} is not a token shard (magic 20240520 with version 99", "prepare", header(1, 99)
    ),
    "cut shard": Case(
        "new", 3, f"D007]: {TRAIN}: header says 1,000 tokens, file holds 872 (256", "again", resize(TRAIN, -256)
    ),
    "cut header": Case("new", 3, f"D007]: {TRAIN}: file holds 512 bytes", "again", lambda: os.truncate(TRAIN, 512)),
    "grown shard": Case(
        "new", 3, f"D007]: {TRAIN}: header says 1,000 tokens, file holds 1,000 (1 byte", "again", resize(TRAIN, 1)
    ),
    "negative count": Case("new", 3, f"D008]: {TRAIN}: header says -5 tokens", "damaged", header(2, -5)),
    "impossible count": Case(
        "new", 3, f"D007]: {TRAIN}: header says 2,147,483,647 tokens", "again", header(2, 2**31 - 1)
    ),
    "foreign token": Case("new", 3, f"D010]: {TRAIN}: token 64 at position 500; the", "another", token(TRAIN, 500, 64)),
    "foreign token in val": Case(
        "new", 3, f"D010]: {VAL}: token 65535 at position 299", "another", token(VAL, 299, 65535)
    ),
    "val is train": Case(
        "new", 3, f"D012]: {VAL} of validation has the same", "--val-tokens", lambda: shutil.copy(TRAIN, VAL)
    ),
    "val is a part of train": Case(
        "new",
        3,
        f"D012]: {VAL} of validation is a part of train: its tokens 200 to 499",
        "--val-tokens",
        lambda: write_shard(VAL, random_tokens(1000, 0)[200:500]),
    ),
    "short corpus": Case(
        "new", 3, "D013]: 12 tokens in all; one", "add data", lambda: write_shard(TRAIN, random_tokens(12, 0))
    ),
    "short validation": Case(
        "new", 3, "D013]: validation has 12 tokens in all", "add data", lambda: write_shard(VAL, random_tokens(12, 0))
    ),
    **{
        f"manifest names {name!r}": Case(
            "new --data.path p --model.vocab_size 128",
            3,
            "D014]: p/manifest.json names the file ",
            "trust",
            prepared(name),
        )
        for name in ("../../etc/passwd", "/etc/passwd", "..", "sub/x.bin", "a\\u001b[2J")
    },
    "shard is a link elsewhere": Case(
        "audit p", 3, "D014]: p/manifest.json names the file 'train_000000.bin'; it is a link", "trust", linked_shard
    ),
    # The sources of `prepare`.
    "parquet without text": Case(
        "prepare x.parquet --out o",
        3,
        "D020]: x.parquet: no column 'text'; its columns: a (",
        "strings",
        parquet(a=[1]),
    ),
    "text column that is none": Case(
        "prepare x.parquet --out o --text-column body",
        3,
        "D020]: x.parquet: no column 'body'; its columns: text (string)",
        "--text-column text",
        parquet(text=TEXTS),
    ),
    "column name with controls": Case(
        "prepare x.parquet --out o",
        3,
        r"D020]: x.parquet: no column 'text'; its columns: a\x1b[2J",
        "strings",
        parquet(**{f"a{ESC}": [1]}),
    ),
    "cut parquet": Case(
        "prepare x.parquet --out o", 3, "D021]: x.parquet is not parquet, or damaged", "fetch", cut_parquet
    ),
    "damaged parquet": Case(
        "prepare x.parquet --out o", 3, "D021]: x.parquet, row group 0, is not", "fetch", damaged_parquet
    ),
    "cut gzip": Case(
        "prepare x.txt.gz --out o",
        3,
        "D038]: x.txt.gz is damaged or cut off near byte ",
        "fetch",
        write("x.txt.gz", gzip.compress("".join(TEXTS).encode())[:-200]),
    ),
    "text that is not UTF-8": Case(
        "prepare x.txt --out o", 3, "D022]: x.txt is not UTF-8: ", "iconv", write("x.txt", b"ab\xff" * 99)
    ),
    "line that is not JSON": Case(
        "prepare x.jsonl --out o",
        3,
        "D037]: x.jsonl, line 3 (byte ",
        "fix or remove",
        write("x.jsonl", '{"text": "a"}\n\n{"text":}\n'),
    ),
    "no text at all": Case(
        "prepare x.txt --out o --tokenizer char",
        3,
        "D024]: no text in x.txt (1 empty",
        "other sources",
        write("x.txt", ""),
    ),
    "source missing": Case(f"prepare a{ESC}.txt --out o", 3, r"D023]: no file matches 'a\x1b[2J.txt'", "parquet"),
    "kind of file that is unknown": Case(
        "prepare x.docx --out o", 3, "D023]: x.docx: .docx files cannot", "parquet", write("x.docx", "x")
    ),
    # Checkpoints, forks and given weights.
    "data of another tokenizer": Case(
        "resume --data.path other",
        4,
        "K002]: 'runs/a' was started with another tokenizer: data (94d66dded144) → char-",
        "the run's tokenizer.json",
        other_data,
    ),
    "evaluate on data of another tokenizer": Case(
        "evaluate a --data other",
        4,
        "K002]: 'runs/a' was started with another tokenizer: data (",
        "tokenizer.json",
        other_data,
    ),
    "no valid checkpoint": Case(
        "sample a",
        4,
        "K003]: no checkpoint 'latest' in runs/a/checkpoints; there are: none",
        "train",
        damage_all_checkpoints,
        changes=("runs/a",),
    ),
    "no such checkpoint": Case(
        "sample a --step 7", 4, "K003]: no checkpoint '7' in runs/a/checkpoints; there are: 16, 20", "latest or best"
    ),
    "checkpoint name with controls": Case(
        f"sample a --step x{ESC}", 4, r"K003]: no checkpoint 'x\x1b[2J' in", "latest or best"
    ),
    "fork of another shape": Case(
        "fork --model.n_embd 64", 4, "K004]: the model of 'runs/a' has n_embd 32; the", "fork"
    ),
    "fork with another optimizer": Case(
        "fork --optim.optimizer muon", 4, "K004]: runs/a/checkpoints/20 does not have opt_state.", "config"
    ),
    "fork and given weights": Case(
        "fork --run.init_from ckpt.pt",
        2,
        "C083]: run.init_from = 'ckpt.pt' and --fork runs/a name different weights",
        "leave out",
        nanogpt_weights(1),
    ),
    **{
        f"given weights with {value}": Case(
            "new --run.init_from ckpt.pt",
            3,
            "D046]: ckpt.pt: transformer.h.0.mlp.c_fc.weight has values that are not finite",
            "another checkpoint",
            nanogpt_weights(value),
            ("--config", "gpt2_124m"),
        )
        for value in (np.nan, np.inf)
    },
    "no given weights": Case(
        "new --run.init_from ./none.pt", 2, "C081]: there are no weights './none.pt'", "nanoGPT's ckpt.pt"
    ),
    # Logs.
    "unknown log": Case(
        "diagnose l", 3, "D041]: the log 'l' has 2 lines, none of which", "nanoGPT", write("l", f"hello {ESC}\nworld\n")
    ),
    "empty log": Case("diagnose l", 3, "D041]: the log 'l' is empty", "nanoGPT", write("l", "")),
    "log of bytes": Case("diagnose l", 3, "D041]: the log 'l' has 1 line, none", "nanoGPT", write("l", bytes(9999))),
    "no log": Case("diagnose l", 3, "D043]: there is no run or log at 'l'", "there are the runs a"),
}


def listing(folder: Path) -> dict[str, int]:
    paths = [path for path in sorted(folder.rglob("*")) if path.name != ".lock"]
    return {str(path.relative_to(folder)): os.lstat(path).st_mtime_ns for path in paths}


def refuse(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command, which must end with the case's error and change nothing; returns what it wrote to stderr."""
    case.setup()
    capsys.readouterr()
    before = listing(folder)
    status = errors.run(cli.dispatch, case.argv())
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == case.status, err
    assert lines[0].startswith(f"error[{case.words}"), err
    assert lines[1].startswith("  help: "), err
    assert case.help in lines[1]
    assert len(lines) == 2
    assert "\x1b" not in out + err
    changed = {name for name, time in listing(folder).items() if before.get(name) != time}
    assert not {name for name in changed if not any(part in name for part in case.changes)}
    return err


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_what_to_do(
    finished: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    refuse(CASES[name], finished, capsys)
    assert not Path("pwned").exists()


def test_run_in_use_names_the_process(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_folder(finished).lock():
        refuse(
            Case("resume", 7, f"S001]: 'runs/a' is in use by pid {os.getpid()} on host", "--run.name NEW"),
            finished,
            capsys,
        )


def test_fork_does_not_read_the_given_weights_again(finished: Path) -> None:
    """The source is gone; the fork takes the network of the run that was started from it."""
    folder = run_folder(finished)
    folder.config_file.write_text(folder.config_file.read_text().replace('"init_from": ""', '"init_from": "gone.pt"'))
    config = tiny_config(finished, {"run.name": "new", "run.init_from": "gone.pt", "model.n_embd": 64})
    assert resolve_network(config, (), folder).model == folder.config().model
    with pytest.raises(ConfigError, match="C081"):
        resolve_network(config, ())


# --- warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "is_warned"), [(31, False), (32, True)])  # 62 windows, 8 in a step
def test_more_than_4_planned_epochs_are_a_warning(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    is_warned: bool,
) -> None:
    monkeypatch.setattr(TrainingSession, "evaluate", lambda _: crash())  # before the first step
    with pytest.raises(Crash):
        train.train(tiny_config(workspace, {"run.steps": steps}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    warning = "warning: more than 4 epochs are planned; repeated tokens have diminishing returns"
    assert lines == [warning] * is_warned


@pytest.mark.parametrize("seconds", [-10, 50, 3650])
def test_clock_that_went_backwards_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: int
) -> None:
    """During the run, and between two processes; a time server may correct it by less than a minute."""
    path = tmp_path / "log.jsonl"
    warning = (
        f"warning: the clock went backwards by 1 h 0 min since the last record of {path}: set this machine's clock, "
        "because dates in reports are wrong (training does not depend on it)"
    )
    now = 1e9
    monkeypatch.setattr("jaxgpt.runs.log.time.time", lambda: now)
    for _ in range(2):
        with RunLog(path) as log:
            log.write("save", step=1)
            assert capsys.readouterr().err.splitlines() == [warning] * (seconds > 60 and now < 1e9)
            now -= seconds
            log.write("save", step=2)
            log.write("save", step=3)
            assert capsys.readouterr().err.splitlines() == [warning] * (seconds > 60)
        now -= seconds


@pytest.mark.parametrize("time", ["null", '"x"', "NaN", "1e300", "true"])
def test_damaged_time_in_a_log_is_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str], time: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"kind": "save", "step": 1, "time": {time}}}\n')
    with RunLog(path) as log:
        log.write("save", step=2)
    assert capsys.readouterr().err == ""


# --- what is no file --------------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder_(path: Path) -> None:
    path.mkdir()


def itself(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nothing")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path))


KINDS = [fifo, device, folder_, itself, nowhere, unix_socket]
INPUT_FILES = {
    "training shard": ("new", TRAIN, "D015 D016"),
    "validation shard": ("new", VAL, "D015 D016"),
    "shard of an audit": ("audit data", TRAIN, "D015 D016"),
    "manifest": ("new", Path("data/manifest.json"), "D018"),
    "nanoGPT's shard": ("new", Path("data/train.bin"), "D015 D016"),
    "tokenizer of the data": ("new", Path("data/tokenizer.json"), "D015"),
    "tokenizer of prepare": ("prepare t.txt --out o --tokenizer x.json", Path("x.json"), "C026 D015"),
    "text": ("prepare x.txt --out o", Path("x.txt"), "D015 D023"),
    "parquet": ("prepare x.parquet --out o", Path("x.parquet"), "D015 D023"),
    "gzip": ("prepare x.txt.gz --out o", Path("x.txt.gz"), "D015 D023"),
    "config": ("budget --config x.py", Path("x.py"), "C001"),
    "config of diagnose": ("diagnose runs/a --config x.py", Path("x.py"), "C001"),
    "config to copy": ("init x.py", Path("x.py"), "C001"),
    "log": ("diagnose x.log", Path("x.log"), "D044 D045"),
    "nanoGPT's checkpoint": ("new --run.init_from x.pt", Path("x.pt"), "C081 D046"),
    "given weights": ("new --run.init_from m", Path("m/model.safetensors"), "D046"),
    "given index": ("new --run.init_from m", Path("m/model.safetensors.index.json"), "D046"),
    "given config": ("new --run.init_from m", Path("m/config.json"), "D046"),
    "prompt": ("sample a --prompt FILE:x.txt", Path("x.txt"), "S009"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", INPUT_FILES)
def test_what_is_no_file_is_refused_at_once(
    finished: Path, capsys: pytest.CaptureFixture[str], name: str, kind: Callable[[Path], None]
) -> None:
    command, path, codes = INPUT_FILES[name]
    write("t.txt", "".join(TEXTS))()
    if path.parent == Path("m"):
        write("m/config.json", MODEL_CONFIG)()
    path.unlink(missing_ok=True)
    kind(path)
    before = listing(finished)
    status = errors.run(cli.dispatch, Case(command, 0, "", "").argv())
    err = capsys.readouterr().err
    assert err.startswith(tuple(f"error[{code}]" for code in codes.split())), err
    assert status == errors.EXIT_STATUS[err[6]]
    assert err.splitlines()[1].startswith("  help: ")
    assert len(err.splitlines()) == 2
    assert listing(finished) == before


MODEL_CONFIG = """{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 64,
 "activation_function": "gelu", "tie_word_embeddings": true}"""
