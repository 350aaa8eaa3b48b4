"""`report.html` of a run of ours: its diagnosis as a page, kept in its folder when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxgpt.diagnose import own
from jaxgpt.errors import NonFiniteError, Stopped
from jaxgpt.runs import log as runlog
from jaxgpt.runs.folder import RunFolder
from jaxgpt.utils import html as report


@contextmanager
def kept(folder: RunFolder) -> Iterator[None]:
    """`keep` when what happens inside has ended by itself, by a signal or by a loss that is not finite."""
    try:
        yield
    except (Stopped, NonFiniteError):
        keep(folder)
        raise
    keep(folder)


def keep(folder: RunFolder) -> None:
    """Writes the run's report if there is a step to report; one that fails costs a warning, never the run."""
    try:
        if not any(record.get("kind") == "step" for record in runlog.read_log(folder.log_file)):
            return
        from jaxgpt.diagnose.page import page  # draws: only who needs it pays for it

        place = report.place("the report", str(folder.report_file))
        if place is not None:
            report.write(place, page(own.of(folder)))
    except Exception as error:  # whatever it is, the run is worth more than its report
        runlog.warn(f"no {folder.report_file.name}: {getattr(error, 'message', error)}")
