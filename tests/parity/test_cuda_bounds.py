"""The bounded search on a GPU against the search that computes every product: equal to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.fakes.memories import load_session, save_session
from tests.parity.test_bounded_match import assert_equal, features, smooth, take
from vosrt.core.memory import Memory
from vosrt.cuda.memory import CudaMemory
from vosrt.errors import OptionError
from vosrt.types import PropagationOptions


def searching(how: str, height: int, width: int, channels: int, **options: Any) -> Memory:
    """A memory on the GPU whose search is ``full``, ``bounded`` or ``auto``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOSRT_MATCH", how)
        return CudaMemory(height, width, channels, PropagationOptions(**options))


@pytest.mark.parametrize(
    ("kinds", "channels", "options", "gpu"),
    [
        (("smooth", "not finite"), 96, {"context": 3, "radius": 5, "top_k": 4}, ""),
        (("ties", "one-hot", "equal"), 64, {"context": 2, "radius": 3.5, "top_k": 10}, "shared=60000"),
        (("scaled", "huge", "smooth"), 65, {"context": 3, "radius": 12, "top_k": 20, "pad_context": False}, ""),
        (("ties", "smooth"), 64, {"context": 2, "radius": 6, "top_k": 21}, ""),
        (("noise", "huge"), 96, {"context": 3, "radius": 8, "top_k": 64}, ""),
        (("noise", "tiny", "zero"), 512, {"context": 1, "radius": 12, "top_k": 1}, "shared=100000"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bounds_change_no_bit(
    cuda_core: str,
    monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[str, ...],
    channels: int,
    options: dict[str, Any],
    gpu: str,
) -> None:
    """Features of every kind, several appearance times, a removal and a session give the same neighbours and masks."""
    monkeypatch.setenv("VOSRT_CUDA_EMULATED", gpu)  # variants of the kernel for less shared memory
    random = np.random.default_rng(len(kinds[0]))
    shape = (9, 18, channels)
    ours, theirs = (searching(how, *shape, **options) for how in ("bounded", "full"))
    assert (ours.info["head"], theirs.info["head"]) == (64 if channels == 512 else 32, 0)
    still = features(kinds[0], random, shape)
    for t in range(6):
        fresh = features(kinds[t % len(kinds)], random, shape)
        embedding = np.where(random.random((*shape[:2], 1)) < 0.6, still, fresh)  # much of it comes again, exactly
        take((ours, theirs), embedding, np.full(shape[:2], 1 + t, np.uint8) if t in (0, 2) else None)
        if t > 0:
            assert_equal(ours, theirs)
            assert ours.info["survivors"] < 1
        if t == 3:
            monkeypatch.setenv("VOSRT_MATCH", "bounded")
            ours = load_session(save_session(ours, 72, 144), device="cuda")[0]
            monkeypatch.delenv("VOSRT_MATCH")
            for memory in (ours, theirs):
                memory.remove(1)


def test_most_products_are_spared_where_features_allow(cuda_core: str) -> None:
    """Features of few directions need under a tenth of the products; a full search spares none."""
    random = np.random.default_rng(0)
    ours, theirs = (searching(how, 12, 40, 256, context=2, radius=8, top_k=4) for how in ("auto", "full"))
    scene = smooth(random, (12, 40, 256))
    for t in range(5):
        embedding = scene + np.float32(0.01) * smooth(random, scene.shape)
        take((ours, theirs), embedding, np.eye(12, 40, dtype=np.uint8) if t == 0 else None)
        if t > 0:
            assert_equal(ours, theirs)
    assert ours.info["survivors"] < 0.1
    assert theirs.info["survivors"] == 1


def test_what_bounds_do_not_spare_is_searched_in_full(cuda_core: str) -> None:
    """Noise is bounded in a few jobs at most, which probe; asked for, all of it is."""
    random = np.random.default_rng(0)
    memories = {how: searching(how, 5, 9, 64, context=2, radius=12, top_k=3) for how in ("auto", "bounded")}
    for t in range(6):
        embedding = features("noise", random, (5, 9, 64))
        take(memories.values(), embedding, np.ones((5, 9), np.uint8) if t == 0 else None)
        if t > 0:
            assert_equal(*memories.values())
    assert memories["auto"].info["survivors"] == 1  # this frame probes none
    assert memories["bounded"].info["survivors"] < 1


def test_vosrt_match_refuses_what_it_does_not_know(cuda_core: str) -> None:
    """An unknown word is an error that lists the words."""
    with pytest.raises(OptionError, match="VOSRT_MATCH is 'fast'; expected auto, full or bounded"):
        searching("fast", 3, 4, 5)
