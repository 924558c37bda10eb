"""``vos-export quantise``: int8 graphs that run on every engine, and a gate that lets only good ones through."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import vosrt_export.cli
import vosrt_export.quantise
from tests.fakes.media import save_davis
from vosrt.bundle import EncoderSpec, Feature, Manifest, WeightPrecision, load_bundle, write_manifest
from vosrt.engines.onnxruntime import load_onnxruntime
from vosrt.engines.select import create_encoder_engine
from vosrt.engines.tensorrt_files import Profile
from vosrt.errors import EngineError, MissingExtraError, OptionError, OutputError
from vosrt.metrics import Score
from vosrt.model import Model
from vosrt.onnx_file import Graph
from vosrt.types import U8Array
from vosrt.video.source import open_source
from vosrt_export.compress import compress_bundle
from vosrt_export.copying import copy_bundle
from vosrt_export.precision import convert_precision
from vosrt_export.quantise import (
    QuantisationRefusedError,
    QuantiseOptions,
    calibration_frames,
    quantisable,
    quantise_bundle,
    weights_in_fp32,
)
from vosrt_export.tensorrt import EngineOptions, build_engines
from vosrt_train.validate import DavisSequence, Validation

BundleOf = Callable[[Feature, WeightPrecision], Path]
OPTIONS = QuantiseOptions(frames=4, threads=1, max_drop=100)
MANIFEST = Manifest(
    name="small",
    trained=False,
    summary="small",
    encoder=EncoderSpec(channels=32, feature="res3", align_corners=False),
    graphs={},
)


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory, tiny_clip: tuple[U8Array, U8Array]) -> Path:
    """One annotated sequence."""
    root = tmp_path_factory.mktemp("davis")
    save_davis(root, "squares", *tiny_clip)
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


def alone(bundle: Path, output: Path) -> Path:
    """The bundle that an earlier vosrt made: its only encoder is the quantised one."""
    made = load_bundle(bundle)
    graph = replace(made.manifest.graphs["encoder_int8"], file="encoder.onnx")
    output.mkdir()
    (output / "encoder.onnx").write_bytes(made.graph("encoder_int8").content)
    write_manifest(replace(made.manifest, graphs={"encoder": graph}), output / "manifest.json")
    return output


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_layer_is_quantised_per_channel(quantised: dict[bool, Path], symmetric: bool) -> None:
    """Weights are stored as int8 with a scale per output, activations as asked for, in standard operators."""
    graph = onnx.load(quantised[symmetric] / "encoder_int8.onnx").graph
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
def test_every_node_comes_behind_what_it_reads(quantised: dict[bool, Path], symmetric: bool) -> None:
    """The checker of ONNX refuses other orders, which ONNX Runtime takes."""
    onnx.checker.check_model(onnx.load(quantised[symmetric] / "encoder_int8.onnx"), full_check=True)


def test_tensorrt_is_given_the_same(quantised: dict[bool, Path], tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Biases are stored as int32 for the kernels of processors and as floats for TensorRT, which refuses the former."""
    given = onnx.load(quantised[True] / "encoder_int8.onnx")
    prepared = convert_precision(given, "int8")
    kinds = {tensor.data_type for tensor in prepared.graph.initializer if "bias" in tensor.name}
    assert kinds == {onnx.TensorProto.FLOAT}
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no integer kernels
    right, found = (
        runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
            None, {"frames": tiny_clip[0][:1]}
        )[0]
        for model in (given, prepared)
    )
    np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.usefixtures("rtx")
def test_a_symmetric_bundle_becomes_a_tensorrt_engine(quantised: dict[bool, Path], tmp_path: Path) -> None:
    """What quantise writes becomes an engine; activations in uint8 are refused with the remedy."""
    bundle = shutil.copytree(quantised[True], tmp_path / "bundle")
    size = Profile(minimum=(48, 64), optimum=(48, 64), maximum=(48, 64))
    options = EngineOptions(flavour="rtx", capabilities=("86",), precision="int8", profiles=(size,))
    (outcome,) = build_engines(bundle, options)
    assert (outcome.built, outcome.record.precision) == (True, "int8")
    with pytest.raises(OptionError, match=r"quantised in int8, uint8; quantise it again without --asymmetric"):
        build_engines(quantised[False], options)
    assert not (quantised[False] / "engines").exists(), "nothing is written where the input is wrong"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_engines_run_it(
    quantised: dict[bool, Path],
    small_bundle: BundleOf,
    engine: str,
    symmetric: bool,
    tiny_clip: tuple[U8Array, U8Array],
    skip_or_fail: Callable[..., None],
) -> None:
    """Each engine is near the float graph; one that does not run here is skipped with its own reason."""
    frame = tiny_clip[0][2]
    right = Model.load(small_bundle("res4", "fp16"), engine="cpu", threads=1).encode(frame).array
    try:
        model = Model.load(quantised[symmetric], engine=engine, precision="int8", threads=1)
    except (EngineError, MissingExtraError) as error:
        skip_or_fail(str(error), required=engine)
    cosine = (model.encode(frame).array * right).sum(axis=-1)
    assert cosine.min() > 0.9
    assert cosine.mean() > 0.98


def test_int8_can_be_asked_for(quantised: dict[bool, Path], small_bundle: BundleOf, clip: str) -> None:
    """A bundle that carries it computes in int8 and says so; another one refuses it with the remedy."""
    model = Model.load(quantised[False], precision="int8", engine="cpu", threads=1)
    assert model.describe()["engines"]["encoder"]["precision"] == "int8"
    with pytest.raises(OptionError, match="'int8', but this bundle is not quantised; make one that is with vos-export"):
        Model.load(small_bundle("res3", "fp16"), precision="int8", engine="cpu")
    with pytest.raises(OptionError, match="not quantised; vos-export quantise makes int8 alone, since what fp8 loses"):
        Model.load(small_bundle("res3", "fp16"), precision="fp8", engine="cpu")
    with pytest.raises(OptionError, match="the cpu engine has no fp16; expected auto, fp32, or engine tensorrt"):
        Model.load(small_bundle("res3", "fp16"), precision="fp16", engine="cpu")
    with pytest.raises(OptionError, match="precision is 'int4'; expected auto, fp32, bf16, fp16, int8"):
        Model.load(small_bundle("res3", "fp16"), precision="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["cpu", "openvino", "auto"])
@pytest.mark.parametrize("has", [True, False])
def test_auto_takes_int8_where_the_processor_has_dot_products(
    engine: str, has: bool, quantised: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever engine runs, it says why; a precision that is asked for is what runs."""
    monkeypatch.setattr("vosrt.core.native.has_int8_dot_products", lambda: has)
    info = Model.load(quantised[True], engine=engine, threads=1).describe()["engines"]["encoder"]
    if has:
        assert info["precision"] == "int8"
        assert "int8 is the fastest of the bundle's precisions here" in info["reason"]
    else:
        assert info["precision"] in ("fp32", "bf16")
        assert "int8 refused: this processor lacks 8-bit dot products (VNNI)" in info["reason"]
    for precision in ("fp32", "int8"):
        asked = Model.load(quantised[True], engine=engine, precision=precision, threads=1)
        assert asked.describe()["engines"]["encoder"]["precision"] == precision


def test_an_int8_graph_that_does_not_run_leaves_the_other(
    quantised: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` goes on with the graph in float and says so; int8 that was asked for is an error."""
    monkeypatch.setattr("vosrt.core.native.has_int8_dot_products", lambda: True)
    bundle = load_bundle(quantised[False])
    float_graph, _ = bundle.encoders
    broken = Graph(Path("encoder_int8.onnx"), b"no graph", "int8")
    options = {"engine": "cpu", "threads": 1}
    info = create_encoder_engine((float_graph, broken), bundle.manifest.encoder, **options).info  # type: ignore[arg-type]
    assert info.precision == "fp32"
    assert "int8 refused: cpu cannot load encoder_int8.onnx" in info.reason
    with pytest.raises(EngineError, match=r"cannot load encoder_int8\.onnx"):
        create_encoder_engine((float_graph, broken), bundle.manifest.encoder, precision="int8", **options)  # type: ignore[arg-type]


def test_a_bundle_with_nothing_but_int8_runs(quantised: dict[bool, Path], tmp_path: Path) -> None:
    """As earlier versions made it: in whichever precision, since it has no other graph."""
    bundle = alone(quantised[False], tmp_path / "alone")
    for precision in ("auto", "fp32", "int8"):
        model = Model.load(bundle, engine="cpu", precision=precision, threads=1)
        assert model.describe()["engines"]["encoder"]["precision"] == "int8"


def test_an_isolated_engine_chooses_too(quantised: dict[bool, Path], tiny_clip: tuple[U8Array, U8Array]) -> None:
    """A process of its own gets both graphs, and gives what this process computes."""
    found = []
    for isolated in (True, False):
        model = Model.load(quantised[False], engine="cpu", precision="int8", threads=1, isolated=isolated)
        assert model.describe()["engines"]["encoder"]["precision"] == "int8"
        found.append(model.encode(tiny_clip[0][2]).array)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_copy_keeps_both_and_fewer_channels_keep_neither(
    quantised: dict[bool, Path], clip: str, tmp_path: Path
) -> None:
    """``compress`` changes what the quantised graph was made from."""
    copy_bundle(str(quantised[False]), tmp_path / "copy")
    assert {*load_bundle(tmp_path / "copy").manifest.graphs} == {"encoder", "encoder_int8"}
    compress_bundle(str(quantised[False]), tmp_path / "fewer", [clip], 16, frames=1)
    assert {*load_bundle(tmp_path / "fewer").manifest.graphs} == {"encoder"}


@pytest.mark.parametrize("change", ["quantise", "compress"])
def test_mask_networks_stay_with_their_encoder(change: str, davis: Path, clip: str, tmp_path: Path) -> None:
    """`refined`, by its name: the further graphs are those that it had, and the bundle refines."""
    out = tmp_path / "out"
    if change == "quantise":
        options = QuantiseOptions(frames=1, threads=1, max_drop=100, size=64)
        quantise_bundle("refined", out, [clip], davis, options)
    else:
        compress_bundle("refined", out, [clip], 16, frames=1)
    before, after = load_bundle("refined"), load_bundle(out)
    for role in ("mask_encoder", "decoder"):
        assert after.graph_path(role).read_bytes() == before.graph_path(role).read_bytes()
    source = open_source(clip)
    with Model.load(out, engine="cpu", threads=1).stream(refine=1) as stream:
        mask = np.zeros(source.first.image.shape[:2], np.uint8)
        mask[8:40, 8:40] = 1
        assert stream.start(source.first.image, mask).labels.any()
    source.close()


def test_the_manifest_tells_what_was_done(quantised: dict[bool, Path], small_bundle: BundleOf) -> None:
    """It has origin, layers and gate; all that the bundle had stays, its file for further training included."""
    folder = small_bundle("res4", "fp16")
    before, manifest = load_bundle(folder).manifest, load_bundle(quantised[False]).manifest
    assert manifest.graphs["encoder"] == before.graphs["encoder"]
    assert manifest.graphs["encoder_int8"].precision == "int8"
    assert manifest.graphs["encoder_int8"].bytes < before.graphs["encoder"].bytes
    assert (manifest.name, manifest.provenance) == (before.name, before.provenance)
    made = manifest.verification["int8"]
    assert made["from_sha256"] == before.graphs["encoder"].sha256
    assert made["kept_in_float"] == []
    assert made["calibration"] == {"clips": 1, "frames": 4}
    assert made["gate"]["sequences"] == ["squares"]
    assert made["gate"]["max_drop"] == 100
    assert 0 < made["figures"]["mean_abs"] < made["figures"]["max_abs"]
    assert {key: value for key, value in manifest.verification.items() if key != "int8"} == before.verification
    had = {each.name: each.read_bytes() for each in folder.iterdir() if each.suffix in (".onnx", ".safetensors")}
    assert had.items() <= {each.name: each.read_bytes() for each in quantised[False].iterdir()}.items()


def test_sensitive_layers_are_kept_until_it_passes(
    small_bundle: BundleOf, davis: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured J&F decides: 80 in float, then 50, 70, 79 and 79.9 with 0, 1, 2 and 4 layers kept."""
    measured = iter([0.8, 0.5, 0.7, 0.79, 0.799])

    def scripted(model: Model, sequences: Sequence[DavisSequence], size: int | None) -> Validation:
        score = next(measured)
        return Validation({"squares": Score(score, score)})

    monkeypatch.setattr(vosrt_export.quantise, "validate", scripted)
    monkeypatch.setattr(vosrt_export.quantise, "_SENSITIVITY_FRAMES", 1)
    options = QuantiseOptions(frames=1, threads=1, max_drop=0.5)
    result = quantise_bundle(str(small_bundle("res3", "fp16")), tmp_path / "out", [clip], davis, options)
    assert [result.before, result.after] == pytest.approx([80, 79.9])
    assert len(result.kept) == 4
    graph = onnx.load(tmp_path / "out" / "encoder_int8.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            kept = f"{node.input[1]}".removeprefix("encoder.") in result.kept
            assert (made_by.get(node.input[1]) != "DequantizeLinear") == kept


def test_nothing_is_written_where_nothing_is_good_enough(
    small_bundle: BundleOf, davis: Path, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line has every attempt, and the exit code is 1."""
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
        bundle, calibration_frames([clip], 2, None, MANIFEST), QuantiseOptions(threads=1), tmp_path
    )
    node = next(node for node in work._proto.graph.node if "layer2.0.conv1" in "".join(node.input))
    victim = node.name
    low, high = work._ranges[node.output[0]].range_value
    work._ranges[node.output[0]] = type(work._ranges[node.output[0]])(lowest=low / 100, highest=high / 100)
    assert work.most_sensitive_first()[0] == victim


def test_frames_are_spread_over_the_clips(clip: str, tiny_clip: tuple[U8Array, U8Array]) -> None:
    """Each clip gives as many, evenly from start to end, at the working size; a short clip gives fewer."""
    frames = calibration_frames([clip, clip], 4, None, MANIFEST)
    for frame, index in zip(frames, (0, 3, 0, 3), strict=True):
        np.testing.assert_array_equal(frame, tiny_clip[0][index])
    assert len(calibration_frames([clip], 100, None, MANIFEST)) == 6
    assert calibration_frames([clip], 1, 32, MANIFEST)[0].shape == (32, 48, 3)
    larger = replace(MANIFEST, size=128, enlarge_percent=150)
    assert calibration_frames([clip], 1, None, larger)[0].shape == (96, 144, 3)


def test_weights_that_are_cast_back_are_plain_again(small_bundle: BundleOf) -> None:
    model = onnx.load(small_bundle("res3", "fp16") / "encoder.onnx")
    plain = weights_in_fp32(model)
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in plain.graph.initializer)
    assert sum(node.op_type == "Cast" for node in plain.graph.node) == 1, "that of the frames"
    onnx.checker.check_model(plain, full_check=True)
    assert len(quantisable(plain)) == len(quantisable(model)) + sum(node.op_type == "Conv" for node in model.graph.node)


def test_refused(quantised: dict[bool, Path], davis: Path, clip: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is quantised already"):
        quantise_bundle(str(alone(quantised[False], tmp_path / "alone")), tmp_path / "out", [clip], davis, OPTIONS)
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
    """One line has clip, sequences and limit, another one the result."""
    bundle = shutil.copytree(small_bundle("res3", "fp16"), tmp_path / "bundle")
    words = ["quantise", bundle, "-o", tmp_path / "out", "--clip", clip, "--davis", davis]
    options = ["--max-drop", 100, "--frames", 2, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["vos-export", *map(str, words + options)])
    code = vosrt_export.cli.main()
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "layers in int8" in out
    assert load_bundle(tmp_path / "out").manifest.graphs["encoder_int8"].precision == "int8"
