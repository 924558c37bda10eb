"""Graphs rewritten to a precision: what becomes narrow, what does not, and how far the result moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vosrt.bundle import Feature, WeightPrecision
from vosrt.engines.onnxruntime import load_onnxruntime
from vosrt.errors import OptionError
from vosrt.types import F32Array, U8Array
from vosrt_export.errors import ExportError
from vosrt_export.precision import GraphPrecision, cast_frames_first, convert_precision, quantisation

ModelOf = Callable[[Feature, WeightPrecision], bytes]

FRAMES: U8Array = np.random.default_rng(0).integers(0, 256, (1, 37, 51, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def model(request: pytest.FixtureRequest, small_model: ModelOf) -> ModelProto:
    """The small encoder, its weights stored in each way that a bundle may store them."""
    return onnx.load_from_string(small_model("res4", request.param))


def run(model: ModelProto, frames: U8Array = FRAMES) -> F32Array:
    """In ONNX Runtime, or in ONNX's own evaluator for bf16, which the former does not convolve on a CPU."""
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        outputs: Any = ReferenceEvaluator(model).run(None, {"frames": frames})
        return cast(F32Array, outputs[0])
    session = load_onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return cast(F32Array, session.run(None, {"frames": frames})[0])


def value_types(model: ModelProto) -> dict[str, int]:
    """Element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types: dict[str, int] = {
        v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)
    }
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return types


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_the_result_moves_by_rounding_only(model: ModelProto, precision: GraphPrecision, tolerance: float) -> None:
    """The output is unit vectors in fp32 in any precision."""
    before, after = run(model), run(convert_precision(model, precision))
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, atol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(after, axis=-1), 1, atol=1e-5)
    if precision != "fp32":
        assert not np.array_equal(after, before), "nothing was computed in the narrow type"


@pytest.mark.parametrize(
    ("precision", "narrow"),
    [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16), ("fp32", TensorProto.FLOAT)],
)
def test_work_is_narrow_and_normalisation_is_not(model: ModelProto, precision: GraphPrecision, narrow: int) -> None:
    """Convolutions and what lies between them are narrow; the frames' normalisation and the unit length are not."""
    converted = convert_precision(model, precision)
    types = value_types(converted)
    for node in converted.graph.node:
        if node.op_type in ("Conv", "Relu", "MaxPool", "Add"):
            assert {types[name] for name in (*node.input, *node.output)} == {narrow}, node.name
        elif node.op_type in ("ReduceL2", "Div", "Sub", "Mul"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    casts = [node for node in converted.graph.node if node.op_type == "Cast"]
    assert len(casts) == (1 if precision == "fp32" else 3)  # bytes to floats; into the narrow part, and out of it


def test_the_model_given_stays_as_it_is(model: ModelProto) -> None:
    before = model.SerializeToString()
    convert_precision(model, "bf16")
    cast_frames_first(model)
    assert model.SerializeToString() == before


def test_bytes_are_cast_before_they_are_moved(model: ModelProto) -> None:
    """TensorRT takes uint8 into a cast only; the result is the same to the bit."""
    changed = cast_frames_first(model)
    onnx.checker.check_model(changed, full_check=True)
    assert [node.op_type for node in changed.graph.node if "frames" in node.input] == ["Cast"]
    np.testing.assert_array_equal(run(changed), run(model))
    np.testing.assert_array_equal(run(cast_frames_first(changed)), run(model))


def graph_of(nodes: list[Any], weights: dict[str, Any], opset: int = 18) -> ModelProto:
    """A graph on floats [1, 2, 8, 8]."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("x", TensorProto.FLOAT, [1, 2, 8, 8])],
        [value("y", TensorProto.FLOAT, [1, 2, 8, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


KERNEL = np.full((2, 2, 1, 1), 0.3, dtype=np.float32)


def test_values_that_both_sides_use_are_had_in_both_types() -> None:
    """A narrow value read by a wide operator is cast once, however often it is read."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Softmax", ["c"], ["s"], axis=1),
        helper.make_node("LogSoftmax", ["c"], ["l"], axis=1),
        helper.make_node("Add", ["s", "c"], ["a"]),
        helper.make_node("Mul", ["a", "l"], ["y"]),
    ]
    model = graph_of(nodes, {"k": KERNEL})
    converted = convert_precision(model, "fp16")
    assert [node.op_type for node in converted.graph.node].count("Cast") == 2
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 8)).astype(np.float32)
    wanted, found = (cast(Any, ReferenceEvaluator(each).run(None, {"x": x}))[0] for each in (model, converted))
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_an_output_that_is_narrow_inside_leaves_as_fp32() -> None:
    converted = convert_precision(graph_of([helper.make_node("Conv", ["x", "k"], ["y"])], {"k": KERNEL}), "fp16")
    assert value_types(converted)["y"] == TensorProto.FLOAT


def test_weights_beyond_fp16_are_refused() -> None:
    """They would become infinite; bf16 has the range."""
    model = graph_of([helper.make_node("Conv", ["x", "k"], ["y"])], {"k": KERNEL * 1e6})
    with pytest.raises(ExportError, match="k has values beyond the range of fp16; use fp32 or bf16"):
        convert_precision(model, "fp16")
    convert_precision(model, "bf16")


def quantised(kind: Any, opset: int = 21) -> ModelProto:
    """One quantised convolution."""
    point = np.zeros((), dtype=kind)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Conv", ["d", "k"], ["y"]),
    ]
    return graph_of(nodes, {"scale": np.float32(0.02), "zero": point, "k": KERNEL}, opset)


def test_quantised_graphs_are_known_by_their_types() -> None:
    fp8 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
    assert quantisation(quantised(np.int8)) == {"int8"}
    assert quantisation(quantised(np.uint8)) == {"uint8"}
    assert quantisation(quantised(fp8)) == {"fp8"}
    assert quantisation(graph_of([helper.make_node("Relu", ["x"], ["y"])], {})) == set()
    for precision, kind in (("int8", np.int8), ("fp8", fp8)):
        converted = convert_precision(quantised(kind), cast(GraphPrecision, precision))
        assert [node.op_type for node in converted.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Conv"]


@pytest.mark.parametrize(
    ("kind", "precision", "says"),
    [
        (np.int8, "fp16", "the graph is quantised in int8; choose int8"),
        (np.int8, "fp8", "the graph is quantised in int8"),
        (np.uint8, "int8", "the graph is quantised in uint8; quantise it again without --asymmetric for TensorRT"),
        (None, "int8", "the graph is not quantised; take a quantised bundle"),
        (
            None,
            "fp8",
            "not quantised in it; vos-export quantise makes int8 alone, since what fp8 loses shows only on GPUs",
        ),
    ],
)
def test_a_precision_that_the_graph_does_not_have(kind: Any, precision: GraphPrecision, says: str) -> None:
    """A quantised graph is used as it is, or refused."""
    model = quantised(kind) if kind else graph_of([helper.make_node("Relu", ["x"], ["y"])], {})
    with pytest.raises(OptionError, match=says):
        convert_precision(model, precision)
