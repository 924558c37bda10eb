"""One training step with pseudo-masks: the losses of correspondence and the segmentation loss."""

from __future__ import annotations

import torch
from torch import nn

from vosrt_train.branches import Losses, compare_branches
from vosrt_train.config import TrainConfig
from vosrt_train.data.clips import ClipBatch
from vosrt_train.distributed import World
from vosrt_train.masks.segmentation import ClipMasks, mean_of_usable
from vosrt_train.network import batch_norm_mode


def compute_joint_losses(
    network: nn.Module, follower: nn.Module, batch: ClipBatch, masks: ClipMasks, config: TrainConfig, world: World
) -> Losses:
    """Add the segmentation loss of the first clips to the losses of correspondence, which a frozen encoder leaves out.

    Args:
        network: u8 [n, 3, H, W] -> f32 [n, K, h, w] of unit length per cell.
        follower: a `vosrt_train.masks.segmentation.SegmentationNetwork`.
        batch: the clips of this process, on the network's device.
        masks: pseudo-masks of the first clips of the batch.
        config: settings of the losses and of the batch-norms.
    """
    clips, length = masks.labels.shape[:2]
    frames = batch.frames[:clips, :length]
    if config.segmentation.freeze:
        with torch.no_grad(), batch_norm_mode(network, "eval"):
            embedded, features = network(frames.flatten(0, 1), with_features=True)
        per_clip = follower(frames, embedded.unflatten(0, (clips, length)), features, masks.labels, masks.hops)
        loss = mean_of_usable(per_clip, masks.usable)
        return Losses(config.segmentation.weight * loss, None, loss)
    losses, correspondence, features = compare_branches(network, batch, config, world)
    # The main branch embedded the frames of all clips; the mask networks need the first of each of the first clips.
    numbers = torch.arange(batch.frames.shape[:2].numel(), device=frames.device).view(batch.frames.shape[:2])
    features = features.take(numbers[:clips, :length].flatten())
    per_clip = follower(frames, correspondence.main[:clips, :length], features, masks.labels, masks.hops)
    loss = mean_of_usable(per_clip, masks.usable)
    return Losses(losses.total + config.segmentation.weight * loss, correspondence, loss)
