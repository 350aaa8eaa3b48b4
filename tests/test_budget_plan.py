"""The whole plan, made through the command line, and its recommendations."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.manifests import write_manifest

from jaxgpt import budget, errors
from jaxgpt.budget import options, plan, query, recommend, to_json
from jaxgpt.budget.plan import Plan
from jaxgpt.budget.report import plan_report
from jaxgpt.config.files import load_config
from jaxgpt.utils import report as utils_report

Json = dict[str, Any]
pytestmark = pytest.mark.usefixtures("planner_workspace")


def planned(*argv: str) -> Plan:
    return plan.make_plan(options.read(["--config", "fineweb40m", *argv]).inputs)


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> Json:
    assert errors.run(budget.main, ["--config", "fineweb40m", *argv, "--json"]) == 0
    values: Json = json.loads(capsys.readouterr().out)
    return values


def test_the_reference_run(capsys: pytest.CaptureFixture[str]) -> None:
    values = document(capsys, "--config", "fineweb40m", "--gpu", "rtx4070", "--unique-tokens", "3.68e9")
    assert (values["model"]["parameters"], values["model"]["non_embedding_parameters"]) == (40_560_000, 21_243_264)
    last = values["rows"][-1]
    assert [row["total_steps"] for row in values["rows"]] == [6000, 10000, 15000, 20000]
    assert last["tokens"] == 10_485_760_000
    assert last["epochs"] == pytest.approx(2.85, abs=0.005)
    assert last["flops"] == pytest.approx(299_983_104 * 10_485_760_000)
    assert last["loss"] == pytest.approx(3.52, abs=0.05)
    assert last["loss_low"] < 3.53 < last["loss_high"]
    time = values["step_time"]
    assert time["nanogpt"]["seconds_low"] < 3.995 < time["nanogpt"]["seconds_high"]
    assert last["seconds"] > 20_000 * time["jaxgpt"]["seconds_per_step"]
    assert last["cost"] == pytest.approx(0.30 * last["energy_kwh"])
    assert values["memory"]["fits"] is True
    assert values["gains"]["double_model"]["nats"] == pytest.approx(0.193, abs=0.01)
    assert values["gains"]["double_steps"]["nats"] == pytest.approx(0.045, abs=0.006)
    assert values["gains"]["double_unique_data"]["nats"] == pytest.approx(0.002, abs=0.001)
    assert sum(last["loss_terms"].values()) == pytest.approx(last["loss"])


def test_every_json_field_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/budget.md names each top-level field and each field of a row."""
    values = document(capsys, "--hours", "20")
    text = (Path(__file__).parents[1] / "docs" / "budget.md").read_text()
    assert values["version"] == to_json.VERSION
    for name in [*values, *values["rows"][0], *values["model"], *values["memory"], *values["step_time"]["jaxgpt"]]:
        assert f"`{name}`" in text, name


def test_best_model_for_the_same_flops_is_at_the_ratio_limit() -> None:
    best = recommend.best_model(planned())
    assert best
    assert best.at_ratio_limit
    assert best.parameters == pytest.approx(158e6, rel=0.02)
    assert best.tokens == pytest.approx(2.7e9, rel=0.02)
    assert best.prediction.loss == pytest.approx(3.30, abs=0.02)
    assert best.parameters * best.tokens == pytest.approx(40.56e6 * 10_485_760_000, rel=1e-3)


def test_too_few_flops_have_no_best_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.best_model(planned("--config", "quickstart")) is None
    assert document(capsys, "--config", "quickstart")["recommendation"]["best_model"] is None


def test_useful_steps_end_where_gains_are_not_measurable() -> None:
    planned_run = planned()
    worth = recommend.useful_steps(planned_run)
    gain = [
        plan.predict_loss(planned_run.inputs, n).loss - plan.predict_loss(planned_run.inputs, round(1.1 * n)).loss
        for n in (worth, 2 * worth)
    ]
    assert gain[0] >= 0.98 * recommend.MEASURABLE_GAIN > gain[1]


def test_planned_early_stop_is_better_than_a_cut_off() -> None:
    planned_run = planned()
    early = recommend.early_stop(planned_run)
    assert early.total_steps == 15_000
    assert planned_run.last.loss < early.loss < early.loss_if_cut_off


def test_fewer_unique_tokens_never_help() -> None:
    pairs = recommend.unique_sensitivity(planned())
    assert [count for count, _ in pairs] == [0.92e9, 1.84e9, 3.68e9]
    losses = [loss for _, loss in pairs]
    assert losses == sorted(losses, reverse=True)


def test_claim_is_answered_with_what_it_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = document(capsys, "--claim", "2.5")["recommendation"]["sentences"][-1]
    assert "out of reach of this model at any length (limit 3.26)" in sentence
    tuned = ["--optim.learning-rate", "1.8e-3"]
    tokens = recommend.required_for_loss(40.56e6, planned().inputs.corpus, 3.5)
    assert "unique tokens" in tokens
    billions = float(tokens.removeprefix("needs ").split("B")[0])
    longer = planned("--lengths", str(round(billions * 1e9 / 524_288)), "--unique-tokens", "1e12", *tuned)
    assert longer.last.loss == pytest.approx(3.5, abs=0.005)
    assert "is expected of this run" in document(capsys, "--claim", "3.9")["recommendation"]["sentences"][-1]


def test_statements_about_fineweb40m_are_answered_as_in_the_docs() -> None:
    """The numbers of the example in docs/budget.md."""
    steps = ["6000", "10000", "15000", "20000"]
    planned_run = planned("--gpu", "RTX 4070", "--lengths", *steps, "--unique-tokens", "3.68e9")
    assert [round(row.loss, 2) for row in planned_run.rows] == [3.64, 3.59, 3.56, 3.54]
    for row, stated in zip(planned_run.rows, (3.1, 2.8, 2.65, 2.55), strict=True):
        assert row.loss_low > stated
    corpus = planned_run.inputs.corpus
    assert "limit 3.26" in recommend.required_for_loss(planned_run.model.parameters, corpus, 2.55)
    assert "3.8B parameters" in recommend.required_for_loss(planned_run.model.parameters, corpus, 2.55)
    assert planned_run.last.loss - 3.425 == pytest.approx(0.115, abs=0.005)
    more_data = planned("--lengths", str(round(15e9 / 524_288)), "--unique-tokens", "15e9")
    assert more_data.last.loss == pytest.approx(3.51, abs=0.005)
    six_nd = 6 * planned_run.model.parameters * planned_run.last.tokens
    assert (six_nd, planned_run.last.flops) == pytest.approx((2.55e18, 3.15e18), rel=0.002)
    device = planned_run.inputs.device
    assert device
    needed = [six_nd / 20_000 / seconds / 1e12 for seconds in (0.2, 0.15)]
    assert needed == pytest.approx([638, 851], abs=1)
    assert needed[0] > 10 * device.tflops
    assert planned_run.fit.memory.total / 2**30 == pytest.approx(3.9, abs=0.05)


def test_corpus_comes_from_the_config_or_the_option() -> None:
    assert planned().inputs.corpus.name == "fineweb"
    assert planned("--corpus", "FineWeb_Edu").inputs.corpus.name == "fineweb-edu"
    assert planned("--config", "quickstart").inputs.corpus.name == "unknown"
    shift = planned().last.loss - planned("--corpus", "fineweb-edu").last.loss
    assert planned().loss_on_other_corpora["fineweb-edu"] == pytest.approx(planned().last.loss - shift)


def test_a_folders_manifest_and_audit_say_how_many_tokens_differ(tmp_path: Path) -> None:
    write_manifest(tmp_path / "d", 3_000_000)
    assert planned("--data", "d").inputs.tokens.unique == 3_000_000
    audit = {"format": 1, "tokens": 3_000_000, "effective_unique_tokens": 1_000_000}
    (tmp_path / "d" / "audit.json").write_text(json.dumps(audit))
    planned_run = planned("--data", "d")
    assert planned_run.last.epochs == pytest.approx(10_485_760_000 / 1_000_000)
    assert "epochs" in " ".join(planned_run.warnings)


@pytest.mark.parametrize(
    "audit", ["", "[]", '{"tokens": 3}', '{"effective_unique_tokens": -1}', '{"effective_unique_tokens": true}']
)
def test_broken_audit_is_an_error_with_its_path(audit: str, tmp_path: Path) -> None:
    write_manifest(tmp_path / "d", 3_000_000)
    (tmp_path / "d" / "audit.json").write_text(audit)
    with pytest.raises(errors.ConfigError, match=r"audit\.json") as caught:
        planned("--data", "d")
    assert caught.value.code == "C047"


def test_nanogpt_files_are_counted_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(20_000))
    assert planned("--data", ".").inputs.tokens.unique == 10_000


def test_repeated_tokens_limit_the_recommended_length(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a small corpus the length with the lowest loss is recommended, and no goal asks for a longer run."""
    tokens = ["--gpu", "RTX 4070", "--unique-tokens", "23.5e6"]
    planned_run = planned(*tokens, "--lengths", "300", "500", "900", "2000")
    best = plan.best_steps(planned_run.inputs, 2000)
    lowest = min(planned_run.rows, key=lambda row: row.loss)
    assert (lowest.total_steps, best) == (900, pytest.approx(900, abs=50))
    assert recommend.recommend(planned_run).sentences[0].startswith(f"Train {best} steps (")
    one, twenty = (document(capsys, *tokens, "--hours", hours)["rows"][-1] for hours in ("1", "20"))
    assert twenty["loss"] <= one["loss"]
    assert twenty["epochs"] <= 20


def test_comments_of_a_config_do_not_influence_the_plan(tmp_path: Path) -> None:
    """Numbers and corpora in a config's docstring change nothing; the fields do."""
    text = (ROOT / "jaxgpt" / "config" / "presets" / "fineweb40m.py").read_text()
    comment = '"""A GPT-2 of 124M parameters on C4, about 0.10B unique tokens."""\n# corpus: c4\n'
    (tmp_path / "mine.py").write_text(comment + text[text.index("\nfrom jaxgpt") :])
    commented, original = planned("--config", "mine.py"), planned()
    assert commented.rows == original.rows
    assert (commented.inputs.corpus, commented.inputs.tokens) == (original.inputs.corpus, original.inputs.tokens)
    assert commented.warnings == original.warnings
    fields = ["--data.corpus", "c4", "--data.unique-tokens", "1e8"]
    inputs = planned("--config", "mine.py", *fields).inputs
    assert (inputs.corpus.name, inputs.tokens.unique) == ("c4", 1e8)


def test_plan_far_from_the_fit_has_a_wide_interval() -> None:
    planned_run = planned("--config", "quickstart", "--gpu", "4090")
    assert planned_run.last.loss_high - planned_run.last.loss_low > 1
    assert any("outside the scaling law's fitted range" in text for text in planned_run.warnings)


def test_more_steps_cost_more_and_reach_lower() -> None:
    rows = planned("--lengths", "1000", "4000", "16000", "64000").rows
    for above, below in itertools.pairwise(rows):
        assert below.loss < above.loss
        assert (below.seconds or 0) > (above.seconds or 0)
        assert below.gain_per_hour is not None
        hours = ((below.seconds or 0) - (above.seconds or 0)) / 3600
        assert below.gain_per_hour == pytest.approx((above.loss - below.loss) / hours)


def test_no_run_is_predicted_worse_than_guessing() -> None:
    row = planned("--config", "quickstart", "--lengths", "1").rows[0]
    assert row.loss == pytest.approx(math.log(load_config("quickstart").model.vocab_size))
    assert row.loss_high == pytest.approx(row.loss)
    assert sum(row.prediction.terms.values()) == pytest.approx(row.loss)


def test_huge_steps_are_planned_too(capsys: pytest.CaptureFixture[str]) -> None:
    values = document(capsys, "--data.micro-batch", "1e9", "--lengths", "5")
    assert values["memory"]["fits"] is False


def test_numbers_may_have_suffixes_and_separators() -> None:
    for text in ("3.68e9", "3.68B", "3,680,000,000", "3680m"):
        assert planned("--unique-tokens", text).inputs.tokens.unique == pytest.approx(3.68e9)


def test_evaluation_is_part_of_the_time() -> None:
    config = load_config("fineweb40m")
    often = config.replace({"run": {"eval_every": 10}})
    assert plan.run_seconds(often, 1000, 4.0) > plan.run_seconds(config, 1000, 4.0) > 4000


def test_plan_is_made_of_plain_values() -> None:
    planned_run = planned()
    assert dataclasses.is_dataclass(planned_run)
    report = plan_report(planned_run, recommend.recommend(planned_run))
    json.dumps(utils_report.to_json(report), allow_nan=False)


def test_unique_tokens_are_those_of_the_train_split(tmp_path: Path) -> None:
    text = {"effective_unique_tokens": 90, "splits": {"train": {"effective_unique_tokens": 70}}}
    (tmp_path / "audit.json").write_text(json.dumps(text))
    assert query._audited_tokens(tmp_path / "audit.json", "") == 70
