"""Training steps with and without the segmentation loss L_seg, in turns.

    python -m benchmarks.training.mask_step VIDEOS  # a folder of videos; decodes them once into --cache
    python -m benchmarks.training.mask_step --toy   # seconds, renders its own videos, nothing written

The preset is mask-embedding-cpu. Pseudo-masks are discs, as what is computed does not depend on them; to make real ones
comes on top (`speed/pseudo_wait_s` in a run's scalars says how long a training waited for them).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Watch, parser_of, write
from benchmarks.training.step import CPU, ThisStep, render_videos
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.config_file import load_config
from vosrt_train.data.cache import Cache, build_cache, plan_cache
from vosrt_train.data.clips import ClipBatch
from vosrt_train.distributed import World
from vosrt_train.masks.config import SEGMENTATION_FRAMES, MaskNetworkConfig
from vosrt_train.masks.joint import compute_joint_losses
from vosrt_train.masks.networks import build_mask_embedding
from vosrt_train.masks.segmentation import ClipMasks, SegmentationNetwork


class StepWithMasks(ThisStep):
    """A step as `vos-train` makes it once the segmentation loss has set in."""

    def __init__(self, config: TrainConfig, cache: Cache) -> None:
        super().__init__(config, cache)
        masks = build_mask_embedding(config.masks, config.encoder, seed=0)
        self.follower = SegmentationNetwork(masks, config).train()
        self.mask_optimiser = torch.optim.Adam(masks.parameters(), lr=1e-6)
        side = torch.arange(config.clips.crop)
        disc = (side[:, None] - side[-1] / 2) ** 2 + (side - side[-1] / 2) ** 2 < (config.clips.crop / 4) ** 2
        clips = config.segmentation.clips or config.clips.batch
        labels = disc.to(torch.uint8).expand(clips, SEGMENTATION_FRAMES, -1, -1).contiguous()
        self.masks = ClipMasks(labels, torch.ones(clips, dtype=torch.bool))

    def learn(self, batch: ClipBatch) -> None:
        """One step on a batch."""
        losses = compute_joint_losses(self.network, self.follower, batch, self.masks, self.config, World(CPU))
        for optimiser in (self.optimiser, self.mask_optimiser):
            optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        for optimiser in (self.optimiser, self.mask_optimiser):
            optimiser.step()


def measure(config: TrainConfig, cache: Cache, rounds: int) -> dict[str, Any]:
    """Median seconds of either step, and what that adds to a training."""
    runners = {"without": ThisStep(config, cache), "with": StepWithMasks(config, cache)}
    times: dict[str, list[float]] = {name: [] for name in runners}
    with Watch() as watch:
        for number in range(rounds + 1):
            for name, runner in runners.items():
                taken = [runner.step()[0] for _ in range(2)]
                times[name] += taken if number else []  # the first round warms up
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    ratio = seconds["with"] / seconds["without"]
    return {
        "clips": config.clips.batch,
        "clips_with_masks": config.segmentation.clips,
        "crop": config.clips.crop,
        "steps": 2 * rounds,
        "without_p50_s": round(seconds["without"], 3),
        "with_p50_s": round(seconds["with"], 3),
        "share_of_steps": 1 - config.segmentation.start,
        "step_ratio": round(ratio, 2),
        "training_longer_percent": round(100 * (1 - config.segmentation.start) * (ratio - 1), 1),
        "foreign_cores": watch.foreign_cores,
    }


def main() -> None:
    """Parse options, run, write results/mask_training.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("videos", type=Path, nargs="?")
    parser.add_argument("--cache", type=Path, help="where to keep decoded frames; a temporary folder otherwise")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    options.videos = None if options.toy else options.videos
    config = load_config("mask-embedding-cpu", [])
    if options.toy:
        config = replace(
            config,
            encoder=EncoderConfig(width=8, layer4=False),
            masks=MaskNetworkConfig(width=4, value_channels=16),
            clips=replace(config.clips, batch=2, crop=64, workers=0),
            cache=replace(config.cache, short_side=96),
            segmentation=replace(config.segmentation, clips=1),
        )
    elif options.videos is None:
        sys.exit("give a folder of videos, or --toy")
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or render_videos(Path(folder) / "videos")
        cache = build_cache(plan_cache(videos, options.cache or Path(folder) / "cache", config.cache))
        row = measure(config, cache, 1 if options.toy else options.rounds)
    print(row)
    write("mask_training", [row], toy=options.toy)


if __name__ == "__main__":
    main()
