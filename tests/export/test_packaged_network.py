"""The bundles that come with the package are what their documentation says they are."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vosrt import Model
from vosrt.bundle import file_sha256, load_bundle, packaged_bundles
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.metrics import score_sequence
from vosrt.types import PropagationOptions
from vosrt.video.images import ImageFolderSource
from vosrt_export.graphs import reference_embedding
from vosrt_export.verify import sample_frames, summarise
from vosrt_train.bundle_weights import load_trainable
from vosrt_train.validate import find_sequences, read_annotations

PUBLISHED = PropagationOptions(context=20, radius=12, top_k=10, temperature=0.05)
STEADIER = replace(
    PUBLISHED, top_k=20, sharpness=1.5, object_bias=0.1, centring=0.8, calibration=5, motion=0.3, parts=2, guided=6
)
INFERENCE = {
    "default": replace(STEADIER, radius=21.6),
    "fast": STEADIER,
    "fine": replace(STEADIER, radius=27),
    "refined": PUBLISHED,
}
EXPECTED = {"default": ("res3", 256), "fast": ("res3", 64), "fine": ("res3", 64), "refined": ("res3", 256)}
LARGEST = {"default": 9_000_000, "fast": 2_300_000, "fine": 10_000, "refined": 2_500_000}


def test_no_other_bundle_is_packaged() -> None:
    assert packaged_bundles() == tuple(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_says_what_it_is(name: str) -> None:
    """Each is trained and small, and propagates as published or as was measured to gain."""
    bundle = load_bundle(name)
    manifest = bundle.manifest
    assert manifest.trained
    assert manifest.inference == INFERENCE[name]
    sizes = {"default": (576, 120), "fine": (720, 150)}
    assert (manifest.size, manifest.enlarge_percent) == sizes.get(name, (None, 100))
    assert (manifest.encoder.feature, manifest.encoder.channels) == EXPECTED[name]
    assert manifest.graphs["encoder"].precision == "fp16"
    assert sum(path.stat().st_size for path in bundle.path.iterdir()) <= LARGEST[name]
    assert manifest.provenance["training"]["trained"]
    assert manifest.provenance["licence"] == "research and evaluation only"
    document = (bundle.path.parent / "MODELS.md").read_text()
    assert f"`{name}`" in document
    assert manifest.provenance["licence"] in document.lower()


@pytest.mark.parametrize("name", EXPECTED)
def test_int8_lost_little(name: str) -> None:
    """A bundle that carries its encoder in int8 says which graph it was made from, and passed its gate."""
    bundle = load_bundle(name)
    manifest = bundle.manifest
    note = manifest.verification.get("int8")
    assert (note is not None) == ("encoder_int8" in manifest.graphs)
    if note is not None:
        assert note["from_sha256"] == bundle.graph("encoder").sha256
        assert note["activations"] == "int8 symmetric", "TensorRT takes no other"
        assert note["gate"]["j_and_f_before"] - note["gate"]["j_and_f_after"] <= note["gate"]["max_drop"] <= 0.2


def test_the_default_weights_can_be_trained_further() -> None:
    """What comes back computes what the graph computes; closer than the rounding of the weights it is not."""
    checkpoint = load_trainable("default")
    bundle = load_bundle("default")
    feature = bundle.manifest.encoder.feature
    engine = cpu_engine(
        bundle.graph_path("encoder"), {"frames": ("n", "height", "width", None)}, threads=1, reason="test"
    )
    (frames,) = sample_frames([(1, 41, 67)])
    wanted = reference_embedding(checkpoint.encoder, feature, torch.from_numpy(frames)).numpy()
    comparison = summarise([(wanted, engine.run({"frames": frames})["embedding"])])
    assert comparison.min_cosine > 0.9999, comparison
    assert file_sha256(bundle.path / "training.safetensors") == bundle.manifest.provenance["trainable"]["sha256"]


def test_the_fast_bundle_matches_as_the_default_one_does() -> None:
    """A quarter of the weights; the inner products that matching compares stay close."""
    default, fast = load_bundle("default"), load_bundle("fast")
    assert fast.manifest.provenance["encoder"]["width"] == 32
    for role in ("encoder", "encoder_int8"):
        assert fast.graph_path(role).stat().st_size < 0.3 * default.graph_path(role).stat().st_size
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), 4), np.uint8)
    names = ("default", "fast")
    wide, narrow = (Model.load(name, engine="cpu", precision="fp32").encode(frame, 48).array for name in names)
    wide, narrow = wide.reshape(-1, 256), narrow.reshape(-1, 64)
    assert np.corrcoef((wide @ wide.T).ravel(), (narrow @ narrow.T).ravel())[0, 1] > 0.9


def test_the_refined_bundle_is_the_default_one_with_mask_networks() -> None:
    """Its encoder is that bundle's, whose file it names, and gives the maps that the mask networks take besides."""
    assert load_bundle("refined").graph_path("encoder").samefile(load_bundle("default").graph_path("encoder"))
    manifest = load_bundle("refined").manifest
    assert manifest.masks is not None
    assert (manifest.masks.residual, manifest.masks.feedback, manifest.masks.rounds) == (True, False, 1)
    (frames,) = sample_frames([(1, 41, 67)])
    default, refined = (
        cpu_engine(
            load_bundle(name).graph("encoder"),
            {"frames": ("n", "height", "width", None)},
            threads=1,
            reason="test",
        ).run({"frames": frames})
        for name in ("default", "refined")
    )
    assert refined.keys() == {"embedding", "res3", "res2"}
    np.testing.assert_array_equal(refined["embedding"], default["embedding"])


def test_the_fine_bundle_is_the_default_one_at_720_pixels() -> None:
    """Its encoder is that bundle's file. Frames are worked on at 720, enlarged by half at most."""
    assert load_bundle("fine").graph_path("encoder").samefile(load_bundle("fast").graph_path("encoder"))
    model = Model.load("fine", engine="cpu", threads=1)
    assert model.working_size(1080, 1920) == (720, 1280)
    assert min(model.working_size(480, 856)) == 720
    assert model.working_size(240, 432) == (360, 648)


def test_refinement_mends_small_masks(shared_data: Path) -> None:
    """It does at a short side of 240 pixels, over the first frames of two sequences."""
    sequences = find_sequences(shared_data / "data" / "davis16-dev", ["bmx-trees", "car-shadow"])
    scores: dict[int | str, list[float]] = {"off": [], 1: []}
    for rounds, found in scores.items():
        model = Model.load("refined")
        for sequence in sequences:
            source = ImageFolderSource(sequence.frames)
            truth = read_annotations(sequence, source)[:12]
            with model.stream(size=240, refine=rounds) as stream:
                labels = [
                    (stream.step(frame.image) if number else stream.start(frame.image, truth[0])).labels
                    for number, frame in zip(range(len(truth)), source, strict=False)
                ]
            found += [score.j_and_f for score in score_sequence(labels, truth).values()]
    assert statistics.mean(scores[1]) > statistics.mean(scores["off"]) + 0.005
