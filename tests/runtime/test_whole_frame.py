"""A stream's whole frame as one CUDA graph.

TensorRT's network and the memory share one fake CUDA runtime, which does all work as late as it may; the memory's
kernels run on the processor.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.tensorrt import write_engine
from vosrt.arrays import DeviceTensor
from vosrt.bundle import EncoderSpec
from vosrt.cuda.runtime import download, open_queue
from vosrt.encoder import FrameEncoder
from vosrt.engines.tensorrt import TensorRtEngine
from vosrt.engines.tensorrt_files import Profile
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX, Flavour
from vosrt.errors import EngineError, InputError
from vosrt.pipeline import Pipeline
from vosrt.stream import PendingStep, Stream
from vosrt.types import STEP_STAGES, PropagationOptions, U8Array
from vosrt.video.base import Frame, SegmentedFrame, SourceInfo

SPEC = EncoderSpec(channels=3, feature="res4")
OPTIONS = PropagationOptions(context=2, radius=3, guided=2)
PROFILE = Profile(minimum=(32, 32), optimum=(64, 96), maximum=(64, 96))
PLAN = json.dumps({"profiles": [[PROFILE.minimum, PROFILE.optimum, PROFILE.maximum]]}).encode()
STEADY = 5  # frames until both sets of labels have been recorded

Encoders = Callable[..., FrameEncoder]


@pytest.fixture
def encoder_of(tmp_path: Path, whole_nvidia: Any) -> Encoders:
    """Encoders on engines of either flavour: ``encoder_of(TENSORRT, cuda_graph=True)``."""

    def create(flavour: Flavour = TENSORRT, **options: Any) -> FrameEncoder:
        graph = tmp_path / "encoder.onnx"
        graph.write_bytes(b"not read")
        version = getattr(whole_nvidia, flavour.name.replace("-", "_")).__version__
        write_engine(graph, PLAN, (PROFILE,), flavour=flavour.name, version=version)
        axes = {"frames": ("n", "height", "width", None)}
        return FrameEncoder(SPEC, TensorRtEngine(graph, axes, flavour=flavour, reason="test", **options), device=0)

    return create


def clip(count: int) -> Iterator[tuple[U8Array, U8Array]]:
    """Frames u8 [32, 48, 3] of a red and a blue square in motion on noise, and their masks u8 [32, 48]."""
    noise = np.random.default_rng(7).integers(90, 130, (count, 32, 48, 3), dtype=np.uint8)
    for t in range(count):
        frame, mask = noise[t], np.zeros((32, 48), np.uint8)
        for object_id, (y, x), colour in ((1, (0, t), (20, 20, 240)), (2, (16, 32 - t), (240, 40, 20))):
            area = (slice(y, y + 16), slice(x, x + 16))
            frame[area], mask[area] = colour, object_id
        yield frame, mask


def run(encoder: FrameEncoder, options: PropagationOptions = OPTIONS, device: str = "cuda") -> list[U8Array]:
    """Labels of a clip in which objects are marked in two frames, and one is removed."""
    stream, labels = Stream(encoder, options, device=device), []
    for t, (frame, mask) in enumerate(clip(14)):
        marked = {0: np.where(mask == 1, 1, 0), 5: np.where(mask == 2, 2, 0)}.get(t)
        if t == 10:
            stream.remove(1)
        labels.append(stream.step(frame, marked).labels)
    return labels


@pytest.mark.parametrize("flavour", [TENSORRT, TENSORRT_RTX], ids=lambda flavour: flavour.name)
def test_labels_are_those_of_work_that_is_queued_piece_by_piece(encoder_of: Encoders, flavour: Flavour) -> None:
    """They are so also when objects come and go, and by way of embeddings."""
    expected = run(encoder_of(flavour, cuda_graph=False))
    for found in (run(encoder_of(flavour, cuda_graph=True)), run(Embedding(encoder_of(flavour)))):
        np.testing.assert_array_equal(found, expected)
    assert [set(np.unique(expected[t])) for t in (4, 9, 13)] == [{0, 1}, {0, 1, 2}, {0, 2}]


def test_labels_follow_the_picture_as_on_the_processor(encoder_of: Encoders) -> None:
    """The processor's stream gives the same labels but for 0.1 % of the pixels, and others without guided output."""
    found, plain = run(encoder_of()), run(encoder_of(), PropagationOptions(context=2, radius=3))
    expected = run(OnHost(encoder_of()), device="cpu")
    assert np.mean(np.array(found) != expected) < 1e-3
    assert np.mean(np.array(found) != plain) > 1e-2


class Embedding(FrameEncoder):
    """An encoder whose embeddings are copied out before a memory sees them, as they are for batches."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.__dict__ = {**vars(encoder), "takes_sequels": False}


class OnHost(FrameEncoder):
    """An encoder whose embeddings come to the host."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.__dict__ = {**vars(encoder), "takes_sequels": False, "takes_frames_on_gpu": False, "_there": None}


def test_a_frame_is_one_launch(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """In the steady state it is an upload, a copy, one graph and a download; nothing is allocated or captured."""
    stream, cuda = Stream(encoder_of(), OPTIONS, device="cuda"), whole_nvidia.cuda
    before: tuple[int, ...] = ()
    for t, (frame, mask) in enumerate(clip(STEADY + 4)):
        if t == STEADY:
            before = (cuda.allocations, cuda.created, cuda.streams, len(cuda.graphs), len(cuda.memory))
        cuda.calls.clear()
        stream.step(frame, mask if t == 0 else None)
        if t >= STEADY:
            kinds = [call.split(" on ")[0] for call in cuda.calls if " on " in call and "record" not in call]
            assert kinds == ["HostToDevice", "DeviceToDevice", "graph"], cuda.calls
    assert (cuda.allocations, cuda.created, cuda.streams, len(cuda.graphs), len(cuda.memory)) == before


class Run:
    """A stream that is given frames until nothing is recorded any more; results are taken ``ahead`` frames later."""

    def __init__(self, encoder: FrameEncoder, cuda: Any, ahead: int) -> None:
        self.stream = Stream(encoder, OPTIONS, device="cuda")
        self._cuda, self._ahead = cuda, ahead
        self._frames, self._pending = clip(1 + 4 * STEADY), list[PendingStep]()

    def step(self, object_id: int = 0) -> U8Array:
        """One frame, with one object of it marked; its masks."""
        frame, mask = next(self._frames)
        self._pending.append(self.stream.submit(frame, np.where(mask == object_id, mask, 0) if object_id else None))
        while len(self._pending) > self._ahead:
            self._pending.pop(0).result()
        return mask

    def recorded(self) -> int:
        """Graphs that were recorded in as many frames as may be needed."""
        before = len(self._cuda.graphs)
        for _ in range(STEADY):
            self.last = self.step()
        return len(self._cuda.graphs) - before


@pytest.mark.parametrize("ahead", [0, 1])
def test_it_is_recorded_once_for_each_set_of_labels(encoder_of: Encoders, whole_nvidia: Any, ahead: int) -> None:
    """Two sets alternate where results are taken a frame later, else one; new objects are captured again."""
    run = Run(encoder_of(), whole_nvidia.cuda, ahead)
    run.step(object_id=1)
    assert [run.recorded(), run.recorded()] == [1 + ahead, 0]
    run.stream.add(np.where(run.last == 2, 2, 0))
    assert run.recorded() == 1 + ahead
    run.stream.remove(2)
    assert run.recorded() == 1 + ahead
    del run
    gc.collect()
    assert not any(whole_nvidia.cuda.graphs.values()), "recordings end with their stream"


def test_streams_of_one_engine_do_not_disturb_each_other(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """Each has recordings of its own; those of sizes that are no longer kept are not used again."""
    encoder = encoder_of()
    streams = [Stream(encoder, OPTIONS, device="cuda", size=size) for size in (None, None, 48)]
    alone = [Stream(encoder_of(cuda_graph=False), OPTIONS, device="cuda", size=size) for size in (None, None, 48)]
    for t, (frame, mask) in enumerate(clip(8)):
        if t == 5:
            for width in (40, 56, 64, 72):  # the engine keeps four sizes
                encoder.encode(np.zeros((32, width, 3), np.uint8))
        for i, (stream, other) in enumerate(zip(streams, alone, strict=True)):
            given = np.roll(frame, 5 * i, axis=1)
            marked = np.roll(mask, 5 * i, axis=1) if t == 0 else None
            np.testing.assert_array_equal(stream.step(given, marked).labels, other.step(given, marked).labels)
    frame = next(clip(1))[0]
    with pytest.raises(InputError, match="the frame size changed within the stream from 48 x 32 pixels"):
        streams[0].step(frame[:, :40])
    assert streams[0].step(frame).index == 8


def test_the_next_frame_is_queued_before_the_last_ones_labels_are_there(
    encoder_of: Encoders, whole_nvidia: Any
) -> None:
    """Two results are on their way; the third one finishes the first."""
    stream, cuda = Stream(encoder_of(), OPTIONS, device="cuda"), whole_nvidia.cuda
    expected = Stream(encoder_of(cuda_graph=False), OPTIONS, device="cuda")
    frames = list(clip(STEADY + 4))
    stream.step(*frames[0])
    expected.step(*frames[0])
    for frame, _ in frames[1:STEADY]:
        stream.submit(frame).result()
        expected.step(frame)
    pending = []
    for frame, _ in frames[STEADY:]:
        before = sum(len(queue.waiting) for queue in cuda.queues.values())
        pending.append(stream.submit(stream.prepare(frame)))
        if len(pending) == 2:
            assert sum(len(queue.waiting) for queue in cuda.queues.values()) > before, "somebody waited"
    for (frame, _), each in zip(frames[STEADY:], pending, strict=True):
        result, wanted = each.result(), expected.step(frame)
        np.testing.assert_array_equal(result.labels, wanted.labels)
        np.testing.assert_array_equal(result.confidence, wanted.confidence)
        assert (result.index, result.object_ids) == (wanted.index, (1, 2))
        assert result.object_confidence == wanted.object_confidence
        assert set(result.timings_ms) == {"resize", "queue", "wait"}


def test_frames_and_labels_may_stay_on_the_gpu(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """Frames are copied into place beside the graph; labels that somebody holds are not written anew."""
    stream = Stream(encoder_of(), OPTIONS, device="cuda", labels_on="gpu")
    expected = Stream(encoder_of(cuda_graph=False), OPTIONS, device="cuda")
    queue = open_queue(0)
    there = queue.allocate((32, 48, 3), np.uint8, "a frame")
    held: list[tuple[DeviceTensor, U8Array]] = []
    for t, (frame, mask) in enumerate(clip(8)):
        marked = mask if t == 0 else None
        queue.upload(frame, there)
        result, wanted = stream.step(there, marked), expected.step(frame, marked)
        assert result.labels_tensor is not None
        held = [*held[-1:], (result.labels_tensor, wanted.labels)]
        for tensor, labels in held:
            np.testing.assert_array_equal(download(tensor), labels)


def test_a_network_that_cannot_be_recorded_is_queued_plainly(
    encoder_of: Encoders, whole_nvidia: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning is given, nothing is lost, and other streams do not try again."""
    expected = run(encoder_of(cuda_graph=False))
    encoder, cuda = encoder_of(), whole_nvidia.cuda
    stream = Stream(encoder, OPTIONS, device="cuda")
    stream.step(*next(clip(1)))
    whole_nvidia.tensorrt.contexts[-1].refuses_capture = True
    with caplog.at_level(logging.WARNING):
        labels = [run(encoder) for _ in range(2)]
    for found in labels:
        np.testing.assert_array_equal(found, expected)
    (warning,) = caplog.messages
    assert "cannot be recorded as a CUDA graph, so its work is queued piece by piece: tensorrt cannot" in warning
    assert all(queue.captured is None for queue in cuda.queues.values())


def test_tensorrt_rtx_is_asked(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """It says whether it can be recorded; where not, it keeps its own graphs, and the memory its own."""
    launches = {}
    for capturable in (False, True):
        whole_nvidia.tensorrt_rtx.capturable = capturable
        stream, cuda = Stream(encoder_of(TENSORRT_RTX), OPTIONS, device="cuda"), whole_nvidia.cuda
        for t, (frame, mask) in enumerate(clip(STEADY + 1)):
            cuda.calls.clear()
            stream.step(frame, mask if t == 0 else None)
        launches[capturable] = [call.split(" on ")[0] for call in cuda.calls if call.startswith(("network", "graph"))]
    assert launches == {False: ["network", "graph"], True: ["graph"]}


def test_failures_are_told_and_the_stream_goes_on(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """A network that fails before it is captured leaves the frame out."""
    stream = Stream(encoder_of(), OPTIONS, device="cuda")
    frames = list(clip(4))
    stream.step(*frames[0])
    whole_nvidia.tensorrt.contexts[-1].fails = True
    with pytest.raises(EngineError, match=r"^tensorrt cannot run: cannot enqueue$"):
        stream.step(frames[1][0])
    whole_nvidia.tensorrt.contexts[-1].fails = False
    assert stream.step(frames[1][0]).index == 1


def test_a_saved_stream_continues_with_whole_frames(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """From its first frame on it uses the network's stream; labels may stay there."""
    frames = list(clip(7))
    stream, loaded = Stream(encoder_of(), OPTIONS, device="cuda"), Stream(encoder_of(), OPTIONS, device="cuda")
    there = Stream(encoder_of(), OPTIONS, device="cuda", labels_on="gpu")
    for t, (frame, mask) in enumerate(frames[:3]):
        stream.step(frame, mask if t == 0 else None)
    session = stream.save()
    loaded.load(session)
    there.load(session)
    for frame, _ in frames[3:]:
        expected, found, kept = stream.step(frame), loaded.step(frame), there.step(frame)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert kept.labels_tensor is not None
        assert kept.labels_tensor.stream == there.encoder.stream
        np.testing.assert_array_equal(download(kept.labels_tensor), expected.labels)


class Parts:
    """A source and a sink."""

    info = SourceInfo("parts", 48, 32, 25.0, 12)
    warnings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.frames = [frame for frame, _ in clip(12)]
        self.first = Frame(self.frames[0], 0, 0.0, "00000")
        self.labels: list[U8Array] = []

    def __iter__(self) -> Iterator[Frame]:
        for t, frame in enumerate(self.frames):
            yield Frame(frame, t, t / 25, f"{t:05d}")

    def write(self, item: SegmentedFrame) -> None:
        self.labels.append(item.labels)

    def close(self) -> None: ...


def test_the_pipeline_takes_whole_frames(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """Its threads prepare, queue and wait; objects are marked in between."""
    masks = [mask for _, mask in clip(12)]
    annotations = {2: np.where(masks[2] == 1, 1, 0).astype(np.uint8), 6: masks[6]}
    found = []
    for cuda_graph in (False, True):
        stream, parts = Stream(encoder_of(cuda_graph=cuda_graph), OPTIONS, device="cuda"), Parts()
        report = Pipeline(parts, tracker=stream, annotations=annotations, sink=parts).run()
        assert (report.frames, report.error) == (12, None)
        assert set(STEP_STAGES) - {"refine"} <= set(report.stages)
        found.append(parts.labels)
    np.testing.assert_array_equal(found[0], found[1])
    assert set(np.unique(found[1][11])) == {0, 1, 2}


def test_results_may_be_taken_late_and_in_any_order(encoder_of: Encoders, whole_nvidia: Any) -> None:
    """States are told from frame to frame all the same, also of frames that wait while the next one is annotated."""
    streams = [Stream(encoder_of(), OPTIONS, device="cuda") for _ in range(2)]
    late, expected = [], []
    for t, (frame, mask) in enumerate(clip(8)):
        marked = mask if t in (0, 4) else None
        late.append(streams[0].submit(frame, marked))
        expected.append(streams[1].step(frame, marked))
    streams[0].close()
    for pending, wanted in reversed(list(zip(late, expected, strict=True))):
        result = pending.result()
        np.testing.assert_array_equal(result.labels, wanted.labels)
        assert result.objects == wanted.objects
