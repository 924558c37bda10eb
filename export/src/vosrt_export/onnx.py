"""Export from PyTorch to ONNX: a plain graph with dynamic sizes whose bytes depend on its content alone."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from vosrt.bundle import WeightPrecision
from vosrt_export.errors import ExportError

OPSET = 18
INPUT_NAME = "frames"
OUTPUT_NAME = "embedding"

_TYPES = {torch.uint8: TensorProto.UINT8, torch.float32: TensorProto.FLOAT}


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph.

    Attributes:
        inputs: shape of each input by its name; equal words are equal sizes, numbers are fixed.
        examples: one tensor per input, with which the graph is traced.
        outputs: shape of each output by its name, all f32.
    """

    inputs: Mapping[str, tuple[str | int, ...]]
    examples: tuple[Tensor, ...]
    outputs: Mapping[str, tuple[str | int, ...]]


def export_onnx(graph: nn.Module, weights: WeightPrecision) -> bytes:
    """Export a graph that maps u8 [n, height, width, 3] to f32 [n, h, w, K].

    Args:
        graph: the module, in evaluation mode.
        weights: as for `export_graph`.

    Returns:
        The serialised model.

    Raises:
        ExportError: the exporter failed, or a weight does not fit into fp16.
    """
    # Unequal, odd sizes, of grids, too: the exporter would take equal sizes of the example for a rule.
    example = torch.zeros((2, 35, 61, 3), dtype=torch.uint8)
    with torch.no_grad():
        channels = graph.eval()(example[:1]).shape[3]
    signature = Signature(
        {INPUT_NAME: ("n", "height", "width", 3)}, (example,), {OUTPUT_NAME: ("n", "h", "w", channels)}
    )
    return export_graph(graph, "encoder", signature, weights)


def export_graph(graph: nn.Module, name: str, signature: Signature, weights: WeightPrecision) -> bytes:
    """Export a graph with dynamic sizes.

    Args:
        graph: the module, in evaluation mode.
        weights: ``"fp16"`` stores the weights of convolutions and linear layers as halves that are cast back when
            the model is loaded: half the file, arithmetic as before.

    Returns:
        The serialised model.

    Raises:
        ExportError: the exporter failed, or a weight does not fit into fp16.
    """
    if weights == "fp16":
        _check_range(graph)
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str)}
        for shape in signature.inputs.values()
    )
    with _quiet_exporter(), torch.no_grad():
        # The exporter cannot express how some sizes follow from others; the engine checks them.
        traced = torch.export.export(
            graph.eval(), signature.examples, dynamic_shapes=dynamic, prefer_deferred_runtime_asserts_over_guards=True
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError("the ONNX exporter of PyTorch returned nothing; try the versions that vosrt[export] names")
    model = _canonical(program.model_proto, name, signature)
    if weights == "fp16":
        _store_as_fp16(model.graph)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _canonical(model: ModelProto, name: str, signature: Signature) -> ModelProto:
    """Remove the notes of the exporter: stack traces, paths, versions."""
    source = model.graph
    used = {name for node in source.node for name in node.input}
    weights = [tensor for tensor in source.initializer if tensor.name in used]
    for part in (*source.node, *weights):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph = helper.make_graph(
        source.node,
        name,
        [
            helper.make_tensor_value_info(each, _TYPES[example.dtype], list(shape))
            for (each, shape), example in zip(signature.inputs.items(), signature.examples, strict=True)
        ],
        [
            helper.make_tensor_value_info(each, TensorProto.FLOAT, list(shape))
            for each, shape in signature.outputs.items()
        ],
        sorted(weights, key=lambda tensor: tensor.name),
    )
    return helper.make_model(
        graph,
        producer_name="vosrt",
        ir_version=model.ir_version,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def _check_range(graph: nn.Module) -> None:
    largest = torch.finfo(torch.float16).max
    for name, module in graph.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.abs().max() <= largest:
            raise ExportError(f"{name} has weights beyond the range of fp16; export with --weights fp32")


def _store_as_fp16(graph: GraphProto) -> None:
    """Store weights of convolutions and linear layers in fp16; biases and constants are small and stay in fp32."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not _is_weight(graph, tensor.name):
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _is_weight(graph: GraphProto, name: str) -> bool:
    return any(node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] == name for node in graph.node)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the messages of the exporter about itself and about torchvision, which the export does not use."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registration.setLevel(level)
