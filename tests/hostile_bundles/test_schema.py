"""The table of what a manifest may hold: every end of it is taken and nothing beyond."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest

import vosrt.bundle
from vosrt.bundle import MAX_ROUNDS, Family, Feature, GraphPrecision, load_bundle
from vosrt.errors import BundleError
from vosrt.onnx_file import MAX_BYTES
from vosrt.types import RANGES, PropagationOptions

onnx = pytest.importorskip("onnx")


@dataclass(frozen=True)
class Rule:
    """One line of the table, as it says itself."""

    kind: str
    optional: bool
    bounds: tuple[str, ...]

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest number, or length of a text."""
        return int(self.bounds[0]), int(self.bounds[1])


def read_table() -> dict[str, dict[str, Rule]]:
    """Rules by the object that they are of, ``""`` for the whole document, and by key."""
    rules: dict[str, dict[str, Rule]] = {}
    for line in Path(vosrt.bundle.__file__).with_name("schema.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            key, kind, bounds = (part.strip() for part in line.split("|")[:3])
            owner, _, name = key.removesuffix("?").strip().rpartition(".")
            rules.setdefault(owner, {})[name] = Rule(kind, key.endswith("?"), tuple(bounds.split()))
    return rules


RULES = read_table()
_KEYS = [(owner, key) for owner, rules in RULES.items() for key in rules]
_FORMER = ("window", "global_reference")  # bundles name the one value that is left of each
_FREE = [
    (owner, key) for owner, key in _KEYS if key not in ("schema", "bytes")
]  # the others are given by what is there


def encoder(*outputs: str, channels: int = 4) -> bytes:
    """An encoder without weights; ``outputs`` are given besides the embedding, as the frame in floats."""
    float_ = onnx.TensorProto.FLOAT
    frames = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
    embedding = onnx.helper.make_tensor_value_info("embedding", float_, ["n", "h", "w", channels])
    nodes = [
        onnx.helper.make_node("Cast", ["frames"], ["floats"], to=float_),
        onnx.helper.make_node("Relu", ["floats"], ["embedding"]),
        *(onnx.helper.make_node("Identity", ["floats"], [name]) for name in outputs),
    ]
    further = [onnx.helper.make_tensor_value_info(name, float_, ["n", "h", "w", 3]) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "encoder", [frames], [embedding, *further])
    data: bytes = onnx.helper.make_model(graph).SerializeToString()
    return data


def part(content: bytes, file: str) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def document_of(content: bytes) -> dict[str, Any]:
    """A manifest with every key that the table has, but for those of graphs that share."""
    graph = {**part(content, "encoder.onnx"), "precision": "fp32"}
    sides = {"min_side": 16, "max_side": 16384}
    return {
        "schema": 1,
        "family": "mask-embedding",
        "name": "test",
        "trained": False,
        "summary": "A test.",
        "encoder": {"channels": 4, "feature": "res3", "stride": 8, "align_corners": False, **sides}
        | {"input_name": "frames", "output_name": "embedding"},
        "inference": {"size": None, "window": "circle", "global_reference": True, **vars(PropagationOptions())},
        "graphs": {role: dict(graph) for role in ("encoder", "mask_encoder", "decoder")},
        "verification": {},
        "provenance": {},
        "masks": {"value_channels": 64, "context": "res3", "rounds": 1, "residual": True, "feedback": False},
    }


class Bundle:
    """A folder with a manifest that changes, and what the reader says of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.write("encoder.onnx", encoder())
        self.document = document_of(encoder())

    def write(self, name: str, content: bytes) -> None:
        (self.root / name).write_bytes(content)

    def accept(self, document: dict[str, Any]) -> None:
        """Have a manifest be taken."""
        (self.root / "manifest.json").write_text(json.dumps(document))
        load_bundle(self.root)

    def refuse(self, document: dict[str, Any], says: str = "") -> None:
        """Have it refused, in one line."""
        (self.root / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(BundleError) as caught:
            load_bundle(self.root)
        line = str(caught.value)
        assert says in line
        assert str(self.root.parent) in line
        assert line.isprintable()
        assert len(line) < 600


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "bundle")


def changed(document: dict[str, Any], owner: str, key: str, *value: Any) -> dict[str, Any]:
    """The document with one value, or without it where none is given. Graphs are changed alike."""
    result = copy.deepcopy(document)
    places = [result]
    for name in owner.split(".") if owner else ():
        places = [
            each for place in places for each in (place.values() if name == "*" else [place.setdefault(name, {})])
        ]
    for place in places:
        if value:
            place[key] = value[0]
        else:
            place.pop(key, None)
    return result


def within(owner: str, key: str, rule: Rule) -> Iterator[Any]:
    """Values at every end of a rule."""
    if rule.kind == "choice":
        yield from rule.bounds
    elif rule.kind == "flag":
        yield from (True, False) if key not in _FORMER else (True,)
    elif rule.kind in ("integer", "size") and rule.bounds:
        yield from rule.limits
    elif rule.kind in ("integer", "number"):
        allowed = RANGES[key]
        yield from (1e-3 if allowed.above else type_of(key)(allowed.lowest), type_of(key)(allowed.highest))
    elif rule.kind == "text" and len(rule.bounds) == 2:
        yield from ("x", "é" * rule.limits[1])


def beyond(owner: str, key: str, rule: Rule) -> Iterator[Any]:
    """Values just outside a rule, and of other kinds."""
    yield from ([], {} if rule.kind not in ("object", "any", "graphs") else 1, 1e299)
    if rule.kind != "size":
        yield None
    if rule.kind in ("integer", "size", "number"):
        yield from (True, "1")
        allowed = None if rule.bounds else RANGES[key]
        lowest, highest = (allowed.lowest, allowed.highest) if allowed else rule.limits
        step = 1e-5 if rule.kind == "number" else 1
        yield from (lowest if allowed and allowed.above else lowest - step, highest + step)
    if rule.kind == "text":
        yield from ("", "x" * (rule.limits[1] + 1), "a\n", "\u202e", " " if len(rule.bounds) > 2 else "\t")
    if rule.kind == "choice":
        yield from ("", rule.bounds[0].upper(), " ".join((*rule.bounds, "")))


def type_of(key: str) -> type:
    return type(getattr(PropagationOptions(), key))


def test_everything_that_the_table_has_is_taken(bundle: Bundle) -> None:
    """Each choice and each end of each range."""
    bundle.accept(bundle.document)
    for owner, key in _FREE:
        for value in within(owner, key, RULES[owner][key]):
            document = changed(bundle.document, owner, key, value)
            if (owner, key, value) in {("", "family", "correspondence"), ("encoder", "align_corners", True)}:
                document = changed(changed(document, "", "masks"), "", "family", "correspondence")
            if key in ("min_side", "max_side"):
                document["encoder"] |= {"min_side": value, "max_side": value}
            bundle.accept(with_encoder(bundle, document))
    bundle.write("encoder.onnx", encoder())
    for owner, key in _FREE:
        if RULES[owner][key].optional:
            plain = changed(changed(bundle.document, "", "masks"), "", "family", "correspondence")
            bundle.accept(changed(plain if key == "align_corners" else bundle.document, owner, key))


def with_encoder(bundle: Bundle, document: dict[str, Any]) -> dict[str, Any]:
    """The document for an encoder of as many channels as it says, which is written."""
    content = encoder(channels=document["encoder"]["channels"])
    bundle.write("encoder.onnx", content)
    for graph in document["graphs"].values():
        graph |= part(content, "encoder.onnx")
    return document


@pytest.mark.parametrize(("owner", "key"), _KEYS, ids=[f"{owner}.{key}" for owner, key in _KEYS])
def test_nothing_beyond_the_table_is_taken(bundle: Bundle, owner: str, key: str) -> None:
    rule = RULES[owner][key]
    if owner == "graphs.*.adds":
        bundle.document = changed(bundle.document, "graphs.*", "adds", part(b"", "more.onnx") | {"bytes": 1})
    for value in beyond(owner, key, rule):
        range_of = RANGES[key].text if owner == "inference" and key in RANGES and type(value) is type_of(key) else key
        bundle.refuse(changed(bundle.document, owner, key, value), range_of)
    if not rule.optional:
        bundle.refuse(changed(bundle.document, owner, key), key)
    if rule.kind in ("object", "graphs") and key != "adds":
        inner = f"{owner}.{key}" if owner else key
        bundle.refuse(changed(bundle.document, inner, "stranger", 1), "stranger")


def test_a_quantised_encoder_beside_the_other(bundle: Bundle) -> None:
    """It is of the precision that its name says, and takes and gives what the encoder does."""
    bundle.write("encoder_int8.onnx", encoder())
    graphs = bundle.document["graphs"]
    graphs["encoder_int8"] = {**part(encoder(), "encoder_int8.onnx"), "precision": "int8"}
    bundle.accept(bundle.document)
    assert [each.quantised for each in load_bundle(bundle.root).encoders] == [None, "int8"]
    assert load_bundle(bundle.root).encoder_for("int8").path.name == "encoder_int8.onnx"
    graphs["encoder_int8"]["precision"] = "fp16"
    bundle.refuse(bundle.document, "'graphs.encoder_int8.precision' is 'fp16'; expected 'int8'")
    narrower = encoder(channels=3)
    bundle.write("encoder_int8.onnx", narrower)
    graphs["encoder_int8"] = {**part(narrower, "encoder_int8.onnx"), "precision": "int8"}
    bundle.refuse(bundle.document, "export the bundle again")


def test_the_table_says_what_the_types_say() -> None:
    """Python's types repeat some of the table for readers and type checkers."""
    for typed, owner, key in (
        (Family, "", "family"),
        (Feature, "encoder", "feature"),
        (GraphPrecision, "graphs.*", "precision"),
        (Literal["context", "res3"], "masks", "context"),
    ):
        assert set(get_args(typed)) == set(RULES[owner][key].bounds)
    assert set(RULES["inference"]) == {"size", "enlarge_percent", *_FORMER, *vars(PropagationOptions())}
    assert RULES["graphs.*"]["bytes"].limits[1] == MAX_BYTES
    assert RULES["masks"]["rounds"].limits[1] == MAX_ROUNDS


@pytest.fixture
def sharing(bundle: Bundle) -> Bundle:
    """Takes its encoder from the bundle ``base`` beside it, and adds an output to that."""
    base = bundle.root.parent / "base"
    base.mkdir()
    (bundle.root / "encoder.onnx").rename(base / "encoder.onnx")
    added = onnx.ModelProto()
    added.graph.CopyFrom(onnx.load_from_string(encoder("maps")).graph)
    for field, kept in ((added.graph.node, 2), (added.graph.output, 1)):
        del field[:kept]
    del added.graph.input[:]
    bundle.write("more.onnx", added.SerializeToString())
    document = changed(changed(bundle.document, "", "masks"), "", "family", "correspondence")
    document["graphs"] = {"encoder": document["graphs"]["encoder"]}
    document["graphs"]["encoder"] |= {"bundle": "base", "adds": part(added.SerializeToString(), "more.onnx")}
    bundle.document = document
    return bundle


def test_a_graph_of_another_bundle_is_taken_and_added_to(sharing: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of both files are one graph to every reader of protobuf."""
    sharing.accept(sharing.document)
    loaded = load_bundle(sharing.root)
    graph = loaded.graph("encoder")
    assert graph.content == b"".join(
        path.read_bytes() for path in (sharing.root.parent / "base" / "encoder.onnx", sharing.root / "more.onnx")
    )
    assert list(graph.outputs) == ["embedding", "maps"]
    assert graph.path.parent == sharing.root
    session = pytest.importorskip("onnxruntime").InferenceSession(graph.content, providers=["CPUExecutionProvider"])
    (found,) = session.run(["maps"], {"frames": np.full((1, 16, 16, 3), 7, np.uint8)})
    assert (found == 7).all()
    monkeypatch.chdir(sharing.root)  # the name of the folder is not in the path
    assert load_bundle(".").graph("encoder").content == graph.content
    del sharing.document["graphs"]["encoder"]["adds"]
    sharing.accept(sharing.document)
    assert load_bundle(sharing.root).graph("encoder").content == encoder()


def test_an_added_embedding_takes_the_place_of_the_outputs(sharing: Bundle) -> None:
    """The file's own become tensors inside the graph; an output whose tag is not one byte is refused."""
    base, more = sharing.root.parent / "base" / "encoder.onnx", sharing.root / "more.onnx"
    sharing.document["encoder"] |= {"output_name": "maps", "channels": 3}
    sharing.accept(sharing.document)
    graph = load_bundle(sharing.root).graph("encoder")
    assert [*graph.outputs] == ["maps"]
    model = onnx.load_from_string(graph.content)
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.value_info] == ["embedding"]
    assert len(graph.content) == base.stat().st_size + more.stat().st_size
    sharing.document["encoder"]["output_name"] = "embedding"
    sharing.refuse(sharing.document, "embedding")  # of 4 channels
    inner = onnx.load(base).graph
    output = inner.output.pop().SerializeToString()
    odd = inner.SerializeToString() + b"\xe2\x00" + bytes([len(output)]) + output
    content = b"\x3a" + bytes([len(odd) & 0x7F | 0x80, len(odd) >> 7]) + odd
    base.write_bytes(content)
    sharing.document["graphs"]["encoder"] |= part(content, "encoder.onnx")
    sharing.document["encoder"]["channels"] = 4
    sharing.accept(sharing.document)
    sharing.document["encoder"] |= {"output_name": "maps", "channels": 3}
    sharing.refuse(sharing.document, "not one byte")


def test_a_graph_of_another_bundle_must_match(sharing: Bundle) -> None:
    base = sharing.root.parent / "base"
    content = (base / "encoder.onnx").read_bytes()
    (base / "encoder.onnx").write_bytes(content.replace(b"floats", b"FLOATS"))
    sharing.refuse(sharing.document, "was altered: its SHA-256")
    (base / "encoder.onnx").write_bytes(content)
    sharing.accept(sharing.document)
    (sharing.root / "more.onnx").write_bytes((sharing.root / "more.onnx").read_bytes() + b"\0")
    sharing.refuse(sharing.document, "was altered: it has")
    (sharing.root / "more.onnx").unlink()
    sharing.refuse(sharing.document, "lacks its file more.onnx")
    (base / "encoder.onnx").unlink()
    sharing.refuse(sharing.document, "copy both, side by side")


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../..", "a/b", "/etc", "\\\\host", ".hidden", "a\0", "x" * 101, 7, None]
)
def test_bundles_that_are_no_neighbours(sharing: Bundle, name: object) -> None:
    sharing.document["graphs"]["encoder"]["bundle"] = name
    sharing.refuse(sharing.document, "graphs.encoder.bundle")


def test_links_out_of_the_neighbourhood(sharing: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A neighbour, a file in it and an addition are refused where they are links to elsewhere."""
    base, elsewhere = sharing.root.parent / "base", tmp_path_factory.mktemp("elsewhere")
    base.rename(elsewhere / "base")
    base.symlink_to(elsewhere / "base")
    sharing.refuse(sharing.document, "leads out of the bundle")
    base.unlink()
    base.mkdir()
    (base / "encoder.onnx").symlink_to(elsewhere / "base" / "encoder.onnx")
    sharing.refuse(sharing.document, "leads out of the bundle")
    (base / "encoder.onnx").unlink()
    (elsewhere / "base" / "encoder.onnx").rename(base / "encoder.onnx")
    sharing.accept(sharing.document)
    (sharing.root / "more.onnx").rename(base / "more.onnx")
    (sharing.root / "more.onnx").symlink_to(base / "more.onnx")
    sharing.refuse(sharing.document, "leads out of the bundle")


def test_what_is_added_is_checked_as_graphs_are(sharing: Bundle) -> None:
    """Weights outside, operators of others and a second node of one name are refused in both files' sum."""
    model = onnx.load_from_string((sharing.root / "more.onnx").read_bytes())
    model.graph.node.append(onnx.helper.make_node("Shell", ["embedding"], ["x"], domain="evil"))
    sharing.write("more.onnx", model.SerializeToString())
    sharing.document["graphs"]["encoder"]["adds"] = part(model.SerializeToString(), "more.onnx")
    sharing.refuse(sharing.document, "operators of 'evil'")
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Identity", ["floats"], ["embedding"]))
    sharing.write("more.onnx", model.SerializeToString())
    sharing.document["graphs"]["encoder"]["adds"] = part(model.SerializeToString(), "more.onnx")
    sharing.refuse(sharing.document)
