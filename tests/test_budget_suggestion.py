"""The suggested run for a folder of tokens: it suits data and device, and its command trains exactly it."""

import dataclasses
import shlex
from pathlib import Path

import pytest
from helpers.manifests import write_manifest

from jaxgpt.budget import memory, query, scaling_law, suggestion
from jaxgpt.budget.devices import DEVICES
from jaxgpt.budget.suggestion import Suggestion
from jaxgpt.config.command_line import parse_config
from jaxgpt.config.model_size import parameters
from jaxgpt.config.options import Parser

CARD = DEVICES["RTX 4070"]
CHARS, SHAKESPEARE, BOOKS, FINEWEB = (1_000_000, 65), (300_000, 50257), (23_500_000, 50257), (3_680_000_000, 50257)


def suggest(folder: Path, data: tuple[int, int], device: str | None) -> Suggestion:
    write_manifest(folder, *data)
    suggested = suggestion.suggest_run(folder, DEVICES[device] if device else None)
    assert suggested
    return suggested


@pytest.mark.parametrize("device", [None, "RTX 4070", "H100"])
@pytest.mark.parametrize("data", [CHARS, SHAKESPEARE, BOOKS, FINEWEB])
def test_suggested_run_suits_data_and_device(tmp_path: Path, data: tuple[int, int], device: str | None) -> None:
    suggested = suggest(tmp_path / "data", data, device)
    config = suggested.config
    assert 0 < suggested.epochs <= 20
    assert suggested.seconds <= (suggestion.GPU_SECONDS if device else suggestion.CPU_SECONDS)
    assert suggested.seconds_low < suggested.seconds < suggested.seconds_high
    assert config.model.vocab_size >= data[1]
    assert config.run.steps >= suggestion.search.MIN_STEPS
    tokens = config.run.steps * config.tokens_per_step
    assert tokens >= 14 * parameters(config.model) or config.model.n_embd == 128
    if device:
        assert memory.estimate(config).total <= DEVICES[device].usable * memory.GIB


@pytest.mark.parametrize("device", [None, "RTX 4070"])
def test_command_trains_exactly_the_suggestion(tmp_path: Path, device: str | None) -> None:
    suggested = suggest(tmp_path / "own data", CHARS, device)
    words = shlex.split(suggested.command())
    assert words[:4] == ["python", "-m", "jaxgpt.train", "--config"]
    assert parse_config(Parser("train", "test"), words[3:])[0] == suggested.config
    assert suggested.config.data.path == str(tmp_path / "own data")


def test_longer_or_shorter_runs_of_the_model_are_not_better(tmp_path: Path) -> None:
    """Without a limit of time the length is where the predicted loss is lowest, up to 20 epochs."""
    suggested = suggest(tmp_path / "data", SHAKESPEARE, "H100")
    config = suggested.config
    corpus = scaling_law.CORPORA["unknown"]

    def loss(steps: int) -> float:
        asked = query.build_query(config, steps, corpus, SHAKESPEARE[0])
        return scaling_law.predict_loss(dataclasses.replace(asked, ceiling=99.0)).loss

    chosen = loss(config.run.steps)
    others = [loss(steps) for steps in range(10, int(20 * SHAKESPEARE[0] / config.tokens_per_step), 10)]
    assert chosen <= min(others) + 2 * suggestion.CLOSE


def test_more_data_gets_a_larger_model(tmp_path: Path) -> None:
    sizes = [parameters(suggest(tmp_path / "data", data, "RTX 4070").config.model) for data in (BOOKS, FINEWEB)]
    assert sizes[0] < 0.5 * sizes[1]


def test_corpus_and_loss_come_from_the_manifest(tmp_path: Path) -> None:
    known = suggest(tmp_path / "fineweb", FINEWEB, "H100")
    assert known.config.data.corpus == "fineweb"
    assert known.loss
    assert f"{known.loss.loss:.2f}" in known.sentence()
    unknown = suggest(tmp_path / "letters", CHARS, None)
    assert (unknown.config.data.corpus, unknown.loss) == ("", None)
    assert "this CPU" in unknown.sentence()


def test_too_little_data_gets_no_suggestion(tmp_path: Path) -> None:
    write_manifest(tmp_path, 500, 65)
    assert suggestion.suggest_run(tmp_path, CARD) is None
