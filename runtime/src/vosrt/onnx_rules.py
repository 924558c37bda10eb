"""What a graph of a bundle may compute: the operators of ``onnx_operators.txt``, on inputs that engines can bear.

Kernels of engines crash, or read memory that is not theirs, on indices out of range, on sizes that overflow and on
integer divisions that trap. None of that can be checked where an index or a size comes from the data. So integers are
followed through the graph: they come from constants and from shapes alone, are bounded where they become a size, and
are constants where they become an index, a divisor or an axis. Everything else is float arithmetic, which cannot trap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

from vosrt.onnx_file import (
    FLOAT,
    FLOAT8,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    UINT8,
    Node,
    ParsedGraph,
    Tensor,
    UnsafeError,
)
from vosrt.text import quoted

TABLE = Path(__file__).with_name("onnx_operators.txt")

_MAX_NODES = 20_000
_MAX_PORTS = 16  # inputs of a graph, and its outputs
_MAX_INPUTS = 64  # of a node
_MAX_RANK = 8
_MAX_LIST = 16  # integers in an attribute
_LARGEST_SIDE = 1 << 14  # of a working frame, and so of a map, as far as sizes are bounded
_MAX_CONSTANT = 1 << 31  # in arithmetic on sizes
_MAX_BOUND = 1 << 40  # of what such arithmetic gives

Kind = Literal["float", "bytes", "size"]
_KINDS: Mapping[int, Kind] = {
    FLOAT: "float",
    FLOAT16: "float",
    UINT8: "bytes",
    INT8: "bytes",
    INT32: "bytes",
    FLOAT8: "bytes",
    INT64: "size",
}
_ADMITS: Mapping[str, tuple[Kind, ...]] = {
    "float": ("float",),
    "bytes": ("bytes",),
    "scale": ("float",),
    "zero": ("bytes",),
    "number": ("float", "size"),
    "map": ("float", "bytes"),
    "any": ("float", "bytes", "size"),
    "alike": ("float", "bytes", "size"),
    "divisor": ("float", "size"),
    **dict.fromkeys(("axes", "index", "limit", "step", "shape", "extent"), ("size",)),
}
_RANGES = {"axes": (-_MAX_RANK, _MAX_RANK - 1), "index": (-1, 0), "step": (1, 64), "limit": (-(1 << 63), (1 << 63) - 1)}
_ELEMENTS = {"FLOAT": FLOAT, "FLOAT16": FLOAT16}


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor.

    Attributes:
        kind: of its elements.
        constant: whether it is in the file.
        values: of a constant of sizes.
        low: its elements are at least this, where maps have 1 to :data:`_LARGEST_SIDE` a side, and
        high: at most this.
        length: most elements.
        dynamic: of these, most that are no constants.
        factor: product of those that are.
    """

    kind: Kind
    constant: bool = False
    values: tuple[int, ...] | None = None
    low: int = 0
    high: int = 0
    length: int = 0
    dynamic: int = 0
    factor: int = 1


@dataclass(frozen=True)
class _Operator:
    """A line of the table: kinds of the inputs, how many must be given, kind of the result, attributes."""

    inputs: tuple[str, ...]
    needed: int
    variadic: bool
    result: str
    attributes: Mapping[str, str]


def _read_table() -> Mapping[str, _Operator]:
    """The table, by the operator's name."""
    table = dict[str, _Operator]()
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, inputs, result, attributes = (part.split() for part in f"{line}{'|' * (3 - line.count('|'))}".split("|"))
        table[name[0]] = _Operator(
            tuple(each.rstrip("?.") for each in inputs),
            sum(not each.endswith(("?", "...")) and each != "none" for each in inputs),
            bool(inputs) and inputs[-1].endswith("..."),
            result[0],
            dict(each.split("=", 1) for each in attributes),
        )
    return table


OPERATORS = _read_table()


def check_graph(graph: ParsedGraph) -> None:
    """Have every node be one that a bundle may hold.

    Raises:
        UnsafeError: one is not; the message names it.
    """
    if len(graph.nodes) > _MAX_NODES:
        raise UnsafeError(f"it has {len(graph.nodes)} nodes; a bundle's graph has at most {_MAX_NODES}")
    if max(len(graph.inputs), len(graph.outputs)) > _MAX_PORTS:
        raise UnsafeError(f"it has more than {_MAX_PORTS} inputs or outputs")
    known: dict[str, _Value] = {}
    ranks: dict[str, tuple[int | str, ...]] = {}
    for name, declared in graph.inputs.items():
        if name in graph.constants:
            continue  # a weight that callers could replace; none does
        if _KINDS.get(declared.element, "size") == "size" or len(declared.shape) > _MAX_RANK:
            raise UnsafeError(f"its input {quoted(name)} is no map of floats or bytes")
        known[name] = _Value(_KINDS[declared.element])
        ranks[name] = declared.shape
    for name, tensor in graph.constants.items():
        known[name] = _constant(tensor, f"the tensor {quoted(name)}")
    for position in _in_order(graph.nodes, known):
        node = graph.nodes[position]
        title = f"node {quoted(node.name) if node.name else position} ({quoted(node.operator).strip(chr(39))})"
        result = _Check(node, title, known, ranks).result()
        if len(node.outputs) != 1 or not node.outputs[0]:
            raise UnsafeError(f"{title} has {len(node.outputs)} outputs; expected one")
        if node.outputs[0] in known:
            raise UnsafeError(f"{title} writes {quoted(node.outputs[0])}, which exists already")
        known[node.outputs[0]] = result
    for name in graph.outputs:
        if name not in known:
            raise UnsafeError(f"nothing computes its output {quoted(name)}")


def _in_order(nodes: Sequence[Node], known: Container[str]) -> list[int]:
    """Positions of nodes, each behind those that compute its inputs: ONNX asks for that order, engines do not.

    Nodes that wait for themselves or for what nothing computes come last; they are refused when they are checked.
    """
    waiting = dict[str, list[int]]()
    missing = list[int]()
    for position, node in enumerate(nodes):
        names = {name for name in node.inputs if name and name not in known}
        missing.append(len(names))
        for name in names:
            waiting.setdefault(name, []).append(position)
    order = [position for position, count in enumerate(missing) if not count]
    for position in order:  # grows meanwhile
        for name in nodes[position].outputs:
            for later in waiting.pop(name, ()):
                missing[later] -= 1
                if not missing[later]:
                    order.append(later)
    return order + [position for position, count in enumerate(missing) if count]


def _constant(tensor: Tensor, title: str) -> _Value:
    if len(tensor.shape) > _MAX_RANK:
        raise UnsafeError(f"{title} has {len(tensor.shape)} axes; expected at most {_MAX_RANK}")
    kind = _KINDS[tensor.element]
    if kind != "size":
        return _Value(kind, constant=True)
    if tensor.values is None:
        raise UnsafeError(f"{title} is a long list of integers, which no bundle needs")
    return _sizes(tensor.values)


def _sizes(values: tuple[int, ...]) -> _Value:
    factor = math.prod(max(1, abs(value)) for value in values)
    low, high = min(values, default=0), max(values, default=0)
    return _Value("size", constant=True, values=values, low=low, high=high, length=len(values), factor=factor)


@dataclass
class _Check:
    """One node against its line of the table."""

    node: Node
    title: str
    known: Mapping[str, _Value]
    shapes: Mapping[str, tuple[int | str, ...]]  # of the graph's inputs

    def result(self) -> _Value:
        operator = OPERATORS.get(self.node.operator)
        if operator is None:
            self._refuse("its operator is not one that a bundle may use")
        self._check_attributes(operator)
        if operator.result == "constant":
            tensor = self.node.attributes.get("value")
            if not isinstance(tensor, Tensor):
                self._refuse("it has no value")
            return _constant(tensor, self.title)
        given = self._inputs(operator)
        if self.node.operator == "Shape":
            return self._shape()
        first = given[0]
        if first is None:
            self._refuse("it has no input")
        kind = first.kind if operator.result == "first" else operator.result
        if kind != "size":
            return _Value("bytes" if kind == "bytes" else "float")
        return self._size([each for each in given if each is not None])

    def _refuse(self, why: str) -> NoReturn:
        raise UnsafeError(f"{self.title}: {why}")

    def _check_attributes(self, operator: _Operator) -> None:
        for name, value in self.node.attributes.items():
            allowed = operator.attributes.get(name)
            if allowed is None:
                self._refuse(f"no bundle needs its attribute {quoted(name)}")
            if not _is_allowed(value, allowed):
                given = (
                    quoted(value)
                    if isinstance(value, str)
                    else "a tensor"
                    if isinstance(value, Tensor)
                    else str(value)[:60]
                )
                self._refuse(f"{name} is {given}; expected {allowed}")

    def _inputs(self, operator: _Operator) -> list[_Value | None]:
        names = self.node.inputs
        most = _MAX_INPUTS if operator.variadic else len(operator.inputs)
        if not operator.needed <= len(names) <= most:
            self._refuse(f"it has {len(names)} inputs; expected {operator.needed} to {most}")
        given = list[_Value | None]()
        for position, name in enumerate(names):
            wanted = operator.inputs[min(position, len(operator.inputs) - 1)]
            if not name:
                if wanted != "none" and position < operator.needed:
                    self._refuse(f"its input {position} is left out")
                given.append(None)
                continue
            value = self.known.get(name)
            if value is None:
                self._refuse(f"nothing before it computes its input {quoted(name)}")
            self._check_input(wanted, value, name)
            given.append(value)
        if {"number", "alike", "divisor"}.intersection(operator.inputs) and len(
            {each.kind for each in given if each}
        ) > 1:
            self._refuse("its inputs are of different kinds")
        return given

    def _check_input(self, wanted: str, value: _Value, name: str) -> None:
        if value.kind not in _ADMITS.get(wanted, ()):
            self._refuse(f"its input {quoted(name)} is {_WORDS[value.kind]}, which may not stand there")
        if wanted in ("scale", "zero") and not value.constant:
            self._refuse(f"its input {quoted(name)} is computed; expected a constant")
        if wanted in _RANGES:
            low, high = _RANGES[wanted]
            if value.values is None:
                self._refuse(f"its input {quoted(name)} depends on the data; expected constants")
            if not all(low <= each <= high for each in value.values):
                self._refuse(f"its input {quoted(name)} is {str(list(value.values))[:60]}; expected {low} to {high}")
        unsafe = not value.values or not all(1 <= each <= _MAX_CONSTANT for each in value.values)
        if wanted == "divisor" and value.kind == "size" and unsafe:
            self._refuse(f"it divides sizes by {quoted(name)}; expected constants from 1 on")
        if wanted in ("shape", "extent"):
            self._check_shape(wanted, value, name)

    def _check_shape(self, wanted: str, value: _Value, name: str) -> None:
        """Sizes that engines multiply with each other, and allocate."""
        low, high, factor, dynamic = _LIMITS[wanted]
        if not (low <= value.low and value.high <= high and value.factor <= factor and value.dynamic <= dynamic):
            given = str(list(value.values))[:60] if value.values is not None else "computed"
            self._refuse(
                f"its input {quoted(name)} is {given}; expected sizes of {low} to {high}, {factor} elements in all"
            )

    def _shape(self) -> _Value:
        start, end = self.node.attributes.get("start", 0), self.node.attributes.get("end", _MAX_RANK)
        assert isinstance(start, int)
        assert isinstance(end, int)
        shape = self.shapes.get(self.node.inputs[0])
        rank = _MAX_RANK if shape is None else len(shape)
        first, last = (each + rank if each < 0 and shape is not None else each for each in (start, end))
        length = max(0, min(last, rank) - max(first, 0)) if first >= 0 and last >= 0 else rank
        high = max([_LARGEST_SIDE, *(each for each in shape or () if isinstance(each, int))])
        return _Value("size", low=1, high=high, length=length, dynamic=length)

    def _size(self, given: Sequence[_Value]) -> _Value:
        operator, first = self.node.operator, given[0]
        if operator in _BOUNDS:
            if any(each.values is not None and max(each.high, -each.low) > _MAX_CONSTANT for each in given):
                self._refuse("it computes with an integer that is no size")
            low, high = _BOUNDS[operator](first, given[1])
            if max(high, -low) > _MAX_BOUND:
                self._refuse("it computes sizes without a bound")
            length = max(each.length for each in given)
            return _Value("size", low=low, high=high, length=length, dynamic=length)
        if operator == "Concat":
            return self._joined(given)
        if operator in ("Slice", "Gather"):
            return self._part(given)
        return first

    @staticmethod
    def _joined(given: Sequence[_Value]) -> _Value:
        values = [each.values for each in given]
        if all(each is not None for each in values):
            return _sizes(tuple(value for each in values if each is not None for value in each))
        return _Value(
            "size",
            low=min(each.low for each in given),
            high=max(each.high for each in given),
            length=sum(each.length for each in given),
            dynamic=sum(each.dynamic for each in given),
            factor=min(math.prod(each.factor for each in given), _MAX_BOUND),
        )

    def _part(self, given: Sequence[_Value]) -> _Value:
        """Some elements of a list of sizes."""
        first, length = given[0], given[0].length
        if self.node.operator == "Gather":
            length = min(length, given[1].length)
        elif given[1].values and given[2].values:
            start, end = given[1].values[0], given[2].values[0]
            if (start < 0) == (end < 0):
                length = min(length, max(0, end - start))
            elif start < 0:
                length = min(length, -start)
        dynamic = length if first.constant else min(first.dynamic, length)
        return replace(first, constant=False, values=None, length=length, dynamic=dynamic)


_WORDS: Mapping[str, str] = {"float": "floats", "bytes": "bytes", "size": "integers"}
# Least and largest size, largest product of the constant ones, and most that are not constant.
_LIMITS = {"shape": (-1, 1 << 31, 1 << 31, 16), "extent": (1, _LARGEST_SIDE, 1 << 16, 4)}


def _product(left: _Value, right: _Value) -> tuple[int, int]:
    corners = [one * other for one in (left.low, left.high) for other in (right.low, right.high)]
    return min(corners), max(corners)


def _quotient(left: _Value, right: _Value) -> tuple[int, int]:
    least = max(1, right.low)
    return min(left.low, left.low // least), max(0, left.high // least)


_BOUNDS: Mapping[str, Callable[[_Value, _Value], tuple[int, int]]] = {
    "Add": lambda left, right: (left.low + right.low, left.high + right.high),
    "Sub": lambda left, right: (left.low - right.high, left.high - right.low),
    "Mul": _product,
    "Div": _quotient,
}


def _is_allowed(value: int | float | str | tuple[int, ...] | Tensor, allowed: str) -> bool:
    if allowed == "tensor":
        return isinstance(value, Tensor)
    if allowed == "float":
        return isinstance(value, float) and math.isfinite(value)
    if ".." in allowed:
        low, high = map(int, allowed.strip("[]").split(".."))
        if allowed.startswith("["):
            return isinstance(value, tuple) and len(value) <= _MAX_LIST and all(low <= each <= high for each in value)
        return type(value) is int and low <= value <= high
    choices = allowed.split(",")
    if isinstance(value, str):
        return value in choices
    return type(value) is int and value in [_ELEMENTS.get(each) for each in choices]
