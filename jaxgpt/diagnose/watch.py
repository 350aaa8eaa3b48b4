"""A run that diagnoses itself while it trains: at an evaluation, where it is heading and whether it should end."""

from typing import NamedTuple

from jaxgpt.diagnose import own
from jaxgpt.diagnose.forecast.gaussian_mixture import Forecast
from jaxgpt.diagnose.stopper import Stopper
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder


class Outlook(NamedTuple):
    """The expected loss at the run's end (None: not known yet), and why to stop now ("": go on)."""

    forecast: Forecast | None = None
    stop: str = ""


class Watch:
    """Looks at the run in `folder`, by the code of `python -m jaxgpt.diagnose`, if somebody wants to know.

    `shown`: a person sees the forecast. `stopping`: the run ends when its diagnosis says so (`run.early_stop`).
    """

    def __init__(self, folder: RunFolder, *, shown: bool, stopping: bool) -> None:
        self._folder, self._wanted = folder, shown or stopping
        self._stopper = Stopper() if stopping else None

    def look(self) -> Outlook:
        """The outlook by the log as it is now. A look that fails costs one warning, never the run."""
        if not self._wanted:
            return Outlook()
        try:
            if self._stopper is None:
                return Outlook(own.forecast(self._folder))
            found = own.of(self._folder)
            return Outlook(found.forecast, self._stopper.ask(found))
        except Exception as error:  # whatever it is, the run is worth more than its diagnosis
            self._wanted = False
            runlog.warn(f"the run is not diagnosed while it trains: {error}")
            return Outlook()
