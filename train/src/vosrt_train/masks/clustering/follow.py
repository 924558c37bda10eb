"""Propagation of clusters from frame to frame by the runtime, on frames larger than the crops of the training.

The nearest cluster says what a cell looks like, not to which object it belongs, and has no finer borders than the
coarse mask. A mask that is propagated on enlarged frames keeps thin parts, which the mask networks learn to add.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import cv2
import numpy as np

from vosrt.model import Model
from vosrt.types import U8Array
from vosrt_train.masks.clustering.foreground import ClusterMap


def runs(numbers: Iterable[int], span: int) -> list[list[int]]:
    """Split ascending numbers of frames where they are more than ``span`` from the first of their run."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number - found[-1][0] <= span:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def follow_clusters(
    model: Model, frames: U8Array, clusters: ClusterMap, numbers: Collection[int], short_side: int
) -> dict[int, ClusterMap]:
    """Propagate the clusters of a frame to later ones.

    Args:
        frames: u8 [n, H, W, 3], RGB, of the whole video.
        clusters: u8 [h, w], numbers below 255, in the first of the frames ``numbers``.
        short_side: short side of the working frame, in pixels.

    Returns:
        Clusters u8 [H, W] by the number of their frame.
    """
    first, last = min(numbers), max(numbers)
    size = frames.shape[2], frames.shape[1]
    start = np.asarray(cv2.resize(clusters, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    found = {first: start}
    if last == first:
        return found
    with model.stream(size=short_side) as stream:
        for number in range(first, last + 1):
            bgr = np.ascontiguousarray(frames[number][:, :, ::-1])
            # Objects are numbered from 1, and every pixel belongs to one.
            result = stream.step(bgr) if number > first else stream.start(bgr, start + np.uint8(1))
            if number in numbers and number > first:
                found[number] = np.maximum(result.labels, 1) - np.uint8(1)
    return found
