"""Clusters at the resolution of the frame, with borders at the edges that the frame shows.

A cell is 8 pixels wide, and so is the staircase along the border of a cluster of cells. A network that learns from such
masks draws staircases. A guided filter (He et al. 2013) moves the border to the edges of the frame.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt.core.reference import resize_soft
from vosrt.types import U8Array
from vosrt_train.masks.clustering.foreground import ClusterMap

_EPSILON = 1e-4  # variance of grey, 0 to 1, above which a window has an edge


def clusters_at_pixels(
    cells: ClusterMap, frame: U8Array, seen: tuple[int, int], *, stride: int, clusters: int, radius: int
) -> ClusterMap:
    """Bring the clusters of one frame's cells to its pixels.

    A cell lies on the middle of its pixels, and the last one may reach beyond the frame. Stretching the cells to the
    frame would move borders, and a decoder that learns from such masks draws beside the object.

    Args:
        cells: u8 [h, w].
        frame: u8 [H, W, 3], RGB.
        seen: height and width of the frame as it was embedded.
        stride: pixels of that size from cell to cell.
        clusters: k.
        radius: of the window of the guided filter, in pixels of the frame; 0 leaves the borders of cells.

    Returns:
        u8 [H, W], with the clusters of the cells only.
    """
    height, width = frame.shape[:2]
    guide = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
    window = (2 * radius + 1, 2 * radius + 1)
    planes = np.full((clusters, height, width), -np.inf, dtype=np.float32)
    present = np.unique(cells)
    whole = tuple(stride * side for side in cells.shape)
    coarse = resize_soft((cells[..., None] == present).astype(np.float32), *whole)[: seen[0], : seen[1]]
    for channel, cluster in enumerate(present):
        plane = np.ascontiguousarray(coarse[..., channel])
        resized = np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        planes[cluster] = _guided(resized, guide, window) if radius else resized
    best: NDArray[np.int64] = planes.argmax(axis=0)
    return best.astype(np.uint8)


def _guided(plane: NDArray[np.float32], guide: NDArray[np.float32], window: tuple[int, int]) -> NDArray[np.float32]:
    """Predict a plane from the guide by averaged linear regressions in windows (He et al. 2013)."""
    mean = cv2.blur(guide, window)
    variance = cv2.blur(guide * guide, window) - mean * mean
    of_plane = cv2.blur(plane, window)
    slope = (cv2.blur(guide * plane, window) - mean * of_plane) / (variance + _EPSILON)
    offset = of_plane - slope * mean
    filtered = cv2.blur(slope, window) * guide + cv2.blur(offset, window)
    return np.asarray(filtered, np.float32)
