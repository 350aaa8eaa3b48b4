"""Numbers, durations and plurals as a person reads them. An unknown value is a dash."""

import math
import time

UNKNOWN = "–"
LAST_DATE = 253_402_128_000.0  # seconds since 1970: Python's calendar ends here


def format_hours(seconds: float | None) -> str:
    """A duration in one unit: `22.2 h`, `14 min`, `3.1 days`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 96 * 3600 else f"{seconds / 86400:.1f} days"


def format_hours_range(low: float | None, high: float | None, middle: float | None) -> str:
    """Two durations, without a unit, in the unit in which `format_hours` writes `middle`: `23–43`."""
    if low is None or high is None or middle is None:
        return UNKNOWN
    unit = format_hours(middle).split()[1]
    unit_seconds = {"s": 1, "min": 60, "h": 3600, "days": 86400}[unit]
    digits = 1 if high / unit_seconds < 10 else 0
    return f"{low / unit_seconds:.{digits}f}–{high / unit_seconds:.{digits}f}"


def format_duration(seconds: float, parts: int = 2) -> str:
    """A duration in its `parts` largest units: `6 h 32 min`, `4 min 10 s`, `2 days 3 h`; with 3 `6 h 32 min 51 s`."""
    remaining = round(seconds)
    texts = list[str]()
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        number = remaining // size
        if texts or number or size == 1:
            texts.append(f"{number} {'day' if unit == 'days' and number == 1 else unit}")
            remaining %= size
    return " ".join(texts[:parts])


def format_date(timestamp: float) -> str:
    """`on Tue 24 Nov 2026 at 19:05`, in this machine's time zone, from seconds since 1970."""
    if not 0 <= timestamp < LAST_DATE:
        return "beyond any calendar"
    return time.strftime("on %a %d %b %Y at %H:%M", time.localtime(timestamp))


def format_loss_range(low: float, high: float) -> str:
    """`3.48–3.58`; one digit less for a range of a nat or more."""
    digits = 2 if high - low < 1 else 1
    return f"{low:.{digits}f}–{high:.{digits}f}"


def format_number(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals and thousands separators."""
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def format_count(value: float) -> str:
    """`10.49B`, `40.56M`, `8,192`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:,.0f}"


def format_tokens(count: float) -> str:
    """`2.52B`, `480M`, `8,192`: three digits below a billion."""
    if 1e6 <= count < 1e9:
        return f"{count / 1e6:.3g}M"
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count:,.0f}"


def format_flops(value: float) -> str:
    """A number of floating-point operations: `3.15 EFLOP` (10^18), `PFLOP` (10^15), `TFLOP` (10^12)."""
    for size, unit in ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} FLOP"


def format_bytes(count: int) -> str:
    """`31.4 MB`: powers of 1000, as disks are sold."""
    if count < 1000:
        return f"{count} bytes"
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def pluralize(count: int, noun: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
