"""A stream over the fake engine: following objects, the order of events, and what it refuses."""

from __future__ import annotations

import math
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes.model import fake_model
from vosrt import Embedding, InputError, MaskError, Model, OptionError, PropagationOptions, StepResult
from vosrt.bundle import EncoderSpec
from vosrt.cli import doctor
from vosrt.core import native as core
from vosrt.core.reference import NumpyMemory
from vosrt.encoder import working_size
from vosrt.stream import Stream
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]


@pytest.fixture
def model() -> Model:
    """The fake engine under a manifest that no file stands behind."""
    return fake_model()


def _overlap(labels: U8Array, mask: U8Array, object_id: int) -> float:
    ours, theirs = labels == object_id, mask == object_id
    return float((ours & theirs).sum() / (ours | theirs).sum())


def test_a_stream_describes_its_memory(model: Model, tiny_clip: Clip) -> None:
    """Nothing before the first frame; then the path, the bytes and what the search spared."""
    frames, masks = tiny_clip
    with model.stream() as stream:
        assert stream.describe() == {}
        stream.start(frames[0], masks[0])
        described = stream.describe()
    assert (described["objects"], described["frames"]) == (2, 1)
    assert 0 < described["survivors"] <= 1


def test_coloured_squares_are_followed(model: Model, tiny_clip: Clip) -> None:
    """Two objects in motion keep their labels; the result says what is tracked and how sure it is."""
    frames, masks = tiny_clip
    with model.stream() as stream:
        results = [stream.start(frames[0], masks[0]), *(stream.step(frame) for frame in frames[1:])]
    for t, result in enumerate(results):
        assert result.index == t
        assert result.labels.shape == result.confidence.shape == (64, 96)
        assert result.labels.dtype == np.uint8
        assert result.confidence.dtype == np.float32
        assert result.object_ids == (1, 2)
        assert min(_overlap(result.labels, masks[t], object_id) for object_id in (1, 2)) > 0.6
        assert all(0.5 < value <= 1 + 1e-6 for value in result.object_confidence.values())
        assert {"resize", "encoder", "match", "upsample"} == set(result.timings_ms)


def test_an_annotated_frame_shows_its_annotation(model: Model, tiny_clip: Clip) -> None:
    """At full resolution the first frame is the mask itself, with confidence 1 inside."""
    frames, masks = tiny_clip
    result = model.stream().start(frames[0], masks[0])
    np.testing.assert_array_equal(result.labels, masks[0])
    assert (result.confidence[masks[0] > 0] == 1).all()
    assert result.object_confidence == {1: 1.0, 2: 1.0}


def test_objects_come_and_go(model: Model, tiny_clip: Clip) -> None:
    """One object from the start, one that appears at frame 2, one removed: the ids follow, the labels too."""
    frames, masks = tiny_clip
    unseen = np.where((masks == 2)[..., None], 110, frames).astype(np.uint8)
    stream = model.stream()
    assert stream.start(unseen[0], masks[0] == 1).object_ids == (1,)
    assert set(np.unique(stream.step(unseen[1]).labels)) == {0, 1}
    result = stream.step(frames[2], np.where(masks[2] == 2, 2, 0))
    assert result.object_ids == (1, 2)
    assert (result.labels[masks[2] == 2] == 2).all()
    result = stream.step(frames[3])
    assert min(_overlap(result.labels, masks[3], object_id) for object_id in (1, 2)) > 0.6
    stream.remove(1)
    assert stream.object_ids == (2,)
    result = stream.step(frames[4])
    assert set(np.unique(result.labels)) == {0, 2}
    assert _overlap(result.labels, masks[4], 2) > 0.6


def test_marking_the_newest_frame_twice(model: Model, tiny_clip: Clip) -> None:
    """Added objects join those of the same frame; marking one again moves it; removing one clears it."""
    frames, masks = tiny_clip
    stream = model.stream()
    stream.start(frames[0], np.where(masks[0] == 1, 1, 0))
    result = stream.add(np.where(masks[0] == 2, 2, 0))
    np.testing.assert_array_equal(result.labels, masks[0])
    moved = np.zeros_like(masks[0])
    moved[:16, 60:90] = 1
    result = stream.add(moved)
    np.testing.assert_array_equal(result.labels == 1, moved == 1)
    np.testing.assert_array_equal(result.labels == 2, masks[0] == 2)
    stream.remove(2)
    assert result.index == 0
    third = np.zeros_like(moved)
    third[56:, :16] = 3
    result = stream.add(third)
    assert set(np.unique(result.labels)) == {0, 1, 3}


def test_frames_may_come_before_the_first_mask(model: Model, tiny_clip: Clip) -> None:
    """Objects may appear later than the video begins; until then all is background."""
    frames, masks = tiny_clip
    stream = model.stream()
    first = stream.step(frames[0])
    assert first.object_ids == ()
    assert not first.labels.any()
    result = stream.step(frames[1], masks[1])
    np.testing.assert_array_equal(result.labels, masks[1])


def test_an_embedding_stands_for_its_frame(model: Model, tiny_clip: Clip) -> None:
    """Encoding ahead in another thread gives the same labels as handing over frames."""
    frames, masks = tiny_clip
    ahead: list[Embedding] = []
    worker = threading.Thread(target=lambda: ahead.extend(model.encode(frame) for frame in frames))
    worker.start()
    direct, indirect = model.stream(), model.stream()
    expected = [direct.start(frames[0], masks[0]), *(direct.step(frame) for frame in frames[1:])]
    worker.join()
    found = [indirect.start(ahead[0], masks[0]), *(indirect.step(embedding) for embedding in ahead[1:])]
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_streams_of_one_model_are_independent(model: Model, tiny_clip: Clip) -> None:
    """Interleaving two videos changes neither."""
    frames, masks = tiny_clip
    alone = model.stream()
    expected = [alone.start(frames[0], masks[0]), *(alone.step(frame) for frame in frames[1:])]
    here, there = model.stream(), model.stream()
    there.start(frames[5], masks[5])
    found = [here.start(frames[0], masks[0])]
    for frame in frames[1:]:
        there.step(frames[0])
        found.append(here.step(frame))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize(
    ("height", "width", "side", "percent", "expected"),
    [
        (480, 854, None, 100, (480, 854)),
        (480, 854, 480, 100, (480, 854)),
        (1080, 1920, 480, 100, (480, 853)),
        (1920, 1080, 480, 100, (853, 480)),
        (240, 320, 480, 100, (240, 320)),
        (240, 320, 480, None, (480, 640)),
        (240, 320, 480, 150, (360, 480)),
        (400, 300, 360, 150, (480, 360)),
        (1080, 1920, 576, 120, (576, 1024)),
        (335, 335, 576, 110, (369, 369)),
        (100, 100, 50, 100, (50, 50)),
        (2, 3, 1, 100, (1, 2)),
    ],
)
def test_the_working_size_keeps_the_aspect(
    height: int, width: int, side: int | None, percent: int | None, expected: tuple[int, int]
) -> None:
    """The short side is what was asked for, the long one rounds half up; nothing grows by more than it may."""
    spec = EncoderSpec(channels=4, feature="res3")
    assert working_size(spec, height, width, side, enlarge_percent=percent) == expected
    whole = working_size(replace(spec, align_corners=False), height, width, side, enlarge_percent=percent)
    assert whole == tuple(spec.stride * max(1, math.floor(each / spec.stride + 0.5)) for each in expected)


def test_labels_have_the_frames_size_whatever_the_working_size(tiny_clip: Clip) -> None:
    """The manifest's size applies by default and enlarges as far as it says; a stream's size overrides it."""
    frames, masks = tiny_clip
    for model, size, grid in (
        (fake_model(size=32), None, (4, 6)),
        (fake_model(size=128), None, (8, 12)),
        (fake_model(size=128, enlarge_percent=150), None, (12, 18)),
        (fake_model(size=32), 128, (16, 24)),
    ):
        stream = model.stream(size=size)
        assert stream.start(frames[0], masks[0]).labels.shape == (64, 96)
        assert stream.soft_masks().shape == (*grid, 3)


def test_options_reach_the_memory(model: Model, tiny_clip: Clip) -> None:
    """With one neighbour per cell, soft masks are taken over; with ten, they are averaged."""
    frames, masks = tiny_clip
    copied: dict[int, bool] = {}
    for top_k in (1, 10):
        stream = model.stream(options=PropagationOptions(top_k=top_k))
        stream.start(frames[0], masks[0])
        marked = stream.soft_masks()
        stream.step(frames[3])
        copied[top_k] = bool(np.isin(stream.soft_masks(), marked).all())
    assert copied == {1: True, 10: False}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((64, 96), dtype=np.uint8), r"uint8 \[64, 96\]; expected a uint8 array \[height, width, 3\]"),
        (np.zeros((64, 96, 4), dtype=np.uint8), "expected a uint8 array"),
        (np.zeros((64, 96, 3), dtype=np.float32), "expected a uint8 array"),
        (np.zeros((0, 96, 3), dtype=np.uint8), "at least one pixel"),
        (np.zeros((8, 96, 3), dtype=np.uint8), "96 x 8 pixels.*sides of 16 to 256"),
        (np.zeros((64, 960, 3), dtype=np.uint8), "choose another size"),
        ([[0]], "list"),
    ],
)
def test_what_is_no_frame_is_refused(model: Model, frame: Any, message: str) -> None:
    """One line has what was given and what was expected."""
    with pytest.raises(InputError, match=message):
        model.encode(frame)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((96, 64), dtype=np.uint8), "mask is 64 x 96 pixels, the frame 96 x 64"),
        (np.ones((64, 96, 3), dtype=np.uint8), r"mask is uint8 \[64, 96, 3\]; expected integers"),
        (np.ones((64, 96)), "float64"),
        (np.full((64, 96), 256), "256.*object ids from 1 to 255"),
        (np.full((64, 96), -1), "-1"),
        (np.zeros((64, 96), dtype=np.uint8), "marks no object"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_the_frame_counts(
    model: Model, tiny_clip: Clip, mask: Any, message: str
) -> None:
    """The stream can go on as if the call had not happened."""
    frames, masks = tiny_clip
    stream = model.stream()
    with pytest.raises(MaskError, match=message):
        stream.start(frames[0], mask)
    result = stream.start(frames[0], masks[0])
    assert result.index == 0
    with pytest.raises(MaskError, match=message):
        stream.add(mask)
    with pytest.raises(MaskError, match=message):
        stream.step(frames[1], mask)
    assert stream.step(frames[1]).index == 1


def test_the_frame_size_may_not_change(model: Model, tiny_clip: Clip) -> None:
    """Both sizes are named; frames of the right size still go on."""
    frames, masks = tiny_clip
    stream = model.stream()
    stream.start(frames[0], masks[0])
    with pytest.raises(InputError, match=r"from 96 x 64.* to 80 x 64"):
        stream.step(frames[1][:, :80])
    assert stream.step(frames[1]).index == 1


def test_calls_out_of_order_are_refused(model: Model, tiny_clip: Clip) -> None:
    """Starting twice, acting before the first frame, removing unknown ids and using a closed stream are errors."""
    frames, masks = tiny_clip
    stream = model.stream()
    for act in (lambda: stream.add(masks[0]), lambda: stream.remove(1), stream.soft_masks):
        with pytest.raises(InputError, match="before the first frame"):
            act()
    stream.start(frames[0], masks[0])
    with pytest.raises(InputError, match="has begun"):
        stream.start(frames[0], masks[0])
    with pytest.raises(InputError, match="object 9 is not tracked"):
        stream.remove(9)
    stream.close()
    with pytest.raises(InputError, match="closed"):
        stream.step(frames[1])
    assert stream.object_ids == ()


def test_a_bad_frame_with_a_mask_is_about_the_frame(model: Model, tiny_clip: Clip) -> None:
    """The frame is looked at first; what is no array at all is no crash."""
    _, masks = tiny_clip
    frame: Any
    for frame in (None, [[1]], masks[0]):
        with pytest.raises(InputError, match="expected a uint8 array"):
            model.stream().start(frame, masks[0])


def test_describe_says_what_runs(model: Model, native: Any) -> None:
    """It has weights, engine and core, each with its reason."""
    described = model.describe()
    assert described["weights"] == "untrained"
    assert described["engines"]["encoder"]["name"] == "fake"
    assert described["core"].startswith(f"native core {native.version()}, ")


def test_a_stream_follows_the_definition(
    model: Model, tiny_clip: Clip, native: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native core and the NumPy memory follow the clip alike."""
    frames, masks = tiny_clip

    def follow() -> list[StepResult]:
        stream = model.stream()
        return [stream.start(frames[0], masks[0]), *(stream.step(frame) for frame in frames[1:])]

    found = follow()
    monkeypatch.setattr(
        native,
        "Memory",
        lambda h, w, k, *, precision, threads, align_corners, **options: NumpyMemory(
            h, w, k, PropagationOptions(**options), align_corners=align_corners
        ),
    )
    for ours, theirs in zip(follow(), found, strict=True):
        assert (ours.labels != theirs.labels).mean() < 0.01


def test_an_installation_without_the_native_core_says_what_to_install(
    model: Model, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "find_library", lambda name: None)
    core.libvosrt.cache_clear()
    with pytest.raises(OptionError, match=r"without its native core, libvosrt; install it with: pip install") as caught:
        model.stream().start(tiny_clip[0][0], tiny_clip[1][0])
    assert caught.value.remedy.startswith("pip install --force-reinstall")
    (finding,) = doctor._core()
    assert (finding.found, finding.needed, finding.command) == (False, True, caught.value.remedy)


def test_a_saved_stream_continues_bit_for_bit(
    model: Model, tiny_clip: Clip, native: Any, resumes: Callable[[Stream, Stream], None]
) -> None:
    """Index, labels, confidence and the annotation of the newest frame come back; nothing is said twice."""
    frames, _ = tiny_clip
    stream, copy = model.stream(), model.stream()
    resumes(stream, copy)
    with pytest.raises(InputError, match="the frame size changed"):
        copy.step(frames[0][:32])
    with pytest.raises(InputError, match="the stream has begun; load a session into a new one"):
        copy.load(stream.save())


def test_a_saved_stream_is_held_once(model: Model, tiny_clip: Clip) -> None:
    """A session of a large frame has 100 MB, which `vos-run` saves beside its work."""
    frames, masks = tiny_clip
    with model.stream(size=160) as stream:
        stream.start(frames[0], masks[0])
        tracemalloc.start()
        try:
            size, (_, peak) = len(stream.save()), tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 1 << 16 < size <= peak < 1.5 * size


def test_saving_needs_a_frame(model: Model) -> None:
    with pytest.raises(InputError, match="cannot save the stream before the first frame"):
        model.stream().save()
