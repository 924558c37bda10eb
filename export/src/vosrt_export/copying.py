"""``vos-export copy``: a bundle that needs no other, or one that takes its encoder from a bundle beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from vosrt.bundle import Bundle, GraphFile, GraphPart, load_bundle
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import OptionError
from vosrt.onnx_file import Graph
from vosrt_export.errors import ExportError
from vosrt_export.write_bundle import check_output, whole_copy, write_files

ADDED_FILE = "encoder_outputs.onnx"


def copy_bundle(path: str, output: Path, share: Path | None = None, *, overwrite: bool = False) -> int:
    """Copy a bundle. The copy appears whole or not at all.

    Args:
        path: the bundle's directory, or the name of a packaged one.
        output: directory to make.
        share: a bundle beside ``output`` with the same encoder, whose file the copy then names instead of holding it.
            What the copy's encoder gives besides, such as maps for mask networks, stands in a small file of its own.
        overwrite: replace an existing bundle.

    Returns:
        Bytes of the copy.

    Raises:
        BundleError: a bundle is not whole.
        OptionError: ``share`` is not beside ``output``, takes its own encoder from elsewhere, or has another encoder.
        OutputError: the output exists or cannot be written.
        ExportError: the shared encoder does not compute the same.
    """
    check_output(output, overwrite)
    bundle = load_bundle(path)
    entries, files = whole_copy(bundle)
    if share is not None:
        entries, files = _sharing(bundle, share, output, entries, files)
    write_files(replace(bundle.manifest, graphs=entries), files, output)
    return sum(each.stat().st_size for each in output.iterdir())


def _sharing(
    bundle: Bundle, share: Path, output: Path, entries: Mapping[str, GraphFile], files: Mapping[str, bytes]
) -> tuple[dict[str, GraphFile], dict[str, bytes]]:
    """Graphs and files of the copy, without the encoder's file."""
    other = load_bundle(share)
    file = other.manifest.graphs["encoder"]
    if share.resolve().parent != output.resolve().parent or file.bundle is not None:
        raise OptionError(f"{share} is no bundle beside {output} that holds its own encoder; copy one to there first")
    added = outputs_to_add(onnx.load_from_string(other.graph("encoder").content), _model(bundle))
    entry = replace(file, bundle=share.resolve().name)
    kept = {name: content for name, content in files.items() if name != entries["encoder"].file}
    if added:
        entry = replace(entry, adds=GraphPart(file=ADDED_FILE, sha256=sha256(added).hexdigest(), bytes=len(added)))
        kept[ADDED_FILE] = added
    _check_same(bundle, other.graph("encoder").content + added)
    return {**entries, "encoder": entry}, kept


def _model(bundle: Bundle) -> ModelProto:
    return onnx.load_from_string(bundle.graph("encoder").content)


def outputs_to_add(base: ModelProto, model: ModelProto) -> bytes:
    """Return the part that turns one graph into another that computes the same and has more outputs.

    Args:
        base: a graph.
        model: the same nodes and weights under any names of inner tensors.

    Returns:
        An ONNX file with those outputs alone, to be appended to ``base``; empty where there are none.

    Raises:
        OptionError: the graphs differ in more.
    """
    names = {each.name: each.name for each in (*base.graph.input, *base.graph.initializer)}
    constants = {each.name: each for each in base.graph.initializer}
    for ours, theirs in zip(base.graph.initializer, model.graph.initializer, strict=False):
        if ours.dims == theirs.dims and ours.raw_data == theirs.raw_data:
            names[theirs.name] = ours.name
    have = {each.name for each in base.graph.output}
    further = [each for each in model.graph.output if each.name not in have]
    aliases = {each.output[0]: each.input[0] for each in model.graph.node if each.op_type == "Identity"}
    aliases = {each.name: aliases[each.name] for each in further if each.name in aliases}  # made as those below
    nodes = [each for each in model.graph.node if each.output[0] not in aliases]
    same = len(base.graph.node) == len(nodes) and len(constants) == len(model.graph.initializer)
    for ours, theirs in zip(base.graph.node, nodes, strict=False):
        same = same and _plain(ours) == _plain(theirs)
        same = same and list(ours.input) == [names.get(name) for name in theirs.input]
        names |= zip(theirs.output, ours.output, strict=False)
    if not same:
        raise OptionError("the bundles' encoders differ; share the one that this bundle was made with")
    added = ModelProto()
    for name in (each.name for each in further):
        added.graph.node.append(helper.make_node("Identity", [names[aliases.get(name, name)]], [name]))
    added.graph.output.extend(further)
    data: bytes = added.SerializeToString(deterministic=True)
    return data if further else b""


def _plain(node: NodeProto) -> tuple[str, list[bytes]]:
    """Operator and attributes of a node."""
    return node.op_type, sorted(each.SerializeToString(deterministic=True) for each in node.attribute)


def _check_same(bundle: Bundle, content: bytes) -> None:
    """Run both encoders on a frame of noise."""
    spec = bundle.manifest.encoder
    side = max(64, spec.min_side)
    frames = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)

    def outputs() -> Iterator[Mapping[str, np.ndarray]]:
        for graph in (bundle.graph("encoder"), Graph(bundle.path / ADDED_FILE, content)):
            engine = create_encoder_engine(graph, spec, engine="cpu", precision="fp32")
            yield engine.run({spec.input_name: frames})

    ours, theirs = outputs()
    if ours.keys() != theirs.keys() or any(not np.array_equal(ours[name], theirs[name]) for name in ours):
        raise ExportError("the shared encoder does not compute what this bundle's does; nothing was written")
