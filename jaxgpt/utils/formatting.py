"""Numbers as a person reads them."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxgpt.budget.plan import Row


def hours(seconds: float | None) -> str:
    """`22.2 h`, `14 min`, `3.1 days`; a dash where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 96 * 3600 else f"{seconds / 86400:.1f} days"


def span(low: float | None, high: float | None, middle: float | None) -> str:
    """Two durations in the unit in which `hours` says `middle`, without it: `23–43`."""
    if low is None or high is None or middle is None:
        return "–"
    per = {"s": 1, "min": 60, "h": 3600, "days": 86400}[hours(middle).split()[1]]
    digits = 1 if high / per < 10 else 0
    return f"{low / per:.{digits}f}–{high / per:.{digits}f}"


def loss_span(low: float, high: float) -> str:
    """`3.48–3.58`, one digit less where the interval says little."""
    digits = 2 if high - low < 1 else 1
    return f"{low:.{digits}f}–{high:.{digits}f}"


def per_hour(gain: float | None) -> str:
    """Nats per hour; a run of minutes gains so much that only its size is of use."""
    return "" if gain is None else f"{gain:.4f}" if gain < 1 else f"{gain:,.0f}"


def amount(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def count(value: float) -> str:
    """`10.49B`, `40.56M`, `8,192`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:,.0f}"


def flops(value: float) -> str:
    """`3.15 EFLOP`: 10^18 operations; `PFLOP` is 10^15."""
    for size, unit in ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} FLOP"


def row(held: "Row", digits: int) -> tuple[str, ...]:
    """A length of the plan as cells: steps, tokens, epochs, EFLOP, time, its 80 %, kWh, cost, loss, its 80 %, gain."""
    return (
        f"{held.max_iters:,}",
        count(held.tokens),
        amount(held.epochs),
        f"{held.flops / 1e18:.3g}",
        hours(held.seconds),
        span(held.seconds_low, held.seconds_high, held.seconds),
        amount(held.energy_kwh, 1),
        amount(held.cost),
        f"{held.loss:.{digits}f}",
        loss_span(held.loss_low, held.loss_high),
        per_hour(held.gain_per_hour),
    )


def duration(seconds: float, parts: int = 2) -> str:
    """`6 h 32 min`, `4 min 10 s`, `12 s`, `2 days 3 h`; with `parts` 3 `6 h 32 min 51 s`."""
    whole, found = round(seconds), list[str]()
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if found or whole >= size or size == 1:
            found.append(f"{whole // size} {unit if unit != 'days' or whole // size > 1 else 'day'}")
            whole %= size
    return " ".join(found[:parts])
