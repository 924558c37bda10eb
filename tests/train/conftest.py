"""Settings for all tests of training, and a training of a second: a tiny network on a few small videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes.media import save_davis
from vosrt.types import U8Array
from vosrt_train.config import TrainConfig
from vosrt_train.config_file import load_config
from vosrt_train.data.cache import Cache, CachedVideo

TINY = (
    "encoder.layer4=true",
    "encoder.width=8",  # oneDNN corrupts memory with fewer channels in channels_last on AVX2
    "encoder.key_channels=8",
    "cache.short_side=48",
    "clips.batch=4",
    "clips.frames=3",
    "clips.crop=48",
    "clips.gap=1",
    "clips.workers=0",
    "loss.anchors=4",
    "loss.points=2",
    "schedule.steps=12",
    "schedule.warmup=2",
    "compute.device=cpu",
    "compute.threads=1",
    "compute.precision=fp32",
    "validation.sequences=[]",
    "validation.size=48",
    "validation.every=0",
    "log.every=1",
    "log.pictures=0",
    "log.checkpoint=4",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small convolutions spend their time waiting for threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_changes() -> tuple[str, ...]:
    """What makes the preset cpu-2h a training of a second."""
    return TINY


@pytest.fixture
def tiny_config(tiny_changes: tuple[str, ...]) -> Callable[..., TrainConfig]:
    """The configuration of a tiny training: ``tiny_config("schedule.steps=3", …)``."""
    return lambda *changes: load_config("cpu-2h", [*tiny_changes, *changes])


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with six folders of ten frames, each a texture that drifts at its own speed."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        random = np.random.default_rng(number)
        texture = cv2.GaussianBlur(random.integers(0, 256, (100, 120, 3), dtype=np.uint8), (0, 0), 2)
        texture = cv2.normalize(texture, texture.copy(), 0, 255, cv2.NORM_MINMAX)
        (root / f"video{number}").mkdir()
        for t in range(10):
            frame = texture[t * (number % 3) :, t * (number % 2) :][:48, :64]
            assert cv2.imwrite(str(root / f"video{number}" / f"{t:05}.png"), frame)
    return root


@pytest.fixture(scope="session")
def tiny_cache(tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The same videos as a cache."""
    folder = tmp_path_factory.mktemp("cache")
    videos = []
    for source in sorted(tiny_videos.iterdir()):
        frames = np.stack([np.asarray(Image.open(path)) for path in sorted(source.iterdir())])
        path = folder / f"{source.name}.rgb"
        path.write_bytes(frames.tobytes())
        count, height, width = frames.shape[:3]
        videos.append(CachedVideo(source.name, path, count, height, width, fps=25.0))
    return Cache(tuple(videos), ())


@pytest.fixture
def davis(tmp_path: Path, tiny_clip: tuple[U8Array, U8Array]) -> Path:
    """The tiny clip as the sequences ``squares`` (two objects) and ``square`` (one, binary masks) of a data set."""
    root = tmp_path / "davis"
    for name, masks in (("squares", tiny_clip[1]), ("square", np.where(tiny_clip[1] == 1, 255, 0).astype(np.uint8))):
        save_davis(root, name, tiny_clip[0], masks, suffix="jpg")
    return root
