"""Several streams side by side: the same results as one after the other, and no harm from those that fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vosrt import EngineError, InputError, MaskError, Model, StepResult, step_all
from vosrt.bundle import EncoderSpec, Manifest
from vosrt.encoder import Embedding, FrameEncoder, batch_sizes
from vosrt.engines.base import Engine
from vosrt.engines.fake import FakeEngine
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import EngineError as EngineFailure
from vosrt.errors import VosrtError
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]
SPEC = EncoderSpec(channels=32, feature="res4", min_side=16, max_side=256)


class Counting(FakeEngine):
    """Notes how many frames came at once, and how large they were; fails on request."""

    largest_batch = 4

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.shapes: list[tuple[int, ...]] = []
        self.fails_at: int | None = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.shapes.append(inputs["frames"].shape[:3])
        if len(self.shapes) - 1 == self.fails_at:
            raise EngineFailure("the engine fell over")
        return super().run(inputs)


def model_of(engine: Engine) -> Model:
    return Model(Manifest(name="fake", trained=False, summary="", encoder=SPEC, graphs={}), {"encoder": engine})


def result_of(outcome: StepResult | VosrtError) -> StepResult:
    assert isinstance(outcome, StepResult), outcome
    return outcome


def test_streams_stepped_together_give_what_each_gives_alone(tiny_clip: Clip) -> None:
    """They may have several sizes, begin at different times, and stop early."""
    frames, masks = tiny_clip
    engine = Counting()
    together, alone = model_of(engine), model_of(FakeEngine(SPEC))
    sizes = (None, 32, None, 32, None, 48)
    ours, theirs = ([model.stream(size=size) for size in sizes] for model in (together, alone))
    for t in range(5):
        active = [i for i in range(len(sizes)) if t >= i % 2 and not (i == 2 and t > 3)]
        given = [np.roll(frames[t], i, axis=1) for i in active]
        marks = [np.roll(masks[t], i, axis=1) if t == i % 2 else None for i in active]
        outcomes = step_all([ours[i] for i in active], given, marks)
        for i, outcome, frame, mask in zip(active, outcomes, given, marks, strict=True):
            expected, got = theirs[i].step(frame, mask), result_of(outcome)
            np.testing.assert_array_equal(got.labels, expected.labels)
            np.testing.assert_array_equal(got.confidence, expected.confidence)
            assert (got.index, got.object_ids) == (expected.index, expected.object_ids)
            assert got.object_confidence == expected.object_confidence
            assert set(got.timings_ms) == {"resize", "encoder", "match", "upsample"}
    assert engine.shapes[:2] == [(2, 64, 96), (1, 64, 96)], "three streams of this size begin at once"
    assert engine.shapes[2:6] == [(2, 64, 96), (1, 64, 96), (2, 32, 48), (1, 48, 72)]


def test_a_stream_that_fails_leaves_the_others_alone(tiny_clip: Clip) -> None:
    """What it was given is to blame; it may go on with its next frame."""
    frames, masks = tiny_clip
    engine = Counting()
    model = model_of(engine)
    streams = [model.stream() for _ in range(6)]
    streams[3].close()
    tiny = np.zeros((8, 8, 3), np.uint8)
    given: list[Any] = [frames[0], frames[0].astype(np.float32), tiny, frames[0], frames[0], model.encode(frames[0])]
    marks = [masks[0], None, None, None, np.zeros_like(masks[0]), masks[0]]
    first, *failed, last = step_all(streams, given, marks)
    for result in (first, last):
        np.testing.assert_array_equal(result_of(result).labels, masks[0])
    for outcome, kind, words in zip(
        failed,
        (InputError, InputError, InputError, MaskError),
        ("frame is float32", "takes sides of 16 to 256", "is closed", "marks no object"),
        strict=True,
    ):
        assert isinstance(outcome, kind)
        assert words in str(outcome)
    assert engine.shapes == [(1, 64, 96)] * 2
    again = step_all([streams[1], streams[4]], [frames[0]] * 2, [masks[0]] * 2)
    assert [result_of(each).index for each in again] == [0, 0]


def test_a_failed_run_is_the_failure_of_its_frames(tiny_clip: Clip) -> None:
    """Four go together; the fifth runs alone."""
    engine = Counting()
    engine.fails_at = 0
    model = model_of(engine)
    streams = [model.stream() for _ in range(5)]
    outcomes = step_all(streams, [tiny_clip[0][0]] * 5, [tiny_clip[1][0]] * 5)
    assert [type(each) for each in outcomes] == [EngineError] * 4 + [StepResult]
    assert [stream.object_ids for stream in streams] == [()] * 4 + [(1, 2)]
    assert all(isinstance(each, StepResult) for each in step_all(streams, [tiny_clip[0][0]] * 5))


def test_streams_of_several_models(tiny_clip: Clip) -> None:
    """Each model encodes its own."""
    engines = [Counting(), Counting()]
    streams = [model.stream() for model in map(model_of, engines) for _ in range(2)]
    step_all(streams, [tiny_clip[0][0]] * 4)
    assert [engine.shapes for engine in engines] == [[(2, 64, 96)]] * 2


def test_what_cannot_be_meant_is_refused(tiny_clip: Clip) -> None:
    stream = model_of(FakeEngine(SPEC)).stream()
    with pytest.raises(InputError, match="1 streams, 2 frames and 1 masks; expected one each"):
        step_all([stream], [tiny_clip[0][0]] * 2)
    with pytest.raises(InputError, match="a stream is given twice"):
        step_all([stream, stream], [tiny_clip[0][0]] * 2)
    assert step_all([], []) == []


def test_a_batch_of_frames_names_the_one_that_is_refused(tiny_clip: Clip) -> None:
    model = model_of(FakeEngine(SPEC))
    embeddings = model.encode_batch(list(tiny_clip[0]), size=32)
    for frame, embedding in zip(tiny_clip[0], embeddings, strict=True):
        np.testing.assert_array_equal(embedding.array, model.encode(frame, 32).array)
    bad: Any = [tiny_clip[0][0], tiny_clip[1][0]]
    with pytest.raises(InputError, match=r"frame 1 of 2: frame is uint8 \[64, 96\]"):
        model.encode_batch(bad)
    assert model.encode_batch([]) == []


@given(count=st.integers(0, 200), largest=st.integers(1, 64))
def test_runs_are_few_and_of_few_sizes(count: int, largest: int) -> None:
    sizes = list(batch_sizes(count, largest))
    assert sum(sizes) == count
    assert max(sizes, default=1) <= largest
    assert all(size & (size - 1) == 0 for size in sizes)
    assert len(sizes) <= 2 * count // largest + 7


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_real_engines_give_the_same_in_a_batch(
    name: str, encoder_graph: Path, skip_or_fail: Callable[..., None]
) -> None:
    """They are within 1e-5 of one frame at a time, and colours differ by far more."""
    spec = EncoderSpec(channels=3, feature="res4")
    try:
        engine = create_encoder_engine(encoder_graph, spec, engine=name, precision="fp32", threads=1)
    except VosrtError as error:
        skip_or_fail(str(error), required=name)
    encoder = FrameEncoder(spec, engine)
    shapes = [(32, 48)] * 5 + [(24, 32)] * 2
    frames = [np.random.default_rng(i).integers(1, 256, (*shape, 3), dtype=np.uint8) for i, shape in enumerate(shapes)]
    encoded = encoder.encode_each(frames, [None] * len(frames))
    for frame, embedding in zip(frames, encoded, strict=True):
        assert isinstance(embedding, Embedding)
        np.testing.assert_allclose(embedding.array, encoder.encode(frame).array, atol=1e-5)
    assert not np.allclose(encoded[0].array, encoded[1].array, atol=1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["default", "fast"])
def test_packaged_networks_give_the_same_in_a_batch(name: str) -> None:
    """The CPU provider is within 1e-5; the batch axis of their graphs is dynamic."""
    model = Model.load(name, engine="cpu", threads=1)
    frames = [np.random.default_rng(i).integers(0, 256, (32, 48, 3), dtype=np.uint8) for i in range(3)]
    for frame, embedding in zip(frames, model.encode_batch(frames), strict=True):
        np.testing.assert_allclose(embedding.array, model.encode(frame).array, atol=1e-5)
