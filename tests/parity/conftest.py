"""What tests of several cores look at: embeddings of a noisy scene, and objects in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.fakes.memories import BF16_ISAS, FP32_ISAS
from vosrt.types import F32Array, U8Array

H, W, K = 9, 14, 40


@pytest.fixture(scope="module", params=[*FP32_ISAS, *BF16_ISAS])
def isa(request: pytest.FixtureRequest, native: Any) -> str:
    """Each path; those that this processor lacks are skipped."""
    name: str = request.param
    if not native.isa_available(name):
        pytest.skip(f"this processor lacks {name}")
    return name


@pytest.fixture
def video() -> Callable[[int], list[F32Array]]:
    """``video(frames)``: noisy views of one random scene that has a mean, f32 [9, 14, 40] each, unit length."""

    def make(frames: int) -> list[F32Array]:
        random = np.random.default_rng(4)
        scene = 1 + random.standard_normal((H, W, K))
        noisy = [scene + 0.5 * random.standard_normal(scene.shape) for _ in range(frames)]
        return [(f / np.linalg.norm(f, axis=-1, keepdims=True)).astype(np.float32) for f in noisy]

    return make


@pytest.fixture
def mark() -> Callable[..., U8Array]:
    """``mark(*ids)``: up to five objects beside each other, u8 [8 h, 8 w]."""

    def make(*ids: int) -> U8Array:
        mask = np.zeros((8 * H, 8 * W), np.uint8)
        for n, object_id in enumerate(ids):
            mask[16:56, 8 + 20 * n : 26 + 20 * n] = object_id
        return mask

    return make
