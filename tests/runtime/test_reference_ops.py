"""The NumPy twins against loops written straight from the formulas, and against hand-made cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vosrt.core import reference
from vosrt.core.reference import Neighbours
from vosrt.errors import MaskError
from vosrt.types import F32Array

sides = st.integers(1, 9)
grids = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)


@given(sides, sides, sides, sides, seeds)
def test_resize_is_bilinear_at_pixel_centres(in_h: int, in_w: int, out_h: int, out_w: int, seed: int) -> None:
    """Each byte is the exact bilinear value, rounded, up to the 11 bits of the weights."""
    image = np.random.default_rng(seed).integers(0, 256, (in_h, in_w, 3), dtype=np.uint8)
    resized = reference.resize_bgr(image, out_h, out_w)
    assert resized.shape == (out_h, out_w, 3)
    for y, x in itertools.product(range(out_h), range(out_w)):
        exact = np.zeros(3)
        for (row, wy), (column, wx) in itertools.product(_centre_taps(y, in_h, out_h), _centre_taps(x, in_w, out_w)):
            exact += float(wy * wx) * image[row, column]
        np.testing.assert_allclose(resized[y, x], exact, atol=0.5 + 2 * 255 / 4096)


_Taps: TypeAlias = list[tuple[int, Fraction]]  # source coordinates and their weights


def _centre_taps(target: int, source_size: int, target_size: int) -> _Taps:
    position = (Fraction(2 * target + 1, 2) * source_size / target_size) - Fraction(1, 2)
    position = min(max(position, Fraction(0)), Fraction(source_size - 1))
    first = math.floor(position)
    return [(first, 1 - (position - first)), (min(first + 1, source_size - 1), position - first)]


@given(sides, sides, seeds)
def test_resize_to_the_same_size_changes_nothing(height: int, width: int, seed: int) -> None:
    """The identity is exact."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(reference.resize_bgr(image, height, width), image)


def test_resize_halves_by_averaging() -> None:
    """Halving averages pairs of pixels, half rounded up."""
    image = np.array([[0, 11, 200, 255]], dtype=np.uint8)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(reference.resize_bgr(image, 1, 2)[0, :, 0], [6, 228])


@given(sides, sides, grids, grids, seeds, st.booleans())
def test_upsampled_labels_are_the_largest_bilinear_channel(
    h: int, w: int, out_h: int, out_w: int, seed: int, align_corners: bool
) -> None:
    """Corners are aligned or not, and the confidence is the winner's value."""
    soft = np.random.default_rng(seed).random((h, w, 3), dtype=np.float32)
    index, confidence = reference.upsample_labels(soft, out_h, out_w, align_corners=align_corners)
    for y, x in itertools.product(range(out_h), range(out_w)):
        exact = _bilinear(soft, y, x, (out_h, out_w), _corner_taps if align_corners else _centre_taps)
        assert confidence[y, x] == pytest.approx(exact.max(), abs=1e-5)
        assert exact[index[y, x]] == pytest.approx(exact.max(), abs=1e-5)


def _bilinear(soft: F32Array, y: int, x: int, size: tuple[int, int], taps_of: Callable[..., _Taps]) -> NDArray[Any]:
    """Pixel (y, x) of f32 [h, w, M], resized to a size."""
    exact = np.zeros(soft.shape[2])
    rows, columns = taps_of(y, soft.shape[0], size[0]), taps_of(x, soft.shape[1], size[1])
    for (row, wy), (column, wx) in itertools.product(rows, columns):
        exact += float(wy * wx) * soft[row, column]
    return exact


def _corner_taps(target: int, source_size: int, target_size: int) -> _Taps:
    position = Fraction(target * (source_size - 1), target_size - 1) if target_size > 1 else Fraction(0)
    first = min(int(position), source_size - 1)
    return [(first, 1 - (position - first)), (min(first + 1, source_size - 1), position - first)]


def test_equal_channels_go_to_the_first() -> None:
    """Ties go to background, then to the smallest id."""
    index, confidence = reference.upsample_labels(np.full((2, 2, 4), 0.25, dtype=np.float32), 5, 5)
    assert not index.any()
    np.testing.assert_array_equal(confidence, np.float32(0.25))


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_mask_of_the_grids_size_is_kept_as_it_is(align_corners: bool) -> None:
    """Without scaling, the planes are the one-hot mask."""
    mask = np.array([[0, 1, 1], [7, 0, 1]], dtype=np.uint8)
    planes = reference.resize_mask(mask, [1, 7], 2, 3, align_corners=align_corners)
    np.testing.assert_array_equal(planes[..., 0], mask == 1)
    np.testing.assert_array_equal(planes[..., 1], mask == 7)


@given(st.integers(1, 21), st.integers(1, 21), grids, grids, seeds)
def test_cells_have_the_share_of_their_area_that_an_object_covers(
    height: int, width: int, h: int, w: int, seed: int
) -> None:
    """Corners are not aligned, and cells need not be whole numbers of pixels."""
    random = np.random.default_rng(seed)
    mask = random.choice(np.array([0, 1, 5], np.uint8), (height, width), p=(0.2, 0.5, 0.3))
    mask[0, 0] = 1
    # Every pixel as h x w equal parts, of which a cell has height x width.
    parts = (mask.repeat(h, axis=0).repeat(w, axis=1) == 1).reshape(h, height, w, width)
    expected = parts.mean(axis=(1, 3))
    if expected.max() > 0.5:  # no rescue
        planes = reference.resize_mask(mask, [1], h, w, align_corners=False)
        np.testing.assert_allclose(planes[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("y", "x", "cell", "align_corners"),
    [
        (0, 0, (0, 0), True),
        (47, 79, (5, 9), True),
        (13, 40, (1, 5), True),
        (30, 31, (3, 4), True),
        (0, 0, (0, 0), False),
        (47, 79, (5, 9), False),
        (15, 40, (1, 5), False),
        (30, 31, (3, 3), False),
    ],
)
def test_one_pixel_is_rescued_to_its_nearest_cell(y: int, x: int, cell: tuple[int, int], align_corners: bool) -> None:
    """An object that no cell would show takes one whole cell and leaves the others."""
    mask = np.ones((48, 80), dtype=np.uint8)
    mask[y, x] = 9
    planes = reference.resize_mask(mask, [1, 9], 6, 10, align_corners=align_corners)
    expected = np.zeros((6, 10))
    expected[cell] = 1
    np.testing.assert_array_equal(planes[..., 1], expected)
    assert planes[(*cell, 0)] == 0
    assert planes[..., 0].sum() == pytest.approx(59, abs=0.05)


def test_two_tiny_objects_near_one_cell_get_one_each_or_are_refused() -> None:
    """The smaller id takes the shared cell; the other one needs pixels elsewhere."""
    mask = np.zeros((17, 17), dtype=np.uint8)
    mask[7, 7] = 1
    mask[6, 6] = 2
    with pytest.raises(MaskError, match="object 2 is too small"):
        reference.resize_mask(mask, [1, 2], 3, 3)
    mask[6, 3] = 2
    planes = reference.resize_mask(mask, [1, 2], 3, 3)
    assert planes[1, 1].tolist() == [1, 0]
    assert planes[1, 0].tolist() == [0, 1]


def test_a_rescue_never_loses_another_object() -> None:
    """An object whose only cell a rescue takes is rescued in turn."""
    mask = np.zeros((17, 17), dtype=np.uint8)
    mask[8, 8] = mask[8, 2] = 1
    mask[7, 9] = mask[9, 9] = mask[9, 7] = 2
    planes = reference.resize_mask(mask, [1, 2], 3, 3)
    assert (planes.max(axis=(0, 1)) == 1).all()


@given(st.integers(1, 40), st.integers(1, 40), grids, grids, seeds, st.booleans())
def test_no_object_is_lost_in_silence(height: int, width: int, h: int, w: int, seed: int, align_corners: bool) -> None:
    """Either every object has a cell of its own, or the mask is refused; planes never sum to more than one."""
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random((height, width)) < 0.1, rng.integers(1, 4, (height, width)), 0).astype(np.uint8)
    ids = [int(value) for value in np.unique(mask) if value]
    if not ids:
        return
    try:
        planes = reference.resize_mask(mask, ids, h, w, align_corners=align_corners)
    except MaskError:
        return
    assert (planes.max(axis=(0, 1)) > 0.5).all()
    assert planes.sum(axis=-1).max() <= 1 + 1e-6


@st.composite
def matching_problems(draw: st.DrawFn) -> dict[str, Any]:
    """Small maps whose similarities are exact in float32, so that ties are frequent; some cells are NaN."""
    h, w, slots = draw(grids), draw(grids), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(seeds))
    values = rng.integers(-2, 3, (slots + 1, h, w, 3)).astype(np.float32)
    values[rng.random((slots + 1, h, w)) < 0.1] = np.nan
    return {
        "query": values[0],
        "keys": list(values[1:]),
        "local": draw(st.lists(st.booleans(), min_size=slots, max_size=slots)),
        "radius": draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 12.0])),
        "top_k": draw(st.integers(1, 12)),
    }


@given(matching_problems())
def test_match_equals_a_sorted_list_of_candidates(problem: dict[str, Any]) -> None:
    """Sorting all candidates by (-similarity, slot, cell) gives the same neighbours, ties included."""
    found = reference.match(**problem)
    h, w, _ = problem["query"].shape
    for y, x in itertools.product(range(h), range(w)):
        candidates = []
        for slot, (key, local) in enumerate(zip(problem["keys"], problem["local"], strict=True)):
            for ky, kx in itertools.product(range(h), range(w)):
                similarity = float(problem["query"][y, x] @ key[ky, kx])
                if not math.isnan(similarity) and (not local or _near(ky - y, kx - x, problem)):
                    candidates.append((-similarity, slot, ky * w + kx))
        expected = sorted(candidates)[: problem["top_k"]]
        count = len(expected)
        row = y * w + x
        assert list(
            zip(-found.similarity[row, :count], found.slot[row, :count], found.cell[row, :count], strict=True)
        ) == (expected)
        assert np.isnan(found.similarity[row, count:]).all()
        assert (found.slot[row, count:] == -1).all()
        assert (found.cell[row, count:] == -1).all()


def _near(dy: int, dx: int, problem: dict[str, Any]) -> bool:
    radius: float = problem["radius"]
    return math.hypot(dx, dy) < radius


def test_read_out_weighs_labels_by_softmax() -> None:
    """Two neighbours, τ = 0.05: the weights are those of a softmax; a cell without neighbours reads zeros."""
    neighbours = Neighbours(
        np.array([[0.9, 0.8], [np.nan, np.nan]], dtype=np.float32),
        np.array([[1, 0], [-1, -1]], dtype=np.int32),
        np.array([[1, 0], [-1, -1]], dtype=np.int32),
    )
    labels = np.zeros((2, 1, 2, 2), dtype=np.float32)
    labels[1, 0, 1] = (1, 0)
    labels[0, 0, 0] = (0.25, 0.75)
    soft = reference.read_out(neighbours, labels, 0.05)
    weight = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(soft[0, 0], [weight + 0.25 * (1 - weight), 0.75 * (1 - weight)], rtol=1e-5)
    np.testing.assert_array_equal(soft[0, 1], 0)


@pytest.mark.parametrize("temperature", [1e-4, 0.05, 1e4])
def test_read_out_is_finite_at_any_temperature(temperature: float) -> None:
    """Similarities over a tiny τ do not overflow; weights still sum to one."""
    similarity = np.linspace(1, -1, 10, dtype=np.float32)[None]
    neighbours = Neighbours(similarity, np.zeros((1, 10), dtype=np.int32), np.zeros((1, 10), dtype=np.int32))
    soft = reference.read_out(neighbours, np.ones((1, 1, 1, 1), dtype=np.float32), temperature)
    assert soft[0, 0, 0] == pytest.approx(1, abs=1e-6)


@given(sides, sides, grids, grids, seeds)
def test_soft_masks_are_resized_at_pixel_centres(in_h: int, in_w: int, out_h: int, out_w: int, seed: int) -> None:
    """The result is bilinear with the edge repeated, whether masks grow or shrink."""
    soft = np.random.default_rng(seed).random((in_h, in_w, 2), dtype=np.float32)
    resized = reference.resize_soft(soft, out_h, out_w)
    assert resized.shape == (out_h, out_w, 2)
    for y, x in itertools.product(range(out_h), range(out_w)):
        np.testing.assert_allclose(resized[y, x], _bilinear(soft, y, x, (out_h, out_w), _centre_taps), atol=1e-5)
