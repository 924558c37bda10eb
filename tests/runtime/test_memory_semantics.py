"""What a memory promises, held against every core: appearance times, padding, removal, rescue, ties, odd values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.memories import take
from vosrt.core.memory import Memory
from vosrt.core.reference import NumpyMemory
from vosrt.errors import InputError, MaskError, OptionError
from vosrt.types import F32Array, PropagationOptions, U8Array

MemoryFactory = Callable[..., Memory]
Embeddings = Callable[..., F32Array]

TOLERANCE = 1e-5
H, W, K = 5, 6, 8


def _mask(*objects: tuple[int, slice, slice], shape: tuple[int, int] = (H, W)) -> U8Array:
    mask = np.zeros(shape, dtype=np.uint8)
    for object_id, rows, columns in objects:
        mask[rows, columns] = object_id
    return mask


LEFT = _mask((1, slice(1, 4), slice(0, 2)))
RIGHT = _mask((2, slice(1, 4), slice(4, 6)))


def _attended_frames(memory: Memory, reference: int) -> set[int]:
    frames = memory.top_k().frame[reference]
    return {int(frame) for frame in np.unique(frames) if frame >= 0}


def test_before_any_annotation_all_is_background(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """Frames may come before the first mask; nothing is matched for them."""
    memory = memory_factory(H, W, K)
    for t in range(3):
        memory.push(unit_embedding(t, H, W, K))
    np.testing.assert_array_equal(memory.soft_masks(), np.ones((H, W, 1)))
    assert memory.top_k().similarity.shape == (0, H * W, 10)
    labels, confidence = memory.labels(20, 30)
    assert not labels.any()
    np.testing.assert_array_equal(confidence, 1)
    assert memory.object_ids == ()


def test_an_annotation_of_the_grids_size_is_taken_literally(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """Labels of the annotated frame are the annotation, with background as the rest."""
    memory = take(memory_factory(H, W, K), unit_embedding(0, H, W, K), LEFT + RIGHT)
    soft = memory.soft_masks()
    for channel in (0, 1, 2):
        np.testing.assert_array_equal(soft[..., channel], channel == (LEFT + RIGHT))
    np.testing.assert_array_equal(memory.labels(H, W)[0], LEFT + RIGHT)
    assert memory.object_ids == (1, 2)
    assert memory.info["references"] == 1


def test_a_still_frame_keeps_its_labels(memory_factory: MemoryFactory) -> None:
    """With embeddings that tell every cell apart, repeating the frame repeats the mask."""
    eye = np.eye(H * W, dtype=np.float32).reshape(H, W, H * W)
    memory = take(memory_factory(H, W, H * W, temperature=1e-3), eye, LEFT)
    for _ in range(4):
        memory.push(eye)
        np.testing.assert_allclose(memory.soft_masks()[..., 1], LEFT, atol=TOLERANCE)


def test_each_object_is_read_from_its_appearance_time_on(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """The context of an object that appears at frame 2 has no earlier frame; the first one's has all."""
    memory = memory_factory(H, W, K, context=4, top_k=64)
    for t in range(5):
        take(memory, unit_embedding(t, H, W, K), LEFT if t == 0 else None)
        if t == 2:
            memory.annotate(RIGHT)
    assert _attended_frames(memory, 0) == {0, 1, 2, 3}
    assert _attended_frames(memory, 1) == {2, 3}


def test_a_later_object_leaves_the_channels_of_the_others_alone(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """Object 1 propagates the same with and without object 2, but where the annotation of 2 covers it."""
    alone, together = (memory_factory(H, W, K, yield_background=False) for _ in range(2))
    for t in range(4):
        for memory in (alone, together):
            take(memory, unit_embedding(t, H, W, K), LEFT if t == 0 else None)
        if t == 2:
            before = together.soft_masks()
            together.annotate(RIGHT)
            covered = (RIGHT > 0)[..., None]
            np.testing.assert_allclose(together.soft_masks()[..., :2], np.where(covered, 0, before), atol=TOLERANCE)
            alone.set_soft_masks(np.where(covered, 0, before).astype(np.float32))
    np.testing.assert_allclose(together.soft_masks()[..., :2], alone.soft_masks(), atol=TOLERANCE)


@pytest.mark.parametrize("yields", [True, False])
def test_background_yields_to_what_was_unmarked_at_first(
    memory_factory: MemoryFactory, unit_embedding: Embeddings, yields: bool
) -> None:
    """In a still picture the right half, marked only at frame 1, shows at frame 2; the released rule hides it."""
    memory = memory_factory(H, W, K, yield_background=yields)
    for t in range(3):
        memory.push(unit_embedding(0, H, W, K))
        if t == 0:
            memory.annotate(LEFT)
        elif t == 1:
            memory.annotate(RIGHT)
    soft = memory.soft_masks()[RIGHT > 0]
    np.testing.assert_allclose(soft[:, 2], 1, atol=0.05)
    if yields:
        np.testing.assert_allclose(soft[:, 0], 0, atol=0.05)
    else:
        assert (soft[:, 0] > 0.5).all()


@pytest.mark.parametrize(("pad", "expected"), [(True, [0, 0, 0, 0]), (False, [0, 0])])
def test_padding_copies_the_reference(
    memory_factory: MemoryFactory, unit_embedding: Embeddings, pad: bool, expected: list[int]
) -> None:
    """At frame 1 of a 1 x 1 map, context 3 is the reference and, if padded, three copies, else frame 0 once."""
    memory = take(
        memory_factory(1, 1, K, context=3, pad_context=pad, top_k=6),
        unit_embedding(0, 1, 1, K),
        np.ones((1, 1), dtype=np.uint8),
    )
    memory.push(unit_embedding(1, 1, 1, K))
    attended = memory.top_k()
    assert attended.frame[0, 0].tolist() == expected + [-1] * (6 - len(expected))
    assert attended.cell[0, 0].tolist() == [0] * len(expected) + [-1] * (6 - len(expected))
    assert np.isnan(attended.similarity[0, 0, len(expected) :]).all()


def test_padding_stands_for_frames_before_a_late_reference(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """Frames between the start and the first annotation are not attended, but their slots count as copies."""
    memory = memory_factory(1, 1, K, context=3, top_k=8)
    for t in range(5):
        take(memory, unit_embedding(t, 1, 1, K), np.ones((1, 1), dtype=np.uint8) if t == 3 else None)
    assert memory.top_k().frame[0, 0].tolist() == [3, 3, 3, 3, -1, -1, -1, -1]


def test_only_the_last_frames_are_attended(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """Context 2 at frame 5 is the reference and frames 3 and 4; memory does not grow."""
    memory = memory_factory(H, W, K, context=2, top_k=64)
    sizes = []
    for t in range(6):
        take(memory, unit_embedding(t, H, W, K), LEFT if t == 0 else None)
        sizes.append(memory.info["bytes"])
    assert _attended_frames(memory, 0) == {0, 3, 4}
    assert sizes[3:] == [sizes[3]] * 3
    assert memory.info["frames"] == 6


def test_context_zero_attends_the_reference_alone(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """No recent frame is attended, padded or not."""
    memory = memory_factory(H, W, K, context=0, top_k=64)
    for t in range(3):
        take(memory, unit_embedding(t, H, W, K), LEFT if t == 0 else None)
    attended = memory.top_k()
    assert _attended_frames(memory, 0) == {0}
    assert (attended.cell[0] >= 0).sum(axis=1).tolist() == [H * W] * (H * W)


@pytest.mark.parametrize(("radius", "centre", "corner"), [(2.0, 9, 4), (2.1, 13, 6), (0.5, 1, 1)])
def test_the_window_bounds_the_search(
    memory_factory: MemoryFactory, unit_embedding: Embeddings, radius: float, centre: int, corner: int
) -> None:
    """A middle and a corner cell of a recent frame have the candidates of the window without its rim."""
    memory = take(
        memory_factory(5, 5, K, context=1, top_k=64, radius=radius),
        unit_embedding(0, 5, 5, K),
        _mask((1, slice(2, 3), slice(2, 3)), shape=(5, 5)),
    )
    memory.push(unit_embedding(1, 5, 5, K))
    memory.push(unit_embedding(2, 5, 5, K))
    count = (memory.top_k().frame[0] == 1).sum(axis=1)
    assert (count[12], count[0]) == (centre, corner)


def test_the_reference_is_attended_everywhere(memory_factory: MemoryFactory) -> None:
    """An object that jumps further than the window is found by the reference."""
    eye = np.eye(16, dtype=np.float32).reshape(1, 16, 16)
    jumped = np.roll(eye, 10, axis=1)
    mask = _mask((1, slice(0, 1), slice(2, 4)), shape=(1, 16))
    memory = take(memory_factory(1, 16, 16, radius=3.0, top_k=1), eye, mask)
    memory.push(jumped)
    assert memory.soft_masks()[0, 12:14, 1].tolist() == [1, 1]


def test_removal_turns_an_object_into_background(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """What it held becomes background, now and in what is remembered; the other object goes on as before."""
    memory, untouched = memory_factory(H, W, K), memory_factory(H, W, K)
    for t in range(4):
        for each in (memory, untouched):
            take(each, unit_embedding(t, H, W, K), LEFT + RIGHT if t == 0 else None)
        if t == 2:
            before = memory.soft_masks()
            memory.remove(1)
            after = memory.soft_masks()
            np.testing.assert_allclose(after[..., 0], before[..., 0] + before[..., 1], atol=TOLERANCE)
            np.testing.assert_array_equal(after[..., 1], before[..., 2])
    assert memory.object_ids == (2,)
    kept, all_three = memory.soft_masks(), untouched.soft_masks()
    np.testing.assert_allclose(kept[..., 1], all_three[..., 2], atol=TOLERANCE)
    np.testing.assert_allclose(kept[..., 0], all_three[..., 0] + all_three[..., 1], atol=TOLERANCE)


def test_a_removed_id_can_come_back(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """After all objects are gone, background is still read from the first reference and an old id is a new object."""
    memory = take(memory_factory(H, W, K, top_k=64), unit_embedding(0, H, W, K), LEFT)
    memory.remove(1)
    memory.push(unit_embedding(1, H, W, K))
    np.testing.assert_allclose(memory.soft_masks(), 1, atol=TOLERANCE)
    memory.annotate(_mask((1, slice(0, 1), slice(3, 6))))
    memory.push(unit_embedding(2, H, W, K))
    assert memory.object_ids == (1,)
    assert memory.info["references"] == 1
    assert _attended_frames(memory, 0) == {0, 1}
    assert _attended_frames(memory, 1) == {1}


def test_removing_an_unknown_object_is_refused(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """The message names the id; nothing changes."""
    memory = take(memory_factory(H, W, K), unit_embedding(0, H, W, K), LEFT)
    with pytest.raises(OptionError, match="2"):
        memory.remove(2)
    assert memory.object_ids == (1,)


def test_an_object_marked_anew_takes_the_new_reference(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """Its old area becomes background; a reference that has lost all its objects goes, unless it is the first."""
    memory = memory_factory(H, W, K, top_k=64)
    anew = {3: _mask((2, slice(0, 1), slice(0, 3))), 4: _mask((2, slice(4, 5), slice(0, 3)))}
    for t in range(5):
        memory.push(unit_embedding(t, H, W, K))
        if t == 0:
            memory.annotate(LEFT + RIGHT)
        elif t in anew:
            before = memory.soft_masks()
            memory.annotate(anew[t])
            after = memory.soft_masks()
            np.testing.assert_array_equal(after[..., 2], anew[t] == 2)
            uncovered = anew[t] == 0
            np.testing.assert_allclose(
                after[uncovered][:, :2], before[uncovered][:, :2] + before[uncovered][:, 2:] * [1, 0], atol=TOLERANCE
            )
            assert memory.info["references"] == 2
    memory.push(unit_embedding(5, H, W, K))
    assert memory.top_k().frame.shape[0] == 2
    assert _attended_frames(memory, 1) == {4}


def test_two_annotations_of_one_frame_share_a_reference(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """The order of annotating disjoint objects does not matter, and it costs no second context."""
    at_once, in_turn = memory_factory(H, W, K), memory_factory(H, W, K)
    for memory in (at_once, in_turn):
        memory.push(unit_embedding(0, H, W, K))
    at_once.annotate(LEFT + RIGHT)
    in_turn.annotate(RIGHT)
    in_turn.annotate(LEFT)
    assert in_turn.info["references"] == 1
    for memory in (at_once, in_turn):
        memory.push(unit_embedding(1, H, W, K))
    np.testing.assert_allclose(in_turn.soft_masks(), at_once.soft_masks(), atol=TOLERANCE)
    assert in_turn.top_k().frame.shape[0] == 1


def test_a_tiny_object_is_rescued(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """One pixel of a large frame owns one whole cell."""
    mask = _mask((1, slice(10, 30), slice(10, 30)), (200, slice(33, 34), slice(41, 42)), shape=(40, 48))
    memory = take(memory_factory(H, W, K), unit_embedding(0, H, W, K), mask)
    assert memory.object_ids == (1, 200)
    soft = memory.soft_masks()
    expected = np.zeros((H, W))
    expected[3, 4] = 1
    np.testing.assert_array_equal(soft[..., 2], expected)
    np.testing.assert_allclose(soft.sum(axis=-1), 1, atol=TOLERANCE)


def test_a_rescue_never_loses_another_object(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """An object whose only cell is taken by the rescue of another one is rescued in turn."""
    mask = np.zeros((17, 17), dtype=np.uint8)
    mask[8, 8] = mask[8, 2] = 1
    mask[7, 9] = mask[9, 9] = mask[9, 7] = 2
    memory = take(memory_factory(3, 3, K), unit_embedding(0, 3, 3, K), mask)
    soft = memory.soft_masks()
    assert soft[1, 0].tolist() == [0, 1, 0]
    assert soft[1, 1].tolist() == [0, 0, 1]


def test_a_refused_annotation_changes_nothing(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """Two one-pixel objects in one cell and an empty mask are errors; the memory stays as it was."""
    memory = take(memory_factory(H, W, K), unit_embedding(0, H, W, K), LEFT)
    before = memory.soft_masks()
    crowded = _mask((2, slice(20, 21), slice(20, 21)), (3, slice(20, 21), slice(21, 22)), shape=(40, 48))
    with pytest.raises(MaskError):
        memory.annotate(crowded)
    with pytest.raises(MaskError):
        memory.annotate(np.zeros((40, 48), dtype=np.uint8))
    np.testing.assert_array_equal(memory.soft_masks(), before)
    assert memory.object_ids == (1,)
    assert memory.info["references"] == 1


@pytest.mark.parametrize("shape", [(H, W, K + 1), (H + 1, W, K), (H * W, K)])
def test_an_embedding_of_another_shape_is_refused(
    memory_factory: MemoryFactory, unit_embedding: Embeddings, shape: tuple[int, ...]
) -> None:
    """The frame does not count."""
    memory = memory_factory(H, W, K)
    with pytest.raises(OptionError):
        memory.push(np.zeros(shape, dtype=np.float32))
    assert memory.info["frames"] == 0


def test_nothing_can_be_asked_before_the_first_frame(memory_factory: MemoryFactory) -> None:
    """Annotating or reading without a frame is the caller's mistake."""
    memory = memory_factory(H, W, K)
    with pytest.raises(InputError):
        memory.annotate(LEFT)
    with pytest.raises(InputError):
        memory.labels(H, W)
    with pytest.raises(InputError):
        memory.soft_masks()


def test_ties_go_to_background_then_to_the_smallest_id(
    memory_factory: MemoryFactory, unit_embedding: Embeddings
) -> None:
    """Equal soft masks are decided the same way everywhere, also between cells."""
    memory = take(memory_factory(H, W, K), unit_embedding(0, H, W, K), LEFT + RIGHT)
    memory.set_soft_masks(np.full((H, W, 3), 1 / 3, dtype=np.float32))
    assert not memory.labels(4 * H, 4 * W)[0].any()
    memory.set_soft_masks(np.broadcast_to(np.array([0, 0.5, 0.5], dtype=np.float32), (H, W, 3)).copy())
    labels, confidence = memory.labels(4 * H, 4 * W)
    assert (labels == 1).all()
    np.testing.assert_allclose(confidence, 0.5, atol=TOLERANCE)


def test_equal_similarities_are_taken_in_order(memory_factory: MemoryFactory) -> None:
    """All cells look the same: the reference's first cells win, in row-major order."""
    same = np.zeros((H, W, K), dtype=np.float32)
    same[..., 0] = 1
    memory = take(memory_factory(H, W, K, top_k=7), same, LEFT)
    memory.push(same)
    attended = memory.top_k()
    assert (attended.frame == 0).all()
    assert (attended.cell[0] == np.arange(7)).all()
    np.testing.assert_allclose(memory.soft_masks()[..., 1], LEFT.reshape(-1)[:7].mean(), atol=TOLERANCE)


def test_written_soft_masks_are_what_the_next_frame_reads(memory_factory: MemoryFactory) -> None:
    """Recent frames carry the masks that were set; the reference keeps its own."""
    eye = np.eye(H * W, dtype=np.float32).reshape(H, W, H * W)
    memory = take(memory_factory(H, W, H * W, context=1, top_k=2, temperature=1e-3), eye, LEFT)
    memory.push(eye)
    memory.set_soft_masks(np.broadcast_to(np.array([0, 1], dtype=np.float32), (H, W, 2)).copy())
    memory.push(eye)
    np.testing.assert_allclose(memory.soft_masks()[..., 1], (LEFT + 1.0) / 2, atol=TOLERANCE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.25])
def test_impossible_soft_masks_are_refused(
    memory_factory: MemoryFactory, unit_embedding: Embeddings, value: float
) -> None:
    """One such value would spread through the memory; the masks stay as they were."""
    memory = take(memory_factory(H, W, K), unit_embedding(0, H, W, K), LEFT)
    soft = memory.soft_masks()
    wrong = soft.copy()
    wrong[2, 3, 1] = value
    with pytest.raises(OptionError, match="expected finite values of at least 0"):
        memory.set_soft_masks(wrong)
    np.testing.assert_array_equal(memory.soft_masks(), soft)


def test_soft_masks_of_an_annotated_frame_can_be_written_back(memory_factory: MemoryFactory) -> None:
    """Where several objects meet in a cell their shares may add up to a little more than 1; no mask turns negative."""
    memory = take(
        memory_factory(60, 107, 1, context=0),
        np.ones((60, 107, 1), dtype=np.float32),
        np.random.default_rng(0).integers(1, 7, (480, 854), dtype=np.uint8),
    )
    soft = memory.soft_masks()
    assert soft.min() >= 0
    memory.set_soft_masks(soft)
    np.testing.assert_array_equal(memory.soft_masks(), soft)


def test_a_map_of_one_cell_works(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """1 x 1 is the smallest map; its label covers the frame."""
    memory = take(memory_factory(1, 1, K), unit_embedding(0, 1, 1, K), np.full((7, 9), 255, dtype=np.uint8))
    memory.push(unit_embedding(1, 1, 1, K))
    assert memory.object_ids == (255,)
    np.testing.assert_allclose(memory.soft_masks()[0, 0], [0, 1], atol=TOLERANCE)
    assert (memory.labels(7, 9)[0] == 255).all()


def test_nan_is_never_attended(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """A key cell of NaN is skipped; a query cell of NaN attends to nothing and is background with confidence 0."""
    memory = memory_factory(H, W, K, top_k=64)
    first, second = unit_embedding(0, H, W, K), unit_embedding(1, H, W, K)
    first[2, 3] = np.nan
    second[4, 5, 0] = np.nan
    take(memory, first, LEFT)
    memory.push(second)
    cells = memory.top_k().cell[0]
    assert not (cells == 2 * W + 3).any()
    assert (cells[4 * W + 5] == -1).all()
    soft = memory.soft_masks()
    assert np.isfinite(soft).all()
    assert not soft[4, 5].any()
    labels, confidence = memory.labels(H, W)
    assert (labels[4, 5], confidence[4, 5]) == (0, 0)


def test_255_objects_fit(memory_factory: MemoryFactory, unit_embedding: Embeddings) -> None:
    """Every id of a byte may be an object at the same time."""
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    memory = take(memory_factory(16, 16, K), unit_embedding(0, 16, 16, K), mask)
    np.testing.assert_array_equal(memory.labels(16, 16)[0], mask)
    memory.push(unit_embedding(0, 16, 16, K))
    assert memory.object_ids == tuple(range(1, 256))
    np.testing.assert_allclose(memory.soft_masks().sum(axis=-1), 1, atol=1e-4)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 7), st.sampled_from([1, 3, 31, 33])),
    options=st.fixed_dictionaries(
        {
            "context": st.integers(0, 4),
            "radius": st.sampled_from([0.5, 1.0, 2.5, 12.0]),
            "top_k": st.integers(1, 12),
            "temperature": st.sampled_from([0.05, 0.5]),
            "pad_context": st.booleans(),
        }
    ),
    actions=st.lists(st.sampled_from(["push", "push", "annotate", "remove"]), min_size=4, max_size=14),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_history_gives_what_numpy_gives(
    memory_factory: MemoryFactory,
    size: tuple[int, int, int],
    options: dict[str, Any],
    actions: list[str],
    seed: int,
) -> None:
    """Pushes, annotations and removals in any order give the same objects and soft masks, whose masses sum to one."""
    rng = np.random.default_rng(seed)
    memory, twin = memory_factory(*size, **options), NumpyMemory(*size, PropagationOptions(**options))
    for action in ["push", *actions]:
        if action == "push":
            embedding = rng.standard_normal(size).astype(np.float32)
            embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
            memory.push(embedding)
            twin.push(embedding)
        elif action == "annotate":
            mask = rng.integers(0, 4, size[:2], dtype=np.uint8)
            mask[0, 0] = 1
            memory.annotate(mask)
            twin.annotate(mask)
        elif twin.object_ids:
            object_id = int(rng.choice(twin.object_ids))
            memory.remove(object_id)
            twin.remove(object_id)
        assert memory.object_ids == twin.object_ids
        np.testing.assert_allclose(memory.soft_masks(), twin.soft_masks(), atol=1e-4)
        np.testing.assert_array_equal(memory.top_k().frame.shape, twin.top_k().frame.shape)
        np.testing.assert_allclose(memory.labels(9, 11)[1], twin.labels(9, 11)[1], atol=1e-4)
