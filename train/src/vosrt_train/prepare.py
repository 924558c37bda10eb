"""What comes before the first step: the cache of frames, the starting weights, and the plan of ``--dry-run``."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from vosrt.bundle import is_packaged
from vosrt.errors import OptionError
from vosrt_train.backbones import DEFAULT_KIND, kind_of
from vosrt_train.branches import compute_losses
from vosrt_train.bundle_weights import load_trainable, part_of
from vosrt_train.checkpoint import Checkpoint, load_checkpoint
from vosrt_train.clustering.schedule import MaskSchedule
from vosrt_train.config import ComputeConfig, TrainConfig
from vosrt_train.data.cache import Cache, CachePlan, Progress, build_cache, open_cache
from vosrt_train.data.clips import ClipBatch, ClipSampler
from vosrt_train.data.views import View
from vosrt_train.distributed import World
from vosrt_train.mask_config import SEGMENTATION_FRAMES
from vosrt_train.model import Encoder, MaskEmbedding, build_encoder, build_mask_embedding
from vosrt_train.monitor import progress_bar, say
from vosrt_train.network import TrainedNetwork
from vosrt_train.optimiser import build_optimiser
from vosrt_train.segmentation import ClipMasks, SegmentationNetwork

_LISTED = 5
_MEASURED_STEPS = 2


@dataclass(frozen=True)
class StepCost:
    """What one step costs, measured on random frames.

    Attributes:
        seconds: per step of correspondence alone.
        memory_mb: the most GPU memory that PyTorch held; 0 on the CPU.
        joint_seconds: per step with the segmentation loss; None where it is not trained.
    """

    seconds: float
    memory_mb: float
    joint_seconds: float | None = None


def default_cache(data: Path) -> Path:
    """Where the frames of a directory of videos are kept unless the user says: in the user's cache directory."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = data.resolve()
    return root / "vosrt" / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def prepare_cache(plan: CachePlan, config: TrainConfig, world: World, console: Console) -> Cache:
    """Build the cache in the first process; open it in all.

    Args:
        plan: what there is to do.
        config: has the number of worker processes.
        world: the processes that train together.
        console: where to say how large it will be, and which videos are skipped.

    Raises:
        VosrtError: see `vosrt_train.data.cache.build_cache`.
    """
    if world.is_first:
        say(console, plan.describe())
        cache = _build(plan, config, console)
        for each in cache.skipped[:_LISTED]:
            say(console, f"skipped {each.name}: {each.reason}")
        if len(cache.skipped) > _LISTED:
            say(console, f"skipped {len(cache.skipped)} videos in all")
    world.wait()
    return cache if world.is_first else open_cache(plan.directory, min_frames=config.cache.min_frames)


def _build(plan: CachePlan, config: TrainConfig, console: Console) -> Cache:
    with progress_bar(console) as bar:
        task = bar.add_task("decoding", total=len(plan.missing), figures="")

        def on_progress(progress: Progress) -> None:
            bar.update(task, completed=progress.done, figures=f"{progress.written / 1e9:.1f} GB")

        return build_cache(plan, workers=max(config.clips.workers, usable_processors()), on_progress=on_progress)


def starting_encoder(config: TrainConfig, source: str | None) -> Encoder:
    """The encoder to start from.

    A network without layer4 may grow: layer4 and the key head are then new, and the residual branches of layer4 begin
    closed (a last gamma of zero, as in Goyal et al. 2017): what is known is passed on. The other way round, layer4
    is left out.

    Args:
        config: has shape and seed of a new one.
        source: a checkpoint, a bundle's directory or the name of a packaged one, where the weights come from one.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint cannot be read, or the bundle is for running only.
        OptionError: the encoder has another shape than the configuration.
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


def starting_licence(source: str) -> str:
    """Licence of the weights to start from, which those trained from them inherit.

    Args:
        source: as for :func:`starting_encoder`, with the same errors.
    """
    return _load_start(source).training.licence


def _load_start(source: str) -> Checkpoint:
    bundle = is_packaged(source) or Path(source).is_dir()
    return load_trainable(source) if bundle else load_checkpoint(Path(source))


def starting_masks(config: TrainConfig, checkpoint: Path | str | None) -> MaskEmbedding | None:
    """Mask encoder and decoder to start from; None where the configuration trains none.

    Args:
        config: has shape and seed of new ones.
        checkpoint: has their weights, where it is a file with any; otherwise they are new.

    Raises:
        CheckpointError: it cannot be read.
        OptionError: it has others than the configuration.
    """
    if not config.segmentation.weight:
        return None
    fresh = build_mask_embedding(config.masks, config.encoder, seed=config.seed)
    given = None if checkpoint is None or not Path(checkpoint).is_file() else load_checkpoint(Path(checkpoint))
    if given is None or given.masks is None:
        return fresh
    if (given.masks.config, given.encoder.config.layer4) != (config.masks, config.encoder.layer4):
        raise OptionError(
            f"{checkpoint} has {given.masks.config} with layer4={given.encoder.config.layer4}, the run {config.masks} "
            f"with layer4={config.encoder.layer4}; set the tables masks and encoder to what the checkpoint has"
        )
    return given.masks


def use_threads(config: ComputeConfig) -> None:
    """Have PyTorch use as many threads as the configuration says."""
    torch.set_num_threads(config.threads or usable_processors())


def usable_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_step(
    config: TrainConfig, encoder: Encoder, device: torch.device, masks: MaskEmbedding | None = None
) -> StepCost:
    """Time whole training steps of one process on random frames, after one to warm up; changes the networks."""
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
    segmentation = None if follower is None else (follower, _random_masks(config).to(device))
    seconds = []
    for _ in range(1 + _MEASURED_STEPS):
        started = time.perf_counter()
        losses = compute_losses(network, batch, config, World(device), segmentation=segmentation)
        optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.total.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def describe_plan(plan: CachePlan, config: TrainConfig, cost: StepCost, device: torch.device) -> str:
    """What a training would do, for people: data, sizes, length, time."""
    videos = len([entry for entry in plan.ready if not entry.reason]) + len(plan.missing)
    if plan.missing:
        steps_per_epoch, known = max(1, videos // config.clips.batch), "about "
    else:
        cache = open_cache(plan.directory, min_frames=config.cache.min_frames)
        steps_per_epoch, known = ClipSampler(config.clips, cache).steps, ""
    steps = config.schedule.total_steps(steps_per_epoch)
    frames = config.clips.batch * config.clips.frames
    precision = f"{config.compute.precision}, {torch.get_num_threads()} threads" if device.type == "cpu" else "bf16"
    lines = [
        plan.describe(),
        f"{videos} videos, {known}{steps_per_epoch} steps an epoch of {config.clips.batch} clips of "
        f"{config.clips.frames} frames at {config.clips.crop} × {config.clips.crop} pixels",
        f"{steps} steps, {known}{steps / steps_per_epoch:.0f} epochs",
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
