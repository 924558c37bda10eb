"""Looking into an ONNX file before any engine does: what it takes and gives, and nothing in it that reaches outside.

A matching hash says that a file is the one its maker wrote, not that the maker meant well. Engines follow what a graph
tells them: they open the files that external data and compiled contexts name, and run operators that plugins bring.
So graphs of a bundle are plain: standard operators, weights inside the file, no functions, no control flow.

The reader knows as much of protobuf as that takes. It is bounded by the file: it visits every field at most once, and
copies nothing but names.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vosrt.errors import BundleError

MAX_BYTES = (1 << 31) - 1  # what protobuf can hold
UINT8 = 2  # onnx.TensorProto.UINT8
FLOAT = 1  # onnx.TensorProto.FLOAT

_MAX_FIELDS = 1 << 20  # a network of 1000 nodes has some 20 000
_MAX_NAME = 1000
_STANDARD_DOMAINS = (b"", b"ai.onnx")
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL

# Field numbers of onnx.proto: where a message holds further ones, and what each of those is.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor"},
}
_REFUSED: Mapping[tuple[str, int], str] = {
    ("model", 20): "training information",
    ("model", 25): "functions of its own",
    ("graph", 15): "sparse weights",
    ("attribute", 6): "control flow (a graph inside a node)",
    ("attribute", 11): "control flow (graphs inside a node)",
    ("attribute", 22): "sparse weights",
    ("attribute", 23): "sparse weights",
    ("tensor", 13): "weights outside the file (external data)",
}
_NODE_DOMAIN, _TENSOR_DIMS, _TENSOR_LOCATION = ("node", 7), ("tensor", 1), ("tensor", 14)


@dataclass(frozen=True)
class TensorType:
    """An input or output of a graph.

    Attributes:
        element: kind of the elements, a number of ``onnx.TensorProto.DataType``.
        shape: per axis its size, or the name of a dynamic one.
    """

    element: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInterface:
    """What a graph takes and gives.

    Attributes:
        inputs: by name.
        outputs: by name.
    """

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]


def read_interface(path: Path) -> GraphInterface:
    """Check that an ONNX file is plain and self-contained, and say what it takes and gives.

    Raises:
        BundleError: it is no ONNX file, or it holds something that graphs of a bundle may not hold.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not 0 < path.stat().st_size <= MAX_BYTES:
            raise BundleError(f"{path} has {path.stat().st_size} bytes; a graph has 1 to {MAX_BYTES}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).read()
            except _UnsafeError as error:
                raise BundleError(f"{path} is refused: {error}; take the bundle from its maker again") from None
            except _MalformedError as error:
                raise BundleError(f"{path} is not a whole ONNX graph ({error}); export the bundle again") from None


class _MalformedError(Exception):
    """The bytes are not what they claim to be."""


class _UnsafeError(Exception):
    """The graph is well-formed, and not one that is run."""


class _Field(NamedTuple):
    """One field of a message: its number, and its value or the part of the file that it takes up."""

    number: int
    value: int | None
    start: int
    end: int


@dataclass
class _Reader:
    """Walks one file. Repeated parts of a message count as one message, as protobuf has it."""

    data: mmap.mmap
    inputs: dict[str, TensorType] = field(default_factory=dict)
    outputs: dict[str, TensorType] = field(default_factory=dict)
    budget: int = _MAX_FIELDS

    def read(self) -> GraphInterface:
        self._visit("model", 0, len(self.data))
        if not self.outputs:
            raise _MalformedError("it has no output")
        return GraphInterface(self.inputs, self.outputs)

    def _visit(self, kind: str, start: int, end: int) -> None:
        if kind in ("input", "output"):
            name, declared = self._declaration(start, end)
            (self.inputs if kind == "input" else self.outputs)[name] = declared
            return
        elements = 1
        for each in self._fields(start, end):
            place = (kind, each.number)
            if refused := _REFUSED.get(place):
                raise _UnsafeError(f"it holds {refused}")
            if place == _TENSOR_LOCATION and each.value == _EXTERNAL:
                raise _UnsafeError("it holds weights outside the file (external data)")
            if place == _NODE_DOMAIN and (domain := self._bytes(each)) not in _STANDARD_DOMAINS:
                raise _UnsafeError(f"it needs operators of {ascii(domain.decode(errors='replace'))[:60]}")
            if place == _TENSOR_DIMS:
                elements *= math.prod(self._numbers(each))
                # Not even elements of four bits come cheaper; the engine would allocate what the shape says.
                if not 0 <= elements <= 2 * (end - start):
                    raise _UnsafeError("it holds a tensor that claims to be larger than the file")
            if (inner := _MESSAGES.get(kind, {}).get(each.number)) is not None:
                self._visit(inner, *self._part(each))

    def _declaration(self, start: int, end: int) -> tuple[str, TensorType]:
        """Name and type of a ``ValueInfoProto``; something else than a tensor has element 0."""
        name, element, shape = "", 0, list[int | str]()
        for part in self._fields(start, end):
            if part.number == 1:
                name = self._text(part)
            for kind in self._inside(part, 2):
                for tensor in self._inside(kind, 1):
                    if tensor.number == 1:
                        element = tensor.value or 0
                    for dimension in self._inside(tensor, 2):
                        shape += [self._size(dimension)] if dimension.number == 1 else []
        return name, TensorType(element, tuple(shape))

    def _size(self, dimension: _Field) -> int | str:
        size: int | str = ""
        for part in self._fields(*self._part(dimension)):
            if part.number == 1 and part.value is not None:
                size = part.value
            elif part.number == 2:
                size = self._text(part)
        return size

    def _inside(self, each: _Field, number: int) -> Iterator[_Field]:
        if each.number == number:
            yield from self._fields(*self._part(each))

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        while start < end:
            self.budget -= 1
            if self.budget < 0:
                raise _MalformedError(f"it has more than {_MAX_FIELDS} parts")
            key, start = self._varint(start, end)
            number, wire = key >> 3, key & 7
            value, begin = None, start
            if wire == 0:
                value, start = self._varint(start, end)
            elif wire == 2:
                length, begin = self._varint(start, end)
                start = begin + length
            elif wire in (1, 5):
                start += 8 if wire == 1 else 4
            else:
                raise _MalformedError(f"no such kind of field at byte {begin}")
            if number == 0 or start > end:
                raise _MalformedError(f"it breaks off or is damaged at byte {begin}")
            yield _Field(number, value, begin, start)

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for position in range(start, min(end, start + 10)):
            byte = self.data[position]
            value |= (byte & 0x7F) << 7 * (position - start)
            if byte < 0x80:
                return value, position + 1
        raise _MalformedError(f"a number that does not end at byte {start}")

    def _numbers(self, each: _Field) -> list[int]:
        """The values of a short repeated integer, packed or not; negative ones are huge."""
        if each.value is not None:
            return [each.value]
        if each.end - each.start > _MAX_NAME:
            raise _MalformedError(f"a shape of {each.end - each.start} bytes at byte {each.start}")
        numbers, position = list[int](), each.start
        while position < each.end:
            number, position = self._varint(position, each.end)
            numbers.append(number)
        return numbers

    def _part(self, each: _Field) -> tuple[int, int]:
        if each.value is not None:
            raise _MalformedError(f"a number where a part is expected at byte {each.start}")
        return each.start, each.end

    def _bytes(self, each: _Field) -> bytes:
        start, end = self._part(each)
        if end - start > _MAX_NAME:
            raise _MalformedError(f"a name of {end - start} bytes at byte {start}")
        return self.data[start:end]

    def _text(self, each: _Field) -> str:
        try:
            return self._bytes(each).decode()
        except UnicodeDecodeError:
            raise _MalformedError(f"a name that is not UTF-8 at byte {each.start}") from None
