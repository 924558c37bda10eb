"""Ways back through a file: they mirror ways forward, meet them by confidence, and keep few frames in memory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from vosrt import BrokenVideoError, MaskError, Model, OptionError, SourceError
from vosrt.directions import Direction, Fused, fuse
from vosrt.errors import WorkError
from vosrt.types import F32Array, U8Array
from vosrt.video import rewound
from vosrt.video.base import Frame, FrameRange, SegmentedFrame, SourceOptions
from vosrt.video.images import ImageFolderSource
from vosrt.video.levels import Levels
from vosrt.video.rewound import Rewound
from vosrt.video.source import open_source
from vosrt.video.spool import Spool

COUNT, HEIGHT, WIDTH = 11, 64, 96
Clip = tuple[Path, Path, list[U8Array]]


def scene(t: int) -> tuple[U8Array, U8Array]:
    """Two squares that move towards each other over a texture; picture and truth."""
    image = np.random.default_rng(3).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for object_id, y, x, colour in ((1, 6, 4 + 4 * t, (20, 20, 240)), (2, 36, 66 - 4 * t, (240, 40, 20))):
        image[y : y + 22, x : x + 22] = colour
        truth[y : y + 22, x : x + 22] = object_id
    return image, truth


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    """A folder of frames, the same in reverse order, and the truth."""
    folders = tmp_path / "clip", tmp_path / "reversed"
    for folder, order in zip(folders, (range(COUNT), range(COUNT - 1, -1, -1)), strict=True):
        folder.mkdir()
        for place, t in enumerate(order):
            cv2.imwrite(str(folder / f"{place:03d}.png"), scene(t)[0])
    return (*folders, [scene(t)[1] for t in range(COUNT)])


@pytest.fixture
def model(fake_bundle: Path) -> Model:
    return Model.load(fake_bundle, engine="fake")


def labels_of(results: Iterator[SegmentedFrame]) -> list[U8Array]:
    return [item.labels for item in results]


def test_backward_is_forward_through_the_reversed_clip(
    clip: Clip, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is with a correction on the way and for any size of chunks; results come in the order of time."""
    folder, mirrored, truth = clip
    marks = {8: truth[8], 3: truth[3]}
    monkeypatch.setattr(rewound, "CHUNK_BYTES", 5 * HEIGHT * WIDTH * 3)
    items = list(model.propagate(folder, marks, direction="backward"))
    assert [item.frame.index for item in items] == list(range(COUNT))
    assert [item.frame.name for item in items] == [f"{t:03d}" for t in range(COUNT)]
    assert [item.frame.time_s for item in items] == [t / 24 for t in range(COUNT)]
    for item in items:
        np.testing.assert_array_equal(item.frame.image, scene(item.frame.index)[0])
    forward = list(model.propagate(mirrored, {COUNT - 1 - t: mask for t, mask in marks.items()}, direction="forward"))
    for item, mirror in zip(items, reversed(forward), strict=True):
        np.testing.assert_array_equal(item.labels, mirror.labels)
        assert (item.object_ids, item.object_confidence) == (mirror.object_ids, mirror.object_confidence)
    assert [bool(item.labels.any()) for item in items] == [t <= 8 for t in range(COUNT)]


def test_both_ways_from_one_mark_are_the_two_single_ways(clip: Clip, model: Model) -> None:
    folder, _, truth = clip
    marks = {5: truth[5]}
    both = labels_of(model.propagate(folder, marks))
    forward = labels_of(model.propagate(folder, marks, direction="forward"))
    backward = labels_of(model.propagate(folder, marks, direction="backward"))
    for t in range(COUNT):
        np.testing.assert_array_equal(both[t], forward[t] if t >= 5 else backward[t])
        assert both[t].any()
    assert not forward[4].any()
    assert not backward[6].any()


def test_objects_of_two_marks_meet(clip: Clip, model: Model) -> None:
    """An object that is marked at the end only is in every frame, beside the one that is marked at the start."""
    folder, _, truth = clip
    marks = {0: np.where(truth[0] == 1, 1, 0), COUNT - 1: np.where(truth[-1] == 2, 2, 0)}
    for t, item in enumerate(model.propagate(folder, marks, size=128)):
        assert item.object_ids == (1, 2)
        for object_id in (1, 2):
            found, true = item.labels == object_id, truth[t] == object_id
            assert (found & true).sum() / (found | true).sum() > 0.5, (t, object_id)
            assert 0 < item.object_confidence[object_id] <= 1
    forward = list(model.propagate(folder, marks, direction="forward"))
    assert 2 not in forward[5].labels


def test_a_range_is_followed_by_its_numbers(clip: Clip, model: Model) -> None:
    folder, _, truth = clip
    items = list(model.propagate(folder, {7: truth[7]}, direction="backward", start=4, end=9))
    assert [(item.frame.index, bool(item.labels.any())) for item in items] == [
        (4, True),
        (5, True),
        (6, True),
        (7, True),
        (8, False),
    ]


def result(labels: list[int], confidence: list[float], ids: tuple[int, ...]) -> SegmentedFrame:
    frame = Frame(np.zeros((1, len(labels), 3), np.uint8), 4, 0.4, "00004")
    return SegmentedFrame(frame, np.array([labels], np.uint8), ids, {}, confidence=np.array([confidence], np.float32))


def trusted(values: dict[int, float]) -> F32Array:
    trust = np.zeros(256, np.float32)
    trust[list(values)] = list(values.values())
    return trust


def test_pixels_take_the_label_of_the_more_confident_way() -> None:
    forward = result([1, 1, 0, 1, 0], [0.9, 0.5, 0.8, 0.6, 0.9], (1,))
    backward = result([0, 2, 1, 1, 2], [0.8, 0.6, 0.9, 0.9, 0.1], (1, 2))
    even = trusted({0: 1, 1: 1, 2: 1})
    fused = fuse(forward, backward, even, even)
    # At the last pixel, the way forward has no object 2 that its background could speak against.
    assert fused.labels.tolist() == [[1, 2, 1, 1, 2]]
    assert fused.object_ids == (1, 2)
    assert fused.confidence is not None
    np.testing.assert_allclose(fused.confidence.tolist(), [[0.9, 0.6, 0.9, 0.9, 0.1]], rtol=1e-6)
    assert fused.object_confidence == pytest.approx({1: 0.9, 2: 0.35})
    near = trusted({0: 4, 1: 4})
    assert fuse(forward, backward, near, even).labels.tolist() == [[1, 1, 0, 1, 2]]


def test_marks_hold_where_ways_meet_and_count_less_with_distance(tmp_path: Path) -> None:
    """Both ways are equally confident: the nearer mark of each object decides, and a mark is nearest to itself."""
    taken: list[SegmentedFrame] = []

    class Sink:
        def write(self, item: SegmentedFrame) -> None:
            taken.append(item)

        def close(self) -> None:
            taken.append(taken[-1])

    one, two = np.array([[1, 1]], np.uint8), np.array([[2, 2]], np.uint8)
    with Spool(tmp_path) as spool:
        sink = Fused(Sink(), spool, {0: one, 6: two + one - 1, 3: np.array([[1, 0]], np.uint8)})
        for index in range(7):
            frame = Frame(np.zeros((1, 2, 3), np.uint8), index, 0.0, "")
            sure = np.full((1, 2), 0.8, np.float32)
            spool.put(index, SegmentedFrame(frame, two, (1, 2), {1: 0.8, 2: 0.8}, confidence=sure))
            sink.write(SegmentedFrame(frame, one, (1, 2), {1: 0.8, 2: 0.8}, confidence=sure))
    assert [int(item.labels[0, 0]) for item in taken] == [1, 1, 1, 1, 1, 2, 2]
    assert list(tmp_path.iterdir()) == []


def test_few_frames_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds one chunk at most, and all frames come, the latest first."""
    count, chunk = 60, 8
    for t in range(count):
        cv2.imwrite(str(tmp_path / f"{t:03d}.png"), np.full((8, 8, 3), t, np.uint8))
    monkeypatch.setattr(rewound, "CHUNK_BYTES", chunk * 8 * 8 * 3)
    lock, alive, most = threading.Lock(), 0, 0

    def free() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    class Watched(ImageFolderSource):
        def __iter__(self) -> Iterator[Frame]:
            nonlocal alive, most
            for frame in super().__iter__():
                with lock:
                    alive += 1
                    most = max(most, alive)
                weakref.finalize(frame.image, free)
                yield frame

    def reopen(start: int, end: int) -> Watched:
        return Watched(tmp_path, FrameRange(start, end))

    source = open_source(str(tmp_path))
    frames = Rewound(reopen, source, 2, count + 20)
    assert (frames.last, frames.info.frame_count) == (count - 1, count - 2)
    seen = [(frame.index, int(frame.image[0, 0, 0])) for frame in frames]
    gc.collect()
    assert seen == [(place, count - 1 - place) for place in range(count - 2)]
    assert most <= chunk + 2


def test_spooled_results_come_back(tmp_path: Path) -> None:
    frame = Frame(np.zeros((5, 7, 3), np.uint8), 9, 0.9, "00009")
    labels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    confidence = np.random.default_rng(1).random((5, 7), np.float32)
    with Spool(tmp_path) as spool:
        spool.put(9, SegmentedFrame(frame, labels, (3, 200), {3: 0.123456, 200: 0.0}, confidence=confidence))
        spool.put(8, SegmentedFrame(frame, labels, (), {}))
        assert (9 in spool, 7 in spool) == (True, False)
        back = spool.result(frame)
        np.testing.assert_array_equal(back.labels, labels)
        assert back.confidence is not None
        np.testing.assert_allclose(back.confidence, confidence, atol=0.5 / 255 + 1e-6)
        assert (back.object_ids, back.object_confidence) == ((3, 200), {3: 0.123456, 200: 0.0})


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="missing: the temporary file of the way back cannot be used"):
        Spool(tmp_path / "missing")


def test_frames_of_more_than_8_bits_look_the_same_both_ways(tmp_path: Path) -> None:
    """Levels that the first frames set hold for chunks that are read from elsewhere."""
    for t in range(12):
        cv2.imwrite(
            str(tmp_path / f"{t:03d}.png"), np.full((8, 8), 1000 * (t + 1), np.uint16) + np.arange(8, dtype=np.uint16)
        )
    levels = Levels()
    options = SourceOptions(levels=levels)
    forward = [frame.image for frame in open_source(str(tmp_path), options=options)]
    later = open_source(str(tmp_path), start=9, options=options).first.image
    np.testing.assert_array_equal(later, forward[9])
    alone = open_source(str(tmp_path), start=9).first.image
    assert (alone != forward[9]).any()


@pytest.mark.parametrize("broken", [2, 8])
def test_a_frame_that_cannot_be_read_ends_it(
    clip: Clip, model: Model, broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way back nothing can be said of the frames before it; behind the mark, those before it come."""
    folder, _, truth = clip
    path = folder / f"{broken:03d}.png"
    path.write_bytes(path.read_bytes()[:60])
    monkeypatch.setattr(rewound, "CHUNK_BYTES", 1)
    got: list[int] = []
    with pytest.raises(BrokenVideoError, match=f"frame {broken} cannot be read"):
        got.extend(item.frame.index for item in model.propagate(folder, {6: truth[6]}))
    assert got == list(range(8 if broken == 8 else 0))
    got = []
    with pytest.raises(BrokenVideoError):
        got.extend(item.frame.index for item in model.propagate(folder, {1: truth[1]}))
    assert got == list(range(broken))


def test_whoever_stops_iterating_ends_the_work(clip: Clip, model: Model) -> None:
    folder, _, truth = clip
    results = model.propagate(folder, {6: truth[6]})
    assert next(results).frame.index == 0
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "vosrt-propagate"]


def test_what_cannot_be_followed_is_refused(clip: Clip, model: Model, tmp_path: Path) -> None:
    folder, _, truth = clip
    refusals: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (
            OptionError,
            "is 'up'; expected forward, backward or both",
            lambda: model.propagate(folder, {0: truth[0]}, direction=cast("Direction", "up")),
        ),
        (
            OptionError,
            "reads frames a second time, which 0 does not allow",
            lambda: model.propagate("0", {0: truth[0]}),
        ),
        (
            OptionError,
            "rtsp://x/y does not allow",
            lambda: model.propagate("rtsp://x/y", {0: truth[0]}, direction="backward"),
        ),
        (OptionError, "marks is empty", lambda: model.propagate(folder, {})),
        (
            OptionError,
            "frame 11, which is not among those that are read; expected 0 to 10",
            lambda: model.propagate(folder, {11: truth[0]}),
        ),
        (OptionError, "expected 2 to 10", lambda: model.propagate(folder, {1: truth[0]}, start=2)),
        (MaskError, "give a mask of the frame's size", lambda: model.propagate(folder, {1: truth[0][1:]})),
        (MaskError, "marks no object", lambda: model.propagate(folder, {1: truth[0] * 0})),
        (SourceError, "nothing", lambda: model.propagate(tmp_path / "nothing.mp4", {1: truth[0]})),
    ]
    for error, text, act in refusals:
        with pytest.raises(error, match=text):
            act()
