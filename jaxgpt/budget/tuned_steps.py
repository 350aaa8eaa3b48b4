"""Step times that `jaxgpt tune` has measured on this machine: files in the user's cache, one per device and step."""

import math
from pathlib import Path
from typing import Any

from jaxgpt.budget import devices
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.devices import Device
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.utils.files import compilation_cache_dir, read_json

SPREAD = 0.05  # of a step time, which a few seconds have measured


def tuning_folder() -> Path:
    """The folder of the results."""
    return compilation_cache_dir().parent / "tune"


def step_values(config: Config) -> dict[str, Any]:
    """The values of `config` that the programs of its training step depend on, and what they have in common."""
    values = config.to_dict()
    return {
        "model": values["model"],
        "optimizer": values["optim"]["optimizer"],
        "mesh": values["mesh"],
        "micro_batch": config.data.micro_batch,
        "accum": config.data.accum,
        "documents": config.data.block_cross_document_attention,
        "on_nonfinite": config.run.on_nonfinite,
    }


def find_tuned(config: Config, device: Device | None, count: int = 1) -> Calibration | None:
    """The newest result for this step on `count` devices of this kind (None: a CPU); None if it was never tuned."""
    for file in sorted(tuning_folder().glob("*.json"), key=_modified, reverse=True):
        try:
            values = read_json(file)
            if _is_of(values["device"], device, count) and (time := _step_time(values, step_values(config))):
                return Calibration(source="jaxgpt tune", measured=time, measured_config=config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def positive(value: Any) -> float:
    """`value` as a number above 0. Raises `ValueError` or `TypeError` if it is none."""
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{number} is not above 0")
    return number


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # removed in the meantime
        return 0.0


def _is_of(measured: dict[str, Any], device: Device | None, count: int) -> bool:
    """Whether a result is of `count` devices of the kind `device`, by the device that a trial has described."""
    is_cpu = measured["platform"] == devices.CPU
    return measured["count"] == count and is_cpu == (device is None) and devices.lookup(measured["kind"]) == device


def _step_time(values: dict[str, Any], step: dict[str, Any]) -> StepTime | None:
    """The time that was measured for `step`: that of the config as it is, or of the fastest program."""
    default, tuned = (positive(values[name]) for name in ("default_seconds", "winner_seconds"))
    if step == values["tuned_step"]:
        seconds, more = tuned, ""
    elif step == values["step"]:
        seconds, more = default, f"; with train --tune {default / tuned:.2f} times as fast"
    else:
        return None
    basis = f"measured by jaxgpt tune on this kind of device{more}"
    return StepTime(seconds=seconds, low=seconds * (1 - SPREAD), high=seconds * (1 + SPREAD), basis=basis)
