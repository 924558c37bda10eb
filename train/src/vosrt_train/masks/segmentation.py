"""The segmentation loss L_seg: segment pseudo-objects in a clip, as at inference (Li et al. 2023, section 3.2).

Frame 1 is segmented from frame 0, and frame 2 from frames 0 and 1 with the mask that was predicted for frame 1. As in
the runtime, the mask encoder takes soft read-outs of the memory as coarse masks; no gradient flows through them.

With hops, coarse masks are propagated beforehand. Frame 1 is then segmented from frames 0 and 2, and frame 2 from 0 and
1, where frames 1 and 2 have their coarse masks: so does the runtime without feedback of refined masks to the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vosrt_train.config import TrainConfig
from vosrt_train.masks.aggregate import aggregate
from vosrt_train.masks.networks import MaskEmbedding, context_of, correct, to_grid, upsample
from vosrt_train.masks.propagation import attend, attend_others, hop
from vosrt_train.model import Features
from vosrt_train.network import uses_bf16
from vosrt_train.pixels import normalise

_IGNORED = 255


@dataclass(frozen=True)
class ClipMasks:
    """Pseudo-masks of the first C clips of a batch.

    Attributes:
        labels: u8 [C, 3, H, W], pseudo-objects 1, 2, … and 0 for background on the clips' first frames.
        usable: bool [C], whether frame 0 has an object.
        hops: i64 [C], see `vosrt_train.masks.propagation.hop`; None segments the frames in their order.
    """

    labels: Tensor
    usable: Tensor
    hops: Tensor | None = None

    def to(self, device: torch.device) -> ClipMasks:
        """Copy to a device."""
        hops = None if self.hops is None else self.hops.to(device)
        return ClipMasks(self.labels.to(device), self.usable.to(device), hops)


class _Attention(TypedDict):
    """Settings of `attend`."""

    temperature: float
    top_k: int


@dataclass(frozen=True)
class _Memory:
    """Memory of N cells: keys f32 [C, K, N], values [C, M * V, N], soft labels f32 [C, 1 + M, N]."""

    keys: Tensor
    values: Tensor
    labels: Tensor

    def __add__(self, other: _Memory) -> _Memory:
        return _Memory(
            torch.cat([self.keys, other.keys], dim=2),
            torch.cat([self.values, other.values], dim=2),
            torch.cat([self.labels, other.labels], dim=2),
        )


class SegmentationNetwork(nn.Module):
    """Mask encoder and decoder on clips.

    Args:
        masks: shares its weights with this network.
    """

    def __init__(self, masks: MaskEmbedding, config: TrainConfig) -> None:
        super().__init__()
        self.masks = masks
        self._config = config.segmentation
        self._objects = config.foreground.objects
        self._attention: _Attention = {"temperature": config.loss.temperature, "top_k": config.segmentation.top_k}
        self._precision = config.compute.precision

    def forward(
        self, frames: Tensor, embedding: Tensor, features: Features, labels: Tensor, hops: Tensor | None = None
    ) -> Tensor:
        """Segment pseudo-objects, and compare with their pseudo-masks.

        Args:
            frames: u8 [C, T, 3, H, W], RGB; frame 0 is the reference.
            embedding: f32 [C, T, K, h, w] of unit length per cell.
            features: the encoder's maps of the C * T frames, clip by clip.
            labels: u8 [C, T, H, W].
            hops: as in `ClipMasks`.

        Returns:
            f32 [C], the cross-entropy of each clip: mean over pixels, later frames and rounds. Pixels of objects that
            frame 0 does not have are ignored.
        """
        count = frames.shape[1]
        rgb = normalise(frames.flatten(0, 1)).view(frames.shape)
        planes = F.one_hot(labels.long(), 1 + self._objects).permute(0, 1, 4, 2, 3).float()  # [C, T, 1 + M, H, W]
        present = planes[:, 0, 1:].flatten(2).any(dim=2)
        targets = torch.where(_known(labels, present), labels, _IGNORED).long()
        size, grid = planes.shape[-2:], embedding.shape[-2:]
        losses = []
        bf16 = uses_bf16(self._precision, frames.device)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=bf16):

            def remember(t: int, soft: Tensor, on_grid: Tensor) -> _Memory:
                return self._remember(rgb[:, t], embedding[:, t], _frame(features, t, count), soft, on_grid)

            marked = to_grid(planes[:, 0], *grid)
            known, affinities = {0: remember(0, planes[:, 0], marked)}, None
            if hops is not None:
                affinities = attend_others(embedding, **self._attention)
                coarse = self._coarse(embedding, affinities, marked, hops)
                # As in the runtime, labels stay on the grid; the mask encoder takes them upsampled.
                known |= {t: remember(t, upsample(soft, *size), soft) for t, soft in enumerate(coarse, start=1)}
            for t in range(1, count):
                memory = reduce(add, (of_frame for number, of_frame in known.items() if number != t))
                affinity = affinities[t - 1] if affinities else attend(embedding[:, t], memory.keys, **self._attention)
                predictions = self._segment(memory, affinity, rgb[:, t], _frame(features, t, count), present)
                losses += [_cross_entropy(logits, targets[:, t]) for logits in predictions]
                if hops is None and t + 1 < count:
                    shown = predictions[-1].softmax(dim=1).detach()
                    known[t] = remember(t, shown, upsample(shown, *grid))
        return torch.stack(losses).mean(dim=0)

    def _coarse(self, embedding: Tensor, affinities: list[Tensor], reference: Tensor, hops: Tensor) -> list[Tensor]:
        """Propagate the soft masks of frame 0 to each later frame: f32 [C, 1 + M, h, w]."""
        with torch.no_grad():
            frames = embedding.unbind(1)
            alone = [attend(of_frame, frames[0].flatten(2), **self._attention) for of_frame in frames[1:]]
            return hop(alone, affinities, reference, hops)

    def _remember(self, rgb: Tensor, key: Tensor, features: Features, soft: Tensor, on_grid: Tensor) -> _Memory:
        """Make a memory of one frame from soft masks f32 [C, 1 + M, H, W] and, on the grid, [C, 1 + M, h, w]."""
        value = self.masks.mask_encoder(rgb, soft[:, 1:], context_of(features))
        return _Memory(key.flatten(2), value.flatten(1, 2).flatten(2), on_grid.flatten(2))

    def _segment(
        self, memory: _Memory, affinity: Tensor, rgb: Tensor, features: Features, present: Tensor
    ) -> list[Tensor]:
        """Segment one frame: return the aggregated logits f32 [C, 1 + M, H, W] of every round of the loss."""
        clips, (h, w) = len(rgb), features.res3.shape[-2:]
        readout = (memory.values @ affinity.to(memory.values.dtype)).view(clips, self._objects, -1, h, w)
        coarse = (memory.labels @ affinity.detach()).view(clips, -1, h, w)
        soft = upsample(coarse, *rgb.shape[-2:])
        propagated = soft

        def decode(value: Tensor) -> Tensor:
            logits = self.masks.decoder(readout, value, features.res3, features.res2).float()
            logits = upsample(logits, *rgb.shape[-2:]).masked_fill(~present[:, :, None, None], -torch.inf)
            return correct(propagated, logits) if self.masks.config.residual else aggregate(logits)

        predictions = [decode(readout)] if self._config.round_zero else []
        for _ in range(self._config.rounds):
            shown = soft if self._config.coarse == "soft" else _harden(soft)
            predictions.append(decode(self.masks.mask_encoder(rgb, shown[:, 1:], context_of(features))))
            soft = predictions[-1].softmax(dim=1).detach()
        return predictions


def mean_of_usable(losses: Tensor, usable: Tensor) -> Tensor:
    """Average losses f32 [C] over the usable clips, bool [C]; 0 where no clip is usable."""
    return torch.where(usable, losses, 0).sum() / usable.sum().clamp_min(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compare f32 [C, 1 + M, H, W] with i64 [C, H, W]: f32 [C], mean over the pixels that are not ignored."""
    losses = F.cross_entropy(logits, targets, ignore_index=_IGNORED, reduction="none").flatten(1)
    return losses.sum(dim=1) / (targets != _IGNORED).flatten(1).sum(dim=1).clamp_min(1)


def _known(labels: Tensor, present: Tensor) -> Tensor:
    """Mark pixels of background and of objects on frame 0 (present, bool [C, M]): bool [C, T, H, W]."""
    known = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
    return known.gather(1, labels.flatten(1).long()).view(labels.shape)


def _harden(soft: Tensor) -> Tensor:
    """One-hot planes of the largest channel; f32 [C, 1 + M, H, W]."""
    return F.one_hot(soft.argmax(dim=1), soft.shape[1]).permute(0, 3, 1, 2).to(soft.dtype)


def _frame(features: Features, t: int, count: int) -> Features:
    """Take the maps of frame t of every clip."""
    frames = torch.arange(t, len(features.res3), count, device=features.res3.device)
    return features.take(frames)
