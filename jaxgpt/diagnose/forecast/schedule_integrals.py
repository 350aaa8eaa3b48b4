"""Integrals of a learning-rate schedule: the learning rate accumulated by a step, and the annealing progress there.

All learning rates are fractions of the peak. The cumulative learning rate of order p is the sum of fraction^p. The
annealing progress is 0 at the peak and near 1 at a learning rate of 0. A long schedule is kept as `MAX_BLOCKS` means,
so that a million steps cost as much as a thousand.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_BLOCKS = 4096
MAX_DECREMENTS = 256  # decrements of the learning rate that the kernel distinguishes
MAX_TARGETS = 512  # steps at which the kernel is evaluated; it is interpolated linearly between them
# The Multi-Power Law's kernel (Luo et al., 2025), with its constants for a learning rate over its peak.
KERNEL_SPEED, KERNEL_LR_EXPONENT, KERNEL_POWER = 0.11, 0.64, 0.58
MIN_LR_FRACTION = 1e-4  # of the peak: below it the kernel has practically taken full effect


@dataclass(frozen=True, eq=False)
class ScheduleIntegral:
    """A schedule in blocks: their `edges` in steps, from 0 to the length, and the mean `lr_fractions` between them."""

    edges: Floats
    lr_fractions: Floats
    warmup: int
    _cache: dict[float, Floats] = field(default_factory=dict, repr=False)

    @classmethod
    def from_lr_fractions(cls, lr_fractions: Floats, warmup: int) -> "ScheduleIntegral":
        """The integrals of a run whose step i has `lr_fractions[i]`; its `warmup` steps do not anneal."""
        total = len(lr_fractions)
        edges = np.unique(np.linspace(0, total, min(total, MAX_BLOCKS) + 1).round().astype(np.int64))
        sums = np.add.reduceat(lr_fractions, edges[:-1])
        return cls(edges.astype(np.float64), sums / np.diff(edges), warmup)

    @property
    def length(self) -> float:
        """Steps of the schedule."""
        return float(self.edges[-1])

    def cumulative_lr(self, p: float, steps: Floats) -> Floats:
        """The sum of fraction^p over the steps before each of `steps`."""
        return np.interp(steps, self.edges, self._cumulative_at_edges(p))

    def annealing_progress(self, q: float, kernel: bool, steps: Floats) -> Floats:
        """The part of the drop from the peak to a learning rate of 0 that has taken effect before each of `steps`.

        Without the kernel that is 1 - fraction^q at once; with it, each decrement takes effect gradually.
        """
        if not kernel:
            return np.interp(steps, self._block_centers(), self._block_progress(q))
        if len(steps) <= MAX_TARGETS:
            return self._delayed_progress(q, steps)
        knots = np.linspace(0, self.length, MAX_TARGETS)
        return np.interp(steps, knots, self._delayed_progress(q, knots))

    def _cumulative_at_edges(self, p: float) -> Floats:
        """Cached, because all law variants use the same few orders."""
        if p not in self._cache:
            self._cache[p] = np.concatenate(([0.0], np.cumsum(self.lr_fractions**p * np.diff(self.edges))))
        return self._cache[p]

    def _block_centers(self) -> Floats:
        """The step of each block's mean; a block of one step counts once that step is done."""
        width = np.diff(self.edges)
        return self.edges[:-1] + (width + 1) / 2

    def _block_progress(self, q: float) -> Floats:
        """1 - fraction^q of each block, 0 in the warmup."""
        return np.where(self.edges[:-1] < self.warmup, 0.0, 1 - self.lr_fractions**q)

    def _delayed_progress(self, q: float, steps: Floats) -> Floats:
        positions, sizes, fractions = self._decrements(q)
        speed = KERNEL_SPEED * np.maximum(fractions, MIN_LR_FRACTION) ** -KERNEL_LR_EXPONENT
        distance = np.maximum(self.cumulative_lr(1.0, steps)[:, None] - positions, 0.0)
        progress: Floats = (1 - (1 + speed * distance) ** -KERNEL_POWER) @ sizes
        return progress

    def _decrements(self, q: float) -> tuple[Floats, Floats, Floats]:
        """Decrements in groups: cumulative learning rate before each, its size, and the learning rate after it."""
        changes = np.diff(self._block_progress(q), prepend=0.0)
        blocks = np.flatnonzero(changes)
        if not len(blocks):
            return np.zeros(1), np.zeros(1), np.ones(1)
        changes = changes[blocks]
        group = self._group(changes)
        weight = np.bincount(group, np.abs(changes))
        before = self._cumulative_at_edges(1.0)[:-1][blocks]
        position = np.bincount(group, np.abs(changes) * before) / weight
        fraction = np.bincount(group, np.abs(changes) * self.lr_fractions[blocks]) / weight
        return position, np.bincount(group, changes).astype(np.float64), fraction

    def _group(self, changes: Floats) -> NDArray[np.int64]:
        """A group number from 0 for each decrement: at most `MAX_DECREMENTS` groups, even in time and in size."""
        if len(changes) <= MAX_DECREMENTS:
            return np.arange(len(changes))
        weight = np.abs(changes) / np.abs(changes).sum() + 1 / len(changes)
        group = np.minimum((np.cumsum(weight) / 2 * MAX_DECREMENTS).astype(np.int64), MAX_DECREMENTS - 1)
        return np.cumsum(np.diff(group, prepend=group[0]) > 0)
