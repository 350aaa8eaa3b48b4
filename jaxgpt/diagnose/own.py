"""A run of ours, diagnosed from its folder: by the train that makes it, and at its end."""

import dataclasses

from jaxgpt import logs
from jaxgpt.diagnose import backtest, diagnosis
from jaxgpt.diagnose.context import RunContext, resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.forecast.run_forecast import forecast_run
from jaxgpt.diagnose.options import Options
from jaxgpt.logs.history import History
from jaxgpt.runs.folder import RunFolder


def of(folder: RunFolder) -> Diagnosis:
    """What `python -m jaxgpt.diagnose` says of it. Raises `DataError` where its log holds nothing that can be read."""
    found = diagnosis.diagnose(*_read(folder))
    return dataclasses.replace(found, backtests=backtest.load_backtests(folder))


def forecast(folder: RunFolder) -> Forecast | None:
    """The same diagnosis' loss at the end of the run, alone: a third of its cost."""
    return forecast_run(*_read(folder))[1]


def _read(folder: RunFolder) -> tuple[History, RunContext]:
    history = logs.read(folder.log_file)
    return history, resolve_context(history, Options())
