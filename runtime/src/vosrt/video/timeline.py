"""The numbers and times of decoded frames, where a stream has holes, joins and clocks that jump."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_JUMP_S = 10.0  # a longer step is a jump of the clock, as in FFmpeg's dts_delta_threshold
_BACK_S = 0.1  # a shorter step back is a doubled or rounded timestamp
_REORDERED = 33  # frames within which a hole shows: decoders keep up to 16, and another 16 may be lost
_NUDGE = 0.01  # part of a step by which a doubled timestamp is moved
_REGULAR = 0.25  # part of a step by which the steps of a constant frame rate may differ


@dataclass
class Timeline:
    """Gives every decoded frame its number and its time.

    A packet that cannot be decoded keeps its number, so the frames after it keep theirs. Timestamps that restart or
    jump, as where recordings were joined, are shifted so that the frame follows the one before it by its duration.

    Attributes:
        step_s: nominal seconds from frame to frame.
        jumps_allowed: the format has one clock for all its frames, so that a long step is a long step.
        count: number of frames up to the most recent one, lost ones included.
        time_s: when the most recent frame is shown, in seconds.
        end_s: when it ends.
        lost: numbers of the frames that could not be decoded.
        damaged: numbers of the frames that were decoded with errors.
        joins: numbers of the frames at which the clock was mended.
    """

    step_s: float
    jumps_allowed: bool = True
    count: int = 0
    time_s: float = -math.inf
    end_s: float = -math.inf
    lost: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    joins: list[int] = field(default_factory=list)
    _offset_s: float = 0.0
    _undecoded: list[float | None] = field(default_factory=list)
    _hole_within: int = 0
    _regular: bool = True
    _resumed: bool = False

    def fail(self, stamp_s: float | None) -> None:
        """Note a packet that could not be decoded.

        Args:
            stamp_s: its timestamp in seconds; None if it has none.
        """
        self._undecoded.append(stamp_s)

    def note_hole(self) -> None:
        """Note that data is missing somewhere before the frames that come next, which decoders reorder."""
        self._hole_within = _REORDERED

    def resume(self, after_s: float) -> None:
        """Let the next frame follow ``after_s`` seconds after the most recent one, by a new clock."""
        self._undecoded.clear()
        self.end_s = self.time_s + max(after_s, self.step_s)
        self._resumed = True

    def place(
        self,
        stamp_s: float | None,
        duration_s: float = 0.0,
        *,
        damaged: bool = False,
        next_s: float | None = None,
    ) -> tuple[int, float]:
        """Return the number and the time in seconds of the next frame.

        Args:
            stamp_s: its timestamp in seconds; None if it has none.
            duration_s: how long it is shown; 0 if that is unknown.
            damaged: whether it was decoded with errors.
            next_s: timestamp of the frame after it in seconds; None where that is unknown.
        """
        began = self.time_s > -math.inf
        if began and stamp_s is not None and next_s is not None and self._is_alone(stamp_s, next_s):
            self.joins.append(self.count)
            stamp_s = None
        follows_s = self.end_s if began else 0.0
        time_s = follows_s if stamp_s is None else stamp_s + self._offset_s
        jumped = began and not self._resumed and self._is_jump(time_s - self.time_s, time_s - follows_s)
        if jumped or self._resumed:
            self._offset_s += follows_s - time_s
            time_s = follows_s
        lost = self._lost_before(None if jumped or self._resumed else stamp_s)
        step_s = duration_s or self.step_s
        if began and not (jumped or self._resumed):
            gap = round((time_s - follows_s) / self.step_s)
            if gap > lost and self._regular and (damaged or self._hole_within):
                lost, self._hole_within = gap, 0
            elif not lost and abs(time_s - follows_s) > _REGULAR * self.step_s:
                self._regular = False
        if time_s <= self.time_s:
            time_s = self.time_s + self.step_s * _NUDGE
        self.lost += range(self.count, self.count + lost)
        index = self.count + lost
        if jumped:
            self.joins.append(index)
        if damaged:
            self.damaged.append(index)
        self.count, self.time_s, self.end_s = index + 1, time_s, time_s + step_s
        self._hole_within = max(0, self._hole_within - 1)
        self._resumed = self._resumed and stamp_s is None  # RTSP may begin with frames of no timestamp
        return index, time_s

    @property
    def is_whole(self) -> bool:
        """Return whether nothing was lost, damaged or mended so far."""
        faults = self.lost or self.damaged or self.joins or self._undecoded
        return not (faults or self._hole_within or self._resumed)

    def go_on_as(self, other: Timeline) -> None:
        """Continue where another timeline was, of which `is_whole` holds."""
        vars(self).update(vars(other) | {name: [] for name in ("lost", "damaged", "joins", "_undecoded")})

    def close(self) -> int:
        """Count the packets at the end of the stream that could not be decoded, and return their number."""
        lost = self._lost_before(None)
        self.lost += range(self.count, self.count + lost)
        return lost

    def _is_alone(self, stamp_s: float, next_s: float) -> bool:
        """Return whether a timestamp is wrong by itself: the next one goes back, to where the frames before led."""
        expected_s = self.end_s - self._offset_s + self.step_s
        return stamp_s - next_s > max(_BACK_S, 2 * self.step_s) and abs(next_s - expected_s) < 2 * self.step_s

    def _is_jump(self, step_s: float, late_s: float) -> bool:
        if step_s < -max(_BACK_S, 2 * self.step_s):
            return True
        return not self.jumps_allowed and late_s > max(_JUMP_S, 3 * self.step_s)

    def _lost_before(self, stamp_s: float | None) -> int:
        """Take the packets that failed before ``stamp_s``, or all, off the list and return their number."""
        later = [] if stamp_s is None else [each for each in self._undecoded if each is not None and each >= stamp_s]
        lost = len(self._undecoded) - len(later)
        self._undecoded = [each for each in later if each != stamp_s]  # its picture came out after all
        return lost

    def warnings(self, name: str) -> list[str]:
        """Return one line for each kind of fault that was met."""
        lines = []
        if self.lost:
            lines.append(
                f"{name}: {name_frames(self.lost)} could not be decoded and {_is_or_are(self.lost)} left out; "
                "the other frames keep their numbers"
            )
        if self.damaged:
            lines.append(f"{name}: {name_frames(self.damaged)} {_is_or_are(self.damaged)} damaged")
        if self.joins:
            lines.append(
                f"{name}: the timestamps restart or jump at {name_frames(self.joins)}; "
                "its time was set to follow the frame before"
            )
        return lines


_LISTED = 5


def name_frames(numbers: Sequence[int]) -> str:
    """Name frames: ``frame 7``, ``frames 7, 8`` or ``120 frames (7, 8, 9, 10, 11, …)``."""
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    listed = ", ".join(map(str, numbers[:_LISTED]))
    return f"frames {listed}" if len(numbers) <= _LISTED else f"{len(numbers)} frames ({listed}, …)"


def _is_or_are(numbers: list[int]) -> str:
    return "is" if len(numbers) == 1 else "are"
