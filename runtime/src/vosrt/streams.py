"""Several videos at once: one frame of each, encoded together where one model is to encode them at one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vosrt.encoder import Embedding, FrameArray
from vosrt.errors import InputError, VosrtError
from vosrt.stream import MaskArray, Stream
from vosrt.types import StepResult, U8Array


def step_all(
    streams: Sequence[Stream],
    frames: Sequence[FrameArray | Embedding],
    masks: Sequence[MaskArray | None] | None = None,
) -> list[StepResult | VosrtError]:
    """Take the next frame of several videos, one each.

    Does what ``step`` of each stream does, but frames that one model encodes at one working size go through its
    engine together. A stream that fails leaves the others alone.

    Args:
        streams: of one model or of several, each once.
        frames: per stream u8 [H, W, 3] BGR, or its embedding.
        masks: per stream [H, W] or None, as for ``step``; None marks nothing anywhere.

    Returns:
        Per stream its result, or the error that ``step`` would have raised.

    Raises:
        InputError: not as many frames or masks as streams, or a stream is given twice.
    """
    marked: Sequence[MaskArray | None] = [None] * len(streams) if masks is None else masks
    if not len(streams) == len(frames) == len(marked):
        raise InputError(f"{len(streams)} streams, {len(frames)} frames and {len(marked)} masks; expected one each")
    if len({id(stream) for stream in streams}) != len(streams):
        raise InputError("a stream is given twice; it takes one frame after the other")
    turns = [_Turn(*each) for each in zip(streams, frames, marked, strict=True)]
    for turn in turns:
        turn.go_on(turn.check)
    _encode(turns)
    for turn in turns:
        turn.go_on(turn.take)
    for turn in turns:  # a GPU works on while the first are waited for
        turn.go_on(turn.finish)
    return [turn.outcome for turn in turns if turn.outcome is not None]


@dataclass
class _Turn:
    """One stream's step, stage by stage; it ends with a result or an error."""

    stream: Stream
    frame: FrameArray | Embedding
    mask: MaskArray | None
    marks: U8Array | None = None
    embedding: Embedding | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    outcome: StepResult | VosrtError | None = None

    def go_on(self, stage: Callable[[], None]) -> None:
        """Do the next stage unless an earlier one failed."""
        if self.outcome is None:
            try:
                stage()
            except VosrtError as error:
                self.outcome = error

    def check(self) -> None:
        self.marks = self.stream.check(self.frame, self.mask)
        if isinstance(self.frame, Embedding):
            self.embedding = self.frame

    def take(self) -> None:
        assert self.embedding is not None
        self.timings_ms = self.stream.take(self.embedding, self.marks)

    def finish(self) -> None:
        self.outcome = self.stream.result(self.timings_ms)


def _encode(turns: list[_Turn]) -> None:
    """Encode the frames that are still to be encoded, each model's together."""
    waiting = [turn for turn in turns if turn.outcome is None and turn.embedding is None]
    for encoder in {id(turn.stream.encoder): turn.stream.encoder for turn in waiting}.values():
        own = [turn for turn in waiting if turn.stream.encoder is encoder]
        frames = [turn.frame for turn in own if not isinstance(turn.frame, Embedding)]
        encoded = encoder.encode_each(frames, [turn.stream.size for turn in own])
        for turn, result in zip(own, encoded, strict=True):
            if isinstance(result, Embedding):
                turn.embedding = result
            else:
                turn.outcome = result
