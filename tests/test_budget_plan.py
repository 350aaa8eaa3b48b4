"""The plan as a whole, through the command line's own road, and what it recommends."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from jaxgpt import budget, errors
from jaxgpt.budget import claims, names, options, plan, query, recommend
from jaxgpt.budget import to_json as schema
from jaxgpt.budget.plan import Plan
from jaxgpt.config.files import load_config

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests' machine may have a card and results of its own."""
    monkeypatch.setattr("jaxgpt.budget.devices.local_gpu", lambda: None)
    monkeypatch.setattr("jaxgpt.budget.step_time.measured", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def planned(*argv: str) -> Plan:
    return plan.plan(options.read(["--config", "fineweb40m", *argv]).inputs)


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> Json:
    assert errors.run(budget.main, ["--config", "fineweb40m", *argv, "--json"]) == 0
    found: Json = json.loads(capsys.readouterr().out)
    return found


def test_the_reference_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--config", "fineweb40m", "--gpu", "rtx4070", "--unique-tokens", "3.68e9")
    assert (found["model"]["parameters"], found["model"]["non_embedding_parameters"]) == (40_560_000, 21_243_264)
    last = found["rows"][-1]
    assert [row["max_iters"] for row in found["rows"]] == [6000, 10000, 15000, 20000]
    assert last["tokens"] == 10_485_760_000
    assert last["epochs"] == pytest.approx(2.85, abs=0.005)
    assert last["flops"] == pytest.approx(299_983_104 * 10_485_760_000)
    assert last["loss"] == pytest.approx(3.52, abs=0.05)
    assert last["loss_low"] < 3.53 < last["loss_high"]
    pace = found["pace"]
    assert pace["nanogpt"]["seconds_low"] < 3.995 < pace["nanogpt"]["seconds_high"]
    assert last["seconds"] > 20_000 * pace["jaxgpt"]["seconds_per_step"]
    assert last["cost"] == pytest.approx(0.30 * last["energy_kwh"])
    assert found["memory"]["fits"] is True
    assert found["gains"]["double_model"]["nats"] == pytest.approx(0.193, abs=0.01)
    assert found["gains"]["double_steps"]["nats"] == pytest.approx(0.045, abs=0.006)
    assert found["gains"]["double_unique_data"]["nats"] == pytest.approx(0.002, abs=0.001)
    assert sum(last["loss_terms"].values()) == pytest.approx(last["loss"])


def test_every_field_of_the_document_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/budget.md names each top-level field and each field of a row."""
    found = document(capsys, "--hours", "20")
    text = (Path(__file__).parents[1] / "docs" / "budget.md").read_text()
    assert found["version"] == schema.VERSION
    for name in [*found, *found["rows"][0], *found["model"], *found["memory"], *found["pace"]["jaxgpt"]]:
        assert f"`{name}`" in text, name


def test_the_best_model_for_the_same_flops_lies_on_the_bound_of_the_fitted_range() -> None:
    best = recommend.best_model(planned())
    assert best
    assert best.bound
    assert best.parameters == pytest.approx(168e6, rel=0.02)
    assert best.tokens == pytest.approx(2.5e9, rel=0.02)
    assert best.expectation.loss == pytest.approx(3.27, abs=0.02)
    assert best.parameters * best.tokens == pytest.approx(40.56e6 * 10_485_760_000, rel=1e-6)


def test_flops_too_few_for_the_fitted_range_have_no_best_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.best_model(planned("--config", "quickstart")) is None
    assert document(capsys, "--config", "quickstart")["recommendation"]["best_model"] is None


def test_worth_is_where_a_tenth_more_steps_brings_less_than_one_run_can_show() -> None:
    found = planned()
    worth = recommend.worth_iters(found)
    gain = [
        plan.predict_loss(found.inputs, n).loss - plan.predict_loss(found.inputs, round(1.1 * n)).loss
        for n in (worth, 2 * worth)
    ]
    assert gain[0] >= 0.98 * recommend.MEASURABLE_GAIN > gain[1]


def test_stopping_early_is_better_planned_than_cut_off() -> None:
    found = planned()
    iters, annealed, cut = recommend.stop_early(found)
    assert iters == 15_000
    assert found.last.loss < annealed < cut


def test_fewer_different_tokens_never_help() -> None:
    pairs = recommend.sensitivity(planned())
    assert [count for count, _ in pairs] == [1e9, 1.5e9, 3.68e9]
    losses = [loss for _, loss in pairs]
    assert losses == sorted(losses, reverse=True)


def test_a_claim_is_told_what_it_would_need(capsys: pytest.CaptureFixture[str]) -> None:
    said = document(capsys, "--claim", "2.5")["recommendation"]["sentences"][-1]
    assert "out of reach of this model at any length (floor 3.26)" in said
    tokens = recommend.needed(planned(), 3.5)
    assert "different tokens" in tokens
    billions = float(tokens.removeprefix("takes ").split("B")[0])
    longer = planned("--iters", str(round(billions * 1e9 / 524_288)), "--unique-tokens", "1e12")
    assert longer.last.loss == pytest.approx(3.5, abs=0.005)
    assert "is expected of this run" in document(capsys, "--claim", "3.9")["recommendation"]["sentences"][-1]


def test_the_earlier_claims_are_found_wanting() -> None:
    found = {claim.claim: claim for claim in claims.compare(planned())}
    assert len(found) == 10
    assert "11 times the card's peak" in found["0.15–0.2 s per iteration are possible"].verdict
    assert "22.2 h" in found["20,000 iterations take 15–20 hours"].here
    assert "638–851 TFLOP/s" in found["0.15–0.2 s per iteration are possible"].here
    assert "2.55e+18" in found["the run is 2,550 PFLOP = 2.55 × 10¹⁵ FLOPs"].here
    assert "0.11 short" in found["it beats GPT-2 124M"].verdict
    too_low = [claim for claim in found.values() if "too low" in claim.verdict]
    assert len(too_low) == 5


def test_the_corpus_is_taken_from_the_config_and_can_be_given() -> None:
    assert planned().inputs.corpus.name == "fineweb"
    assert planned("--corpus", "FineWeb_Edu").inputs.corpus.name == "fineweb-edu"
    assert planned("--config", "quickstart").inputs.corpus.name == "unknown"
    shift = planned().last.loss - planned("--corpus", "fineweb-edu").last.loss
    assert planned().elsewhere["fineweb-edu"] == pytest.approx(planned().last.loss - shift)


def write_manifest(folder: Path, tokens: int) -> None:
    shard = {"name": "train_000000.bin", "tokens": tokens, "xxh3_128": "0" * 32}
    split = {"documents": 1, "tokens": tokens, "bytes": 4 * tokens, "max_token": 9, "shards": [shard]}
    entry = {"name": "gpt2", "fingerprint": "0" * 64, "file": "tokenizer.json", "vocab_size": 50257, "eot": 50256}
    settings = {"train_tokenizer": 0, "val_tokens": 0, "text_column": None, "shard_tokens": 100}
    whole = {"format": 1, "tool": "t", "tokenizer": entry, "eot_position": "appended", "dtype": "uint16"}
    whole |= {"splits": {"train": split}, "settings": settings, "sources": []}
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(whole))


def test_a_folders_manifest_and_audit_say_how_many_tokens_differ(tmp_path: Path) -> None:
    write_manifest(tmp_path / "d", 3_000_000)
    assert planned("--data", "d").inputs.tokens.unique == 3_000_000
    audit = {"format": 1, "tokens": 3_000_000, "effective_unique_tokens": 1_000_000}
    (tmp_path / "d" / "audit.json").write_text(json.dumps(audit))
    found = planned("--data", "d")
    assert found.last.epochs == pytest.approx(10_485_760_000 / 1_000_000)
    assert "epochs" in " ".join(found.warnings)


@pytest.mark.parametrize(
    "audit", ["", "[]", '{"tokens": 3}', '{"effective_unique_tokens": -1}', '{"effective_unique_tokens": true}']
)
def test_a_broken_audit_is_an_error_with_its_place(audit: str, tmp_path: Path) -> None:
    write_manifest(tmp_path / "d", 3_000_000)
    (tmp_path / "d" / "audit.json").write_text(audit)
    with pytest.raises(errors.ConfigError, match=r"audit\.json") as caught:
        planned("--data", "d")
    assert caught.value.code == "C047"


def test_nanogpts_files_are_counted_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(20_000))
    assert planned("--data", ".").inputs.tokens.unique == 10_000


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gpt-125m", "", "125M"),
        ("run", '"""A GPT-2 of 125M parameters."""', "125M"),
        ("run", "# GPT-2 125M on one card", "125M"),
        ("run", "config = small  # a 1.5B model", "1.5B"),
        ("fineweb40m", '"""A GPT-2 of 40.56M parameters on 10.5B tokens."""', ""),
        ("run", "about 3.68B unique tokens, 124 steps", ""),
    ],
)
def test_a_config_that_states_another_size_is_told_so(name: str, text: str, said: str) -> None:
    found = names.size_warnings(name, text, load_config("fineweb40m"))
    assert len(found) == bool(said)
    assert not said or (said in found[0] and "40.56M" in found[0])


@pytest.mark.parametrize("name", ["quickstart", "books", "fineweb40m", "fineweb40m_modern", "gpt2_124m"])
def test_no_config_of_ours_is_told_so(name: str) -> None:
    inputs = options.read(["--config", name]).inputs
    assert names.size_warnings(inputs.name, inputs.text, inputs.config) == []


def test_a_question_far_outside_the_fit_gets_a_wide_interval_and_a_warning() -> None:
    found = planned("--config", "quickstart", "--gpu", "4090")
    assert found.last.loss_high - found.last.loss_low > 1
    assert any("outside the law's fitted range" in text for text in found.warnings)


def test_more_steps_cost_more_and_reach_lower() -> None:
    rows = planned("--iters", "1000", "4000", "16000", "64000").rows
    for above, below in itertools.pairwise(rows):
        assert below.loss < above.loss
        assert (below.seconds or 0) > (above.seconds or 0)
        assert below.gain_per_hour is not None
        hours = ((below.seconds or 0) - (above.seconds or 0)) / 3600
        assert below.gain_per_hour == pytest.approx((above.loss - below.loss) / hours)


def test_no_run_is_expected_to_end_worse_than_guessing() -> None:
    row = planned("--config", "quickstart", "--iters", "1").rows[0]
    assert row.loss == pytest.approx(math.log(4096))
    assert row.loss_high == pytest.approx(row.loss)
    assert sum(row.expectation.terms.values()) == pytest.approx(row.loss)


def test_a_step_that_holds_more_than_a_claim_is_planned_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--data.micro-batch", "1e9", "--iters", "5", "--compare-claims")
    assert found["memory"]["fits"] is False


def test_numbers_are_read_as_people_write_them() -> None:
    for text in ("3.68e9", "3.68B", "3,680,000,000", "3680m"):
        assert planned("--unique-tokens", text).inputs.tokens.unique == pytest.approx(3.68e9)


def test_evaluation_is_part_of_the_time() -> None:
    config = load_config("fineweb40m")
    often = config.replace({"run": {"eval_every": 10}})
    assert plan.duration(often, 1000, 4.0) > plan.duration(config, 1000, 4.0) > 4000


def test_the_plan_is_made_of_plain_values() -> None:
    found = planned()
    assert dataclasses.is_dataclass(found)
    assert query.stated_tokens("about 3.68B unique tokens") == 3.68e9
    json.dumps(schema.document(found, recommend.recommend(found)), allow_nan=False)


def test_unique_tokens_are_those_of_train(tmp_path: Path) -> None:
    text = {"effective_unique_tokens": 90, "splits": {"train": {"effective_unique_tokens": 70}}}
    (tmp_path / "audit.json").write_text(json.dumps(text))
    assert query._audited(tmp_path / "audit.json") == 70
