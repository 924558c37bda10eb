"""The COCO run-length codec agrees with pycocotools, which defines the format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco  # type: ignore[import-untyped]

from vosrt.core.native import measure_objects
from vosrt.types import ObjectResult
from vosrt.video.rle import decode, encode, encode_labels


def oracle(mask: NDArray[np.bool_]) -> str:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts.decode("ascii")


@st.composite
def label_maps(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Label maps from noise to large areas, as both short and long runs must be right."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    zoom = draw(st.sampled_from([1, 3, 12]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    small = rng.integers(0, draw(st.integers(1, 5)), (height, width), dtype=np.uint8)
    return np.kron(small, np.ones((zoom, zoom), np.uint8))


@given(label_maps())
def test_every_object_is_encoded_as_pycocotools_does(labels: NDArray[np.uint8]) -> None:
    ids = (1, 2, 3, 4)
    assert encode_labels(labels, ids) == {i: oracle(labels == i) for i in ids}


@given(label_maps())
def test_regions_are_those_of_the_pixels(labels: NDArray[np.uint8]) -> None:
    """Area, box and centroid hold for runs over any columns; an absent object has none."""
    confidence = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    objects = measure_objects(labels, (1, 2, 3, 4), confidence)
    for object_id in (1, 2, 3, 4):
        y, x = np.nonzero(labels == object_id)
        region = objects[object_id]
        assert region.area_px == y.size
        if not y.size:
            assert region == ObjectResult(object_id)
            continue
        assert region.box == (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
        assert region.centroid == pytest.approx((x.mean(), y.mean()))
        assert region.confidence == pytest.approx(confidence[y, x].mean(dtype=np.float64), abs=1e-6)


@given(label_maps())
def test_decoding_gives_the_mask_back(labels: NDArray[np.uint8]) -> None:
    mask = labels == 1
    np.testing.assert_array_equal(decode(oracle(mask), *mask.shape), mask)


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (1080, 1920)])
def test_empty_and_full_masks(shape: tuple[int, int], value: bool) -> None:
    mask = np.full(shape, value)
    assert encode(mask) == oracle(mask)
    np.testing.assert_array_equal(decode(encode(mask), *shape), mask)


@pytest.mark.parametrize("counts", ["~~~", "P", "1", "00000000001", "PPPPPPPPPPPPPPPP0"])
def test_damaged_strings_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="RLE counts"):
        decode(counts, 4, 4)
