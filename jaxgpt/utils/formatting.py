"""Numbers, durations and plurals as a person reads them. An unknown value is a dash."""

import math
import time
from collections.abc import Mapping

UNKNOWN = "–"
MINUS = "−"
LAST_DATE = 253_402_128_000.0  # seconds since 1970: Python's calendar ends here
ROUNDING = (86_400, 21_600, 3600, 1800, 600, 300, 60, 30, 10, 5, 1)  # seconds to which rough durations are rounded
YEAR, MANY_YEARS = 365.25 * 86_400, 3 * 365.25 * 86_400  # seconds; from the latter on durations are in years
MAX_ROUNDING = 0.1  # of the duration
INTERVAL_ROUNDING = 0.2  # of the width of an interval

LOSS_DIGITS = 4  # decimals of a measured loss, as logs print it
LOSS_WIDTHS = {3: 0.1, 2: 1.0}  # decimals of a loss whose interval is narrower than so many nats
COUNTS = {1e12: "T", 1e9: "B", 1e6: "M"}
FLOPS = {1e21: " ZFLOP", 1e18: " EFLOP", 1e15: " PFLOP", 1e12: " TFLOP"}
BYTES = {1e9: " GB", 1e6: " MB", 1e3: " kB"}


def format_hours(seconds: float | None) -> str:
    """A duration in one unit: `22.2 h`, `14 min`, `3.1 days`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 96 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days" if seconds < MANY_YEARS else f"{seconds / YEAR:,.0f} years"


def format_hours_range(low: float | None, high: float | None, middle: float | None) -> str:
    """Two durations, without a unit, in the unit in which `format_hours` writes `middle`: `23–43`."""
    if low is None or high is None or middle is None:
        return UNKNOWN
    unit = format_hours(middle).split()[1]
    unit_seconds = {"s": 1, "min": 60, "h": 3600, "days": 86_400, "years": YEAR}[unit]
    digits = 1 if high / unit_seconds < 10 else 0
    return f"{low / unit_seconds:.{digits}f}–{high / unit_seconds:.{digits}f}"


def format_duration(seconds: float, parts: int = 2) -> str:
    """A duration in its `parts` largest units: `6 h 32 min`, `4 min 10 s`, `2 days 3 h`; with 3 `6 h 32 min 51 s`."""
    remaining = round(seconds)
    texts = list[str]()
    for size, unit in ((86_400, "day"), (3600, "h"), (60, "min"), (1, "s")):
        number = remaining // size
        if texts or number or size == 1:
            texts.append(pluralize(number, unit) if unit == "day" else f"{number} {unit}")
            remaining %= size
    return " ".join(texts[:parts])


def format_rough_duration(seconds: float, precision: float | None = None) -> str:
    """A duration that is an estimate: `6 h 30 min`, `45 s`, `29 h`, `3 days`.

    It is rounded to a multiple of at most `precision` seconds (None: to at most 5 % more or less).
    """
    limit = seconds * MAX_ROUNDING if precision is None else precision
    rounding = next((size for size in ROUNDING if size <= limit), 1)
    rounded = round(seconds / rounding) * rounding
    if 86_400 <= rounded < 2 * 86_400:
        return f"{rounded // 3600} h"
    text = format_duration(rounded)
    return text.rpartition(" 0 ")[0] or text


def format_duration_interval(seconds: float, low: float, high: float) -> str:
    """An estimate as precise as its interval: `6 h 30 min (80 %: 5 h 50 min to 8 h 10 min)`."""
    precision = (high - low) * INTERVAL_ROUNDING
    middle, lower, upper = (format_rough_duration(value, precision) for value in (seconds, low, high))
    return f"{middle} (80 %: {lower} to {upper})"


def format_date(timestamp: float) -> str:
    """`on Tue 24 Nov 2026 at 19:05`, in this machine's time zone, from seconds since 1970."""
    if not 0 <= timestamp < LAST_DATE:
        return "beyond any calendar"
    return time.strftime("on %a %d %b %Y at %H:%M", time.localtime(timestamp))


def format_loss_range(low: float, high: float) -> str:
    """`3.48–3.58`; one digit less for a range of a nat or more."""
    digits = 2 if high - low < 1 else 1
    return f"{low:.{digits}f}–{high:.{digits}f}"


def format_loss(loss: float) -> str:
    """A measured loss with as many decimals as logs print: `3.2809`, `3.57`."""
    return f"{round(loss, LOSS_DIGITS):g}"


def format_losses(middle: float, low: float, high: float) -> tuple[str, str, str]:
    """A loss and its interval, with as many decimals as the interval's width justifies: `3.519`, `4.8`."""
    digits = next((digits for digits, width in LOSS_WIDTHS.items() if high - low < width), 1)
    return f"{middle:.{digits}f}", f"{low:.{digits}f}", f"{high:.{digits}f}"


def format_number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals and thousands separators."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign: `+0.120`, `−0.781`; no sign for what rounds to zero."""
    text = format_number(value, digits).lstrip("-")
    if value is None or float(text.replace(",", "")) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def format_change(nats: float, digits: int = 2) -> str:
    """A change of a loss in words: `0.23 lower`, `0.05 higher`, `the same`."""
    amount = f"{abs(nats):.{digits}f}"
    if float(amount) == 0:
        return "the same"
    return f"{amount} {'lower' if nats < 0 else 'higher'}"


def format_count(value: float) -> str:
    """`10.49B`, `40.56M`, `8,192`."""
    return _with_unit(value, COUNTS, ".2f") or f"{value:,.0f}"


def format_tokens(count: float) -> str:
    """`2.52B`, `480M`, `8,192`: three digits below a billion."""
    return f"{count / 1e6:.3g}M" if 1e6 <= count < 999.5e6 else format_count(count)


def format_flops(value: float) -> str:
    """A number of floating-point operations: `3.15 EFLOP` (10^18), `PFLOP` (10^15), `TFLOP` (10^12)."""
    return _with_unit(value, FLOPS, ".3g") or f"{value:.3g} FLOP"


def format_bytes(count: int) -> str:
    """`31.4 MB`: powers of 1000, as disks are sold."""
    return _with_unit(count, BYTES, ",.1f") or pluralize(count, "byte")


def pluralize(count: float, noun: str, plural: str = "") -> str:
    """`1 document`, `2,000 documents`, `1.5 hours`; `plural` is for nouns that do not take an s."""
    digits = "," if isinstance(count, int) else ",.3g"
    number = f"{count:{digits}}" if count < 1000 else f"{count:,.0f}"
    return f"{number} {noun if number == '1' else plural or f'{noun}s'}"


def _with_unit(value: float, units: Mapping[float, str], digits: str) -> str:
    """`value` in the first of the `units`, from large to small, that it reaches; empty below all of them."""
    return next((f"{value / size:{digits}}{unit}" for size, unit in units.items() if value >= size), "")
