"""Small bundles, made of an encoder that is a cast, or of any other graph."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from vosrt.bundle import EncoderSpec, GraphFile, Manifest, write_manifest


def cast_encoder(channels: int) -> bytes:
    """The least that is an encoder: bytes of a frame in, an embedding of so many channels out, as it declares."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; it comes with: pip install 'vosrt[export]'")
    frames = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    embedding = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", "h", "w", channels])
    cast = onnx.helper.make_node("Cast", ["frames"], ["embedding"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([cast], "encoder", [frames], [embedding])
    data: bytes = onnx.helper.make_model(graph, producer_name="test").SerializeToString()
    return data


def write_bundle(root: Path, content: bytes, *, channels: int = 4, **more: Any) -> Path:
    """Write a bundle around an encoder; ``more`` of its manifest may be given."""
    root.mkdir()
    (root / "encoder.onnx").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    entry = GraphFile(file="encoder.onnx", sha256=sha256, bytes=len(content), precision="fp32")
    encoder = EncoderSpec(channels=channels, feature="res3")
    usual: dict[str, Any] = {
        "name": "test",
        "trained": False,
        "summary": "A test.",
        "encoder": encoder,
        "graphs": {"encoder": entry},
    }
    write_manifest(Manifest(**usual | more), root / "manifest.json")
    return root
