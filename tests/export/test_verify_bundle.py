"""``vos-export verify``: sound engines pass, unsound ones fail, and the bundle keeps the report."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import vosrt_export.cli
from tests.fakes.media import save_davis
from vosrt.bundle import Bundle, Feature, WeightPrecision, load_bundle
from vosrt.engines.base import EngineInfo
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.engines.openvino import processor_has_bf16
from vosrt.errors import InputError, OptionError, OutputError, WorkError
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt_export import engine_report
from vosrt_export.engine_report import Candidate, Clip, compare_engines
from vosrt_export.verify_bundle import VerifyRequest, drawn_frames, verify_bundle

BundleOf = Callable[[Feature, WeightPrecision], Path]


@pytest.fixture
def bundle(small_bundle: BundleOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle("res3", "fp16"), tmp_path / "bundle"))


@pytest.fixture
def davis(tmp_path: Path, tiny_clip: tuple[U8Array, U8Array]) -> Path:
    """Two annotated sequences, one the other reversed."""
    root = tmp_path / "davis"
    for name, step in (("forth", 1), ("back", -1)):
        save_davis(root, name, tiny_clip[0][::step], tiny_clip[1][::step], suffix="jpg")
    return root


def spoil(bundle: Path, factor: float) -> None:
    """Alter weights, with the right size and hash."""
    path = bundle / "encoder.onnx"
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    values = onnx.numpy_helper.to_array(weights) * np.linspace(1, factor, weights.dims[0])[:, None, None, None]
    weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), weights.name))
    path.write_bytes(model.SerializeToString())
    document = json.loads((bundle / "manifest.json").read_text())
    document["graphs"]["encoder"].update(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size
    )
    (bundle / "manifest.json").write_text(json.dumps(document))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vos-export", *map(str, arguments)])
    return vosrt_export.cli.main()


def test_a_sound_bundle_passes_and_keeps_the_report(bundle: Path, small_checkpoint: Path) -> None:
    """Every stage has figures against the checkpoint, and the bundle loads with what it had and the report."""
    before = load_bundle(bundle).manifest
    report = verify_bundle(
        VerifyRequest(bundle=str(bundle), checkpoint=small_checkpoint, engines=("cpu",), size=48, threads=1)
    )
    assert report.passed
    (outcome,) = report.outcomes
    assert (outcome.engine, outcome.precision) == ("cpu", "fp32")
    assert 0 < outcome.encoder.mean_abs < outcome.encoder.max_abs < 2e-3, "fp16 weights are not fp32 ones"
    assert outcome.match_percent > 99
    assert outcome.soft_mean_abs <= outcome.soft_max_abs < 0.1
    assert outcome.j_and_f_drop is None
    assert "bf16" in "".join(report.refused)
    manifest = load_bundle(bundle).manifest
    assert manifest.verification["report"] == report.document()
    assert {**manifest.verification, "report": None} == {**before.verification, "report": None}
    assert dataclasses.replace(manifest, verification={}) == dataclasses.replace(before, verification={})
    assert sorted(each.name for each in bundle.iterdir()) == ["encoder.onnx", "manifest.json", "training.safetensors"]
    assert "cpu fp32" in str(report)
    assert "passed" in str(report)


def test_what_the_export_did_wrong_is_found(
    bundle: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph of other weights gives exit code 1 and one line that names the engine; the report is kept."""
    spoil(bundle, 3.0)
    code = command(
        monkeypatch, "verify", bundle, "--checkpoint", small_checkpoint, "--engine", "cpu", "--size", 48, "--threads", 1
    )
    assert code == 1
    out, err = capsys.readouterr()
    assert err == f"error: {bundle}: cpu fp32 went beyond the limits\n"
    assert "FAILED: cosine 0." in out
    assert load_bundle(bundle).manifest.verification["report"]["passed"] is False


def test_ground_truth_adds_the_drop(bundle: Path, small_checkpoint: Path, davis: Path) -> None:
    request = VerifyRequest(
        bundle=str(bundle), checkpoint=small_checkpoint, davis=davis, engines=("cpu",), limit=5, threads=1
    )
    report = verify_bundle(request)
    assert report.clips == ("back", "forth")
    assert report.outcomes[0].j_and_f_drop == pytest.approx(0, abs=0.5)
    one = verify_bundle(dataclasses.replace(request, sequences=("forth",), limit=2))
    assert one.clips == ("forth",)
    assert one.outcomes[0].j_and_f_drop is None, "two frames are the first and the last, which do not count"


class Noisy:
    """The CPU engine with noise on what it gives."""

    def __init__(self, graph: Path, noise: float) -> None:
        self._engine = cpu_engine(graph, {"frames": ("n", "height", "width", None)}, threads=1, reason="test")
        self._noise = noise
        self.info_ = self._engine.info

    @property
    def info(self) -> EngineInfo:
        return self.info_

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        right = self._engine.run(inputs)["embedding"]
        noise = np.random.default_rng(0).standard_normal(right.shape) * self._noise
        return {"embedding": (right + noise).astype(np.float32)}


def test_every_stage_shows_the_error(bundle: Path, davis: Path, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """The worse the engine, the worse each figure; an engine without error has none."""
    opened = load_bundle(bundle)
    frames, masks = tiny_clip
    clip = Clip("clip", list(frames), masks[0], list(masks))
    models = [
        Model(opened.manifest, {"encoder": Noisy(opened.graph_path("encoder"), n)}, precision="fp32", threads=1)
        for n in (0.0, 0.02, 0.3)
    ]
    candidates = [Candidate("noisy", "fp32", model, "fp32") for model in models]
    same, near, far = compare_engines(models[0], candidates, [clip])
    assert (same.encoder.max_abs, same.match_max_abs, same.soft_max_abs, same.labels_percent) == (0, 0, 0, 0)
    assert (same.match_percent, same.j_and_f_drop, same.failures) == (100, 0, ())
    assert 0.01 < near.encoder.mean_abs < far.encoder.mean_abs
    assert 1 > near.encoder.min_cosine > far.encoder.min_cosine
    assert 100 > near.match_percent > far.match_percent
    assert 0 < near.match_max_abs < far.match_max_abs
    assert 0 < near.soft_mean_abs < far.soft_mean_abs
    assert 0 < near.labels_percent < far.labels_percent
    assert not far.passed


def test_without_a_checkpoint_the_engines_are_compared(bundle: Path, skip_or_fail: Callable[..., None]) -> None:
    """The report says that the export was not compared."""
    pytest.importorskip("openvino")
    report = verify_bundle(VerifyRequest(bundle=str(bundle), engines=("cpu", "openvino"), size=48, threads=1))
    names = {(outcome.engine, outcome.precision) for outcome in report.outcomes}
    precisions = ("fp32", "bf16") if processor_has_bf16() else ("fp32",)
    assert names == {("openvino", precision) for precision in precisions}
    assert "no checkpoint was given" in report.yardstick
    fp32 = next(outcome for outcome in report.outcomes if outcome.precision == "fp32")
    assert fp32.passed, fp32.failures


def test_frames_of_ones_own(bundle: Path, small_checkpoint: Path, davis: Path) -> None:
    folder = davis / "JPEGImages" / "480p" / "forth"
    before = (bundle / "manifest.json").read_bytes()
    report = verify_bundle(
        VerifyRequest(
            bundle=str(bundle),
            checkpoint=small_checkpoint,
            clip=str(folder),
            limit=3,
            engines=("cpu",),
            threads=1,
            write=False,
        )
    )
    assert report.clips == ("forth, an ellipse in its middle",)
    assert not report.written
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_report_that_has_no_place(
    bundle: Path, small_checkpoint: Path, davis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that may not be written to is found out before the work, a full disk after it; both name the way out."""
    request = VerifyRequest(
        bundle=str(bundle), checkpoint=small_checkpoint, davis=davis, limit=2, engines=("cpu",), threads=1
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(OutputError, match="is not writable, and the report goes there; use --no-write"):
            verify_bundle(request)
        assert verify_bundle(dataclasses.replace(request, write=False)).passed

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    before = (bundle / "manifest.json").read_bytes()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorkError, match=r"cannot be written \(No space left on device\); .*--no-write"):
        verify_bundle(request)
    assert (bundle / "manifest.json").read_bytes() == before


def test_refused(bundle: Path, small_checkpoint: Path, davis: Path, tmp_path: Path) -> None:
    """Another checkpoint, contradicting options and nothing to compare are refused."""
    other = tmp_path / "other.safetensors"
    content = small_checkpoint.read_bytes()
    other.write_bytes(content.replace(b"trained for a test", b"trained for a TEST"))
    with pytest.raises(InputError, match="give the checkpoint that it was exported from"):
        verify_bundle(VerifyRequest(bundle=str(bundle), checkpoint=other))
    with pytest.raises(OptionError, match="--clip and --davis"):
        verify_bundle(VerifyRequest(bundle=str(bundle), clip="x", davis=davis))
    with pytest.raises(OptionError, match="--engine is cpu, which is what engines are compared with"):
        verify_bundle(VerifyRequest(bundle=str(bundle), engines=("cpu",), threads=1))
    with pytest.raises(InputError, match="has no annotated sequence 'sideways'"):
        verify_bundle(VerifyRequest(bundle=str(bundle), davis=davis, sequences=("sideways",), threads=1))


class Somewhere:
    """An engine that is not installed is reported in every precision; the cost of a precision is noise."""

    def __init__(self, bundle: Path, quantised: str | None = None) -> None:
        self.asked: list[str] = []
        self._graph = load_bundle(bundle).graph_path("encoder")
        self._quantised = quantised

    def load(self, opened: Bundle, *, engine: str, precision: str, threads: int) -> Model:
        self.asked.append(precision)
        arithmetic = self._quantised or ("fp16" if precision == "auto" else precision)
        noise = {"fp32": 0.0, "fp16": 1e-5, "bf16": 1e-3, "int8": 5e-3}[arithmetic]
        run = Noisy(self._graph, noise)
        run.info_ = dataclasses.replace(run.info, name=engine, precision=arithmetic)
        return Model(opened.manifest, {"encoder": run}, precision="fp32", threads=threads)


@pytest.mark.parametrize(
    ("quantised", "asked", "covered"),
    [(None, ["fp32", "fp16", "bf16", "auto"], ["fp32", "fp16", "bf16"]), ("int8", ["int8", "bf16"], ["int8", "int8"])],
)
def test_every_precision_that_an_engine_has_is_covered(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, quantised: str | None, asked: list[str], covered: list[str]
) -> None:
    """fp16, which "auto" runs, and int8 are compared; what "auto" repeats is compared once."""
    if quantised:
        document = json.loads((bundle / "manifest.json").read_text())
        document["graphs"]["encoder"]["precision"] = quantised
        (bundle / "manifest.json").write_text(json.dumps(document))
    somewhere, yardstick = Somewhere(bundle, quantised), Model.load(bundle, engine="cpu", precision="fp32", threads=1)
    monkeypatch.setattr("vosrt_export.verify_bundle._yardstick", lambda *_: (yardstick, "the yardstick"))
    monkeypatch.setattr(Model, "load", somewhere.load)
    report = verify_bundle(VerifyRequest(bundle=str(bundle), engines=("tensorrt",), size=48, threads=1))
    assert somewhere.asked == asked
    assert [outcome.precision for outcome in report.outcomes] == covered
    assert report.passed, str(report)


def test_an_engine_that_was_asked_for_and_does_not_run_is_exit_1(
    bundle: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are verified all the same, and the line says why this one was not; an unknown name is wrong usage."""
    monkeypatch.setattr("vosrt.engines.nvidia._DRIVER", "libvosrt-no-such-driver.so")
    words = ("verify", bundle, "--engine", "cuda", "--size", 48, "--threads", 1)
    assert command(monkeypatch, *words) == 1
    assert "error: not verified: cuda in fp32, auto: no NVIDIA driver here" in capsys.readouterr().err
    assert command(monkeypatch, *words, "--engine", "cpu", "--checkpoint", small_checkpoint) == 1
    out, err = capsys.readouterr()
    assert "cpu fp32" in out
    assert f"{bundle}: not verified: cuda in" in err
    assert load_bundle(bundle).manifest.verification["report"]["passed"] is False
    assert command(monkeypatch, *words, "--engine", "abacus") == 2
    assert "engine is 'abacus'" in capsys.readouterr().err


def test_limits_are_ordered() -> None:
    """More precise arithmetic is never held to less."""
    order = [engine_report.LIMITS[name] for name in ("fp32", "fp16", "bf16", "int8")]
    for tight, loose in itertools.pairwise(order):
        assert tight.min_cosine > loose.min_cosine
        assert tight.mean_abs < loose.mean_abs
        assert tight.soft_mean_abs < loose.soft_mean_abs
        assert tight.labels_percent < loose.labels_percent


def test_drawn_frames_move() -> None:
    first, second = drawn_frames(2)
    assert first.shape == second.shape == (96, 160, 3)
    assert (first != second).any()
