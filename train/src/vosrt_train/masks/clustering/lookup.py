"""Pseudo-masks of clips, cropped, resized and mirrored like their frames."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vosrt_train.data.clips import ClipParameters
from vosrt_train.masks.clustering.foreground import ClusterMap
from vosrt_train.masks.clustering.store import PseudoMasks
from vosrt_train.masks.segmentation import ClipMasks


def clip_masks(
    masks: PseudoMasks, clips: Sequence[ClipParameters], crop: int, *, frames: int, unions: int = 1, hops: int = 0
) -> ClipMasks:
    """Look up the masks of clips.

    Args:
        masks: pseudo-masks of these frames; degenerate videos have none.
        crop: side of a clip in pixels.
        frames: frames of each clip, from its frame 0 on.
        unions: most clusters in the one pseudo-object of a clip; 1 takes the selected clusters, each as an object.
        hops: most hops of a clip, drawn uniformly from 0 to this number.
    """
    labels = torch.zeros((len(clips), frames, crop, crop), dtype=torch.uint8)
    for number, clip in enumerate(clips):
        if unions > 1 and (clusters := masks.all_maps.get(clip.video)) is not None:
            random = _random(clip)
            objects = masks.entries[clip.video].objects
            united = unite_clusters(clusters[clip.frame_ids[0]], objects, unions, random)
            maps = np.stack([np.isin(clusters[frame], united) for frame in clip.frame_ids[:frames]]).astype(np.uint8)
            labels[number] = _crop(torch.from_numpy(maps), clip, crop)
        elif unions == 1 and (of_video := masks.all_masks.get(clip.video)) is not None:
            maps = np.stack([of_video[frame] for frame in clip.frame_ids[:frames]])
            labels[number] = _crop(torch.from_numpy(maps), clip, crop)
    drawn = torch.tensor([_random(clip, "hops").integers(hops + 1) for clip in clips])
    return ClipMasks(labels, (labels[:, 0] > 0).flatten(1).any(dim=1), drawn if hops else None)


def unite_clusters(
    clusters: ClusterMap, objects: Sequence[int], most: int, random: np.random.Generator
) -> tuple[int, ...]:
    """Draw clusters that form one object of several textures: one that looks like an object, and some that touch it.

    A cluster has one texture; few objects do. A network that learns single clusters learns that a mask ends where the
    texture does. In a union, only the coarse mask shows which borders of textures lie inside the object.

    Args:
        clusters: u8 [h, w] of the clip's frame 0.
        objects: clusters of which one visible one is the first.
        most: largest number of clusters, drawn uniformly from 1.

    Returns:
        Numbers of clusters, the first one first; none where no object is visible. Each touches an earlier one, and is
        the likelier the longer their common border is.
    """
    seen = [each for each in objects if (clusters == each).any()]
    if not seen:
        return ()
    united = [int(random.choice(seen))]
    for _ in range(random.integers(most)):
        touching = _touching(clusters, united)
        if not touching.any():
            break
        united.append(int(random.choice(len(touching), p=touching / touching.sum())))
    return tuple(united)


def _random(clip: ClipParameters, purpose: str = "") -> np.random.Generator:
    """Make a generator that depends on the clip and the purpose alone."""
    return np.random.default_rng(zlib.crc32(repr(clip).encode() + purpose.encode()))


def _touching(clusters: ClusterMap, united: Sequence[int]) -> NDArray[np.int64]:
    """Count the edges of cells that each cluster shares with a union that it is not part of: i64 [256]."""
    inside = np.isin(clusters, united)
    counts = np.zeros(256, dtype=np.int64)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        for one, other in ((first, second), (second, first)):
            counts += np.bincount(clusters[other][inside[one] & ~inside[other]], minlength=256)
    return counts


def _crop(maps: Tensor, clip: ClipParameters, crop: int) -> Tensor:
    """Crop masks u8 [T, h, w] of whole frames to u8 [T, crop, crop]: resize one-hot planes, then take the argmax."""
    planes = F.one_hot(maps.long()).permute(0, 3, 1, 2).float()
    # Centres of pixels, as fractions of the frame from -1 to 1.
    down = 2 * (clip.top + torch.arange(crop) + 0.5) / clip.height - 1
    right = 2 * (clip.left + torch.arange(crop) + 0.5) / clip.width - 1
    right = right.flip(0) if clip.flip else right
    grid = torch.stack([right[None, :].expand(crop, -1), down[:, None].expand(-1, crop)], dim=-1)
    seen = F.grid_sample(planes, grid.expand(len(maps), -1, -1, -1), padding_mode="border", align_corners=False)
    return seen.argmax(dim=1).to(torch.uint8)
