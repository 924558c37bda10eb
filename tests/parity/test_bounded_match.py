"""The bounded search of the native core against the search that computes every product: equal to the last bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.memories import load_session, save_session
from vosrt.core.memory import Memory
from vosrt.errors import OptionError
from vosrt.types import F32Array, U8Array


def searching(native: Any, how: str, *arguments: Any, **options: Any) -> Memory:
    """A memory whose search is ``full``, ``bounded`` or ``auto``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOSRT_MATCH", how)
        memory: Memory = native.Memory(*arguments, **options)
        return memory


def smooth(random: np.random.Generator, shape: tuple[int, int, int]) -> F32Array:
    """Features of a few directions with noise, unit length: most bounds are tight."""
    height, width, channels = shape
    mixed = random.standard_normal((height * width, 6)) @ random.standard_normal((6, channels))
    mixed += 2 + 0.2 * random.standard_normal(mixed.shape)
    unit: F32Array = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32).reshape(shape)
    return unit


def features(kind: str, random: np.random.Generator, shape: tuple[int, int, int]) -> F32Array:
    """Features of one kind, f32 [h, w, K]."""
    if kind == "noise":
        noise = random.standard_normal(shape).astype(np.float32)
        noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
        return noise
    if kind == "equal":
        return np.full(shape, shape[2] ** -0.5, np.float32)
    if kind == "one-hot":
        return np.eye(shape[2], dtype=np.float32)[random.integers(0, 5, shape[:2])]
    if kind == "ties":
        return random.integers(-1, 2, (4, shape[2])).astype(np.float32)[random.integers(0, 4, shape[:2])]
    if kind == "zero":
        return np.zeros(shape, np.float32)
    out = smooth(random, shape)
    if kind == "scaled":  # sums from denormal to overflowing
        out *= (10.0 ** random.integers(-30, 30, (*shape[:2], 1))).astype(np.float32)
    if kind == "huge":
        out *= np.float32(3e18)
    if kind == "tiny":
        out *= np.float32(1e-22)
    if kind == "not finite":
        bad = random.random(shape) < 0.2 / shape[2]
        out[bad] = random.choice(np.array([np.nan, np.inf, -np.inf, 3e38], np.float32), int(bad.sum()))
    return out


KINDS = ("smooth", "noise", "equal", "one-hot", "ties", "zero", "scaled", "huge", "tiny", "not finite")


def take(memories: Iterable[Memory], embedding: F32Array, marks: U8Array | None) -> None:
    """Have all memories take a frame, annotated unless marks is None."""
    for memory in memories:
        memory.push(embedding)
        if marks is not None:
            memory.annotate(marks)


def assert_equal(ours: Memory, theirs: Memory) -> None:
    """Neighbours, similarities and soft masks have the same bits; any NaN is like another."""
    for name, a, b in zip(
        ("similarity", "frame", "cell"), vars(ours.top_k()).values(), vars(theirs.top_k()).values(), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=name)
    np.testing.assert_array_equal(ours.soft_masks(), theirs.soft_masks())


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    height=st.integers(1, 11),
    width=st.integers(1, 17),
    channels=st.sampled_from((64, 65, 96, 150, 256)),
    top_k=st.sampled_from((1, 3, 10, 64)),
    radius=st.sampled_from((1.0, 3.5, 12.0)),
    context=st.integers(1, 4),
    pad_context=st.booleans(),
    calibration=st.sampled_from((0, 2)),
    later=st.sets(st.integers(1, 4), min_size=1),
    seed=st.integers(0, 2**20),
)
@settings(derandomize=True, max_examples=60)
def test_bounds_change_no_bit(
    native: Any,
    isa: str,
    kinds: list[str],
    height: int,
    width: int,
    channels: int,
    later: set[int],
    seed: int,
    **options: Any,
) -> None:
    """Features of several kinds, up to five appearance times and a session between give the same lists and masks."""
    random = np.random.default_rng(seed)
    ours, theirs = (
        searching(native, how, height, width, channels, isa=isa, threads=2, **options) for how in ("bounded", "full")
    )
    still = features(kinds[0], random, (height, width, channels))
    for t in range(7):
        fresh = features(kinds[t % len(kinds)], random, still.shape)
        embedding = np.where(random.random((height, width, 1)) < 0.6, still, fresh)  # much of it comes again, exactly
        take((ours, theirs), embedding, np.full((height, width), 1 + t, np.uint8) if t in {0, *later} else None)
        if t > 0:
            assert_equal(ours, theirs)
        if t == 4:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("VOSRT_MATCH", "bounded")
                session = save_session(ours, height, width)
                ours = load_session(session, isa=isa, threads=2)[0]


def test_longer_heads_change_no_bit(native: Any, isa: str) -> None:
    """Features that short heads bound badly get longer heads after some frames, with the same neighbours."""
    random = np.random.default_rng(0)
    ours, theirs = (
        searching(native, how, 9, 17, 512, isa=isa, context=3, top_k=4, radius=6.0) for how in ("bounded", "full")
    )
    scene = 0.7 * features("noise", random, (9, 17, 512)) + smooth(random, (9, 17, 512))
    heads = set()
    for t in range(24):
        embedding = scene + np.float32(0.3) * features("noise", random, scene.shape)
        take((ours, theirs), embedding, np.eye(9, 17, dtype=np.uint8) if t == 0 else None)
        heads.add(ours.info["head"])
        if t > 0:
            assert_equal(ours, theirs)
    assert max(heads) > min(heads)


def test_most_products_are_spared_where_features_allow(native: Any, isa: str) -> None:
    """Features of few directions need under a third of the products; a full search spares none."""
    random = np.random.default_rng(0)
    ours, theirs = (searching(native, how, 24, 40, 256, isa=isa, context=3, top_k=4) for how in ("auto", "full"))
    scene = smooth(random, (24, 40, 256))
    for t in range(6):
        embedding = scene + np.float32(0.01) * smooth(random, scene.shape)
        take((ours, theirs), embedding, np.eye(24, 40, dtype=np.uint8) if t == 0 else None)
    assert_equal(ours, theirs)
    assert ours.info["survivors"] < 1 / 3
    assert theirs.info["survivors"] == 1


def test_vosrt_match_refuses_what_it_does_not_know(native: Any) -> None:
    """An unknown word is an error that lists the words."""
    with pytest.raises(OptionError, match="VOSRT_MATCH is 'fast'; expected auto, full or bounded"):
        searching(native, "fast", 3, 4, 5)
