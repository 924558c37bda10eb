"""The exported graph computes what the checkpoint does, on the engines that run it, and holds nothing else."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vosrt.bundle import Feature, WeightPrecision, load_bundle
from vosrt.engines.base import Engine
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.engines.openvino import OpenVinoEngine
from vosrt.errors import OptionError
from vosrt.types import U8Array
from vosrt_export.errors import ExportError
from vosrt_export.graphs import EncoderGraph, reference_embedding
from vosrt_export.onnx import export_onnx
from vosrt_export.verify import TOLERANCES, Comparison, sample_frames, summarise
from vosrt_train.model import Encoder

BundleOf = Callable[[Feature, WeightPrecision], Path]
AXES: Mapping[str, tuple[str | None, ...]] = {"frames": ("n", "height", "width", None)}
FEATURES: tuple[Feature, ...] = ("res3", "res4", "key")
ODD_SIZES = ((1, 16, 16), (2, 33, 71), (1, 64, 100), (3, 45, 17))


def compare_engine(engine: Engine, encoder: Encoder, feature: Feature) -> Comparison:
    pairs = []
    for frames in sample_frames(ODD_SIZES):
        found = engine.run({"frames": frames})["embedding"]
        pairs.append((reference_embedding(encoder, feature, torch.from_numpy(frames)).numpy(), found))
    return summarise(pairs)


@pytest.mark.parametrize("feature", FEATURES)
def test_the_rearranged_network_is_the_network(small_encoder: Encoder, feature: Feature) -> None:
    """Folded batch-norms and swapped colours change nothing but rounding; the checkpoint's network is left alone."""
    before = {name: tensor.clone() for name, tensor in small_encoder.state_dict().items()}
    graph = EncoderGraph(small_encoder, feature)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    for frames in sample_frames(ODD_SIZES):
        wanted = reference_embedding(small_encoder, feature, torch.from_numpy(frames))
        torch.testing.assert_close(graph(torch.from_numpy(frames)), wanted, atol=5e-6, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_encoder.state_dict().items())


@pytest.mark.parametrize(
    ("feature", "weights"), [*itertools.product(FEATURES, ("fp16",)), ("res4", "fp32")], ids=lambda value: str(value)
)
def test_cpu_provider_agrees(
    small_bundle: BundleOf, small_encoder: Encoder, feature: Feature, weights: WeightPrecision
) -> None:
    """The runtime's engine, with its static shapes, agrees at sizes that the export did not see."""
    bundle = load_bundle(small_bundle(feature, weights))
    engine = cpu_engine(bundle.graph_path("encoder"), AXES, threads=1, reason="test")
    comparison = compare_engine(engine, small_encoder, feature)
    assert comparison.passes(TOLERANCES[weights]), comparison


@pytest.mark.parametrize("weights", ["fp16", "fp32"])
def test_openvino_agrees(small_bundle: BundleOf, small_encoder: Encoder, weights: WeightPrecision) -> None:
    """The same graph, asked for fp32 arithmetic, gives the same embedding."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    bundle = load_bundle(small_bundle("res4", weights))
    engine = OpenVinoEngine(bundle.graph("encoder"), AXES, bf16=False, threads=1, reason="test")
    comparison = compare_engine(engine, small_encoder, "res4")
    assert comparison.passes(TOLERANCES[weights]), comparison


def test_cells_have_unit_length_whatever_the_frame(small_bundle: BundleOf) -> None:
    """Black, white and noise give unit length."""
    engine = cpu_engine(load_bundle(small_bundle("key", "fp16")).graph_path("encoder"), AXES, threads=1, reason="test")
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    frames: U8Array = np.stack([np.zeros_like(noise), np.full_like(noise, 255), noise])
    embedding = engine.run({"frames": frames})["embedding"]
    assert embedding.shape == (3, 3, 5, 16)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1, atol=1e-5)


def test_frames_of_a_batch_are_independent(small_bundle: BundleOf) -> None:
    engine = cpu_engine(load_bundle(small_bundle("res4", "fp32")).graph_path("encoder"), AXES, threads=1, reason="test")
    (frames,) = sample_frames([(3, 24, 40)])
    together = engine.run({"frames": frames})["embedding"]
    for index in range(3):
        alone = engine.run({"frames": frames[index : index + 1]})["embedding"]
        np.testing.assert_allclose(together[index], alone[0], atol=1e-6)


@pytest.mark.parametrize(("feature", "weights", "channels"), [("key", "fp16", 16), ("res4", "fp32", 64)])
def test_the_graph_is_plain(small_bundle: BundleOf, feature: Feature, weights: WeightPrecision, channels: int) -> None:
    """It has standard operators without control flow or shape arithmetic, named dynamic sizes and no notes."""
    model = onnx.load(small_bundle(feature, weights) / "encoder.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    operators = {node.op_type for node in model.graph.node}
    assert operators <= {"Transpose", "Cast", "Mul", "Sub", "Conv", "Relu", "MaxPool", "Add", "ReduceL2", "Clip", "Div"}
    (frames,), (embedding,) = model.graph.input, model.graph.output
    assert frames.name == "frames"
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert embedding.name == "embedding"
    assert embedding.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    sizes = [[dim.dim_param or dim.dim_value for dim in x.type.tensor_type.shape.dim] for x in (frames, embedding)]
    assert sizes == [["n", "height", "width", 3], ["n", "h", "w", channels]]
    data = model.SerializeToString()
    assert not any(word in data for word in (b"site-packages", b".py", str(Path.home()).encode(), b"torch"))


def test_fp16_halves_the_weights(small_bundle: BundleOf) -> None:
    half = load_bundle(small_bundle("res4", "fp16")).manifest.graphs["encoder"]
    full = load_bundle(small_bundle("res4", "fp32")).manifest.graphs["encoder"]
    assert (half.precision, full.precision) == ("fp16", "fp32")
    assert half.bytes < 0.55 * full.bytes


def test_weights_beyond_fp16_are_refused(small_encoder: Encoder) -> None:
    graph = EncoderGraph(small_encoder, "res3")
    graph.encoder.stem.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(ExportError, match="beyond the range of fp16; export with --weights fp32"):
        export_onnx(graph, "fp16")


def test_a_feature_that_the_encoder_lacks(small_encoder: Encoder) -> None:
    with pytest.raises(OptionError, match="no feature 'res2'; choose from: res3, res4, key"):
        EncoderGraph(small_encoder, "res2")  # type: ignore[arg-type]


def test_figures_of_a_comparison() -> None:
    """Known differences give known figures; cells without activation count as equal; NaN never passes."""
    wanted = np.zeros((1, 1, 3, 2), dtype=np.float32)
    wanted[0, 0, :2] = [[1, 0], [0, 1]]
    found = wanted.copy()
    equal = summarise([(wanted, found)])
    assert (equal.max_abs, equal.mean_abs, equal.min_cosine, equal.cells) == (0, 0, 1, 3)
    found[0, 0, 0] = [0.6, 0.8]
    turned = summarise([(wanted, found)])
    assert turned.max_abs == pytest.approx(0.8)
    assert turned.mean_abs == pytest.approx(0.2)
    assert turned.min_cosine == pytest.approx(0.6)
    found[0, 0, 2] = np.nan
    assert not summarise([(wanted, found)]).passes(TOLERANCES["fp16"])
    with pytest.raises(ExportError, match=r"gives shape \(1, 1, 3, 1\)"):
        summarise([(wanted, found[..., :1])])
