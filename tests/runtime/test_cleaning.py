"""Specks go, holes are filled, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from vosrt.errors import OptionError
from vosrt.types import U8Array
from vosrt.video.base import Frame, SegmentedFrame
from vosrt.video.cleaning import Cleaned, Cleaning, clean


def labels_of(*rows: str) -> U8Array:
    return np.array([[int(pixel) for pixel in row] for row in rows], np.uint8)


def test_parts_below_the_smallest_area_become_background() -> None:
    """Parts are counted per object, corner to corner; one of just the area stays."""
    labels = labels_of("11000010", "11000000", "00220000", "00020033", "30000033")
    expected = labels_of("11000000", "11000000", "00220000", "00020033", "00000033")
    np.testing.assert_array_equal(clean(labels, Cleaning(min_area_px=3)), expected)
    np.testing.assert_array_equal(clean(labels, Cleaning(min_area_px=4))[2:4, 2:4], 0)


def test_holes_up_to_an_area_are_filled() -> None:
    """Holes that are larger, open to the border or touch two objects stay."""
    labels = labels_of(
        "1111111110",
        "1011001110",  # holes of 1 and 4 pixels
        "1111001010",  # and of 1
        "1111111110",
        "0111222220",
        "1111202220",  # a hole of object 2
        "1110222220",  # background between two objects
        "1111222220",
    )
    small = clean(labels, Cleaning(fill_holes_px=1))
    assert (small[1, 1], small[2, 7], small[5, 5]) == (1, 1, 2)
    assert (small[1:3, 4:6] == 0).all()
    assert (small[4, 0], small[6, 3]) == (0, 0)
    np.testing.assert_array_equal(small[:, 9], 0)
    large = clean(labels, Cleaning(fill_holes_px=4))
    assert (large[1:3, 4:6] == 1).all()


def test_a_speck_in_an_object_is_a_hole_afterwards() -> None:
    labels = labels_of("11111", "11211", "11111")
    np.testing.assert_array_equal(clean(labels, Cleaning(min_area_px=2, fill_holes_px=1)), 1)


@pytest.mark.parametrize("cleaning", [Cleaning(), Cleaning(min_area_px=9, fill_holes_px=9)])
def test_an_empty_frame_and_a_full_one_stay(cleaning: Cleaning) -> None:
    for value in (0, 7):
        labels = np.full((8, 9), value, np.uint8)
        np.testing.assert_array_equal(clean(labels, cleaning), value)


def test_the_given_labels_are_not_written_to() -> None:
    labels = labels_of("1110", "1010", "1110", "0001")
    before = labels.copy()
    clean(labels, Cleaning(min_area_px=2, fill_holes_px=5))
    np.testing.assert_array_equal(labels, before)


def test_a_sink_receives_clean_masks() -> None:
    received: list[SegmentedFrame] = []

    class Sink:
        def write(self, item: SegmentedFrame) -> None:
            received.append(item)

        def close(self) -> None:
            received.clear()

    sink = Cleaned(Sink(), Cleaning(min_area_px=2))
    labels = labels_of("110", "000", "001")
    frame = Frame(np.zeros((3, 3, 3), np.uint8), 4, 0.5, "x")
    sink.write(SegmentedFrame(frame, labels, (1,), {1: 0.5}))
    (item,) = received
    assert (item.frame, item.object_ids, item.object_confidence) == (frame, (1,), {1: 0.5})
    np.testing.assert_array_equal(item.labels, labels_of("110", "000", "000"))
    assert item.objects[1].area_px == 2
    sink.close()
    assert not received


@pytest.mark.parametrize(
    ("values", "option"), [({"min_area_px": -1}, "--min-area"), ({"fill_holes_px": -2}, "--fill-holes")]
)
def test_areas_below_zero_are_refused(values: dict[str, int], option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} is -"):
        Cleaning(**values)
