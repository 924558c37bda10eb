"""Promptable networks of the user's: stand-ins for SAM and SAM 2 that show where each click and box arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosrt import EngineError, MissingExtraError, Model, OptionError
from vosrt.prompt.onnx import OnnxSegmenter
from vosrt.types import U8Array

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIDE, LOW = 1024, 256
RADIUS = 60  # of the disc around the last point, in pixels of the encoder's picture


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> Path:
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def _value(name: str, *shape: int | str) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def pair(folder: Path, *, stretches: bool) -> tuple[Path, Path]:
    """An encoder that gives the picture at 256 pixels, and a decoder that knows a disc around the first point.

    Its mask is the disc where the picture is bright, and the mask that it was given.
    """
    node = onnx.helper.make_node
    embedding = "image_embed" if stretches else "image_embeddings"
    encoder = _save(
        folder / "encoder.onnx",
        [node("AveragePool", ["image"], ["image_embeddings"], kernel_shape=[4, 4], strides=[4, 4])]
        + ([node("Identity", ["image_embeddings"], ["high_res_feats_0"])] if stretches else []),
        [_value("image", 1, 3, SIDE, SIDE)],
        [_value("image_embeddings", 1, 3, LOW, LOW)]
        + ([_value("high_res_feats_0", 1, 3, LOW, LOW)] if stretches else []),
        {},
    )
    middle = (np.arange(LOW, dtype=np.float32) + 0.5) * (SIDE / LOW)
    nodes = [
        node("Slice", ["point_coords", "zero", "one", "axis1"], ["first"]),
        node("Slice", ["first", "zero", "one", "axis2"], ["x"]),
        node("Slice", ["first", "one", "two", "axis2"], ["y"]),
        node("Sub", ["columns", "x"], ["dx"]),
        node("Sub", ["rows", "y"], ["dy"]),
        node("Mul", ["dx", "dx"], ["dx2"]),
        node("Mul", ["dy", "dy"], ["dy2"]),
        node("Add", ["dx2", "dy2"], ["d2"]),
        node("Sub", ["r2", "d2"], ["disc"]),
        node("ReduceMean", [embedding], ["bright"], axes=[1]),
        node("Min", ["disc", "bright"], ["found"]),
        node("Max", ["found", "mask_input"], ["either"]),
        node("Where", ["has", "either", "found"], ["masks"]),
        node("Cast", ["has_mask_input"], ["has"], to=onnx.TensorProto.BOOL),
        node("Identity", ["score"], ["iou_predictions"]),
    ]
    if stretches:  # its input has to be used
        nodes.append(node("ReduceMean", ["high_res_feats_0"], ["unused"], axes=[1, 2, 3]))
    nodes.sort(key=lambda each: each.op_type != "Cast")  # before Where, which takes what it gives
    decoder = _save(
        folder / "decoder.onnx",
        nodes,
        [
            _value(embedding, 1, 3, LOW, LOW),
            *([_value("high_res_feats_0", 1, 3, LOW, LOW)] if stretches else []),
            _value("point_coords", 1, "n", 2),
            _value("point_labels", 1, "n"),
            _value("mask_input", 1, 1, LOW, LOW),
            _value("has_mask_input", 1),
        ],
        [_value("masks", 1, 1, LOW, LOW), _value("iou_predictions", 1)],
        {
            "columns": middle[None, None, None, :],
            "rows": middle[None, None, :, None],
            "r2": np.float32(RADIUS**2),
            "score": np.array([1], np.float32),
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "two": np.array([2], np.int64),
            "axis1": np.array([1], np.int64),
            "axis2": np.array([2], np.int64),
        },
    )
    return encoder, decoder


def frame() -> U8Array:
    """A bright picture twice as wide as high, dark on the right."""
    image = np.full((300, 600, 3), 230, np.uint8)
    image[:, 400:] = 5
    return image


@pytest.mark.parametrize("stretches", [False, True], ids=["SAM", "SAM 2"])
def test_clicks_arrive_where_they_were_made(tmp_path: Path, fake_bundle: Path, stretches: bool) -> None:
    encoder, decoder = pair(tmp_path, stretches=stretches)
    model = Model.load(fake_bundle, engine="fake", threads=1, segmenter=f"{encoder},{decoder}")
    found = model.segment(frame(), [(200, 210)])
    assert found.shape == (300, 600)
    ys, xs = np.nonzero(found)
    assert abs(xs.mean() - 200) < 2
    assert abs(ys.mean() - 210) < 2
    across, down = RADIUS * 600 / SIDE, RADIUS * (300 if stretches else 600) / SIDE
    assert abs(found.sum() - np.pi * across * down) < 0.12 * np.pi * across * down  # the network sees 256 pixels
    assert not model.segment(frame(), [(500, 150)]).any()  # dark there: the picture arrives, too


def test_boxes_and_masks_arrive(tmp_path: Path, fake_bundle: Path) -> None:
    encoder, decoder = pair(tmp_path, stretches=False)
    model = Model.load(fake_bundle, engine="fake", threads=1, segmenter=f"{encoder},{decoder}")
    ys, xs = np.nonzero(model.segment(frame(), box=(100, 120, 80, 60)))
    assert abs(xs.mean() - 100) < 2  # the corner comes first
    assert abs(ys.mean() - 120) < 2
    mask = np.zeros((300, 600), bool)
    mask[200:280, 300:380] = True
    found = model.segment(frame(), [(100, 100)], mask=mask)
    assert found[240, 340]
    assert found[100, 100]
    assert not found[100, 340]
    assert np.array_equal(model.segment(frame(), mask=mask), mask)


def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    encoder, decoder = pair(tmp_path, stretches=False)
    with pytest.raises(OptionError, match=r"expected two files, ENCODER\.onnx,DECODER\.onnx"):
        OnnxSegmenter.parse(str(encoder))
    with pytest.raises(OptionError, match="is no file"):
        OnnxSegmenter.parse(f"{encoder},{tmp_path / 'missing.onnx'}")
    with pytest.raises(OptionError, match=r"expected one picture \[1, 3, height, width\]"):
        OnnxSegmenter(decoder, decoder)
    with pytest.raises(OptionError, match="has no input point_coords"):
        OnnxSegmenter(encoder, encoder)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises((EngineError, MissingExtraError), match="cannot load it"):
        OnnxSegmenter(tmp_path / "broken.onnx", decoder)
