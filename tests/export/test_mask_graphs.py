"""Bundles of the mask-embedding family: three graphs that compute what the checkpoint computes, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vosrt.bundle import MaskSpec, load_bundle
from vosrt.errors import BundleError
from vosrt_export.mask_graphs import export_mask_graphs
from vosrt_export.verify_masks import MaskComparison, compare_masks
from vosrt_export.write_bundle import ExportOptions, export_bundle
from vosrt_train.checkpoint import Checkpoint, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.mask_config import MaskNetworkConfig
from vosrt_train.model import Encoder, MaskEmbedding, build_encoder, build_mask_embedding

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
    """In fp32, for sizes that are no multiples of 8 and one to three objects; other weights are told apart."""
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
    export_bundle(root / "masks.safetensors", root / "bundle", ExportOptions(weights="fp32", rounds=1, feedback=False))
    return root / "bundle"


def test_a_bundle_of_the_family(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.family, manifest.name) == ("mask-embedding", "resnet18-res3-masks")
    assert manifest.masks == MaskSpec(value_channels=16, context="res3", rounds=1, feedback=False)
    assert (manifest.inference.context, manifest.inference.pad_context) == (5, False)
    assert sorted(manifest.graphs) == ["decoder", "encoder", "mask_encoder"]
    assert manifest.verification["masks"]["figures"]["values"] < 1e-2


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


def test_checkpoints_keep_masks(networks: Networks, bundle: Path) -> None:
    loaded = load_checkpoint(bundle.parent / "masks.safetensors")
    _, masks = networks(EncoderConfig(width=4, layer4=False))
    assert loaded.masks is not None
    assert loaded.masks.config == CONFIG
    assert all(torch.equal(loaded.masks.state_dict()[name], each) for name, each in masks.state_dict().items())
