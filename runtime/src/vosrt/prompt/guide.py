"""Masks that follow the edges of the picture."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from vosrt.types import F32Array, U8Array

_GUIDE_RADIUS, _GUIDE_EPS = 6, 3e-4


class Guide:
    """The guided filter with a colour guide (He et al. 2013, sec. 3.3), on a frame at half its size.

    Args:
        frame: u8 [H, W, 3].
    """

    def __init__(self, frame: U8Array) -> None:
        height, width = frame.shape[:2]
        size = max(1, width // 2), max(1, height // 2)
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self._colour: F32Array = small.astype(np.float32) / np.float32(255)

    @cached_property
    def _statistics(self) -> tuple[F32Array, F32Array]:
        """Mean colour f32 [H, W, 3] and inverse covariance f32 [H, W, 3, 3] of each window."""
        colour = self._colour
        mean = _window_means(colour)
        covariance = np.empty((*colour.shape, 3), np.float32)
        for i in range(3):
            products = _window_means(colour * colour[..., i : i + 1]) - mean * mean[..., i : i + 1]
            covariance[..., i, :] = products
        return mean, np.linalg.inv(covariance + _GUIDE_EPS * np.eye(3, dtype=np.float32)).astype(np.float32)

    def follow(self, soft: F32Array, scale: tuple[float, float]) -> F32Array:
        """Have a soft mask follow the edges.

        Args:
            soft: f32 [h, w], of the padded frame.
            scale: width and height of the padded frame, of those of the frame.

        Returns:
            f32 [H, W] of the frame at half its size.
        """
        height, width = self._colour.shape[:2]
        full = round(width * scale[0]), round(height * scale[1])
        mask = cv2.resize(soft, full, interpolation=cv2.INTER_LINEAR)[:height, :width]
        mask = np.clip(4 * (mask - 0.5) + 0.5, 0, 1)
        mean, inverse = self._statistics
        mask_mean = _window_means(mask)
        together = _window_means(self._colour * mask[..., None]) - mean * mask_mean[..., None]
        slope = np.einsum("hwij,hwj->hwi", inverse, together)
        offset = mask_mean - (slope * mean).sum(axis=-1)
        return np.asarray((_window_means(slope) * self._colour).sum(axis=-1) + _window_means(offset), np.float32)


def _window_means(values: F32Array) -> F32Array:
    side = 2 * _GUIDE_RADIUS + 1
    return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)
