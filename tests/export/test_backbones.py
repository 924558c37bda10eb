"""Encoders beyond our own: each exports, keeps its stride, and follows an object through a clip in the runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vosrt.bundle import load_bundle
from vosrt.errors import OptionError
from vosrt.model import Model
from vosrt.types import PropagationOptions, U8Array
from vosrt_export.graphs import reference_embedding
from vosrt_export.verify import TOLERANCES, sample_frames, summarise
from vosrt_export.write_bundle import export_bundle
from vosrt_train.backbones import build_network, default_config, kind_of, kinds, resnet18_mirrored, resnet50, vit
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Training, load_checkpoint, save_checkpoint
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.model.contract import VisualConfig
from vosrt_train.prepare import starting_encoder
from vosrt_train.validate import runtime_model

SMALL: dict[str, VisualConfig] = {
    "resnet18_mirrored": resnet18_mirrored.Config(width=16),
    "resnet50": resnet50.Config(width=4, reduction=24),
    "vit": vit.Config(patch=16, width=32, depth=1, heads=2, registers=4, positions=5),
}
ODD_SIZES = ((1, 16, 16), (2, 33, 71), (1, 64, 96), (1, 45, 17))


@pytest.fixture(scope="module", params=SMALL)
def config(request: pytest.FixtureRequest) -> VisualConfig:
    return SMALL[request.param]


@pytest.fixture(scope="module")
def checkpoint(config: VisualConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    training = Training(trained=False, seed=1, summary="untrained, seed 1", licence="Apache-2.0")
    save_checkpoint(Checkpoint(build_network(config, seed=1).eval(), training), path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(checkpoint, output)
    return output


def test_a_checkpoint_tells_its_kind(config: VisualConfig, checkpoint: Path) -> None:
    """Weights and shape come back; the weights depend on the seed alone."""
    loaded = load_checkpoint(checkpoint)
    assert loaded.encoder.config == config
    wanted = build_network(config, seed=1).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.encoder.state_dict().items())
    other = build_network(config, seed=2).state_dict()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in wanted.items())


def test_the_bundle_computes_what_the_network_does(config: VisualConfig, checkpoint: Path, bundle: Path) -> None:
    """The runtime's engine runs sizes that the export did not see, most of them no multiples of the stride."""
    opened = load_bundle(bundle)
    manifest = opened.manifest
    assert manifest.encoder.stride == config.stride
    assert not manifest.encoder.align_corners
    as_they_are = replace(manifest, encoder=replace(manifest.encoder, align_corners=True))
    assert manifest.name.startswith(kind_of(config))
    encoder, feature = load_checkpoint(checkpoint).encoder, manifest.encoder.feature
    model = Model.load(replace(opened, manifest=as_they_are), engine="cpu", threads=1)
    pairs = []
    for frames in sample_frames(ODD_SIZES):
        found = np.stack([model.encode(frame).array for frame in frames])
        assert found.shape[1:3] == tuple(-(-side // config.stride) for side in frames.shape[1:3])
        pairs.append((reference_embedding(encoder, feature, torch.from_numpy(frames)).numpy(), found))
    comparison = summarise(pairs)
    assert comparison.passes(TOLERANCES["fp16"]), comparison


def test_a_clip_from_start_to_end(bundle: Path, checkpoint: Path, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """The runtime follows both objects with the bundle as it does with the network in PyTorch in its place."""
    feature = load_bundle(bundle).manifest.encoder.feature
    options = load_bundle(bundle).manifest.inference
    frames, masks = tiny_clip
    labels = []
    network = load_checkpoint(checkpoint).encoder
    for model in (Model.load(bundle, engine="cpu"), runtime_model(network, feature)):
        with model.stream(options=options) as stream:
            results = [stream.start(frames[0], masks[0]), *(stream.step(frame) for frame in frames[1:])]
        labels.append(np.stack([result.labels for result in results]))
    found, wanted = labels
    assert (found != wanted).mean() < 0.005
    assert all((set(np.unique(frame)) == {0, 1, 2}) for frame in found)


def test_the_window_keeps_its_size_in_pixels(config: VisualConfig, bundle: Path) -> None:
    """A cell of another stride covers another part of the frame; objects move as far as before."""
    radius = load_bundle(bundle).manifest.inference.radius
    assert radius * config.stride == pytest.approx(PropagationOptions().radius * 8)


def test_the_class_token_and_the_registers_are_dropped() -> None:
    """They change what the patches attend to, and are none of the cells."""
    few, many = (vit.Config(patch=8, width=16, depth=1, heads=1, registers=n, positions=4) for n in (0, 5))
    frames = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        without, with_five = (build_network(each, seed=0).eval()(frames).key for each in (few, many))
    assert without.shape == with_five.shape == (1, 16, 3, 5)
    assert not torch.allclose(without, with_five)


def test_positions_are_interpolated_in_the_graph(bundle: Path, config: VisualConfig) -> None:
    if not isinstance(config, vit.Config):
        pytest.skip("convolutions have no positions")
    operators = {node.op_type for node in onnx.load(bundle / "encoder.onnx").graph.node}
    assert "Resize" in operators
    assert not operators & {"If", "Loop", "Scan"}


def test_pixels_beyond_the_frame_are_of_the_mean_colour() -> None:
    """A frame that ends within a patch gives what the same frame gives when it is continued by hand."""
    network = build_network(vit.Config(patch=8, width=16, depth=1, heads=1, positions=3), seed=0).eval()
    frame = torch.rand(1, 3, 13, 18, generator=torch.Generator().manual_seed(0))
    continued = torch.zeros(1, 3, 16, 24)
    continued[:, :, :13, :18] = frame
    with torch.no_grad():
        torch.testing.assert_close(network(frame).key, network(continued).key)


def test_our_own_checkpoints_are_as_they_were(tmp_path: Path) -> None:
    """No kind is written for ResNet-18, so that older versions read them and hashes stay; none is needed."""
    path = tmp_path / "net.safetensors"
    training = Training(trained=False, seed=0, summary="untrained, seed 0", licence="Apache-2.0")
    config = EncoderConfig(width=4, key_channels=4)
    save_checkpoint(Checkpoint(build_network(config, seed=0), training), path)
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["vosrt"])
    assert set(document["encoder"]) == {"layer4", "width", "key_channels"}
    assert load_checkpoint(path).encoder.config == config


@pytest.mark.parametrize("kind", ["resnet51", "__init__", "os", "..model", "", 7, None, ["vit"]])
def test_unknown_kinds(tmp_path: Path, kind: object) -> None:
    """A checkpoint names a kind; it does not choose what is imported."""
    path = tmp_path / "net.safetensors"
    document = {"format": 1, "encoder": {"kind": kind, "width": 4}, "training": {}}
    save_file({"x": torch.zeros(1)}, path, {"vosrt": json.dumps(document)})
    with pytest.raises(CheckpointError, match="this vosrt knows resnet18, resnet18_mirrored, resnet50, vit"):
        load_checkpoint(path)


def test_impossible_shapes() -> None:
    with pytest.raises(OptionError, match="depth is 1000000; expected 1 to 64"):
        vit.Config(depth=10**6)
    with pytest.raises(OptionError, match="expected a width that they divide"):
        vit.Config(width=10, heads=3)
    with pytest.raises(OptionError, match="reduction is -1; expected 0 to 4096"):
        resnet50.Config(reduction=-1)


def test_training_says_that_it_takes_its_own_kind_only(checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="training takes resnet18 only"):
        starting_encoder(TrainConfig(), str(checkpoint))


def test_each_kind_is_a_file() -> None:
    assert kinds() == ("resnet18", "resnet18_mirrored", "resnet50", "vit")
    assert [kind_of(default_config(kind)) for kind in kinds()] == list(kinds())
