"""The stages overlap, keep order, and end cleanly wherever and however the run ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vosrt.arrays import DeviceTensor
from vosrt.errors import BrokenVideoError, EngineError, MaskError, VosrtError, WorkError
from vosrt.pipeline import STAGES, Channel, Pipeline
from vosrt.stream import PendingStep
from vosrt.types import StepResult, U8Array
from vosrt.video.base import Frame, SegmentedFrame, SourceInfo

HEIGHT, WIDTH = 6, 8


class Parts:
    """Source, encoder, tracker and sink in one, with an event per call."""

    def __init__(self, count: int = 12, *, live: bool = False) -> None:
        self.info = SourceInfo("parts", WIDTH, HEIGHT, 25.0, count, live)
        self.first = self._frame(0)
        self.warnings: tuple[str, ...] = ()
        self.count = count
        self.before: Callable[[str, int], None] = lambda stage, index: None
        self.encoded: list[int] = []
        self.tracked: list[tuple[int, bool]] = []
        self.written: list[SegmentedFrame] = []
        self.missing: set[int] = set()
        self.source_closed = self.sink_closed = False

    def _frame(self, index: int) -> Frame:
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[0, 0, :2] = divmod(index, 256)
        return Frame(image, index, index / 25, f"{index:05d}")

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            self.before("decode", index)
            if index not in self.missing:
                yield self._frame(index)

    def prepare(self, frame: U8Array | DeviceTensor) -> int:
        assert isinstance(frame, np.ndarray)
        index = 256 * int(frame[0, 0, 0]) + int(frame[0, 0, 1])
        self.before("encode", index)
        self.encoded.append(index)
        return index

    def submit(self, frame: Any, mask: U8Array | None = None) -> PendingStep:
        self.before("track", frame)
        self.tracked.append((frame, mask is not None))
        labels = np.full((HEIGHT, WIDTH), 1, np.uint8)
        return PendingStep(StepResult(frame, labels, labels.astype(np.float32), (1,), {"match": 2.0}))

    def write(self, item: SegmentedFrame) -> None:
        self.before("write", item.frame.index)
        self.written.append(item)

    def close(self) -> None:
        if threading.current_thread().name == "vosrt-decode":
            self.source_closed = True
        else:
            self.sink_closed = True

    def pipeline(self, annotated: tuple[int, ...] = (0,)) -> Pipeline:
        mask = np.ones((HEIGHT, WIDTH), np.uint8)
        annotations = dict.fromkeys(annotated, mask)
        return Pipeline(self, tracker=self, annotations=annotations, sink=self)

    @property
    def indexes(self) -> list[int]:
        return [item.frame.index for item in self.written]


def fail_at(stage: str, index: int, error: BaseException) -> Callable[[str, int], None]:
    def before(now: str, at: int) -> None:
        if (now, at) == (stage, index):
            raise error

    return before


def test_every_frame_goes_through_in_order() -> None:
    parts = Parts()
    report = parts.pipeline((0, 5)).run()
    assert parts.indexes == list(range(12))
    assert parts.tracked == [(index, index in (0, 5)) for index in range(12)]
    assert (report.frames, report.last_index, report.dropped) == (12, 11, 0)
    assert (report.error, report.interrupted) == (None, False)
    assert parts.source_closed
    assert parts.sink_closed
    assert set(report.stages) == {*STAGES, "match"}
    assert (report.stages["match"].p50_ms, report.stages["match"].p95_ms) == (2.0, 2.0)


def test_frames_before_the_first_mask_are_background_and_cost_nothing() -> None:
    parts = Parts(6)
    parts.pipeline((3,)).run()
    assert parts.encoded == [3, 4, 5]
    assert [int(item.labels.max()) for item in parts.written] == [0, 0, 0, 1, 1, 1]
    assert [item.object_ids for item in parts.written] == [(), (), (), (1,), (1,), (1,)]


def test_stages_overlap() -> None:
    """All four stages are inside a frame at the same moment: each waits for the other three."""
    parts = Parts(8)
    barrier = threading.Barrier(4, timeout=10)
    met = {"decode": 4, "encode": 3, "track": 2, "write": 1}  # frames on their way together

    def before(stage: str, index: int) -> None:
        if index == met[stage]:
            barrier.wait()

    parts.before = before
    assert parts.pipeline().run().error is None


def test_a_source_that_breaks_delivers_what_came_before() -> None:
    parts = Parts()
    parts.before = fail_at("decode", 7, BrokenVideoError("breaks at frame 7", 7))
    report = parts.pipeline().run()
    assert parts.indexes == list(range(7))
    assert isinstance(report.error, BrokenVideoError)
    assert parts.sink_closed


@pytest.mark.parametrize("stage", ["encode", "track"])
@pytest.mark.parametrize("error", [EngineError("engine"), MaskError("too small")])
def test_an_error_in_the_middle_delivers_what_was_computed(stage: str, error: VosrtError) -> None:
    parts = Parts(50)
    parts.before = fail_at(stage, 7, error)
    report = parts.pipeline().run()
    assert parts.indexes == list(range(7))
    assert report.error is error
    assert parts.source_closed
    assert parts.sink_closed


def test_an_error_of_the_sink_stops_the_work() -> None:
    parts = Parts(200)
    parts.before = fail_at("write", 3, WorkError("full"))
    report = parts.pipeline().run()
    assert parts.indexes == [0, 1, 2]
    assert str(report.error) == "full"
    assert len(parts.encoded) < 30
    assert parts.sink_closed
    assert parts.source_closed


@pytest.mark.parametrize("stage", STAGES)
def test_defects_are_raised_after_the_sink_is_closed(stage: str) -> None:
    parts = Parts()
    parts.before = fail_at(stage, 5, ZeroDivisionError("defect"))
    with pytest.raises(ZeroDivisionError):
        parts.pipeline().run()
    assert parts.sink_closed


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_keeps_every_result(stage: str) -> None:
    """The interrupt comes while a stage is busy with frame 5; what was tracked by the end is written."""
    parts = Parts(10_000)

    def before(now: str, index: int) -> None:
        if (now, index) == (stage, 5):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)

    parts.before = before
    report = parts.pipeline().run()
    assert report.interrupted
    assert report.error is None
    assert parts.indexes == [index for index, _ in parts.tracked] == list(range(report.frames))
    assert report.frames < 1000
    assert parts.sink_closed
    assert parts.source_closed


def test_the_next_frame_takes_the_annotations_of_frames_that_are_missing() -> None:
    parts = Parts(10)
    parts.missing = {3, 4, 8}
    report = parts.pipeline((0, 3, 4, 7)).run()
    assert [index for index, annotated in parts.tracked if annotated] == [0, 5, 7]
    assert report.moved == ((3, 5), (4, 5))
    assert parts.indexes == [0, 1, 2, 5, 6, 7, 9]


def test_a_live_source_drops_old_frames_but_no_annotated_one() -> None:
    parts = Parts(200, live=True)
    parts.before = lambda stage, index: time.sleep({"decode": 0.001, "track": 0.02}.get(stage, 0.0))
    report = parts.pipeline((0, 50, 51)).run()
    assert report.dropped > 50
    assert report.frames + report.dropped == 200
    assert {0, 50, 51, 199} <= set(parts.indexes)
    assert parts.indexes == sorted(parts.indexes)
    # From a decoded picture to its result; frames that were dropped have none.
    assert report.stages["latency"].p50_ms >= report.stages["track"].p50_ms


def test_a_file_drops_nothing_however_slow_the_rest_is() -> None:
    parts = Parts(20)
    parts.before = lambda stage, index: time.sleep(0.005 if stage == "write" else 0.0)
    assert parts.pipeline().run().dropped == 0
    assert parts.indexes == list(range(20))


def test_a_channel_is_bounded() -> None:
    channel: Channel[int] = Channel(2)
    sent: list[int] = []

    def sender() -> None:
        for item in range(5):
            channel.send(item)
            sent.append(item)
        channel.finish()

    thread = threading.Thread(target=sender)
    thread.start()
    time.sleep(0.05)
    assert len(sent) <= 2
    assert list(channel) == [0, 1, 2, 3, 4]
    thread.join()


def test_a_cancelled_channel_frees_its_sender_and_its_receiver() -> None:
    channel: Channel[int] = Channel(1)
    outcome: list[bool] = []
    thread = threading.Thread(target=lambda: outcome.extend((channel.send(0), channel.send(1))))
    thread.start()
    time.sleep(0.05)
    channel.cancel()
    thread.join(5)
    assert outcome == [True, False]
    assert list(channel) == []
