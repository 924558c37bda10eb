"""Selection of the clusters that may be objects, and of the videos whose clustering is usable.

The published program leaves this step out. It assumes that an object stays visible, touches the border of the frame
less than the background does, is in one piece, and is neither a speck nor the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vosrt_train.masks.config import ForegroundConfig

ClusterMap = NDArray[np.uint8]

_SEEN = 0.005  # share of a frame's cells from which on a cluster counts as seen


@dataclass(frozen=True)
class ClusterFacts:
    """Measurements of one cluster over F frames.

    Attributes:
        area: mean share of the cells.
        persistence: share of the frames in which it is seen.
        contact: share of its cells on the border, divided by the border's share of all cells; 1 if it were scattered.
        compactness: share of its cells in the largest connected part (by edges), mean over the frames where it is seen.
    """

    area: float
    persistence: float
    contact: float
    compactness: float

    def score(self, config: ForegroundConfig) -> float:
        """Score of the cluster as an object, 0 to 1; 0 where it fails a limit of the configuration."""
        passes = (
            self.persistence >= config.persistence
            and self.contact < config.contact
            and self.compactness >= config.compactness
            and config.min_area <= self.area <= config.max_area
            and self.area > 0
        )
        return self.persistence * (1 - self.contact / config.contact) * self.compactness if passes else 0.0


@dataclass(frozen=True)
class Selection:
    """Result of the selection in one video.

    Attributes:
        objects: clusters selected as objects, the best first; none where the video is degenerate.
        flicker: mean relative change of the foreground's area between frames, 0 to 1.
        reason: why the video is degenerate; empty where it is usable.
    """

    objects: tuple[int, ...]
    facts: tuple[ClusterFacts, ...]
    flicker: float
    reason: str = ""


def select_foreground(maps: ClusterMap, clusters: int, config: ForegroundConfig) -> Selection:
    """Select the clusters that may be objects.

    Args:
        maps: u8 [F, h, w], the cluster of every cell of the clustered frames, in order of time.
        clusters: k.

    Returns:
        The objects, or the reason why the video has none.
    """
    facts = tuple(_measure(maps == cluster) for cluster in range(clusters))
    largest = max(each.area for each in facts)
    if largest > config.dominance:
        return Selection((), facts, 0.0, f"one cluster has {largest:.0%} of the cells")
    scores = np.array([each.score(config) for each in facts])
    ranked = [int(cluster) for cluster in np.argsort(-scores, kind="stable") if scores[cluster] > 0]
    objects = tuple(ranked[: config.objects])
    if not objects:
        return Selection((), facts, 0.0, "no cluster looks like an object: the foreground is empty")
    flicker = _flicker(np.isin(maps, objects))
    if flicker > config.flicker:
        return Selection((), facts, flicker, f"the foreground flickers: its area changes by {flicker:.0%} on average")
    return Selection(objects, facts, flicker)


def smooth_clusters(maps: ClusterMap, clusters: int, side: int) -> ClusterMap:
    """Replace the cluster of every cell by the majority in its window; of equals, by the lowest.

    Args:
        maps: u8 [F, h, w].
        clusters: k.
        side: of the square window in cells; cut off at the border of the frame.
    """
    if side <= 1:
        return maps
    smooth = np.empty_like(maps)
    for frame, out in zip(maps, smooth, strict=True):
        votes = [
            cv2.boxFilter(
                (frame == cluster).astype(np.float32), -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT
            )
            for cluster in range(clusters)
        ]
        out[:] = np.argmax(np.round(votes), axis=0)
    return smooth


def _measure(mask: NDArray[np.bool_]) -> ClusterFacts:
    """Measure one cluster, bool [F, h, w]."""
    border = np.ones(mask.shape[1:], dtype=bool)
    border[1:-1, 1:-1] = False
    area = mask.mean(axis=(1, 2))
    seen = area >= _SEEN
    total = int(mask.sum())
    contact = float(mask[:, border].sum() / total / border.mean()) if total else 0.0
    parts = [_largest_part(frame) for frame in mask[seen]]
    return ClusterFacts(
        area=round(float(area.mean()), 4),
        persistence=round(float(seen.mean()), 4),
        contact=round(contact, 4),
        compactness=round(float(np.mean(parts)), 4) if parts else 0.0,
    )


def _largest_part(mask: NDArray[np.bool_]) -> float:
    """Share of a plane's cells that lie in its largest connected part."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    sizes: NDArray[Any] = stats[1:, cv2.CC_STAT_AREA]
    return float(sizes.max() / sizes.sum())


def _flicker(foreground: NDArray[np.bool_]) -> float:
    """Mean of 1 - smaller / larger area of the foreground in one frame and the next; bool [F, h, w]."""
    area = foreground.sum(axis=(1, 2)).astype(np.float64)
    small, large = np.minimum(area[:-1], area[1:]), np.maximum(area[:-1], area[1:])
    change = 1 - small[large > 0] / large[large > 0]
    return round(float(change.mean()), 4) if change.size else 0.0
