"""Checkpoints: what is saved is what is loaded, and every unsound file is refused with one clear line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vosrt.errors import InputError, OutputError, WorkError
from vosrt.types import PropagationOptions
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Inference, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.model import build_encoder

CONFIG = EncoderConfig(width=4, key_channels=6)
TRAINING = Training(trained=False, seed=5, summary="untrained, seed 5", licence="Apache-2.0")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(Checkpoint(build_encoder(CONFIG, seed=5), TRAINING), path)
    return path


def rewrite(path: Path, tensors: Callable[[Tensors], object], metadata: Callable[[dict[str, Any]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["vosrt"])
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors(values)
    metadata(document)
    save_file(values, path, {"vosrt": json.dumps(document)})


def inference(**changed: Any) -> dict[str, Any]:
    return {"options": {}, "size": None, "enlarge_percent": 100} | changed


def unchanged(_: object) -> None:
    return None


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert isinstance(caught.value, InputError)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip(path: Path) -> None:
    """Weights, buffers, configuration and history survive; the network comes back in evaluation mode."""
    loaded = load_checkpoint(path)
    assert loaded.training == TRAINING
    assert loaded.encoder.config == CONFIG
    assert not loaded.encoder.training
    saved = build_encoder(CONFIG, seed=5).state_dict()
    assert loaded.encoder.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.encoder.state_dict().items())


def test_settings_of_propagation_survive(path: Path) -> None:
    """Those that the file lacks, as one of an earlier version may, have their defaults."""
    assert load_checkpoint(path).inference is None
    inference = Inference(options=PropagationOptions(centring=0.8, top_k=20), size=576, enlarge_percent=120)
    save_checkpoint(replace(load_checkpoint(path), inference=inference), path)
    assert load_checkpoint(path).inference == inference
    rewrite(path, unchanged, lambda document: document["inference"]["options"].pop("calibration"))
    assert load_checkpoint(path).inference == inference


def test_the_same_network_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_checkpoint(load_checkpoint(path), again)
    assert again.read_bytes() == path.read_bytes()


def test_files_that_are_no_checkpoint(path: Path, tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "nowhere.safetensors")
    assert "no such checkpoint" in refusal(tmp_path)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "not a whole safetensors file" in refusal(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    assert "not a whole safetensors file" in refusal(path)


def test_another_programs_safetensors(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)
    assert "no vosrt configuration" in refusal(path)
    save_file({"weight": torch.zeros(3)}, path, {"vosrt": "{"})
    assert "cannot be used" in refusal(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format=3), "made by a newer vosrt (format 3; this one reads up to 2); upgrade"),
        (lambda d: d.update(format="1"), "format"),
        (lambda d: d.pop("format"), "format"),
        (lambda d: d["training"].update(summary=None), "training.summary"),
        (lambda d: d.pop("encoder"), "encoder"),
        (lambda d: d.update(encoder=[]), "encoder"),
        (lambda d: d["encoder"].update(width="4"), "encoder.width is '4'; expected type int"),
        (lambda d: d["encoder"].update(width=10**9), "width is 1000000000; expected 1 to 1024"),
        (lambda d: d["encoder"].update(layer4=1), "encoder.layer4 is '1'; expected type bool"),
        (lambda d: d["encoder"].update(depth=50), "depth"),
        (lambda d: d["training"].pop("trained"), "trained"),
        (lambda d: d.update(training=None), "training"),
        (lambda d: d.update(inference=[]), "inference is '[]'; expected the names options, size, enlarge_percent"),
        (lambda d: d.update(inference=inference(size="576")), "size '576'"),
        (lambda d: d.update(inference=inference(enlarge_percent=None)), "enlarge_percent None"),
        (lambda d: d.update(inference=inference(options={"top_k": 0})), "top_k is 0"),
        (lambda d: d.update(inference=inference(options={"depth": 3})), "inference.options has 'depth'"),
    ],
)
def test_metadata_that_cannot_be_used(path: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    rewrite(path, unchanged, change)
    assert says in refusal(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("backbone.conv1.weight"), "lacks 1 tensors of the encoder, the first backbone.conv1.weight"),
        (lambda t: t.update(fc=torch.zeros(1)), "has 1 tensors that the encoder has not, the first fc"),
        (
            lambda t: t.update({"backbone.conv1.weight": torch.zeros(4, 3, 3, 3)}),
            "backbone.conv1.weight is float32 [4, 3, 3, 3]; the encoder of its configuration has float32 [4, 3, 7, 7]",
        ),
        (lambda t: t.update({"backbone.bn1.bias": torch.zeros(4).half()}), "is float16 [4]"),
        (lambda t: t["backbone.bn1.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_tensors_of_another_network(path: Path, change: Callable[[Tensors], object], says: str) -> None:
    rewrite(path, change, unchanged)
    assert says in refusal(path)


def test_a_failed_save_keeps_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the earlier checkpoint whole and no debris."""
    before = path.read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorkError, match="No space left on device"):
        save_checkpoint(Checkpoint(build_encoder(CONFIG, seed=6), TRAINING), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_places_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a directory; name a file"):
        save_checkpoint(Checkpoint(build_encoder(CONFIG, seed=5), TRAINING), tmp_path)
    target = tmp_path / "nowhere" / "checkpoint.safetensors"
    with pytest.raises(OutputError, match=r"cannot write the checkpoint .*there is no folder .*nowhere; make it first"):
        save_checkpoint(Checkpoint(build_encoder(CONFIG, seed=5), TRAINING), target)
