"""What a learning rate schedule has done to a run by an update: how far it has travelled, how far it is annealed.

All rates are shares of the peak. The travel of order p is the sum of rate^p; the anneal is 0 at the peak and near 1 at
a rate of zero. A long schedule is kept in `BLOCKS` mean rates, so that everything costs the same for 1,000 updates as
for a million.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLOCKS = 4096
SOURCES = 256  # falls of the rate that the kernel tells apart
TARGETS = 512  # updates at which the kernel is evaluated; between them it is a line
# The Multi-Power Law's kernel (Luo et al., 2025), with its constants for a rate over its peak.
KERNEL_SPEED, KERNEL_RATE, KERNEL_POWER = 0.11, 0.64, 0.58
MIN_LR_FRACTION = 1e-4  # of the peak: below it the kernel is as good as done


@dataclass(frozen=True, eq=False)
class ScheduleIntegral:
    """A schedule in blocks: `edges` in updates (the first 0, the last the length), and the mean rate between them."""

    edges: Floats
    rates: Floats
    warmup: int
    _known: dict[float, Floats] = field(default_factory=dict, repr=False)

    @classmethod
    def from_lr_fractions(cls, rates: Floats, warmup: int) -> "ScheduleIntegral":
        """The course of a run whose update i has the rate `rates[i]`; `warmup` updates of it anneal nothing."""
        total = len(rates)
        edges = np.unique(np.linspace(0, total, min(total, BLOCKS) + 1).round().astype(np.int64))
        sums = np.add.reduceat(rates, edges[:-1])
        return cls(edges.astype(np.float64), sums / np.diff(edges), warmup)

    @property
    def length(self) -> float:
        return float(self.edges[-1])

    def cumulative_lr(self, p: float, updates: Floats) -> Floats:
        """The sum of rate^p over the updates before each of `updates`."""
        return np.interp(updates, self.edges, self._travelled(p))

    def annealing_progress(self, q: float, kernel: bool, updates: Floats) -> Floats:
        """How much of the drop from the peak to a rate of zero has come about before each of `updates`.

        Without the kernel that is 1 - rate^q at once; with it each fall of the rate takes effect as the run goes on.
        """
        if not kernel:
            return np.interp(updates, self._middles(), self._fallen(q))
        if len(updates) <= TARGETS:
            return self._kernel(q, updates)
        knots = np.linspace(0, self.length, TARGETS)
        return np.interp(updates, knots, self._kernel(q, knots))

    def _travelled(self, p: float) -> Floats:
        """The travel until each edge; kept, because all shapes ask for the same few orders."""
        if p not in self._known:
            self._known[p] = np.concatenate(([0.0], np.cumsum(self.rates**p * np.diff(self.edges))))
        return self._known[p]

    def _middles(self) -> Floats:
        """The place of each block's mean: a block of one update counts once that update is done."""
        width = np.diff(self.edges)
        return self.edges[:-1] + (width + 1) / 2

    def _fallen(self, q: float) -> Floats:
        """1 - rate^q of each block, 0 in the warmup."""
        return np.where(self.edges[:-1] < self.warmup, 0.0, 1 - self.rates**q)

    def _kernel(self, q: float, updates: Floats) -> Floats:
        places, falls, rates = self._falls(q)
        speed = KERNEL_SPEED * np.maximum(rates, MIN_LR_FRACTION) ** -KERNEL_RATE
        distance = np.maximum(self.cumulative_lr(1.0, updates)[:, None] - places, 0.0)
        done: Floats = (1 - (1 + speed * distance) ** -KERNEL_POWER) @ falls
        return done

    def _falls(self, q: float) -> tuple[Floats, Floats, Floats]:
        """Falls of the rate, near ones together: the travel until each, its size, and the rate after it."""
        fallen = self._fallen(q)
        falls = np.diff(fallen, prepend=0.0)
        kept = np.flatnonzero(falls)
        if not len(kept):
            return np.zeros(1), np.zeros(1), np.ones(1)
        travel = self._travelled(1.0)[:-1][kept]
        group = self._groups(kept, falls[kept])
        size = np.bincount(group, np.abs(falls[kept]))
        where, rate = (np.bincount(group, np.abs(falls[kept]) * value) / size for value in (travel, self.rates[kept]))
        return where, np.bincount(group, falls[kept]).astype(np.float64), rate

    def _groups(self, kept: NDArray[np.int64], falls: Floats) -> NDArray[np.int64]:
        """A number from 0 for each fall: as many groups as `SOURCES` at most, even in time and in size."""
        if len(kept) <= SOURCES:
            return np.arange(len(kept))
        weight = np.abs(falls) / np.abs(falls).sum() + 1 / len(falls)
        group = np.minimum((np.cumsum(weight) / 2 * SOURCES).astype(np.int64), SOURCES - 1)
        return np.cumsum(np.diff(group, prepend=group[0]) > 0)
