"""Lightning's `metrics.csv`: a table whose rows state parts of a step, with its learning rates in `lr-*` columns.

Step N is the step after N others, in the rows of a validation too: it was measured after N + 1 steps.
"""

from jaxgpt.logs.collector import Collector
from jaxgpt.logs.formats import table
from jaxgpt.logs.history import LogTraits

NAME = "lightning"
TRAITS = LogTraits(fixed_eval_set=True)


def parse_header(line: str) -> table.Header | None:
    """The separator and the names of the columns if the line is the header of Lightning's CSV logger; else None."""
    header = table.parse_header(line)
    if header is None or not {"epoch", "step"} <= set(header[1]):
        return None
    has_parts = any(name.startswith("lr-") or name.endswith(("_step", "_epoch")) for name in header[1])
    return header if has_parts else None


class Reader(table.Reader):
    """Reads the rows below the header into a `Collector`."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector)
        self._evaluated_after = 1
