"""Graphs of standard operators that crash engines, or read what is not theirs, one per way; and sound ones.

Each starts from a small encoder: a convolution of 8 x 8 pixels and unit length. What is wrong is done to its map `map`
(f32 [n, h, w, K]) on its way to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vosrt.model
from tests.fakes.bundles import write_bundle
from tests.fakes.programs import error_line
from vosrt.bundle import load_bundle
from vosrt.cli.run import main as vos_run
from vosrt.errors import BundleError, MissingExtraError
from vosrt.model import Model

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

CHANNELS = 4
BIG = 1 << 40
LEAST = -(1 << 63)
_I64 = np.int64

Build = Callable[[], Any]


def constant(name: str, values: Any, dtype: Any = _I64) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def encoder(nodes: Sequence[Any] = (), constants: Sequence[Any] = (), *, weights: float = 0.01, opset: int = 18) -> Any:
    """An encoder whose output is `embedding`: the map itself, unless `nodes` make it from `map`."""
    kernel = np.full((CHANNELS, 3, 8, 8), weights, np.float32)
    kernel[0, 0] += 0.02
    last = "map" if nodes else "embedding"
    body = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["chw", "kernel"], ["conv"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Transpose", ["conv"], ["hwc"], perm=[0, 2, 3, 1]),
        helper.make_node("LpNormalization", ["hwc"], [last], axis=-1, p=2),
        *nodes,
    ]
    graph = helper.make_graph(
        body,
        "encoder",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", "h", "w", CHANNELS])],
        [numpy_helper.from_array(kernel, "kernel"), *constants],
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", opset)])


def through(operator: str, *inputs: Any, **attributes: Any) -> Build:
    """An operator from `map` to `embedding`; what is no name among its inputs is a constant of integers."""

    def build() -> Any:
        names, constants = list[str](), list[Any]()
        for position, given in enumerate(inputs):
            if not isinstance(given, str):
                constants.append(given if isinstance(given, onnx.TensorProto) else constant(f"c{position}", given))
                given = constants[-1].name
            names.append(given)
        return encoder([helper.make_node(operator, names, ["embedding"], **attributes)], constants)

    return build


def size_of_map(*nodes: Any, **constants: Any) -> Build:
    """Nodes that compute sizes from `shape`, that of the map, and lead to `embedding`."""

    def build() -> Any:
        shape = helper.make_node("Shape", ["map"], ["shape"])
        return encoder([shape, *nodes], [constant(name, values) for name, values in constants.items()])

    return build


def from_data(operator: str, *inputs: str, **attributes: Any) -> Build:
    """An operator whose `indices` are computed from the pixels."""

    def build() -> Any:
        cast = helper.make_node("Cast", ["map"], ["indices"], to=TensorProto.INT64)
        return encoder([cast, helper.make_node(operator, list(inputs), ["embedding"], **attributes)])

    return build


def subgraph(operator: str) -> Build:
    def build() -> Any:
        inner = helper.make_graph([], "body", [], [])
        name = "then_branch" if operator == "If" else "body"
        extra = {"else_branch": inner} if operator == "If" else {"num_scan_inputs": 1} if operator == "Scan" else {}
        return encoder([helper.make_node(operator, ["map"], ["embedding"], **{name: inner}, **extra)])

    return build


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, list(inputs), [output], **attributes)


def arithmetic(operator: str, left: int, right: int) -> Build:
    """Integers that are computed with, and added to the map as floats."""

    def build() -> Any:
        nodes = [
            node(operator, ["a", "b"], "c"),
            node("Cast", ["c"], "f", to=TensorProto.FLOAT),
            node("Add", ["map", "f"], "embedding"),
        ]
        return encoder(nodes, [constant("a", [left]), constant("b", [right])])

    return build


def long_chain() -> Any:
    names = ["map", *(f"x{i}" for i in range(30_000)), "embedding"]
    return encoder([node("Relu", [a], b) for a, b in pairwise(names)])


def renamed(change: Callable[[Any], object]) -> Build:
    def build() -> Any:
        model = encoder([node("Relu", ["map"], "embedding")])
        change(model.graph.node[-1])
        return model

    return build


def floats(values: Any) -> Any:
    return constant("floats_given", values, np.float32)


_INDICES = {
    "one past the end": [CHANNELS],
    "a thousand": [1000],
    "far below": [-1000],
    "2^40": [BIG],
    "INT64_MIN": [LEAST],
}

HOSTILE: dict[str, Build] = {
    **{f"Gather, {title}": through("Gather", "map", index, axis=3) for title, index in _INDICES.items()},
    **{
        f"GatherElements, {title}": through("GatherElements", "map", [[[index]]], axis=3)
        for title, index in _INDICES.items()
    },
    **{f"GatherND, {title}": through("GatherND", "map", [[0, 0, 0, index[0]]]) for title, index in _INDICES.items()},
    **{
        f"ScatterND, {title}": through("ScatterND", "map", [[0, 0, 0, index[0]]], floats([1.0]))
        for title, index in _INDICES.items()
    },
    **{
        f"{name}, {title}": through(name, "map", [[[index]]], floats([[[[1.0]]]]), axis=3)
        for name in ("ScatterElements", "Scatter")
        for title, index in _INDICES.items()
    },
    **{f"{name} by the data": from_data(name, "map", "indices") for name in ("Gather", "GatherElements", "GatherND")},
    "ScatterND by the data": from_data("ScatterND", "map", "indices", "map"),
    "ScatterElements by the data": from_data("ScatterElements", "map", "indices", "map"),
    "Reshape by the data": from_data("Reshape", "map", "indices"),
    "Expand by the data": from_data("Expand", "map", "indices"),
    "Tile by the data": from_data("Tile", "map", "indices"),
    "OneHot by the data": from_data("OneHot", "indices", "indices", "map"),
    "Pad by 2^40": through("Pad", "map", [0, 0, 0, 0, 0, 0, 0, BIG]),
    "Pad by less than nothing": through("Pad", "map", [0, 0, 0, 0, 0, 0, 0, -BIG]),
    "Pad that reflects": through("Pad", "map", [0, 1000, 0, 0, 0, 0, 0, 0], mode="reflect"),
    "INT64_MIN / -1": arithmetic("Div", LEAST, -1),
    "1 / 0": arithmetic("Div", 1, 0),
    "INT64_MIN modulo -1": arithmetic("Mod", LEAST, -1),
    "2^62 x 2^62": arithmetic("Mul", 1 << 62, 1 << 62),
    "shape / -1": size_of_map(
        node("Sub", ["shape", "big"], "d"),
        node("Div", ["d", "minus"], "e"),
        node("Expand", ["map", "e"], "embedding"),
        big=[LEAST],
        minus=[-1],
    ),
    "shape / shape": size_of_map(
        node("Sub", ["shape", "shape"], "nought"),
        node("Div", ["shape", "nought"], "e"),
        node("Reshape", ["map", "e"], "embedding"),
    ),
    "bytes / bytes": lambda: encoder(
        [node("Div", ["frames", "nought"], "q"), node("Cast", ["q"], "embedding", to=TensorProto.FLOAT)],
        [constant("nought", [0], np.uint8)],
    ),
    "Expand to 2^40": through("Expand", "map", [1, 1, BIG, 1]),
    "Expand to a product that overflows": through("Expand", "map", [1 << 16, 1 << 16, 1 << 16, 1 << 16]),
    "Expand by a computed size": size_of_map(
        node("Mul", ["shape", "by"], "e"), node("Expand", ["map", "e"], "embedding"), by=[1 << 20]
    ),
    "Expand to sizes below nought": size_of_map(
        node("Sub", ["shape", "by"], "e"), node("Expand", ["map", "e"], "embedding"), by=[1 << 20]
    ),
    "Tile by 2^40": through("Tile", "map", [1, 1, BIG, 1]),
    "ConstantOfShape of 2^40": through("ConstantOfShape", [BIG]),
    "Range to 2^40": through("Range", [0], [BIG], [1]),
    "EyeLike": through("EyeLike", "map"),
    "OneHot": through("OneHot", [[0]], [BIG], floats([0.0, 1.0])),
    "Resize to 2^40": through("Resize", "map", "", "", [1, 8, BIG, 4], mode="nearest"),
    "Resize by 1e30": through("Resize", "map", "", floats([1, 1, 1e30, 1]), mode="nearest"),
    "Resize by NaN": through("Resize", "map", "", floats([1, 1, np.nan, 1]), mode="nearest"),
    "Resize to nothing": through("Resize", "map", "", "", [1, 0, 4, 4], mode="nearest"),
    "Resize that crops": through(
        "Resize", "map", floats([0] * 8), "", [1, 4, 4, 4], coordinate_transformation_mode="tf_crop_and_resize"
    ),
    "Upsample": through("Upsample", "map", floats([1, 1, 1e9, 1])),
    "Reshape that overflows": through("Reshape", "map", [1 << 32, 1 << 32, 1, 4]),
    "Reshape below nought": through("Reshape", "map", [-7, 4]),
    "Slice with a step of INT64_MIN": through("Slice", "map", [0], [9], [3], [LEAST]),
    "Slice with a step of nought": through("Slice", "map", [0], [9], [3], [0]),
    "Slice of an axis that is not": through("Slice", "map", [0], [9], [1000]),
    "Unsqueeze of an axis that is not": through("Unsqueeze", "map", [BIG]),
    "Squeeze of an axis that is not": through("Squeeze", "map", [-BIG]),
    "Softmax of an axis that is not": through("Softmax", "map", axis=1 << 30),
    "Concat of an axis that is not": through("Concat", "map", "map", axis=-(1 << 40)),
    "Transpose beyond the axes": through("Transpose", "map", perm=[0, 1, 2, 9]),
    "ReduceMean of an axis that is not": through("ReduceMean", "map", [BIG]),
    "TopK": through("TopK", "map", [BIG]),
    "NonZero": through("NonZero", "map"),
    "NonMaxSuppression": through("NonMaxSuppression", "map", "map", [BIG]),
    "RoiAlign": through("RoiAlign", "map", "map", [BIG], output_height=1 << 20),
    "MaxRoiPool": through("MaxRoiPool", "map", "map", pooled_shape=[1 << 20, 1 << 20]),
    "GridSample": through("GridSample", "map", "map"),
    "DepthToSpace by nought": through("DepthToSpace", "map", blocksize=0),
    "SpaceToDepth": through("SpaceToDepth", "map", blocksize=1 << 20),
    "MaxUnpool": through("MaxUnpool", "map", [[[[BIG]]]], kernel_shape=[2, 2]),
    "MaxPool of 2^40": through("MaxPool", "map", kernel_shape=[1, BIG]),
    "MaxPool with a stride of nought": through("MaxPool", "map", kernel_shape=[1, 1], strides=[0, 0]),
    "MaxPool with pads below nought": through("MaxPool", "map", kernel_shape=[1, 1], pads=[-9, -9, 0, 0]),
    "MaxPool by columns": through("MaxPool", "map", kernel_shape=[1, 1], storage_order=1),
    "Conv with a dilation of 2^40": through("Conv", "map", "kernel", dilations=[BIG, BIG]),
    "Conv in nought groups": through("Conv", "map", "kernel", group=0),
    "ConvTranspose": through("ConvTranspose", "map", "kernel", output_shape=[1 << 20, 1 << 20]),
    "LpPool": through("LpPool", "map", kernel_shape=[1 << 20, 1]),
    "LSTM": through("LSTM", "map", "map", "map", hidden_size=1 << 30),
    "GRU": through("GRU", "map", "map", "map", hidden_size=-1),
    "Einsum": through("Einsum", "map", equation="abcd->" + "a" * 50),
    "Split into 2^40": through("Split", "map", axis=3, num_outputs=1),
    "Compress": through("Compress", "map", "map"),
    "Unique": through("Unique", "map"),
    "CumSum": through("CumSum", "map", [BIG]),
    "ReverseSequence": through("ReverseSequence", "map", [BIG]),
    "Trilu": through("Trilu", "map", [BIG]),
    "RandomNormal": through("RandomNormal", shape=[1 << 20, 1 << 20]),
    "RandomUniformLike": through("RandomUniformLike", "map"),
    "Multinomial": through("Multinomial", "map", sample_size=1 << 30),
    "DFT": through("DFT", "map", [BIG]),
    "HannWindow": through("HannWindow", [BIG]),
    "MelWeightMatrix": through("MelWeightMatrix", [BIG], [BIG], [1], floats([0.0]), floats([1.0])),
    "SequenceAt": through("SequenceAt", "map", [BIG]),
    "SequenceEmpty": through("SequenceEmpty"),
    "StringNormalizer": through("StringNormalizer", "map"),
    "ImageDecoder": through("ImageDecoder", "map"),
    "BitShift": through("BitShift", "map", [1000], direction="LEFT"),
    "Where": through("Where", "map", "map", "map"),
    "Dropout": through("Dropout", "map"),
    "QuantizeLinear by computed scales": through("QuantizeLinear", "map", "map"),
    "Cast to integers": through("Cast", "map", to=TensorProto.INT64),
    "Cast to text": through("Cast", "map", to=TensorProto.STRING),
    "CastLike": through("CastLike", "map", [1]),
    "Loop": subgraph("Loop"),
    "If": subgraph("If"),
    "Scan": subgraph("Scan"),
    "SequenceMap": subgraph("SequenceMap"),
    "another domain": through("Gelu", "map", domain="com.microsoft"),
    "an attribute that no bundle needs": through("Relu", "map", consumed_inputs=[1]),
    "an attribute that is NaN": through("Gemm", "map", "map", alpha=float("nan")),
    "a list where a number belongs": size_of_map(
        node("Shape", ["map"], "s", start=[1, 2]), node("Reshape", ["map", "s"], "embedding")
    ),
    "an operator that turns the terminal red": through("\x1b]0;owned\x07\x1b[31mRED", "map"),
    "a node whose name clears the screen": renamed(
        lambda it: it.MergeFrom(onnx.NodeProto(name="\x1b[2J", op_type="Evil"))
    ),
    "a cycle": lambda: encoder(
        [node("Add", ["map", "b"], "a"), node("Relu", ["a"], "b"), node("Relu", ["b"], "embedding")]
    ),
    "an input that nothing computes": through("Add", "map", "nothing"),
    "an output that exists": lambda: encoder([node("Relu", ["map"], "map"), node("Relu", ["map"], "embedding")]),
    "two outputs": renamed(lambda it: it.output.append("more")),
    "no output": renamed(lambda it: it.ClearField("output")),
    "65 inputs": through("Max", *["map"] * 65),
    "30 000 nodes": long_chain,
    "infinite weights": lambda: encoder(weights=float("inf")),
    "weights that are no numbers": lambda: encoder(weights=float("nan")),
    "half weights that are no numbers": through("Add", "map", constant("h", [np.nan], np.float16)),
    "a long list of integers": through("Reshape", "map", [1] * 100),
    "double weights": through("Add", "map", constant("d", [1.0], np.float64)),
    "text as weights": through("Add", "map", helper.make_tensor("t", TensorProto.STRING, [1], [b"x"])),
}


def _sizes_by_arithmetic() -> Any:
    """What exports write for a grid: (side - 1) / 1 + 1, and a reshape to it."""
    nodes = [
        node("Shape", ["map"], "n", start=0, end=1),
        node("Shape", ["map"], "rows", start=1, end=2),
        node("Squeeze", ["rows"], "side"),
        node("Add", ["minus", "side"], "less"),
        node("Div", ["less", "one"], "part"),
        node("Add", ["one", "part"], "more"),
        node("Reshape", ["more", "vector"], "sides"),
        node("Concat", ["n", "sides", "vector", "channels"], "shape", axis=0),
        node("Reshape", ["map", "shape"], "embedding", allowzero=1),
    ]
    numbers = [constant("minus", -1), constant("one", 1), constant("vector", [-1]), constant("channels", [CHANNELS])]
    return encoder(nodes, numbers)


def _quantised() -> Any:
    nodes = [
        node("QuantizeLinear", ["map", "scale", "zero"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], "embedding"),
    ]
    return encoder(nodes, [constant("scale", 1 / 127, np.float32), constant("zero", 0, np.int8)])


def _backwards() -> Any:
    """The nodes from last to first; quantisers append theirs wherever they are."""
    model = _sizes_by_arithmetic()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


SOUND: dict[str, Build] = {
    "the encoder": encoder,
    "ends in Identity": through("Identity", "map"),
    "sizes by arithmetic": _sizes_by_arithmetic,
    "from last to first": _backwards,
    "quantised and back": _quantised,
    "a slice to the end": through("Slice", "map", [0], [(1 << 63) - 1], [3], [1]),
    "its first and only": lambda: encoder(
        [node("Unsqueeze", ["map", "axis"], "u"), node("Gather", ["u", "first"], "embedding", axis=0)],
        [constant("axis", [0]), constant("first", 0)],
    ),
    "a constant inside": lambda: encoder(
        [
            node("Constant", [], "one", value=constant("v", [1.0], np.float32)),
            node("Mul", ["map", "one"], "embedding"),
        ]
    ),
}


BundleOf = Callable[..., Path]


@pytest.fixture
def bundle_of(tmp_path: Path) -> BundleOf:
    """Writes a model as the encoder of a bundle, with the right size and hash."""
    return lambda model: write_bundle(tmp_path / "bundle", model.SerializeToString(), channels=CHANNELS)


@pytest.mark.parametrize("way", HOSTILE)
def test_refused_before_an_engine_sees_it(way: str, bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """One printable line refuses it."""
    monkeypatch.setattr(vosrt.model, "create_encoder_engine", lambda *_, **__: pytest.fail("an engine was started"))
    root = bundle_of(HOSTILE[way]())
    with pytest.raises(BundleError) as caught:
        Model.load(root)
    message = str(caught.value)
    assert str(root) in message
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize(
    "way", ["Gather, a thousand", "Pad by 2^40", "INT64_MIN / -1", "an operator that turns the terminal red"]
)
def test_the_command_line_names_the_node(
    way: str, bundle_of: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It exits with 2 after one line and makes no output folder."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "clip").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "clip" / "0.png")
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "mask.png")
    where = [str(tmp_path / "clip"), "--mask", str(tmp_path / "mask.png"), "-o", str(tmp_path / "out")]
    assert vos_run([*where, "--bundle", str(bundle_of(HOSTILE[way]()))]) == 2
    error = error_line(capsys)
    assert "is refused: node 5 (" in error
    assert error[:-1].isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
@pytest.mark.parametrize("way", SOUND)
def test_sound_graphs_run(way: str, engine: str, bundle_of: BundleOf, skip_or_fail: Callable[..., None]) -> None:
    """Every engine takes them, with any suffix."""
    root = bundle_of(SOUND[way]())
    try:
        model = Model.load(root, engine=engine, precision="fp32", threads=1)
    except MissingExtraError as error:
        skip_or_fail(str(error), required=engine)
    frame = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    embedding = model.encode(frame).array
    assert embedding.shape == (4, 5, CHANNELS)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1, atol=0.02)


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_a_graph_is_read_once(engine: str, bundle_of: BundleOf, skip_or_fail: Callable[..., None]) -> None:
    """What was checked is what runs at every frame size, although the file is swapped, damaged and removed."""
    root = bundle_of(encoder())
    try:
        model = Model.load(root, engine=engine, precision="fp32", threads=1)
        exact = Model.load(load_bundle(root), engine=engine, precision="fp32", threads=1)
    except MissingExtraError as error:
        skip_or_fail(str(error), required=engine)
    frames = [
        np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (32, 40, 48, 56)
    ]
    right = [exact.encode(frame).array for frame in frames]
    changes: list[Callable[[Path], object]] = [
        lambda file: None,
        lambda file: file.write_bytes(encoder(weights=-3.0).SerializeToString()),
        lambda file: file.write_bytes(b"garbage"),
        lambda file: file.unlink(),
    ]
    for change, frame, wanted in zip(changes, frames, right, strict=True):
        change(root / "encoder.onnx")
        np.testing.assert_array_equal(model.encode(frame).array, wanted)


def test_another_engine_is_taken_where_one_computes_something_else(
    bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch, skip_or_fail: Callable[..., None]
) -> None:
    """A probe that gives no embedding, or one of NaN, is a refusal of that engine."""
    from vosrt.engines.openvino import OpenVinoEngine

    root = bundle_of(encoder())
    try:
        Model.load(root, engine="openvino")
    except MissingExtraError as error:
        skip_or_fail(str(error), required="openvino")
    for wrong, why in (
        ({}, "gave nothing for 'embedding'"),
        ({"embedding": np.zeros((1, 4, 4, 3), np.float32)}, "gave float32 [1, 4, 4, 3]"),
        ({"embedding": np.full((1, 4, 4, CHANNELS), np.nan, np.float32)}, "NaN or infinity"),
    ):
        monkeypatch.setattr(OpenVinoEngine, "_run", lambda *_, wrong=wrong: wrong)
        description = Model.load(root, engine="auto").describe()["engines"]["encoder"]
        assert description["name"] == "cpu"
        assert why in description["reason"]
