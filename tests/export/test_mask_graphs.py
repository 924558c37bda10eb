"""Bundles of the mask-embedding family: three graphs that compute what the checkpoint computes, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vosrt.arrays import DeviceKind, DeviceTensor
from vosrt.bundle import MaskSpec, load_bundle
from vosrt.cuda.stream import CudaStream
from vosrt.engines.base import EngineInfo, Input
from vosrt.engines.mask_axes import MASK_AXES
from vosrt.engines.onnxruntime import OnnxRuntimeEngine, cpu_engine
from vosrt.engines.static_shape import Axes
from vosrt.errors import BundleError, OptionError
from vosrt.host_stream import HostStream
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt_export.mask_graphs import export_mask_graphs
from vosrt_export.verify_masks import MaskComparison, compare_masks
from vosrt_export.write_bundle import ExportOptions, export_bundle
from vosrt_train.checkpoint import Checkpoint, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.masks.networks import MaskEmbedding, build_mask_embedding
from vosrt_train.model import Encoder, build_encoder

CONFIG = MaskNetworkConfig(width=4, value_channels=16)


Networks = Callable[..., tuple[Encoder, MaskEmbedding]]


@pytest.fixture(scope="module")
def networks(as_if_trained: Callable[..., None]) -> Networks:
    """Makes an encoder and mask networks: ``networks(encoder_config, seed=0)``."""

    def make(encoder_config: EncoderConfig, seed: int = 0) -> tuple[Encoder, MaskEmbedding]:
        encoder = build_encoder(encoder_config, seed=seed).eval()
        masks = build_mask_embedding(CONFIG, encoder_config, seed=seed).eval()
        as_if_trained(encoder, masks, seed=seed)
        return encoder, masks

    return make


def test_graphs_compute_what_the_networks_do(networks: Networks) -> None:
    """They agree in fp32 for sizes that are no multiples of 8 and one to three objects; other weights differ."""
    encoder, masks = networks(EncoderConfig(width=4, key_channels=8))
    graphs = export_mask_graphs(encoder, masks, "key", "fp32")
    comparison = compare_masks(encoder, masks, graphs)
    assert comparison.passes(1e-4), str(comparison)
    _, other = networks(encoder.config, seed=1)
    assert not compare_masks(encoder, other, graphs).passes(0.1)
    assert not MaskComparison(values=float("nan"), logits=0.0).passes(1.0)


@pytest.fixture(scope="module")
def bundle(networks: Networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a checkpoint without layer4, whose context is res3."""
    root = tmp_path_factory.mktemp("masks")
    encoder, masks = networks(EncoderConfig(width=4, layer4=False))
    training = Training(trained=True, seed=0, summary="trained for a test", licence="CC0-1.0")
    save_checkpoint(Checkpoint(encoder, training, masks), root / "masks.safetensors")
    # In fp32: the halves that are the default are too coarse for unit vectors of 16 channels.
    options = ExportOptions(weights="fp32", context=9, pad_context=True, rounds=1, feedback=False)
    export_bundle(root / "masks.safetensors", root / "bundle", options)
    return root / "bundle"


def test_a_bundle_of_the_family(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.family, manifest.name) == ("mask-embedding", "resnet18-res3-masks")
    assert manifest.masks == MaskSpec(value_channels=16, context="res3", rounds=1, feedback=False)
    assert (manifest.inference.context, manifest.inference.pad_context) == (9, True)
    assert sorted(manifest.graphs) == ["decoder", "encoder", "mask_encoder"]
    assert manifest.verification["masks"]["figures"]["values"] < 1e-2
    assert not manifest.encoder.align_corners


@pytest.mark.parametrize(
    ("key", "message"), [("decoder", "graphs.decoder' is missing"), ("masks", "'masks' is missing")]
)
def test_a_bundle_that_lacks_a_part_is_refused(bundle: Path, tmp_path: Path, key: str, message: str) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    del (document["graphs"] if key == "decoder" else document)[key]
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path)


def test_masks_with_aligned_corners_are_refused(networks: Networks, bundle: Path, tmp_path: Path) -> None:
    """Both the export and the reader of a changed manifest refuse them."""
    encoder, masks = networks(EncoderConfig(width=4, layer4=False))
    training = Training(trained=True, seed=0, summary="trained for a test", licence="CC0-1.0")
    save_checkpoint(Checkpoint(encoder, training, masks), tmp_path / "masks.safetensors")
    with pytest.raises(OptionError, match="has a mask embedding, which never aligns corners"):
        export_bundle(tmp_path / "masks.safetensors", tmp_path / "bundle", ExportOptions(align_corners=True))
    document = json.loads((bundle / "manifest.json").read_text())
    document["encoder"]["align_corners"] = True
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"a mask-embedding bundle has encoder.align_corners false; export it again"):
        load_bundle(tmp_path)


def test_a_correction_is_weakened(networks: Networks, as_if_trained: Callable[..., None], tmp_path: Path) -> None:
    """The decoder's logits are halved, and the manifest says so; a decoder that draws masks has none to weaken."""
    encoder, drawing = networks(EncoderConfig(width=4, layer4=False))
    residual = build_mask_embedding(replace(CONFIG, residual=True), encoder.config, seed=0).eval()
    as_if_trained(encoder, residual, seed=0)
    torch.nn.init.constant_(residual.decoder.predict.weight, 0.1)  # it begins without an opinion
    training = Training(trained=True, seed=0, summary="trained for a test", licence="CC0-1.0")
    random = np.random.default_rng(0)
    shapes = {"readout": (2, 5, 6, 16), "values": (2, 5, 6, 16), "res3": (1, 16, 5, 6), "res2": (1, 4, 10, 12)}
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    logits = []
    for correction in (1.0, 0.5):
        file, output = tmp_path / f"{correction}.safetensors", tmp_path / str(correction)
        save_checkpoint(Checkpoint(encoder, training, residual), file)
        export_bundle(file, output, ExportOptions(weights="fp32", correction=correction))
        assert load_bundle(output).manifest.provenance.get("correction", 1.0) == correction
        engine = cpu_engine(output / "decoder.onnx", MASK_AXES["decoder"], threads=1, reason="test")
        logits.append(engine.run(inputs)["logits"])
    assert np.abs(logits[0]).max() > 1e-3
    np.testing.assert_allclose(logits[1], 0.5 * logits[0], rtol=1e-4, atol=1e-6)
    save_checkpoint(Checkpoint(encoder, training, drawing), tmp_path / "drawing.safetensors")
    with pytest.raises(OptionError, match="draws masks instead of correcting them"):
        export_bundle(tmp_path / "drawing.safetensors", tmp_path / "drawing", ExportOptions(correction=0.5))
    assert not (tmp_path / "drawing").exists()


def test_checkpoints_keep_masks(networks: Networks, bundle: Path) -> None:
    loaded = load_checkpoint(bundle.parent / "masks.safetensors")
    _, masks = networks(EncoderConfig(width=4, layer4=False))
    assert loaded.masks is not None
    assert loaded.masks.config == CONFIG
    assert all(torch.equal(loaded.masks.state_dict()[name], each) for name, each in masks.state_dict().items())


class OnEmulatedGpu(OnnxRuntimeEngine):
    """ONNX Runtime's CPU provider, which takes memory of the emulated GPU for its own: it is host memory."""

    @property
    def device(self) -> DeviceKind:
        """Where the core looks for its outputs."""
        return "cuda" if self.info.name == "cuda" else "cpu"

    def run_on_device(self, inputs: Mapping[str, Input]) -> dict[str, DeviceTensor]:
        """As the CUDA provider."""
        here = {
            name: replace(each, device="cpu") if isinstance(each, DeviceTensor) else each
            for name, each in inputs.items()
        }
        return {name: replace(each, device="cuda") for name, each in super().run_on_device(here).items()}


def test_a_bundle_is_refined_where_its_networks_are(
    bundle: Path, cuda_emulated: Path, tiny_clip: tuple[U8Array, U8Array]
) -> None:
    """Two rounds on the emulated GPU give what they give by way of the host.

    Where several objects are certain (logits of 15), aggregation in fp32 turns a difference of 1e-6 into 1e-3.
    """
    opened, (frames, masks) = load_bundle(bundle), tiny_clip
    assert opened.manifest.masks is not None
    manifest = replace(opened.manifest, masks=replace(opened.manifest.masks, residual=True))
    axes: dict[str, Axes] = {"encoder": {"frames": ("n", "height", "width", None)}, **MASK_AXES}
    streams = []
    for name in ("cuda", "cpu"):
        info = EngineInfo(name, "fp32", "", "for this test")
        engines = {role: OnEmulatedGpu(opened.graph_path(role), axes[role], info, threads=1) for role in axes}
        streams.append(Model(manifest, engines, device="cuda").stream(refine=2))
    assert isinstance(streams[0]._core, CudaStream)
    assert isinstance(streams[1]._core, HostStream)
    for t in range(3):
        given, expected = (stream.step(frames[t], masks[t] if t == 0 else None) for stream in streams)
        np.testing.assert_array_equal(given.labels, expected.labels)
        np.testing.assert_allclose(given.confidence, expected.confidence, atol=1e-4)
    assert len(np.unique(given.labels)) > 1
