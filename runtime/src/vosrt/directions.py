"""Objects followed from their marks both ways through a file: forward, backward, and fused where two ways meet.

The way back comes first: its frames are decoded again in chunks, and its results wait in a temporary file. The way
forward then takes them from there, so that results come in the order of time.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vosrt.errors import OptionError, VosrtError
from vosrt.pipeline import Channel, Checkpoints, Pipeline, PipelineReport
from vosrt.types import F32Array, U8Array
from vosrt.video.base import FrameSink, FrameSource, SegmentedFrame, SourceOptions, is_pipe
from vosrt.video.key_frames import KeyFrames
from vosrt.video.levels import Levels
from vosrt.video.rewound import Reopen, Rewound
from vosrt.video.source import is_live, open_source
from vosrt.video.spool import Spool

if TYPE_CHECKING:
    from vosrt.budget import BudgetedStream
    from vosrt.stream import MaskArray, Stream

Direction = Literal["forward", "backward", "both"]

_AHEAD = 2  # results that wait for the caller
_MARKED = 1e-6  # frames from a mark to itself, so that it wins there

BoolArray = NDArray[np.bool_]


def check_direction(direction: str, source: str) -> None:
    """Refuse directions that do not exist, and ways back through what can be read only once.

    Args:
        source: likewise; it need not exist.

    Raises:
        OptionError: one of the two.
    """
    if direction not in get_args(Direction):
        raise OptionError(f"--direction is {direction!r}; expected forward, backward or both")
    if direction != "forward" and (is_live(source) or is_pipe(source) or "://" in source):
        raise OptionError(
            f"--direction {direction} reads frames a second time, which {source} does not allow; "
            "give a video file or a folder of frames"
        )


class _IntoSpool:
    """The sink of the way back, whose frames count from the last one."""

    def __init__(self, spool: Spool, last: int) -> None:
        self._spool, self._last = spool, last

    def write(self, item: SegmentedFrame) -> None:
        self._spool.put(self._last - item.frame.index, item)

    def close(self) -> None:
        """Keep the spool open: it is read next."""


class Fused:
    """Fuses what comes forward with what the way back found, on its way to another sink.

    Args:
        spool: has the results of the way back.
        marks: per frame index, u8 [H, W].
    """

    def __init__(self, sink: FrameSink, spool: Spool, marks: Mapping[int, U8Array]) -> None:
        self._sink, self._spool = sink, spool
        self._marked: dict[int, list[int]] = {0: sorted(marks)}
        for index in self._marked[0]:
            for object_id in (int(value) for value in np.unique(marks[index]) if value):
                self._marked.setdefault(object_id, []).append(index)

    def write(self, item: SegmentedFrame) -> None:
        """Pass on what both ways say of a frame."""
        if item.frame.index in self._spool:
            backward = self._spool.result(item.frame)
            item = fuse(item, backward, *self._trust(item.frame.index)) if item.object_ids else backward
        self._sink.write(item)

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()

    def _trust(self, index: int) -> tuple[F32Array, F32Array]:
        """Return per label how near the mark before a frame is and the one after it, as 1 / frames, f32 [256] each."""
        forward, backward = np.zeros(256, np.float32), np.zeros(256, np.float32)
        for label, marked in self._marked.items():
            before, after = bisect_right(marked, index) - 1, bisect_left(marked, index)
            if before >= 0:
                forward[label] = 1 / max(index - marked[before], _MARKED)
            if after < len(marked):
                backward[label] = 1 / max(marked[after] - index, _MARKED)
        return forward, backward


def fuse(
    forward: SegmentedFrame, backward: SegmentedFrame, forward_trust: F32Array, backward_trust: F32Array
) -> SegmentedFrame:
    """Fuse two results of one frame: each pixel takes the label with the larger product of confidence and trust.

    Background of a way that does not follow an object yet says nothing against that object.

    Args:
        forward: with its confidence, like ``backward``.
        forward_trust: per label, f32 [256], 0 or more.
        backward_trust: likewise.
    """
    ours, theirs = forward.labels, backward.labels
    if forward.confidence is None or backward.confidence is None:
        raise ValueError("results are fused by their confidence")
    taken = backward.confidence * backward_trust[theirs] > forward.confidence * forward_trust[ours]
    taken |= (ours == 0) & ~_known(forward)[theirs]
    taken &= ~((theirs == 0) & ~_known(backward)[ours])
    labels = np.where(taken, theirs, ours)
    confidence = np.where(taken, backward.confidence, forward.confidence)
    ids = tuple(sorted({*forward.object_ids, *backward.object_ids}))
    areas = np.bincount(labels.reshape(-1), minlength=256)
    sums = np.bincount(labels.reshape(-1), confidence.reshape(-1), minlength=256)
    means = {object_id: float(sums[object_id] / max(areas[object_id], 1)) for object_id in ids}
    return SegmentedFrame(forward.frame, labels, ids, means, confidence=confidence)


def _known(item: SegmentedFrame) -> BoolArray:
    known = np.zeros(256, bool)
    known[[0, *item.object_ids]] = True
    return known


class _Idle:
    """A tracker where nothing goes forward."""

    def prepare(self, frame: Any) -> None:
        """Every frame is background until the way back says otherwise."""

    def submit(self, frame: Any, mask: U8Array | None = None) -> Any:
        raise AssertionError("no frame was prepared")


def follow(
    source: FrameSource,
    direction: Direction,
    *,
    open_stream: Callable[[], Stream | BudgetedStream],
    reopen: Reopen,
    annotations: Mapping[int, U8Array],
    sink: FrameSink,
    beside: Path | None = None,
    on_result: Callable[[SegmentedFrame], None] | None = None,
    checkpoints: Checkpoints | None = None,
    session: bytes = b"",
    stop: threading.Event | None = None,
) -> PipelineReport:
    """Follow objects through a source and give every frame's result to a sink, in the order of time.

    Args:
        source: opened; it is closed at the end.
        direction: ways back need a source that can be read again.
        reopen: opens the source from a frame to the one before another; same pixels.
        annotations: per frame index, u8 [H, W].
        sink: is closed at the end.
        beside: folder of the temporary file of the way back; None is the system's.
        on_result: called after each result of either way, in a writing thread.
        checkpoints: of the way forward; ``save`` is that of its stream where there is one. A run that goes on takes the
            way back once more, to the frame where it goes on.
        session: of the way forward, where a run goes on.
        stop: ends the run when it is set, as Ctrl-C does.

    Returns:
        The report of the way forward, with the time of both.
    """
    with ExitStack() as opened:
        back = None
        if direction != "forward":
            spool = opened.enter_context(Spool(beside))
            first = max(source.first.index, checkpoints.last_index + 1 if checkpoints else 0)
            try:
                back = _go_back(source, first, spool, open_stream, reopen, annotations, on_result, stop)
            except VosrtError as error:
                back = PipelineReport(0, 0, -1, 0.0, 0.0, error=error)
            if back.error is not None or back.interrupted:
                source.close()
                sink.close()
                return replace(back, frames=0, last_index=-1)
            sink = Fused(sink, spool, annotations)
        tracker: Stream | BudgetedStream | _Idle = _Idle()
        if direction != "backward":
            stream = tracker = open_stream()
            opened.enter_context(stream)
            if session:
                stream.load(session)
            checkpoints = replace(checkpoints, save=stream.save) if checkpoints else None
        report = Pipeline(
            source,
            tracker=tracker,
            annotations={} if direction == "backward" else annotations,
            sink=sink,
            on_result=on_result,
            checkpoints=checkpoints,
        ).run(stop)
    return report if back is None else _joined(report, back, direction)


def _go_back(
    source: FrameSource,
    first: int,
    spool: Spool,
    open_stream: Callable[[], Stream | BudgetedStream],
    reopen: Reopen,
    annotations: Mapping[int, U8Array],
    on_result: Callable[[SegmentedFrame], None] | None,
    stop: threading.Event | None,
) -> PipelineReport:
    """Follow the objects from the last mark back to frame ``first``, into a spool."""
    nothing = PipelineReport(0, 0, -1, 0.0, 0.0)
    if max(annotations) < first:
        return nothing
    rewound = Rewound(reopen, source, first, max(annotations))
    marks = {rewound.last - index: mask for index, mask in annotations.items() if first <= index <= rewound.last}
    if not marks:
        return nothing
    with open_stream() as stream:
        report = Pipeline(
            rewound, tracker=stream, annotations=marks, sink=_IntoSpool(spool, rewound.last), on_result=on_result
        ).run(stop)
    last = rewound.last
    return replace(report, moved=tuple(sorted((last - mark, last - taken) for mark, taken in report.moved)))


def _joined(report: PipelineReport, back: PipelineReport, direction: Direction) -> PipelineReport:
    """Return the report of both ways; where nothing went forward, the stages are those of the way back."""
    wall_s = report.wall_s + back.wall_s
    stages = back.stages | report.stages
    if direction == "backward":
        stages |= {name: time for name, time in back.stages.items() if name not in ("decode", "write")}
    fps = report.frames / wall_s if wall_s > 0 else 0.0
    moved = back.moved if direction == "backward" else report.moved
    return replace(report, wall_s=wall_s, fps=fps, stages=stages, moved=moved)


class _IntoChannel:
    """A sink from which the caller reads."""

    def __init__(self, results: Channel[SegmentedFrame]) -> None:
        self._results = results

    def write(self, item: SegmentedFrame) -> None:
        self._results.send(item)

    def close(self) -> None:
        """Leave the end to the thread that runs."""


def propagate(
    open_stream: Callable[[], Stream],
    source: str | Path,
    marks: Mapping[int, MaskArray],
    *,
    direction: Direction,
    start: int = 0,
    end: int | None = None,
) -> Iterator[SegmentedFrame]:
    """What `vosrt.Model.propagate` does, on streams that ``open_stream`` opens."""
    from vosrt.stream import as_mask

    text, levels = str(source), Levels()
    check_direction(direction, text)
    if not marks:
        raise OptionError("marks is empty; expected a mask [H, W] of at least one frame, by its number")
    opened = open_source(text, start=start, end=end, options=SourceOptions(levels=levels))
    try:
        last = None if opened.info.frame_count is None else start + opened.info.frame_count - 1
        for index in marks:
            if index < start or (last is not None and index > last):
                known = f"{start} to {last}" if last is not None else f"{start} or later"
                raise OptionError(
                    f"marks names frame {index}, which is not among those that are read; expected {known}"
                )
        annotations = {
            int(index): as_mask(mask, opened.info.height, opened.info.width) for index, mask in marks.items()
        }
    except BaseException:
        opened.close()
        raise

    again = SourceOptions(levels=levels, keys=KeyFrames())

    def reopen(begin: int, before: int) -> FrameSource:
        return open_source(text, start=begin, end=before, options=again)

    def run(sink: FrameSink, stop: threading.Event) -> PipelineReport:
        return follow(
            opened,
            direction,
            open_stream=open_stream,
            reopen=reopen,
            annotations=annotations,
            sink=sink,
            stop=stop,
        )

    return _iterate(run)


def _iterate(run: Callable[[FrameSink, threading.Event], PipelineReport]) -> Iterator[SegmentedFrame]:
    """Yield what a run in another thread gives to its sink; then raise what ended it."""
    results: Channel[SegmentedFrame] = Channel(_AHEAD)
    stop = threading.Event()
    errors: list[BaseException | None] = []

    def work() -> None:
        try:
            errors.append(run(_IntoChannel(results), stop).error)
        except BaseException as error:  # raised where the results are taken
            errors.append(error)
        finally:
            results.finish()

    thread = threading.Thread(target=work, name="vosrt-propagate", daemon=True)
    thread.start()
    try:
        yield from results
    finally:
        stop.set()
        results.cancel()
        thread.join()
    if errors[0] is not None:
        raise errors[0]
