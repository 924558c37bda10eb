"""Value memory and rounds of refinement, with engines whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vosrt.bundle import EncoderSpec, GraphFile, Manifest, MaskSpec
from vosrt.core import reference
from vosrt.core.library import LibraryMemory
from vosrt.encoder import Embedding
from vosrt.engines.base import Engine, EngineInfo
from vosrt.errors import InputError, OptionError
from vosrt.host_stream import HostStream
from vosrt.model import Model
from vosrt.stream import Stream
from vosrt.stream_batch import step_all
from vosrt.types import STEP_STAGES, F32Array, PropagationOptions, StepResult, TopK, U8Array

V = 3
OPTIONS = PropagationOptions(context=2, pad_context=False, top_k=4)
INFO = EngineInfo("test", "fp32", "0", "for a test")


class FrameEncoder:
    """Embeds a frame as its colours, averaged over cells and of unit length; its maps are zeros."""

    info = INFO

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        frames = inputs["frames"].astype(np.float32) + 1
        n, height, width, _ = frames.shape
        h, w = height // 8, width // 8
        cells = frames[:, : 8 * h, : 8 * w].reshape(n, h, 8, w, 8, 3).mean(axis=(2, 4))
        cells = np.concatenate([cells, np.full_like(cells[..., :1], 40)], axis=-1)
        unit = cells / np.linalg.norm(cells, axis=-1, keepdims=True)
        zeros = np.zeros((n, 2, h, w), dtype=np.float32)
        return {"embedding": unit.astype(np.float32), "res3": zeros, "res2": np.repeat(np.repeat(zeros, 2, 2), 2, 3)}


class MaskEncoder:
    """Its first value is the mask itself, at the centre of each cell; it notes the masks that it was shown."""

    info = INFO

    def __init__(self) -> None:
        self.shown: list[F32Array] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert inputs["frames"].shape[1:3] == inputs["masks"].shape[1:]
        self.shown.append(inputs["masks"].copy())  # the array is the stream's
        values = np.zeros((*inputs["masks"][:, 4::8, 4::8].shape, V), dtype=np.float32)
        values[..., 0] = inputs["masks"][:, 4::8, 4::8]
        return {"values": values}


class Decoder:
    """Believes what was read, sharpened; or in nothing, or in what it is shown."""

    info = INFO

    def __init__(self, believes: str = "readout") -> None:
        self.believes = believes
        self.inputs: list[Mapping[str, NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.inputs.append({name: array.copy() for name, array in inputs.items()})
        logits = 12 * (inputs[self.believes][..., 0] - 0.5)
        return {"logits": np.repeat(np.repeat(logits, 2, axis=1), 2, axis=2).astype(np.float32)}


def model(mask_encoder: MaskEncoder, decoder: Decoder, rounds: int = 2) -> Model:
    manifest = Manifest(
        name="test",
        trained=False,
        summary="A test.",
        encoder=EncoderSpec(channels=4, feature="res3", align_corners=False),
        graphs={"encoder": GraphFile(file="encoder.onnx", sha256="0" * 64, bytes=1, precision="fp32")},
        inference=OPTIONS,
        family="mask-embedding",
        masks=MaskSpec(value_channels=V, context="res3", rounds=rounds),
    )
    return Model(manifest, {"encoder": FrameEncoder(), "mask_encoder": mask_encoder, "decoder": decoder})


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_rounds(rounds: int, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Each round of a frame decodes once (round 0 the read-out alone), and one more value is made for the memory."""
    mask_encoder, decoder = MaskEncoder(), Decoder()
    with model(mask_encoder, decoder).stream(refine=rounds) as stream:
        stream.start(tiny_clip[0][0], tiny_clip[1][0])
        assert (len(mask_encoder.shown), len(decoder.inputs)) == (1, 0)
        stream.step(tiny_clip[0][1])
    assert (len(mask_encoder.shown), len(decoder.inputs)) == (2 + rounds, max(1, rounds))
    same = [np.array_equal(each["readout"], each["values"]) for each in decoder.inputs]
    assert same[0] == (rounds == 0)


def test_refined_masks_are_the_result_and_feed_the_memory(tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Objects are followed, and the memory holds what was decoded: sharper than what was propagated."""
    frames, masks = tiny_clip
    mask_encoder = MaskEncoder()
    with (
        model(mask_encoder, Decoder()).stream() as refined,
        model(mask_encoder, Decoder()).stream(refine="off") as plain,
    ):
        refined.start(frames[0], masks[0])
        plain.start(frames[0], masks[0])
        for frame, mask in zip(frames[1:], masks[1:], strict=True):
            result = refined.step(frame)
            plain.step(frame)
            assert (result.labels == mask).mean() > 0.9
            assert "refine" in result.timings_ms
            assert set(result.timings_ms) <= set(STEP_STAGES)
            soft = refined.soft_masks()
            np.testing.assert_allclose(soft.sum(axis=-1), 1, atol=1e-5)
        assert np.abs(soft - 0.5).mean() > np.abs(plain.soft_masks() - 0.5).mean() - 1e-3
        assert not np.allclose(soft, plain.soft_masks())


def test_refined_streams_are_encoded_together(tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Each gets its own part of the encoder's maps and its own working frame."""
    frames, masks = tiny_clip
    whole, single = model(MaskEncoder(), Decoder()), model(MaskEncoder(), Decoder())
    streams, alone = ([each.stream() for _ in range(3)] for each in (whole, single))
    for t in range(3):
        given = [np.roll(frames[t], 8 * i, axis=1) for i in range(3)]
        marks = [np.roll(masks[t], 8 * i, axis=1) if t == 0 else None for i in range(3)]
        for stream, frame, mask, outcome in zip(alone, given, marks, step_all(streams, given, marks), strict=True):
            assert isinstance(outcome, StepResult)
            np.testing.assert_array_equal(outcome.labels, stream.step(frame, mask).labels)
    for embedding in whole.encode_batch(given):
        assert embedding.maps["res3"].shape == (1, 2, 8, 12)


def test_a_decoder_that_sees_nothing_leaves_background(tiny_clip: tuple[U8Array, U8Array]) -> None:
    class Blind(Decoder):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {"logits": np.full_like(super().run(inputs)["logits"], -50)}

    with model(MaskEncoder(), Blind()).stream() as stream:
        stream.start(tiny_clip[0][0], tiny_clip[1][0])
        result = stream.step(tiny_clip[0][1])
        assert not result.labels.any()
        assert stream.soft_masks()[:, :, 0].min() > 0.99


@pytest.mark.parametrize(("rounds", "parts"), [(0, 1), (2, 1), (2, 2)])
def test_without_feedback_refined_masks_are_shown_alone(
    rounds: int, parts: int, tiny_clip: tuple[U8Array, U8Array]
) -> None:
    """The memory propagates as if nothing were decoded; what was propagated is encoded once, to be remembered."""
    frames, masks = tiny_clip
    mask_encoder, decoder = MaskEncoder(), Decoder()
    whole = model(mask_encoder, decoder)
    manifest = replace(whole.manifest, masks=MaskSpec(value_channels=V, context="res3", feedback=False))
    engines: dict[str, Engine] = {"encoder": FrameEncoder(), "mask_encoder": mask_encoder, "decoder": decoder}
    options = replace(manifest.inference, parts=parts)
    refined = Model(manifest, engines).stream(refine=rounds, options=options)
    plain = whole.stream(refine="off", options=options)
    for stream in (refined, plain):
        stream.start(frames[0], masks[0])
    for frame in frames[1:4]:
        mask_encoder.shown.clear()
        shown, propagated = refined.step(frame), plain.step(frame)
        np.testing.assert_array_equal(refined.soft_masks(), plain.soft_masks())
        assert not np.array_equal(shown.confidence, propagated.confidence)
        assert len(mask_encoder.shown) == max(1, rounds)
        coarse = reference.resize_soft(plain.soft_masks(), *frame.shape[:2])[:, :, 1:].transpose(2, 0, 1)
        np.testing.assert_array_equal(mask_encoder.shown[0], coarse)


def test_a_residual_decoder_without_an_opinion_leaves_what_was_propagated(tiny_clip: tuple[U8Array, U8Array]) -> None:
    """One with an opinion of 6, more than the coarse mask can have, overrules it everywhere."""

    class Constant(Decoder):
        def __init__(self, logit: float) -> None:
            super().__init__()
            self.logit = logit

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {"logits": np.full_like(super().run(inputs)["logits"], self.logit)}

    def labels(decoder: Decoder, refine: Any) -> U8Array:
        whole = model(MaskEncoder(), decoder)
        manifest = replace(whole.manifest, masks=MaskSpec(value_channels=V, context="res3", residual=True))
        engines: dict[str, Engine] = {"encoder": FrameEncoder(), "mask_encoder": MaskEncoder(), "decoder": decoder}
        with Model(manifest, engines).stream(refine=refine) as stream:
            stream.start(tiny_clip[0][0], np.where(tiny_clip[1][0] == 1, 1, 0))
            return stream.step(tiny_clip[0][1]).labels

    plain = labels(Constant(0), "off")
    assert plain.any()
    for rounds in (0, 2):
        assert np.array_equal(labels(Constant(0), rounds), plain)
        assert labels(Constant(6), rounds).all()


def test_the_first_mask_is_shown_as_it_was_drawn(tiny_clip: tuple[U8Array, U8Array]) -> None:
    """The network sees it in full resolution, one plane per object."""
    mask_encoder = MaskEncoder()
    with model(mask_encoder, Decoder()).stream() as stream:
        stream.start(tiny_clip[0][0], tiny_clip[1][0])
    for number in (1, 2):
        assert np.array_equal(mask_encoder.shown[0][number - 1], tiny_clip[1][0] == number)


def test_objects_come_and_go(tiny_clip: tuple[U8Array, U8Array]) -> None:
    """One marked later reads from its own frame; one that is removed becomes background, at once and later."""
    frames, masks = tiny_clip
    with model(MaskEncoder(), Decoder()).stream() as stream:
        stream.start(frames[0], np.where(masks[0] == 1, 1, 0))
        stream.step(frames[1])
        result = stream.step(frames[2], np.where(masks[2] == 2, 2, 0))
        assert result.object_ids == (1, 2)
        for frame, mask in zip(frames[3:5], masks[3:5], strict=True):
            assert (stream.step(frame).labels == mask).mean() > 0.9
        stream.remove(1)
        assert stream.soft_masks().shape[2] == 2
        labels = stream.step(frames[5]).labels
        assert set(np.unique(labels)) <= {0, 2}
        assert ((labels == 2) == (masks[5] == 2)).mean() > 0.9
        with pytest.raises(OptionError, match="refines masks cannot be saved"):
            stream.save()


@pytest.mark.parametrize("refine", [5, -1, "on"])
def test_impossible_rounds_are_refused(refine: Any) -> None:
    with pytest.raises(OptionError, match="expected 0 to 4 rounds"):
        model(MaskEncoder(), Decoder()).stream(refine=refine)


def test_an_encoder_that_aligns_corners_is_not_refined() -> None:
    whole = model(MaskEncoder(), Decoder())
    manifest = replace(whole.manifest, encoder=replace(whole.manifest.encoder, align_corners=True))
    engines: dict[str, Engine] = {"encoder": FrameEncoder(), "mask_encoder": MaskEncoder(), "decoder": Decoder()}
    aligned = Model(manifest, engines)
    aligned.stream(refine="off").close()
    with pytest.raises(OptionError, match="this encoder aligns corners"):
        aligned.stream()


def test_an_embedding_without_maps_is_refused(tiny_clip: tuple[U8Array, U8Array]) -> None:
    whole = model(MaskEncoder(), Decoder())
    embedding = whole.encode(tiny_clip[0][0])
    bare = Embedding(embedding.array, embedding.frame_height, embedding.frame_width)
    with whole.stream() as stream, pytest.raises(InputError, match="without the maps"):
        stream.start(bare, tiny_clip[1][0])


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6))
def test_values_are_read_as_labels_are(seed: int, slots: int, k: int) -> None:
    """`read_values` is `read_out` per object with cells flattened, missing neighbours included."""
    random = np.random.default_rng(seed)
    slot = random.integers(-1, slots, (12, k)).astype(np.int32)
    neighbours = reference.Neighbours(
        np.where(slot < 0, np.nan, random.random((12, k))).astype(np.float32),
        slot,
        np.where(slot < 0, -1, random.integers(0, 12, (12, k))).astype(np.int32),
    )
    values = [random.standard_normal((slots, 3, 4, 5)).astype(np.float32) for _ in range(2)]
    found = reference.read_values(neighbours, [each.reshape(slots, 12, 5) for each in values], 0.05)
    for read, each in zip(found, values, strict=True):
        np.testing.assert_allclose(read, reference.read_out(neighbours, each, 0.05).reshape(12, 5), atol=1e-5)


class Memorable(MaskEncoder):
    """Its values are random, and noted."""

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(0)
        self.values: F32Array = np.empty(0, np.float32)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        shape = super().run(inputs)["values"].shape
        self.values = self._random.standard_normal(shape).astype(np.float32)
        return {"values": self.values}


@pytest.mark.parametrize("context", [2, 0])
def test_values_follow_the_memory(context: int, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """What is read over ten frames is what a list of all values, never forgotten, would give.

    Two objects share a reference, one comes later, one is marked again and one is removed.
    """
    mask_encoder, decoder = Memorable(), Decoder()
    options = replace(OPTIONS, context=context)
    stream = model(mask_encoder, decoder).stream(refine=0, options=options)
    past: dict[tuple[int, int], F32Array] = {}
    marked = {0: [1, 3], 3: [2], 6: [1]}
    reference_of: dict[int, int] = {}
    for frame in range(10):
        mask = np.zeros((64, 96), dtype=np.uint8)
        for object_id in marked.get(frame, ()):
            mask[8:24, 24 * object_id : 24 * object_id + 16] = object_id
        ids = stream.object_ids
        stream.step(tiny_clip[0][frame % 6], mask if frame in marked else None)
        top_k = memory_of(stream).top_k()
        for object_id, found in zip(ids, decoder.inputs[-1]["readout"] if ids else (), strict=True):
            block = sorted({0, *reference_of.values()}).index(reference_of[object_id])
            np.testing.assert_allclose(found.reshape(96, V), read(top_k, block, object_id, past), atol=1e-5)
        reference_of |= dict.fromkeys(marked.get(frame, ()), frame)
        for object_id, values in zip(stream.object_ids, mask_encoder.values, strict=True):
            past[frame, object_id] = values.reshape(96, V)
        if frame == 7:
            stream.remove(2)
            del reference_of[2]
    assert stream.object_ids == (1, 3)


def read(top_k: TopK, block: int, object_id: int, past: Mapping[tuple[int, int], F32Array]) -> F32Array:
    """An object's values f32 [h*w, V], read with one reference's neighbours from all that there ever were."""
    out = np.zeros((96, V), dtype=np.float32)
    similarity = top_k.similarity[block]
    weight = np.exp((similarity - np.nanmax(similarity, axis=1, keepdims=True)) / 0.05)
    weight = np.nan_to_num(weight / np.nansum(weight, axis=1, keepdims=True))
    for query, rank in np.ndindex(96, OPTIONS.top_k):
        if (source := int(top_k.frame[block, query, rank])) >= 0:
            out[query] += weight[query, rank] * past[source, object_id][top_k.cell[block, query, rank]]
    return out


def memory_of(stream: Stream) -> LibraryMemory:
    core = stream._core
    assert isinstance(core, HostStream)
    assert core.memory is not None
    return core.memory
