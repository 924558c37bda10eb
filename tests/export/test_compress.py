"""Fewer channels: the axes are the best ones, the graph computes the projection, nothing is written that does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import vosrt_export.cli
from vosrt import Model
from vosrt.bundle import Feature, WeightPrecision, load_bundle
from vosrt.errors import OptionError, OutputError, SourceError
from vosrt.types import F32Array
from vosrt_export.compress import compress_bundle, principal_axes, project

BundleOf = Callable[[Feature, WeightPrecision], Path]


def unit_vectors(random: np.random.Generator, *shape: int) -> F32Array:
    rows = random.normal(size=shape) * np.geomspace(1, 0.1, shape[-1])
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), np.roll(noise, 5 * number, axis=1))
    return folder


def test_the_axes_are_those_of_the_singular_vectors() -> None:
    """They equal the singular value decomposition of all embeddings at once."""
    random = np.random.default_rng(0)
    embeddings = [unit_vectors(random, 5, 7, 12), unit_vectors(random, 3, 4, 12)]
    axes, energy = principal_axes(embeddings, 4)
    rows = np.concatenate([embedding.reshape(-1, 12) for embedding in embeddings]).astype(np.float64)
    _, lengths, vectors = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(np.abs(axes @ vectors[:4].T), np.eye(4), atol=1e-6)
    assert energy == pytest.approx((lengths[:4] ** 2).sum() / (lengths**2).sum())


def test_all_axes_change_no_inner_product() -> None:
    rows = unit_vectors(np.random.default_rng(1), 6, 5, 8)
    axes, energy = principal_axes([rows], 8)
    turned = project(rows, axes.astype(np.float32)).reshape(-1, 8)
    assert energy == pytest.approx(1)
    np.testing.assert_allclose(turned @ turned.T, rows.reshape(-1, 8) @ rows.reshape(-1, 8).T, atol=1e-5)


def test_a_bundle_with_fewer_channels(small_bundle: BundleOf, clip: Path, tmp_path: Path) -> None:
    """It loads, runs at other sizes, embeds in unit vectors, tells its origin; the same clip, the same bytes."""
    source = small_bundle("res4", "fp16")
    before = load_bundle(source).manifest
    result = compress_bundle(str(source), tmp_path / "small", [str(clip)], 8)
    manifest = load_bundle(tmp_path / "small").manifest
    assert result.channels == (before.encoder.channels, 8)
    assert 0 < result.energy < 1
    assert manifest.encoder.channels == 8
    assert manifest.provenance["compressed"]["from_sha256"] == before.graphs["encoder"].sha256
    assert manifest.summary.endswith(f"; {before.encoder.channels} channels projected on 8 principal axes.")
    assert manifest.verification["figures"]["max_abs"] == result.comparison.max_abs
    frame = np.random.default_rng(2).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    wide = Model.load(source, engine="cpu", precision="fp32").encode(frame).array
    narrow = Model.load(tmp_path / "small", engine="cpu", precision="fp32").encode(frame).array
    assert narrow.shape == (*wide.shape[:2], 8)
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=-1), 1, atol=1e-5)
    compress_bundle(str(source), tmp_path / "again", [str(clip)], 8)
    assert (tmp_path / "small/encoder.onnx").read_bytes() == (tmp_path / "again/encoder.onnx").read_bytes()


@pytest.mark.parametrize("channels", [0, 64, 1000])
def test_refused_channels(small_bundle: BundleOf, clip: Path, tmp_path: Path, channels: int) -> None:
    with pytest.raises(OptionError, match=f"channels is {channels}; .* expected 1 to 63"):
        compress_bundle(str(small_bundle("res4", "fp16")), tmp_path / "out", [str(clip)], channels)
    assert not (tmp_path / "out").exists()


def test_refused_places(small_bundle: BundleOf, clip: Path, tmp_path: Path) -> None:
    source = str(small_bundle("res4", "fp16"))
    with pytest.raises(OutputError, match="already"):
        compress_bundle(source, clip, [str(clip)], 8)
    with pytest.raises(SourceError):
        compress_bundle(source, tmp_path / "out", [str(tmp_path / "nowhere")], 8)
    assert not (tmp_path / "out").exists()


def test_the_command(
    small_bundle: BundleOf,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says what is kept; too many channels are bad input."""

    def run(channels: int) -> int:
        bundle, output = str(small_bundle("res4", "fp16")), str(tmp_path / "out")
        arguments = ["compress", bundle, "-o", output, "--clip", str(clip), "--channels", str(channels), "--overwrite"]
        monkeypatch.setattr(sys, "argv", ["vos-export", *arguments])
        return vosrt_export.cli.main()

    assert run(8) == 0
    assert "8 of 64 channels" in capsys.readouterr().out
    assert run(65) == 2
    assert "expected 1 to 63" in capsys.readouterr().err
