"""The diagnosis of a jaxgpt run in its folder: while it trains, and as `report.html` at its end."""

import dataclasses
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from jaxgpt import logs
from jaxgpt.diagnose import backtest
from jaxgpt.diagnose.checks import instabilities
from jaxgpt.diagnose.context import resolve_context
from jaxgpt.diagnose.diagnosis import Diagnosis, analyze_run, diagnose, forecast_loss
from jaxgpt.diagnose.finding import Finding
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.options import Options
from jaxgpt.errors import NonFiniteError, Stopped
from jaxgpt.logs.history import History
from jaxgpt.runs import log as run_log
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.log import EARLY_STOP, StopReason
from jaxgpt.utils import files

CONFIRMATIONS = 2  # evaluations in a row with the same reason to stop; one can be chance
LR_TOLERANCE = 1e-3  # of the peak: how close the learning rate is to its final value


class EarlyStop(NamedTuple):
    """Why a run should end before its last step: a word that identifies the reason, and one sentence."""

    name: str
    sentence: str


class RunOutlook(NamedTuple):
    """The forecast of the final loss (None: unknown), and why to stop now (None: continue)."""

    forecast: Forecast | None = None
    stop: StopReason | None = None


def diagnose_run(folder: RunFolder) -> Diagnosis:
    """The diagnosis that `python -m jaxgpt.diagnose` shows. Raises `DataError` if its log cannot be read."""
    history = logs.read(folder.log_file)
    diagnosis = diagnose(history, resolve_context(history, Options()))
    return dataclasses.replace(diagnosis, backtests=backtest.load_backtests(folder))


def forecast_only(folder: RunFolder) -> Forecast | None:
    """The forecast of `diagnose_run` alone, at a third of the cost; None for a run that is over or broken."""
    history = logs.read(folder.log_file)
    return forecast_loss(history, resolve_context(history, Options()))


def find_instability(folder: RunFolder) -> int | None:
    """The step from which the run's loss is not finite, or has risen for good; None if it is stable.

    A log that cannot be read costs a warning; the run then counts as stable.
    """
    if not folder.log_file.is_file():
        return None
    try:
        history = logs.read(folder.log_file)
        return instabilities.unstable_since(analyze_run(history, resolve_context(history, Options())))
    except Exception as error:
        _warn("a checkpoint from before a divergence may be deleted", error)
        return None


class LiveDiagnosis:
    """Diagnoses the run in `folder` at its evaluations, by the code of `python -m jaxgpt.diagnose`.

    `forecasting`: the forecast is shown. `stopping`: the run should end when its diagnosis says so (`run.early_stop`).
    """

    def __init__(self, folder: RunFolder, *, forecasting: bool, stopping: bool) -> None:
        self._folder = folder
        self._is_active = forecasting or stopping
        self._stopping = stopping
        self._previous: list[str] = []  # names of the reasons to stop, as long as they were the same

    def check(self) -> RunOutlook:
        """The outlook by the log as it is now. A failure costs a warning and further checks, never the run."""
        if not self._is_active:
            return RunOutlook()
        try:
            if not self._stopping:
                return RunOutlook(forecast_only(self._folder))
            diagnosis = diagnose_run(self._folder)
            reason = self.confirm(early_stop(diagnosis))
            stop = StopReason(EARLY_STOP, reason.sentence) if reason else None
            return RunOutlook(diagnosis.forecast, stop)
        except Exception as error:
            self._is_active = False
            _warn("the run is not diagnosed while it trains", error)
            return RunOutlook()

    def confirm(self, reason: EarlyStop | None) -> EarlyStop | None:
        """`reason`, if the last evaluations gave the same one."""
        name = reason.name if reason else ""
        self._previous = [*self._previous, name] if name in self._previous else [name]
        return reason if len(self._previous) >= CONFIRMATIONS else None


def early_stop(diagnosis: Diagnosis) -> EarlyStop | None:
    """Why this diagnosis says that the run should stop; None if it does not."""
    confirmed = {finding.id: finding for finding in diagnosis.findings if finding.status == "confirmed"}
    for name in STOP_FINDINGS:
        if name in confirmed:
            return EarlyStop(name, STOP_FINDINGS[name](diagnosis.history, confirmed[name]))
    return _little_to_gain(diagnosis)


def _describe_overfitting(history: History, finding: Finding) -> str:
    """The overfitting of the run's evaluations in one sentence."""
    evaluations = [(e.step, e.val, e.train) for e in history.evaluations if e.val is not None]
    if not evaluations:
        return f"overfitting: {_evidence(finding)}"
    best_step, best, best_train = min(evaluations, key=lambda evaluation: evaluation[1])
    step, now, train = evaluations[-1]
    trend = f"has risen for {step - best_step:,} steps" if step > best_step else "no longer falls"
    falls = train is not None and best_train is not None and train < best_train
    training = " while training loss falls" if falls else ""
    return (
        f"validation loss {trend}{training}: overfitting (best {best:.4f} at step {best_step:,}, "
        f"{now:.4f} at step {step:,})"
    )


def _describe_divergence(_: History, finding: Finding) -> str:
    return f"the loss has risen and does not recover: divergence ({_evidence(finding)})"


STOP_FINDINGS = {"divergence": _describe_divergence, "severe-overfitting": _describe_overfitting}


def _evidence(finding: Finding) -> str:
    """The evidence of all conditions without duplicates."""
    texts = [text for condition in finding.conditions for text in condition.evidence.split("; ")]
    return "; ".join(dict.fromkeys(texts))


def _little_to_gain(diagnosis: Diagnosis) -> EarlyStop | None:
    """A reason to stop if the remaining steps are expected to gain less than an evaluation can measure.

    Only at the final learning rate: before it, the annealing gain is still to come.
    """
    done = diagnosis.history.steps_done
    fractions = diagnosis.context.lr_fractions
    evaluations = diagnosis.history.evaluations
    stderr = next((e.standard_error for e in reversed(evaluations) if e.standard_error), None)
    if diagnosis.posterior is None or diagnosis.forecast is None or stderr is None or not 0 < done < len(fractions):
        return None
    has_decay = fractions.max() - fractions[-1] >= LR_TOLERANCE
    is_final = np.abs(fractions[done:] - fractions[-1]).max() <= LR_TOLERANCE
    gain = float(diagnosis.posterior.predict([done])[0][0]) - diagnosis.forecast.mean
    if not has_decay or not is_final or gain >= stderr:
        return None
    return EarlyStop(
        "little-to-gain",
        f"little to gain: the learning rate has reached its final value, and the remaining {len(fractions) - done:,} "
        f"steps are expected to gain {gain:.4f} nats, less than the standard error of an evaluation, {stderr:.4f}",
    )


def write_run_report(folder: RunFolder) -> None:
    """Writes the run's `report.html` if its log has steps. A failure costs a warning, never the run."""
    try:
        if not any(record.get("kind") == "step" for record in run_log.read_log(folder.log_file)):
            return
        from jaxgpt.diagnose.report import build_report  # draws with matplotlib, which takes half a second to import
        from jaxgpt.diagnose.run_overview import describe_run
        from jaxgpt.utils.report import html_page

        path = files.check_report_path("the report", folder.report_file)
        diagnosis = diagnose_run(folder)
        files.write_text(path, html_page(build_report(diagnosis, describe_run(folder, diagnosis))))
    except Exception as error:
        _warn(f"{folder.report_file.name} was not written", error)


@contextmanager
def report_at_end(folder: RunFolder) -> Iterator[None]:
    """Writes the run's report when the block has ended by itself, by a signal or by a loss that is not finite."""
    try:
        yield
    except (Stopped, NonFiniteError):
        write_run_report(folder)
        raise
    write_run_report(folder)


def _warn(consequence: str, error: Exception) -> None:
    """Warns of a failed diagnosis; under `--debug` with its traceback."""
    run_log.warn(f"{consequence}: {type(error).__name__}: {getattr(error, 'message', error)} (see it with --debug)")
    if "--debug" in sys.argv:
        traceback.print_exception(error)
