"""Conditions in three values, put together."""

from collections.abc import Sequence

from jaxgpt.diagnose.verdict import Condition


def any_of(asks: str, signs: Sequence[Condition]) -> Condition:
    """One condition that holds as soon as one of `signs` does, and is refuted when all are."""
    held = [sign.holds for sign in signs]
    holds = True if True in held else None if None in held else False
    told = [sign for sign in signs if sign.holds is holds] if holds is not None else list(signs)
    missing = "; ".join(dict.fromkeys(sign.missing for sign in signs if sign.missing)) if holds is None else ""
    lines = tuple(dict.fromkeys(line for sign in told for line in sign.lines))
    return Condition(asks, "; ".join(sign.found for sign in told if sign.found), holds, lines, missing)


def unknown(asks: str, missing: str, found: str = "not measured") -> Condition:
    return Condition(asks, found, None, (), missing)


def negated(holds: bool | None) -> bool | None:
    return None if holds is None else not holds
