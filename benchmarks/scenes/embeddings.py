"""Embeddings of no network, for benchmarks of what follows it."""

from __future__ import annotations

import numpy as np

from vosrt.types import F32Array


def make_video(height: int, width: int, channels: int, frames: int) -> list[F32Array]:
    """A scene that moves a cell every third frame, with noise: f32 [h, w, K], unit length."""
    random = np.random.default_rng(0)
    scene = random.standard_normal((height, width, channels)).astype(np.float32)
    video = []
    for t in range(frames):
        frame = np.roll(scene, t // 3, axis=1) + 0.3 * random.standard_normal(scene.shape).astype(np.float32)
        video.append(frame / np.linalg.norm(frame, axis=-1, keepdims=True))
    return video
