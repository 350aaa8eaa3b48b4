"""Evaluation: the same windows every time, each of them once, and an error bar that is right."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.training import (
    STEPS,
    VOCABULARY,
    arguments,
    copy_workspace,
    random_tokens,
    records,
    run_folder,
    tiny_config,
    write_shard,
    write_tokens,
)

from jaxgpt import errors, evaluate, train
from jaxgpt.data import dataset
from jaxgpt.data.dataset import Split
from jaxgpt.prepare.pipeline import prepare
from jaxgpt.training import batches as data
from jaxgpt.training import optimizer as optim
from jaxgpt.training import step
from jaxgpt.training.evaluator import Evaluator
from jaxgpt.training.loaded_model import resolve_auto
from jaxgpt.training.mesh import make_mesh
from jaxgpt.training.records import Scores

BLOCK = 16


def windows(workspace: Path, split: Split, **changes: Any) -> list[bytes]:
    """The windows that an evaluation of `split` counts, in its order."""
    config = tiny_config(workspace, {name.replace("__", "."): value for name, value in changes.items()})
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    with data.evaluation_batches(config, split, mesh, VOCABULARY) as batches:
        rows = [row.tobytes() for block in batches for row in np.asarray(block).reshape(-1, BLOCK + 1)]
    return rows[: data.evaluation_windows(config, split)]


def scores(workspace: Path, **changes: Any) -> Scores:
    """A new model's scores on `workspace`/data."""
    config = tiny_config(workspace, {name.replace("__", "."): value for name, value in changes.items()})
    mesh = make_mesh(config.mesh, config.data.micro_batch)
    config = resolve_auto(config, mesh)
    state = step.init_state(config, optim.make_optimizer(config))
    return Evaluator(config, dataset.open_folder(config.data.path), mesh, step.model_graphdef(config.model))(
        state.params
    )


# --- which windows ---------------------------------------------------------------------------------------------------


def test_windows_do_not_depend_on_batch_size_seed_or_order(workspace: Path) -> None:
    train_split = dataset.open_folder(workspace / "data").train
    first = windows(workspace, train_split)
    assert len(first) == 256 // BLOCK
    for changes in (
        {"data__micro_batch": 2},
        {"data__micro_batch": 6},
        {"data__micro_batch": 64},
        {"data__accum": 1, "data__seed": 5, "run__seed": 5},
        {"data__order": "random", "data__prefetch_buffers": 3},
    ):
        assert windows(workspace, train_split, **changes) == first


def test_windows_are_spread_over_the_split(workspace: Path) -> None:
    train_split = dataset.open_folder(workspace / "data").train
    all_tokens = train_split.ids(0, train_split.tokens).tobytes()
    positions = [all_tokens.find(window) // 2 for window in windows(workspace, train_split)]
    assert len(set(positions)) == 16
    assert min(positions) < train_split.tokens / 4
    assert max(positions) > train_split.tokens * 3 / 4


@pytest.mark.parametrize("micro_batch", [2, 8, 64])
def test_small_split_counts_each_window_once(workspace: Path, micro_batch: int) -> None:
    val = dataset.open_folder(workspace / "data").val
    assert val is not None
    counted = windows(workspace, val, run__eval_tokens=10**9, data__micro_batch=micro_batch)
    assert len(counted) == val.windows(BLOCK) == len(set(counted))


def test_scores_do_not_depend_on_the_batch_size(workspace: Path) -> None:
    one, other = (scores(workspace, data__micro_batch=size, run__eval_tokens=10**9) for size in (2, 12))
    assert one.train.windows == other.train.windows == 62
    assert one.val is not None
    assert other.val is not None
    assert one.val.windows == other.val.windows == 18
    for left, right in ((one.train, other.train), (one.val, other.val)):
        assert left.loss == pytest.approx(right.loss, rel=1e-6)
        assert left.standard_error == pytest.approx(right.standard_error, rel=1e-4)


def test_standard_error_matches_the_spread_of_means(workspace: Path) -> None:
    scores_by_seed = []
    for seed in range(12):
        write_tokens(workspace / "data", train=1100, val=0, seed=10 + seed)
        (workspace / "data/val_000000.bin").unlink(missing_ok=True)
        scores_by_seed.append(scores(workspace, run__eval_tokens=10**9).train)
    scatter = np.std([score.loss for score in scores_by_seed], ddof=1)
    reported = np.mean([score.standard_error for score in scores_by_seed])
    assert 0.5 < reported / scatter < 2


def test_dropout_is_off(workspace: Path) -> None:
    assert scores(workspace, model__dropout=0.9) == scores(workspace, model__dropout=0.0)


def test_uniform_logits_cost_the_log_of_the_vocabulary(workspace: Path) -> None:
    """Uniform logits cost ln 64 nats per token, whatever the text."""
    config = resolve_auto(tiny_config(workspace), make_mesh(tiny_config(workspace).mesh, 4))
    mesh = make_mesh(config.mesh, 4)
    state = step.init_state(config, optim.make_optimizer(config))
    zeros = jax.tree.map(lambda leaf: leaf * 0, state.params)
    result = Evaluator(config, dataset.open_folder(workspace / "data"), mesh, step.model_graphdef(config.model))(zeros)
    assert result.main.loss == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert result.main.standard_error == pytest.approx(0, abs=1e-6)


def test_bits_per_byte_count_the_bytes_of_the_text(workspace: Path) -> None:
    for number in range(30):
        (workspace / f"text{number:02d}.txt").write_text(f"Number {number} says é and more. " * 20, encoding="utf-8")
    prepare([str(workspace / "*.txt")], workspace / "words", train_tokenizer=300, val_tokens=1000)
    tokens = dataset.open_folder(workspace / "words")
    result = scores(workspace, data__path=str(workspace / "words"), model__vocab_size=300)
    assert result.val is not None
    assert tokens.val is not None
    assert tokens.val.bytes is not None
    expected = result.val.loss / math.log(2) * tokens.val.tokens / tokens.val.bytes
    assert result.val.bits_per_byte == pytest.approx(expected)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated_often(tmp_path_factory: pytest.TempPathFactory, xla_cache: Path) -> Path:
    workspace = tmp_path_factory.mktemp("evaluated")
    write_tokens(workspace / "data")
    assert errors.run(train.main, arguments(workspace, {"run.eval_every": 4})) == 0
    return workspace


@pytest.fixture
def trained(evaluated_often: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_workspace(evaluated_often, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LINE = r"step {}: {} loss (\d+\.\d{{4}}) ± (\d+\.\d{{4}})\n"


def test_command_prints_the_losses_of_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = {record["step"]: record for record in records(run_folder(trained), "eval")}
    best = min((s for s in evaluations if s), key=lambda s: evaluations[s]["val_loss"])
    for argv, number in ((["a"], STEPS), (["runs/a", "--step", "best"], best), (["a", "--step", str(best)], best)):
        assert errors.run(evaluate.main, argv) == 0
        out, err = capsys.readouterr()
        match = re.fullmatch(LINE.format(number, "train") + LINE.format(number, "val"), out)
        assert match, out
        assert err == ""
        assert float(match[1]) == pytest.approx(evaluations[number]["train_loss"], abs=2e-4)
        assert float(match[3]) == pytest.approx(evaluations[number]["val_loss"], abs=2e-4)


def test_json_has_the_numbers_of_the_log(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(evaluate.main, ["a", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    logged = records(run_folder(trained), "eval")[-1]
    assert (values["run"], values["step"]) == ("runs/a", STEPS)
    for name in ("train_loss", "train_standard_error", "val_loss", "val_standard_error"):
        assert values[name] == pytest.approx(logged[name], abs=1e-5)


def test_command_works_when_the_data_has_moved(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(trained / "data", trained / "moved")
    assert errors.run(evaluate.main, ["a"]) == 3
    err = capsys.readouterr().err
    assert f"error[D002]: no token shards in '{trained}/data'" in err
    assert "help: --data DIR names their folder, if they were moved" in err
    assert errors.run(evaluate.main, ["a", "--data", "moved", "--tokens", "64"]) == 0
    assert "val loss" in capsys.readouterr().out


def test_command_refuses_what_does_not_belong_to_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens(trained / "other")
    tokenizer = trained / "other/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"?"', '"other"'))
    cases = {
        ("b",): (2, "error[C024]: no run in 'b'"),
        ("a", "--step", "7"): (4, "error[K003]: no checkpoint '7' in "),
        ("a", "--data", "other"): (
            4,
            "error[K002]: 'runs/a' was started with another tokenizer: data (",
        ),
        ("a", "--tokens", "0"): (2, "error[C009]: run.eval_tokens = 0; must be 1 or more"),
        ("a", "--tokens", "many"): (2, "error[C006]: argument --tokens: invalid int value: 'many'"),
        (): (2, "error[C006]: the following arguments are required: run"),
    }
    for argv, (status, words) in cases.items():
        assert errors.run(evaluate.main, argv) == status
        err = capsys.readouterr().err
        assert err.startswith(words), err
        assert "Traceback" not in err


def test_tokens_outside_the_vocabulary_are_an_error(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = random_tokens(300, 1)
    tokens[:] = 64
    write_shard(trained / "data/val_000000.bin", tokens)
    assert errors.run(evaluate.main, ["a", "--data", "data"]) == 3
    assert "error[D010]" in capsys.readouterr().err
