"""At which size frames are worked on: 480 for larger ones, unless a caller or the bundle says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vosrt import Model, OptionError
from vosrt.bundle import EncoderSpec, Manifest
from vosrt.engines.fake import FakeEngine
from vosrt.types import WorkingSize


def _model(size: int | None = None, align_corners: bool = True) -> Model:
    spec = EncoderSpec(channels=4, feature="res4", align_corners=align_corners, min_side=16, max_side=1024)
    manifest = Manifest(name="fake", trained=False, summary="colours", encoder=spec, graphs={}, size=size)
    return Model(manifest, {"encoder": FakeEngine(spec)})


@pytest.mark.parametrize(
    ("bundle", "frame", "size", "expected"),
    [
        (None, (500, 550), None, (480, 528)),  # larger frames are shrunk to 480 …
        (None, (550, 500), None, (528, 480)),
        (None, (480, 600), None, (480, 600)),  # … others keep their size
        (None, (64, 96), None, (64, 96)),
        (None, (500, 550), "native", (500, 550)),
        (None, (500, 550), 240, (240, 264)),
        (None, (64, 96), 128, (128, 192)),  # only who asks for it gets enlarged frames
        (None, (500, 550), np.int64(240), (240, 264)),
        (32, (64, 96), None, (32, 48)),  # the bundle's size comes before 480 …
        (500, (500, 550), None, (500, 550)),
        (500, (64, 96), None, (64, 96)),
        (32, (64, 96), "native", (64, 96)),  # … and the caller's before the bundle's
        (32, (64, 96), 48, (48, 72)),
    ],
)
def test_the_caller_decides_then_the_bundle_then_480(
    bundle: int | None, frame: tuple[int, int], size: WorkingSize, expected: tuple[int, int]
) -> None:
    """What `working_size` says is the grid of the embedding and of the stream, and labels have the frame's size."""
    model = _model(bundle)
    assert model.working_size(*frame, size) == expected
    image = np.zeros((*frame, 3), np.uint8)
    mask = np.ones(frame, np.uint8)
    grid = tuple(-(-side // 8) for side in expected)
    assert model.encode(image, size).shape == (*grid, 4)
    with model.stream(size=size) as stream:
        assert stream.start(image, mask).labels.shape == frame
        assert stream.soft_masks().shape[:2] == grid


def test_the_description_says_where_frames_are_shrunk() -> None:
    """It is the bundle's size, or 480."""
    assert "above 480 pixels" in _model().describe()["size"]
    assert "above 360 pixels" in _model(360).describe()["size"]


@pytest.mark.parametrize("size", [0, -1, "480", "full", 480.0, True])
def test_a_size_that_is_none_is_refused_before_any_frame(size: Any) -> None:
    """Pixels as text or a fraction are no size."""
    with pytest.raises(OptionError, match="expected a short side in pixels, or 'native'"):
        _model().stream(size=size)
    with pytest.raises(OptionError, match="expected a short side in pixels, or 'native'"):
        _model().encode(np.zeros((64, 96, 3), np.uint8), size)
