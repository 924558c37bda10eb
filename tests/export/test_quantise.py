"""``vos-export quantise``: int8 graphs that run on every engine, and a gate that lets only good ones through."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import vosrt_export.cli
import vosrt_export.quantise
from vosrt.bundle import EncoderSpec, Feature, WeightPrecision, load_bundle
from vosrt.errors import EngineError, MissingExtraError, OptionError, OutputError
from vosrt.metrics import Score
from vosrt.model import Model
from vosrt.types import U8Array
from vosrt_export.quantise import (
    QuantisationRefusedError,
    QuantiseOptions,
    calibration_frames,
    quantisable,
    quantise_bundle,
    weights_in_fp32,
)
from vosrt_train.validate import AnnotatedSequence, Validation

BundleOf = Callable[[Feature, WeightPrecision], Path]
OPTIONS = QuantiseOptions(frames=4, threads=1, max_drop=100)
SPEC = EncoderSpec(channels=32, feature="res3", align_corners=False)


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory, tiny_clip: tuple[U8Array, U8Array]) -> Path:
    """One annotated sequence."""
    root = tmp_path_factory.mktemp("davis")
    for part, arrays, suffix in zip(("JPEGImages", "Annotations"), tiny_clip, ("png", "png"), strict=True):
        folder = root / part / "480p" / "squares"
        folder.mkdir(parents=True)
        for index, array in enumerate(arrays):
            Image.fromarray(array[..., ::-1] if array.ndim == 3 else array).save(folder / f"{index:05}.{suffix}")
    return root


@pytest.fixture(scope="module")
def clip(davis: Path) -> str:
    return str(davis / "JPEGImages" / "480p" / "squares")


@pytest.fixture(scope="module")
def quantised(
    small_bundle: BundleOf, davis: Path, clip: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """The small network with activations in uint8 (False) and in symmetric int8 (True)."""
    root = tmp_path_factory.mktemp("quantised")
    for symmetric in (False, True):
        options = QuantiseOptions(frames=4, threads=1, max_drop=100, symmetric=symmetric)
        quantise_bundle(str(small_bundle("res4", "fp16")), root / str(symmetric), [clip], davis, options)
    return {symmetric: root / str(symmetric) for symmetric in (False, True)}


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_layer_is_quantised_per_channel(quantised: dict[bool, Path], symmetric: bool) -> None:
    """Weights are stored as int8 with a scale per output, activations as asked for, in standard operators."""
    graph = onnx.load(quantised[symmetric] / "encoder.onnx").graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for node in convolutions:
        activation, weight = made_by[node.input[0]], made_by[node.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        stored, scale = weights[weight.input[0]], weights[weight.input[1]]
        assert stored.data_type == onnx.TensorProto.INT8
        assert list(scale.dims) == [stored.dims[0]]
        zero = weights[activation.input[2]]
        assert zero.data_type == (onnx.TensorProto.INT8 if symmetric else onnx.TensorProto.UINT8)
        if symmetric:
            assert not onnx.numpy_helper.to_array(zero).any()
    assert {node.domain for node in graph.node} == {""}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("engine", ["cpu", "openvino", "openvino-direct"])
def test_engines_run_it(
    quantised: dict[bool, Path],
    small_bundle: BundleOf,
    engine: str,
    symmetric: bool,
    tiny_clip: tuple[U8Array, U8Array],
    skip_or_fail: Callable[..., None],
) -> None:
    """Near what the float graph gives, on each engine; skipped, with its own reason, where it does not run."""
    frame = tiny_clip[0][2]
    right = Model.load(small_bundle("res4", "fp16"), engine="cpu", threads=1).encode(frame).array
    try:
        model = Model.load(quantised[symmetric], engine=engine, precision="fp32", threads=1)
    except (EngineError, MissingExtraError) as error:
        skip_or_fail(str(error), required=engine)
    cosine = (model.encode(frame).array * right).sum(axis=-1)
    assert cosine.min() > 0.9
    assert cosine.mean() > 0.98


def test_the_manifest_tells_what_was_done(quantised: dict[bool, Path], small_bundle: BundleOf) -> None:
    """Origin, layers, gate; weights to train further are not among them."""
    before, manifest = load_bundle(small_bundle("res4", "fp16")).manifest, load_bundle(quantised[False]).manifest
    assert manifest.name == f"{before.name}-int8"
    assert manifest.graphs["encoder"].precision == "int8"
    assert manifest.graphs["encoder"].bytes < before.graphs["encoder"].bytes
    made = manifest.provenance["quantised"]
    assert made["from_sha256"] == before.graphs["encoder"].sha256
    assert made["kept_in_float"] == []
    assert made["calibration"] == {"clips": 1, "frames": 4}
    assert manifest.provenance["checkpoint_sha256"] == before.provenance["checkpoint_sha256"]
    assert "trainable" not in manifest.provenance
    gate = manifest.verification["gate"]
    assert gate["sequences"] == ["squares"]
    assert gate["max_drop"] == 100
    assert 0 < manifest.verification["figures"]["mean_abs"] < manifest.verification["figures"]["max_abs"]
    assert sorted(each.name for each in quantised[False].iterdir()) == ["encoder.onnx", "manifest.json"]


def test_sensitive_layers_are_kept_until_it_passes(
    small_bundle: BundleOf, davis: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured J&F decides: here 80 in float, then 50, 70, 79 and 79.9 with 0, 1, 2 and 4 layers kept."""
    measured = iter([0.8, 0.5, 0.7, 0.79, 0.799])

    def scripted(model: Model, sequences: Sequence[AnnotatedSequence], size: int | None) -> Validation:
        score = next(measured)
        return Validation({"squares": Score(score, score)})

    monkeypatch.setattr(vosrt_export.quantise, "validate", scripted)
    monkeypatch.setattr(vosrt_export.quantise, "_SENSITIVITY_FRAMES", 1)
    options = QuantiseOptions(frames=1, threads=1, max_drop=0.5)
    result = quantise_bundle(str(small_bundle("res3", "fp16")), tmp_path / "out", [clip], davis, options)
    assert [result.before, result.after] == pytest.approx([80, 79.9])
    assert len(result.kept) == 4
    graph = onnx.load(tmp_path / "out" / "encoder.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            kept = f"{node.input[1]}".removeprefix("encoder.") in result.kept
            assert (made_by.get(node.input[1]) != "DequantizeLinear") == kept


def test_nothing_is_written_where_nothing_is_good_enough(
    small_bundle: BundleOf, davis: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with every attempt; exit code 1."""
    measured = iter([0.8, *[0.7] * 20])
    monkeypatch.setattr(vosrt_export.quantise, "validate", lambda *_: Validation({"s": Score(x := next(measured), x)}))
    monkeypatch.setattr(vosrt_export.quantise.Quantisation, "most_sensitive_first", lambda self: list(self.layers))
    says = r"falls from 80.00 by 10.00 with 0 of \d+ layers kept, 10.00"
    with pytest.raises(QuantisationRefusedError, match=says) as caught:
        quantise_bundle(
            str(small_bundle("res3", "fp16")), tmp_path / "out", [clip], davis, QuantiseOptions(frames=1, threads=1)
        )
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_breaks_is_the_most_sensitive(small_bundle: BundleOf, tmp_path: Path, clip: str) -> None:
    """Ranges that are a hundredth of the true ones ruin one layer; the measurement finds it."""
    bundle = load_bundle(small_bundle("res3", "fp16"))
    work = vosrt_export.quantise.Quantisation(
        bundle, calibration_frames([clip], 2, None, SPEC), QuantiseOptions(threads=1), tmp_path
    )
    node = next(node for node in work._proto.graph.node if "layer2.0.conv1" in "".join(node.input))
    victim = node.name
    low, high = work._ranges[node.output[0]].range_value
    work._ranges[node.output[0]] = type(work._ranges[node.output[0]])(lowest=low / 100, highest=high / 100)
    assert work.most_sensitive_first()[0] == victim


def test_frames_are_spread_over_the_clips(clip: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """As many from each, evenly from start to end, at the working size; few are enough where a clip has few."""
    frames = calibration_frames([clip, clip], 4, None, SPEC)
    for frame, index in zip(frames, (0, 3, 0, 3), strict=True):
        np.testing.assert_array_equal(frame, tiny_clip[0][index])
    assert len(calibration_frames([clip], 100, None, SPEC)) == 6
    assert calibration_frames([clip], 1, 32, SPEC)[0].shape == (32, 48, 3)


def test_weights_that_are_cast_back_are_plain_again(small_bundle: BundleOf) -> None:
    model = onnx.load(small_bundle("res3", "fp16") / "encoder.onnx")
    plain = weights_in_fp32(model)
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in plain.graph.initializer)
    assert sum(node.op_type == "Cast" for node in plain.graph.node) == 1, "that of the frames"
    onnx.checker.check_model(plain, full_check=True)
    assert len(quantisable(plain)) == len(quantisable(model)) + sum(node.op_type == "Conv" for node in model.graph.node)


def test_refused(quantised: dict[bool, Path], davis: Path, clip: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is quantised already"):
        quantise_bundle(str(quantised[False]), tmp_path / "out", [clip], davis, OPTIONS)
    with pytest.raises(OutputError, match="is there already"):
        quantise_bundle(str(quantised[False]), quantised[True], [clip], davis, OPTIONS)
    with pytest.raises(OptionError, match="expected 0 to 100 points"):
        QuantiseOptions(max_drop=float("nan"))


def test_from_the_command_line(
    small_bundle: BundleOf,
    davis: Path,
    clip: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Clip, sequences and limit on one line; what came of it on another."""
    bundle = shutil.copytree(small_bundle("res3", "fp16"), tmp_path / "bundle")
    words = ["quantise", bundle, "-o", tmp_path / "out", "--calibrate", clip, "--davis", davis]
    options = ["--max-drop", 100, "--frames", 2, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["vos-export", *map(str, words + options)])
    with pytest.raises(SystemExit) as caught:
        vosrt_export.cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert "layers in int8" in out
    assert load_bundle(tmp_path / "out").manifest.graphs["encoder"].precision == "int8"
