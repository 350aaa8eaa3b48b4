"""What the law of the planner expects a run to end at, whatever its log shows: the forecast before the run."""

from dataclasses import replace

from jaxgpt.diagnose.mixture import Forecast, gaussian
from jaxgpt.diagnose.setting import Setting
from jaxgpt.diagnose.verdicts.case import Case
from jaxgpt.logs.history import History


def pre_run(setting: Setting, steps: int | None = None) -> Forecast | None:
    """The law's final loss, of a run of `steps` if given; None where size, batch or length are not known."""
    asked = setting if steps is None else replace(setting, total_steps=steps)
    law = Case(History(source="", format=""), asked).law if asked.total_steps else None
    return None if law is None else gaussian(law.loss, law.sigma)
