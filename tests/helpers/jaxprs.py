"""Traverses traced programs."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import jaxprs_in_params


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def scan_inputs(scan: Any) -> tuple[list[Any], list[Any]]:
    """The abstract values of a scan's constants and of its carry.

    The number of each is not a stable parameter of the primitive. But the arrays that are scanned over, and the stacked
    results, have one more axis outside than inside; the carry has the same shape.
    """
    body = scan.params["jaxpr"].jaxpr
    outer = [variable.aval for variable in scan.invars]
    constants_and_carry = [aval for aval, inner in zip(outer, body.invars, strict=True) if aval.ndim == inner.aval.ndim]
    results = zip(scan.outvars, body.outvars, strict=True)
    carried = sum(variable.aval.ndim == inner.aval.ndim for variable, inner in results)
    split = len(constants_and_carry) - carried
    return constants_and_carry[:split], constants_and_carry[split:]
