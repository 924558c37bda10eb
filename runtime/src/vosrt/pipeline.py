"""Decode → encode → track → write, each in its own thread, joined by short queues.

The slowest stage sets the pace; the queues only hide jitter, so memory stays bounded. However
the run ends (the last frame, an error in any stage, Ctrl-C), results that exist are written and the sink is
closed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.errors import OptionError, VosrtError
from vosrt.types import StepResult, U8Array
from vosrt.video.base import Frame, FrameSink, FrameSource, SegmentedFrame

STAGES = ("decode", "encode", "track", "write")

_FRAMES_AHEAD = 4
_EMBEDDINGS_AHEAD = 1  # 13 MB each at 480p and 512 channels
_RESULTS_AHEAD = 4
_TIMINGS_KEPT = 20_000  # a camera may run for days
_POLL_S = 0.1  # how long Ctrl-C may wait
_ABANDON_S = 3.0  # how long a source may take to notice that its reader has gone

Item = TypeVar("Item")


class Pending(Protocol):
    """A result that may still be on its way."""

    def result(self) -> StepResult:
        """Wait for it."""


class Tracker(Protocol):
    """What carries labels from frame to frame: `vosrt.Stream`."""

    def prepare(self, frame: U8Array | DeviceTensor) -> Any:
        """Do for u8 [H, W, 3] BGR, also on a GPU, what can be done ahead of its turn: encode it, mostly."""

    def submit(self, frame: Any, mask: U8Array | None = None) -> Pending:
        """Take what ``prepare`` gave, with the annotation u8 [H, W] of this frame if there is one."""


@dataclass(frozen=True)
class StageTime:
    """Busy milliseconds per frame of one stage, waiting for other stages excluded."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class PipelineReport:
    """How a run went.

    Attributes:
        frames: results that were written.
        dropped: frames of a live source that were skipped to keep up.
        last_index: index of the last written frame in its source, -1 for none.
        wall_s: seconds from start to the closed sink.
        fps: frames per second from the first result to the last, so without warm-up.
        stages: per stage of `STAGES`, and below them those of the model, which are of `vosrt.types.STEP_STAGES`; for a
            live source also ``"latency"``, from a decoded picture to its written result.
        interrupted: Ctrl-C ended it.
        error: what ended it early, None if nothing did.
        moved: annotations of frames that the source left out, as (their frame, the next one, which took them).
    """

    frames: int
    dropped: int
    last_index: int
    wall_s: float
    fps: float
    stages: dict[str, StageTime] = field(default_factory=dict)
    interrupted: bool = False
    error: VosrtError | None = None
    moved: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Checkpoints:
    """How a run is kept, so that another process can go on with it.

    Attributes:
        save: gives the tracker's session after the newest frame.
        store: called in the writing thread with the index of a frame and the session after it, once it is written.
        every_s: seconds between sessions, at least; 0 keeps none.
        group: a session is saved after a multiple of so many frames.
        frames: written by the run that is continued.
        last_index: of the last of these in the source, -1 for none; they are decoded and passed over.
    """

    save: Callable[[], bytes]
    store: Callable[[int, bytes], None]
    every_s: float = 30.0
    group: int = 1
    frames: int = 0
    last_index: int = -1


class Channel(Generic[Item]):
    """A bounded queue between two threads which either side can end.

    Args:
        capacity: items that may wait.
        discardable: if given, a full channel makes room by discarding the oldest item that this
            accepts, instead of blocking the sender.
    """

    def __init__(self, capacity: int, discardable: Callable[[Item], bool] | None = None) -> None:
        self._capacity = capacity
        self._discardable = discardable
        self._items: deque[Item] = deque()
        self._finished = False
        self._cancelled = False
        self._changed = threading.Condition()
        self.discarded = 0

    def send(self, item: Item) -> bool:
        """Append an item, waiting for room; False if the receiver wants no more."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._cancelled:
                if self._discardable is None:
                    self._changed.wait()
                    continue
                victim = next((waiting for waiting in self._items if self._discardable(waiting)), None)
                if victim is not None:
                    self._items.remove(victim)
                elif self._discardable(item):
                    self.discarded += 1
                    return True
                else:
                    self._changed.wait()
                    continue
                self.discarded += 1
            if not self._cancelled:
                self._items.append(item)
                self._changed.notify_all()
            return not self._cancelled

    def __iter__(self) -> Iterator[Item]:
        """Yield items until the sender has finished and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._finished or self._cancelled)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def finish(self) -> None:
        """Sender: nothing more will come; what waits is still delivered."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """End the channel from the receiving side; items that wait are discarded."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()


class _Stopwatch:
    """Recent durations per name, in milliseconds; each name is written by one thread."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def add(self, name: str, milliseconds: float) -> None:
        if name not in self._times:
            self._times[name] = deque(maxlen=_TIMINGS_KEPT)
        self._times[name].append(milliseconds)

    def since(self, name: str, began: float) -> None:
        self.add(name, (time.perf_counter() - began) * 1e3)

    def summary(self) -> dict[str, StageTime]:
        names = [*STAGES, *(name for name in self._times if name not in STAGES)]
        return {
            name: StageTime(*(round(float(value), 3) for value in np.percentile(self._times[name], (50, 95))))
            for name in names
            if name in self._times
        }


class Pipeline:
    """One run over one source.

    Args:
        source: opened; it is closed at the end.
        tracker: makes labels; annotations are given to it in the order of the frames.
        annotations: per frame index, u8 [H, W]. Frames before the first are background, and cost nothing.
        sink: receives every result in order; it is closed at the end.
        on_result: called after each written result, in the writing thread.
        checkpoints: how the run is kept; None keeps nothing.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        tracker: Tracker,
        annotations: Mapping[int, U8Array],
        sink: FrameSink,
        on_result: Callable[[SegmentedFrame], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._source = source
        self._checkpoints = checkpoints
        self._tracker = tracker
        self._annotations = annotations
        self._sink = sink
        self._on_result = on_result
        self._watch = _Stopwatch()
        self._errors: list[BaseException] = []
        self._written = 0
        self._last_index = -1
        self._moved: list[tuple[int, int]] = []
        self._first_s = self._last_s = 0.0
        self._arrived: deque[tuple[int, float]] = deque()  # pictures of a live source that are under way, or dropped
        # A live source overwrites the frame that waits, so that what is shown is recent; an annotated one stays.
        live = source.info.live
        self._frames: Channel[Frame] = Channel(
            1 if live else _FRAMES_AHEAD, (lambda frame: frame.index not in annotations) if live else None
        )
        self._prepared: Channel[tuple[Frame, Any]] = Channel(1 if live else _EMBEDDINGS_AHEAD)
        self._results: Channel[tuple[Frame, Pending | None, bytes | None]] = Channel(_RESULTS_AHEAD)

    def run(self, stop: threading.Event | None = None) -> PipelineReport:
        """Run to the end of the source.

        Args:
            stop: ends the run when it is set, as Ctrl-C does.

        Returns:
            The report. Errors of the input or the work are in it, since results were written all the same.

        Raises:
            Exception: a defect in a stage, after the sink was closed.
        """
        began = time.perf_counter()
        stages = (self._decode, self._encode, self._track, self._write)
        ended = [threading.Event() for _ in stages]
        threads = [
            threading.Thread(target=self._guarded, args=(stage, event), name=f"vosrt-{name}", daemon=True)
            for name, stage, event in zip(STAGES, stages, ended, strict=True)
        ]
        interrupted = False
        try:
            for thread in threads:
                thread.start()
            interrupted = not _wait_for(ended, stop)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted:
            self._frames.cancel()
            self._prepared.cancel()
            _wait_for(ended[1:])
            ended[0].wait(_ABANDON_S)
        return self._report(time.perf_counter() - began, interrupted)

    def _guarded(self, stage: Callable[[], None], ended: threading.Event) -> None:
        """Run one stage, keep its error, and let the neighbours and ``run`` know that it has ended."""
        position = STAGES.index(stage.__name__.lstrip("_"))
        channels: tuple[Channel[Any], ...] = (self._frames, self._prepared, self._results)
        try:
            stage()
        except BaseException as error:
            self._errors.append(error)
        finally:
            for channel in channels[:position]:
                channel.cancel()
            for channel in channels[position : position + 1]:
                channel.finish()
            ended.set()

    def _decode(self) -> None:
        try:
            began = time.perf_counter()
            passed_over = -1 if self._checkpoints is None else self._checkpoints.last_index
            for frame in self._source:
                self._watch.since("decode", began)
                if self._source.info.live:
                    self._arrived.append((frame.index, time.perf_counter()))
                if frame.index > passed_over and not self._frames.send(frame):
                    break
                began = time.perf_counter()
        finally:
            self._source.close()

    def _encode(self) -> None:
        first_annotated = min(self._annotations, default=0)
        for frame in self._frames:
            prepared = None
            if frame.index >= first_annotated:
                began = time.perf_counter()
                prepared = self._tracker.prepare(frame.picture)
                self._watch.since("encode", began)
            if not self._prepared.send((frame, prepared)):
                break

    def _track(self) -> None:
        checkpoints, kept_s = self._checkpoints, time.perf_counter()
        frames, seen = (0, -1) if checkpoints is None else (checkpoints.frames, checkpoints.last_index)
        for frame, prepared in self._prepared:
            pending = session = None
            if prepared is not None:
                began = time.perf_counter()
                pending = self._tracker.submit(prepared, self._marks(seen, frame.index))
                self._watch.since("track", began)
            frames, seen = frames + 1, frame.index
            if checkpoints is not None and _due(checkpoints, frames, kept_s):
                try:
                    session = b"" if prepared is None else checkpoints.save()
                except OptionError:  # this tracker cannot be saved
                    checkpoints = None
                kept_s = time.perf_counter()
            if not self._results.send((frame, pending, session)):
                break

    def _marks(self, seen: int, index: int) -> U8Array | None:
        """Return the annotation u8 [H, W] of a frame, under which lie those of frames that are missing before it.

        A damaged frame that starts an object, or corrects one, must not take that with it.
        """
        marks = self._annotations.get(index)
        for each in sorted((each for each in self._annotations if seen < each < index), reverse=True):
            marks = self._annotations[each] if marks is None else np.where(marks > 0, marks, self._annotations[each])
            self._moved.append((each, index))
        return marks

    def _write(self) -> None:
        try:
            for frame, pending, session in self._results:
                self._write_one(self._segmented(frame, pending), session)
        except BaseException:
            with suppress(VosrtError):  # the first failure is the one that is reported
                self._sink.close()
            raise
        self._sink.close()

    def _write_one(self, result: SegmentedFrame, session: bytes | None) -> None:
        began = time.perf_counter()
        self._sink.write(result)
        if self._checkpoints is not None and session is not None:
            self._checkpoints.store(result.frame.index, session)
        self._watch.since("write", began)
        while self._arrived and self._arrived[0][0] <= result.frame.index:
            index, arrived = self._arrived.popleft()
            if index == result.frame.index:
                self._watch.since("latency", arrived)
        self._last_s = time.perf_counter()
        self._first_s = self._first_s or self._last_s
        self._written += 1
        self._last_index = result.frame.index
        if self._on_result is not None:
            self._on_result(result)

    def _segmented(self, frame: Frame, pending: Pending | None) -> SegmentedFrame:
        """A frame with its result, waited for if a GPU is still at work on it."""
        if pending is None:
            return SegmentedFrame(frame, np.zeros(frame.picture.shape[:2], np.uint8), ())
        step = pending.result()
        for name, milliseconds in step.timings_ms.items():
            self._watch.add(name, milliseconds)
        return SegmentedFrame.of(frame, step)

    def _report(self, wall_s: float, interrupted: bool) -> PipelineReport:
        for error in self._errors:
            if not isinstance(error, VosrtError):
                raise error
        steady_s = self._last_s - self._first_s
        return PipelineReport(
            frames=self._written,
            dropped=self._frames.discarded,
            last_index=self._last_index,
            wall_s=wall_s,
            fps=(self._written - 1) / steady_s if steady_s > 0 else 0.0,
            stages=self._watch.summary(),
            interrupted=interrupted,
            error=next((error for error in self._errors if isinstance(error, VosrtError)), None),
            moved=tuple(sorted(self._moved)),
        )


def _due(checkpoints: Checkpoints, frames: int, kept_s: float) -> bool:
    """Whether a session is saved after so many frames; the last one was saved at ``kept_s``."""
    every_s = checkpoints.every_s
    return every_s > 0 and frames % checkpoints.group == 0 and time.perf_counter() - kept_s >= every_s


def _wait_for(ended: list[threading.Event], stop: threading.Event | None = None) -> bool:
    """Wait in steps, as one long wait would hold up Ctrl-C on some systems; False if ``stop`` was set meanwhile.

    Not by joining threads: in Python 3.11, Ctrl-C within ``Thread.join`` takes a running thread for a finished one.
    """
    for event in ended:
        while not event.wait(_POLL_S):
            if stop is not None and stop.is_set():
                return False
    return True
