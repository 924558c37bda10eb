"""TensorRT-RTX engines are built for GPUs that this machine lacks; tests of what is kept, stale and refused."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import vosrt_export.tensorrt
from tests.fakes.programs import error_line
from vosrt.bundle import EncoderSpec, load_bundle, packaged_bundles, write_manifest
from vosrt.engines import nvidia
from vosrt.engines.tensorrt_files import (
    EngineRecord,
    EngineTarget,
    Profile,
    choose_engine,
    holds_engines_only,
    read_records,
)
from vosrt.engines.tensorrt_flavour import TENSORRT, TENSORRT_RTX
from vosrt.errors import EngineError, OptionError, OutputError, WorkError
from vosrt_export.cli import main
from vosrt_export.errors import ExportError
from vosrt_export.polygraphy_loader import failures_as_errors, load_polygraphy
from vosrt_export.precision import RECIPE
from vosrt_export.sizes import fit_sizes, parse_sizes, preset
from vosrt_export.tensorrt import EngineOptions, build_engines, choose_flavour, inspect_engine

SMALL = (Profile(minimum=(32, 32), optimum=(48, 64), maximum=(64, 96)),)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides any GPU: building must not need one."""
    monkeypatch.setattr(nvidia, "_DRIVER", "libvosrt-no-such-driver.so")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The packaged bundle, a copy for each test."""
    path = tmp_path / "bundle"
    shutil.copytree(load_bundle("default").path, path)
    return path


def options(**changes: Any) -> EngineOptions:
    return EngineOptions(**{"flavour": "rtx", "capabilities": ("86",), "profiles": SMALL, **changes})


def records(bundle: Path) -> list[EngineRecord]:
    found = [record for _, record in read_records(bundle / "engines")]
    return [record for record in found if isinstance(record, EngineRecord)]


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_engines_are_built_for_gpus_that_are_not_here(bundle: Path, precision: Any) -> None:
    """Each architecture gets one engine and a record that agrees with it; the bundle is unchanged."""
    manifest = (bundle / "manifest.json").read_bytes()
    outcomes = build_engines(bundle, options(capabilities=("86", "89", "120"), precision=precision))
    assert [outcome.record.architecture for outcome in outcomes] == ["sm_86", "sm_89", "sm_120"]
    for outcome in outcomes:
        assert (outcome.built, outcome.why) == (True, "not there yet")
        plan = outcome.path.read_bytes()
        assert (hashlib.sha256(plan).hexdigest(), len(plan)) == (outcome.record.sha256, outcome.record.bytes)
        assert outcome.record.precision == precision
        assert outcome.record.layers > 20
        assert outcome.record.graph_sha256 == load_bundle(bundle).manifest.graphs["encoder"].sha256
    assert len({outcome.record.sha256 for outcome in outcomes}) == 3
    assert {record.stem for record in records(bundle)} == {outcome.path.stem for outcome in outcomes}
    assert (bundle / "manifest.json").read_bytes() == manifest
    assert {path.suffix for path in (bundle / "engines").iterdir()} == {".engine", ".json"}


@pytest.mark.usefixtures("rtx")
def test_mask_networks_are_built_with_their_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle with mask networks gets three engines, which are found for its graphs and kept."""
    monkeypatch.setenv("VOSRT_CACHE", str(tmp_path))
    refined = load_bundle("refined")
    outcomes = build_engines("refined", options(objects=3))
    assert [(each.record.graph, each.record.batch) for each in outcomes] == [
        ("encoder", 1), *((role, 3) for role in refined.manifest.graphs if role != "encoder")
    ]  # fmt: skip
    for outcome in outcomes:
        made, graph = outcome.record, refined.graph(outcome.record.graph)
        target = EngineTarget(
            flavour=made.flavour,
            version=made.version,
            architecture="sm_86",
            graph_sha256=graph.sha256,
            graph=made.graph,
        )
        assert choose_engine(graph.path, target, ("fp16",))[1] == made
    assert not any(each.built for each in build_engines("refined", options(objects=3)))
    more = build_engines("refined", options(objects=4))
    assert [each.why for each in more] == ["", "stale: other batch", "stale: other batch"]
    with pytest.raises(OptionError, match="objects is 65; expected 1 to 64 objects"):
        options(objects=65)


@pytest.mark.usefixtures("rtx")
def test_narrow_engines_are_smaller(bundle: Path) -> None:
    """The precision reaches the engine: its weights take half the place."""
    sizes = {p: build_engines(bundle, options(precision=p))[0].record.bytes for p in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.75 * sizes["fp32"]


def quantise(bundle: Path, kind: int) -> None:
    """Have every convolution of a bundle take quantised activations; scales are arbitrary, as nothing is run."""
    opened = load_bundle(bundle)
    model = onnx.version_converter.convert_version(onnx.load(opened.graph_path("encoder")), 21)
    make, zero = onnx.helper.make_node, onnx.helper.make_tensor("q_zero", kind, [], [0])
    model.graph.initializer.extend([zero, onnx.helper.make_tensor("q_scale", onnx.TensorProto.FLOAT, [], [0.05])])
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            name = f"{node.name}.in"
            nodes.append(make("QuantizeLinear", [node.input[0], "q_scale", "q_zero"], [f"{name}.q"], name=f"{name}.q"))
            nodes.append(make("DequantizeLinear", [f"{name}.q", "q_scale", "q_zero"], [name], name=name))
            node.input[0] = name
        nodes.append(node)
    replace_graph(bundle, model, nodes)


def replace_graph(bundle: Path, model: onnx.ModelProto, nodes: list[Any] | None = None) -> None:
    """Put another graph into a bundle, which then is whole again."""
    opened = load_bundle(bundle)
    if nodes:
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    data = model.SerializeToString()
    opened.graph_path("encoder").write_bytes(data)
    graph = replace(opened.manifest.graphs["encoder"], sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    write_manifest(replace(opened.manifest, graphs={"encoder": graph}), bundle / "manifest.json")


@pytest.mark.usefixtures("rtx")
def test_quantised_graphs_become_engines_where_the_gpu_has_the_type(bundle: Path) -> None:
    """int8 is built everywhere, fp8 from Ada on; elsewhere TensorRT's own words are passed on."""
    quantise(bundle, onnx.TensorProto.FLOAT8E4M3FN)
    (ada,) = build_engines(bundle, options(precision="fp8", capabilities=("89",)))
    assert (ada.record.precision, ada.record.architecture) == ("fp8", "sm_89")
    with pytest.raises(ExportError, match=r"for sm_86: .*HW-specific datatypes: fp8"):
        build_engines(bundle, options(precision="fp8"))
    with pytest.raises(OptionError, match="quantised in fp8; choose fp8"):
        build_engines(bundle, options(precision="int8"))


@pytest.mark.usefixtures("rtx")
def test_an_int8_graph_becomes_an_int8_engine(bundle: Path) -> None:
    quantise(bundle, onnx.TensorProto.INT8)
    assert build_engines(bundle, options(precision="int8"))[0].record.precision == "int8"


@pytest.mark.usefixtures("rtx")
def test_what_fits_is_kept_and_what_is_stale_is_built_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is stale once anything changes that it depends on."""
    (first,) = build_engines(bundle, options())
    (again,) = build_engines(bundle, options())
    assert (again.built, again.record) == (False, first.record)
    (forced,) = build_engines(bundle, options(rebuild=True))
    assert (forced.built, forced.why) == (True, "asked for")
    other_sizes = (*SMALL, *parse_sizes("96x48"))
    (resized,) = build_engines(bundle, options(profiles=other_sizes))
    assert (resized.built, resized.why) == (True, "stale: other profiles")
    assert resized.record.profiles == other_sizes
    with monkeypatch.context() as patch:
        patch.setattr(vosrt_export.tensorrt, "RECIPE", RECIPE + 1)
        assert build_engines(bundle, options(profiles=other_sizes))[0].why == "stale: other recipe"
    resized.path.write_bytes(resized.path.read_bytes()[:-1] + b"x")
    (repaired,) = build_engines(bundle, options(profiles=other_sizes))
    assert repaired.built
    assert "stale: " in repaired.why
    resized.path.with_suffix(".json").write_text("{}")
    assert build_engines(bundle, options(profiles=other_sizes))[0].why.startswith("stale: ")
    assert len(records(bundle)) == 1


@pytest.mark.usefixtures("rtx")
def test_engines_for_batches(bundle: Path) -> None:
    """An engine that takes several frames is built; one for another number is stale."""
    assert [build_engines(bundle, options(batch=n))[0].why for n in (4, 4, 2)] == [
        "not there yet",
        "",
        "stale: other batch",
    ]
    assert [record.batch for record in records(bundle)] == [2]


@pytest.mark.usefixtures("rtx")
def test_an_engine_of_another_graph_is_not_taken_for_this_one(bundle: Path) -> None:
    """A graph is exported again beside the engines of the first."""
    build_engines(bundle, options())
    model = onnx.load(load_bundle(bundle).graph_path("encoder"))
    model.producer_version = "another"
    replace_graph(bundle, model)
    (outcome,) = build_engines(bundle, options())
    assert (outcome.built, outcome.why) == (True, "not there yet")
    assert len({record.graph_sha256 for record in records(bundle)}) == 2


@pytest.mark.usefixtures("rtx")
def test_a_graph_that_tensorrt_refuses_gives_its_reason(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is one line; nothing is printed or written."""
    monkeypatch.setattr(vosrt_export.tensorrt, "cast_frames_first", lambda model: model)  # bytes are moved uncast
    with pytest.raises(ExportError, match=r"cannot build the encoder for sm_86: .*UInt8 but must have type") as caught:
        build_engines(bundle, options())
    assert "\n" not in str(caught.value)
    assert list((bundle / "engines").iterdir()) == []


@pytest.mark.usefixtures("rtx")
def test_nothing_is_printed(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """TensorRT reports the missing driver as an error even where it needs none."""
    build_engines(bundle, options())
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("rtx")
def test_an_engine_is_inspected_where_there_is_a_driver(bundle: Path) -> None:
    """The machine has no GPU, and the message says so."""
    (outcome,) = build_engines(bundle, options())
    with pytest.raises(EngineError, match=r"^no NVIDIA driver here"):
        inspect_engine(outcome.path, outcome.record, TENSORRT_RTX)


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"capabilities": ("90",)}, r"does not build for sm_90; it builds for sm_\d+, "),
        ({"capabilities": ()}, "no NVIDIA driver here [^;]*; name the GPUs to build for, such as --compute-capability"),
        ({"precision": "fp8"}, "the graph is not quantised"),
        ({"profiles": parse_sizes("8x64")}, "size is 8x64; this model takes sides of 16 to 4096 pixels"),
    ],
)
def test_impossible_wishes_are_refused(bundle: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        build_engines(bundle, options(**changes))
    assert list(bundle.glob("engines/*")) == []


@pytest.mark.usefixtures("rtx")
def test_a_place_that_leads_elsewhere_is_not_written_to(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="engines is a link"):
        build_engines(bundle, options())
    (bundle / "engines").unlink()
    (bundle / "engines").touch()
    with pytest.raises(OutputError, match="engines: is a file; expected a folder"):
        build_engines(bundle, options())


@pytest.mark.usefixtures("rtx")
def test_a_full_disk_is_work_that_failed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorkError, match=r"engines: cannot be written \(No space left on device\)"):
            build_engines(bundle, options())
    assert list(bundle.glob("engines/*")) == []
    assert build_engines(bundle, options())[0].built


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", packaged_bundles())
def test_engines_of_packaged_bundles_go_into_the_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch is not needed, the installation stays unchanged, and the runtime finds the engines there."""
    monkeypatch.setenv("VOSRT_CACHE", str(tmp_path))
    encoder = load_bundle(name).graph("encoder")
    graph = encoder.path
    before = sorted(graph.parent.iterdir())
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnxscript'] = None; import vosrt_export.cli as cli; "
        f"sys.argv = ['vos-export', 'engine', {name!r}, '--compute-capability', '86', '--sizes', '48x64']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(graph.parent.iterdir()) == before
    assert str(tmp_path) in done.stdout
    version = str(TENSORRT_RTX.load().__version__)
    target = EngineTarget(flavour="tensorrt-rtx", version=version, architecture="sm_86", graph_sha256=encoder.sha256)
    _, record = choose_engine(graph, target, ("fp16",))
    assert record.precision == "fp16"
    holder = graph.parent.name  # a bundle that shares its whole graph has the engines of the bundle that holds it
    with pytest.raises(EngineError, match=f"it computes in fp16.*vos-export engine {holder} --flavour rtx"):
        choose_engine(graph, target, ("int8",))
    assert run(name, "--list") == 0
    assert "no NVIDIA driver here" in capsys.readouterr().out


@pytest.mark.usefixtures("rtx")
def test_engines_of_a_bundle_that_is_read_only_go_into_the_cache(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOSRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, _: path != bundle)  # root may write anywhere
    (outcome,) = build_engines(bundle, options())
    assert outcome.path.is_relative_to(tmp_path / "cache" / "engines")
    assert not (bundle / "engines").exists()


def test_the_flavour_follows_what_is_asked_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT builds for the GPU at hand; for another one only TensorRT-RTX does."""
    fake = type(sys)("tensorrt")
    fake.__version__ = "10.9.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert choose_flavour(EngineOptions()) is TENSORRT
    assert choose_flavour(EngineOptions(capabilities=("86",))) is TENSORRT_RTX
    assert choose_flavour(EngineOptions(flavour="rtx")) is TENSORRT_RTX
    with pytest.raises(OptionError, match="TensorRT builds for the GPU that it runs on"):
        choose_flavour(EngineOptions(flavour="tensorrt", capabilities=("86",)))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert choose_flavour(EngineOptions()) is TENSORRT_RTX
    assert choose_flavour(EngineOptions(flavour="tensorrt")) is TENSORRT
    with pytest.raises(OptionError, match=r"compute capability is '8\.6'; expected numbers such as 86"):
        EngineOptions(capabilities=("8.6",))


@pytest.mark.usefixtures("rtx")
def test_polygraphy_serves_one_flavour_per_process() -> None:
    with pytest.raises(ExportError, match="build tensorrt engines in another one"):
        load_polygraphy(TENSORRT)


@pytest.mark.usefixtures("rtx")
def test_reasons_outweigh_the_missing_driver() -> None:
    """The last message of TensorRT that is not about the driver is the reason."""
    log = importlib.import_module("polygraphy.logger").G_LOGGER

    def fail() -> None:
        with failures_as_errors("it failed"):
            log.error("a reason")
            log.error("in ScopedCudaStream (cudaError 35: CUDA driver version is insufficient)")
            log.critical("Invalid Engine")

    with pytest.raises(ExportError, match=r"^it failed: a reason$"):
        fail()


def test_sizes_as_a_person_states_them() -> None:
    landscape = Profile(minimum=(480, 640), optimum=(480, 854), maximum=(480, 1152))
    assert preset("480p") == landscape
    assert preset("480p-portrait") == Profile(minimum=(640, 480), optimum=(854, 480), maximum=(1152, 480))
    assert preset("1080p").optimum == (1080, 1920)
    assert parse_sizes("480x640:480x854:480x1152") == (landscape,)
    exact = Profile(minimum=(360, 640), optimum=(360, 640), maximum=(360, 640))
    assert parse_sizes("360x640, 480x640:480x854:480x1152") == (exact, landscape)
    assert parse_sizes(",".join(map(str, (exact, landscape)))) == (exact, landscape)
    assert landscape.takes(480, 700)
    assert not any(landscape.takes(*size) for size in ((479, 700), (481, 700), (480, 639), (480, 1153)))
    spec = EncoderSpec(channels=4, feature="res3")
    assert fit_sizes((landscape,), spec) == (landscape,)
    whole = Profile(minimum=(480, 640), optimum=(480, 856), maximum=(480, 1152))
    assert fit_sizes((landscape,), replace(spec, align_corners=False)) == (whole,)


@pytest.mark.parametrize(
    "text", ["", "480", "480x", "480x640:480x854", "480x854x3", "64x64:32x32:96x96", "-1x5", "a,b"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="size is"):
        parse_sizes(text)


@pytest.mark.parametrize("name", ["480", "p", "480i", "480p-upright", "480P"])
def test_presets_that_are_none(name: str) -> None:
    with pytest.raises(OptionError, match="preset is"):
        preset(name)


def run(*arguments: str) -> int:
    return main(["engine", *arguments])


@pytest.mark.usefixtures("rtx")
def test_the_command_builds_keeps_and_lists(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (str(bundle), "--compute-capability", "86, 120", "--sizes", "48x64", "--precision", "bf16")
    assert run(*arguments) == 0
    built = capsys.readouterr().out.splitlines()
    assert [("-sm_86-bf16-" in line, "-sm_120-bf16-" in line) for line in built] == [(True, False), (False, True)]
    assert all("built in " in line and " MB; 48x64" in line for line in built)
    assert run(*arguments) == 0
    assert capsys.readouterr().out.count("there already, and fits") == 2
    assert run(str(bundle), "--list") == 0
    listed = capsys.readouterr().out
    assert listed.count("no NVIDIA driver here") == 2
    path = bundle / "engines" / f"{records(bundle)[0].stem}.json"
    path.write_text(json.dumps({"schema": 1}))
    assert run(str(bundle), "--list") == 0
    assert "is no engine record" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "no such bundle: nowhere"),
        (("BUNDLE", "--preset", "480p", "--sizes", "480x854"), "--preset and --sizes were both given"),
        (("BUNDLE", "--preset", "large"), "preset is 'large'"),
        (("BUNDLE", "--sizes", "large"), "size is 'large'"),
        (("BUNDLE", "--compute-capability", "ampere"), "compute capability is 'ampere'"),
        (("BUNDLE", "--flavour", "tensorrt", "--compute-capability", "86"), "TensorRT builds for the GPU"),
        (("BUNDLE", "--precision", "int4"), "int4"),
        ((), "bundle"),
    ],
)
def test_one_line_and_exit_code_2(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert run(*(each.replace("BUNDLE", str(bundle)) for each in arguments)) == 2
    assert says.lower() in error_line(capsys).lower()


def test_a_bundle_without_engines_names_the_command(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(bundle), "--list") == 0
    assert f"no engines; build one with: vos-export engine {bundle}\n" in capsys.readouterr().out


def test_missing_packages_name_the_command(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, command in (
        ("polygraphy", "pip install 'vosrt[tensorrt-rtx]'"),
        ("tensorrt_rtx", "pip install 'vosrt[tensorrt-rtx]'"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert run(str(bundle), "--compute-capability", "86") == 2
        assert command in capsys.readouterr().err


def test_engines_do_not_keep_a_bundle_from_being_replaced(tmp_path: Path) -> None:
    """Engines can be built again; other files in their folder may belong to the user."""
    folder = tmp_path / "engines"
    assert not holds_engines_only(folder)
    folder.mkdir()
    for name in ("a.engine", "a.json", "timing.cache"):
        (folder / name).touch()
    assert holds_engines_only(folder)
    (tmp_path / "link").symlink_to(folder)
    assert not holds_engines_only(tmp_path / "link")
    (folder / "notes.txt").touch()
    assert not holds_engines_only(folder)


@pytest.mark.usefixtures("rtx")
def test_rtx_engines_can_be_captured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX promises CUDA graphs only to engines that leave memory to their user."""
    flag = importlib.import_module("tensorrt_rtx").BuilderFlag.REQUIRE_USER_ALLOCATION

    polygraphy, flags = load_polygraphy(TENSORRT_RTX), list[bool]()
    build = polygraphy.engine_bytes_from_network

    def spy(network: Any, config: Any, **options: Any) -> Any:
        def configure(builder: Any, given: Any) -> Any:
            made = config(builder, given)
            flags.append(made.get_flag(flag))
            return made

        return build(network, config=configure, **options)

    monkeypatch.setattr(polygraphy, "engine_bytes_from_network", spy)
    build_engines(bundle, options())
    assert flags == [True]
