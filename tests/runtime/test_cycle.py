"""Forward-backward consistency: what its formula says, on clips where the answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vosrt.errors import InputError, OptionError
from vosrt.evaluation.cycle import cycle_consistency, turning_frames
from vosrt.metrics import boundary_accuracy, region_similarity
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt.video.base import Frame, SourceInfo

Clip = tuple[U8Array, U8Array]


class Frames:
    """A clip in memory as a source."""

    def __init__(self, frames: U8Array) -> None:
        self._frames = frames
        self.info = SourceInfo("clip", frames.shape[2], frames.shape[1], 25.0, len(frames))
        self.first = Frame(frames[0], 0, 0.0, "00000")
        self.warnings: tuple[str, ...] = ()
        self.closed = False

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._frames):
            yield Frame(image, index, index / 25, f"{index:05d}")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def model(fake_bundle: Path) -> Model:
    return Model.load(fake_bundle, engine="fake", precision="fp32", threads=1)


def agreement(first: U8Array, second: U8Array, object_id: int) -> float:
    pair = first == object_id, second == object_id
    return (region_similarity(*pair) + boundary_accuracy(*pair)) / 2


def test_the_score_is_what_the_formula_says(model: Model, tiny_clip: Clip) -> None:
    """It equals streams that are run by hand, forward once and back from every turning frame."""
    frames, masks = tiny_clip
    source, forward = Frames(frames), {}
    score = cycle_consistency(
        model,
        source,
        {0: masks[0]},
        size=128,
        turns=2,
        on_forward=lambda index, labels: forward.update({index: labels}),
    )
    assert source.closed
    assert [turn.frame for turn in score.turns] == [3, 5]
    assert sorted(forward) == list(range(6))
    with model.stream(size=128) as stream:
        by_hand = [stream.start(frames[0], masks[0]).labels, *(stream.step(frame).labels for frame in frames[1:])]
    for index, labels in enumerate(by_hand):
        np.testing.assert_array_equal(forward[index], labels)
    for turn in score.turns:
        with model.stream(size=128) as stream:
            stream.start(frames[turn.frame], by_hand[turn.frame])
            for index in range(turn.frame - 1, -1, -1):
                back = stream.step(frames[index]).labels
        assert turn.objects == {i: pytest.approx(agreement(back, masks[0], i)) for i in (1, 2)}
        assert turn.score == pytest.approx(np.mean(list(turn.objects.values())))
    assert score.score == pytest.approx(np.mean([turn.score for turn in score.turns]))


def test_easy_objects_come_back_and_lost_ones_do_not(model: Model, tiny_clip: Clip) -> None:
    frames, masks = tiny_clip
    assert cycle_consistency(model, Frames(frames), {0: masks[0]}, size=128).score > 0.8
    gone = frames.copy()
    gone[2:] = frames[0, :1, :1]  # a wall in front of everything
    lost = cycle_consistency(model, Frames(gone), {0: masks[0]}, size=128)
    assert lost.turns[-1].score < 0.5


def test_late_objects_count_from_where_they_are_marked(model: Model, tiny_clip: Clip) -> None:
    """A way back counts the objects marked before it begins; each is compared where it was marked."""
    frames, masks = tiny_clip
    early, late = np.where(masks[1] == 1, 1, 0), np.where(masks[3] == 2, 2, 0)
    given = {1: early.astype(np.uint8), 3: late.astype(np.uint8)}
    score = cycle_consistency(model, Frames(frames), given, size=128, turns=4)
    assert [(turn.frame, sorted(turn.objects)) for turn in score.turns] == [
        (2, [1]),
        (3, [1]),
        (4, [1, 2]),
        (5, [1, 2]),
    ]
    assert min(turn.score for turn in score.turns) > 0.6


def test_turning_frames() -> None:
    """They are evenly spread, include the last frame and repeat none."""
    assert turning_frames(0, 100, 4) == [25, 50, 75, 100]
    assert turning_frames(10, 12, 4) == [11, 12]
    assert turning_frames(3, 4, 1) == [4]
    with pytest.raises(InputError, match="nothing follows frame 5"):
        turning_frames(5, 5, 4)
    with pytest.raises(OptionError, match="--turns is 0"):
        turning_frames(0, 5, 0)
