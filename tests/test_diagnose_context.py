"""The context of a run: options win over the log, the log over a config, a config over assumptions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import logsamples
from helpers.logsamples import CONFIG

from jaxgpt import logs
from jaxgpt.config import Optim, schedule
from jaxgpt.config.files import load_config
from jaxgpt.config.options import Parser
from jaxgpt.diagnose import options as command_line
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.options import Options, optimizer_name
from jaxgpt.errors import ConfigError

SIX = "step,val_loss\n6000,3.68\n8000,3.64\n10000,3.6\n12000,3.58\n13500,3.57\n14500,3.5696\n"
NANOGPT = logsamples.NANOGPT_HEAD + logsamples.nanogpt()


def of(text: str, **options: Any) -> RunContext:
    return resolve_context(logs.read_text(text, "log"), Options(**options))


def rates_table(optim: Optim, steps: int, first: int, end: int, every: int, digits: int = 6) -> str:
    """A log that has the rates of `optim` from update `first` on."""
    rows = [f"{n},{schedule.learning_rate(optim, steps, n):.{digits}g},3.5" for n in range(first, end, every)]
    return "step,lr,val_loss\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("decay_steps", [None, 30, 70])
def test_vectorized_learning_rates_match_single_steps(name: Any, decay_steps: int | None) -> None:
    optim = Optim(schedule=name, warmup_steps=10, decay_steps=decay_steps)
    for steps in (100, 11, 5):
        expected = [schedule.learning_rate(optim, steps, update) for update in range(steps)]
        assert schedule.learning_rates(optim, steps) == pytest.approx(expected, rel=1e-12)


def test_log_of_losses_alone_lists_assumptions() -> None:
    context = of(SIX)
    assert context.total_steps is None
    assert len(context.lr_fractions) == 14_500
    assert context.lr_fractions[-1] == 1.0  # a decay needs an end
    assert (context.tokens, context.tokens_per_step, context.parameters, context.weight_decay) == (
        None,
        None,
        None,
        None,
    )
    assert not context.schedule_known
    assumed = "\n".join(context.assumed)
    for option in ("--schedule", "--peak-lr", "--warmup", "--min-lr", "--corpus"):
        assert option in assumed


def test_reference_run_with_options() -> None:
    context = of(
        SIX,
        schedule="cosine",
        total_steps=20_000,
        warmup=200,
        peak_lr=1e-3,
        min_lr=1e-4,
        batch_tokens=524_288.0,
        unique_tokens=3.68e9,
        params=40.56e6,
        corpus="fineweb",
        gpu="rtx4070",
        dropout=0.1,
        weight_decay=0.2,
    )
    assert (context.assumed, context.schedule_known) == ((), True)
    assert (context.tokens, context.epochs(14_500)) == (20_000 * 524_288, pytest.approx(2.0658, abs=1e-3))
    optim = Optim(learning_rate=1e-3, min_lr=1e-4, warmup_steps=200, weight_decay=0.2)
    assert context.optim == optim
    assert context.lr_fractions == pytest.approx(schedule.learning_rates(optim, 20_000) / 1e-3)
    assert (context.corpus.name, context.device and context.device.name) == ("fineweb", "RTX 4070")
    assert (context.dropout, context.weight_decay) == (0.1, 0.2)


def test_config_fills_missing_facts() -> None:
    context = of(SIX, config="fineweb40m", warmup=100)
    config = load_config("fineweb40m")
    assert (context.config, context.config_name, context.total_steps) == (config, "fineweb40m", 20_000)
    assert (context.optim.warmup_steps, context.optim.learning_rate) == (100, 1e-3)
    assert (context.parameters, context.unique_tokens, context.dropout) == (
        pytest.approx(40.56e6, rel=1e-3),
        3.68e9,
        0.1,
    )
    assert (context.corpus.name, context.eval_tokens) == ("fineweb", 3_276_800)


def test_precedence_is_option_log_config() -> None:
    context = of(NANOGPT, config="gpt2_124m")
    assert (context.total_steps, context.optim.learning_rate, context.optim.min_lr) == (20_000, 1e-3, 1e-4)
    assert (context.parameters, context.tokens_per_step, context.dropout) == (40.56e6, 524_288, 0.1)
    context = of(NANOGPT, total_steps=30_000, peak_lr=2e-3, batch_tokens=1000.0, params=5e6, dropout=0.3)
    assert (context.total_steps, context.optim.learning_rate, context.optim.decay_steps) == (30_000, 2e-3, 20_000)
    assert (context.parameters, context.tokens_per_step, context.dropout) == (5e6, 1000, 0.3)


@pytest.mark.parametrize(
    ("text", "options", "optimizer"),
    [
        (NANOGPT, {}, "adamw"),
        (NANOGPT, {"optimizer": "muon"}, "muon"),
        (SIX, {}, None),
        (SIX, {"config": "fineweb40m"}, "adamw"),
    ],
)
def test_optimizer_precedence(text: str, options: dict[str, Any], optimizer: str | None) -> None:
    assert of(text, **options).optimizer == optimizer


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("AdamW", "adamw"), ("adamw_torch_fused", "adamw"), ("NorMuon", "muon"), ("DistributedShampoo", "shampoo"),
     ("SOAP", "soap"), ("lion", "other")],
)  # fmt: skip
def test_optimizer_is_read_in_any_spelling(spelling: str, name: str) -> None:
    assert optimizer_name(spelling) == name


def test_nanogpt_defaults_need_its_header() -> None:
    context = of(NANOGPT)
    assert (context.weight_decay, context.eval_tokens, context.optim.warmup_steps) == (0.1, 200 * 16 * 1024, 2000)
    assumed = "\n".join(context.assumed)
    assert "--weight-decay" in assumed
    assert "--eval-tokens" in assumed
    assert "--dropout" not in assumed
    assert (context.corpus.name, context.fixed_eval_set) == ("openwebtext", False)
    assert of(logsamples.nanogpt()).weight_decay is None


def test_jaxgpt_run_needs_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = of(logsamples.ALL["jaxgpt"])
    assert (context.config, context.optim, context.total_steps) == (CONFIG, CONFIG.optim, 100)
    assert context.lr_fractions == pytest.approx(schedule.learning_rates(CONFIG.optim, 100) / 1e-3)
    assert (context.fixed_eval_set, context.schedule_known, context.unique_tokens) == (True, True, None)
    corpus, tokens = context.assumed
    assert corpus == "the corpus is unknown, so that the level of the loss cannot be assessed (--corpus)"
    assert tokens.endswith("of the loss of a GPT-2 token: a vocabulary of 64")
    folder = tmp_path / "nowhere"
    folder.mkdir()
    (folder / "train.bin").write_bytes(bytes(2 * 5000))
    assert of(logsamples.ALL["jaxgpt"]).unique_tokens == 5000
    (folder / "audit.json").write_text(json.dumps({"splits": {"train": {"unigram_entropy": 4.5}}}))
    assert of(logsamples.ALL["jaxgpt"]).unigram_entropy == 4.5
    (folder / "audit.json").write_text("{")
    assert of(logsamples.ALL["jaxgpt"]).unigram_entropy is None
    (folder / "manifest.json").write_text("{")
    assert "data folder cannot be read" in "\n".join(of(logsamples.ALL["jaxgpt"]).assumed)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("first", [0, 3000])
def test_schedule_is_detected_from_logged_rates(name: Any, first: int) -> None:
    optim = Optim(
        schedule=name, learning_rate=1e-3, min_lr=0.0, warmup_steps=700, decay_steps=8000 if name == "wsd" else None
    )
    context = of(rates_table(optim, 20_000, first, 15_000, 100))
    assert (context.optim.schedule, context.schedule_known) == (name, True)
    assert context.total_steps == pytest.approx(20_000, rel=0.02)
    assert context.optim.learning_rate == pytest.approx(1e-3, rel=0.03)
    assert context.optim.min_lr == pytest.approx(0.0, abs=2e-5)
    if first == 0:
        assert context.optim.warmup_steps == pytest.approx(700, abs=1)
    expected = schedule.learning_rates(optim, 20_000)[3000:19_500] / 1e-3
    assert np.abs(context.lr_fractions[3000:19_500] - expected).max() < 0.03
    assumed = "\n".join(context.assumed)
    assert "the logged rates show the schedule" in assumed
    assert "--total-steps" in assumed


def test_final_lr_is_detected_with_a_known_length() -> None:
    optim = Optim(learning_rate=1e-3, min_lr=3e-4, warmup_steps=100)
    context = of(rates_table(optim, 10_000, 0, 6000, 50), total_steps=10_000)
    assert context.optim.min_lr == pytest.approx(3e-4, rel=0.01)
    assert context.optim.decay_steps is None


def test_learning_rate_that_has_not_decayed() -> None:
    optim = Optim(schedule="wsd", learning_rate=1e-3, min_lr=0.0, warmup_steps=100, decay_steps=2000)
    text = rates_table(optim, 10_000, 0, 6000, 50)
    context = of(text)
    assert (context.optim.schedule, context.schedule_known, context.total_steps) == ("constant", False, None)
    assert "has not decayed so far" in "\n".join(context.assumed)
    given = of(text, schedule="trapezoid", total_steps=10_000, decay_steps=2000)
    assert given.lr_fractions == pytest.approx(schedule.learning_rates(optim, 10_000) / 1e-3)
    assert given.schedule_known


def test_rates_without_a_schedule_are_used_as_logged() -> None:
    rows = [(n, 1e-3 if n < 4000 else 2e-4) for n in range(0, 8000, 100)]
    text = "step,lr,val_loss\n" + "".join(f"{n},{rate},3.5\n" for n, rate in rows)
    context = of(text, total_steps=10_000)
    assert context.lr_fractions[[0, 3900, 4000, 7900, 9999]] == pytest.approx([1, 1, 0.2, 0.2, 0.2])
    assert "follow no known schedule" in "\n".join(context.assumed)


def test_llmc_and_modded_logs_contain_schedules() -> None:
    context = of(logsamples.llmc())
    assert (context.optim.schedule, context.total_steps) == ("cosine", pytest.approx(1000, abs=5))
    context = of(logsamples.modded())
    assert (context.optim.schedule, context.optim.decay_steps, context.optim.min_lr) == ("wsd", 60, 0.0)
    assert (context.optim.warmup_steps, context.corpus.name, context.fixed_eval_set) == (0, "fineweb", True)
    context = of(logsamples.LLMC_SCREEN)
    assert (context.optim.schedule, context.optim.learning_rate, context.optim.min_lr) == ("cosine", 2e-3, 0.0)
    context = of(logsamples.nanochat())
    assert (context.optim.schedule, context.total_steps, context.optim.decay_steps) == (
        "wsd",
        400,
        pytest.approx(200, abs=3),
    )
    assert "--peak-lr" in "\n".join(context.assumed)


def test_run_beyond_its_configured_length() -> None:
    context = of(NANOGPT.replace("max_iters = 20000", "max_iters = 500").replace("lr_decay_iters = 20000\n", ""))
    assert context.total_steps is None
    assert "exceeds its configured 500 steps" in "\n".join(context.assumed)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"total_steps": 14_000}, "C049", ["14,000", "14,500"]),
        ({"total_steps": 20_000, "warmup": 20_001}, "C050", ["20001", "20,000"]),
        ({"total_steps": 20_000, "warmup": 9000, "schedule": "wsd", "decay_steps": 12_000}, "C050", ["9000", "12000"]),
        ({"config": "fineweb40m", "warmup": 20_001}, "C050", ["20001", "20,000"]),
        ({"config": "fineweb40m", "schedule": "wsd", "decay_steps": 19_000}, "C050", ["19000", "2000"]),
        ({"schedule": "cosine", "warmup": 500, "decay_steps": 400}, "C050", ["400"]),
        ({"min_lr": 1e-3, "peak_lr": 1e-4}, "C051", ["0.001", "0.0001"]),
        ({"config": "fineweb40m", "min_lr": 0.5}, "C051", ["0.5", "0.001"]),
        ({"schedule": "constant", "decay_steps": 5}, "C052", ["--decay-steps"]),
        ({"schedule": "constant", "min_lr": 1e-5}, "C052", ["--min-lr"]),
        ({"schedule": "trapezoid", "min_lr": 1e-5}, "C052", ["--min-lr"]),
        ({"dropout": 1.0}, "C048", ["--dropout"]),
        ({"corpus": "finweb"}, "C040", ["finweb"]),
        ({"gpu": "RTX 9999"}, "C037", ["9999"]),
        ({"config": "nothing"}, "C001", ["nothing"]),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], code: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        of(SIX, **options)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message


def parsed(*argv: str) -> Options:
    parser = Parser("diagnose", "")
    command_line.add_options(parser)
    return command_line.read_options(parser.parse(argv))


def test_options_from_the_command_line() -> None:
    words = "--schedule Trapezoid --warmup 200 --total-steps 20k --decay-steps 4000 --peak-lr 1e-3 --batch-tokens 0.5M"
    options = parsed(*words.split(), "--unique-tokens", "3.68B", "--params", "40.56M", "--gpu", "4070", "--now", "5")
    assert (options.schedule, options.warmup, options.total_steps, options.decay_steps) == (
        "trapezoid",
        200,
        20_000,
        4000,
    )
    assert (options.peak_lr, options.batch_tokens, options.unique_tokens) == (1e-3, 5e5, 3.68e9)
    assert (options.params, options.gpu, options.now) == (40.56e6, "4070", 5.0)
    assert parsed() == Options()


@pytest.mark.parametrize(
    "words",
    [
        "--schedule sine",
        "--warmup -1",
        "--warmup 1.5",
        "--total-steps 0",
        "--total-steps 1e9",
        "--total-steps nan",
        "--peak-lr 0",
        "--min-lr -1",
        "--batch-tokens inf",
        "--eval-tokens many",
        "--unique-tokens 0",
        "--params -5M",
        "--dropout 1.2",
        "--now yesterday",
    ],
)
def test_invalid_options_are_refused(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(*words.replace(" -", "=-").split() if " -" in words else words.split())
    assert caught.value.code == "C048"
    assert words.split()[0] in caught.value.message


def test_schedule_detection_survives_any_rates() -> None:
    for rate in ("1e308", "nan", "-1", "inf", "0"):
        rows = [f"{n},{rate if n % 3 else 1e-3},3.5" for n in range(0, 500, 10)]
        context = of("step,lr,val_loss\n" + "\n".join(rows) + "\n")
        assert np.isfinite(context.lr_fractions).all()
        assert math.isfinite(context.optim.learning_rate)


def test_options_yield_to_the_log_of_a_baseline_run(tmp_path: Path) -> None:
    """Options are about the diagnosed run; of the baseline run they say what its own log does not."""
    other = tmp_path / "healthy.log"
    other.write_text(NANOGPT, encoding="utf-8")
    facts = {"total_steps": 30_000, "peak_lr": 9e-3, "warmup": 7, "batch_tokens": 1000.0, "params": 5e6, "dropout": 0.3}
    run = of(SIX, baseline=str(other), unique_tokens=1e9, gpu="a100", **facts)
    assert run.baseline is not None
    context, alone = run.baseline.context, of(NANOGPT)
    assert (run.total_steps, run.optim.learning_rate, run.parameters) == (30_000, 9e-3, 5e6)
    assert (context.total_steps, context.optim.learning_rate) == (alone.total_steps, alone.optim.learning_rate)
    assert (context.tokens_per_step, context.parameters, context.dropout) == (524_288, 40.56e6, 0.1)
    assert (context.optim.warmup_steps, context.unique_tokens) == (7, 1e9)
    assert context.device is not None
    assert context.device.name.startswith("A100")


def test_a_longer_baseline_run_does_not_refuse_the_length(tmp_path: Path) -> None:
    other = tmp_path / "healthy.csv"
    other.write_text("step,lr,val_loss\n" + "".join(f"{n},1e-3,3.5\n" for n in range(0, 30_001, 500)), encoding="utf-8")
    run = of(SIX, baseline=str(other), total_steps=20_000)
    assert run.baseline is not None
    assert (run.total_steps, run.baseline.context.total_steps) == (20_000, None)
