"""The segmentation loss L_seg: follow pseudo-objects through a clip, as at inference (Li et al. 2023, section 3.2).

Frame 1 is segmented from frame 0, frame 2 from frames 0 and 1, where frame 1 comes with the mask that was just
predicted for it. The coarse masks that the mask encoder is shown are the read-outs of the memory, soft, as the runtime
shows them; no gradient flows through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vosrt_train.config import TrainConfig
from vosrt_train.model import Features, MaskEmbedding, aggregate
from vosrt_train.model.mask_embedding import context_of, correct, upsample
from vosrt_train.pixels import normalise

_IGNORED = 255


@dataclass(frozen=True)
class ClipMasks:
    """Pseudo-masks of the first C clips of a batch.

    Attributes:
        labels: u8 [C, 3, H, W], pseudo-objects 1, 2, … and 0 for background on the clips' first frames.
        usable: bool [C], whether there is an object on frame 0 to follow.
    """

    labels: Tensor
    usable: Tensor

    def to(self, device: torch.device) -> ClipMasks:
        """Copy to a device."""
        return ClipMasks(self.labels.to(device), self.usable.to(device))


@dataclass(frozen=True)
class _Memory:
    """What later frames read: keys f32 [C, K, N], values [C, M * V, N], soft labels f32 [C, 1 + M, N] of N cells."""

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
    """Mask encoder and decoder at work on clips.

    Args:
        masks: shares its weights with this network.
        config: of the loss and the arithmetic.
    """

    def __init__(self, masks: MaskEmbedding, config: TrainConfig) -> None:
        super().__init__()
        self.masks = masks
        self._config = config.segmentation
        self._objects = config.foreground.objects
        self._temperature = config.loss.temperature
        self._bf16 = config.compute.precision == "bf16"

    def forward(self, frames: Tensor, embedding: Tensor, features: Features, labels: Tensor) -> Tensor:
        """Follow pseudo-objects.

        Args:
            frames: u8 [C, T, 3, H, W], RGB; frame 0 is the reference.
            embedding: f32 [C, T, K, h, w] of unit length per cell.
            features: the encoder's maps of the C * T frames, clip by clip.
            labels: u8 [C, T, H, W].

        Returns:
            f32 [C], the cross-entropy of each clip: mean over pixels, later frames and rounds. Objects that are not on
            frame 0 cannot be followed; their pixels do not count.
        """
        count = frames.shape[1]
        rgb = normalise(frames.flatten(0, 1)).view(frames.shape)
        planes = F.one_hot(labels.long(), 1 + self._objects).permute(0, 1, 4, 2, 3).float()  # [C, T, 1 + M, H, W]
        present = planes[:, 0, 1:].flatten(2).any(dim=2)
        targets = torch.where(_known(labels, present), labels, _IGNORED).long()
        losses = []
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self._bf16):
            memory = self._remember(rgb[:, 0], embedding[:, 0], _frame(features, 0, count), planes[:, 0])
            for t in range(1, count):
                of_frame = _frame(features, t, count)
                predictions = self._segment(memory, rgb[:, t], embedding[:, t], of_frame, present)
                losses += [_cross_entropy(logits, targets[:, t]) for logits in predictions]
                if t + 1 < count:
                    soft = predictions[-1].softmax(dim=1).detach()
                    memory = memory + self._remember(rgb[:, t], embedding[:, t], of_frame, soft)
        return torch.stack(losses).mean(dim=0)

    def _remember(self, rgb: Tensor, key: Tensor, features: Features, soft: Tensor) -> _Memory:
        """Put a frame with soft masks f32 [C, 1 + M, H, W] into a memory of its own."""
        value = self.masks.mask_encoder(rgb, soft[:, 1:], context_of(features))
        on_grid = upsample(soft, *key.shape[-2:])
        return _Memory(key.flatten(2), value.flatten(1, 2).flatten(2), on_grid.flatten(2))

    def _segment(self, memory: _Memory, rgb: Tensor, key: Tensor, features: Features, present: Tensor) -> list[Tensor]:
        """Segment one frame: the aggregated logits f32 [C, 1 + M, H, W] of every round that counts."""
        clips, (h, w) = len(key), key.shape[-2:]
        affinity = attend(key, memory.keys, temperature=self._temperature, top_k=self._config.top_k)
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


def attend(query: Tensor, keys: Tensor, *, temperature: float, top_k: int) -> Tensor:
    """Weights with which each cell reads from a memory: a softmax over its most similar cells.

    Computed in fp32, whatever the precision around it.

    Args:
        query: f32 [C, K, h, w] of unit length per cell.
        keys: f32 [C, K, N] of unit length per cell.
        temperature: τ.
        top_k: cells that are read; 0 is all.

    Returns:
        f32 [C, N, h * w], each column of sum 1. Gradient flows to both.
    """
    with torch.autocast(query.device.type, enabled=False):
        similarity = keys.float().transpose(1, 2) @ query.float().flatten(2) / temperature
        if 0 < top_k < keys.shape[2]:
            best, cells = similarity.topk(top_k, dim=1)
            return torch.zeros_like(similarity).scatter(1, cells, best.softmax(dim=1))
        return similarity.softmax(dim=1)


def mean_of_usable(losses: Tensor, usable: Tensor) -> Tensor:
    """Mean of f32 [C] over those that count, bool [C]; 0 where none does."""
    return torch.where(usable, losses, 0).sum() / usable.sum().clamp_min(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """f32 [C, 1 + M, H, W] against i64 [C, H, W]: f32 [C], mean over the pixels that count."""
    losses = F.cross_entropy(logits, targets, ignore_index=_IGNORED, reduction="none").flatten(1)
    return losses.sum(dim=1) / (targets != _IGNORED).flatten(1).sum(dim=1).clamp_min(1)


def _known(labels: Tensor, present: Tensor) -> Tensor:
    """Pixels of background, or of objects that are on frame 0: bool [C, T, H, W]; present is bool [C, M]."""
    known = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
    return known.gather(1, labels.flatten(1).long()).view(labels.shape)


def _harden(soft: Tensor) -> Tensor:
    """One-hot planes of the largest channel; f32 [C, 1 + M, H, W]."""
    return F.one_hot(soft.argmax(dim=1), soft.shape[1]).permute(0, 3, 1, 2).to(soft.dtype)


def _frame(features: Features, t: int, count: int) -> Features:
    """The maps of frame t of every clip."""
    frames = torch.arange(t, len(features.res3), count, device=features.res3.device)
    return features.take(frames)
