"""From videos to pseudo-masks: encode, cluster, select, write."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from vosrt.types import U8Array
from vosrt_train.clustering.clusters import find_clusters
from vosrt_train.clustering.follow import follow_clusters, runs
from vosrt_train.clustering.foreground import select_foreground, smooth_clusters
from vosrt_train.clustering.sharpen import clusters_at_pixels
from vosrt_train.clustering.store import PseudoMaskEntry, PseudoMasks, plain_facts
from vosrt_train.config import TrainConfig
from vosrt_train.data.cache import Cache, CachedVideo
from vosrt_train.data.clips import gap_frames
from vosrt_train.mask_config import PseudoMaskConfig
from vosrt_train.model import Encoder
from vosrt_train.network import TrainedNetwork, memory_format
from vosrt_train.validate import runtime_model

_FRAMES_AT_ONCE = 8


@dataclass(frozen=True)
class Job:
    """Which pseudo-masks to make.

    Attributes:
        config: of clustering, selection and arithmetic; the seed.
        cache: the videos.
        wanted: per video, the frames that are to have masks; other videos are left out. None is every frame that is
            clustered, of every video.
    """

    config: TrainConfig
    cache: Cache
    wanted: Mapping[str, frozenset[int]] | None = None


def make_pseudo_masks(
    job: Job, encoder: Encoder, masks: PseudoMasks, *, on_video: Callable[[PseudoMaskEntry], object] | None = None
) -> None:
    """Make the pseudo-masks that are missing. May be killed at any moment and started again.

    Args:
        job: what to make.
        encoder: in evaluation mode, on the device that is to do the work.
        masks: where they go; videos that are there already are left as they are.
        on_video: called after each video.

    Raises:
        OutputError: the place cannot be written.
    """
    network = TrainedNetwork(
        encoder.to(memory_format=memory_format(job.config.compute)).eval(),  # type: ignore[call-overload]
        job.config.compute,
    ).eval()
    for video in job.cache.videos:
        if video.name in masks.entries or (job.wanted is not None and video.name not in job.wanted):
            continue
        wanted = None if job.wanted is None else job.wanted[video.name]
        entry, maps = _cluster_video(video, wanted, network, job.config)
        masks.add(entry, maps)
        if on_video is not None:
            on_video(entry)
    masks.finish()


def clustered_frames(frames: int, every: int, most: int) -> list[int]:
    """Numbers of the frames that are clustered: every so many, but at least two and at most ``most``, evenly spaced."""
    count = min(max(2, -(-frames // every)), most, frames)
    return sorted({round(number * (frames - 1) / max(1, count - 1)) for number in range(count)})


@torch.inference_mode()
def _cluster_video(
    video: CachedVideo, wanted: frozenset[int] | None, network: TrainedNetwork, config: TrainConfig
) -> tuple[PseudoMaskEntry, U8Array]:
    """Cluster one video; its maps are of the wanted frames."""
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
    frames = sorted(sampled if wanted is None or selection.reason else wanted)
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
    """Maps u8 [n, h, w] of cells as they are stored: of pixels of the cache."""
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
    """Maps u8 [n, H, W] of frames that may be in one clip, propagated from the first of them."""
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
    """Frames of a video, a few at a time: their numbers and f32 [n, h, w, K] of unit length per cell."""
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
    """Height and width of a frame as it is embedded."""
    scale = short_side / min(height, width) if short_side else 1
    return round(height * scale), round(width * scale)
