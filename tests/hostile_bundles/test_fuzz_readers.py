"""Fuzzing what reads files from strangers: manifests, graphs, masks, polygons and run lengths.

A few examples run with the other tests. For a long search:

    pytest tests/hostile_bundles/test_fuzz_readers.py --hypothesis-profile=fuzz
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vosrt.bundle import load_bundle
from vosrt.core.native import libvosrt
from vosrt.errors import BundleError, MaskError, VosrtError
from vosrt.onnx_file import Graph
from vosrt.video.masks import read_mask
from vosrt.video.polygons import read_polygons
from vosrt.video.rle import decode, encode

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Ways to damage a file: bytes replaced, cut out, doubled or put in, several times over."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["replace", "cut", "double", "insert", "truncate"]),
                st.floats(0, 1),
                st.integers(1, 40),
                st.binary(max_size=8),
            ),
            min_size=1,
            max_size=5,
        )
    )

    def damage(data: bytes) -> bytes:
        for kind, share, length, new in steps:
            at = int(share * len(data))
            before, piece, after = data[:at], data[at : at + length], data[at + length :]
            data = {
                "replace": before + new + data[at + len(new) :],
                "cut": before + after,
                "double": before + piece + piece + after,
                "insert": before + new + piece + after,
                "truncate": before,
            }[kind]
        return data

    return damage


@contextlib.contextmanager
def file_of(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def check_line(error: VosrtError, path: Path | None = None) -> None:
    """What is refused is refused in one line that names the file and is safe to print."""
    assert str(error).isprintable()
    assert path is None or str(path) in str(error)


def checked(path: Path) -> Graph:
    """A graph that libvosrt takes."""
    graph = Graph(path, path.read_bytes())
    libvosrt().call("vosrt_graph_check", graph.content, len(graph.content), os.fsencode(path), None, None, 0)
    return graph


@functools.cache
def sound_bundle() -> tuple[bytes, bytes]:
    """The manifest and the graph of the packaged bundle."""
    root = load_bundle("default").path
    return (root / "manifest.json").read_bytes(), (root / "encoder.onnx").read_bytes()


@functools.cache
def small_graph() -> bytes:
    """A graph of one convolution, with each kind of part that the reader looks into."""
    onnx = pytest.importorskip("onnx")
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    nodes = [
        node("Constant", [], ["c"], value=onnx.helper.make_tensor("t", onnx.TensorProto.INT64, [2], [1, 2])),
        node("Conv", ["frames", "w"], ["embedding"], strides=[1, 1], auto_pad="VALID"),
    ]
    frames = value("frames", onnx.TensorProto.FLOAT, ["n", 1, "h", "w"])
    embedding = value("embedding", onnx.TensorProto.FLOAT, ["n", 1, "h", "w"])
    data: bytes = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [frames], [embedding], [weight])
    ).SerializeToString()
    return data


@given(damage=damages())
def test_damaged_manifests(damage: Damage) -> None:
    """Each gives a bundle or a BundleError of one printable line."""
    manifest, graph = sound_bundle()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(damage(manifest))
        (Path(folder) / "encoder.onnx").symlink_to("graph")
        (Path(folder) / "graph").write_bytes(graph)
        try:
            load_bundle(folder)
        except BundleError as error:
            check_line(error)


@given(data=st.binary(max_size=200))
@example(b"\x3a\x00")
def test_any_bytes_as_a_graph(data: bytes) -> None:
    """No bytes make the reader fail otherwise than by refusing them."""
    with file_of(data, "encoder.onnx") as path, contextlib.suppress(BundleError):
        checked(path)


@given(damage=damages())
def test_damaged_graphs(damage: Damage) -> None:
    """What is accepted has the names that protobuf itself reads in it: both see the same graph."""
    onnx = pytest.importorskip("onnx")
    data = damage(small_graph())
    with file_of(data, "encoder.onnx") as path:
        try:
            found = checked(path)
        except BundleError as error:
            check_line(error, path)
            return
    try:
        model = onnx.load_from_string(data)
    except Exception:  # protobuf also refuses what does not matter to the reader
        return
    assert [*found.outputs] == list(dict.fromkeys(each.name for each in model.graph.output))
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


def png(mode: str) -> bytes:
    """A mask of 6 x 5 pixels with two objects."""
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6) % 3
    image = Image.fromarray(pixels).convert(mode)
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@given(mode=st.sampled_from(["L", "P", "1"]), damage=damages())
def test_damaged_masks(mode: str, damage: Damage) -> None:
    """Each gives a mask of the frame's size or a MaskError of one line that names the file; nothing is printed."""
    with file_of(damage(png(mode)), "mask.png") as path, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            mask = read_mask(path, 6, 5)
        except MaskError as error:
            check_line(error, path)
        else:
            assert mask.shape == (5, 6)
            assert mask.dtype == np.uint8


POLYGONS = json.dumps({"size": [40, 30], "objects": [{"id": 2, "polygons": [[[1, 2], [30.5, 4], [9, 28]]]}]}).encode()

LABELME = json.dumps(
    {
        "imageWidth": 40,
        "imageHeight": 30,
        "shapes": [
            {"label": "a", "points": [[1, 2], [30.5, 4], [9, 28]], "group_id": 1, "shape_type": "polygon"},
            {"label": "b", "points": [[9, 9], [9, 12]], "group_id": None, "shape_type": "circle"},
            {"label": "c", "points": [[2, 2], [4, 4]], "shape_type": "mask", "mask": "iVBORw0KGgo="},
        ],
    }
).encode()
COCO = json.dumps(
    {
        "images": [{"id": 1, "file_name": "0.png", "width": 40, "height": 30}],
        "annotations": [
            {"id": 1, "image_id": 1, "segmentation": [[1, 2, 30.5, 4, 9, 28]]},
            {"id": 2, "image_id": 1, "segmentation": {"size": [30, 40], "counts": [100, 300, 800]}},
        ],
    }
).encode()


@given(damage=damages(), document=st.sampled_from((POLYGONS, LABELME, COCO)))
@example(lambda _: b'{"objects": [{"polygons": [[[1e308, 1], [NaN, 1], [1, 1]]]}]}', POLYGONS)
@example(lambda _: b'{"objects": [{"id": 1, "polygons": ' + b"[" * 5000 + b"]" * 5000 + b"}]}", POLYGONS)
@example(lambda _: b'{"size": [' + b"9" * 5000 + b', 1], "objects": [1]}', POLYGONS)
def test_damaged_polygons(damage: Damage, document: bytes) -> None:
    """Each gives labels of the frame's size or a MaskError of one line that names the file."""
    with file_of(damage(document), "polygons.json") as path:
        try:
            mask = read_polygons(path, 40, 30).labels
        except MaskError as error:
            check_line(error, path)
        else:
            assert mask.shape == (30, 40)
            assert mask.dtype == np.uint8


@given(counts=st.one_of(st.text(max_size=30), st.binary(max_size=30).map(lambda b: b.decode("latin-1"))))
def test_any_text_as_run_lengths(counts: str) -> None:
    """It gives a mask whose encoding decodes to it again, or a ValueError."""
    try:
        mask = decode(counts, 5, 6)
    except ValueError:
        return
    np.testing.assert_array_equal(decode(encode(mask), 5, 6), mask)
