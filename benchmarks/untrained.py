"""Bundles with seeded weights: the baseline of learning; speed does not depend on weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vosrt.bundle import Feature, load_bundle
from vosrt.cli.demo import CLIP
from vosrt_export.quantise import Quantisation, QuantiseOptions, calibration_frames, write_with_int8
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


def export_paper(folder: Path) -> Path:
    """The network of the paper with an int8 encoder beside its own, calibrated on the demo's clip.

    J&F cannot be the gate of a network that has learnt nothing: its embeddings are compared instead.
    """
    bundle, options = load_bundle(str(export_untrained("res4", folder))), QuantiseOptions(frames=8)
    frames = calibration_frames([str(CLIP)], options.frames, None, bundle.manifest)
    work = Quantisation(bundle, frames, options, folder)
    graph = work.quantise(work.layers)
    comparison = work.compare(graph)
    print(f"{PAPER_SETTINGS} in int8: {comparison}", flush=True)
    output = folder / "paper"
    write_with_int8(bundle, graph.read_bytes(), {"figures": asdict(comparison)}, output, symmetric=options.symmetric)
    return output
