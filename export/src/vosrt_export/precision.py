"""Precision decided in the graph: fp32 in, fp16 or bf16 where the work is, fp32 where accuracy is.

TensorRT 11 and TensorRT-RTX take a network as it is typed and no longer choose precision while building. A graph is
therefore rewritten before it is built:

- operators that multiply (convolutions, matrix products) take their inputs in the narrow type;
- operators that only pass values on or combine them (activations, pooling, sums, layout) follow their inputs: narrow if
  all of those are;
- everything else stays in fp32: normalisation of the frames, and the unit length that ends the graph.

Inputs and outputs keep their types, so hosts need not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from vosrt.bundle import NO_FP8
from vosrt.errors import OptionError
from vosrt.text import reason_of
from vosrt_export.errors import ExportError

GraphPrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

RECIPE = 2  # raised whenever the rewriting or the build changes, so that engines of an earlier one are rebuilt

_MULTIPLY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FOLLOW = frozenset(
    {
        *("Add", "Mul", "Sub", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Erf"),
        *("MaxPool", "AveragePool", "Concat", "Slice", "Split", "Pad", "Resize"),
        *("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Identity"),
    }
)
# Inputs that are floats but no values of the network: they keep their type.
_NOT_VALUES = {"Resize": (1, 2)}
_NARROW_TYPE = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_QUANTISED: dict[int, str] = {TensorProto.INT8: "int8", TensorProto.FLOAT8E4M3FN: "fp8"}
_BF16_OPSET = 22  # the first whose convolutions and pooling admit bf16


def convert_precision(model: ModelProto, precision: GraphPrecision) -> ModelProto:
    """Type a graph for a precision, so that the engine has no choice.

    Args:
        model: an fp32 graph; its weights may be stored as fp16 and cast. It is not changed.
        precision: ``"int8"`` and ``"fp8"`` take a graph that is quantised already, and leave the rest of it in fp32.

    Raises:
        OptionError: the graph is not quantised in the way that is asked for, or is where it should not be.
        ExportError: a weight does not fit into fp16, or the result is no valid graph.
    """
    converted = ModelProto()
    converted.CopyFrom(model)
    _check_quantisation(converted, precision)
    _fold_casts_of_weights(converted)
    _fold_biases(converted)
    try:
        if precision == "bf16":
            converted = _with_opset(converted, _BF16_OPSET)
        if precision in _NARROW_TYPE:
            _Narrowing(converted, _NARROW_TYPE[precision]).run()
        onnx.checker.check_model(converted, full_check=True)
    except ExportError:
        raise
    except Exception as error:  # checker, shape and version inference share no base class
        raise ExportError(f"the graph is not valid in {precision}: {reason_of(error)}") from error
    return converted


def cast_frames_first(model: ModelProto) -> ModelProto:
    """Cast the bytes of a graph to floats before they are moved: TensorRT takes bytes as input of a cast only.

    Args:
        model: a graph that may begin with a transposition of its uint8 input. It is not changed.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    bytes_in = {value.name for value in changed.graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    nodes = list(changed.graph.node)
    for move in [node for node in nodes if node.op_type == "Transpose" and node.input[0] in bytes_in]:
        casts = [node for node in nodes if move.output[0] in node.input]
        if len(casts) != 1 or casts[0].op_type != "Cast":
            raise ExportError(
                f"{move.name or 'a Transpose'} moves bytes that are not cast next; TensorRT cannot run it"
            )
        cast = casts[0]
        frames, floats, moved = move.input[0], f"{move.input[0]}.cast", cast.output[0]
        cast.input[0], cast.output[0] = frames, floats
        move.input[0], move.output[0] = floats, moved
        nodes.remove(cast)
        nodes.insert(nodes.index(move), cast)
    _replace(changed, nodes)
    return changed


def quantisation(model: ModelProto) -> set[str]:
    """Return the types of the quantised operators: ``"int8"``, ``"fp8"``, or a type of ONNX like ``"uint8"``."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: set[int] = set()
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            given = next((each.i for each in node.attribute if each.name == "output_dtype"), 0)
            kind = types.get(node.input[2], given) if len(node.input) > 2 else given
            found.add(kind or TensorProto.UINT8)  # the default of ONNX
        elif node.op_type == "DequantizeLinear" and node.input[0] in types:
            found.add(types[node.input[0]])
    found.discard(TensorProto.INT32)  # biases, beside either
    return {_QUANTISED.get(kind) or _type_name(kind) for kind in found}


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _check_quantisation(model: ModelProto, precision: GraphPrecision) -> None:
    found = quantisation(model)
    if found == ({precision} & set(_QUANTISED.values())):
        return
    if not found and precision == "fp8":
        raise OptionError(f"precision is 'fp8' but the graph is not quantised in it; {NO_FP8}; choose int8 or fp16")
    if not found:
        raise OptionError(
            f"precision is {precision!r} but the graph is not quantised; "
            "take a quantised bundle, or choose fp32, fp16 or bf16"
        )
    kinds = ", ".join(sorted(found))
    remedy = (
        f"choose {kinds}" if found in ({"int8"}, {"fp8"}) else "quantise it again without --asymmetric for TensorRT"
    )
    raise OptionError(f"precision is {precision!r} but the graph is quantised in {kinds}; {remedy}")


def _fold_casts_of_weights(model: ModelProto) -> None:
    """Convert weights that are stored in fp16 to the type of their casts, and remove the casts."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        tensor = constants.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or node.attribute[0].i != TensorProto.FLOAT:
            kept.append(node)
            continue
        values = numpy_helper.to_array(tensor).astype("float32")
        model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    _replace(model, kept)
    _drop_unused_weights(model)


def _fold_biases(model: ModelProto) -> None:
    """Convert int32 biases to floats: integer kernels of CPUs need int32, TensorRT refuses it."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.data_type != TensorProto.INT32:
            kept.append(node)
            continue
        scale, *zeros = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        values = (numpy_helper.to_array(stored).astype("float64") - sum(zeros)) * scale
        model.graph.initializer.append(numpy_helper.from_array(values.astype("float32"), node.output[0]))
    _replace(model, kept)
    _drop_unused_weights(model)


def _with_opset(model: ModelProto, opset: int) -> ModelProto:
    have = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return onnx.version_converter.convert_version(model, opset) if have < opset else model


class _Narrowing:
    """One pass over a graph whose nodes are in order, inserting casts where types change."""

    def __init__(self, model: ModelProto, narrow: int) -> None:
        self._model = model
        self._narrow = narrow
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._narrow_names: set[str] = set()
        self._casts: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        floats = _float_names(self._model)
        outputs = {value.name for value in self._model.graph.output}
        for node in list(self._model.graph.node):
            values = [
                i for i, name in enumerate(node.input) if name in floats and i not in _NOT_VALUES.get(node.op_type, ())
            ]
            activations = [node.input[i] for i in values if node.input[i] not in self._weights]
            narrow = node.op_type in _MULTIPLY or (
                node.op_type in _FOLLOW and bool(activations) and self._narrow_names.issuperset(activations)
            )
            for i in values:
                node.input[i] = self._as_type(node.input[i], narrow)
            self._nodes.append(node)
            if narrow:
                for i, name in enumerate(node.output):
                    if name in outputs:  # the host is promised fp32
                        node.output[i] = f"{name}.narrow"
                        self._cast(node.output[i], name, TensorProto.FLOAT)
                    elif name:
                        self._narrow_names.add(name)
        _replace(self._model, self._nodes)
        _drop_unused_weights(self._model)
        del self._model.graph.value_info[:]  # of the types before

    def _as_type(self, name: str, narrow: bool) -> str:
        """Return the name of a value in a type, and insert a cast if needed."""
        if narrow == (name in self._narrow_names):
            return name
        kind = self._narrow if narrow else TensorProto.FLOAT
        if (name, kind) not in self._casts:
            cast_name = f"{name}.{_type_name(kind)}"
            self._casts[name, kind] = cast_name
            if name in self._weights:
                self._model.graph.initializer.append(_narrow_weight(self._weights[name], cast_name, kind))
            else:
                self._cast(name, cast_name, kind)
        return self._casts[name, kind]

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind))


def _narrow_weight(tensor: TensorProto, name: str, kind: int) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):  # looked for below
        narrow = values.astype(helper.tensor_dtype_to_np_dtype(kind))
    if kind == TensorProto.FLOAT16 and not np.isfinite(narrow).all():
        raise ExportError(f"{tensor.name} has values beyond the range of fp16; use fp32 or bf16")
    return numpy_helper.from_array(narrow, name)


def _float_names(model: ModelProto) -> set[str]:
    """Return the names of all fp32 values of a graph."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    typed = (*inferred.input, *inferred.value_info, *inferred.output)
    names = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in inferred.initializer if tensor.data_type == TensorProto.FLOAT}


def _replace(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _drop_unused_weights(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
