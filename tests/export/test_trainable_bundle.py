"""A bundle gives back the encoder that it was exported from: fine-tuning needs no other file."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vosrt.bundle import Feature, WeightPrecision, file_sha256, load_bundle
from vosrt.errors import BundleError, VosrtError
from vosrt.types import PropagationOptions
from vosrt_train.bundle_weights import FILE_NAME, inference_of, load_trainable, part_of
from vosrt_train.checkpoint import CheckpointError, Inference
from vosrt_train.model import Encoder

BundleOf = Callable[[Feature, WeightPrecision], Path]


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
@pytest.mark.parametrize("feature", ["res3", "res4", "key"])
def test_the_encoder_comes_back(
    small_bundle: BundleOf, small_encoder: Encoder, feature: Feature, weights: WeightPrecision
) -> None:
    """Kernels come back up to the rounding of what is stored, batch-norms exactly, in both modes."""
    found = load_trainable(small_bundle(feature, weights))
    assert found.training.trained
    assert found.training.summary == "trained for a test"
    assert found.training.licence == "CC0-1.0"
    wanted = part_of(copy.deepcopy(small_encoder), layer4=feature != "res3")
    assert found.encoder.config == wanted.config
    for name, tensor in wanted.state_dict().items():
        have = found.encoder.state_dict()[name]
        if tensor.dim() == 4:
            rounding = 2e-3 if weights == "fp16" or name.startswith("emb_q.") else 1e-6
            assert (have - tensor).abs().max() <= rounding * tensor.abs().max(), name
        else:
            assert torch.equal(have, tensor), name
    frames = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(3))
    assert_close(last_map(found.encoder.train()(frames)), last_map(wanted.train()(frames)))


def test_the_settings_of_a_bundle_are_inherited(small_bundle: BundleOf) -> None:
    """A bundle with mask embedding gives none: its settings suit refined masks."""
    assert inference_of("default") == Inference.of(load_bundle("default").manifest)
    assert inference_of(str(small_bundle("res3", "fp16"))) == Inference(options=PropagationOptions(guided=4))
    assert inference_of("refined") is None


def last_map(features: object) -> Tensor:
    maps = [getattr(features, name) for name in ("key", "res4", "res3")]
    last: Tensor = next(found for found in maps if found is not None)
    return last


def assert_close(found: Tensor, wanted: Tensor) -> None:
    cosine = nn.functional.cosine_similarity(found, wanted, dim=1)
    assert cosine.min() > 0.999


def test_a_closed_channel_stays_closed(small_bundle: BundleOf, tmp_path: Path) -> None:
    """A gamma of zero leaves nothing of a kernel to divide by and gives no infinities."""
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle("res3", "fp16"), bundle)
    with safe_open(bundle / FILE_NAME, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["backbone.bn1.weight"][2] = 0
    save_file(tensors, bundle / FILE_NAME, metadata)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["provenance"]["trainable"]["sha256"] = file_sha256(bundle / FILE_NAME)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    kernel = load_trainable(bundle).encoder.state_dict()["backbone.conv1.weight"]
    assert kernel.isfinite().all()
    assert not kernel[2].any()
    assert kernel[1].any()


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (lambda bundle: (bundle / FILE_NAME).unlink(), CheckpointError, "holds a network for running only"),
        (lambda bundle: (bundle / FILE_NAME).write_bytes(b"x" * 100), BundleError, "was altered"),
        (lambda bundle: (bundle / "encoder.onnx").write_bytes(b"x" * 100), BundleError, "was altered"),
        (lambda bundle: shutil.rmtree(bundle), BundleError, "no such bundle"),
    ],
)
def test_refused(
    small_bundle: BundleOf, tmp_path: Path, harm: Callable[[Path], None], error: type[VosrtError], says: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle("res3", "fp16"), bundle)
    harm(bundle)
    with pytest.raises(error, match=says):
        load_trainable(bundle)
