"""Steps for several videos at once: frames that one model encodes at one size go through its engine together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
        InputError: not as many frames or masks as streams, or one of the streams is none or is given twice.
    """
    marked: Sequence[MaskArray | None] = [None] * len(streams) if masks is None else masks
    if not len(streams) == len(frames) == len(marked):
        raise InputError(f"{len(streams)} streams, {len(frames)} frames and {len(marked)} masks; expected one each")
    if len({id(stream) for stream in streams}) != len(streams):
        raise InputError("a stream is given twice; it takes one frame after the other")
    if strangers := [stream for stream in streams if not isinstance(stream, Stream)]:
        raise InputError(f"one of the streams is {type(strangers[0]).__name__}; expected what model.stream() gives")
    steps = [_Step(*each) for each in zip(streams, frames, marked, strict=True)]
    with ExitStack() as held:
        for stream in sorted(streams, key=id):  # in one order, so that two calls do not wait for each other
            held.enter_context(stream.lock.hold("step_all"))
        for step in steps:
            step.go_on(step.check)
        _encode(steps)
        for step in steps:
            step.go_on(step.take)
        for step in steps:  # a GPU works on while the first are waited for
            step.go_on(step.finish)
    return [step.outcome for step in steps if step.outcome is not None]


@dataclass
class _Step:
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
        self.outcome = self.stream.collect(self.timings_ms)


def _encode(steps: list[_Step]) -> None:
    """Encode the frames that are still to be encoded, each model's together."""
    waiting = [step for step in steps if step.outcome is None and step.embedding is None]
    for encoder in {id(step.stream.encoder): step.stream.encoder for step in waiting}.values():
        own = [step for step in waiting if step.stream.encoder is encoder]
        frames = [step.frame for step in own if not isinstance(step.frame, Embedding)]
        encoded = encoder.encode_each(frames, [step.stream.size for step in own])
        for step, result in zip(own, encoded, strict=True):
            if isinstance(result, Embedding):
                step.embedding = result
            else:
                step.outcome = result
