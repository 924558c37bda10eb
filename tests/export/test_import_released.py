"""Files as Araslanov et al. 2021 publish them, made from random weights with the published names."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vosrt.bundle import file_sha256, load_bundle
from vosrt.errors import OutputError
from vosrt_export.import_released import export_imported, import_released, save_released
from vosrt_export.write_bundle import ExportOptions
from vosrt_train.checkpoint import CheckpointError, load_checkpoint
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.model import Encoder, build_encoder
from vosrt_train.model.encoder import KeyHead
from vosrt_train.model.resnet import ResNet18
from vosrt_train.prepare import starting_encoder

Document = dict[str, Any]
SMALL = EncoderConfig(width=4, key_channels=6)


def state_of(encoder: nn.Module, prefix: str = "fast_net.") -> Document:
    return {prefix + name: tensor for name, tensor in encoder.state_dict().items()}


@pytest.fixture(scope="module")
def small() -> Encoder:
    return build_encoder(SMALL, seed=3).eval()


@pytest.fixture
def released(small: Encoder, tmp_path: Path) -> Path:
    path = tmp_path / "released.pth"
    torch.save({"model": state_of(small)}, path)
    return path


def assert_same_weights(found: nn.Module, wanted: nn.Module) -> None:
    weights = wanted.state_dict()
    assert found.state_dict().keys() == weights.keys()
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)


def test_names_and_shapes_are_taken_over(released: Path, small: Encoder) -> None:
    """Every weight arrives, the shape is read off them, and the origin is noted."""
    checkpoint = import_released(released, licence="Apache-2.0")
    assert checkpoint.encoder.config == SMALL
    assert not checkpoint.encoder.training
    assert_same_weights(checkpoint.encoder, small)
    assert checkpoint.training.trained
    assert checkpoint.training.licence == "Apache-2.0"
    assert "'released.pth'" in checkpoint.training.summary
    assert file_sha256(released)[:12] in checkpoint.training.summary


def without_counters(state: Document) -> Document:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def with_the_rest(state: Document) -> Document:
    rest = {"fast_net.backbone.fc.weight": torch.zeros(3, 4), "fast_net.backbone.fc.bias": torch.zeros(3)}
    return {**state, **rest, "slow_net.backbone.conv1.weight": torch.ones(1), "grid.weights": torch.ones(2)}


VARIANTS: dict[str, Callable[[Document], Document]] = {
    "after module.": lambda s: {"model": {f"module.{name}": tensor for name, tensor in s.items()}},
    "without model": lambda s: s,
    "with the optimiser": lambda s: {"model": s, "optimizer": {"lr": 1e-4}, "epoch": 12, "score": [0.5]},
    "of an old PyTorch": lambda s: {"model": without_counters(s)},
    "with a classifier and more": lambda s: {"model": with_the_rest(s)},
    "in double precision": lambda s: {"model": {k: v.double() if v.is_floating_point() else v for k, v in s.items()}},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_of_the_files(
    variant: Callable[[Document], Document], legacy: bool, small: Encoder, tmp_path: Path
) -> None:
    """What people have done to such files does not matter; nor does the format before PyTorch 1.6."""
    path = tmp_path / "released.pth"
    torch.save(variant(state_of(small)), path, _use_new_zipfile_serialization=not legacy)
    found, wanted = import_released(path).encoder.state_dict(), small.state_dict()
    counted = [name for name in wanted if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(found[name], wanted[name]) for name in counted)
    assert found.keys() == wanted.keys()


def test_a_network_without_layer4(tmp_path: Path) -> None:
    part = build_encoder(dataclasses.replace(SMALL, layer4=False), seed=3)
    torch.save({"model": state_of(part)}, tmp_path / "part.pth")
    checkpoint = import_released(tmp_path / "part.pth")
    assert not checkpoint.encoder.config.layer4
    assert_same_weights(checkpoint.encoder, part)


def test_the_released_program_is_reproduced(shared_data: Path, tmp_path: Path) -> None:
    """Its random weights of seed 0, in a file with its names, give the features that it was recorded with.

    The recording's network has torchvision's initialisation: PyTorch's own for every layer, a classifier of 1000
    classes among them, and then He's for the convolutions.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ResNet18(64, layer4=True)
        nn.Linear(512, 1000)
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        state = {**state_of(backbone, "fast_net.backbone."), **state_of(KeyHead(512, 128), "fast_net.emb_q.")}
    torch.save({"model": state}, tmp_path / "released.pth")
    encoder = import_released(tmp_path / "released.pth").encoder
    with np.load(shared_data / "golden" / "label_propagation_blackswan_s96.npz") as recorded, torch.no_grad():
        features = encoder(torch.from_numpy(recorded["net_input"][:2]))
        res4 = nn.functional.normalize(features.res4, dim=1).numpy()
        np.testing.assert_allclose(res4, recorded["res4"][:2], atol=2e-6)


def test_training_starts_from_it(released: Path, small: Encoder, tmp_path: Path) -> None:
    """`vos-train --init` takes the checkpoint as it is."""
    path = tmp_path / "imported.safetensors"
    save_released(import_released(released), path)
    encoder = starting_encoder(dataclasses.replace(TrainConfig(), encoder=SMALL), str(path))
    assert_same_weights(encoder, small)
    with pytest.raises(OutputError, match="is there already"):
        save_released(import_released(released), path)
    save_released(import_released(released), path, overwrite=True)


@pytest.mark.usefixtures("quick_export")
def test_straight_to_a_bundle(small_encoder: Encoder, tmp_path: Path) -> None:
    """The bundle names the checkpoint that the same file would have given."""
    released = tmp_path / "released.pth"
    torch.save({"model": state_of(small_encoder)}, released)
    options = ExportOptions(feature="res3", align_corners=True, guided=0)
    export_imported(import_released(released), tmp_path / "bundle", options)
    save_released(import_released(released), tmp_path / "imported.safetensors")
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest.provenance["checkpoint_sha256"] == file_sha256(tmp_path / "imported.safetensors")
    assert load_checkpoint(tmp_path / "imported.safetensors").training.summary in manifest.summary
    assert manifest.trained
    assert manifest.encoder.align_corners  # as published


class Code:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def altered(change: Callable[[Document], object]) -> Callable[[Path], object]:
    def alter(path: Path) -> None:
        document = torch.load(path, weights_only=True)
        change(document["model"])
        torch.save(document, path)

    return alter


def as_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


UNSOUND: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (damaged(lambda _: b""), "is not a whole PyTorch file"),
    "cut off": (damaged(lambda data: data[: len(data) // 2]), "is not a whole PyTorch file"),
    "cut off at the end": (damaged(lambda data: data[:-30]), "is not a whole PyTorch file"),
    "text": (damaged(lambda _: b"Not found\n" * 30), "is not a whole PyTorch file"),
    "a picture": (damaged(lambda _: b"\x89PNG\r\n\x1a\n" * 9), "is not a whole PyTorch file"),
    "code": (lambda path: torch.save({"model": Code()}, path), "holds more than tensors (posix.mkdir)"),
    "code beside the weights": (
        lambda path: torch.save({**torch.load(path, weights_only=True), "hook": Code()}, path),
        "holds more than tensors (posix.mkdir)",
    ),
    "code in an old file": (
        lambda path: torch.save({"model": Code()}, path, _use_new_zipfile_serialization=False),
        "holds more than tensors (posix.mkdir)",
    ),
    "a bare pickle": (damaged(lambda _: pickle.dumps(Code())), "is not a whole PyTorch file"),
    "a whole module": (as_module, "holds more than tensors (torch.nn.modules.linear.Linear)"),
    "a list": (lambda path: torch.save([1, 2], path), "holds a list; expected a dictionary"),
    "another entry": (lambda path: torch.save({"model": 7}, path), "holds a dict; expected a dictionary"),
    "another network": (
        lambda path: torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path),
        "expected names that begin with fast_net.backbone",
    ),
    "no stem": (altered(lambda d: d.pop("fast_net.backbone.conv1.weight")), "lacks fast_net.backbone.conv1.weight"),
    "no head": (altered(lambda d: d.pop("fast_net.emb_q.conv2.weight")), "lacks fast_net.emb_q.conv2.weight"),
    "a flat stem": (
        altered(lambda d: d.update({"fast_net.backbone.conv1.weight": torch.zeros(4)})),
        "it is no convolution",
    ),
    "a missing weight": (
        altered(lambda d: d.pop("fast_net.backbone.layer2.0.conv1.weight")),
        "lacks 1 tensors of the encoder, the first backbone.layer2.0.conv1.weight",
    ),
    "a weight too many": (
        altered(lambda d: d.update({"fast_net.backbone.layer5.weight": torch.zeros(1)})),
        "has 1 tensors that the encoder has not",
    ),
    "a weight of another shape": (
        altered(lambda d: d.update({"fast_net.backbone.bn1.weight": torch.zeros(9)})),
        "backbone.bn1.weight is float32 [9]",
    ),
    "a weight that is none": (
        altered(lambda d: d.update({"fast_net.backbone.bn1.weight": "heavy"})),
        "is a str; expected a tensor",
    ),
    "an absurd width": (
        altered(lambda d: d.update({"fast_net.backbone.conv1.weight": torch.zeros(1, 3, 7, 7).expand(99999, 3, 7, 7)})),
        "width is 99999",
    ),
    "not a number": (
        altered(lambda d: d["fast_net.backbone.bn1.bias"].fill_(float("nan"))),
        "has values that are not finite",
    ),
}


@pytest.mark.parametrize(("harm", "says"), UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_files(
    harm: Callable[[Path], object], says: str, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear line that names the file; code in a file is not run."""
    monkeypatch.chdir(tmp_path)
    harm(released)
    with pytest.raises(CheckpointError) as caught:
        import_released(released)
    message = str(caught.value)
    assert says in message
    assert str(released) in message
    assert message.isprintable()
    assert len(message) < 400
    assert not (tmp_path / "ran").exists()
