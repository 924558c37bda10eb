"""What the memory on a GPU does to planes against the NumPy reference, emulated and, if there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from vosrt.arrays import DeviceTensor
from vosrt.core import reference
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.planes import draw_planes, keep_planes, refine_planes
from vosrt.cuda.runtime import download
from vosrt.types import F32Array, PropagationOptions

K = 40
OPTIONS = PropagationOptions(context=2, radius=4)


def memory_of(height: int, width: int, ids: list[int], parts: int = 1) -> CudaMemory:
    """A memory some frames old with random soft masks; objects are marked in this order, two frames apart."""
    random = np.random.default_rng(height)
    memory = CudaMemory(height, width, K, replace(OPTIONS, parts=parts), align_corners=False)
    for object_id in ids:
        for _ in range(2):
            embedding = random.standard_normal((height, width, K))
            memory.push((embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)).astype(np.float32))
        memory.annotate(np.full((height, width), object_id, np.uint8))
    soft = random.random((height * parts, width * parts, 1 + len(ids))) ** 4
    memory.set_soft_masks((soft / soft.sum(axis=-1, keepdims=True)).astype(np.float32))
    return memory


def put(memory: CudaMemory, array: F32Array) -> DeviceTensor:
    """An array, channels last, as planes on the memory's GPU."""
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    tensor = memory.queue.allocate(planes.shape, np.float32, "planes")
    memory.queue.upload(planes, tensor)
    memory.queue.wait()
    return tensor


def get(memory: CudaMemory, planes: DeviceTensor) -> F32Array:
    """Planes, channels last, in host memory."""
    return memory.queue.download(planes).transpose(1, 2, 0)


SIZES = [
    ((1, 1), (3, 2), [7], 1),
    ((5, 7), (33, 50), [9, 2, 5], 1),
    ((5, 7), (33, 50), [9, 2, 5], 2),
    ((6, 9), (48, 72), [1, 2, 3, 4, 5, 6], 1),
]


@pytest.mark.parametrize(("grid", "size", "ids", "parts"), SIZES, ids=str)
def test_kernels_give_what_the_reference_gives(
    cuda_core: str, grid: tuple[int, int], size: tuple[int, int], ids: list[int], parts: int
) -> None:
    """Planes are drawn, corrected, aggregated and labelled within 1e-5 of it, with the same labels."""
    memory, random = memory_of(*grid, ids, parts), np.random.default_rng(0)
    soft = memory.soft_masks()
    planes = put(memory, np.zeros((*size, 1 + len(ids)), np.float32))
    coarse = reference.resize_soft(soft, *size)
    draw_planes(memory, planes)
    np.testing.assert_allclose(get(memory, planes), coarse, atol=1e-6)

    quarter = (-(-size[0] // 4), -(-size[1] // 4))
    for scale in (3, 60):
        logits = (scale * random.standard_normal((*quarter, len(ids)))).astype(np.float32)
        refine_planes(memory, put(memory, logits), planes, residual=True)
        expected = reference.correct(coarse, reference.resize_soft(logits, *size))
        np.testing.assert_allclose(get(memory, planes), expected, atol=1e-5)
    for scale, at in ((3, quarter), (2, (2, 3)), (3, size)):
        logits = (scale * random.standard_normal((*at, len(ids)))).astype(np.float32)
        refine_planes(memory, put(memory, logits), planes, residual=False)
        expected = reference.aggregate(reference.resize_soft(logits, *size))
        np.testing.assert_allclose(get(memory, planes), expected, atol=1e-5)
    sure = np.full((*quarter, len(ids)), -200, np.float32)
    sure[..., -1] = 200
    refine_planes(memory, put(memory, sure), planes, residual=False)
    np.testing.assert_allclose(get(memory, planes)[..., -1], 1, atol=1e-5)

    planes, order = put(memory, expected), np.array([0, *sorted(ids)], np.uint8)
    memory.show(planes)
    for other in (size, (40, 31)):
        index, confidence = reference.upsample_labels(expected, *other, align_corners=False)
        labels, given = memory.labels(*other)
        np.testing.assert_array_equal(labels, order[index])
        np.testing.assert_allclose(given, confidence, atol=1e-6)
    keep_planes(memory, planes)
    np.testing.assert_allclose(memory.soft_masks(), reference.resize_soft(expected, *soft.shape[:2]), atol=1e-6)


def test_planes_are_shown_until_the_memory_changes(cuda_core: str) -> None:
    """A new frame, an annotation and a removal have labels made of soft masks again."""
    memory = memory_of(5, 7, [1, 2])
    expected = memory.labels(20, 28)[0]
    planes = put(memory, np.ones((20, 28, 3), np.float32) * np.array([0, 1, 0], np.float32))
    memory.show(planes)
    assert (memory.labels(20, 28)[0] == 1).all()
    assert (download(memory.labels_there(20, 28)[0]) == 1).all()
    memory.show(None)
    np.testing.assert_array_equal(memory.labels(20, 28)[0], expected)
    changes: tuple[Callable[[], None], ...] = (
        lambda: memory.annotate(np.full((5, 7), 2, np.uint8)),
        lambda: memory.push(np.full((5, 7, K), K**-0.5, np.float32)),
        lambda: memory.remove(1),
    )
    for change in changes:
        memory.show(planes)
        change()
        assert not (memory.labels(20, 28)[0] == 1).all()
