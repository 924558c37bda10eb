"""Sessions of memories on a GPU: saved and loaded there, and carried to the processor and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.memories import load_session, save_session, take
from vosrt.bundle import EncoderSpec
from vosrt.core.memory import Memory
from vosrt.cuda.memory import CudaMemory
from vosrt.encoder import FrameEncoder
from vosrt.engines.fake import FakeEngine
from vosrt.errors import OptionError, SessionError
from vosrt.stream import Stream
from vosrt.types import F32Array, PropagationOptions, U8Array

Video = Callable[[int], list[F32Array]]
Mark = Callable[..., U8Array]
H, W, K = 9, 14, 40
OPTIONS = PropagationOptions(context=3, radius=4)
ISA_AT = 144  # of the instruction-set path in a session, see session.cpp
MODEL = bytes(range(32))


def on_processor(native: Any, options: PropagationOptions) -> Memory:
    """The native core in bf16 on any processor."""
    memory: Memory = native.Memory(H, W, K, **vars(options), isa="amx-emulated")
    return memory


def play(memory: Memory, frames: list[F32Array], marks: dict[int, U8Array]) -> None:
    for t, embedding in enumerate(frames):
        take(memory, embedding, marks.get(t))


@pytest.mark.parametrize(
    ("count", "options"),
    [(7, OPTIONS), (2, OPTIONS), (3, PropagationOptions(context=0, radius=4))],
    ids=["a full context", "a beginning", "no context"],
)
def test_a_session_continues_bit_for_bit(
    cuda_core: str, count: int, options: PropagationOptions, video: Video, mark: Mark
) -> None:
    """It has two times of appearance and more objects than fitted at first, one of them removed."""
    memory, frames = CudaMemory(H, W, K, options), video(count + 4)
    play(memory, frames[:count], {0: mark(1, 2, 3, 4, 5), count - 1: mark(2)})
    memory.remove(4)
    annotation = mark(2)
    session = save_session(memory, 8 * H, 8 * W, annotation, MODEL)
    assert save_session(memory, 8 * H, 8 * W, annotation, MODEL) == session
    loaded = load_session(session, device="cuda")
    assert (loaded.frame_height, loaded.frame_width, loaded.model) == (8 * H, 8 * W, MODEL)
    np.testing.assert_array_equal(loaded.annotation, annotation)
    assert save_session(loaded.memory, 8 * H, 8 * W, annotation, MODEL) == session
    again = loaded.memory
    assert again.object_ids == memory.object_ids == (1, 2, 3, 5)
    kept = ("objects", "references", "frames", "shape")
    assert [again.info[name] for name in kept] == [memory.info[name] for name in kept]
    assert again.top_k().cell.shape[0] == 0
    for t, embedding in enumerate(frames[count:]):
        for each in (memory, again):
            take(each, embedding, mark(3) if t == 1 else None)
        np.testing.assert_array_equal(again.soft_masks(), memory.soft_masks())
        for ours, theirs in zip(again.labels(50, 70), memory.labels(50, 70), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("to", ["the GPU", "the processor"])
def test_a_session_moves_between_processor_and_gpu(
    cuda_core: str, native: Any, to: str, video: Video, mark: Mark
) -> None:
    """The saved part is equal bit for bit; later frames differ by less than 1e-4."""
    frames, marks = video(9), {0: mark(1, 2), 3: mark(7)}
    there, here = CudaMemory(H, W, K, OPTIONS), on_processor(native, OPTIONS)
    source, other = (here, there) if to == "the GPU" else (there, here)
    play(source, frames[:6], marks)
    play(other, frames[:6], marks)
    session = save_session(source, 8 * H, 8 * W, None, MODEL)
    if to == "the GPU":
        moved = load_session(session, device="cuda").memory
    else:
        moved = load_session(session, isa="amx-emulated").memory
    again = save_session(moved, 8 * H, 8 * W, None, MODEL)
    assert (session[:24], len(session)) == (again[:24], len(again))
    assert session[56:ISA_AT] == again[56:ISA_AT]
    assert {session[ISA_AT], again[ISA_AT]} == {6, 7}
    assert session[ISA_AT + 4 :] == again[ISA_AT + 4 :]
    changed = []
    for embedding in frames[6:]:
        for each in (source, moved, other):
            each.push(embedding)
        np.testing.assert_allclose(moved.soft_masks(), source.soft_masks(), atol=1e-4)
        changed.append(moved.labels(8 * H, 8 * W)[0] != source.labels(8 * H, 8 * W)[0])
    assert np.mean(changed) < 1e-3


def test_sessions_are_not_trusted(cuda_emulated: Path, native: Any, video: Video, mark: Mark) -> None:
    """One that is cut, altered, of fp32 keys or too large for the GPU is refused in one line."""
    memory = CudaMemory(H, W, K, OPTIONS)
    with pytest.raises(OptionError, match="saving needs a frame"):
        save_session(memory, 8, 8, None, MODEL)
    play(memory, video(2), {0: mark(1)})
    session = save_session(memory, 8, 8, None, MODEL)
    for damaged in (b"", session[:200], session[:-1], session[:300] + b"\1" + session[301:]):
        with pytest.raises(SessionError, match="the session cannot be used"):
            load_session(damaged, device="cuda")
    fp32 = native.Memory(H, W, K, precision="fp32")
    fp32.push(video(1)[0])
    with pytest.raises(OptionError, match="fp32"):
        load_session(save_session(fp32, 8, 8, None, MODEL), device="cuda")
    with pytest.raises(OptionError, match="CUDA device 3 was asked for"):
        load_session(session, device="cuda:3")


def test_a_stream_is_saved_and_goes_on(cuda_core: str, resumes: Callable[[Stream, Stream], None]) -> None:
    """Index, labels, and the annotation of the newest frame come back."""
    spec = EncoderSpec(channels=K, feature="key")
    encoder = FrameEncoder(spec, FakeEngine(spec))
    resumes(Stream(encoder, OPTIONS, device="cuda"), Stream(encoder, OPTIONS, device="cuda"))


def test_a_short_session_takes_no_room_for_a_long_context(cuda_core: str, video: Video, mark: Mark) -> None:
    options, frames = PropagationOptions(context=200, radius=4), video(5)
    memory = CudaMemory(H, W, K, options)
    play(memory, frames[:2], {0: mark(1)})
    loaded = load_session(save_session(memory, 0, 0, None, MODEL), device="cuda").memory
    assert loaded.info["bytes"] < memory.info["bytes"] / 4
    for embedding in frames[2:]:
        memory.push(embedding)
        loaded.push(embedding)
    assert loaded.info["bytes"] == memory.info["bytes"]
    np.testing.assert_array_equal(loaded.soft_masks(), memory.soft_masks())
