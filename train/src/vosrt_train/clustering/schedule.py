"""When pseudo-masks are made, and from when on they are used."""

from __future__ import annotations

from dataclasses import dataclass

from vosrt_train.mask_config import SegmentationConfig


@dataclass(frozen=True)
class MaskSchedule:
    """Generations of pseudo-masks over a training; generation 0 are the initial ones.

    Args:
        config: ``start``, ``updates`` and ``lag``.
        total_steps: length of the training.
    """

    config: SegmentationConfig
    total_steps: int

    @property
    def generations(self) -> int:
        """How many there are."""
        return 1 + self.config.updates

    def first_use(self, generation: int) -> int:
        """The step, from 0, from which on a generation is used; the end of the training for the one after the last."""
        start = round(self.config.start * self.total_steps)
        return start + (self.total_steps - start) * generation // self.generations

    def snapshot(self, generation: int) -> int:
        """The step before which the weights are taken that make a generation."""
        first = self.first_use(generation)
        interval = (self.total_steps - round(self.config.start * self.total_steps)) / self.generations
        return max(0, first - round(self.config.lag * interval))

    def in_use(self, step: int) -> int | None:
        """The generation that a step uses; None before the first."""
        return self._latest([self.first_use(generation) for generation in range(self.generations)], step)

    def snapshotted(self, step: int) -> int | None:
        """The latest generation whose weights are taken before this step or were before; None where there is none."""
        return self._latest([self.snapshot(generation) for generation in range(self.generations)], step)

    @staticmethod
    def _latest(steps: list[int], step: int) -> int | None:
        return max((generation for generation, first in enumerate(steps) if first <= step), default=None)
