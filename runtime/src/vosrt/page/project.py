"""What a person has marked and what was found, with undo: values only, no model and no network."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from vosrt.errors import InputError
from vosrt.prompt.points import BoolArray, Box, Point
from vosrt.types import MAX_OBJECT_ID, U8Array

_UNDO = 200  # steps that can be undone
# Told apart from one another, on dark and on light pictures.
_COLOURS = (
    "#f0614e",
    "#2f9e6e",
    "#3f7fe8",
    "#e0a11b",
    "#9b5de5",
    "#12a5b8",
    "#e75aa0",
    "#7a8c1f",
    "#b5651d",
    "#5b6ee1",
)


@dataclass(frozen=True)
class TrackedObject:
    """An object of the clip.

    Attributes:
        object_id: 1 to 255.
        colour: ``#rrggbb``.
    """

    object_id: int
    name: str
    colour: str


@dataclass(frozen=True)
class Found:
    """The labels of one frame.

    Attributes:
        png: u8 [H, W] of object ids as PNG, so that a long clip takes little memory.
        areas: pixels of each object that is followed.
        confidence: mean over its pixels, 0 to 1.
        marked: a person marked or accepted this frame.
    """

    png: bytes
    areas: Mapping[int, int]
    confidence: Mapping[int, float]
    marked: bool = False

    @property
    def labels(self) -> U8Array:
        """u8 [H, W]."""
        return np.asarray(cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)

    @staticmethod
    def of(labels: U8Array, confidence: Mapping[int, float], *, marked: bool = False) -> Found:
        """Pack labels u8 [H, W] of the objects in ``confidence``."""
        png = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        counts = np.bincount(labels.reshape(-1), minlength=MAX_OBJECT_ID + 1)
        return Found(png, {each: int(counts[each]) for each in confidence}, dict(confidence), marked)


@dataclass(frozen=True)
class Clicks:
    """What was clicked for one object in one frame since its mask was last given otherwise.

    Attributes:
        base: PNG of the object's mask before, 0 and 255; None for nothing.
        points: in order.
    """

    base: bytes | None = None
    points: tuple[Point, ...] = ()
    box: Box | None = None

    @property
    def mask(self) -> BoolArray | None:
        """The mask before, bool [H, W]."""
        if self.base is None:
            return None
        return np.asarray(cv2.imdecode(np.frombuffer(self.base, np.uint8), cv2.IMREAD_GRAYSCALE)) > 0


@dataclass(frozen=True)
class State:
    """Everything that undo goes back to.

    Attributes:
        objects: by id.
        found: by position of the frame.
        clicks: by position and object id.
    """

    objects: Mapping[int, TrackedObject] = field(default_factory=dict)
    found: Mapping[int, Found] = field(default_factory=dict)
    clicks: Mapping[tuple[int, int], Clicks] = field(default_factory=dict)


class Project:
    """The state with its history.

    Attributes:
        state: at the moment; never changed in place.
        changes: positions of frames whose labels changed, in order; -1 stands for all of them.
    """

    def __init__(self) -> None:
        self.state = State()
        self.changes: list[int] = []
        self._undo: deque[State] = deque(maxlen=_UNDO)
        self._redo: list[State] = []

    @property
    def can(self) -> dict[str, bool]:
        """Whether a step can be undone and redone."""
        return {"undo": bool(self._undo), "redo": bool(self._redo)}

    def remember(self) -> None:
        """Begin a step that `undo` takes back."""
        self._undo.append(self.state)
        self._redo.clear()

    def undo(self) -> None:
        """Take the newest step back."""
        self._swap(self._undo, self._redo)

    def redo(self) -> None:
        """Do the step again that was taken back last."""
        self._swap(self._redo, self._undo)

    def _swap(self, source: Any, target: Any) -> None:
        if source:
            target.append(self.state)
            self.state = source.pop()
            self.changes.append(-1)

    def add(self) -> TrackedObject:
        """Add an object with a free number.

        Raises:
            InputError: all numbers are taken.
        """
        free = next((each for each in range(1, MAX_OBJECT_ID + 1) if each not in self.state.objects), None)
        if free is None:
            raise InputError(f"there are {MAX_OBJECT_ID} objects already, which is the most that can be followed")
        self.remember()
        new = TrackedObject(free, f"Object {free}", _COLOURS[(free - 1) % len(_COLOURS)])
        self.state = replace(self.state, objects={**self.state.objects, free: new})
        return new

    def change(self, object_id: int, *, name: str | None, colour: str | None) -> None:
        """Rename or recolour an object.

        Raises:
            InputError: there is no such object.
        """
        known = self.get(object_id)
        self.remember()
        new = replace(known, name=name or known.name, colour=colour or known.colour)
        self.state = replace(self.state, objects={**self.state.objects, object_id: new})

    def remove(self, object_id: int) -> None:
        """Forget an object and its labels in all frames.

        Raises:
            InputError: there is no such object.
        """
        self.get(object_id)
        self.remember()
        found = {}
        for position, each in self.state.found.items():
            if object_id in each.areas:
                labels = each.labels
                labels[labels == object_id] = 0
                rest = {key: value for key, value in each.confidence.items() if key != object_id}
                if not rest:
                    continue
                each = Found.of(labels, rest, marked=each.marked)
            found[position] = each
        clicks = {key: value for key, value in self.state.clicks.items() if key[1] != object_id}
        objects = {key: value for key, value in self.state.objects.items() if key != object_id}
        self.state = State(objects, found, clicks)
        self.changes.append(-1)

    def get(self, object_id: int) -> TrackedObject:
        """An object by its number.

        Raises:
            InputError: there is no such object.
        """
        known = self.state.objects.get(object_id)
        if known is None:
            raise InputError(f"object {object_id} is not there; expected one of {sorted(self.state.objects)}")
        return known

    def mask(self, position: int, object_id: int) -> BoolArray | None:
        """Where an object is in a frame, bool [H, W]; None if nothing is known."""
        found = self.state.found.get(position)
        return found.labels == object_id if found is not None and found.areas.get(object_id) else None

    def mark(self, position: int, object_id: int, mask: BoolArray, clicks: Clicks | None) -> None:
        """Say where an object is in a frame.

        Args:
            mask: bool [H, W].
            clicks: what it came from; None if it was drawn.
        """
        before = self.state.found.get(position)
        labels = np.zeros(mask.shape, np.uint8) if before is None else before.labels
        labels[labels == object_id] = 0
        labels[mask] = object_id
        confidence = {**({} if before is None else before.confidence), object_id: 1.0}
        own = {key: value for key, value in self.state.clicks.items() if key != (position, object_id)}
        if clicks is not None:
            own[position, object_id] = clicks
        self.state = replace(self.state, clicks=own)
        self.put(position, Found.of(labels, confidence, marked=True))

    def put(self, position: int, found: Found) -> None:
        """Set the labels of a frame."""
        self.state = replace(self.state, found={**self.state.found, position: found})
        self.changes.append(position)

    def forget(self, oldest: int) -> None:
        """Drop what was found in frames before a position: they are kept no longer."""
        gone = [position for position in self.state.found if position < oldest]
        if gone:
            found = {position: each for position, each in self.state.found.items() if position >= oldest}
            clicks = {key: value for key, value in self.state.clicks.items() if key[0] >= oldest}
            self.state = replace(self.state, found=found, clicks=clicks)
            self.changes += gone

    def accept(self, position: int, *, marked: bool = True) -> None:
        """Make the labels of a frame a reference as if they had been marked, or no longer one.

        Raises:
            InputError: nothing was found there.
        """
        found = self.state.found.get(position)
        if found is None:
            raise InputError(f"frame {position} has no mask yet; mark an object or follow it there first")
        self.remember()
        if not marked:
            clicks = {key: value for key, value in self.state.clicks.items() if key[0] != position}
            self.state = replace(self.state, clicks=clicks)
        self.put(position, replace(found, marked=marked))

    def rows(self, position: int) -> list[Any]:
        """A frame for the timeline: marked, then id, area and confidence of each object."""
        found = self.state.found.get(position)
        if found is None:
            return []
        objects = [[each, area, round(found.confidence.get(each, 0.0), 3)] for each, area in found.areas.items()]
        return [int(found.marked), objects]
