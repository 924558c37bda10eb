"""Configurations of the mask embedding (Li et al. 2023): networks, pseudo-masks, and the loss that learns from them.

`MaskNetworkConfig` travels in the metadata of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vosrt_train.ranges import Checked, limited

Clustering = Literal["kmeans", "sinkhorn"]
CoarseMask = Literal["soft", "hard"]

SEGMENTATION_FRAMES = 3  # frame 1 is segmented from frame 0, frame 2 from both


@dataclass(frozen=True, kw_only=True)
class MaskNetworkConfig(Checked, table="masks"):
    """The shape of mask encoder and decoder.

    Attributes:
        width: channels of layer1 of the mask encoder; layer2 and 3 have 2 and 4 times as many.
        value_channels: channels of a mask embedding; the decoder has as many, then a half, then a quarter.
        residual: the logits of the decoder correct the coarse mask (see `vosrt_train.masks.networks.correct`) and
            start at 0, no correction. The decoder of the paper predicts each mask without it.
    """

    width: int = limited(64, 1, 1024, "channels")
    value_channels: int = limited(512, 16, 4096, "channels")
    residual: bool = False


@dataclass(frozen=True, kw_only=True)
class PseudoMaskConfig(Checked, table="pseudo"):
    """Clustering of the pixels of one video in space-time.

    Attributes:
        method: ``"kmeans"``, or ``"sinkhorn"``: optimal transport, which keeps one cluster from absorbing the others.
        clusters: number of clusters, k.
        every: frames from one clustered frame to the next; other frames are assigned to the clusters afterwards.
        max_frames: most frames to cluster; of longer videos they are evenly spaced.
        short_side: short side of the resized frames, in pixels; 0 keeps the size of the cache.
        batch: cells of a mini-batch of k-means.
        iterations: mini-batches of k-means; optimal transport has a tenth as many rounds, each over all cells.
        epsilon: weight of the entropy in optimal transport; similarities are in [-1, 1].
        balance: 1 makes the clusters of optimal transport equally large, 0 leaves the sizes of nearest points.
        smooth: side of the window, in cells, whose majority decides the cluster of a cell; 1 leaves cells alone.
        sharpen: radius in pixels of the guided filter that moves the borders of clusters to the edges of the frame, at
            the resolution of the cache; 0 leaves the borders of cells.
        follow: short side, in pixels, of the frames on which clusters are propagated from the first frame of a clip to
            the others; larger frames than the crops show details that coarse masks miss. 0 assigns the cells of every
            frame to clusters, as the paper does.
    """

    method: Clustering = "kmeans"
    clusters: int = limited(7, 2, 64)
    every: int = limited(8, 1, 10_000, "frames")
    max_frames: int = limited(48, 2, 10_000, "frames")
    short_side: int = limited(0, 16, 4096, "pixels", zero="for the cache's size")
    batch: int = limited(4096, 1, 10**6, "cells")
    iterations: int = limited(100, 10, 10_000)
    epsilon: float = limited(0.05, 1e-3, 10)
    balance: float = limited(0.5, 0, 1)
    smooth: int = limited(3, 1, 9, "cells")
    sharpen: int = limited(8, 0, 256, "pixels")
    follow: int = limited(0, 16, 4096, "pixels", zero="to assign every frame to clusters")


@dataclass(frozen=True, kw_only=True)
class ForegroundConfig(Checked, table="foreground"):
    """Selection of clusters as objects, and refusal of videos.

    A cluster may be an object if it passes every limit; of those, the best by persistence x (1 - contact / limit) x
    compactness are selected. The value in parentheses switches a limit off, for ablations.

    Attributes:
        objects: most pseudo-objects of a video.
        persistence: least share of the clustered frames in which the cluster has 0.5 % of the cells or more (0).
        contact: the share of its cells that lie on the frame's border, divided by the border's share of all cells, must
            be below this: background surrounds, objects are surrounded (1000).
        compactness: the share of its cells within its largest connected part, mean over frames, must reach this (0).
        min_area: least mean share of the cells (0).
        max_area: largest mean share of the cells (1).
        dominance: a video in which one cluster has more than this share of the cells is degenerate.
        flicker: a video whose foreground changes its area by more than this share from one clustered frame to the next,
            on average, is degenerate.
        unions: most clusters in the pseudo-object of a clip: a selected one and some that touch it, drawn for every
            clip. 1 takes all selected clusters, each as an object, as the paper does.
    """

    objects: int = limited(2, 1, 15)
    persistence: float = limited(0.7, 0, 1)
    contact: float = limited(0.4, 0.001, 1000)
    compactness: float = limited(0.6, 0, 1)
    min_area: float = limited(0.01, 0, 1)
    max_area: float = limited(0.4, 0, 1)
    dominance: float = limited(0.95, 0, 1)
    flicker: float = limited(0.5, 0, 1)
    unions: int = limited(1, 1, 15)


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(Checked, table="segmentation"):
    """The segmentation loss L_seg, and when pseudo-masks are made.

    Attributes:
        weight: weight of the loss; correspondence has weight 1. 0 trains correspondence alone.
        start: share of the training after which the loss is added (the paper: 300 of 400 epochs).
        updates: number of times that pseudo-masks are renewed after that, at even intervals.
        lag: age of the weights that make pseudo-masks at their first use, as a share of the interval between updates.
            The masks are made meanwhile, in the background; the training waits where they are late.
        background: False makes pseudo-masks at their first use, in the training process.
        clips: clips of a step and process that have this loss; 0 is all of them.
        rounds: rounds of refinement in the loss.
        round_zero: add the loss of round 0, which decodes the read-out alone.
        coarse: input of the mask encoder: ``"soft"`` coarse masks, as at inference, or ``"hard"``, their argmax (for
            ablations).
        top_k: neighbours that a cell reads from, as at inference; 0 is all.
        hops: most times that coarse masks are propagated between the frames of a clip (see
            `vosrt_train.masks.propagation`): a short clip then shows the soft masks of long videos. 0 segments the
            clip once, in its order, as the paper does.
        freeze: keep the encoder unchanged from ``start`` on, and leave out the loss of correspondence: mask encoder
            and decoder learn alone, at a fraction of the cost.
    """

    weight: float = limited(0.0, 0, 100)
    start: float = limited(0.75, 0, 0.999)
    updates: int = limited(9, 0, 1000)
    lag: float = limited(0.5, 0, 1)
    background: bool = True
    clips: int = limited(0, 0, 65_536)
    rounds: int = limited(1, 1, 4)
    round_zero: bool = True
    coarse: CoarseMask = "soft"
    top_k: int = limited(10, 0, 1024)
    hops: int = limited(0, 0, 1000)
    freeze: bool = False
