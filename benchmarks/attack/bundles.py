"""Bundles whose graphs hold one plain operator that crashes or exhausts an engine, for attack.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from vosrt.bundle import load_bundle

HUGE, LEAST = 1 << 40, -(1 << 63)


class _Graph:
    """The encoder of `fast`, whose output waits for the result of further nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self._count = 0
        last = next(node for node in self.graph.node if "embedding" in node.output)
        last.output[list(last.output).index("embedding")] = "clean"
        # Zero, in a way that no engine knows before it runs.
        shape = self.add("Shape", "frames")
        self.zero = self.add("Sub", shape, shape)

    def constant(self, value: ArrayLike, kind: type = np.int64) -> str:
        self._count += 1
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), f"evil_{self._count}"))
        return f"evil_{self._count}"

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        self._count += 1
        output = f"evil_{self._count}"
        domain = "stranger" if operator == "Unknown" else ""
        self.graph.node.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def late(self, *values: int) -> str:
        """A constant that is known only when the graph runs, i64 [n] for one value or as many as the shape has."""
        return self.add(
            "Add", self.add("Slice", self.zero, *map(self.constant, ([0], [len(values)]))), self.constant(values)
        )

    def finish(self, evil: str) -> bytes:
        number = self.add("Cast", self.add("ReduceMax", evil, keepdims=0), to=TensorProto.FLOAT)
        nothing = self.add("Mul", number, self.constant(0, np.float32))
        self.graph.node.append(helper.make_node("Add", ["clean", nothing], ["embedding"]))
        return self.model.SerializeToString()


def _loop(g: _Graph) -> str:
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("go", "x")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.INT64, [4]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.INT64, [4]),
        ],
    )
    return g.add("Loop", g.constant(1 << 62), g.constant(True, np.bool_), g.zero, body=body)


def _not_finite(g: _Graph) -> str:
    g.add("Identity", g.constant([float("nan"), float("inf")], np.float32))
    return g.zero


def _many_nodes(g: _Graph) -> str:
    value = g.zero
    for _ in range(200_000):
        value = g.add("Identity", value)
    return value


HOSTILE_GRAPHS: dict[str, Callable[[_Graph], str]] = {
    "gather": lambda g: g.add("Gather", g.zero, g.late(1_000_000)),
    "gather-negative": lambda g: g.add("Gather", g.zero, g.late(-1_000_000)),
    "gather-elements": lambda g: g.add("GatherElements", g.zero, g.late(1 << 33)),
    "gather-nd": lambda g: g.add("GatherND", g.zero, g.add("Unsqueeze", g.late(1 << 33), g.constant([0]))),
    "gather-constant": lambda g: g.add("Gather", g.zero, g.constant([1 << 33])),
    "scatter-elements": lambda g: g.add("ScatterElements", g.zero, g.late(1_000_000), g.constant([7])),
    "scatter-nd": lambda g: g.add(
        "ScatterND", g.zero, g.add("Unsqueeze", g.late(1_000_000), g.constant([0])), g.constant([7])
    ),
    "pad": lambda g: g.add("Pad", g.zero, g.late(HUGE, HUGE), g.constant(0)),
    "pad-constant": lambda g: g.add("Pad", g.zero, g.constant([HUGE, HUGE]), g.constant(0)),
    "divide-least": lambda g: g.add("Div", g.late(LEAST), g.constant([-1])),
    "modulo-least": lambda g: g.add("Mod", g.late(LEAST), g.constant([-1])),
    "divide-by-zero": lambda g: g.add("Div", g.constant([7]), g.late(0)),
    "tile": lambda g: g.add("Tile", g.zero, g.late(HUGE)),
    "expand": lambda g: g.add("Expand", g.late(1), g.late(HUGE)),
    "constant-of-shape": lambda g: g.add("ConstantOfShape", g.late(HUGE)),
    "range": lambda g: g.add("Range", g.constant(0), g.constant(1 << 60), g.constant(1)),
    "reshape": lambda g: g.add("Reshape", g.zero, g.late(-1, -1)),
    "one-hot": lambda g: g.add("OneHot", g.late(1), g.constant(1 << 34), g.constant([0, 1])),
    "non-zero": lambda g: g.add("NonZero", g.add("Add", g.zero, g.constant(1))),
    "loop": _loop,
    "unknown-domain": lambda g: g.add("Unknown", g.zero),
    "not-finite": _not_finite,
    "many-nodes": _many_nodes,
}


def hostile_bundle(name: str, folder: Path) -> Path:
    """Copy `default` into `folder` with a hostile graph, whose size and hash the manifest states."""
    bundle = load_bundle("default")
    shutil.copytree(bundle.path, folder)
    file = folder / bundle.manifest.graphs["encoder"].file
    graph = _Graph(onnx.load(str(file)))
    if name == "unknown-domain":
        graph.model.opset_import.append(helper.make_opsetid("stranger", 1))
    content = graph.finish(HOSTILE_GRAPHS[name](graph))
    file.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["graphs"]["encoder"]
    entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
