"""The two branches of one training step, and what the losses make of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt_train.config import TrainConfig
from vosrt_train.data.clips import ClipBatch
from vosrt_train.data.views import apply_to_frames
from vosrt_train.distributed import World
from vosrt_train.losses import cross_view_loss, sample_anchors, sample_points, space_time_loss
from vosrt_train.network import batch_norm_mode
from vosrt_train.segmentation import ClipMasks, mean_of_usable


@dataclass(frozen=True)
class Correspondence:
    """The losses of correspondence, and the maps that they compare.

    Attributes:
        space_time: f32 [].
        cross_view: f32 [], before it is weighted.
        main: f32 [B, T, K, h, w], the clips' embeddings.
        regular: f32 [B, T, K, h, w], those of the regularising views.
        anchors: f32 [B, A, K].
    """

    space_time: Tensor
    cross_view: Tensor
    main: Tensor
    regular: Tensor
    anchors: Tensor


@dataclass(frozen=True)
class Losses:
    """The losses of one step.

    Attributes:
        total: f32 [].
        correspondence: of the two branches; None where the encoder is frozen.
        segmentation: f32 [], before it is weighted; None where pseudo-masks are not in use.
    """

    total: Tensor
    correspondence: Correspondence | None
    segmentation: Tensor | None = None

    @property
    def figures(self) -> dict[str, Tensor]:
        """Every loss by its name."""
        figures = {"loss/total": self.total}
        if self.correspondence is not None:
            figures["loss/space_time"] = self.correspondence.space_time
            figures["loss/cross_view"] = self.correspondence.cross_view
        return figures if self.segmentation is None else figures | {"loss/segmentation": self.segmentation}


def compute_losses(
    network: nn.Module,
    batch: ClipBatch,
    config: TrainConfig,
    world: World,
    *,
    segmentation: tuple[nn.Module, ClipMasks] | None = None,
) -> Losses:
    """Run both branches on a batch and compare them (Araslanov et al. 2021; supplement, figure 5 and B.1).

    The regularising branch has no gradient, but for frame 0, which goes through the network together with the main
    branch, because the cross-view loss needs its gradient. Anchors and points of other processes are negatives.

    Args:
        network: u8 [n, 3, H, W] -> f32 [n, K, h, w] of unit length per cell.
        batch: this process's clips, on the network's device.
        config: of the losses and the batch-norms.
        world: the processes that train together.
        segmentation: a `SegmentationNetwork`, and the masks of the first clips, which it is to learn from.
    """
    if segmentation is not None and config.segmentation.freeze:
        return _follow_only(network, batch, config, *segmentation)
    clips, count = batch.frames.shape[:2]
    seen = apply_to_frames(batch.frames, batch.view)
    # Before the pass with gradient: at every pass DDP overwrites the running statistics, which a backward may need.
    with torch.no_grad(), batch_norm_mode(network, config.compute.regular_batch_norm):
        later = network(seen[:, 1:].flatten(0, 1)).unflatten(0, (clips, count - 1))
    embedded, features = network(torch.cat([batch.frames.flatten(0, 1), seen[:, 0]]), with_features=True)
    main = embedded[: clips * count].unflatten(0, (clips, count))
    regular = torch.cat([embedded[clips * count :].unsqueeze(1), later], dim=1)

    tau = config.loss.temperature
    anchors = sample_anchors(main, batch.anchor_shift, grid=config.loss.anchors)
    space_time = space_time_loss(
        main, regular, batch.view, anchors, temperature=tau, negatives=world.others(anchors.flatten(0, 1))
    )
    points, partners = sample_points(main, regular, batch.view, batch.point_shift, grid=config.loss.points)
    cross_view = cross_view_loss(points, partners, temperature=tau, negatives=world.others(partners))
    total = space_time + config.loss.cross_view * cross_view
    correspondence = Correspondence(space_time, cross_view, main, regular, anchors)
    if segmentation is None:
        return Losses(total, correspondence)
    follower, masks = segmentation
    chosen, length = len(masks.labels), masks.labels.shape[1]
    first = torch.arange(chosen * count, device=embedded.device).view(chosen, count)[:, :length].flatten()
    frames, embedding = batch.frames[:chosen, :length], main[:chosen, :length]
    per_clip = follower(frames, embedding, features.take(first), masks.labels, masks.hops)
    segmentation_loss = mean_of_usable(per_clip, masks.usable)
    total = total + config.segmentation.weight * segmentation_loss
    return Losses(total, correspondence, segmentation_loss)


def _follow_only(
    network: nn.Module, batch: ClipBatch, config: TrainConfig, follower: nn.Module, masks: ClipMasks
) -> Losses:
    """The segmentation loss on what the encoder gives as it is, without gradient to it or change of its statistics."""
    chosen, length = masks.labels.shape[:2]
    frames = batch.frames[:chosen, :length]
    with torch.no_grad(), batch_norm_mode(network, "eval"):
        embedded, features = network(frames.flatten(0, 1), with_features=True)
    per_clip = follower(frames, embedded.unflatten(0, (chosen, length)), features, masks.labels, masks.hops)
    loss = mean_of_usable(per_clip, masks.usable)
    return Losses(config.segmentation.weight * loss, None, loss)
