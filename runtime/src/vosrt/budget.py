"""A stream that keeps the time of a frame under a budget, by giving up working size and context while it runs."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from vosrt.encoder import FrameArray
from vosrt.errors import InputError, MaskError, OptionError
from vosrt.locking import Closing
from vosrt.stream import MaskArray, PendingStep, Stream
from vosrt.text import counted
from vosrt.types import F32Array, StepResult

_SEEN = 5  # frames whose median decides: one slow frame changes nothing
_PATIENCE = 48  # frames at one setting before a better one is tried
_LONGEST = 16 * _PATIENCE
_ROOM = 0.8  # a better setting is tried if it should take at most this share of the budget
_SMALLEST = 96  # pixels; below that objects are a few cells
# Shares of the size and of the context, best first. The encoder's time goes with the area.
_LADDER = ((1.0, 1.0), (1.0, 0.5), (0.75, 0.5), (0.625, 0.5), (0.5, 0.5), (0.5, 0.25), (0.375, 0.25))


@dataclass(frozen=True)
class Setting:
    """Short side of the working frame in pixels, and recent frames attended to."""

    size: int
    context: int

    @property
    def work(self) -> int:
        """What a frame costs, in no unit: an encoder takes about as long as ten slots at most sizes."""
        return self.size**2 * (10 + self.context)


def ladder(best: Setting, *, smallest: int, stride: int) -> list[Setting]:
    """Settings from the best one down.

    Args:
        smallest: short side that the encoder takes, in pixels.
        stride: pixels that sizes are multiples of; the best one stays as it is.
    """
    steps = [best]
    for size, context in _LADDER[1:]:
        side = best.size if size == 1 else max(round(size * best.size / stride) * stride, smallest, _SMALLEST)
        setting = Setting(min(side, best.size), int(context * best.context))
        if setting.work < steps[-1].work:
            steps.append(setting)
    return steps


@dataclass
class Budget:
    """Decide which setting comes next from how long frames took.

    Attributes:
        budget_ms: milliseconds that a frame may take.
        settings: best first.
        level: index of the present setting.
        frames: observed so far.
        within: of these, frames that kept the budget.
        changes: index of the frame after which a setting came, and that setting.
        obstacle: why settings below the last one cannot be had; "" if nothing is known against them.
    """

    budget_ms: float
    settings: list[Setting]
    level: int = 0
    frames: int = 0
    within: int = 0
    changes: list[tuple[int, Setting]] = field(default_factory=list)
    obstacle: str = ""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_SEEN))
    _since: int = 0  # frames since the last change
    _wait: int = _PATIENCE
    _climbed: bool = False

    def __post_init__(self) -> None:
        """Check the budget."""
        if not self.budget_ms > 0:
            raise OptionError(f"the budget is {self.budget_ms:g} ms; expected more than 0 milliseconds for a frame")

    def observe(self, frame_ms: float) -> int:
        """Take the time of a frame and return the level that the next one should have."""
        self.frames += 1
        self.within += frame_ms <= self.budget_ms
        self._since += 1
        self._recent.append(frame_ms)
        if len(self._recent) < _SEEN:
            return self.level
        usual = statistics.median(self._recent)
        if usual > self.budget_ms:
            return min(self.level + 1, len(self.settings) - 1)
        if self.level > 0 and self._since >= self._wait:
            better, present = self.settings[self.level - 1], self.settings[self.level]
            if usual * better.work / present.work <= _ROOM * self.budget_ms:
                return self.level - 1
        return self.level

    def change(self, level: int) -> None:
        """Take a setting. One that was tried and given up at once is tried again only after twice the time."""
        if level > self.level and self._climbed and self._since < _PATIENCE:
            self._wait = min(2 * self._wait, _LONGEST)
        self._climbed = level < self.level
        self.level, self._since = level, 0
        self._recent.clear()
        self.changes.append((self.frames - 1, self.settings[level]))

    def stay(self, why: str) -> None:
        """Keep the present setting because the next one cannot be had."""
        del self.settings[self.level + 1 :]
        self.obstacle = why
        self._recent.clear()

    def report(self) -> dict[str, Any]:
        """What was kept and what was given up, as plain values."""
        best, last = self.settings[0], self.settings[self.level]
        return {
            "budget_ms": self.budget_ms,
            "within": round(self.within / max(self.frames, 1), 4),
            "asked": vars(best),
            "last": vars(last),
            "changes": [{"after_frame": frame, **vars(setting)} for frame, setting in self.changes],
            "obstacle": self.obstacle,
        }

    def summary(self) -> str:
        """The report in a sentence."""
        best, last = self.settings[0], self.settings[self.level]
        kept = f"{self.budget_ms:g} ms kept in {100 * self.within / max(self.frames, 1):.0f} % of frames"
        if not self.changes:
            return f"{kept}, nothing given up" + (f": {self.obstacle}" if self.obstacle else "")
        size = f"size {last.size} instead of {best.size}" if last.size != best.size else ""
        context = f"context {last.context} instead of {best.context}" if last.context != best.context else ""
        gave = " and ".join(each for each in (size, context) if each) or "nothing at the end"
        return f"{kept}; given up: {gave} ({counted(len(self.changes), 'change')})" + (
            f"; {self.obstacle}" if self.obstacle else ""
        )


class BudgetedStream(Closing):
    """A stream of one video whose setting follows the time of its frames. Made by ``Model.stream_within``.

    Another setting is another stream: it sees the marked frames again, with their marks, then the newest frame with the
    soft masks that it had, so that every object goes on. A change takes the time of that many frames. Where an object
    would be too small for the grid, the setting stays. The states of objects (lost, back) begin again.

    Args:
        open_stream: opens a stream with a setting.
        clock: seconds.
    """

    def __init__(
        self, open_stream: Callable[[Setting], Stream], budget: Budget, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._open, self._clock = open_stream, clock
        self.budget = budget
        self._stream: Stream | None = open_stream(budget.settings[budget.level])
        self._marks: list[tuple[FrameArray, MaskArray]] = []
        self._index = -1

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        return self._stream.object_ids if self._stream else ()

    def prepare(self, frame: FrameArray) -> FrameArray:
        """Return the frame: its size is known only when its turn comes."""
        return frame

    def submit(self, frame: FrameArray, mask: MaskArray | None = None) -> PendingStep:
        """`step`, as `vosrt.Stream.submit`."""
        return PendingStep(self.step(frame, mask))

    def step(self, frame: FrameArray, mask: MaskArray | None = None) -> StepResult:
        """Take the next frame; see `vosrt.Stream.step`. Its time decides on the setting of the next one."""
        if self._stream is None:
            raise InputError("the stream is closed; open another with model.stream_within()")
        began = self._clock()
        result = self._stream.step(frame, mask)
        took_ms = 1e3 * (self._clock() - began)
        self._index += 1
        if mask is not None:
            self._marks.append((np.array(frame), mask.copy()))
        level = self.budget.observe(took_ms)
        if level != self.budget.level and self._marks:
            self._change(self._stream, level, frame, marked=mask is not None)
        return replace(result, index=self._index)

    def _change(self, stream: Stream, level: int, frame: FrameArray, *, marked: bool) -> None:
        soft, fresh = stream.soft_masks(), self._open(self.budget.settings[level])
        try:
            for seen, mask in self._marks:
                fresh.step(seen, mask)
            if not marked:
                fresh.step(frame)
                fresh.set_soft_masks(_resized(soft, fresh.soft_masks().shape[:2]))
        except MaskError as error:
            fresh.close()
            self.budget.stay(f"size {self.budget.settings[level].size} cannot be had: {error}")
            return
        except BaseException:
            fresh.close()
            raise
        stream.close()
        self._stream = fresh
        self.budget.change(level)

    def save(self) -> bytes:
        """Refuse: a session has one size.

        Raises:
            OptionError: always.
        """
        raise OptionError("a stream with a budget cannot be saved; open it without one")

    def load(self, session: bytes) -> None:
        """Refuse, as `save`."""
        del session
        self.save()

    def close(self) -> None:
        """Free the memory."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def _resized(soft: F32Array, shape: tuple[int, ...]) -> F32Array:
    """Soft masks f32 [h, w, C] on another grid; their sums stay 1."""
    height, width = shape
    how = cv2.INTER_AREA if height < soft.shape[0] else cv2.INTER_LINEAR
    channels = [
        cv2.resize(np.ascontiguousarray(soft[..., c]), (width, height), interpolation=how) for c in range(soft.shape[2])
    ]
    out: F32Array = np.ascontiguousarray(np.clip(np.stack(channels, axis=-1), 0.0, None), np.float32)
    return out
