"""The dense baseline of the benchmarks computes what vosrt computes: a ratio of speeds is of the same work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosrt.core.memory import Memory
from vosrt.types import F32Array, PropagationOptions

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'vosrt[train]'")

MemoryFactory = Callable[..., Memory]
HEIGHT, WIDTH, CHANNELS = 9, 14, 16


@pytest.fixture(scope="module")
def dense() -> Any:
    """``benchmarks/kernels/dense.py``, which is no part of the package."""
    if not (Path(__file__).resolve().parents[2] / "benchmarks").is_dir():
        pytest.skip("no benchmarks beside the tests")
    return importlib.import_module("benchmarks.kernels.dense")


@pytest.mark.parametrize("objects", [1, 3])
def test_labels_and_confidence_are_those_of_vosrt(
    dense: Any, memory_factory: MemoryFactory, unit_embedding: Callable[..., F32Array], objects: int
) -> None:
    """Frame after frame, beyond the length of the context; embeddings are given, so that only propagation counts."""
    options = PropagationOptions(context=3, radius=3.5, top_k=5)
    scene = unit_embedding(0, HEIGHT, WIDTH + 8, CHANNELS)
    embeddings = [np.ascontiguousarray(scene[:, t : t + WIDTH]) for t in range(8)]
    mask = np.zeros((8 * HEIGHT, 8 * WIDTH), np.uint8)
    for number in range(objects):
        mask[16:48, 32 * number + 8 : 32 * number + 32] = number + 1

    waiting = iter(embeddings)
    tracker = dense.DenseTracker(lambda _: torch.from_numpy(next(waiting))[None], options)
    frame = torch.zeros((*mask.shape, 3), dtype=torch.uint8)
    tracker.start(frame, torch.from_numpy(mask), objects)
    memory = memory_factory(HEIGHT, WIDTH, CHANNELS, **vars(options))
    memory.push(embeddings[0])
    memory.annotate(mask)

    for embedding in embeddings[1:]:
        memory.push(embedding)
        labels, confidence = memory.labels(*mask.shape)
        dense_labels, dense_confidence = tracker.step(frame)
        np.testing.assert_allclose(dense_confidence.numpy(), confidence, atol=2e-5)
        decided = np.abs(confidence - 0.5) > 1e-3
        assert (dense_labels.numpy() == labels)[decided].all()
        assert decided.mean() > 0.5
    assert len(np.unique(labels)) == objects + 1
