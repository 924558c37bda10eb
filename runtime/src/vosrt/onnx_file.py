"""Reading an ONNX file before any engine does: what it takes and gives, and nothing in it that reaches outside.

A matching hash says that a file is the one its maker wrote, not that the maker meant well. Engines do what a graph
says: they open the files that external data and compiled contexts name, run operators that plugins bring, and some of
their kernels trust indices and sizes. So graphs of a bundle are plain and self-contained, and made of the operators of
`vosrt.onnx_rules` alone.

The parser knows as much of protobuf as that takes. It is bounded by the file: it visits every field at most once, and
copies nothing but names and short lists of integers.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from vosrt.errors import BundleError
from vosrt.text import quoted

T = TypeVar("T")

MAX_BYTES = (1 << 31) - 1  # what protobuf can hold
FLOAT, UINT8, INT8, INT32, INT64, FLOAT16, FLOAT8 = 1, 2, 3, 6, 7, 10, 17  # onnx.TensorProto.DataType

_MAX_FIELDS = 1 << 20  # a network of 1000 nodes has some 20 000
_MAX_NAME = 1000
_MAX_LIST = 64  # integers of a constant whose values are looked at
_STANDARD_DOMAINS = (b"", b"ai.onnx")
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_BYTES_OF = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, FLOAT16: 2, FLOAT8: 1}
_CHUNK = 1 << 20  # elements that are checked at a time

# What a message may not hold, by the field's number in onnx.proto.
_REFUSED: Mapping[str, Mapping[int, str]] = {
    "model": {20: "training information", 25: "functions of its own"},
    "graph": {15: "sparse weights"},
    "attribute": {
        6: "control flow (a graph inside a node)",
        11: "control flow (graphs inside a node)",
        **dict.fromkeys((22, 23), "sparse weights"),
    },
    "tensor": {
        3: "a part of a tensor",
        6: "text in a tensor",
        10: "weights in double precision",
        11: "64-bit weights",
        13: "weights outside the file (external data)",
    },
}
_OUTPUT_TAG, _VALUE_INFO_TAG = 12 << 3 | 2, 13 << 3 | 2  # of a graph's fields
_DATA_FIELDS = {4: (FLOAT,), 5: (UINT8, INT8, INT32, FLOAT16, FLOAT8), 7: (INT64,), 9: tuple(_BYTES_OF)}
# Values of an attribute: field number -> AttributeProto.AttributeType.
_ATTRIBUTE_TYPES = {2: 1, 3: 2, 4: 3, 5: 4, 7: 6, 8: 7, 9: 8, 10: 9}


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
class Tensor:
    """A constant of a graph.

    Attributes:
        element: kind of the elements.
        shape: sizes of its axes.
        values: of short INT64 tensors; None for all others.
    """

    element: int
    shape: tuple[int, ...]
    values: tuple[int, ...] | None


@dataclass(frozen=True)
class Node:
    """An operation of a graph.

    Attributes:
        name: may be empty.
        operator: such as ``"Conv"``.
        inputs: names of tensors; an empty one was left out.
        outputs: names of tensors.
        attributes: integers, floats, text or a tensor by name.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | float | str | tuple[int, ...] | Tensor]


@dataclass(frozen=True)
class ParsedGraph:
    """What a graph takes, gives and does.

    Attributes:
        inputs: by name.
        outputs: by name.
        nodes: in the order of the file, which need not be the one of the work.
        constants: the initializers, by name.
    """

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]


@dataclass(frozen=True)
class Graph:
    """An ONNX file that was read once: engines are given these bytes and never its path.

    Attributes:
        path: where it was read from, for messages and for what lies beside it.
        content: of the file.
        quantised: the number format that it is quantised in, as its bundle says; None for other graphs.
    """

    path: Path
    content: bytes = field(repr=False)
    quantised: str | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        """Hash of the content as 64 lower-case hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def parsed(self) -> ParsedGraph:
        """What it takes, gives and does; nothing of that is checked against the rules.

        Raises:
            BundleError: it is no ONNX file, or it holds something that no graph of a bundle may hold.
        """
        return parse_graph(self.content, self.path)


def read_graph(path: Path, size: int | None = None) -> Graph:
    """Read a file into memory, once.

    Args:
        path: of a regular file.
        size: that it has, in bytes; None takes any up to :data:`MAX_BYTES`.

    Raises:
        BundleError: it is no regular file, or has another size.
        OSError: it cannot be read.
    """
    # Opening a pipe would wait for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is no regular file; copy the whole bundle again")
        if size is not None and status.st_size != size:
            raise BundleError(
                f"{path} was altered: it has {status.st_size} bytes, the manifest says {size}; copy the bundle again"
            )
        if not 0 < status.st_size <= MAX_BYTES:
            raise BundleError(f"{path} has {status.st_size} bytes; a graph has 1 to {MAX_BYTES}")
        content = file.read(status.st_size)
    if len(content) != status.st_size:
        raise BundleError(f"{path} was cut off while it was read; copy the bundle again")
    return Graph(path, content)


def as_graph(graph: Graph | Path) -> Graph:
    """The graph, read from its file if only that is given.

    Raises:
        BundleError: it cannot be read.
    """
    if isinstance(graph, Graph):
        return graph
    try:
        return read_graph(graph)
    except OSError as error:
        raise BundleError(f"{graph} cannot be read: {error.strerror or error}") from error


def joined(graph: Graph, added: Graph, embedding: str) -> Graph:
    """Append a file to a graph: protobuf merges both into one message.

    Args:
        graph: what is added to.
        added: further nodes, weights and outputs.
        embedding: if ``added`` declares this output, those of ``graph`` become tensors inside it (``value_info``). Both
            declarations are the same message, under field numbers whose tags are one byte.

    Raises:
        BundleError: one is no ONNX file, or holds something that graphs of a bundle may not hold.
    """
    content = bytearray(graph.content)
    if embedding in added.parsed.outputs:
        for begin in _explained(graph.path, lambda: [*_Parser(graph.content).output_tags()]):
            content[begin] = _VALUE_INFO_TAG
    return replace(added, content=bytes(content) + added.content)


def parse_graph(content: bytes, path: Path) -> ParsedGraph:
    """Parse an ONNX file that is plain and self-contained.

    Args:
        content: of the file.
        path: for messages.

    Raises:
        BundleError: it is no ONNX file, or it holds something that graphs of a bundle may not hold.
    """
    return _explained(path, _Parser(content).parse)


def _explained(path: Path, work: Callable[[], T]) -> T:
    """Return what work on the content of a file returns; where that is refused, raise a line that names the file."""
    try:
        return work()
    except UnsafeError as error:
        raise refused(path, error) from None
    except _MalformedError as error:
        raise BundleError(f"{path} is not a whole ONNX graph ({error}); export the bundle again") from None


def refused(path: Path, error: UnsafeError) -> BundleError:
    """The line that says why a graph is not run."""
    return BundleError(f"{path} is refused: {error}; take the bundle from its maker again")


class UnsafeError(Exception):
    """The graph is well-formed, and not one that is run."""


class _MalformedError(Exception):
    """The bytes are not what they claim to be."""


class _Field(NamedTuple):
    """One field of a message: its number and wire type, and its value or the part of the file that it takes up."""

    number: int
    wire: int
    value: int | None
    start: int
    end: int


@dataclass
class _Parser:
    """Walks one file. Repeated parts of a message count as one message, as protobuf has it."""

    data: bytes
    inputs: dict[str, TensorType] = field(default_factory=dict)
    outputs: dict[str, TensorType] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    budget: int = _MAX_FIELDS

    def parse(self) -> ParsedGraph:
        for part in self._message("model", 0, len(self.data)):
            if part.number == 7:
                self._graph(*self._part(part))
        if not self.outputs:
            raise _MalformedError("it has no output")
        return ParsedGraph(self.inputs, self.outputs, tuple(self.nodes), self.constants)

    def output_tags(self) -> Iterator[int]:
        """Positions of the tags of all outputs, one byte each."""
        for model in self._message("model", 0, len(self.data)):
            if model.number == 7:
                begin, end = self._part(model)
                for part in self._message("graph", begin, end):
                    if part.number == 12 and self.data[begin] != _OUTPUT_TAG:
                        raise _MalformedError(f"an output whose tag is not one byte at byte {begin}")
                    if part.number == 12:
                        yield begin
                    begin = part.end

    def _graph(self, start: int, end: int) -> None:
        for part in self._message("graph", start, end):
            if part.number == 1:
                self.nodes.append(self._node(*self._part(part)))
            elif part.number == 5:
                name, tensor = self._tensor(*self._part(part))
                if name in self.constants:
                    raise UnsafeError(f"two weights are named {quoted(name)}")
                self.constants[name] = tensor
            elif part.number in (11, 12):
                name, declared = self._declaration(*self._part(part))
                (self.inputs if part.number == 11 else self.outputs)[name] = declared

    def _node(self, start: int, end: int) -> Node:
        name = operator = ""
        inputs, outputs = list[str](), list[str]()
        attributes: dict[str, int | float | str | tuple[int, ...] | Tensor] = {}
        for part in self._message("node", start, end):
            if part.number == 1:
                inputs.append(self._text(part))
            elif part.number == 2:
                outputs.append(self._text(part))
            elif part.number == 3:
                name = self._text(part)
            elif part.number == 4:
                operator = self._text(part)
            elif part.number == 5:
                key, value = self._attribute(*self._part(part))
                if key in attributes:
                    raise UnsafeError(f"a node has the attribute {quoted(key)} twice")
                attributes[key] = value
            elif part.number == 7 and (domain := self._bytes(part)) not in _STANDARD_DOMAINS:
                raise UnsafeError(f"it needs operators of {quoted(domain.decode(errors='replace'))}")
        return Node(name, operator, tuple(inputs), tuple(outputs), attributes)

    def _attribute(self, start: int, end: int) -> tuple[str, int | float | str | tuple[int, ...] | Tensor]:
        name, declared = "", 0
        values: dict[int, int | float | str | tuple[int, ...] | Tensor] = {}
        for part in self._message("attribute", start, end):
            if part.number == 1:
                name = self._text(part)
            elif part.number == 20:
                declared = part.value or 0
            elif part.number == 2:
                values[2] = self._float(part)
            elif part.number == 3:
                values[3] = _signed(part.value or 0)
            elif part.number == 4:
                values[4] = self._text(part)
            elif part.number == 5:
                if 5 in values:
                    raise UnsafeError("an attribute has two tensors")
                values[5] = self._tensor(*self._part(part))[1]
            elif part.number == 8:
                before = values.get(8, ())
                values[8] = (*(before if isinstance(before, tuple) else ()), *map(_signed, self._numbers(part)))
            elif part.number in (7, 9, 10, 14, 15, 21):
                raise UnsafeError(f"the attribute {quoted(name)} is of a kind that no bundle needs")
        if declared == _ATTRIBUTE_TYPES[8]:
            values.setdefault(8, ())
        if len(values) != 1 or _ATTRIBUTE_TYPES[next(iter(values))] != declared:
            raise UnsafeError(f"the attribute {quoted(name)} has no value, or not the one that it declares")
        return name, next(iter(values.values()))

    def _tensor(self, start: int, end: int) -> tuple[str, Tensor]:
        name, element, shape = "", 0, list[int]()
        data = list[_Field]()
        for part in self._message("tensor", start, end):
            if part.number == 1:
                shape += self._numbers(part)
                # Not even elements of four bits come cheaper; the engine would allocate what the shape says.
                if not 0 <= math.prod(shape) <= 2 * (end - start):
                    raise UnsafeError("it holds a tensor that claims to be larger than the file")
            elif part.number == 2:
                element = part.value or 0
            elif part.number == 8:
                name = self._text(part)
            elif part.number == 14 and part.value == _EXTERNAL:
                raise UnsafeError("it holds weights outside the file (external data)")
            elif part.number in _DATA_FIELDS:
                data.append(part)
        if element not in _BYTES_OF:
            raise UnsafeError(f"the tensor {quoted(name)} has elements of type {element}, which no bundle needs")
        return name, Tensor(element, tuple(shape), self._contents(name, element, math.prod(shape), data))

    def _contents(self, name: str, element: int, count: int, data: list[_Field]) -> tuple[int, ...] | None:
        """Check that a tensor's data is whole and finite; the values of short INT64 ones."""
        numbers = {part.number for part in data}
        if len(numbers) > 1 or (9 in numbers and len(data) > 1):
            raise UnsafeError(f"the tensor {quoted(name)} has its data twice")
        if any(element not in _DATA_FIELDS[number] for number in numbers):
            raise UnsafeError(f"the tensor {quoted(name)} has data of another type than it declares")
        if numbers <= {4, 9}:
            found = sum(8 if part.wire == 1 else part.end - part.start for part in data)
            if any(part.value is not None or (part.number == 9 and part.wire != 2) for part in data):
                raise _MalformedError(f"the data of {quoted(name)} is no data")
            whole = found == count * _BYTES_OF[element]
        else:
            whole = sum(self._count(part) for part in data) == count
        if not whole:
            raise UnsafeError(f"the tensor {quoted(name)} has another number of values than its shape says")
        for part in data:
            self._check_finite(name, element, part)
        if element != INT64 or count > _MAX_LIST:
            return None
        if numbers <= {9}:
            raw = b"".join(self.data[part.start : part.end] for part in data)
            return tuple(int(value) for value in np.frombuffer(raw, "<i8"))
        return tuple(_signed(value) for part in data for value in self._numbers(part))

    def _check_finite(self, name: str, element: int, part: _Field) -> None:
        if element == FLOAT16 and part.number == 5:
            finite = all(value & 0x7C00 != 0x7C00 for value in self._numbers(part, longest=MAX_BYTES))
        elif element in (FLOAT, FLOAT16):
            kind = np.dtype("<f4" if element == FLOAT else "<f2")
            values = np.frombuffer(self.data, kind, (part.end - part.start) // kind.itemsize, part.start)
            finite = all(np.isfinite(values[at : at + _CHUNK]).all() for at in range(0, len(values), _CHUNK))
        elif element == FLOAT8 and part.number == 9:
            finite = not np.any(np.frombuffer(self.data, np.uint8, part.end - part.start, part.start) & 0x7F == 0x7F)
        else:
            finite = True
        if not finite:
            raise UnsafeError(f"the weights {quoted(name)} hold NaN or infinity")

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

    def _message(self, kind: str, start: int, end: int) -> Iterator[_Field]:
        """The fields of a message, none of which is one that is refused."""
        for each in self._fields(start, end):
            if why := _REFUSED.get(kind, {}).get(each.number):
                raise UnsafeError(f"it holds {why}")
            yield each

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
            yield _Field(number, wire, value, begin, start)

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for position in range(start, min(end, start + 10)):
            byte = self.data[position]
            value |= (byte & 0x7F) << 7 * (position - start)
            if byte < 0x80:
                return value, position + 1
        raise _MalformedError(f"a number that does not end at byte {start}")

    def _count(self, each: _Field) -> int:
        """How many integers a repeated field holds, packed or not."""
        if each.value is not None:
            return 1
        return int(np.count_nonzero(np.frombuffer(self.data, np.uint8, each.end - each.start, each.start) < 0x80))

    def _numbers(self, each: _Field, longest: int = _MAX_NAME) -> list[int]:
        """The values of a short repeated integer, packed or not; negative ones are huge."""
        if each.value is not None:
            return [each.value]
        if each.end - each.start > longest:
            raise _MalformedError(f"a list of {each.end - each.start} bytes at byte {each.start}")
        numbers, position = list[int](), each.start
        while position < each.end:
            number, position = self._varint(position, each.end)
            numbers.append(number)
        return numbers

    def _float(self, each: _Field) -> float:
        if each.wire != 5:
            raise _MalformedError(f"no number where one is expected at byte {each.start}")
        return float(np.frombuffer(self.data, "<f4", 1, each.start)[0])

    def _part(self, each: _Field) -> tuple[int, int]:
        if each.wire != 2:
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


def _signed(value: int) -> int:
    """The signed number that 64 bits stand for."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
