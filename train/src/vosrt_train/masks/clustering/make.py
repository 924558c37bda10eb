"""Pseudo-masks of videos: encode, cluster, select, write."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from vosrt.types import U8Array
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache, CachedVideo
from vosrt_train.data.clips import gap_frames
from vosrt_train.masks.clustering.clusters import find_clusters
from vosrt_train.masks.clustering.follow import follow_clusters, runs
from vosrt_train.masks.clustering.foreground import select_foreground, smooth_clusters
from vosrt_train.masks.clustering.sharpen import clusters_at_pixels
from vosrt_train.masks.clustering.store import PseudoMaskEntry, PseudoMasks, plain_facts
from vosrt_train.masks.config import PseudoMaskConfig
from vosrt_train.model import Encoder
from vosrt_train.network import TrainedNetwork, memory_format
from vosrt_train.validate import runtime_model

_FRAMES_AT_ONCE = 8


@dataclass(frozen=True)
class Job:
    """Pseudo-masks to make.

    Attributes:
        frames: by video, the numbers of the frames that get masks; other videos are left out. None gives masks to every
            clustered frame of every video.
    """

    config: TrainConfig
    cache: Cache
    frames: Mapping[str, frozenset[int]] | None = None


def make_pseudo_masks(
    job: Job, encoder: Encoder, masks: PseudoMasks, *, on_video: Callable[[PseudoMaskEntry], object] | None = None
) -> None:
    """Make the missing pseudo-masks. May be killed at any moment and started again.

    Args:
        encoder: in evaluation mode, on the device that computes.
        masks: receives the pseudo-masks; videos that it has already are skipped.

    Raises:
        OutputError: the folder cannot be written.
    """
    network = TrainedNetwork(
        encoder.to(memory_format=memory_format(job.config.compute)).eval(),  # type: ignore[call-overload]
        job.config.compute,
    ).eval()
    for video in job.cache.videos:
        if video.name in masks.entries or (job.frames is not None and video.name not in job.frames):
            continue
        frames = None if job.frames is None else job.frames[video.name]
        entry, maps = _cluster_video(video, frames, network, job.config)
        masks.add(entry, maps)
        if on_video is not None:
            on_video(entry)
    masks.finish()


def clustered_frames(frames: int, every: int, most: int) -> list[int]:
    """Choose the frames to cluster: one of ``every``, but at least two and at most ``most``, evenly spaced."""
    count = min(max(2, -(-frames // every)), most, frames)
    return sorted({round(number * (frames - 1) / max(1, count - 1)) for number in range(count)})


@torch.inference_mode()
def _cluster_video(
    video: CachedVideo, chosen: frozenset[int] | None, network: TrainedNetwork, config: TrainConfig
) -> tuple[PseudoMaskEntry, U8Array]:
    """Cluster one video, and return the maps of the chosen frames."""
    pseudo = config.pseudo
    sampled = clustered_frames(video.frames, pseudo.every, pseudo.max_frames)
    embedded = torch.cat([block for _, block in _embed(video, sampled, network, pseudo.short_side)])
    height, width = embedded.shape[1:3]
    generator = torch.Generator().manual_seed(config.seed * 2**32 + zlib.crc32(video.name.encode()))
    clusters = find_clusters(embedded.flatten(0, 2), pseudo, generator)

    def assign(block: Tensor) -> U8Array:
        numbers = clusters.assign(block.flatten(0, 2)).view(len(block), height, width)
        return smooth_clusters(numbers.to(torch.uint8).cpu().numpy(), pseudo.clusters, pseudo.smooth)

    maps = dict(zip(sampled, assign(embedded), strict=True))
    selection = select_foreground(np.stack(list(maps.values())), pseudo.clusters, config.foreground)
    frames = sorted(sampled if chosen is None or selection.reason else chosen)
    for numbers, block in _embed(video, [each for each in frames if each not in maps], network, pseudo.short_side):
        maps |= dict(zip(numbers, assign(block), strict=True))
    shown = _at_pixels([maps[frame] for frame in frames], video, frames, network.encoder, pseudo)
    if pseudo.follow and not selection.reason:
        shown = _followed(shown, video, frames, network, config)
    entry = PseudoMaskEntry(
        name=video.name,
        frames=tuple(frames),
        height=shown.shape[1],
        width=shown.shape[2],
        objects=selection.objects,
        facts=plain_facts(selection.facts),
        flicker=selection.flicker,
        reason=selection.reason,
    )
    return entry, shown


def _at_pixels(
    maps: list[U8Array], video: CachedVideo, numbers: list[int], encoder: Encoder, config: PseudoMaskConfig
) -> U8Array:
    """Bring maps u8 [h, w] of cells to the pixels of the cache: u8 [n, H, W]."""
    frames = video.open()
    placed = [
        clusters_at_pixels(
            cells,
            frames[number],
            _seen(video.height, video.width, config.short_side),
            stride=encoder.config.stride,
            clusters=config.clusters,
            radius=config.sharpen,
        )
        for cells, number in zip(maps, numbers, strict=True)
    ]
    return np.stack(placed)


def _followed(
    maps: U8Array, video: CachedVideo, numbers: list[int], network: TrainedNetwork, config: TrainConfig
) -> U8Array:
    """Propagate maps u8 [n, H, W] within each run of frames that may be in one clip, from its first frame."""
    pixels = video.open()
    span = gap_frames(video.fps, config.clips.gap) * (config.clips.frames - 1)
    model = runtime_model(network.encoder, config.validation_feature, config.compute.precision)
    followed: dict[int, U8Array] = {}
    for run in runs(numbers, span):
        followed |= follow_clusters(model, pixels, maps[numbers.index(run[0])], run, config.pseudo.follow)
    return np.stack([followed[number] for number in numbers])


def _embed(
    video: CachedVideo, numbers: list[int], network: TrainedNetwork, short_side: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Embed frames of a video in batches: yield their numbers and f32 [n, h, w, K] of unit length per cell."""
    device = next(network.parameters()).device
    frames = video.open()
    for first in range(0, len(numbers), _FRAMES_AT_ONCE):
        few = numbers[first : first + _FRAMES_AT_ONCE]
        pixels = torch.from_numpy(np.stack(list(_resized((frames[number] for number in few), short_side))))
        yield few, network(pixels.to(device).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _resized(frames: Iterable[U8Array], short_side: int) -> Iterator[U8Array]:
    for frame in frames:
        height, width = _seen(frame.shape[0], frame.shape[1], short_side)
        if (height, width) == frame.shape[:2]:
            yield frame
            continue
        method = cv2.INTER_AREA if height < frame.shape[0] else cv2.INTER_LINEAR
        yield np.asarray(cv2.resize(frame, (width, height), interpolation=method), np.uint8)


def _seen(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return height and width of a frame as it is embedded."""
    scale = short_side / min(height, width) if short_side else 1
    return round(height * scale), round(width * scale)
