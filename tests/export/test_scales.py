"""Two scales in one encoder: the graph computes their joined embeddings, in both readers and beside its source."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

import vosrt_export.cli
from vosrt import Model
from vosrt.bundle import Feature, WeightPrecision, load_bundle
from vosrt.core.native import resize_bgr
from vosrt.errors import OptionError
from vosrt_export.copying import copy_bundle
from vosrt_export.errors import ExportError
from vosrt_export.scales import OUTPUT_NAME, join, join_scales, scale_part, smaller_side

BundleOf = Callable[[Feature, WeightPrecision], Path]


@pytest.fixture
def source(small_bundle: BundleOf, tmp_path: Path) -> Path:
    """A bundle of random weights, in a folder of its own."""
    (tmp_path / "all").mkdir()
    copy_bundle(str(small_bundle("res3", "fp16")), tmp_path / "all/one")
    return tmp_path / "all/one"


@pytest.mark.parametrize(("ratio", "size"), [(Fraction(2, 3), (96, 144)), (Fraction(1, 2), (40, 72))])
def test_the_graph_joins_two_runs(source: Path, tmp_path: Path, ratio: Fraction, size: tuple[int, int]) -> None:
    """Similarities are the weighted mean of those at both scales."""
    weight = 0.5
    join_scales(str(source), tmp_path / "two", ratio, weight)
    frame = resize_bgr(np.random.default_rng(3).integers(0, 256, (9, 13, 3), dtype=np.uint8), *size)
    small = resize_bgr(frame, *(smaller_side(side, ratio, 8) for side in size))
    one = Model.load(source, engine="cpu", precision="fp32")
    both = Model.load(tmp_path / "two", engine="cpu", precision="fp32").encode(frame, "native").array
    fine, coarse = one.encode(frame, "native").array, one.encode(small, "native").array
    wanted = join(fine, coarse, weight)
    assert both.shape == (*fine.shape[:2], 2 * fine.shape[2])
    np.testing.assert_allclose(both, wanted, atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(both, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(both[..., : fine.shape[2]] * math.sqrt(1 + weight), fine, atol=1e-5)


def test_whole_cells_of_the_smaller_copy() -> None:
    assert [smaller_side(side, Fraction(2, 3), 8) for side in (16, 480, 720, 1280)] == [16, 320, 480, 856]


def test_beside_its_source_a_bundle_holds_no_weights(source: Path) -> None:
    """It names the source's encoder; elsewhere it is whole. Both give the same embeddings."""
    beside, away = source.parent / "beside", source.parent.parent / "away"
    for output in (beside, away):
        join_scales(str(source), output, Fraction(2, 3), 0.5, size=720)
    entry = json.loads((beside / "manifest.json").read_text())["graphs"]["encoder"]
    assert entry["bundle"] == "one"
    assert (beside / entry["adds"]["file"]).stat().st_size < 20_000
    assert {each.name for each in away.iterdir()} == {"encoder.onnx", "manifest.json"}
    frame = np.random.default_rng(2).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    one, other = (Model.load(each, engine="cpu", precision="fp32").encode(frame).array for each in (beside, away))
    np.testing.assert_array_equal(one, other)
    manifest = load_bundle(beside).manifest
    assert (manifest.size, manifest.inference.radius) == (720, 18)
    assert manifest.encoder.output_name == OUTPUT_NAME


@pytest.mark.parametrize(("ratio", "weight"), [(Fraction(1), 0.5), (Fraction(1, 3), 0.5), (Fraction(2, 3), 0.0)])
def test_refused_values(source: Path, tmp_path: Path, ratio: Fraction, weight: float) -> None:
    with pytest.raises(OptionError, match="expected"):
        join_scales(str(source), tmp_path / "out", ratio, weight)
    assert not (tmp_path / "out").exists()


def test_a_graph_that_begins_otherwise_is_refused(source: Path) -> None:
    bundle = load_bundle(source)
    model = onnx.load_from_string(bundle.graph("encoder").content)
    next(node for node in model.graph.node if node.op_type == "Transpose").op_type = "Identity"
    with pytest.raises(ExportError, match="begins with Identity, Cast"):
        scale_part(model, bundle.manifest.encoder, Fraction(2, 3), 0.5)


def test_the_command(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how well the graph computes both scales; a ratio that is none is bad input."""

    def run(ratio: str) -> int:
        arguments = ["scales", str(source), "-o", str(tmp_path / "out"), "--ratio", ratio, "--overwrite"]
        monkeypatch.setattr(sys, "argv", ["vos-export", *arguments])
        return vosrt_export.cli.main()

    assert run("2/3") == 0
    assert "min cosine" in capsys.readouterr().out
    assert run("half") == 2
    assert "ratio is 'half'; expected a number such as 2/3 or 0.5" in capsys.readouterr().err
