"""The optimizers: one class each, with its update rule and what the planner knows of it.

A new optimizer is one module here and its line in `OPTIMIZERS`. Nothing here loads JAX before `make_update`.
"""

from typing import TYPE_CHECKING, Literal

from jaxgpt.optimizers.adamw import AdamW
from jaxgpt.optimizers.base import Optimizer
from jaxgpt.optimizers.muon import Muon
from jaxgpt.optimizers.normuon import NorMuon

OPTIMIZERS: dict[str, Optimizer] = {optimizer.name: optimizer for optimizer in (AdamW(), Muon(), NorMuon())}
SUMMARIES = "; ".join(f"{name}: {optimizer.summary}" for name, optimizer in OPTIMIZERS.items())

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
