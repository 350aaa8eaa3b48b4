"""The plan as JSON: what `--json` prints and `plan.json` holds. docs/budget.md describes every field.

`version` grows when a field changes its meaning or goes; new fields may come without.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from jaxgpt.budget import step_time
from jaxgpt.budget.claims import Claim
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import Plan, Row
from jaxgpt.budget.recommend import Recommendation
from jaxgpt.budget.scaling_law import FITTED_PARAMETERS, FITTED_RATIO, FITTED_TOKENS, LAW
from jaxgpt.budget.search import Choice
from jaxgpt.budget.step_time import SOFTWARE, Pace

VERSION = 1


def document(
    found: Plan, advice: Recommendation, claims: Iterable[Claim] = (), choice: Choice | None = None
) -> dict[str, Any]:
    """The whole plan as plain JSON values; a number that is not finite or not known is null."""
    inputs = found.inputs
    whole = {
        "version": VERSION,
        "config": inputs.config.to_dict(),
        "name": inputs.name,
        "model": dataclasses.asdict(found.facts)
        | {"non_embedding": found.facts.non_embedding_parameters, "architecture": inputs.config.model.architecture},
        "data": dataclasses.asdict(inputs.tokens)
        | {"corpus": inputs.corpus.name, "corpus_from": inputs.corpus_why, "offset": inputs.corpus.offset},
        "device": device(found),
        "pace": {name: pace(found, name, value) for name, value in found.paces.items()},
        "rows": [row(value) for value in found.rows],
        "memory": memory(found),
        "loss_terms": terms(found),
        "gains": {name: dataclasses.asdict(gain) for name, gain in found.gains.items()},
        "nearest": [dataclasses.asdict(run) for run in found.nearest],
        "elsewhere": found.elsewhere,
        "recommendation": recommendation(advice),
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "inverse": inverse(choice),
        "price_per_kwh": inputs.price,
        "calibration": inputs.calibration and dataclasses.asdict(inputs.calibration),
        "warnings": list(found.warnings),
    }
    plain: dict[str, Any] = finite(whole)
    return plain


def device(found: Plan) -> dict[str, Any]:
    held = found.inputs.device
    facts = {"name": "cpu"} if held is None else dataclasses.asdict(held) | {"usable_gib": held.usable}
    return facts | {"chosen": found.inputs.device_why}


def pace(found: Plan, software: str, value: Pace) -> dict[str, Any]:
    tokens = found.facts.tokens_per_step
    held = found.inputs.device
    return {
        "seconds_per_step": value.seconds,
        "seconds_low": value.low,
        "seconds_high": value.high,
        "tokens_per_second": tokens / value.seconds,
        "mfu": None if held is None else step_time.mfu(found.inputs.config, value.seconds, held),
        "software": SOFTWARE[software],
        "why": value.why,
        "kernels": [dataclasses.asdict(kernel) for kernel in value.kernels],
    }


def row(value: Row) -> dict[str, Any]:
    """A row without what it was derived from, and its terms."""
    plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "expectation"}
    return plain | {"loss_terms": value.expectation.terms}


def memory(found: Plan) -> dict[str, Any]:
    fit = found.fit
    return dataclasses.asdict(fit.need) | {
        "total": fit.need.total,
        "total_with_remat": fit.remat.total,
        "usable": None if fit.usable_gib is None else fit.usable_gib * GIB,
        "fits": fit.fits,
        "largest_micro_batch": fit.largest,
        "largest_micro_batch_with_remat": fit.largest_remat,
        "micro_batches": [{"micro_batch": n, "gib": gib, "fits": fits} for n, gib, fits in fit.table],
    }


def terms(found: Plan) -> dict[str, Any]:
    expected = found.last.expectation
    fitted = {"parameters": FITTED_PARAMETERS, "tokens": FITTED_TOKENS, "least_tokens_per_parameter": FITTED_RATIO}
    return expected.terms | {
        "sigma": expected.sigma,
        "sigmas": expected.sigmas,
        "outside": list(expected.outside),
        "law": dataclasses.asdict(LAW),
        "fitted": fitted,
    }


def recommendation(advice: Recommendation) -> dict[str, Any]:
    iters, annealed, cut = advice.early
    return {
        "worth_iters": advice.worth_iters,
        "best_model": advice.best
        and {
            "parameters": advice.best.parameters,
            "tokens": advice.best.tokens,
            "loss": advice.best.expectation.loss,
            "on_bound": advice.best.bound,
        },
        "stop_early": {"max_iters": iters, "loss": annealed, "loss_if_cut_off": cut},
        "unique_tokens": [{"unique": unique, "loss": loss} for unique, loss in advice.unique],
        "sentences": list(advice.sentences),
    }


def inverse(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    frontier = [
        {"parameters": c.ratio and c.row.tokens / c.ratio, "config": c.config.to_dict()} | row(c.row)
        for c in choice.frontier
    ]
    return {"goal": dataclasses.asdict(choice.goal), "config": choice.best.config.to_dict(), "frontier": frontier}


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite are None, tuples are lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
