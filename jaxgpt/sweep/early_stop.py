"""Decides by its forecast whether a trial is worth its remaining steps."""

from jaxgpt import logs
from jaxgpt.diagnose.backtest import history_until
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import forecast_loss
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import warn
from jaxgpt.sweep.grid import Trial
from jaxgpt.sweep.results import Outcome

MIN_PROGRESS = 0.4  # of a trial's steps, before which it is never stopped


def find_hopeless(trial: Trial, best: Trial, best_loss: float) -> Outcome | None:
    """How a trial should end now because it will not reach the final loss of the best one; None if it may, or unknown.

    The lower end of its forecast's 95 % interval has to be above that loss, less the error that a forecast of the best
    trial had after the same part of its steps: in short runs, forecasts are too high for all trials alike.
    A forecast that fails costs a warning, never the trial.
    """
    try:
        history = _history(trial)
        progress = history.steps_done / trial.config.run.steps
        if progress < MIN_PROGRESS:
            return None
        forecast = _forecast(history)
        reference = _forecast(history_until(_history(best), round(progress * best.config.run.steps)))
    except Exception as error:
        warn(f"no forecast of {trial.name}: {type(error).__name__}: {error}")
        return None
    if forecast is None or reference is None or forecast.low95 - max(reference.mean - best_loss, 0.0) <= best_loss:
        return None
    interval = f"95 %: {forecast.low95:.2f} to {forecast.high95:.2f}"
    note = f"stopped at step {history.steps_done:,}, forecast {forecast.mean:.3f} ({interval})"
    return Outcome(note=note, forecast=forecast.mean)


def _history(trial: Trial) -> History:
    return logs.read(RunFolder.from_config(trial.config).log_file)


def _forecast(history: History) -> Forecast | None:
    """The forecast of `python -m jaxgpt.diagnose` from this part of a log."""
    return forecast_loss(history, resolve_context(history, Options()))
