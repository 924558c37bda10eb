"""Every instruction-set path of the native core against the NumPy twin, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fakes.memories import BF16_ISAS, FP32_ISAS, read_values, take
from vosrt import Model
from vosrt.core import reference
from vosrt.core.memory import Memory
from vosrt.core.reference import NumpyMemory
from vosrt.errors import MaskError
from vosrt.types import F32Array, PropagationOptions, TopK, U8Array


@dataclass(frozen=True)
class Scenario:
    """A short random video: sizes, options, and at which frame how many objects start."""

    height: int
    width: int
    channels: int
    options: PropagationOptions
    starts: dict[int, int]
    seed: int
    frames: int = 5

    def embeddings(self) -> list[F32Array]:
        """Noisy views of one random scene, f32 [h, w, K], unit length."""
        random = np.random.default_rng(self.seed)
        scene = random.standard_normal((self.height, self.width, self.channels))
        noisy = [scene + 0.5 * random.standard_normal(scene.shape) for _ in range(self.frames)]
        return [(f / np.linalg.norm(f, axis=-1, keepdims=True)).astype(np.float32) for f in noisy]

    def masks(self) -> dict[int, U8Array]:
        """Annotations u8 [H, W] by frame, at eight times the grid's size."""
        random = np.random.default_rng(self.seed + 1)
        masks = {}
        first_id = 1
        for frame, count in self.starts.items():
            coarse = random.integers(0, count + 1, (self.height, self.width))
            coarse.flat[: min(count, coarse.size)] = np.arange(1, min(count, coarse.size) + 1)
            mask = np.where(coarse > 0, coarse + first_id - 1, 0).astype(np.uint8)
            masks[frame] = mask.repeat(8, axis=0).repeat(8, axis=1)
            first_id += count
        return masks


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Shapes that fit no vector length, windows larger and smaller than the grid, every option."""
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 19))
    options = PropagationOptions(
        context=draw(st.integers(0, 4)),
        radius=draw(st.sampled_from((0.5, 1.0, 2.5, 4.0, 12.0, 100.0))),
        top_k=draw(st.sampled_from((1, 3, 10, 64))),
        temperature=draw(st.sampled_from((0.05, 0.5))),
        pad_context=draw(st.booleans()),
        yield_background=draw(st.booleans()),
    )
    objects = max(1, height * width // 4)
    starts = {0: draw(st.integers(1, min(objects, 9)))}
    if height * width > 4:
        starts[draw(st.integers(1, 3))] = 1
    return Scenario(height, width, draw(st.integers(1, 140)), options, starts, draw(st.integers(0, 2**20)))


def create(native: Any, scenario: Scenario, isa: str) -> Memory:
    options = vars(scenario.options)
    memory: Memory = native.Memory(scenario.height, scenario.width, scenario.channels, **options, isa=isa, threads=2)
    return memory


def in_step(scenario: Scenario, twin: Memory, memory: Memory) -> Iterator[None]:
    """Feed both the same video; before each frame both hold the twin's soft masks. Yields after each matched frame."""
    masks = scenario.masks()
    for t, embedding in enumerate(scenario.embeddings()):
        twin.push(embedding)
        memory.push(embedding)
        if t > 0:
            yield
        memory.set_soft_masks(twin.soft_masks())
        if t in masks:
            twin.annotate(masks[t])
            memory.annotate(masks[t])
            np.testing.assert_allclose(memory.soft_masks(), twin.soft_masks(), atol=1e-6)
            memory.set_soft_masks(twin.soft_masks())
        assert memory.object_ids == twin.object_ids


def same_neighbours(ours: TopK, theirs: TopK) -> Any:
    """Cells, bool [h*w], that chose the same neighbours for every reference, in any order."""
    cells = theirs.cell.shape[1]
    flat_ours, flat_theirs = (np.sort(k.frame * cells + k.cell, axis=-1) for k in (ours, theirs))
    return (flat_ours == flat_theirs).all(axis=(0, 2))


@pytest.mark.parametrize("isa", FP32_ISAS, indirect=True)
@given(scenario=scenarios())
@settings(derandomize=True, max_examples=40)
def test_fp32_paths_agree_with_the_twin(native: Any, isa: str, scenario: Scenario) -> None:
    """Similarities are within 1e-6 and soft masks within 1e-5.

    Neighbours may differ only where their similarities do not, which the first comparison covers.
    """
    twin = NumpyMemory(scenario.height, scenario.width, scenario.channels, scenario.options)
    memory = create(native, scenario, isa)
    for _ in in_step(scenario, twin, memory):
        ours, theirs = memory.top_k(), twin.top_k()
        np.testing.assert_allclose(ours.similarity, theirs.similarity, atol=1e-6, equal_nan=True)
        same = same_neighbours(ours, theirs)
        assert same.mean() >= 0.99 or (~same).sum() <= 1
        difference = np.abs(memory.soft_masks() - twin.soft_masks()).reshape(same.size, -1)
        assert difference[same].max(initial=0) <= 1e-5


@pytest.mark.parametrize("isa", BF16_ISAS, indirect=True)
@given(scenario=scenarios())
@settings(derandomize=True, max_examples=40)
def test_bf16_paths_stay_within_their_bound(native: Any, isa: str, scenario: Scenario) -> None:
    """Similarities are off by at most 2^-7 |rq| |rk|, r being the difference from the first frame's mean.

    That holds for every neighbour that was chosen and for the k best in order. What is read out is the twin's weighted
    sum of the neighbours that were chosen, within 1e-5.
    """
    scenario = replace(scenario, starts={0: scenario.starts[0]})
    embeddings = scenario.embeddings()
    mean = embeddings[0].mean(axis=(0, 1))
    bound = 1.01 * 2.0**-7 * max(np.square(e - mean).sum(axis=-1).max() for e in embeddings) + 1e-5
    twin = NumpyMemory(scenario.height, scenario.width, scenario.channels, scenario.options)
    memory = create(native, scenario, isa)
    cells = scenario.height * scenario.width
    keys = np.stack(embeddings).reshape(-1, scenario.channels)
    ids = range(1, scenario.starts[0] + 1)
    marked = reference.resize_mask(scenario.masks()[0], ids, scenario.height, scenario.width)
    soft = [np.concatenate([1 - marked.sum(axis=-1, keepdims=True), marked], axis=-1)]
    for t, _ in enumerate(in_step(scenario, twin, memory), start=1):
        ours, theirs = memory.top_k(), twin.top_k()
        np.testing.assert_allclose(ours.similarity, theirs.similarity, atol=bound, equal_nan=True)
        chosen = ours.frame[0].astype(np.int64) * cells + ours.cell[0]
        exact = np.einsum("qkc,qc->qk", keys[chosen], embeddings[t].reshape(cells, -1))
        found = ours.cell[0] >= 0
        np.testing.assert_allclose(ours.similarity[0][found], exact[found], atol=bound)
        neighbours = reference.Neighbours(ours.similarity[0], ours.frame[0], ours.cell[0])
        expected = reference.read_out(neighbours, np.stack(soft), scenario.options.temperature)
        np.testing.assert_allclose(memory.soft_masks(), expected, atol=1e-5)
        soft.append(twin.soft_masks())


@pytest.mark.parametrize("isa", BF16_ISAS, indirect=True)
def test_bf16_labels_on_real_features(native: Any, isa: str, shared_data: Path) -> None:
    """Frame by frame on real video, from the same memory, bf16 matching changes under 0.1 % of the labels."""
    frames = sorted((shared_data / "data/davis16-dev/JPEGImages/480p/camel").glob("*.jpg"))[:8]
    mask = (np.array(Image.open(shared_data / "data/davis16-dev/Annotations/480p/camel/00000.png")) > 0).astype(
        np.uint8
    )
    model = Model.load(engine="cpu")
    # The emulated tiles are slow; a smaller frame has the same kind of features.
    size = 120 if isa == "amx-emulated" else None
    for t, file in enumerate(frames):
        embedding = model.encode(np.asarray(cv2.imread(str(file)), np.uint8), size).array
        if t == 0:
            exact, rounded = (
                native.Memory(*embedding.shape, **choice) for choice in ({"precision": "fp32"}, {"isa": isa})
            )
        for memory in (exact, rounded):
            take(memory, embedding, mask if t == 0 else None)
        different = exact.labels(*mask.shape)[0] != rounded.labels(*mask.shape)[0]
        assert different.mean() < 1e-3
        rounded.set_soft_masks(exact.soft_masks())


def tying_vectors(random: np.random.Generator, channels: int, *, exactly: bool) -> F32Array:
    """Embeddings to choose from, f32 [n, channels], of small integers, whose products are exact in fp32.

    bf16 paths round differences from a mean, so there no two different vectors may be alike to a third.
    """
    if exactly:
        return random.integers(-1, 2, (27, channels)).astype(np.float32)
    while True:
        vectors: F32Array = random.integers(-3, 4, (4, channels)).astype(np.float32)
        if np.diff(np.sort(vectors @ vectors.T, axis=1), axis=1).min() >= 3:
            return vectors


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 11),
    channels=st.integers(10, 40),
    top_k=st.sampled_from((1, 4, 10)),
    pad_context=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True, max_examples=30)
def test_ties_go_to_the_earlier_slot_then_cell(
    native: Any, isa: str, height: int, width: int, channels: int, top_k: int, pad_context: bool, seed: int
) -> None:
    """Cells that tie with each other all the time: every path picks exactly the twin's neighbours, in its order."""
    random = np.random.default_rng(seed)
    options = PropagationOptions(context=3, radius=3.0, top_k=top_k, temperature=1.0, pad_context=pad_context)
    scenario = Scenario(height, width, channels, options, {0: 1}, seed)
    twin, memory = NumpyMemory(height, width, channels, options), create(native, scenario, isa)
    vectors = tying_vectors(random, channels, exactly=isa in FP32_ISAS)
    mask = np.zeros((height, width), np.uint8)
    mask[0, 0] = 9
    for t in range(6):
        embedding = vectors[random.integers(0, len(vectors), (height, width))]
        for each in (twin, memory):
            take(each, embedding, mask if t == 0 else None)
        ours, theirs = memory.top_k(), twin.top_k()
        np.testing.assert_array_equal(ours.frame, theirs.frame)
        np.testing.assert_array_equal(ours.cell, theirs.cell)
        tolerance = 0 if isa in FP32_ISAS else 1.5
        np.testing.assert_allclose(ours.similarity, theirs.similarity, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("isa_name", ["generic", "avx512bf16"])
def test_255_objects_are_each_found(native: Any, isa_name: str) -> None:
    """All 255 ids, a cell each, come back where they were marked when the picture stands still."""
    if not native.isa_available(isa_name):
        pytest.skip(f"this processor lacks {isa_name}")
    height, width = 16, 16
    ids = np.arange(256).reshape(height, width).astype(np.uint8)
    scene = Scenario(height, width, 64, PropagationOptions(), {}, 3, frames=1).embeddings()[0]
    memory = native.Memory(height, width, 64, isa=isa_name)
    for t in range(3):
        take(memory, scene, ids if t == 0 else None)
    labels, confidence = memory.labels(height, width)
    np.testing.assert_array_equal(labels, ids)
    assert confidence.min() > 0.5
    assert memory.object_ids == tuple(range(1, 256))


@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True)
def test_resize_gives_the_twins_bytes(native: Any, source: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    """Enlarging and shrinking, single rows and columns included: not a byte differs."""
    image = np.random.default_rng(seed).integers(0, 256, (*source, 3)).astype(np.uint8)
    np.testing.assert_array_equal(native.resize_bgr(image, *target), reference.resize_bgr(image, *target))


@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    objects=st.integers(1, 12),
    align_corners=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True)
def test_labels_are_the_twins(
    native: Any, grid: tuple[int, int], size: tuple[int, int], objects: int, align_corners: bool, seed: int
) -> None:
    """Upsampled labels and confidence equal the twin's, ties included, for sparse and for dense soft masks."""
    random = np.random.default_rng(seed)
    twin = NumpyMemory(*grid, 2, PropagationOptions(), align_corners=align_corners)
    memory = native.Memory(*grid, 2, align_corners=align_corners)
    objects = min(objects, grid[0] * grid[1])
    mask = np.zeros(grid, np.uint8)
    mask.flat[:objects] = random.permutation(np.arange(1, 256))[:objects]
    dense = random.random((*grid, objects + 1)) * (random.random((*grid, objects + 1)) < 0.4)
    soft: F32Array = (np.round(dense * 4) / 4).astype(np.float32)
    for each in (twin, memory):
        take(each, np.ones((*grid, 2), np.float32), mask)
        each.set_soft_masks(soft)
    (ours, confidence), (theirs, expected) = memory.labels(*size), twin.labels(*size)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(confidence, expected)


@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    density=st.sampled_from((0.02, 0.3, 1.0)),
    align_corners=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(derandomize=True)
def test_annotations_are_the_twins(
    native: Any, grid: tuple[int, int], size: tuple[int, int], density: float, align_corners: bool, seed: int
) -> None:
    """Soft masks of objects equal the twin's to the bit, rescued ones included; what one refuses, the other does."""
    random = np.random.default_rng(seed)
    mask = np.where(random.random(size) < density, random.integers(0, 5, size), 0).astype(np.uint8)
    mask.flat[0] = 1
    found: list[Any] = []
    for memory in (
        NumpyMemory(*grid, 2, PropagationOptions(), align_corners=align_corners),
        native.Memory(*grid, 2, align_corners=align_corners),
    ):
        memory.push(np.ones((*grid, 2), np.float32))
        try:
            memory.annotate(mask)
            found.append(memory.soft_masks()[..., 1:])
        except MaskError:
            found.append("refused")
    np.testing.assert_array_equal(found[0], found[1])


@st.composite
def reading_problems(draw: st.DrawFn) -> tuple[reference.Neighbours, list[F32Array]]:
    """Neighbours of which none, some or all are missing, and the values of one to three objects."""
    queries, top_k = draw(st.integers(1, 30)), draw(st.sampled_from((1, 2, 10, 64)))
    slots, cells, channels = draw(st.integers(1, 4)), draw(st.integers(1, 30)), draw(st.sampled_from((1, 3, 16, 33)))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    missing = random.random((queries, top_k)) < draw(st.sampled_from((0, 0.3, 0.9, 1)))
    neighbours = reference.Neighbours(
        np.where(missing, np.nan, random.uniform(-1, 1, missing.shape)).astype(np.float32),
        np.where(missing, -1, random.integers(0, slots, missing.shape)).astype(np.int32),
        np.where(missing, -1, random.integers(0, cells, missing.shape)).astype(np.int32),
    )
    objects = draw(st.integers(1, 3))
    return neighbours, [random.standard_normal((slots, cells, channels)).astype(np.float32) for _ in range(objects)]


@given(problem=reading_problems(), temperature=st.sampled_from((1e-4, 0.05, 2.0)), threads=st.integers(0, 3))
@settings(derandomize=True)
def test_values_are_the_twins(
    native: Any, problem: tuple[reference.Neighbours, list[F32Array]], temperature: float, threads: int
) -> None:
    """Every path is within 1e-5, also for missing neighbours and rows without any."""
    neighbours, values = problem
    read = read_values(*neighbours, values, temperature, threads=threads)
    np.testing.assert_allclose(read, reference.read_values(neighbours, values, temperature), atol=1e-5)
    assert not read[:, (neighbours.slot < 0).all(axis=1)].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot": np.full((4, 2), 3, np.int32)}, "slot is 3; expected -1 to 2"),
        ({"cell": np.full((4, 2), -1, np.int32)}, "cell is -1; expected 0 to 4"),
        ({"cell": np.zeros((4, 2), np.int64)}, r"cell is int64 \[4, 2\]; expected int32 \[4, 2\]"),
        ({"slot": np.zeros((4, 3), np.int32)}, r"slot is int32 \[4, 3\]; expected int32 \[4, 2\]"),
        ({"values": []}, "of no object"),
        (
            {"values": [np.zeros((3, 5, 6), np.float32), np.zeros((3, 5, 7), np.float32)]},
            r"values is float32 \[3, 5, 7\]; expected float32 \[3, 5, 6\]",
        ),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_values_that_cannot_be_read_are_refused(native: Any, change: dict[str, Any], message: str) -> None:
    """Neighbours beyond the values are refused too; nothing is read from there."""
    from vosrt.errors import OptionError

    fitting: dict[str, Any] = {
        "similarity": np.zeros((4, 2), np.float32),
        "slot": np.zeros((4, 2), np.int32),
        "cell": np.zeros((4, 2), np.int32),
        "values": [np.zeros((3, 5, 6), np.float32)],
        "temperature": 0.05,
    }
    read_values(**fitting)
    with pytest.raises(OptionError, match=message):
        read_values(**{**fitting, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.push(np.zeros((3, 4, 5), np.float64)), r"embedding is float64 \[3, 4, 5\]; expected float32"),
        (
            lambda m: m.push(np.zeros((4, 3, 5), np.float32)),
            r"embedding is float32 \[4, 3, 5\]; expected float32 \[3, 4, 5\]",
        ),
        (lambda m: m.push(np.zeros((3, 5, 4), np.float32).transpose(0, 2, 1)), "contiguous"),
        (lambda m: m.annotate(np.zeros((3, 4, 3), np.uint8)), r"mask is uint8 \[3, 4, 3\]; expected uint8"),
        (lambda m: m.annotate(np.ones((3, 4), np.uint8)), "push one first"),
        (lambda m: m.remove(3), "object 3 is not tracked"),
        (lambda m: m.labels(0, 5), "height is 0"),
        (lambda m: m.labels(-1, 5), "height is -1"),
    ],
)
def test_misuse_gets_one_clear_line(native: Any, call: Callable[[Any], Any], message: str) -> None:
    """Arrays of the wrong type, shape or order and calls out of turn raise OptionError and say what was expected."""
    from vosrt.errors import OptionError

    with pytest.raises(OptionError, match=message):
        call(native.Memory(3, 4, 5))


def test_options_are_checked(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Impossible options and a VOSRT_ISA that cannot be honoured are refused, never replaced."""
    from vosrt.errors import OptionError

    refused: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 65}, "top_k is 65; expected 1 to 64"),
        ({"top_k": 0}, "top_k is 0; expected 1 to 64"),
        ({"context": -1}, "context is -1; expected 0 to 1024"),
        ({"radius": 0.0}, "radius is 0; expected more than 0"),
        ({"temperature": 0.0}, "temperature is 0; expected 1e-4"),
        ({"temperature": 1e-9}, "temperature"),
        ({"radius": -1.0}, "radius"),
        ({"isa": "mmx"}, "isa is 'mmx'; expected one of auto, generic"),
        ({"isa": "generic", "precision": "bf16"}, "computes in fp32; bf16 was asked for"),
    ]
    for options, message in refused:
        with pytest.raises(OptionError, match=message):
            native.Memory(3, 4, 5, **options)
    monkeypatch.setenv("VOSRT_ISA", "sse9")
    with pytest.raises(OptionError, match="VOSRT_ISA is 'sse9'; expected auto, generic"):
        native.Memory(3, 4, 5)
    monkeypatch.setenv("VOSRT_ISA", "generic")
    assert native.Memory(3, 4, 5).info["isa"] == "generic"
