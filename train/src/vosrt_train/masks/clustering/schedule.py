"""The steps at which pseudo-masks are made and come into use."""

from __future__ import annotations

from dataclasses import dataclass

from vosrt_train.masks.config import SegmentationConfig


@dataclass(frozen=True)
class MaskSchedule:
    """Generations of pseudo-masks in a training; generation 0 is the initial one.

    Args:
        config: ``start``, ``updates`` and ``lag``.
    """

    config: SegmentationConfig
    total_steps: int

    @property
    def generations(self) -> int:
        """Number of generations."""
        return 1 + self.config.updates

    def first_use(self, generation: int) -> int:
        """Return the first step, from 0, that uses a generation; after the last, the length of the training."""
        start = round(self.config.start * self.total_steps)
        return start + (self.total_steps - start) * generation // self.generations

    def snapshot(self, generation: int) -> int:
        """Return the step before which the weights for a generation are copied."""
        first = self.first_use(generation)
        interval = (self.total_steps - round(self.config.start * self.total_steps)) / self.generations
        return max(0, first - round(self.config.lag * interval))

    def in_use(self, step: int) -> int | None:
        """Return the generation that a step uses; None before the first."""
        return self._latest([self.first_use(generation) for generation in range(self.generations)], step)

    def snapshotted(self, step: int) -> int | None:
        """Return the latest generation whose weights are copied before or at a step; None before the first."""
        return self._latest([self.snapshot(generation) for generation in range(self.generations)], step)

    @staticmethod
    def _latest(steps: list[int], step: int) -> int | None:
        return max((generation for generation, first in enumerate(steps) if first <= step), default=None)
