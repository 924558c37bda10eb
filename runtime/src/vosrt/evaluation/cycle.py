"""Forward-backward consistency: how well a model follows an object, judged by the annotation of one frame alone.

An object o is marked as m_o in frame a_o. The model follows it forward, which gives labels p_t for every frame t. At K
turning frames t, evenly spread behind the first marked frame, a new stream begins with p_t as its mask, knows nothing
else, and follows the frames t - 1, t - 2, … back to a_o, where it says b_{t,o}. With J and F as in `vosrt.metrics`,

    C = mean over t of the mean over objects with a_o < t of (J(b_{t,o}, m_o) + F(b_{t,o}, m_o)) / 2.

An object that is lost at t counts as 0. C is 1 where every way back ends in the first mask. It is a necessary
condition of good masks, not a sufficient one: a mask that never moves comes back as well, so look at the masks too.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np

from vosrt.encoder import Embedding
from vosrt.errors import InputError, MaskError, OptionError, WorkError
from vosrt.metrics import BoolArray, boundary_accuracy, region_similarity
from vosrt.model import Model
from vosrt.stream import Stream
from vosrt.types import PropagationOptions, U8Array, WorkingSize
from vosrt.video.base import FrameSource

DEFAULT_TURNS = 4


@dataclass(frozen=True)
class Turn:
    """One way back.

    Attributes:
        frame: where it begins.
        objects: per object marked before, the mean of J and F where it was marked, 0 to 1.
    """

    frame: int
    objects: dict[int, float]

    @property
    def score(self) -> float:
        """Mean over the objects."""
        return math.fsum(self.objects.values()) / len(self.objects)


@dataclass(frozen=True)
class CycleScore:
    """Scores of objects that are followed forward and back to their marks.

    Attributes:
        turns: by frame, ascending.
    """

    turns: tuple[Turn, ...]

    @property
    def score(self) -> float:
        """C, 0 to 1."""
        return math.fsum(turn.score for turn in self.turns) / len(self.turns)


def turning_frames(first: int, last: int, turns: int) -> list[int]:
    """Frames at which ways back begin: ``turns`` of them, evenly spread behind ``first``, ``last`` included.

    Raises:
        OptionError: ``turns`` is not positive.
        InputError: the clip has one frame only.
    """
    if turns < 1:
        raise OptionError(f"--turns is {turns}; expected 1 or more")
    if last <= first:
        raise InputError(
            f"nothing follows frame {first}, where the first object is marked; expected two frames or more"
        )
    return sorted({first + math.ceil((last - first) * k / turns) for k in range(1, turns + 1)})


def cycle_consistency(
    model: Model,
    source: FrameSource,
    annotations: Mapping[int, U8Array],
    *,
    size: WorkingSize = None,
    options: PropagationOptions | None = None,
    turns: int = DEFAULT_TURNS,
    on_forward: Callable[[int, U8Array], None] = lambda index, labels: None,
    on_step: Callable[[], None] = lambda: None,
) -> CycleScore:
    """Follow objects forward and back.

    Frames wait in a temporary file, so memory does not grow with the clip; the file takes 4 bytes per pixel and frame.

    Args:
        source: opened; it is read once and closed.
        annotations: per frame index, u8 [H, W] with the ids marked on that frame.
        size: working size, as for `Model.stream`.
        options: how labels are propagated; None is what the bundle recommends.
        turns: number of ways back.
        on_forward: called with each frame's index and labels u8 [H, W] on the way forward.
        on_step: called after each frame, on the way forward and on the way back.

    Raises:
        InputError: nothing follows the first marked frame.
        OptionError: ``turns`` is not positive.
        MaskError: a mask does not fit.
        BrokenVideoError: the source broke half-way.
        EngineError: the encoder failed.
    """
    with tempfile.TemporaryFile() as file, model.stream(size=size, options=options) as stream:
        spool = _Spool(file, source.first.image.shape)
        try:
            first = _go_forward(stream, source, annotations, spool, on_forward, on_step)
        finally:
            source.close()
        wanted = turning_frames(first, first + spool.count - 1, turns)
        given = _given(annotations, wanted[-1])
        ways = [_WayBack(turn, given, model.stream(size=size, options=options)) for turn in wanted]
        for index in range(wanted[-1], first - 1, -1):
            image, labels = spool.read(index - first)
            embedding = model.encode(image, size)
            for way in ways:
                way.step(index, embedding, labels)
            on_step()
        for way in ways:
            way.close()
    return CycleScore(tuple(Turn(way.turn, way.scores) for way in ways))


def _go_forward(
    stream: Stream,
    source: FrameSource,
    annotations: Mapping[int, U8Array],
    spool: _Spool,
    on_forward: Callable[[int, U8Array], None],
    on_step: Callable[[], None],
) -> int:
    """Follow the objects, keep frames and labels from the first marked frame on, and return its index."""
    first = min(annotations)
    for frame in source:
        if frame.index >= first:
            labels = stream.step(frame.image, annotations.get(frame.index)).labels
            spool.append(frame.image, labels)
            on_forward(frame.index, labels)
        on_step()
    return first


def _given(annotations: Mapping[int, U8Array], last: int) -> dict[int, tuple[int, BoolArray]]:
    """Return per object the frame of its first mark and its mask [H, W] on that frame."""
    given: dict[int, tuple[int, BoolArray]] = {}
    for index, mask in sorted(annotations.items()):
        for object_id in (int(value) for value in np.unique(mask) if value):
            if index < last:
                given.setdefault(object_id, (index, mask == object_id))
    return given


class _WayBack:
    """Follows what was said of one frame back to where the objects were marked, and compares."""

    def __init__(self, turn: int, given: Mapping[int, tuple[int, BoolArray]], stream: Stream) -> None:
        self.turn = turn
        self._given = {object_id: entry for object_id, entry in given.items() if entry[0] < turn}
        self.scores = dict.fromkeys(self._given, 0.0)
        self._stream = stream
        self._lost = False

    def step(self, index: int, embedding: Embedding, labels: U8Array) -> None:
        """Take frame ``index``, which had ``labels`` u8 [H, W] on the way forward; later ones do not concern it."""
        if index > self.turn or self._lost:
            return
        if index == self.turn:
            try:
                self._stream.start(embedding, np.where(np.isin(labels, list(self._given)), labels, 0))
            except MaskError:  # nothing is left of any object, or too little to represent
                self._lost = True
            return
        found = self._stream.step(embedding).labels
        for object_id, (marked_at, mask) in self._given.items():
            if marked_at == index:
                back = found == object_id
                self.scores[object_id] = (region_similarity(back, mask) + boundary_accuracy(back, mask)) / 2

    def close(self) -> None:
        """Free the stream."""
        self._stream.close()


class _Spool:
    """Frames u8 [H, W, 3] and their labels u8 [H, W], in a file."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        self._file = file
        self._shape = shape
        self._pixels = shape[0] * shape[1]
        self.count = 0

    def append(self, image: U8Array, labels: U8Array) -> None:
        try:
            self._file.write(image.tobytes())
            self._file.write(labels.tobytes())
        except OSError as error:
            raise WorkError(
                f"the temporary file of the frames cannot be written ({error.strerror}); "
                "free space, set TMPDIR, or take fewer --frames"
            ) from error
        self.count += 1

    def read(self, position: int) -> tuple[U8Array, U8Array]:
        self._file.seek(position * 4 * self._pixels)
        image = np.frombuffer(self._file.read(3 * self._pixels), np.uint8).reshape(self._shape)
        labels = np.frombuffer(self._file.read(self._pixels), np.uint8).reshape(self._shape[:2])
        return image, labels
