"""Clusters carried from frame to frame by the runtime, on frames larger than those that the networks are shown.

Which cluster a cell is nearest to says what it looks like, not what it is part of, and at the resolution of the
training no more than its coarse mask does. Propagated on enlarged frames, a mask keeps what is thin: from that the
networks can learn what a coarse mask misses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import cv2
import numpy as np

from vosrt.model import Model
from vosrt.types import U8Array
from vosrt_train.clustering.foreground import ClusterMap


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
    model: Model, frames: U8Array, clusters: ClusterMap, wanted: Collection[int], short_side: int
) -> dict[int, ClusterMap]:
    """Carry the clusters of a frame to later ones.

    Args:
        model: propagates them.
        frames: u8 [n, H, W, 3], RGB, of the whole video.
        clusters: u8 [h, w], at most 255 of them, in the first of the wanted frames.
        wanted: numbers of frames.
        short_side: to which frames are resized, in pixels.

    Returns:
        Clusters u8 [H, W] of each wanted frame; those of the first as they were given.
    """
    first, last = min(wanted), max(wanted)
    size = frames.shape[2], frames.shape[1]
    given = np.asarray(cv2.resize(clusters, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    found = {first: given}
    if last == first:
        return found
    with model.stream(size=short_side) as stream:
        for number in range(first, last + 1):
            bgr = np.ascontiguousarray(frames[number][:, :, ::-1])
            # Objects are numbered from 1, and every pixel belongs to one.
            result = stream.step(bgr) if number > first else stream.start(bgr, given + np.uint8(1))
            if number in wanted and number > first:
                found[number] = np.maximum(result.labels, 1) - np.uint8(1)
    return found
