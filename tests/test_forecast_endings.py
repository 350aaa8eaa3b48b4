"""Forecasts of runs whose schedule nothing states: the learning rate is constant so far, or not logged."""

import numpy as np
import pytest
from helpers.runs import Floats, drawn, trapezoid

from jaxgpt import logs
from jaxgpt.config import Optim
from jaxgpt.diagnose import messages
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.context.endings import ScheduleName, possible_endings, possible_schedules
from jaxgpt.diagnose.diagnosis import diagnose
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.law_variants import LAW_VARIANTS
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History

STEPS = 4000


def diagnosed(rates: Floats, share: float, **options: object) -> tuple[RunContext, Forecast, float]:
    """The context and the forecast of a run with a logged learning rate, and its true final loss."""
    run = drawn(np.random.default_rng(4), rates, 0, LAW_VARIANTS[2], 0.001)
    seen = run.steps <= share * STEPS
    rows = [f"{step},{3e-4 * rates[step]},{loss}" for step, loss in zip(run.steps[seen], run.losses[seen])]
    history = logs.read_text("step,lr,val_loss\n" + "\n".join(rows) + "\n", "table")
    known = Options(total_steps=STEPS, weight_decay=0.1, warmup=0, **options)  # type: ignore[arg-type]
    context = resolve_context(history, known)
    forecast = forecast_run(history, context).final_loss
    assert forecast is not None
    return context, forecast, float(run.losses[-1])


@pytest.mark.parametrize("rates", [trapezoid(STEPS, 800), trapezoid(STEPS, 1500), np.ones(STEPS)])
def test_run_may_still_decay(rates: Floats) -> None:
    context, forecast, end = diagnosed(rates, 0.6)
    assert forecast.low95 <= end <= forecast.high95
    assert "it may stay, or decay over the last 5 to 40 % (--schedule)" in "\n".join(context.assumed)


def test_stated_schedule_has_one_ending() -> None:
    rates = trapezoid(STEPS, 800)
    _, open_end, end = diagnosed(rates, 0.6)
    context, stated, _ = diagnosed(rates, 0.6, schedule="trapezoid", decay_steps=800)
    assert context.endings == ()
    assert abs(stated.mean - end) < 0.03
    assert stated.sd < 0.6 * open_end.sd
    assert diagnosed(rates, 0.6, schedule="constant")[0].endings == ()


def test_visible_decay_has_one_ending() -> None:
    context, forecast, end = diagnosed(trapezoid(STEPS, 1500), 0.85)
    assert context.endings == ()
    assert forecast.mean == pytest.approx(end, abs=0.02)


@pytest.mark.parametrize(("done", "count"), [(0, 6), (2400, 6), (2500, 5), (3700, 2), (3990, 1)])
def test_decays_that_would_have_begun_are_excluded(done: int, count: int) -> None:
    endings = possible_endings(np.ones(STEPS), done)
    assert len(endings) == count
    assert sum(ending.probability for ending in endings) == pytest.approx(1)
    for _, fractions in endings:
        assert np.all(fractions[:done] == 1)
        assert fractions[-1] in (1.0, pytest.approx(0, abs=0.01))


def without_rates(rates: Floats, share: float) -> tuple[History, float]:
    """The history of a run without a logged learning rate, and its true final loss."""
    run = drawn(np.random.default_rng(4), rates, 0, LAW_VARIANTS[2], 0.001)
    seen = run.steps <= share * STEPS
    rows = [f"{step},{loss}" for step, loss in zip(run.steps[seen], run.losses[seen])]
    return logs.read_text("step,val_loss\n" + "\n".join(rows) + "\n", "table"), float(run.losses[-1])


@pytest.mark.parametrize("rates", [trapezoid(STEPS, 1200), trapezoid(STEPS, 2400), trapezoid(STEPS, STEPS)])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_unknown_schedule_is_an_average(rates: Floats, share: float) -> None:
    history, end = without_rates(rates, share)
    forecast = forecast_run(history, resolve_context(history, Options(total_steps=STEPS))).final_loss
    assert forecast is not None
    assert forecast.low95 <= end <= forecast.high95


def test_answer_names_the_unknown_schedule() -> None:
    history, _ = without_rates(trapezoid(STEPS, 1200), 0.8)
    unknown = diagnose(history, resolve_context(history, Options(total_steps=STEPS)))
    assert "its schedule is unknown, and --schedule narrows this" in messages.forecast_sentence(unknown)
    stated = diagnose(history, resolve_context(history, Options(total_steps=STEPS, schedule="trapezoid")))
    assert "unknown" not in messages.forecast_sentence(stated)


@pytest.mark.parametrize("usual", [None, "cosine", "linear", "wsd"])
def test_possible_schedules_cover_the_run(usual: ScheduleName | None) -> None:
    schedules = possible_schedules(Optim(warmup_steps=100), STEPS, usual)
    assert sum(ending.probability for ending in schedules) == pytest.approx(1)
    for _, fractions in schedules:
        assert len(fractions) == STEPS
        assert fractions[0] < 0.02
        assert fractions.max() == pytest.approx(1)
