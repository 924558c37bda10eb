"""Drawing leaves the rest of the picture alone and shows every object."""

from __future__ import annotations

import numpy as np
import pytest

from vosrt.types import U8Array
from vosrt.video.overlay import draw_overlay
from vosrt.video.palette import davis_palette, fill_colours, line_colours


@pytest.fixture
def picture() -> U8Array:
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_only_the_object_and_its_outline_change(picture: U8Array) -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 30:50] = 1
    before = picture.copy()
    drawn = draw_overlay(picture, labels)
    np.testing.assert_array_equal(picture, before)
    near = np.zeros(labels.shape, bool)
    near[16:44, 26:54] = True
    np.testing.assert_array_equal(drawn[~near], picture[~near])
    expected = 0.55 * picture[25:35, 35:45] + 0.45 * fill_colours()[1]
    np.testing.assert_allclose(drawn[25:35, 35:45], expected, atol=1)


def test_without_objects_the_picture_is_copied(picture: U8Array) -> None:
    drawn = draw_overlay(picture, np.zeros((60, 80), np.uint8))
    np.testing.assert_array_equal(drawn, picture)
    assert not np.shares_memory(drawn, picture)


@pytest.mark.parametrize("zoom", [1, 6])
@pytest.mark.parametrize("shade", [0, 128, 255])
def test_the_outline_stands_out_on_any_background(shade: int, zoom: int) -> None:
    labels = np.zeros((60 * zoom, 80 * zoom), np.uint8)
    labels[20 * zoom : 40 * zoom, 30 * zoom : 50 * zoom] = 1
    drawn = draw_overlay(np.full((*labels.shape, 3), shade, np.uint8), labels).astype(int)
    across = drawn[30 * zoom, 30 * zoom - 6 : 30 * zoom + 6]
    assert np.abs(np.diff(across, axis=0)).max() > 50


def test_objects_of_one_pixel_and_at_the_border_are_drawn(picture: U8Array) -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[0, 0], labels[59, 79], labels[30, :] = 1, 255, 7
    drawn = draw_overlay(picture, labels)
    assert (drawn != picture).any(axis=2)[labels > 0].all()


def test_the_palette_is_that_of_davis() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [tuple(int(c) for c in colour) for colour in davis_palette()[:7]] == expected
    assert tuple(davis_palette()[255]) == (224, 224, 192)


def test_neighbouring_ids_have_distinct_colours() -> None:
    assert len(np.unique(davis_palette(), axis=0)) == 256
    assert len(np.unique(fill_colours(), axis=0)) == 256
    assert len(np.unique(line_colours()[1:8], axis=0)) == 7
