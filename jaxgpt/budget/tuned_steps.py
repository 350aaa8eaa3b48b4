"""Step times that `jaxgpt tune` has measured on this machine: files in the user's cache, one per device and step."""

from pathlib import Path
from typing import Any

from jaxgpt.budget import devices
from jaxgpt.budget.calibration import Calibration
from jaxgpt.budget.devices import Device
from jaxgpt.budget.step_time import StepTime
from jaxgpt.config import Config
from jaxgpt.errors import JaxgptError
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


def find_tuned(config: Config, device: Device | None) -> Calibration | None:
    """The newest result for this step on this kind of device (None: a CPU); None if it was never tuned."""
    files = tuning_folder().glob("*.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            values = read_json(file)
            is_same = values["step"] == step_values(config) and devices.lookup(values["device"]["kind"]) == device
            if is_same:
                return _calibration(values, config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JaxgptError):
            continue
    return None


def _calibration(values: dict[str, Any], config: Config) -> Calibration:
    seconds = float(values["winner_seconds"])
    basis = "measured by jaxgpt tune on this kind of device"
    time = StepTime(seconds=seconds, low=seconds * (1 - SPREAD), high=seconds * (1 + SPREAD), basis=basis)
    return Calibration(source="jaxgpt tune", measured=time, measured_config=config.replace(values["changes"]))
