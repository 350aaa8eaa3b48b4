"""The plan as JSON values: what `--json` prints and `plan.json` holds. docs/budget.md describes every field.

`version` changes when a field changes its meaning or is removed; new fields do not change it.
"""

from dataclasses import asdict
from typing import Any

from jaxgpt.budget import step_time, tokens
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.memory import GIB
from jaxgpt.budget.plan import MemoryFit, Plan, Row
from jaxgpt.budget.recommend import Recommendation
from jaxgpt.budget.scaling_law import FITTED_PARAMETERS, FITTED_RATIO, FITTED_TOKENS, LAW
from jaxgpt.budget.search import SearchResult
from jaxgpt.budget.step_time import SOFTWARE, StepTime
from jaxgpt.config.model_size import parameters

VERSION = 2


def plan_to_dict(planned: Plan, advice: Recommendation, result: SearchResult | None = None) -> dict[str, Any]:
    """The whole plan; unknown numbers are None."""
    inputs = planned.inputs
    device = {"name": "cpu"} if inputs.device is None else asdict(inputs.device) | {"usable_gib": inputs.device.usable}
    scale = tokens.config_scale(inputs.config)
    corpus = {"corpus": inputs.corpus.name, "corpus_source": inputs.corpus_source, "offset": inputs.corpus.offset}
    return {
        "version": VERSION,
        "config": inputs.config.to_dict(),
        "name": inputs.name,
        "model": asdict(planned.model) | {"architecture": inputs.config.model.architecture},
        "data": asdict(inputs.tokens) | corpus | {"token_scale": scale._asdict()},
        "device": device | {"count": inputs.gpus, "reason": inputs.device_reason},
        "step_time": {software: _step_time(planned, software, time) for software, time in planned.step_times.items()},
        "rows": [_row(row) for row in planned.rows],
        "memory": _memory(planned.fit),
        "loss_terms": _loss_terms(planned.last),
        "gains": {name: asdict(gain) for name, gain in planned.gains.items()},
        "nearest_runs": [asdict(run) for run in planned.nearest_runs],
        "loss_on_other_corpora": planned.loss_on_other_corpora,
        "recommendation": asdict(advice) | {"advised": _row(advice.advised)},
        "search": result and _search(result),
        "price_per_kwh": inputs.price,
        "calibration": inputs.calibration and _calibration(inputs.calibration),
        "warnings": planned.warnings,
    }


def _step_time(planned: Plan, software: str, time: StepTime) -> dict[str, Any]:
    device = planned.inputs.device
    return {
        "seconds_per_step": time.seconds,
        "seconds_low": time.low,
        "seconds_high": time.high,
        "tokens_per_second": planned.model.tokens_per_step / time.seconds,
        "mfu": None if device is None else step_time.mfu(planned.inputs.config, time.seconds, device),
        "software": SOFTWARE[software],
        "basis": time.basis,
        "kernels": [asdict(kernel) for kernel in time.kernels],
    }


def _row(row: Row) -> dict[str, Any]:
    values = asdict(row)
    return values | {"loss_terms": values.pop("prediction")["terms"]}


def _memory(fit: MemoryFit) -> dict[str, Any]:
    return asdict(fit.memory) | {
        "total": fit.memory.total,
        "total_with_remat": fit.memory_with_remat.total,
        "usable": None if fit.usable_gib is None else fit.usable_gib * GIB,
        "fits": fit.fits,
        "max_micro_batch": fit.max_micro_batch,
        "max_micro_batch_with_remat": fit.max_micro_batch_with_remat,
        "micro_batches": [asdict(micro_batch) for micro_batch in fit.micro_batches],
    }


def _loss_terms(row: Row) -> dict[str, Any]:
    prediction = row.prediction
    fitted = {"parameters": FITTED_PARAMETERS, "tokens": FITTED_TOKENS, "min_tokens_per_parameter": FITTED_RATIO}
    return prediction.terms | {
        "sigma": prediction.sigma,
        "sigmas": prediction.sigmas,
        "outside": [text for text in (*prediction.outside, prediction.few_steps) if text],
        "scaling_law": asdict(LAW),
        "fitted_range": fitted,
    }


def _search(result: SearchResult) -> dict[str, Any]:
    candidates = []
    for candidate in result.candidates:
        size = {"parameters": parameters(candidate.config.model), "config": candidate.config.to_dict()}
        candidates.append(size | _row(candidate.row))
    return {"goal": asdict(result.goal), "config": result.best.config.to_dict(), "candidates": candidates}


def _calibration(calibration: Calibration) -> dict[str, Any]:
    measured = calibration.measured
    return {
        "source": calibration.source,
        "seconds_per_step": measured and measured.seconds,
        "loss_shift": calibration.loss_shift,
        "loss_sd": calibration.loss_sd,
    }
