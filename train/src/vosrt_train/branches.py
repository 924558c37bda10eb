"""One training step of correspondence: the main branch, the regularising branch, and the losses between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vosrt_train.config import LossConfig, TrainConfig
from vosrt_train.data.clips import ClipBatch
from vosrt_train.data.views import apply_to_frames
from vosrt_train.distil import Teacher, affinity_loss
from vosrt_train.distributed import World
from vosrt_train.losses import cross_view_loss, sample_anchors, sample_points, space_time_loss
from vosrt_train.model import Features
from vosrt_train.network import batch_norm_mode
from vosrt_train.reconstruction import alternate_channels, drop_channel, reconstruction_loss
from vosrt_train.walk import palindrome_loss


@dataclass(frozen=True)
class Correspondence:
    """The losses of correspondence, and the maps that they compare.

    Attributes:
        terms: f32 [] by name, without their weights; the names are those of the weights in `LossConfig`.
        main: f32 [B, T, K, h, w], embeddings of the clips.
        regular: f32 [B, T, K, h, w], embeddings of the regularising views; None without the space-time loss.
        anchors: f32 [B, A, K].
    """

    terms: dict[str, Tensor]
    main: Tensor
    regular: Tensor | None
    anchors: Tensor

    def total(self, config: LossConfig) -> Tensor:
        """Return the weighted sum of the terms, f32 []."""
        return torch.stack([getattr(config, name) * term for name, term in self.terms.items()]).sum()


@dataclass(frozen=True)
class Losses:
    """The losses of one step.

    Attributes:
        total: f32 [], the weighted sum, which is minimised.
        correspondence: of the two branches; None where the encoder is frozen.
        segmentation: f32 [], without its weight; None in steps without pseudo-masks.
        affinity: f32 [], distance from the affinities of a teacher; None without one.
    """

    total: Tensor
    correspondence: Correspondence | None
    segmentation: Tensor | None = None
    affinity: Tensor | None = None

    @property
    def figures(self) -> dict[str, Tensor]:
        """Every loss by its name in the log."""
        figures = {"loss/total": self.total}
        if self.correspondence is not None:
            figures |= {f"loss/{name}": term for name, term in self.correspondence.terms.items()}
        further = {"segmentation": self.segmentation, "affinity": self.affinity}
        return figures | {f"loss/{name}": term for name, term in further.items() if term is not None}


def compute_losses(
    network: nn.Module, batch: ClipBatch, config: TrainConfig, world: World, teacher: Teacher | None = None
) -> Losses:
    """Run both branches on a batch and compare them (Araslanov et al. 2021; supplement, figure 5 and B.1).

    Args:
        network: u8 [n, 3, H, W] -> f32 [n, K, h, w] of unit length per cell.
        batch: the clips of this process, on the network's device.
        config: settings of the losses and of the batch-norms.
        world: all training processes; anchors and points of the others are negatives.
        teacher: is matched instead, without a second branch.
    """
    if teacher is not None:
        clips, frames = len(batch.frames), batch.frames.flatten(0, 1)
        with batch_norm_mode(network, config.compute.batch_norm):
            found = network(frames).unflatten(0, (clips, -1))
        wanted = teacher(frames)
        wanted = wanted.view(clips, -1, *wanted.shape[1:])
        loss = affinity_loss(found, wanted, temperature=config.loss.temperature)
        return Losses(loss, None, affinity=loss)
    return compare_branches(network, batch, config, world)[0]


def compare_branches(
    network: nn.Module, batch: ClipBatch, config: TrainConfig, world: World
) -> tuple[Losses, Correspondence, Features]:
    """Do as `compute_losses`, and return the feature maps of the B * T frames and the B views of frame 0, too."""
    clips, count = batch.frames.shape[:2]
    loss = config.loss
    dropped = alternate_channels(batch, clips) if loss.reconstruction else None
    frames = batch.frames if dropped is None else drop_channel(batch.frames, dropped)
    seen = apply_to_frames(frames, batch.view)
    later: list[Tensor] = []
    if loss.space_time:
        # Before the pass with gradient: at every pass DDP overwrites the running statistics, which a backward may need.
        with torch.no_grad(), batch_norm_mode(network, config.compute.regular_batch_norm):
            later = [network(seen[:, 1:].flatten(0, 1)).unflatten(0, (clips, count - 1))]
    # Frame 0 of the regularising view passes together with the main branch: losses between views need its gradient.
    with batch_norm_mode(network, config.compute.batch_norm):
        embedded, features = network(torch.cat([frames.flatten(0, 1), seen[:, 0]]), with_features=True)
    main = embedded[: clips * count].unflatten(0, (clips, count))
    regular = torch.cat([embedded[clips * count :].unsqueeze(1), *later], dim=1)

    tau, terms = loss.temperature, {}
    anchors = sample_anchors(main, batch.anchor_shift, grid=loss.anchors)
    if loss.space_time:
        terms["space_time"] = space_time_loss(
            main, regular, batch.view, anchors, temperature=tau, negatives=world.others(anchors.flatten(0, 1))
        )
    if loss.cross_view:
        points, partners = sample_points(main, regular, batch.view, batch.point_shift, grid=loss.points)
        terms["cross_view"] = cross_view_loss(points, partners, temperature=tau, negatives=world.others(partners))
    if loss.walk:
        seed = batch.epoch * 2**32 + batch.step
        terms["walk"] = palindrome_loss(
            main, regular[:, 0], batch.view, temperature=tau, dropout=loss.walk_dropout, seed=seed
        )
    if dropped is not None:
        terms["reconstruction"] = reconstruction_loss(
            main, batch.frames, dropped, temperature=tau, radius=loss.reconstruction_radius
        )
    correspondence = Correspondence(terms, main, regular if loss.space_time else None, anchors)
    return Losses(correspondence.total(loss), correspondence), correspondence, features
