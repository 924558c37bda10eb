"""Drawing leaves the rest of the picture alone and shows every object."""

from __future__ import annotations

import numpy as np
import pytest

from vosrt.errors import OptionError
from vosrt.types import U8Array
from vosrt.video.overlay import OverlayStyle, draw_overlay, parse_colours
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


def test_a_chosen_colour_and_opacity_are_drawn(picture: U8Array) -> None:
    """The object's own colour, the others' stay; opacity 0 leaves outlines alone, 1 hides what is below."""
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 10:30], labels[20:40, 50:70] = 1, 2
    orange = (0, 165, 255)
    assert OverlayStyle(colours={1: orange}).fills[2].tolist() == fill_colours()[2].tolist()
    opaque = draw_overlay(picture, labels, OverlayStyle(opacity=1, colours={1: orange}))
    assert (opaque[25:35, 15:25] == orange).all()
    assert (opaque[25:35, 55:65] == fill_colours()[2]).all()
    clear = draw_overlay(picture, labels, OverlayStyle(opacity=0))
    np.testing.assert_array_equal(clear[25:35, 15:25], picture[25:35, 15:25])
    assert (clear != picture).any()


@pytest.mark.parametrize("zoom", [1, 8, 36])
def test_ids_are_written_on_their_objects_and_within_the_picture(zoom: int) -> None:
    """They are so also where an object lies at the border or is smaller than its number."""
    labels = np.zeros((60 * zoom, 80 * zoom), np.uint8)
    labels[: 20 * zoom, : 15 * zoom], labels[-1:, -1:], labels[30 * zoom : 50 * zoom, 40 * zoom : 60 * zoom] = (
        1,
        255,
        23,
    )
    image = np.full((*labels.shape, 3), 90, np.uint8)
    plain = draw_overlay(image, labels)
    changed = (draw_overlay(image, labels, OverlayStyle(ids=True)) != plain).any(axis=2)
    assert changed[: 20 * zoom, : 15 * zoom].any()
    assert changed[30 * zoom : 50 * zoom, 40 * zoom : 60 * zoom].any()
    y, x = np.nonzero(changed[30 * zoom : 50 * zoom, 40 * zoom : 60 * zoom])
    assert (y.mean() / zoom, x.mean() / zoom) == pytest.approx((10, 10), abs=3)
    assert changed[50 * zoom :, 62 * zoom :].any()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("red",), {1: (0, 0, 255)}),
        (("2=#ff8800", "1=#08f"), {1: (255, 136, 0), 2: (0, 136, 255)}),
        (("255=rebeccapurple",), {255: (153, 51, 102)}),
        ((), {}),
    ],
)
def test_colours_are_names_or_numbers(given: tuple[str, ...], expected: dict[int, tuple[int, int, int]]) -> None:
    assert parse_colours(given) == expected


@pytest.mark.parametrize(
    "text", ["", "1=", "reddish", "#ff88001", "0=red", "256=red", "x=red", "=red=", "#ff880080", "-1=red"]
)
def test_what_is_no_colour_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected"):
        parse_colours((text,))


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_an_opacity_is_a_share(opacity: float) -> None:
    with pytest.raises(OptionError, match="opacity"):
        OverlayStyle(opacity=opacity)
