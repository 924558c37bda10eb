"""Pseudo-masks as clips see them: cropped, resized and mirrored like their frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt_train.clustering.store import PseudoMasks
from vosrt_train.data.clips import ClipParameters
from vosrt_train.segmentation import ClipMasks


def clip_masks(masks: PseudoMasks, clips: Sequence[ClipParameters], crop: int, *, frames: int) -> ClipMasks:
    """Look up the masks of clips.

    Args:
        masks: pseudo-masks of at least the frames that are asked for, but for videos that are degenerate.
        clips: how they came about.
        crop: side of a clip in pixels.
        frames: of each clip, from its frame 0 on.
    """
    labels = torch.zeros((len(clips), frames, crop, crop), dtype=torch.uint8)
    for number, clip in enumerate(clips):
        of_video = masks.all_masks.get(clip.video)
        if of_video is not None:
            maps = np.stack([of_video[frame] for frame in clip.frame_ids[:frames]])
            labels[number] = _crop(torch.from_numpy(maps), clip, crop)
    return ClipMasks(labels, (labels[:, 0] > 0).flatten(1).any(dim=1))


def _crop(maps: Tensor, clip: ClipParameters, crop: int) -> Tensor:
    """Masks u8 [T, h, w] of whole frames as u8 [T, crop, crop]: planes bilinear with corners aligned, then argmax."""
    planes = F.one_hot(maps.long()).permute(0, 3, 1, 2).float()
    down = (clip.top + torch.arange(crop)) / max(1, clip.height - 1)
    right = (clip.left + torch.arange(crop)) / max(1, clip.width - 1)
    right = right.flip(0) if clip.flip else right
    grid = torch.stack([2 * right[None, :].expand(crop, -1) - 1, 2 * down[:, None].expand(-1, crop) - 1], dim=-1)
    seen = F.grid_sample(planes, grid.expand(len(maps), -1, -1, -1), padding_mode="border", align_corners=True)
    return seen.argmax(dim=1).to(torch.uint8)
