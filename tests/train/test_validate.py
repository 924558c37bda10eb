"""Validation goes through the runtime: the engine computes what is exported, and the scores are the runtime's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vosrt.bundle import EncoderSpec, Feature, Manifest
from vosrt.engines.fake import FakeEngine
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.errors import EngineError, InputError
from vosrt.metrics import score_sequence
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt.video.images import ImageFolderSource
from vosrt_export.graphs import EncoderGraph
from vosrt_export.onnx import export_onnx
from vosrt_train.checkpoint import load_checkpoint
from vosrt_train.config import EncoderConfig, TrainConfig
from vosrt_train.data.cache import Cache
from vosrt_train.distributed import World
from vosrt_train.loop import train
from vosrt_train.model import Encoder, build_encoder
from vosrt_train.run import Task
from vosrt_train.validate import DavisSequence, TorchEngine, find_sequences, runtime_model, validate

ConfigOf = Callable[..., TrainConfig]


@pytest.fixture
def encoder() -> Encoder:
    """A small encoder whose running statistics are not those of the start."""
    made = build_encoder(EncoderConfig(width=4, key_channels=8), seed=0).train()
    with torch.no_grad():
        made(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return made


def test_engine_equals_the_exported_bundle(encoder: Encoder, tmp_path: Path) -> None:
    """The graph that ships, in ONNX Runtime, agrees with the network in training."""
    feature: Feature = "res4"
    path = tmp_path / "encoder.onnx"
    path.write_bytes(export_onnx(EncoderGraph(encoder, feature), "fp32"))
    frames = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), dtype=np.uint8)
    exported = cpu_engine(path, {"frames": ("n", "height", "width", None)}, threads=1, reason="test")
    engine = TorchEngine(encoder, feature, EncoderSpec(channels=32, feature=feature))
    found, wanted = (each.run({"frames": frames})["embedding"] for each in (engine, exported))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_engine_leaves_the_training_alone(encoder: Encoder) -> None:
    """Mode, weights and running statistics are as before; later weights are used at once."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    engine = TorchEngine(encoder, "key", EncoderSpec(channels=8, feature="key"))
    frames = {"frames": np.full((1, 16, 16, 3), 9, np.uint8)}
    first = engine.run(frames)["embedding"]
    assert all(module.training for module in encoder.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    with torch.no_grad():
        encoder.backbone.conv1.weight.neg_()
    assert not np.allclose(first, engine.run(frames)["embedding"])


def test_engine_failures_are_ours(encoder: Encoder) -> None:
    engine = TorchEngine(encoder, "key", EncoderSpec(channels=8, feature="key"))
    with pytest.raises(EngineError, match="PyTorch cannot run the encoder"):
        engine.run({"frames": np.zeros((1, 16, 16, 5), np.uint8)})
    assert all(module.training for module in encoder.modules())


def test_scores_are_those_of_the_runtime(
    davis: Path, tiny_clip: tuple[U8Array, U8Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same model gives by hand the mean over objects, per sequence, and over the sequences."""
    spec = EncoderSpec(channels=16, feature="res3")
    manifest = Manifest(name="fake", trained=False, summary="", encoder=spec, graphs={})
    model = Model(manifest, {"encoder": FakeEngine(spec)})
    sequences = find_sequences(davis)
    assert [each.name for each in sequences] == ["square", "squares"]
    told: list[str] = []
    with monkeypatch.context() as patched:  # large frames are shrunk elsewhere, not where they are scored
        patched.setattr("vosrt.encoder.DEFAULT_SIZE", 32)
        small = Model(manifest, {"encoder": FakeEngine(spec)})
        assert small.working_size(64, 96) == (32, 48)
        result = validate(small, sequences, None, on_sequence=lambda name, _: told.append(name))
    assert told == ["square", "squares"]

    frames = [frame.image for frame in ImageFolderSource(davis / "JPEGImages" / "480p" / "squares")]
    with model.stream() as stream:
        labels = [stream.start(frames[0], tiny_clip[1][0]).labels, *(stream.step(frame).labels for frame in frames[1:])]
    objects = score_sequence(labels, list(tiny_clip[1]))
    assert result.scores["squares"].j == pytest.approx((objects[1].j + objects[2].j) / 2)
    assert result.scores["squares"].f == pytest.approx((objects[1].f + objects[2].f) / 2)
    assert result.scores["square"].j > 0.5
    assert result.j_and_f == pytest.approx(np.mean([score.j_and_f for score in result.scores.values()]))


def test_the_best_weights_are_kept(davis: Path, tiny_cache: Cache, tiny_config: ConfigOf, tmp_path: Path) -> None:
    """Validation runs every second step and at the end; what is kept scores what the log says it scored."""
    config = tiny_config("schedule.steps=5", "validation.every=2", "optimiser.learning_rate=0.01")
    sequences = tuple(find_sequences(davis))
    task = Task(config, tiny_cache, tmp_path, sequences=sequences, quiet=True)
    progress = train(task, build_encoder(config.encoder, seed=0), World(torch.device("cpu")))
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert progress.best_step in (2, 4, 5)
    assert f"{progress.best_step} steps of 4 clips" in best.training.summary
    assert validate(runtime_model(best.encoder, "res4"), sequences, 48).j_and_f == progress.best


def test_folders_that_are_no_data_set(davis: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not in the layout of DAVIS; expected JPEGImages/480p"):
        find_sequences(tmp_path)
    with pytest.raises(InputError, match="no annotated sequence 'dog'; it has: square, squares"):
        find_sequences(davis, ["square", "dog"])
    (sequence,) = find_sequences(davis, ["square"])
    (sequence.annotations / "00003.png").unlink()
    model = runtime_model(build_encoder(EncoderConfig(width=2, layer4=False), seed=0), "res3")
    with pytest.raises(InputError, match="has no mask for frame 00003"):
        validate(model, [sequence], None)
    empty = replace(sequence, frames=tmp_path)
    assert isinstance(empty, DavisSequence)
    with pytest.raises(InputError, match="holds no images"):
        validate(model, [empty], None)
