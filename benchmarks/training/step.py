"""A training step against the same step written plainly: frames per second, and the time spent waiting for clips.

    python -m benchmarks.training.step VIDEOS  # a folder of videos; decodes them once into --cache
    python -m benchmarks.training.step --toy   # seconds, renders its own videos, nothing written

"Plain" is what one writes first: fp32, PyTorch's own layout, clips decoded from the video files by as many workers,
one pass through the network per branch, losses clip by clip. Both learn from clips of the same shape with the same
losses (a check at the start compares them on one batch). They take turns, round by round, in one process.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import Watch, parser_of, write
from vosrt.video.finding import VIDEO_SUFFIXES
from vosrt_train.branches import compute_losses
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.config_file import load_config
from vosrt_train.data.cache import Cache, build_cache, plan_cache
from vosrt_train.data.clips import ClipBatch, make_loader
from vosrt_train.distributed import World
from vosrt_train.model import Encoder, build_encoder
from vosrt_train.network import TrainedNetwork, memory_format
from vosrt_train.optimiser import build_optimiser
from vosrt_train.pixels import normalise

CPU = torch.device("cpu")
TAU = 0.05


class PlainClips(Dataset[Tensor]):
    """Read clips from the files: open, decode up to the last frame of the clip, resize, crop."""

    def __init__(self, files: list[Path], config: TrainConfig) -> None:
        self.files, self.config = files, config

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        clips = self.config.clips
        with av.open(str(self.files[index])) as container:
            count = container.streams.video[0].frames or 100
            gap = max(1, min(clips.gap, count // clips.frames))
            start = random.randint(0, max(0, count - gap * clips.frames))
            numbers = {start + gap * i for i in range(clips.frames)}
            decoded = itertools.islice(container.decode(video=0), start + gap * clips.frames)
            frames = [frame.to_ndarray(format="rgb24") for i, frame in enumerate(decoded) if i in numbers]
        frames += frames[-1:] * (clips.frames - len(frames))
        random.shuffle(frames)
        short = int(clips.crop * random.uniform(1, clips.resize))
        height, width = frames[0].shape[:2]
        size = (width * short // min(height, width), height * short // min(height, width))
        top, left = random.randint(0, size[1] - clips.crop), random.randint(0, size[0] - clips.crop)
        small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        return torch.from_numpy(small[:, top : top + clips.crop, left : left + clips.crop].copy()).permute(0, 3, 1, 2)


def plain_losses(encoder: Encoder, frames: Tensor, batch: ClipBatch, config: TrainConfig) -> Tensor:
    """Both losses, clip by clip, with a pass per branch; views and shifts are those of ``batch``."""
    clips, count = frames.shape[:2]
    side = frames.shape[-1]
    down, right = batch.view.places(side, side)
    grids = [
        torch.stack(torch.meshgrid(2 * down[b] - 1, 2 * right[b] - 1, indexing="ij")[::-1], -1) for b in range(clips)
    ]
    pixels = normalise(frames.flatten(0, 1)).unflatten(0, (clips, count))
    seen = torch.cat(
        [F.grid_sample(pixels[b], g.expand(count, -1, -1, -1), align_corners=False) for b, g in enumerate(grids)]
    )
    main = plain_embedding(encoder, pixels.flatten(0, 1)).unflatten(0, (clips, count))
    regular = plain_embedding(encoder, seen).unflatten(0, (clips, count))
    h = main.shape[-1]
    anchors, points, partners = [], [], []
    for b in range(clips):
        a = ((torch.arange(config.loss.anchors) + batch.anchor_shift[b][:, None]) * h / config.loss.anchors).long()
        p = ((torch.arange(config.loss.points) + batch.point_shift[b][:, None]) * h / config.loss.points).long()
        anchors.append(main[b, 0][:, a[0]][:, :, a[1]].flatten(1).T)
        warped = warp(main[b, :1], batch, b, h)[0]
        points.append(warped[:, p[0]][:, :, p[1]].flatten(1).T)
        partners.append(regular[b, 0][:, p[0]][:, :, p[1]].flatten(1).T)
    every = torch.cat(anchors)
    space_time = torch.zeros(())
    for b in range(clips):
        with torch.no_grad():
            labels = (regular[b, 1:].flatten(2).transpose(1, 2) @ anchors[b].T).argmax(-1) + b * len(anchors[b])
        logits = warp(main[b, 1:], batch, b, h).flatten(2).transpose(1, 2) @ every.T / TAU
        space_time = space_time + F.cross_entropy(logits.flatten(0, 1), labels.flatten()) / clips
    logits = torch.cat(points) @ torch.cat(partners).T / TAU
    return space_time + config.loss.cross_view * F.cross_entropy(logits, torch.arange(len(logits)))


def warp(maps: Tensor, batch: ClipBatch, clip: int, side: int) -> Tensor:
    """Maps [T, K, h, w] of one clip seen through its view."""
    down, right = (place[clip] for place in batch.view.places(side, side))
    rows, columns = ((place * side).long().clamp(0, side - 1) for place in (down, right))
    return maps[:, :, rows][:, :, :, columns]


def plain_embedding(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Unit vectors [n, K, h, w]."""
    features = encoder(pixels)
    return F.normalize(features.res3 if features.key is None else features.key, dim=1)


class ThisStep:
    """A step as `vos-train` makes it."""

    def __init__(self, config: TrainConfig, cache: Cache) -> None:
        self.config = config
        encoder = build_encoder(config.encoder, seed=0).to(memory_format=memory_format(config.compute))  # type: ignore[call-overload]
        self.network: nn.Module = TrainedNetwork(encoder, config.compute).train()
        self.optimiser = build_optimiser(self.network, config.optimiser)
        self.batches = iter(make_loader(config.clips, cache, epochs=10_000))

    def step(self) -> tuple[float, float]:
        """Seconds of the step, and of these, waiting for the clips."""
        began = time.perf_counter()
        batch = next(self.batches)
        waited = time.perf_counter() - began
        self.learn(batch)
        return time.perf_counter() - began, waited

    def learn(self, batch: ClipBatch) -> None:
        """One step on a batch."""
        losses = compute_losses(self.network, batch, self.config, World(CPU))
        self.optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()


class PlainStep:
    """A step as one writes it first."""

    def __init__(self, config: TrainConfig, files: list[Path], views: ClipBatch) -> None:
        self.config, self.views = config, views
        self.encoder = build_encoder(config.encoder, seed=0).train()
        self.optimiser = torch.optim.Adam(self.encoder.parameters(), lr=config.optimiser.learning_rate)
        loader = DataLoader(
            PlainClips(files, config),
            batch_size=config.clips.batch,
            shuffle=True,
            drop_last=True,
            num_workers=config.clips.workers,
        )
        self.batches = self._forever(loader)

    @staticmethod
    def _forever(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
        while True:
            yield from loader

    def step(self) -> tuple[float, float]:
        """Seconds of the step, and of these, waiting for the clips."""
        began = time.perf_counter()
        frames = next(self.batches)
        waited = time.perf_counter() - began
        self.optimiser.zero_grad()
        plain_losses(self.encoder, frames, self.views, self.config).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return time.perf_counter() - began, waited


def check_equal(config: TrainConfig, batch: ClipBatch) -> None:
    """Both compute the same losses in fp32; batch statistics differ by how the passes are cut, so without them."""
    config = replace(config, compute=replace(config.compute, precision="fp32"))
    encoder = build_encoder(config.encoder, seed=0).eval()
    with torch.no_grad():
        ours = compute_losses(TrainedNetwork(encoder, config.compute).eval(), batch, config, World(CPU)).total.item()
        plain = plain_losses(encoder, batch.frames, batch, config).item()
    if abs(ours - plain) > 0.02 * abs(plain):  # this one rounds the view's pixels to bytes
        raise SystemExit(f"the two steps do not compute the same loss: {ours} and {plain}")
    print(f"loss of one batch: {ours:.4f} here, {plain:.4f} plainly")


def measure(config: TrainConfig, videos: Path, cache: Cache, rounds: int) -> list[dict[str, object]]:
    """Rows of the result; a round is four steps of this project's and one plain one."""
    files = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    batch = next(iter(make_loader(replace(config.clips, workers=0), cache)))
    check_equal(config, batch)
    runners = {"this": (ThisStep(config, cache), 4), "plain": (PlainStep(config, files, batch), 1)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    with Watch() as watch:
        for number in range(rounds + 1):
            for name, (runner, steps) in runners.items():
                taken = [runner.step() for _ in range(steps)]
                times[name] += taken if number else []  # the first round warms up
    print(f"other processes took {watch.foreign_cores} cores")
    frames = config.clips.batch * config.clips.frames
    rows: list[dict[str, object]] = []
    for name, taken in times.items():
        seconds = [step for step, _ in taken]
        rows.append(
            {
                "step": name,
                "network": "whole" if config.encoder.layer4 else "without layer4",
                "clips": config.clips.batch,
                "frames": config.clips.frames,
                "crop": config.clips.crop,
                "workers": config.clips.workers,
                "threads": torch.get_num_threads(),
                "steps": len(taken),
                "step_p50_s": round(float(np.median(seconds)), 3),
                "frames_per_s": round(frames * len(taken) / sum(seconds), 1),
                "waiting_share": round(sum(waited for _, waited in taken) / sum(seconds), 4),
                "foreign_cores": watch.foreign_cores,
            }
        )
        print(rows[-1])
    return rows


def render_videos(folder: Path) -> Path:
    """A new folder with a few small videos of noise that moves."""
    folder.mkdir()
    random_numbers = np.random.default_rng(0)
    for number in range(4):
        noise = random_numbers.integers(0, 256, (96, 160, 3), dtype=np.uint8)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for shift in range(16):
                image = np.ascontiguousarray(noise[:, shift : shift + 128])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return folder


def main() -> None:
    """Parse options, run, write results/training.jsonl."""
    parser = parser_of(__doc__)
    parser.add_argument("videos", type=Path, nargs="?")
    parser.add_argument("--cache", type=Path, help="where to keep decoded frames; a temporary folder otherwise")
    parser.add_argument("--preset", default="cpu-2h")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    options.videos = None if options.toy else options.videos
    config = load_config(options.preset, [])
    if options.toy:
        config = replace(
            config,
            encoder=EncoderConfig(width=8),
            clips=replace(config.clips, batch=2, crop=64, workers=0),
            cache=replace(config.cache, short_side=96),
        )
    elif options.videos is None:
        sys.exit("give a folder of videos, or --toy")
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or render_videos(Path(folder) / "videos")
        plan = plan_cache(videos, options.cache or Path(folder) / "cache", config.cache)
        print(plan.describe())
        cache = build_cache(plan)
        rows = []
        for layer4 in (True, False):
            network = replace(config, encoder=replace(config.encoder, layer4=layer4))
            rows += measure(network, videos, cache, 1 if options.toy else options.rounds)
    write("training", rows, toy=options.toy)


if __name__ == "__main__":
    main()
