"""Objects cut out of boxes: what is found, and when a person should look at it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vosrt.types import U8Array
from vosrt.video.boxes import cut_out, doubt_of

BOX = (60, 40, 80, 60)


def scene(*, noise: int = 12, seed: int = 0) -> tuple[U8Array, U8Array]:
    """A dark disc before a bright background, and its mask: u8 [120, 200, 3] and [120, 200]."""
    mask = np.zeros((120, 200), np.uint8)
    cv2.ellipse(mask, (100, 70), (36, 26), 0, 0, 360, 1, -1)
    image = np.where(mask[..., None] > 0, (60, 40, 50), (170, 200, 180))
    image = image + np.random.default_rng(seed).integers(-noise, noise + 1, image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def test_an_object_that_stands_out_is_cut_out_without_doubt() -> None:
    image, mask = scene()
    found, doubt = cut_out(image, BOX)
    assert np.count_nonzero(found != mask) < 0.02 * np.count_nonzero(mask)
    assert doubt is None


@pytest.mark.parametrize("seed", range(3))
def test_a_box_around_more_of_the_same_is_doubted(seed: int) -> None:
    image = np.random.default_rng(seed).integers(60, 140, (120, 200, 3), dtype=np.uint8)
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 2), np.uint8)
    assert cut_out(image, BOX)[1] is not None


def test_a_cut_out_is_compared_with_the_contrast_of_its_box() -> None:
    image, mask = scene()
    share = np.count_nonzero(mask) / (BOX[2] * BOX[3])
    assert doubt_of(image, BOX, share) is None
    image, _ = scene()
    image[40:100, 60:100] = image[:60, :40]  # the left half of the box looks like the background
    left = share / 2
    assert doubt_of(image, BOX, left) is None
    assert "looks much like the surroundings; it may hold background" in str(doubt_of(image, BOX, share))
    assert "only 16% of it, and much more stands out" in str(doubt_of(image, BOX, left / 2))
    assert doubt_of(image, BOX, left * 1.5) is None


def test_noise_and_shading_are_no_contrast() -> None:
    """Without smoothing, no two pixels of a noisy picture have the same colour, and everything would stand out."""
    image, mask = scene(noise=30)
    assert doubt_of(image, BOX, np.count_nonzero(mask) / (BOX[2] * BOX[3])) is None
    assert doubt_of(np.full_like(image, 90), BOX, 0.5) is not None
