"""A bundle's graph in PyTorch, operator by operator: for GPUs on which PyTorch is all that runs a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

_TYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.UINT8: torch.uint8,
}


def _windows(attributes: Mapping[str, Any], sides: str = "pads") -> tuple[int, int]:
    """Rows and columns of padding, which this folder's exports have alike on both sides."""
    top, left, bottom, right = attributes.get(sides, (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise NotImplementedError(f"padding {attributes[sides]}, which differs between two sides")
    return top, left


def _convolve(a: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = None if bias is None else bias.to(weight.dtype)
    return functional.conv2d(x.to(weight.dtype), weight, bias, a["strides"], _windows(a), a["dilations"], a["group"])


def _resize(a: Mapping[str, Any], x: Tensor, _roi: Tensor, _scales: Tensor, sizes: Tensor) -> Tensor:
    if (a["mode"], a["coordinate_transformation_mode"]) != (b"linear", b"half_pixel"):
        raise NotImplementedError(f"resizing by {a['mode']!r}, {a['coordinate_transformation_mode']!r}")
    return functional.interpolate(x, size=sizes.tolist()[2:], mode="bilinear", align_corners=False)


def _axes(a: Mapping[str, Any], axes: Tensor | None) -> list[int]:
    found = a.get("axes") if axes is None else axes.tolist()
    return list(found or ())


def _squeeze(_: Mapping[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _unsqueeze(_: Mapping[str, Any], x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _reshape(a: Mapping[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    if not a.get("allowzero"):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _alike(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operator of two inputs; the narrower one of a network in fp16 is widened."""

    def apply(_: Mapping[str, Any], x: Tensor, y: Tensor) -> Tensor:
        if x.is_floating_point() and x.dtype != y.dtype:
            kind = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(kind), y.to(kind)
        return operation(x, y)

    return apply


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": _alike(torch.add),
    "Cast": lambda a, x: x.to(_TYPES[a["to"]]),
    "Clip": lambda _, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Conv": _convolve,
    "Div": lambda a, x, y: _alike(torch.div)(a, x, y) if x.is_floating_point() else x // y,
    "Gather": lambda a, x, i: x[(slice(None),) * a.get("axis", 0) + (int(i) if i.dim() == 0 else i,)],
    "Identity": lambda _, x: x,
    "MatMul": lambda _, x, y: x.to(y.dtype) @ y,
    "Max": _alike(torch.maximum),
    "MaxPool": lambda a, x: functional.max_pool2d(x, a["kernel_shape"], a["strides"], _windows(a)),
    "Mul": _alike(torch.mul),
    "ReduceL2": lambda a, x, axes=None: x.float().norm(dim=_axes(a, axes), keepdim=bool(a["keepdims"])),
    "ReduceMax": lambda a, x, axes=None: x.amax(_axes(a, axes), keepdim=bool(a["keepdims"])),
    "ReduceMean": lambda a, x, axes=None: x.mean(_axes(a, axes), keepdim=bool(a["keepdims"])),
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0) : a.get("end")]),
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Squeeze": _squeeze,
    "Sub": _alike(torch.sub),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}


class OnnxInTorch:
    """Computes a checked ONNX graph with PyTorch.

    Args:
        content: bytes of the file.
        device: where it runs; shapes are computed on the processor.
        half: convolutions and products in fp16.

    Raises:
        NotImplementedError: the graph has an operator that this does not know.
    """

    def __init__(self, content: bytes, device: torch.device, *, half: bool) -> None:
        graph = onnx.load_from_string(content).graph
        self._outputs = [output.name for output in graph.output]
        nodes = [
            (
                node.op_type,
                list(node.input),
                node.output[0],
                {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in graph.node
        ]
        if unknown := {kind for kind, *_ in nodes if kind not in (*_OPERATORS, "Constant")}:
            raise NotImplementedError(f"PyTorch stands in for no {', '.join(sorted(unknown))}")
        constants = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
        self._nodes = []
        for kind, inputs, output, attributes in nodes:
            if kind == "Constant":
                constants[output] = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
            elif all(name in constants for name in inputs):  # weights that are stored in fp16
                constants[output] = _OPERATORS[kind](attributes, *(constants[name] for name in inputs))
            else:
                self._nodes.append((_OPERATORS[kind], inputs, output, attributes))
        wide = {inputs[1] for operator, inputs, *_ in self._nodes if operator in (_convolve, _OPERATORS["MatMul"])}
        for name, value in constants.items():
            if value.is_floating_point():
                value = value.to(device, torch.float16 if half and name in wide else torch.float32)
                constants[name] = value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
        self._constants = constants

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name: f32, without gaps."""
        values = {**self._constants, **inputs}
        for operator, names, output, attributes in self._nodes:
            values[output] = operator(attributes, *(values[name] if name else None for name in names))
        return {name: values[name].float().contiguous() for name in self._outputs}
