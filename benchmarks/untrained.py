"""Bundles with seeded weights: the baseline of learning; speed does not depend on weights."""

from __future__ import annotations

from pathlib import Path

from vosrt.bundle import Feature
from vosrt_export.write_bundle import ExportOptions, export_bundle
from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.model import build_encoder

PAPER_SETTINGS = "paper settings"


def export_untrained(feature: Feature, folder: Path) -> Path:
    """A bundle with seeded weights. With res4 it is the network of the paper: layer4, 512 channels."""
    encoder = build_encoder(EncoderConfig(layer4=feature != "res3"), seed=0).eval()
    checkpoint, bundle = folder / f"{feature}.safetensors", folder / feature
    training = Training(trained=False, seed=0, summary="untrained, seed 0", licence="Apache-2.0")
    save_checkpoint(Checkpoint(encoder, training), checkpoint)
    export_bundle(checkpoint, bundle, ExportOptions(feature=feature))
    return bundle
