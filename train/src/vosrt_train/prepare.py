"""Preparation of a training: the cache of frames, the weights to start from, and the plan of ``--dry-run``."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vosrt.cache import cache_root
from vosrt.console import progress_bar
from vosrt.errors import OptionError
from vosrt.text import counted
from vosrt_train.backbones import DEFAULT_KIND, kind_of
from vosrt_train.branches import compute_losses
from vosrt_train.bundle_weights import is_bundle, load_trainable, part_of
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Training, load_checkpoint
from vosrt_train.config import ComputeConfig, EncoderConfig, TrainConfig
from vosrt_train.data.cache import BuildProgress, Cache, CachePlan, build_cache, open_cache
from vosrt_train.data.clips import ClipBatch, ClipSampler
from vosrt_train.data.config import ClipConfig
from vosrt_train.data.views import View
from vosrt_train.distil import Teacher
from vosrt_train.distributed import World
from vosrt_train.masks.clustering.schedule import MaskSchedule
from vosrt_train.masks.config import SEGMENTATION_FRAMES
from vosrt_train.masks.joint import compute_joint_losses
from vosrt_train.masks.networks import MaskEmbedding, build_mask_embedding
from vosrt_train.masks.segmentation import ClipMasks, SegmentationNetwork
from vosrt_train.model import Encoder, build_encoder
from vosrt_train.monitor import note_at_times, quiet_note
from vosrt_train.narrow import narrow
from vosrt_train.network import TrainedNetwork, uses_bf16
from vosrt_train.optimiser import build_optimiser
from vosrt_train.run_folder import weights_of

_LISTED = 5
_MEASURED_STEPS = 2
_NARROWED_ON = 64  # frames


@dataclass(frozen=True)
class StepCost:
    """Cost of one step, measured on random frames.

    Attributes:
        seconds: per step of correspondence alone.
        memory_mb: the most GPU memory that PyTorch held; 0 on the CPU.
        joint_seconds: per step with the segmentation loss; None where it is not trained.
    """

    seconds: float
    memory_mb: float
    joint_seconds: float | None = None


def default_cache(data: Path) -> Path:
    """Return the default folder for the frames of a directory of videos, in the cache directory of the user."""
    place = data.resolve()
    return cache_root() / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def prepare_cache(plan: CachePlan, config: TrainConfig, world: World, *, quiet: bool = False) -> Cache:
    """Build the cache in the first process; open it in all.

    Args:
        quiet: do not print the size of the cache and the videos that are skipped.

    Raises:
        VosrtError: see `vosrt_train.data.cache.build_cache`.
    """
    if world.is_first:
        say = quiet_note(quiet)
        say(plan.describe())
        cache = _build(plan, config, quiet)
        for each in cache.skipped[:_LISTED]:
            say(f"skipped {each.name}: {each.reason}")
        if len(cache.skipped) > _LISTED:
            say(f"skipped {len(cache.skipped)} videos in all")
    world.wait()
    return cache if world.is_first else open_cache(plan.directory, min_frames=config.cache.min_frames)


def _build(plan: CachePlan, config: TrainConfig, quiet: bool) -> Cache:
    total, say = len(plan.missing), note_at_times(quiet)
    with progress_bar(visible=not quiet) as bar:
        task = bar.add_task("decoding", total=total, figures="")

        def on_progress(progress: BuildProgress) -> None:
            size = f"{progress.written / 1e9:.1f} GB"
            bar.update(task, completed=progress.done, figures=size)
            say(f"decoding: {progress.done} of {total} videos, {size}")

        return build_cache(plan, workers=max(config.clips.workers, usable_processors()), on_progress=on_progress)


def starting_encoder(config: TrainConfig, source: str | None) -> Encoder:
    """Build the encoder to start from.

    A network without layer4 may grow: layer4 and the key head are then new, and the last gamma of each residual branch
    of layer4 is 0 (Goyal et al. 2017), so that layer4 passes on its input at first. A network with layer4 may lose it.

    Args:
        config: shape of the encoder, and seed of new weights.
        source: a checkpoint, the folder of a run or of a bundle, or the name of a packaged bundle; None draws weights.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint cannot be read, or the bundle has no trainable weights.
        OptionError: the encoder of the source has another shape than the configuration.
    """
    fresh = build_encoder(config.encoder, seed=config.seed)
    if source is None:
        return fresh
    given = _load_start(source).encoder
    if not isinstance(given, Encoder):
        raise OptionError(f"{source} has a {kind_of(given.config)} encoder; training takes {DEFAULT_KIND} only")
    if replace(given.config, layer4=config.encoder.layer4) != config.encoder:
        raise OptionError(
            f"{source} has {given.config}, the run {config.encoder}; "
            "set encoder.width and encoder.key_channels to what it has"
        )
    weights = part_of(given, layer4=config.encoder.layer4).state_dict()
    if config.encoder.layer4 and not given.config.layer4:
        weights |= {f"backbone.layer4.{block}.bn2.weight": torch.zeros(8 * config.encoder.width) for block in range(2)}
    fresh.load_state_dict(fresh.state_dict() | weights)
    return fresh


def with_encoder_of(config: TrainConfig, source: str) -> TrainConfig:
    """Take the shape of the encoder from the source, with the errors of `starting_encoder`."""
    given = _load_start(source).encoder.config
    return replace(config, encoder=given) if isinstance(given, EncoderConfig) else config


def starting_training(source: str, config: TrainConfig) -> Training:
    """Return the history of the weights to start from, under the licence of the run."""
    return replace(_load_start(source).training, licence=config.licence)


def narrow_teacher(config: TrainConfig, encoder: Encoder, cache: Cache) -> Training | None:
    """Give a student the weights of its teacher, with fewer channels (`vosrt_train.narrow`).

    Args:
        config: settings of the run, with a teacher.
        encoder: the student; changed in place.
        cache: the videos, of which some frames are used.

    Returns:
        The history of the weights. None for a teacher that is narrower than the student, of another kind, or for
        running only: the student keeps the weights that it has.
    """
    try:
        given = _load_start(config.teacher)
    except CheckpointError:
        return None
    if not isinstance(given.encoder, Encoder) or given.encoder.config.width < encoder.config.width:
        return None
    sampler = ClipSampler(config.clips, cache)
    frames = [sampler.clip(0, index).frames[0] for index in sampler.order(0)[:_NARROWED_ON]]
    narrow(given.encoder, encoder, torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))
    summary = f"{config.teacher} with a width of {encoder.config.width}, fitted by least squares"
    return replace(given.training, summary=summary, licence=config.licence)


def count_clips(config: ClipConfig, cache: Cache) -> int:
    """Count the different clips of an epoch."""
    return len(ClipSampler(replace(config, batch=1), cache))


def starting_licence(source: str) -> str:
    """Return the licence of the weights to start from, which the trained weights inherit.

    Args:
        source: as for `starting_encoder`, with the same errors.
    """
    return _load_start(source).training.licence


def _load_start(source: str) -> Checkpoint:
    if is_bundle(source):
        return load_trainable(source)
    return load_checkpoint(weights_of(Path(source)))


def starting_masks(config: TrainConfig, checkpoint: Path | str | None) -> MaskEmbedding | None:
    """Build the mask encoder and decoder to start from; None where the configuration trains none.

    Args:
        config: shape of the networks, and seed of new weights.
        checkpoint: source of the weights; where it has no mask networks, or is None, the weights are new.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        OptionError: the networks of the checkpoint have another shape than the configuration.
    """
    if not config.segmentation.weight:
        return None
    fresh = build_mask_embedding(config.masks, config.encoder, seed=config.seed)
    given = None if checkpoint is None else _load_start(str(checkpoint))
    if given is None or given.masks is None:
        return fresh
    if (given.masks.config, given.encoder.config.layer4) != (config.masks, config.encoder.layer4):
        raise OptionError(
            f"{checkpoint} has {given.masks.config} with layer4={given.encoder.config.layer4}, the run {config.masks} "
            f"with layer4={config.encoder.layer4}; set the tables masks and encoder to what the checkpoint has"
        )
    return given.masks


def use_threads(config: ComputeConfig) -> None:
    """Set the number of threads of PyTorch; 0 in the configuration is one per processor."""
    torch.set_num_threads(config.threads or usable_processors())


def usable_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_step(
    config: TrainConfig, encoder: Encoder, device: torch.device, masks: MaskEmbedding | None = None
) -> StepCost:
    """Time training steps of one process on random frames, after one to warm up. Trains the networks in place."""
    network = TrainedNetwork(encoder.to(device), config.compute).train()
    if config.compute.compile:
        network.compile()
    seconds = _time_steps(config, network, device, None)
    joint = None
    if masks is not None:
        joint = _time_steps(config, network, device, SegmentationNetwork(masks.to(device), config).train())
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0
    return StepCost(seconds, memory, joint)


def _time_steps(
    config: TrainConfig, network: TrainedNetwork, device: torch.device, follower: SegmentationNetwork | None
) -> float:
    trained = nn.ModuleList([network] if follower is None else [network, follower])
    optimiser = build_optimiser(trained, config.optimiser)
    batch = _random_batch(config).to(device)
    masks = _random_masks(config).to(device)
    teacher = Teacher(config.teacher, threads=config.compute.threads) if config.teacher else None
    seconds = []
    for _ in range(1 + _MEASURED_STEPS):
        started = time.perf_counter()
        if follower is None:
            losses = compute_losses(network, batch, config, World(device), teacher)
        else:
            losses = compute_joint_losses(network, follower, batch, masks, config, World(device))
        optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.total.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def describe_plan(plan: CachePlan, config: TrainConfig, cost: StepCost, device: torch.device) -> str:
    """Describe a training: data, sizes, length, time."""
    videos = plan.videos
    if plan.missing:
        steps_per_epoch, known = max(1, videos // config.clips.batch), "about "
    else:
        cache = open_cache(plan.directory, min_frames=config.cache.min_frames)
        steps_per_epoch, known = ClipSampler(config.clips, cache).steps, ""
    steps = config.schedule.total_steps(steps_per_epoch)
    frames = config.clips.batch * config.clips.frames
    precision = "bf16" if uses_bf16(config.compute.precision, device) else "fp32"
    precision += f", {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else ""
    lines = [
        plan.describe(),
        f"{counted(videos, 'video')}, {known}{counted(steps_per_epoch, 'step')} an epoch of "
        f"{counted(config.clips.batch, 'clip')} of {config.clips.frames} frames "
        f"at {config.clips.crop} × {config.clips.crop} pixels",
        f"{counted(steps, 'step')}, {known}{steps / steps_per_epoch:.0f} epochs",
        f"{cost.seconds:.3f} s a step on {device} ({precision}): {frames / cost.seconds:.0f} frames/s",
    ]
    if cost.memory_mb:
        lines.append(f"{cost.memory_mb:.0f} MB of GPU memory")
    total = steps * cost.seconds
    if cost.joint_seconds is not None:
        joint = steps - MaskSchedule(config.segmentation, steps).first_use(0)
        total += joint * (cost.joint_seconds - cost.seconds)
        lines.append(
            f"{cost.joint_seconds:.3f} s a step with the segmentation loss, in the last {joint} steps; pseudo-masks "
            f"are made {1 + config.segmentation.updates} times, in the background"
        )
    duration = datetime.timedelta(seconds=round(total))
    lines.append(f"expected duration {duration}, plus validation and, once, decoding")
    return "\n".join(lines)


def _random_batch(config: TrainConfig) -> ClipBatch:
    count, generator = config.clips.batch, torch.Generator().manual_seed(0)
    shape = (count, config.clips.frames, config.clips.crop, config.clips.crop, 3)
    return ClipBatch(
        frames=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 1, 4, 2, 3),
        view=View(torch.zeros(count, dtype=torch.bool), torch.full((count,), 0.75), torch.zeros(count, 2)),
        anchor_shift=torch.zeros(count, 2),
        point_shift=torch.zeros(count, 2),
        clips=(),
        epoch=0,
        step=0,
    )


def _random_masks(config: TrainConfig) -> ClipMasks:
    clips = min(config.segmentation.clips or config.clips.batch, config.clips.batch)
    shape = (clips, SEGMENTATION_FRAMES, config.clips.crop, config.clips.crop)
    labels = torch.randint(0, 2, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ClipMasks(labels, torch.ones(clips, dtype=torch.bool))
