"""A small network whose batch-norms do something, its checkpoint, and bundles of it."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vosrt.bundle import Feature, WeightPrecision
from vosrt.engines.tensorrt_flavour import TENSORRT_RTX
from vosrt.errors import EngineError, MissingExtraError
from vosrt_export import write_bundle
from vosrt_export.graphs import EncoderGraph
from vosrt_export.onnx import export_onnx
from vosrt_export.polygraphy_loader import load_polygraphy
from vosrt_export.write_bundle import ExportOptions, export_bundle
from vosrt_train.checkpoint import Checkpoint, Training, save_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.model import Encoder, build_encoder

ModelOf = Callable[[Feature, WeightPrecision], bytes]
BundleOf = Callable[[Feature, WeightPrecision], Path]
AsIfTrained = Callable[..., None]
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small convolutions spend their time waiting for threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def as_if_trained() -> AsIfTrained:
    """Draws batch-norms of networks: an untrained one is the identity, which would hide folding it wrongly."""

    def draw(*networks: nn.Module, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for norm in [module for network in networks for module in network.modules()]:
            if isinstance(norm, nn.BatchNorm2d):
                for tensor, low, high in (
                    (norm.weight.data, 0.5, 1.5),
                    (norm.bias.data, -0.5, 0.5),
                    (norm.get_buffer("running_mean"), -0.5, 0.5),
                    (norm.get_buffer("running_var"), 0.5, 2.0),
                ):
                    tensor.uniform_(low, high, generator=generator)

    return draw


@pytest.fixture(scope="session")
def small_encoder(as_if_trained: AsIfTrained) -> Encoder:
    encoder = build_encoder(EncoderConfig(width=8, key_channels=16), seed=0)
    as_if_trained(encoder)
    return encoder.eval()


@pytest.fixture(scope="session")
def small_checkpoint(small_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    training = Training(trained=True, seed=0, summary="trained for a test", licence="CC0-1.0")
    save_checkpoint(Checkpoint(small_encoder, training), path)
    return path


@pytest.fixture(scope="session")
def small_model(small_encoder: Encoder) -> ModelOf:
    """The exporter takes seconds, so each graph is exported once: ``small_model(feature, weights)``."""
    return functools.cache(lambda feature, weights: export_onnx(EncoderGraph(small_encoder, feature), weights))


@pytest.fixture
def quick_export(small_model: ModelOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export_bundle` of the small checkpoint takes its graph from `small_model`; all else is as always."""
    monkeypatch.setattr(write_bundle, "export_onnx", lambda graph, weights: small_model(graph.feature, weights))


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint: Path, small_model: ModelOf, tmp_path_factory: pytest.TempPathFactory) -> BundleOf:
    """Exports each combination once: ``small_bundle(feature, weights)`` is the bundle's directory."""
    root = tmp_path_factory.mktemp("bundles")

    def bundle_of(feature: Feature, weights: WeightPrecision) -> Path:
        output = root / f"{feature}-{weights}"
        if not output.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(write_bundle, "export_onnx", lambda *_: small_model(feature, weights))
                export_bundle(small_checkpoint, output, ExportOptions(feature=feature, weights=weights))
        return output

    return bundle_of


@pytest.fixture
def rtx(skip_or_fail: Callable[..., None]) -> None:
    """TensorRT-RTX and Polygraphy."""
    try:
        TENSORRT_RTX.load()
        load_polygraphy(TENSORRT_RTX)
    except (MissingExtraError, EngineError) as error:
        skip_or_fail(str(error), required="tensorrt-rtx")


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Runs a command as a user does, in an empty folder: ``command_line("vosrt_export", "a", "-o", "b")``."""

    def run(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = f"import sys; sys.argv[0] = {package!r}; from {package}.cli import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={"PYTHONPATH": ":".join(sys.path), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        )

    return run
