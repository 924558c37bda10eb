"""A budget of milliseconds per frame: what is given up, when it is tried again, and that objects go on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.fakes.model import fake_model
from vosrt import MaskError, Model, OptionError
from vosrt.budget import Budget, BudgetedStream, Setting, ladder
from vosrt.stream import Stream
from vosrt.types import U8Array

BEST = Setting(480, 20)


def busy(budget: Budget, frames: int, slowness: float) -> list[int]:
    """Levels after frames that take as long as their setting's work, times ``slowness``."""
    levels = []
    for _ in range(frames):
        level = budget.observe(slowness * budget.settings[budget.level].work / BEST.work)
        if level != budget.level:
            budget.change(level)
        levels.append(budget.level)
    return levels


def test_settings_get_cheaper_step_by_step() -> None:
    """From what was asked for to the smallest that the encoder takes, in whole cells."""
    steps = ladder(BEST, smallest=200, stride=8)
    assert steps[0] == BEST
    assert all(after.work < before.work for before, after in pairwise(steps))
    assert min(step.size for step in steps) == 200
    assert ladder(Setting(64, 0), smallest=16, stride=8) == [Setting(64, 0)]  # nothing to give up


def test_what_fits_gives_nothing_up() -> None:
    """Single slow frames change nothing."""
    budget = Budget(100.0, ladder(BEST, smallest=16, stride=8))
    for frame in range(200):
        assert budget.observe(500.0 if frame % 10 == 0 else 90.0) == 0
    assert budget.summary() == "100 ms kept in 90 % of frames, nothing given up"


def test_settings_follow_the_load_without_flapping() -> None:
    """Down within a few frames per step, up once there is room, and never to and fro."""
    budget = Budget(100.0, ladder(BEST, smallest=16, stride=8))
    levels = busy(budget, 60, 250.0)
    assert budget.settings[levels[-1]].work / BEST.work * 250 <= 100
    assert levels == sorted(levels)
    assert budget.within >= 40
    levels = busy(budget, 1000, 60.0)
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)
    assert len(budget.changes) == 2 * max(levels[0], budget.level, max(levels))


def test_a_better_setting_that_fails_is_tried_less_and_less() -> None:
    """Each time it failed at once, the wait doubles."""
    budget = Budget(100.0, [Setting(480, 20), Setting(240, 20)])
    for _ in range(2000):
        level = budget.observe(150.0 if budget.level == 0 else 15.0)  # fits by its work, but does not
        if level != budget.level:
            budget.change(level)
    ups = [frame for frame, setting in budget.changes if setting.size == 480]
    waits = np.diff(ups)
    assert len(ups) >= 3
    assert all(after > 1.5 * before for before, after in pairwise(waits))


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan")])
def test_a_budget_is_above_zero(budget_ms: float) -> None:
    """Anything else is refused."""
    with pytest.raises(OptionError, match="expected more than 0 milliseconds"):
        Budget(budget_ms, [BEST])


@pytest.fixture
def model() -> Model:
    return fake_model(max_side=512, threads=1)


class Clock:
    """Seconds that pass by as much as the test says for each step."""

    def __init__(self) -> None:
        self.now, self.step_s, self._calls = 0.0, 0.0, 0

    def __call__(self) -> float:
        self._calls += 1
        self.now += self.step_s if self._calls % 2 == 0 else 0.0
        return self.now


def moving(frames: int, side: int = 192) -> tuple[list[U8Array], U8Array]:
    """A red and a green square on grey, of which the red one moves."""
    images = []
    for t in range(frames):
        image = np.full((side, side * 3 // 2, 3), 90, np.uint8)
        image[40:88, 20 + 4 * t : 68 + 4 * t] = (0, 0, 255)
        image[120:168, 200:248] = (0, 255, 0)
        images.append(image)
    mask = np.zeros(images[0].shape[:2], np.uint8)
    mask[40:88, 20:68], mask[120:168, 200:248] = 1, 2
    return images, mask


def test_objects_go_on_through_changes_of_size(model: Model) -> None:
    """Too slow, then fast again: every frame has both objects where they are, and indices count on."""
    images, mask = moving(30)
    clock = Clock()
    settings = ladder(Setting(192, 20), smallest=16, stride=8)
    with BudgetedStream(lambda setting: model.stream(size=setting.size), Budget(100.0, settings), clock) as stream:
        for t, image in enumerate(images):
            clock.step_s = 0.15 if t < 12 else 0.05
            result = stream.step(image, mask if t == 0 else None)
            assert result.index == t
            assert result.object_ids == (1, 2)
            red = result.labels[40:88, 20 + 4 * t : 68 + 4 * t]
            assert np.mean(red == 1) > 0.6, t
            assert np.mean(result.labels[120:168, 200:248] == 2) > 0.6, t
    assert len(stream.budget.changes) == 2
    assert stream.budget.settings[stream.budget.level].size < 192
    assert stream.budget.within == 18


def test_a_model_opens_streams_with_a_budget(model: Model) -> None:
    """Up to the size that a stream without one has; on a GPU and with refinement they are refused."""
    images, mask = moving(2)
    with model.stream_within(1e6, *mask.shape) as stream:
        assert stream.budget.settings[0] == Setting(192, 20)
        assert stream.step(images[0], mask).object_ids == (1, 2)
        assert stream.step(images[1]).index == 1
        assert stream.budget.report()["within"] == 1.0
        with pytest.raises(OptionError, match="a stream with a budget cannot be saved"):
            stream.save()
    with pytest.raises(OptionError, match="expected more than 0 milliseconds"):
        model.stream_within(0, *mask.shape)


def test_an_object_that_gets_too_small_keeps_the_size(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream goes on as it is, and says why."""
    images, mask = moving(20)
    clock = Clock()
    clock.step_s = 0.2
    step = Stream.step

    def refuse(self: Stream, frame: Any, mask: Any = None) -> Any:
        if mask is not None and self.size == 96:
            raise MaskError("object 1 is too small to represent")
        return step(self, frame, mask)

    monkeypatch.setattr(Stream, "step", refuse)
    settings = [Setting(192, 20), Setting(96, 20)]
    with BudgetedStream(lambda setting: model.stream(size=setting.size), Budget(100.0, settings), clock) as stream:
        for t, image in enumerate(images):
            assert stream.step(image, mask if t == 0 else None).object_ids == (1, 2)
    assert stream.budget.changes == []
    assert stream.budget.obstacle == "size 96 cannot be had: object 1 is too small to represent"
    assert stream.budget.summary().endswith("nothing given up: " + stream.budget.obstacle)
