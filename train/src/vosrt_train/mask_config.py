"""Configurations of the mask embedding (Li et al. 2023): networks, pseudo-masks, and the loss that learns from them.

`MaskNetworkConfig` travels in the metadata of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vosrt_train.ranges import check_range as _check

Clustering = Literal["kmeans", "sinkhorn"]
CoarseMask = Literal["soft", "hard"]

SEGMENTATION_FRAMES = 3  # frame 1 is segmented from frame 0, frame 2 from both


@dataclass(frozen=True, kw_only=True)
class MaskNetworkConfig:
    """The shape of mask encoder and decoder.

    Attributes:
        width: channels of layer1 of the mask encoder; layer2 and 3 have 2 and 4 times as many.
        value_channels: of a mask embedding; the decoder has as many, then a half, then a quarter.
        residual: the decoder's logits correct the coarse mask (see `vosrt_train.model.mask_embedding.correct`) and
            begin at 0, which leaves it as it is. The paper's decoder draws each mask from nothing.
    """

    width: int = 64
    value_channels: int = 512
    residual: bool = False

    def __post_init__(self) -> None:
        _check("masks.width", self.width, 1, 1024, "channels")
        _check("masks.value_channels", self.value_channels, 16, 4096, "channels")


@dataclass(frozen=True, kw_only=True)
class PseudoMaskConfig:
    """Clustering of the pixels of one video in space-time.

    Attributes:
        method: ``"kmeans"``, or ``"sinkhorn"``: optimal transport, which keeps clusters from swallowing each other.
        clusters: k.
        every: frames from one clustered frame to the next; all wanted frames are then assigned to the clusters.
        max_frames: of longer videos, so many evenly spaced frames are clustered.
        short_side: to which frames are resized beforehand, in pixels; 0 keeps the cache's size.
        batch: cells of a mini-batch of k-means.
        iterations: mini-batches of k-means; a tenth as many rounds of optimal transport, each over all cells.
        epsilon: of optimal transport, weight of the entropy; similarities are in [-1, 1].
        balance: of optimal transport: 1 wants clusters of one size, 0 leaves them the sizes that they have.
        smooth: side of the window, in cells, whose majority decides the cluster of a cell; 1 leaves cells alone.
        sharpen: radius in pixels of the guided filter that brings the borders of clusters to the edges of the frame, at
            the cache's resolution; 0 leaves them those of cells.
        follow: short side, in pixels, to which frames are resized to propagate the clusters of the first frame that a
            clip may show to its others; larger than what the networks see, it shows them what their coarse masks miss.
            0 assigns the cells of every frame to clusters, as the paper does.
    """

    method: Clustering = "kmeans"
    clusters: int = 7
    every: int = 8
    max_frames: int = 48
    short_side: int = 0
    batch: int = 4096
    iterations: int = 100
    epsilon: float = 0.05
    balance: float = 0.5
    smooth: int = 3
    sharpen: int = 8
    follow: int = 0

    def __post_init__(self) -> None:
        _check("pseudo.clusters", self.clusters, 2, 64)
        _check("pseudo.every", self.every, 1, 10_000, "frames")
        _check("pseudo.max_frames", self.max_frames, 2, 10_000, "frames")
        if self.short_side:
            _check("pseudo.short_side", self.short_side, 16, 4096, "pixels, or 0 for the cache's size")
        _check("pseudo.batch", self.batch, 1, 10**6, "cells")
        _check("pseudo.iterations", self.iterations, 10, 10_000)
        _check("pseudo.epsilon", self.epsilon, 1e-3, 10)
        _check("pseudo.balance", self.balance, 0, 1)
        _check("pseudo.smooth", self.smooth, 1, 9, "cells")
        _check("pseudo.sharpen", self.sharpen, 0, 256, "pixels")
        if self.follow:
            _check("pseudo.follow", self.follow, 16, 4096, "pixels, or 0 to assign every frame to clusters")


@dataclass(frozen=True, kw_only=True)
class ForegroundConfig:
    """Which clusters are taken for objects, and which videos are given up.

    A cluster may be an object if it passes every limit; of those, the best by persistence x (1 - contact / limit) x
    compactness are taken. Each limit can be switched off for an ablation with the value given in parentheses.

    Attributes:
        objects: pseudo-objects of a video at most.
        persistence: share of the clustered frames in which the cluster must be seen, i.e. have 0.5 % of the cells (0).
        contact: the share of its cells that lie on the frame's border, divided by the border's share of all cells, must
            be below this: background surrounds, objects are surrounded (1000).
        compactness: the share of its cells within its largest connected part, mean over frames, must reach this (0).
        min_area: mean share of the cells that it must have (0).
        max_area: mean share of the cells that it may have (1).
        dominance: a video in which one cluster has more than this share of the cells is degenerate.
        flicker: a video whose foreground changes its area by more than this share from one clustered frame to the next,
            on average, is degenerate.
        unions: clusters that make the pseudo-object of a clip, at most: one that was chosen and some that it touches,
            drawn anew for every clip. 1 follows all chosen clusters, each as an object, as the paper does.
    """

    objects: int = 2
    persistence: float = 0.7
    contact: float = 0.4
    compactness: float = 0.6
    min_area: float = 0.01
    max_area: float = 0.4
    dominance: float = 0.95
    flicker: float = 0.5
    unions: int = 1

    def __post_init__(self) -> None:
        _check("foreground.objects", self.objects, 1, 15)
        _check("foreground.unions", self.unions, 1, 15)
        _check("foreground.contact", self.contact, 0.001, 1000)
        for name in ("persistence", "compactness", "min_area", "max_area", "dominance", "flicker"):
            _check(f"foreground.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """The segmentation loss L_seg, and when pseudo-masks are made.

    Attributes:
        weight: of the loss beside that of correspondence, whose weight is 1; 0 trains correspondence alone.
        start: share of the training after which the loss sets in (the paper: 300 of 400 epochs).
        updates: how often pseudo-masks are made anew after that, at even intervals.
        lag: share of the interval between two updates by which the weights that make pseudo-masks are older than their
            first use. They are made meanwhile, in the background; the training waits where they are late.
        background: False makes them at their first use, in the training process.
        clips: clips of a step and process that have this loss; 0 is all of them.
        rounds: of refinement that the loss goes through.
        round_zero: whether round 0, which decodes the read-out alone, counts too.
        coarse: what the mask encoder is shown of a coarse mask: ``"soft"`` is what it sees at inference, ``"hard"`` is
            the argmax (to measure what the mismatch costs).
        top_k: neighbours that a cell reads from, as at inference; 0 is all.
        hops: times that coarse masks are propagated from frame to frame of a clip, at most (see
            `vosrt_train.propagation`): few frames then show what long videos do to soft masks. 0 follows the clip once,
            in its order, as the paper does.
        freeze: keeps the encoder as it is from ``start`` on, and leaves out the loss of correspondence, which is then
            of no use: mask encoder and decoder are learnt alone, at a fraction of the cost.
    """

    weight: float = 0.0
    start: float = 0.75
    updates: int = 9
    lag: float = 0.5
    background: bool = True
    clips: int = 0
    rounds: int = 1
    round_zero: bool = True
    coarse: CoarseMask = "soft"
    top_k: int = 10
    hops: int = 0
    freeze: bool = False

    def __post_init__(self) -> None:
        _check("segmentation.weight", self.weight, 0, 100)
        _check("segmentation.start", self.start, 0, 0.999)
        _check("segmentation.updates", self.updates, 0, 1000)
        _check("segmentation.lag", self.lag, 0, 1)
        _check("segmentation.clips", self.clips, 0, 65_536)
        _check("segmentation.rounds", self.rounds, 1, 4)
        _check("segmentation.top_k", self.top_k, 0, 1024)
        _check("segmentation.hops", self.hops, 0, 1000)
