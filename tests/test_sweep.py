"""Sweeps: their grid, their folder, what they report, and the mistakes that they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import RATES, sweep_folder, write_tiny_config
from helpers.training import tiny_config

from jaxgpt.config import Config
from jaxgpt.config.files import load_config, write_config
from jaxgpt.errors import CheckpointError, ConfigError
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import RunLog, StopReason
from jaxgpt.sweep import command, main
from jaxgpt.sweep.grid import Trial, Varied, make_trials, parse_vary
from jaxgpt.sweep.report import build_report
from jaxgpt.sweep.results import Outcome, Point, ranked_points, read_outcome
from jaxgpt.sweep.transfer import transfer_rate
from jaxgpt.utils.report import Report, html_page


@pytest.mark.parametrize(
    ("text", "label", "values"),
    [
        ("optim.learning_rate=1e-3,3e-3", "optim.learning_rate", (0.001, 0.003)),
        ("learning_rate=1e-4..1e-2:3", "optim.learning_rate", (0.0001, 0.001, 0.01)),
        ("n_layer=2..8:3", "model.n_layer", (2, 4, 8)),
        ("max_iters=1k,2k,1000", "run.steps", (1000, 2000)),
        ("optim.optimizer=adamw,muon", "optim.optimizer", ("adamw", "muon")),
        ("model.bias=true,false", "model.bias", (True, False)),
        ("optim.decay_steps=none,50", "optim.decay_steps", (None, 50)),
        ("data.sources=a.txt,b.txt", "data.sources", (("a.txt",), ("b.txt",))),
    ],
)
def test_values_of_a_field(text: str, label: str, values: tuple[Any, ...]) -> None:
    assert parse_vary(text) == (label, values)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("optim.lerning_rate=1", "C005", "did you mean 'optim.learning_rate'?"),
        ("learning_rate", "C070", "has no values"),
        ("learning_rate=1e-2..1e-3:3", "C070", "0 < LOW < HIGH"),
        ("learning_rate=0..1e-3:3", "C070", "0 < LOW < HIGH"),
        ("learning_rate=1e-3..1e-2:1", "C070", "2 to 1000 values"),
        ("run.name=a,b", "C070", "a name of its own"),
    ],
)
def test_a_field_that_cannot_be_varied(text: str, code: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_vary(text)
    assert error.value.code == code
    assert words in str(error.value)


def test_trials_are_every_combination_with_every_seed(tmp_path: Path) -> None:
    optimizers = Varied("optim.optimizer", ("adamw", "muon"))
    trials = make_trials(tiny_config(tmp_path), [RATES, optimizers], 2, tmp_path / "s")
    assert len({trial.name for trial in trials}) == 8
    assert trials[3].name == "learning_rate-0.003-optimizer-muon-seed1338"
    assert trials[3].values == (0.003, "muon")
    config = trials[3].config
    assert (config.optim.learning_rate, config.optim.optimizer) == (0.003, "muon")
    assert (config.run.seed, config.data.seed, config.run.dir) == (1338, 1338, str(tmp_path / "s"))


def test_the_final_rate_keeps_its_ratio_to_the_peak(tmp_path: Path) -> None:
    base = tiny_config(tmp_path)  # 1e-2 to 1e-3
    rates = Varied("optim.learning_rate", (0.0001,))
    assert make_trials(base, [rates], 1, tmp_path)[0].config.optim.min_lr == 0.00001
    with pytest.raises(ConfigError, match="is above"):
        make_trials(base, [rates], 1, tmp_path, scale_min_lr=False)
    finals = Varied("optim.min_lr", (0.0, 0.00002))
    trials = make_trials(base, [rates, finals], 1, tmp_path)
    assert [trial.config.optim.min_lr for trial in trials] == [0.0, 0.00002]


def test_names_of_trials_are_distinct_folder_names(tmp_path: Path) -> None:
    values = ("data/a b", "data/a_b", "x" * 200, "x" * 201)
    trials = make_trials(tiny_config(tmp_path), [Varied("data.path", values)], 1, tmp_path)
    assert len({trial.name for trial in trials}) == 4


def test_a_sweep_may_get_values_and_seeds(tmp_path: Path) -> None:
    first = sweep_folder(tmp_path)
    with first.open():
        first.stopped["a"] = Outcome(note="stopped at step 5", forecast=4.0)
        first.write()
    more = Varied("optim.learning_rate", (0.001, 0.003, 0.01))
    second = sweep_folder(tmp_path, more, 2, **{"run.log_every": 5})
    with second.open():
        assert second.stopped == first.stopped
    assert json.loads(second.state_file.read_text())["seeds"] == 2


@pytest.mark.parametrize(
    ("varied", "changes", "words"),
    [
        (Varied("optim.learning_rate", (0.003,)), {}, "it has optim.learning_rate 0.01"),
        (Varied("optim.beta1", (0.9,)), {}, "it varies optim.learning_rate"),
        (RATES, {"optim.beta2": 0.99}, "optim.beta2 0.95 → 0.99"),
    ],
)
def test_a_sweep_with_other_settings_is_refused(
    tmp_path: Path, varied: Varied, changes: dict[str, Any], words: str
) -> None:
    with sweep_folder(tmp_path).open():
        before = sweep_folder(tmp_path).state_file.read_bytes()
    with pytest.raises(CheckpointError, match="K006") as error, sweep_folder(tmp_path, varied, **changes).open():
        pass
    assert words in error.value.message
    assert sweep_folder(tmp_path).state_file.read_bytes() == before


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path)
    folder.path.mkdir()
    (folder.path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a sweep's folder"), folder.open():
        pass
    (folder.path / "config.json").unlink()
    folder.state_file.write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"), folder.open():
        pass


def write_trial_log(config: Config, losses: dict[int, float], reason: StopReason | None) -> None:
    folder = RunFolder.from_config(config)
    folder.path.mkdir(parents=True)
    log = RunLog(folder.log_file)
    for step, loss in losses.items():
        log.write("step", step=step - 1, loss=loss, seconds=0.5)
        log.write("eval", step=step, train_loss=loss, val_loss=loss, val_standard_error=0.01)
    if reason:
        log.write("stop", reason=reason.kind, detail=reason.detail)
    log.close()


def test_the_outcome_of_a_trial_is_in_its_log(tmp_path: Path) -> None:
    reasons = [StopReason("done"), StopReason("N001"), StopReason("Stopped"), StopReason("early-stop", "why"), None]
    outcomes = []
    for number, reason in enumerate(reasons):
        config = tiny_config(tmp_path, {"run.name": f"run{number}"})
        write_trial_log(config, {10: 4.5, 20: 4.0}, reason)
        outcomes.append(read_outcome(Trial((), config)))
    assert outcomes[0] == Outcome(4.0, 0.01)
    assert outcomes[1] == Outcome(note="diverged: not finite at step 19")
    assert outcomes[2] is None
    assert outcomes[3] == Outcome(4.0, 0.01, "ended early at step 20")
    assert outcomes[4] is None
    assert read_outcome(Trial((), tiny_config(tmp_path))) is None


def points_of(losses: dict[float, list[float | None]], folder: Path) -> list[Point]:
    """Finished trials at each learning rate; None is a trial that the sweep stopped."""
    rates = Varied("optim.learning_rate", tuple(losses))
    seeds = len(next(iter(losses.values())))
    trials = make_trials(tiny_config(folder), [rates], seeds, folder / "s")
    flat = [loss for values in losses.values() for loss in values]
    outcomes = {
        trial.name: Outcome(note="stopped", forecast=6.0) if loss is None else Outcome(loss, 0.01)
        for trial, loss in zip(trials, flat, strict=True)
    }
    return ranked_points(trials, outcomes)


def test_the_mean_over_seeds_counts_and_all_must_finish(tmp_path: Path) -> None:
    points = points_of({0.001: [4.0, None, 4.1], 0.003: [4.0, 4.2, 4.4], 0.01: [4.1, 4.1, 4.1]}, tmp_path)
    assert [point.values for point in points] == [(0.01,), (0.003,), (0.001,)]
    assert (points[1].loss, points[1].standard_error) == pytest.approx((4.2, 0.2 / 3**0.5))
    assert (points[2].loss, points[2].note) == (None, "stopped")


def report_of(losses: dict[float, list[float | None]], folder: Path) -> Report:
    rates = Varied("optim.learning_rate", tuple(losses))
    write_config(tiny_config(folder), folder / "tiny.py")
    return build_report("s", str(folder / "tiny.py"), [rates], points_of(losses, folder))


def summary_of(losses: dict[float, list[float | None]], folder: Path) -> str:
    return " ".join(report_of(losses, folder).summary)


def test_the_page_has_the_table_figures_and_the_command(tmp_path: Path) -> None:
    page = html_page(report_of({0.003: [4.3], 0.001: [4.5], 0.01: [None]}, tmp_path))
    assert page.count("<figure") == 2
    assert "2 of 3 settings finished" in page
    assert all(text in page for text in (">stopped</td>", ">4.3000</td>", ">--optim.learning-rate<", ">s-best<"))


def test_the_first_sentence_compares_the_gain_with_the_noise(tmp_path: Path) -> None:
    text = summary_of({0.001: [4.5], 0.003: [4.4], 0.01: [4.6]}, tmp_path)
    assert text.startswith(
        "The best: optim.learning_rate 0.003, with a loss of 4.4000 ± 0.0100 (standard error of the evaluation), "
        "0.1000 lower than the next (optim.learning_rate 0.001), which is 7.1 times the standard error of the "
        "difference."
    )
    assert "--seeds 3" in text
    text = summary_of({0.001: [4.5, 4.7], 0.003: [4.4, 4.7]}, tmp_path)
    assert "over 2 seeds" in text
    assert "within the noise" in text
    assert "--seeds" not in text


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({0.001: [4.5], 0.003: [4.4], 0.01: [4.3]}, "0.01 is the largest value of the sweep"),
        ({0.001: [4.2], 0.003: [4.4], 0.01: [4.3]}, "add 0.0003;"),
        ({0.001: [4.5], 0.01: [4.3]}, "add 0.1;"),
        ({1.0: [4.5], 5.0: [4.3]}, "beyond it."),  # 25 is not a learning rate
    ],
)
def test_a_best_value_at_the_edge_names_the_next(
    tmp_path: Path, losses: dict[float, list[float | None]], words: str
) -> None:
    assert words in summary_of(losses, tmp_path)


def test_a_best_value_inside_the_range_needs_no_other(tmp_path: Path) -> None:
    assert "value of the sweep" not in summary_of({0.001: [4.5], 0.003: [4.3], 0.01: [4.4]}, tmp_path)


def test_the_learning_rate_for_a_larger_model() -> None:
    small = load_config("gpt2_124m").replace({"optim": {"learning_rate": 1.8e-3}})
    assert transfer_rate(small, small) == pytest.approx(1.8e-3)
    wide = small.replace({"model": {"n_layer": 48, "n_head": 25, "n_embd": 1600}})
    assert transfer_rate(small, wide) == pytest.approx(9e-4, rel=0.1)  # the record's rate at 1.5B
    muon = small.replace({"optim": {"optimizer": "muon"}})
    assert transfer_rate(muon, wide) == pytest.approx(1.8e-3 * (768 / 1600) ** 0.5)
    more = small.replace({"data": {"accum": 4 * small.data.accum}})
    assert transfer_rate(small, more) == pytest.approx(1.8e-3 * 4**0.29)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], "C070"),
        (["--vary", "beta1=0.8,0.9", "--vary", "beta1=0.7"], "C070"),
        (["--vary", "beta1=0.8,0.9", "--seeds", "0"], "C070"),
        (["--vary", "beta1=0.8,0.9", "--workers", "999"], "C070"),
        (["--vary", "beta1=0.8,0.9", "--name", "a/b"], "C019"),
        (["--vary", "beta1=0.8,2"], "C016"),
        (["--vary", "learning_rate=1e-3..1e-2:65"], "C071"),
        (["--vary", "beta1=0.8,0.9", "--run.steps", "1e7"], "C066"),
        (["--vary", "beta1=0.8,0.9", "--data.path", "none"], "D002"),
        (["--vary", "beta1=0.8,0.9", "--transfer-to", "quickstrat"], "C001"),
    ],
)
def test_mistakes_are_refused_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = write_tiny_config(tmp_path)
    with pytest.raises(Exception, match=code):
        main(["--config", str(tiny), *options])
    assert not Path("runs").exists()


def test_workers_are_for_a_machine_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = write_tiny_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.devices, "local_gpu", lambda: "NVIDIA H100")
    monkeypatch.setattr(command, "count_cores", lambda: 2)
    with pytest.raises(ConfigError, match="one at a time"):
        main(["--config", str(tiny), "--vary", "beta1=0.8,0.9", "--workers", "2"])
