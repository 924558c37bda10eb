"""Options against drift, held against every core, every path and the emulated GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.fakes.memories import BF16_ISAS, FP32_ISAS, load_session, save_session, take
from vosrt.core import reference
from vosrt.core.memory import Memory
from vosrt.core.reference import NumpyMemory
from vosrt.cuda.memory import CudaMemory
from vosrt.cuda.runtime import open_queue
from vosrt.errors import OptionError
from vosrt.types import RANGES, F32Array, PropagationOptions, U8Array

Video = Callable[[int], list[F32Array]]
Mark = Callable[..., U8Array]
H, W, K = 9, 14, 40
ALTERED = PropagationOptions(
    context=3, radius=4, centring=0.8, sharpness=1.5, object_bias=0.1, guided=2, calibration=2, motion=0.3
)


def make_native(native: Any, isa: str, shape: tuple[int, int, int], options: PropagationOptions) -> Memory:
    if not native.isa_available(isa):
        pytest.skip(f"this processor lacks {isa}")
    memory: Memory = native.Memory(*shape, **vars(options), align_corners=options.parts == 1, isa=isa, threads=2)
    return memory


def make_twin(shape: tuple[int, int, int], options: PropagationOptions) -> NumpyMemory:
    return NumpyMemory(*shape, options, align_corners=options.parts == 1)


def make_cuda(shape: tuple[int, int, int], options: PropagationOptions) -> CudaMemory:
    return CudaMemory(*shape, options, align_corners=options.parts == 1)


@st.composite
def videos(draw: st.DrawFn) -> tuple[PropagationOptions, list[F32Array], dict[int, U8Array], int]:
    """Options, embeddings with a mean, annotations by frame, and the frame before which object 1 is removed."""
    height, width, channels = draw(st.integers(1, 9)), draw(st.integers(1, 13)), draw(st.integers(2, 70))
    options = PropagationOptions(
        context=draw(st.integers(0, 3)),
        radius=draw(st.sampled_from((1.0, 3.0, 12.0))),
        top_k=draw(st.sampled_from((1, 5, 20))),
        yield_background=draw(st.booleans()),
        centring=draw(st.sampled_from((0.0, 0.5, 0.8, 1.0))),
        sharpness=draw(st.sampled_from((0.1, 1.0, 1.5, 3.0, 100.0))),
        object_bias=draw(st.sampled_from((-10.0, 0.0, 0.1, 10.0))),
        motion=draw(st.sampled_from((0.0, 0.3))),
        parts=draw(st.sampled_from((1, 1, 2, 3))),
    )
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    scene = random.standard_normal((height, width, channels)) + draw(st.sampled_from((0.0, 1.0)))
    noisy = [scene + 0.5 * random.standard_normal(scene.shape) for _ in range(6)]
    embeddings = [(f / np.linalg.norm(f, axis=-1, keepdims=True)).astype(np.float32) for f in noisy]
    marks: dict[int, U8Array] = {}
    for frame, ids in ((0, (1, 2)), (draw(st.integers(1, 4)), (draw(st.sampled_from((1, 2, 9))),))):
        mask = np.zeros((height, width), np.uint8)
        mask.flat[random.permutation(mask.size)[: len(ids)]] = ids[: mask.size]
        marks.setdefault(frame, mask.repeat(8, axis=0).repeat(8, axis=1))
    return options, embeddings, marks, draw(st.integers(2, 6))


def chosen_alike(ours: Memory, theirs: Memory) -> Any:
    """Cells, bool [h*w], that chose the same neighbours for every reference."""
    keys = []
    for memory in (ours, theirs):
        found = memory.top_k()
        keys.append(np.sort(found.frame * found.cell.shape[1] + found.cell, axis=-1))
    return (keys[0] == keys[1]).all(axis=(0, 2))


def by_cell(difference: F32Array, parts: int) -> F32Array:
    """How far the masks of each cell are apart at most, f32 [h*w], of f32 [h * parts, w * parts, M]."""
    height, width = (side // parts for side in difference.shape[:2])
    largest: F32Array = np.abs(difference).reshape(height, parts, width, parts, -1).max(axis=(1, 3, 4), initial=0)
    return largest.reshape(-1)


@pytest.mark.parametrize("isa", [*FP32_ISAS, *BF16_ISAS])
@given(video=videos())
@settings(derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_path_gives_what_the_twin_gives(
    native: Any, isa: str, video: tuple[PropagationOptions, list[F32Array], dict[int, U8Array], int]
) -> None:
    """From the same masks, similarities are within the path's bound, and masks agree where neighbours do."""
    options, embeddings, marks, removal = video
    height, width, channels = embeddings[0].shape
    shape = height, width, channels
    twin, memory = make_twin(shape, options), make_native(native, isa, shape, options)
    mean = reference.mean_embedding(embeddings[0])
    centred = [reference.centre(e, mean, options.centring) if options.centring else e for e in embeddings]
    rest = max(np.square(e - centred[0].mean(axis=(0, 1))).sum(axis=-1).max() for e in centred)
    bound = 1e-5 if isa in FP32_ISAS else 1.01 * 2.0**-7 * rest + 1e-5
    for t, embedding in enumerate(embeddings):
        if t == removal and 1 in twin.object_ids:
            twin.remove(1)
            memory.remove(1)
        twin.push(embedding)
        memory.push(embedding)
        np.testing.assert_allclose(memory.top_k().similarity, twin.top_k().similarity, atol=bound, equal_nan=True)
        if t > 0:
            difference = by_cell(memory.soft_masks() - twin.soft_masks(), options.parts)
            # Weights are exponentials of similarity / temperature, which bf16 moves.
            assert difference[chosen_alike(memory, twin)].max(initial=0) <= 1e-4 + 40 * (bound - 1e-5)
        memory.set_soft_masks(twin.soft_masks())
        if t in marks:
            twin.annotate(marks[t])
            memory.annotate(marks[t])
        assert memory.object_ids == twin.object_ids


@pytest.fixture(params=["numpy", "native", "cuda"])
def alter(request: pytest.FixtureRequest) -> Callable[[PropagationOptions], Memory]:
    """Creates memories of H x W x K on each core."""
    if request.param == "numpy":
        return lambda options: make_twin((H, W, K), options)
    if request.param == "cuda":
        request.getfixturevalue("cuda_emulated")
        return lambda options: make_cuda((H, W, K), options)
    module = request.getfixturevalue("native")
    return lambda options: make_native(module, "generic", (H, W, K), options)


def test_what_is_remembered_is_altered_and_what_is_shown_is_not(
    alter: Callable[[PropagationOptions], Memory], video: Video, mark: Mark
) -> None:
    """Masks are the sum, by a frame's own neighbours, of p^1.5 e^0.1 / Σ of earlier ones; of marked ones as marked."""
    options = replace(ALTERED, centring=0.0, yield_background=False, calibration=0, motion=0)
    memory = alter(options)
    remembered: list[NDArray[np.float64]] = []
    for t, embedding in enumerate(video(7)):
        memory.push(embedding)
        if t == 0:
            memory.annotate(mark(1, 2))
        else:
            found = memory.top_k()
            for position, channels in enumerate([[0, 1], [2]] if t > 3 else [[0, 1, 2]]):
                chosen, near, cell = found.similarity[position], found.frame[position], found.cell[position]
                weight = np.exp((chosen.astype(np.float64) - chosen[:, :1]) / options.temperature)
                weight /= weight.sum(axis=1, keepdims=True)
                read = np.einsum("qk,qkm->qm", weight, np.stack(remembered)[near, cell])
                np.testing.assert_allclose(
                    memory.soft_masks().reshape(H * W, 3)[:, channels], read[:, channels], atol=2e-4
                )
        if t == 3:
            memory.annotate(np.where(mark(1, 2) == 2, 2, 0).astype(np.uint8))
        shown = memory.soft_masks().reshape(H * W, 3).astype(np.float64)
        altered = shown**1.5 * [1, np.exp(0.1), np.exp(0.1)]
        remembered.append(shown if t in (0, 3) else altered / altered.sum(axis=1, keepdims=True))


def test_altered_embeddings_are_those_of_a_stream_that_was_given_them(
    alter: Callable[[PropagationOptions], Memory], video: Video, mark: Mark
) -> None:
    """Centring is a matter of embeddings alone: pushed as they are after it, without the option, they give the same."""
    frames = video(5)
    mean = frames[0].astype(np.float64).mean(axis=(0, 1))
    rest = [frame - 0.8 * mean for frame in frames]
    given_so = [(each / np.linalg.norm(each, axis=-1, keepdims=True)).astype(np.float32) for each in rest]
    inside, outside = (
        alter(PropagationOptions(context=3, radius=4, centring=0.8)),
        alter(PropagationOptions(context=3, radius=4)),
    )
    for t, (frame, other) in enumerate(zip(frames, given_so, strict=True)):
        inside.push(frame)
        outside.push(other)
        for memory in (inside, outside):
            if t == 0:
                memory.annotate(mark(1))
        np.testing.assert_allclose(inside.top_k().similarity, outside.top_k().similarity, atol=1e-5)
        np.testing.assert_allclose(inside.soft_masks(), outside.soft_masks(), atol=1e-3)
        outside.set_soft_masks(inside.soft_masks())


def test_one_and_zero_remember_masks_as_they_are(
    alter: Callable[[PropagationOptions], Memory], video: Video, mark: Mark
) -> None:
    """Not even their sum becomes 1; and nothing of it depends on naming the defaults."""
    plain = PropagationOptions(context=1, radius=4)
    named, unnamed = alter(replace(plain, centring=0.0, sharpness=1.0, object_bias=0.0)), alter(plain)
    altered = alter(replace(plain, object_bias=1e-6))
    frames = video(4)
    for memory in (named, unnamed, altered):
        for t, frame in enumerate(frames[:3]):
            take(memory, frame, mark(1) if t == 0 else None)
        memory.set_soft_masks(memory.soft_masks() * 4)
        memory.push(frames[3])
    np.testing.assert_array_equal(named.soft_masks(), unnamed.soft_masks())
    assert named.soft_masks().sum(axis=-1).max() > 1.5
    np.testing.assert_allclose(altered.soft_masks().sum(axis=-1), 1, atol=1e-4)


def ball(count: int, worn: float = 1.0) -> tuple[list[F32Array], U8Array, F32Array]:
    """A patterned rectangle that moves over a patterned field, its mask, and soft masks of it, worn at the border."""
    random = np.random.default_rng(5)
    field, thing = random.standard_normal((H, W + count, K)), random.standard_normal((5, 6, K))
    frames = []
    for t in range(count):
        frame = field[:, :W].copy()
        frame[2:7, 1 + t // 2 : 7 + t // 2] = thing
        frame += 0.3 * random.standard_normal(frame.shape)  # so that every cell is most like itself
        frames.append((frame / np.linalg.norm(frame, axis=-1, keepdims=True)).astype(np.float32))
    mask = np.zeros((8 * H, 8 * W), np.uint8)
    mask[16:56, 8:56] = 4
    worn_away = np.zeros((H, W), np.float32)
    worn_away[2:7, 1 + (count - 1) // 2 : 7 + (count - 1) // 2] = worn
    worn_away[3:6, 2 + (count - 1) // 2 : 6 + (count - 1) // 2] = 1
    return frames, mask, np.stack([1 - worn_away, worn_away], axis=-1)


@pytest.mark.parametrize(("worn", "left", "expected"), [(0.3, 1, 0.6), (1.0, 1, 0), (0.3, 0.2, 0)])
def test_an_object_that_erodes_is_given_more(
    alter: Callable[[PropagationOptions], Memory], worn: float, left: float, expected: float
) -> None:
    """Masks are worn at the border: p e^0.6 / Σ is remembered. Whole ones stay, as do those of what has left."""
    frames, mask, soft = ball(5, worn)
    soft[..., 1] *= left
    soft[..., 0] = 1 - soft[..., 1]
    memory = alter(PropagationOptions(context=1, radius=0.5, top_k=1, pad_context=False, calibration=4))
    for t, frame in enumerate(frames):
        take(memory, frame, mask if t == 0 else None)
    memory.set_soft_masks(soft)
    memory.push(frames[-1])  # each cell finds itself in frame 4, or where it was in frame 0
    weight = soft * [1, np.exp(expected)]
    remembered = weight / weight.sum(axis=-1, keepdims=True)
    from_newest = memory.top_k().frame[0, :, 0].reshape(H, W) == 4
    assert from_newest.sum() > H * W / 4
    np.testing.assert_allclose(memory.soft_masks()[from_newest], remembered[from_newest], atol=1e-3)


def test_an_object_that_spreads_is_given_nothing_more(alter: Callable[[PropagationOptions], Memory]) -> None:
    """Undecided cells around it are background where it was annotated: its factor stays at e^0.1."""
    frames, mask, soft = ball(5)
    soft[1:8, 2:10, 1] = np.maximum(soft[1:8, 2:10, 1], 0.6)
    soft[..., 0] = 1 - soft[..., 1]
    still = PropagationOptions(context=1, radius=0.5, top_k=1, pad_context=False)
    memory = alter(replace(still, calibration=4, object_bias=0.1))
    for t, frame in enumerate(frames):
        take(memory, frame, mask if t == 0 else None)
    memory.set_soft_masks(soft)
    memory.push(frames[-1])
    weight = soft * [1, np.exp(0.1)]
    from_newest = memory.top_k().frame[0, :, 0].reshape(H, W) == 4
    expected = (weight / weight.sum(axis=-1, keepdims=True))[from_newest]
    np.testing.assert_allclose(memory.soft_masks()[from_newest], expected, atol=1e-3)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("isa", [*FP32_ISAS, *BF16_ISAS])
def test_calibration_on_every_path_is_that_of_the_twin(native: Any, isa: str, parts: int) -> None:
    """Two objects that were annotated at different frames, each by its own clock; one of them is marked again."""
    options = PropagationOptions(context=3, radius=4, sharpness=1.5, object_bias=0.1, calibration=2, parts=parts)
    frames, mask, _ = ball(14)
    other = np.zeros_like(mask)
    other[48:64, 88:104] = 9
    twin, memory = make_twin((H, W, K), options), make_native(native, isa, (H, W, K), options)
    for t, frame in enumerate(frames):
        for each in (twin, memory):
            take(each, frame, {0: mask, 3: other, 9: np.roll(mask, 40, axis=1)}.get(t))
        worn = twin.soft_masks() ** np.float32(1.2)  # so that there is something to calibrate
        near = 1e-3 if isa in FP32_ISAS else 2e-2
        np.testing.assert_allclose(memory.soft_masks(), twin.soft_masks(), atol=near)
        for each in (twin, memory):
            each.set_soft_masks(worn)


def test_what_moves_with_an_object_is_its_own(alter: Callable[[PropagationOptions], Memory]) -> None:
    """Of doubtful cells those that move with the object are taken, those that stand still with the field are not."""
    random = np.random.default_rng(7)
    field, thing = random.standard_normal((H, W, K)), random.standard_normal((7, 6, K))
    mask = np.zeros((8 * H, 8 * W), np.uint8)
    mask[8:64, :48] = 4
    plain = PropagationOptions(context=6, radius=4)
    shares = []
    for options in (plain, replace(plain, motion=0.5)):
        memory = alter(options)
        for t in range(6):
            frame = field.copy()
            frame[1:8, t : t + 6] = thing
            memory.push((frame / np.linalg.norm(frame, axis=-1, keepdims=True)).astype(np.float32))
            if t == 0:
                memory.annotate(mask)
            if t < 5:
                soft = np.zeros((H, W, 2), np.float32)
                soft[1:8, t : t + 6, 1] = 1
                soft[3:6, t + 2 : t + 4, 1] = 0.4
                soft[3:6, 11:13, 1] = 0.6
                soft[..., 0] = 1 - soft[..., 1]
                memory.set_soft_masks(soft)
        soft = memory.soft_masks()
        np.testing.assert_allclose(soft.sum(axis=-1), 1, atol=1e-4)
        shares.append((soft[3:6, 7:9, 1].mean(), soft[3:6, 11:13, 1].mean()))
    (moves, stays), (moves_with_it, stays_with_it) = shares
    assert moves_with_it > moves + 0.15
    assert stays_with_it < stays - 0.15


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("isa", [*FP32_ISAS, *BF16_ISAS, "cuda"])
def test_motion_on_every_path_is_that_of_the_twin(
    request: pytest.FixtureRequest, native: Any, isa: str, parts: int
) -> None:
    """Objects that are marked, marked again and removed, on a grid that is larger than a window."""
    if isa == "cuda":
        request.getfixturevalue("cuda_emulated")
    height, width, options = 23, 25, PropagationOptions(context=5, radius=4, top_k=8, motion=0.7, parts=parts)
    random = np.random.default_rng(3)
    field = random.standard_normal((height, width + 6, K))
    twin = make_twin((height, width, K), options)
    other = (
        make_cuda((height, width, K), options)
        if isa == "cuda"
        else make_native(native, isa, (height, width, K), options)
    )
    for t in range(6):
        frame = field[:, t : t + width].copy()
        frame[5:20, 3 + t : 12 + t] = field[6:21, 20:29]
        frame += 0.3 * random.standard_normal(frame.shape)
        embedding = (frame / np.linalg.norm(frame, axis=-1, keepdims=True)).astype(np.float32)
        mask = np.zeros((8 * height, 8 * width), np.uint8)
        mask[40:160, 8 * (3 + t) : 8 * (12 + t)] = 3 if t else 1
        mask[:64, 8 * 20 :] = 2
        for memory in (twin, other):
            memory.push(embedding)
            if t in (0, 3):
                memory.annotate(mask)
            if t == 4:
                memory.remove(1)
        near = 1e-4 if isa in FP32_ISAS else 0.05
        agree = chosen_alike(other, twin) if t else slice(None)
        difference = by_cell(other.soft_masks() - twin.soft_masks(), parts)[agree]
        assert difference.max() < near
        assert difference.mean() < near / 10
        other.set_soft_masks(twin.soft_masks())


def test_odd_masks_and_embeddings_are_remembered_without_harm(
    alter: Callable[[PropagationOptions], Memory], mark: Mark
) -> None:
    """Masks without mass, huge and tiny ones, a scene that is its own mean, and cells that are not numbers."""
    memory = alter(
        PropagationOptions(context=2, centring=1.0, sharpness=100.0, object_bias=10.0, calibration=1, motion=10)
    )
    still = np.full((H, W, K), K**-0.5, np.float32)
    take(memory, still, mark(1))
    memory.push(still)
    for value in (0.0, 3e38, 1e-45):
        masks = np.full((H, W, 2), value, np.float32)
        masks[0, 0] = (1, 0)
        memory.set_soft_masks(masks)
        memory.push(still)
        assert np.isfinite(memory.soft_masks()).all()
    broken = still.copy()
    broken[3] = np.nan
    memory.push(broken)
    memory.push(still)
    assert np.isfinite(memory.soft_masks()).all()


@pytest.mark.parametrize("isa", ["generic", "amx-emulated", "cuda"])
@pytest.mark.parametrize(("pause", "parts"), [(1, 1), (3, 2), (6, 1)])
def test_a_session_continues_bit_for_bit(
    request: pytest.FixtureRequest, native: Any, isa: str, pause: int, parts: int, video: Video, mark: Mark
) -> None:
    """It is saved after an annotated or a propagated frame; what is still to be altered is altered after loading."""
    if isa == "cuda":
        request.getfixturevalue("cuda_emulated")
    options, shape = replace(ALTERED, parts=parts), (H, W, K)
    memory: Memory = make_cuda(shape, options) if isa == "cuda" else make_native(native, isa, shape, options)
    frames = video(pause + 4)
    picture = np.random.default_rng(3).integers(0, 256, (8 * H, 8 * W, 3), dtype=np.uint8)
    for t, frame in enumerate(frames[:pause]):
        memory.push(frame)
        memory.guide(picture)
        if t in (0, 2):
            memory.annotate(mark(1, 2) if t == 0 else mark(7))
    session = save_session(memory, 8 * H, 8 * W)
    again = load_session(session, **({"device": "cuda"} if isa == "cuda" else {"isa": isa})).memory
    assert save_session(again, 8 * H, 8 * W) == session
    for ours, theirs in zip(again.labels(50, 70), memory.labels(50, 70), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for frame in frames[pause:]:
        for each in (memory, again):
            each.push(frame)
        np.testing.assert_array_equal(again.soft_masks(), memory.soft_masks())


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gpu_gives_what_the_twin_gives_also_where_frames_are_recorded(
    cuda_core: str, video: Video, mark: Mark, parts: int
) -> None:
    """Replays of a CUDA graph leave the frame that was annotated in between as it was marked."""
    options = replace(ALTERED, parts=parts)
    twin, pushed, queued = make_twin((H, W, K), options), *(make_cuda((H, W, K), options) for _ in range(2))
    queue = open_queue(0)
    embedding = queue.allocate((H, W, K), np.float32, "an embedding")
    labels = queue.allocate((50, 70), np.uint8, "labels")
    for t, array in enumerate(video(14)):
        queue.upload(array, embedding)
        queued.frame(embedding, labels=labels)
        pushed.push(array)
        twin.push(array)
        np.testing.assert_array_equal(queued.soft_masks(), pushed.soft_masks())
        if t > 0:
            np.testing.assert_allclose(pushed.top_k().similarity, twin.top_k().similarity, atol=1e-2)
            different = pushed.labels(8 * H, 8 * W)[0] != twin.labels(8 * H, 8 * W)[0]
            assert different.mean() < 3e-3
            twin.set_soft_masks(pushed.soft_masks())
        if t in (0, 7):
            for memory in (twin, pushed, queued):
                memory.annotate(mark(1, 2) if t == 0 else np.where(mark(1, 2) == 2, 2, 0).astype(np.uint8))
    assert queued.recordings == 2


@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    frame=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    radius=st.sampled_from((1, 4, 32)),
    flat=st.booleans(),
    align_corners=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True, max_examples=60)
def test_guided_labels_are_the_twins(
    native: Any,
    grid: tuple[int, int],
    frame: tuple[int, int],
    radius: int,
    flat: bool,
    align_corners: bool,
    seed: int,
) -> None:
    """Confidence is within 1e-4, and labels agree but where two channels are as close."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (1, 1, 3) if flat else (*frame, 3), dtype=np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(picture, (*frame, 3)))
    mask = np.zeros(grid, np.uint8)
    mask.flat[: min(2, mask.size)] = (7, 3)[: mask.size]
    soft = random.random((*grid, 1 + min(2, mask.size))) * (random.random((*grid, 1)) < 0.5)
    soft[..., 0] = 1 - soft[..., 1:].sum(axis=-1).clip(0, 1)
    options = PropagationOptions(guided=radius)
    results = []
    for memory in (
        NumpyMemory(*grid, 2, options, align_corners=align_corners),
        native.Memory(*grid, 2, **vars(options), align_corners=align_corners, threads=2),
    ):
        take(memory, np.ones((*grid, 2), np.float32), mask)
        memory.set_soft_masks(soft.astype(np.float32))
        memory.guide(picture)
        results.append(memory.labels(50, 60))
        np.testing.assert_array_equal(memory.soft_masks(), soft.astype(np.float32))
    (theirs, expected), (ours, confidence) = results
    np.testing.assert_allclose(confidence, expected, atol=1e-4)
    assert (ours != theirs).mean() < 5e-3


def test_guided_masks_end_where_the_picture_has_an_edge(native: Any, mark: Mark) -> None:
    """The edge is four pixels beside the border that the masks show; the rest of the stream is unchanged."""
    options = PropagationOptions(guided=4)
    picture = np.full((8 * H, 8 * W, 3), 30, np.uint8)
    picture[:, 8 * 7 + 4 :] = (200, 120, 80)
    mask = np.zeros((8 * H, 8 * W), np.uint8)
    mask[:, 8 * 7 :] = 5
    edge = {}
    for memory in (
        NumpyMemory(H, W, K, options, align_corners=False),
        native.Memory(H, W, K, **vars(options), align_corners=False),
    ):
        take(memory, np.ones((H, W, K), np.float32), mask)
        edge["as they are"] = int((memory.labels(8 * H, 8 * W)[0] == 0).sum(axis=1)[20])
        memory.guide(picture)
        edge["guided"] = int((memory.labels(8 * H, 8 * W)[0] == 0).sum(axis=1)[20])
        assert edge["as they are"] == 56
        assert abs(edge["guided"] - 60) <= 1
        memory.push(np.ones((H, W, K), np.float32))
        plain = memory.soft_masks()
        memory.guide(picture)
        np.testing.assert_array_equal(memory.soft_masks(), plain)
        with pytest.raises(OptionError, match="frame is float32"):
            memory.guide(picture.astype(np.float32))


@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    frame=st.tuples(st.integers(1, 41), st.integers(1, 300)),
    objects=st.sampled_from((1, 2, 9, 20)),
    radius=st.sampled_from((1, 4, 32)),
    align_corners=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_guided_labels_on_a_gpu_are_the_processors(
    native: Any,
    cuda_core: str,
    grid: tuple[int, int],
    frame: tuple[int, int],
    objects: int,
    radius: int,
    align_corners: bool,
    seed: int,
) -> None:
    """From the same masks both compute the same bits, whether the picture comes from the host or is on the GPU."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (*frame, 3), dtype=np.uint8)
    mask = np.zeros(grid, np.uint8)
    count = min(objects, mask.size)
    mask.flat[:count] = random.permutation(np.arange(1, 256))[:count]
    soft = random.random((*grid, 1 + count)) * (random.random((*grid, 1 + count)) < 0.3)
    soft[..., 0] = 1 - soft[..., 1:].sum(axis=-1).clip(0, 1)
    options = PropagationOptions(guided=radius)
    queue = open_queue(0)
    there = queue.allocate(picture.shape, np.uint8, "a picture")
    queue.upload(picture, there)
    queue.wait()
    processor = native.Memory(*grid, 2, **vars(options), align_corners=align_corners, threads=2)
    gpu = CudaMemory(*grid, 2, options, align_corners=align_corners)
    for memory in (processor, gpu):
        memory.push(np.ones((*grid, 2), np.float32))
        memory.guide(picture)
        memory.annotate(mask)
        memory.set_soft_masks(soft.astype(np.float32))
    expected = processor.labels(50, 60)
    for given_again in (picture, there):
        gpu.guide(given_again)
        for ours, theirs in zip(gpu.labels(50, 60), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    session = load_session(save_session(gpu, *frame), device="cuda").memory
    np.testing.assert_array_equal(session.labels(50, 60)[1], expected[1])


def test_guided_frames_on_a_gpu_are_recorded(cuda_core: str, video: Video, mark: Mark) -> None:
    """Replays follow the picture of their frame, until one comes without; the rest of the stream is unchanged."""
    options = replace(ALTERED, guided=4)
    pushed, queued, plain = CudaMemory(H, W, K, options), CudaMemory(H, W, K, options), CudaMemory(H, W, K, options)
    queue = open_queue(0)
    embedding = queue.allocate((H, W, K), np.float32, "an embedding")
    picture = queue.allocate((61, 93, 3), np.uint8, "a picture")
    labels = queue.allocate((50, 70), np.uint8, "labels")
    random, changed = np.random.default_rng(3), 0
    for t, array in enumerate(video(16)):
        frame = np.kron(random.integers(0, 256, (8, 12, 3)), np.ones((8, 8, 1)))[:61, :93].astype(np.uint8)
        queue.upload(array, embedding)
        queue.upload(frame, picture)
        queued.frame(embedding, labels=labels, frame=picture if t < 15 else None)
        for memory in (pushed, plain):
            memory.push(array)
        if t < 15:
            pushed.guide(frame)
        expected = pushed.labels(50, 70)
        np.testing.assert_array_equal(queue.download(labels), expected[0])
        for ours, theirs in zip(queued.labels(50, 70), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(queued.soft_masks(), plain.soft_masks())
        changed += int((expected[0] != plain.labels(50, 70)[0]).sum())
        if t in (0, 7):
            for memory in (pushed, queued, plain):
                memory.annotate(mark(1, 2) if t == 0 else mark(1, 2, 3, 7, 9))
    assert changed > 100
    assert queued.recordings == 2
    with pytest.raises(OptionError, match=r"frame is float32 \[9, 14, 40\]; expected uint8 \[9, 14, 3\]"):
        queued.frame(embedding, labels=labels, frame=embedding)


@given(
    masks=st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=8),
    sharpness=st.floats(0.125, 8, width=32),
    bias=st.floats(-2, 2, width=32),
)
def test_sharpened_masks_are_masks(masks: list[list[float]], sharpness: float, bias: float) -> None:
    """They sum to 1 or are empty, keep the order of objects, and are surer where sharpness exceeds 1."""
    soft = np.array(masks, np.float32)[None]
    sharp = reference.sharpen(soft, sharpness, bias)
    mass = soft.sum(axis=-1) > 0
    np.testing.assert_allclose(sharp.sum(axis=-1)[mass], 1, atol=1e-5)
    assert not sharp[~mass].any()
    assert ((sharp[..., 1] >= sharp[..., 2]) >= (soft[..., 1] >= soft[..., 2])).all()
    if sharpness >= 1 and bias == 0:
        total = np.where(mass, soft.sum(axis=-1), 1)
        assert (sharp.max(axis=-1) >= soft.max(axis=-1) / total - 1e-5).all()


def one(name: str, value: float) -> PropagationOptions:
    """The defaults but for one option."""
    given: dict[str, Any] = {name: value}
    return PropagationOptions(**given)


@pytest.mark.parametrize("name", ["centring", "sharpness", "object_bias"])
def test_values_beyond_the_range_are_refused_everywhere(request: pytest.FixtureRequest, native: Any, name: str) -> None:
    """Python, the native core and the GPU's refuse them and NaN, and take the ends of the range."""
    request.getfixturevalue("cuda_emulated")
    allowed = RANGES[name]
    for value in (allowed.lowest, allowed.highest):
        options = one(name, value)
        native.Memory(3, 4, 5, **{name: value})
        CudaMemory(3, 4, 5, options)
    for value in (allowed.lowest - 0.01, allowed.highest + 0.01, float("nan"), float("inf"), float("-inf")):
        with pytest.raises(OptionError, match=f"{name} is .*; expected {allowed.text}"):
            one(name, value)
        with pytest.raises(OptionError, match=f"{name} is .*; expected {allowed.text}"):
            native.Memory(3, 4, 5, **{name: value})
        smuggled = PropagationOptions()
        object.__setattr__(smuggled, name, value)
        with pytest.raises(OptionError, match=f"{name} is .*; expected {allowed.text}"):
            CudaMemory(3, 4, 5, smuggled)
    for radius in (-1, 33):
        for refused in (
            lambda radius=radius: PropagationOptions(guided=radius),
            lambda radius=radius: native.Memory(3, 4, 5, guided=radius),
        ):
            with pytest.raises(OptionError, match=f"guided is {radius}; expected 0 to 32 half-resolution pixels"):
                refused()


def test_parts_hold_what_a_cell_cannot(alter: Callable[[PropagationOptions], Memory]) -> None:
    """A border in the middle of cells stays there while they move."""
    random = np.random.default_rng(5)
    field = random.standard_normal((H, W + 4, K))
    field /= np.linalg.norm(field, axis=-1, keepdims=True)
    mask = np.zeros((8 * H, 8 * W), np.uint8)
    mask[:, 36:68] = 3  # from the middle of a cell to the middle of another
    for parts in (1, 2):
        memory = alter(PropagationOptions(context=2, radius=4, top_k=1, parts=parts))
        for t in range(4):
            memory.push(np.ascontiguousarray(field[:, 4 - t : 4 - t + W], dtype=np.float32))
            if t == 0:
                memory.annotate(mask)
        assert memory.soft_masks().shape == (H * parts, W * parts, 2)
        assert memory.info["parts"] == parts
        moved = np.roll(mask, 8 * 3, axis=1)
        wrong = (memory.labels(8 * H, 8 * W)[0] != moved)[:, 24:].mean()
        assert (wrong == 0) == (parts == 2), (parts, wrong)


def test_parts_need_cells_that_lie_on_the_middle_of_their_pixels(native: Any, cuda_emulated: Path) -> None:
    options = PropagationOptions(parts=2)
    for make in (NumpyMemory, CudaMemory, lambda *shape, **kind: native.Memory(*shape[:3], **vars(options), **kind)):
        with pytest.raises(OptionError, match="parts is 2; expected 1 where corners are aligned"):
            make(H, W, K, options, align_corners=True)
        assert make(H, W, K, options, align_corners=False).info["parts"] == 2
