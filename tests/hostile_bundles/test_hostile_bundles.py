"""Bundles made to do harm: each is refused with one clear line before anything in it is run, opened or allocated.

Code makes them from a sound bundle. Unless a case is about the hash, it is the right one: a hash protects
from damage, not from the bundle's maker.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

import vosrt.model
from tests.fakes.bundles import write_bundle
from tests.fakes.programs import error_line
from vosrt.bundle import (
    EncoderSpec,
    Feature,
    GraphPrecision,
    Manifest,
    MaskSpec,
    load_bundle,
    packaged_bundles,
    write_manifest,
)
from vosrt.cli.run import main as vos_run
from vosrt.engines.fake import FakeEngine
from vosrt.errors import BundleError
from vosrt.model import Model
from vosrt.onnx_file import Graph
from vosrt.types import RANGES, PropagationOptions, Range

onnx = pytest.importorskip("onnx")

Harm = Callable[[Path], object]

_RUNS_CODE = ("exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
_LOADS_CODE = ("import", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect")
_PEAK_BYTES = 16 << 20
_FLOAT = onnx.TensorProto.FLOAT

_heard: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is not None and event in ("open", *_RUNS_CODE, *_LOADS_CODE):
        _heard.append(f"{event} {arguments[0] if arguments else ''}")


sys.addaudithook(_listen)  # a hook cannot be taken away; it listens only inside `listening`


@contextmanager
def listening() -> Iterator[list[str]]:
    """Every file that is opened and everything that is run or loaded meanwhile."""
    global _heard
    heard = _heard = list[str]()
    try:
        yield heard
    finally:
        _heard = None


def plain_model() -> Any:
    """An encoder that a bundle may hold."""
    frames = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    embedding = onnx.helper.make_tensor_value_info("embedding", _FLOAT, ["n", "h", "w", 4])
    bias = onnx.helper.make_tensor("bias", _FLOAT, [4], [0.0] * 4)
    nodes = [
        onnx.helper.make_node("Cast", ["frames"], ["floats"], to=_FLOAT),
        onnx.helper.make_node("Add", ["floats", "bias"], ["embedding"]),
    ]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "encoder", [frames], [embedding], [bias]))


def write_graph(root: Path, content: bytes) -> None:
    """Put a graph into a bundle, with the right size and hash."""
    (root / "encoder.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(root, lambda d: d["graphs"]["encoder"].update(sha256=digest, bytes=len(content)))


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((root / "manifest.json").read_text())
    change(document)
    (root / "manifest.json").write_text(json.dumps(document))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A bundle without harm."""
    return write_bundle(tmp_path / "bundle", plain_model().SerializeToString())


def graph(change: Callable[[Any], object]) -> Harm:
    """A harm done to the graph."""

    def harm(root: Path) -> None:
        model = plain_model()
        change(model)
        write_graph(root, model.SerializeToString())

    return harm


def manifest(change: Callable[[dict[str, Any]], object]) -> Harm:
    """A harm done to a value of the manifest."""
    return lambda root: edit(root, change)


def text(content: bytes) -> Harm:
    """A manifest that is these bytes."""
    return lambda root: (root / "manifest.json").write_bytes(content)


def content(data: bytes) -> Harm:
    """A graph that is these bytes."""
    return lambda root: write_graph(root, data)


def as_mask_embedding(document: dict[str, Any], *roles: str) -> dict[str, Any]:
    masks = {"value_channels": 64, "context": "res3", "rounds": 1, "residual": True, "feedback": False}
    document.update(family="mask-embedding", masks=masks)
    document["encoder"]["align_corners"] = False
    document["graphs"].update(dict.fromkeys(roles, document["graphs"]["encoder"]))
    return document


def externalise(tensor: Any, location: str) -> None:
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def constant_outside(model: Any) -> None:
    tensor = onnx.helper.make_tensor("secret", _FLOAT, [1], [0.0])
    externalise(tensor, "/proc/self/environ")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def location_without_flag(model: Any) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="../../secret")


def compiled_context(model: Any) -> None:
    model.graph.node.append(
        onnx.helper.make_node(
            "EPContext", ["frames"], ["x"], domain="com.microsoft", embed_mode=0, ep_cache_context="../evil.engine"
        )
    )


def endless_loop(model: Any) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["x"], body=body))


def function_bomb(model: Any) -> None:
    call = onnx.helper.make_node("f0", ["x"], ["y"], domain="bomb")
    opset = onnx.helper.make_opsetid("", 18)
    model.functions.append(onnx.helper.make_function("bomb", "f1", ["x"], ["y"], [call, call], [opset]))


def sparse_giant(model: Any) -> None:
    values = onnx.helper.make_tensor("s", _FLOAT, [1], [1.0])
    indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [1 << 40]))


def shape(*dims: int) -> Harm:
    def change(model: Any) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return graph(change)


def output_channels(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 1 << 40


def float_frames(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = _FLOAT


class _Code:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nonexistent/pickled",)


def archive(root: Path) -> None:
    """An archive whose entries climb out of the folder they are unpacked in, in place of the folder."""
    packed = root.with_name("packed")
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../../escaped", b"escaped")
        file.writestr("manifest.json", (root / "manifest.json").read_bytes())
    for each in root.iterdir():
        each.unlink()
    root.rmdir()
    packed.rename(root)


def archived_graph(root: Path) -> None:
    with zipfile.ZipFile(root / "graph.zip", "w") as file:
        file.writestr("../../escaped.onnx", plain_model().SerializeToString())
    write_graph(root, (root / "graph.zip").read_bytes())


def linked_graph(root: Path) -> None:
    (root / "encoder.onnx").rename(root.parent / "outside.onnx")
    (root / "encoder.onnx").symlink_to(root.parent / "outside.onnx")


def linked_manifest(root: Path) -> None:
    (root / "manifest.json").rename(root.parent / "outside.json")
    (root / "manifest.json").symlink_to("../outside.json")


def linked_folder(root: Path) -> None:
    (root / "graphs").symlink_to(root.parent)
    (root / "encoder.onnx").rename(root.parent / "outside.onnx")
    edit(root, lambda d: d["graphs"]["encoder"].update(file="graphs/outside.onnx"))


def linked_in_a_circle(root: Path) -> None:
    (root / "encoder.onnx").unlink()
    (root / "encoder.onnx").symlink_to("encoder.onnx")


def pipe(root: Path) -> None:
    (root / "encoder.onnx").unlink()
    os.mkfifo(root / "encoder.onnx")


def giant(root: Path) -> None:
    """Three gigabytes of nothing, which take no room on the disk."""
    with (root / "encoder.onnx").open("wb") as file:
        file.truncate(3 << 30)
    edit(root, lambda d: d["graphs"]["encoder"].update(bytes=3 << 30))


def swapped(root: Path) -> None:
    """Another graph of the same size."""
    data = (root / "encoder.onnx").read_bytes()
    (root / "encoder.onnx").write_bytes(data.replace(b"bias", b"BIAS"))


def manifest_as_graph(root: Path) -> None:
    edit(root, lambda d: d["graphs"]["encoder"].update(file="manifest.json", sha256="0" * 64, bytes=500))
    size = (root / "manifest.json").stat().st_size
    edit(root, lambda d: d["graphs"]["encoder"].update(bytes=size))


HARMS: dict[str, tuple[Harm, str]] = {
    "weights in another folder": (
        graph(lambda m: externalise(m.graph.initializer[0], "../../../etc/passwd")),
        "weights outside the file",
    ),
    "weights at an absolute place": (
        graph(lambda m: externalise(m.graph.initializer[0], "/etc/shadow")),
        "weights outside the file",
    ),
    "weights beside the graph": (graph(lambda m: externalise(m.graph.initializer[0], "w.bin")), "external data"),
    "a constant read from the environment": (graph(constant_outside), "weights outside the file"),
    "a place for weights without the flag": (graph(location_without_flag), "weights outside the file"),
    "a compiled context": (graph(compiled_context), "operators of 'com.microsoft'"),
    "a plugin's operator": (
        graph(lambda m: m.graph.node.append(onnx.helper.make_node("Shell", [], ["x"], domain="evil"))),
        "operators of 'evil'",
    ),
    "a Python operator": (
        graph(lambda m: m.graph.node.append(onnx.helper.make_node("PyOp", [], ["x"], domain="ai.onnx.contrib"))),
        "operators of 'ai.onnx.contrib'",
    ),
    "a loop": (graph(endless_loop), "control flow"),
    "functions that call each other": (graph(function_bomb), "functions of its own"),
    "training information": (graph(lambda m: m.training_info.add()), "training information"),
    "a sparse giant": (graph(sparse_giant), "sparse weights"),
    "a tensor of a terabyte": (shape(1 << 20, 1 << 20), "claims to be larger than the file"),
    "a tensor of overflowing size": (shape(1 << 62, 4), "claims to be larger than the file"),
    "a tensor of negative size": (shape(-4), "claims to be larger than the file"),
    "absurd channels in the graph": (graph(output_channels), "its outputs are"),
    "frames of another type": (graph(float_frames), "its inputs are 'frames'"),
    "no output": (graph(lambda m: m.graph.ClearField("output")), "it has no output"),
    "half a graph": (content(plain_model().SerializeToString()[:-20]), "not a whole ONNX graph"),
    "a part longer than the file": (content(b"\x3a" + b"\xff" * 8 + b"\x7f"), "not a whole ONNX graph"),
    "a number without end": (content(b"\xff" * 64), "a number that does not end"),
    "two million parts": (content(b"\x08\x08" * (2 << 20)), "more than 1048576 parts"),
    "a name of a megabyte": (
        graph(lambda m: setattr(m.graph.node[0], "domain", "x" * (1 << 20))),
        "a name of 1048576 bytes",
    ),
    "a pickle": (content(pickle.dumps(_Code())), "not a whole ONNX graph"),
    "a graph in an archive": (archived_graph, "not a whole ONNX graph"),
    "an archive": (archive, "is a file; a bundle is a directory"),
    "another graph of the same size": (swapped, "was altered: its SHA-256"),
    "another size": (manifest(lambda d: d["graphs"]["encoder"].update(bytes=7)), "bytes, the manifest says 7"),
    "three gigabytes": (giant, "an integer from 1 to 2147483647"),
    "the manifest as a graph": (manifest_as_graph, "was altered: its SHA-256"),
    "a graph outside": (
        manifest(lambda d: d["graphs"]["encoder"].update(file="../outside.onnx")),
        "expected a plain file name",
    ),
    "a graph anywhere": (manifest(lambda d: d["graphs"]["encoder"].update(file="/etc/passwd")), "plain file name"),
    "a graph on another machine": (
        manifest(lambda d: d["graphs"]["encoder"].update(file="//host/share/x.onnx")),
        "plain file name",
    ),
    "a graph that is a link": (linked_graph, "leads out of the bundle"),
    "a manifest that is a link": (linked_manifest, "leads out of the bundle"),
    "a folder that is a link": (linked_folder, "leads out of the bundle"),
    "links in a circle": (linked_in_a_circle, "cannot be read"),
    "a pipe": (pipe, "lacks its file"),
    "one key twice": (text(b'{"schema": 1, "trained": false, "trained": true}'), "occurs twice"),
    "NaN": (text(b'{"schema": 1, "verification": {"max_abs": NaN}}'), "not a finite number"),
    "infinity": (text(b'{"schema": 1, "verification": {"max_abs": 1e400}}'), "not a finite number"),
    "a number of 5000 digits": (text(b'{"schema": ' + b"9" * 5000 + b"}"), "cannot be used"),
    "lists in lists": (text(b'{"a":' * 200_000), "cannot be used"),
    "lists in lists that end": (
        text(b'{"schema": 1, "provenance": ' + b"[" * 500 + b"]" * 500 + b"}"),
        "nested deeper than 32 levels",
    ),
    "half a character": (text(b'{"schema": 1, "name": "\xc3"}'), "not UTF-8"),
    "another encoding": (text('{"schema": 1}'.encode("utf-16")), "not UTF-8"),
    "half a surrogate": (manifest(lambda d: d.update(name="\ud800")), "printable characters"),
    "orders to the terminal": (manifest(lambda d: d.update(summary="\x1b]0;owned\x07")), "printable characters"),
    "two megabytes of manifest": (text(b" " * (2 << 20) + b"{}"), "a manifest has at most"),
    "absurd channels": (manifest(lambda d: d["encoder"].update(channels=1 << 60)), "encoder.channels"),
    "absurd frames": (manifest(lambda d: d["encoder"].update(max_side=1 << 40)), "encoder.max_side"),
    "a context without end": (
        manifest(lambda d: d["inference"].update(context=1 << 40)),
        "'inference.context' is 1099511627776",
    ),
    "a command": (manifest(lambda d: d.update(on_load="rm -rf ~")), "is not known to this vosrt"),
    "a thousand graphs": (
        manifest(lambda d: d["graphs"].update({f"g{i}": d["graphs"]["encoder"] for i in range(1000)})),
        "expected at most 16",
    ),
    "a family from elsewhere": (manifest(lambda d: d.update(family="diffusion")), "family"),
    "a precision from elsewhere": (manifest(lambda d: d["graphs"]["encoder"].update(precision="int2")), "precision"),
    "a mask embedding without networks": (manifest(as_mask_embedding), "mask_encoder"),
    "a mask embedding without a contract": (
        manifest(lambda d: as_mask_embedding(d, "mask_encoder", "decoder").pop("masks")),
        "masks",
    ),
    "absurd rounds": (
        manifest(lambda d: as_mask_embedding(d, "mask_encoder", "decoder")["masks"].update(rounds=5)),
        "masks.rounds",
    ),
    "a mask embedding that aligns corners": (
        manifest(lambda d: as_mask_embedding(d, "mask_encoder", "decoder")["encoder"].update(align_corners=True)),
        "align_corners",
    ),
    "masks without a mask embedding": (
        manifest(lambda d: as_mask_embedding(d).update(family="correspondence")),
        "is not known to this vosrt",
    ),
    "a bundle from the future": (manifest(lambda d: d.update(schema=2**31 - 1)), "made by a newer vosrt"),
}


@pytest.fixture(params=HARMS)
def hostile(request: pytest.FixtureRequest, sound: Path) -> tuple[Path, str]:
    """A hostile bundle, and a part of the line that refuses it."""
    harm, says = HARMS[request.param]
    harm(sound)
    return sound, says


def test_the_sound_bundle_is_sound(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hostile ones are made from is not refused, so that each is refused for what was done to it."""
    asked: list[Graph] = []

    def record(graphs: Sequence[Graph], spec: EncoderSpec, **_: object) -> FakeEngine:
        asked.extend(graphs)
        return FakeEngine(spec)

    monkeypatch.setattr(vosrt.model, "create_encoder_engine", record)
    Model.load(sound)
    assert [each.path for each in asked] == [sound / "encoder.onnx"]
    assert asked[0].content == (sound / "encoder.onnx").read_bytes()


@pytest.mark.usefixtures("native")  # loads the library
def test_refused_in_one_line_with_nothing_run(hostile: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine sees it, no file outside it is opened, no code is run or loaded, no memory of note is taken."""
    root, says = hostile
    monkeypatch.setattr(vosrt.model, "create_encoder_engine", lambda *_, **__: pytest.fail("an engine was started"))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError) as caught, listening() as heard:
            Model.load(root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert says in message
    assert str(root) in message
    assert message.isprintable()
    assert len(message) < 600
    assert [each for each in heard if not each.startswith(f"open {root}")] == []
    assert peak < _PEAK_BYTES


def everything_that_export_writes(plain: Manifest) -> Iterator[Manifest]:
    """Every choice that a manifest has, from Python's types."""
    yield from (with_graphs(plain, precision) for precision in get_args(GraphPrecision))
    int8 = replace(plain.graphs["encoder"], precision="int8")
    yield replace(plain, graphs={**plain.graphs, "encoder_int8": int8})
    encoders: list[dict[str, Any]] = [{"feature": feature} for feature in get_args(Feature)]
    encoders += [{"align_corners": corners} for corners in (True, False)] + [{"stride": 14}]
    yield from (replace(plain, encoder=replace(plain.encoder, **changes)) for changes in encoders)
    yield from (replace(plain, size=size, enlarge_percent=150) for size in (None, 480))
    yield replace(plain, trained=True, name="naïve", verification={"max_abs": 1e-6})
    for options in (
        PropagationOptions(context=0, pad_context=False),
        PropagationOptions(radius=96 / 14, top_k=64, temperature=1),
        PropagationOptions(yield_background=False),
        *(one_option(name, each) for name, allowed in RANGES.items() for each in ends(name, allowed)),
    ):
        encoder = replace(plain.encoder, align_corners=options.parts == 1)
        yield replace(plain, encoder=encoder, inference=options)
    masks = MaskSpec(value_channels=64, context="context")
    yield with_masks(plain, masks)
    yield with_masks(plain, replace(masks, context="res3", rounds=0, residual=True, feedback=False))


def one_option(name: str, value: float) -> PropagationOptions:
    """The defaults but for one option."""
    given: dict[str, Any] = {name: value}
    return PropagationOptions(**given)


def ends(name: str, allowed: Range) -> tuple[float, float]:
    """The smallest and the largest value that an option takes."""
    kind = type(getattr(PropagationOptions(), name))
    return kind(allowed.lowest) if not allowed.above else 1e-3, kind(allowed.highest)


def with_graphs(manifest: Manifest, precision: GraphPrecision, *roles: str) -> Manifest:
    graph = replace(manifest.graphs["encoder"], precision=precision)
    return replace(manifest, graphs=dict.fromkeys(("encoder", *roles), graph))


def with_masks(manifest: Manifest, masks: MaskSpec) -> Manifest:
    further = with_graphs(manifest, "fp32", "mask_encoder", "decoder")
    encoder = replace(manifest.encoder, align_corners=False)
    return replace(further, family="mask-embedding", masks=masks, encoder=encoder)


def test_whatever_export_writes_is_taken(sound: Path) -> None:
    for manifest in everything_that_export_writes(load_bundle(sound).manifest):
        write_manifest(manifest, sound / "manifest.json")
        assert load_bundle(sound).manifest == manifest


@pytest.mark.parametrize("name", packaged_bundles())
def test_the_packaged_bundles_are_taken(name: str) -> None:
    assert load_bundle(name).graphs


def test_the_command_line_says_so(
    hostile: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes one line on stderr and no output folder, and exits with 2."""
    root, says = hostile
    clip = tmp_path / "clip"
    clip.mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(clip / "0.png")
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    assert vos_run([str(clip), "--mask", str(tmp_path / "mask.png"), "-o", str(out), "--bundle", str(root)]) == 2
    assert says in error_line(capsys)
    assert not out.exists()
