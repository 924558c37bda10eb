"""The bundle that comes with the package is what its documentation says it is."""

from __future__ import annotations

import torch

from vosrt.bundle import load_bundle
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.types import PropagationOptions
from vosrt_export.graphs import reference_embedding
from vosrt_export.verify import TOLERANCES, sample_frames, summarise
from vosrt_train.config import EncoderConfig
from vosrt_train.model import build_encoder


def test_it_calls_itself_untrained() -> None:
    """Nobody may take it for a model, whichever field they read."""
    manifest = load_bundle("default").manifest
    assert not manifest.trained
    assert "untrained" in manifest.name
    assert "untrained" in manifest.summary
    assert "the next release replaces it" in manifest.summary
    assert manifest.provenance["training"] == {"trained": False, "summary": "untrained, seed 0"}
    assert manifest.provenance["licence"] == "Apache-2.0"


def test_it_has_the_papers_defaults() -> None:
    manifest = load_bundle("default").manifest
    assert manifest.inference == PropagationOptions(context=20, radius=12, top_k=10, temperature=0.05)
    assert manifest.size is None
    assert (manifest.encoder.feature, manifest.encoder.channels) == ("res3", 256)
    assert manifest.graphs["encoder"].precision == "fp16"
    assert manifest.graphs["encoder"].bytes < 6_000_000


def test_it_is_the_seeded_network() -> None:
    """What the README's commands would make again."""
    encoder = build_encoder(EncoderConfig(layer4=False), seed=0).eval()
    graph = load_bundle("default").graph_path("encoder")
    engine = cpu_engine(graph, {"frames": ("n", "height", "width", None)}, threads=1, reason="test")
    (frames,) = sample_frames([(1, 41, 67)])
    wanted = reference_embedding(encoder, "res3", torch.from_numpy(frames)).numpy()
    comparison = summarise([(wanted, engine.run({"frames": frames})["embedding"])])
    assert comparison.passes(TOLERANCES["fp16"]), comparison
