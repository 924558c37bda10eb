"""``vos-export copy``: a bundle that needs no other, or one that takes its encoder from a bundle beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper

from vosrt.bundle import ENCODER_ROLES, Bundle, GraphFile, GraphPart, Manifest, load_bundle
from vosrt.errors import OptionError
from vosrt.onnx_file import Graph, joined
from vosrt_export.write_bundle import check_output, whole_copy, write_files

ADDED_FILE = "{}_outputs.onnx"  # by the graph's role


def copy_bundle(path: str, output: Path, share: Path | None = None, *, overwrite: bool = False) -> int:
    """Copy a bundle. The copy appears whole or not at all.

    Args:
        path: the bundle's directory, or the name of a packaged one.
        share: a bundle beside ``output`` with the same encoder, whose files it then names instead of holding them.
            What the copy computes besides, such as maps for mask networks or a projection, stands in small files.

    Returns:
        Bytes of the copy.

    Raises:
        BundleError: a bundle is not whole.
        OptionError: ``share`` is not beside ``output``, takes its own encoder from elsewhere, or has another encoder.
        OutputError: the output exists or cannot be written.
    """
    check_output(output, overwrite)
    bundle = load_bundle(path)
    entries, files = whole_copy(bundle)
    manifest = replace(bundle.manifest, graphs=entries)
    if share is not None:
        manifest, files = _sharing(bundle, share, output, entries, files)
    write_files(manifest, files, output)
    return sum(each.stat().st_size for each in output.iterdir())


def _sharing(
    bundle: Bundle, share: Path, output: Path, entries: Mapping[str, GraphFile], files: Mapping[str, bytes]
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the copy's manifest and files, without the encoders that the other bundle has."""
    other = load_bundle(share)
    theirs, spec = other.manifest.graphs, bundle.manifest.encoder
    shared = [role for role in ENCODER_ROLES if role in entries and role in theirs]
    if share.resolve().parent != output.resolve().parent or any(theirs[role].bundle is not None for role in shared):
        raise OptionError(f"{share} is no bundle beside {output} that holds its own encoder; copy one to there first")
    name = spec.output_name
    if spec.channels != other.manifest.encoder.channels:  # the other embedding becomes a tensor inside this graph
        name = f"{name}_{spec.channels}"
    entries, kept, hashes = dict(entries), dict(files), dict[str, str]()
    for role in shared:
        del kept[entries[role].file]
        base, model = (onnx.load_from_string(each.graph(role).content) for each in (other, bundle))
        added = outputs_to_add(base, model, {spec.output_name: name})
        entries[role] = replace(theirs[role], bundle=share.resolve().name)
        if added:
            file = ADDED_FILE.format(role)
            kept[file] = added
            part = GraphPart(file=file, sha256=sha256(added).hexdigest(), bytes=len(added))
            entries[role] = replace(entries[role], adds=part)
            hashes[role] = joined(other.graph(role), Graph(output / file, added), name).sha256
    verification = dict(bundle.manifest.verification)
    if "int8" in verification:  # the encoder that it was quantised from, as it is from now on
        verification["int8"] = {**verification["int8"], "from_sha256": hashes.get("encoder", entries["encoder"].sha256)}
    encoder = replace(spec, output_name=name)
    return replace(bundle.manifest, graphs=entries, encoder=encoder, verification=verification), kept


def outputs_to_add(base: ModelProto, model: ModelProto, names: Mapping[str, str]) -> bytes:
    """Return the part that turns one graph into another that computes the same tensors and more.

    A tensor is the same if the same operators compute it from the same weights, under any name.

    Args:
        model: a graph that computes all that ``base`` does.
        names: of the model's outputs in what is returned, where another tensor of ``base`` has theirs.

    Returns:
        An ONNX file with the outputs and what leads to them from tensors of ``base``, to be appended; empty where
        ``base`` has them all.

    Raises:
        OptionError: ``base`` computes what the model does not.
    """
    have = {key: name for name, key in _tensors(base).items()}
    wanted = _tensors(model)
    if not have.keys() <= set(wanted.values()):
        raise OptionError("the bundles' encoders differ; share the one that this bundle was made with")
    taken = {*have.values()}

    def own(tensor: str) -> str:
        return tensor if tensor not in taken else f"{tensor}_added"

    further = [node for node in model.graph.node if wanted[node.output[0]] not in have]
    # Weights of these nodes alone are added, even where ``base`` has the same numbers: OpenVINO quantises otherwise
    # where constants are shared.
    used = {name for node in model.graph.node if wanted[node.output[0]] in have for name in node.input}
    weights = [each for each in model.graph.initializer if each.name not in used or wanted[each.name] not in have]
    fresh = {each.name for each in weights}
    called = {
        tensor: own(tensor) if tensor in fresh or key not in have else have[key] for tensor, key in wanted.items()
    }
    outputs = {each.name: names.get(each.name, each.name) for each in model.graph.output}
    given = {each.name for each in base.graph.output}
    added = ModelProto()
    for output, name in outputs.items():
        if wanted[output] not in have:
            called[output] = name
        elif name not in given:
            added.graph.node.append(helper.make_node("Identity", [called[output]], [name]))
    for node in further:
        node.input[:] = [called[each] for each in node.input]
        node.output[:] = [called[each] for each in node.output]
        added.graph.node.append(node)
    for constant in weights:
        constant.name = called[constant.name]
        added.graph.initializer.append(constant)
    replaced = names.keys() & given and any(names[each] != each for each in names)
    for value in model.graph.output:
        value.name = outputs[value.name]
        if replaced or value.name not in given:
            added.graph.output.append(value)
    data: bytes = added.SerializeToString(deterministic=True)
    return data


def _tensors(model: ModelProto) -> dict[str, bytes]:
    """What each tensor of a graph is, as a hash of its weights or of its node and what the node's inputs are."""
    versions = b"".join(each.SerializeToString(deterministic=True) for each in model.opset_import)
    found = {"": b"", **{each.name: each.name.encode() + versions for each in model.graph.input}}
    for constant in model.graph.initializer:
        plain = TensorProto()
        plain.CopyFrom(constant)
        plain.ClearField("name")
        found[constant.name] = sha256(plain.SerializeToString(deterministic=True)).digest()
    for node in model.graph.node:
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        parts = (node.op_type.encode(), *attributes, b"|", *(found[each] for each in node.input))
        found[node.output[0]] = sha256(b"".join(sha256(part).digest() for part in parts)).digest()
    return found
