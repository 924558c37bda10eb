"""``vos-export scales``: an encoder that looks at frames at a second, coarser scale, too.

A finer grid follows thin parts, but the same network sees less of the scene in each cell there, and loses what turns or
grows. So the encoder runs once more on a smaller copy of the frame; its embeddings are brought to the finer grid
(bilinear, pixel centres at half-integers, back to unit length) and joined to those of the finer scale. Similarities are
the weighted mean of both scales' then: with fine f, coarse c and weight w, the embedding is (f, √w c) / √(1 + w).
All of it is part of the graph, so that every engine runs it, and it holds no weights of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from vosrt.bundle import ENCODER_ROLES, Bundle, EncoderSpec, GraphFile, GraphPart, Manifest, load_bundle
from vosrt.core.native import resize_bgr
from vosrt.core.reference import resize_soft
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import OptionError
from vosrt.model import Model
from vosrt.onnx_file import Graph
from vosrt.types import DEFAULT_SIZE, F32Array
from vosrt_export.errors import ExportError
from vosrt_export.verify import Comparison, summarise
from vosrt_export.write_bundle import check_output, graph_file, own_graphs, write_files
from vosrt_train.bundle_weights import PROVENANCE_KEY

OUTPUT_NAME = "embedding.scales"
SMALLEST = Fraction(1, 2)  # of a frame of the smallest side a cell is left
_SUMMARY = 1000  # characters, as the manifest allows
_PREFIX = "coarse."
_CHECKED = ((96, 144), (104, 168))  # pixels of the frames that are compared
_MIN_COSINE = 0.999  # the smaller frame is rounded to whole colours in NumPy, and not in the graph


def join_scales(
    path: str, output: Path, ratio: Fraction, weight: float, *, size: int | None = None, overwrite: bool = False
) -> Comparison:
    """Make a bundle whose encoder joins two scales. It appears whole or not at all.

    Beside the bundle that it is made from, in the same folder, it names that one's encoders instead of holding them.

    Args:
        path: the bundle's directory, or the name of a packaged one.
        output: directory to make.
        ratio: sides of the smaller copy, of those of the working frame, rounded up to whole cells.
        weight: of the coarse scale, where the fine one counts 1.
        size: default short side in pixels; windows stay as wide in the picture. None leaves both as they are.
        overwrite: replace an existing bundle.

    Returns:
        The new graph against two runs of the old one, joined in NumPy.

    Raises:
        BundleError: the bundle is not whole.
        OptionError: the ratio or the weight is out of range, or the bundle refines masks.
        OutputError: the output exists or cannot be written.
        ExportError: the graph does not begin as exports do, or the new one does not compute the same.
    """
    if not SMALLEST <= ratio < 1:
        raise OptionError(f"ratio is {ratio}; expected {SMALLEST} to less than 1")
    if not (math.isfinite(weight) and 0 < weight <= 100):
        raise OptionError(f"weight is {weight:g}; expected more than 0, at most 100")
    check_output(output, overwrite)
    bundle = load_bundle(path)
    spec = bundle.manifest.encoder
    if bundle.manifest.masks is not None:
        raise OptionError(
            f"bundle {path} refines masks with its encoder's maps, which have one scale; take another one"
        )
    if spec.align_corners:
        raise OptionError(
            f"bundle {path} aligns corners; scales are joined where cells lie in the middle of their pixels"
        )
    entries, files = own_graphs(bundle, without=ENCODER_ROLES)
    beside = bundle.path.resolve().parent == output.resolve().parent
    for role in (role for role in ENCODER_ROLES if role in bundle.manifest.graphs):
        own, content = bundle.manifest.graphs[role], bundle.graph(role).content
        added = scale_part(onnx.load_from_string(content), spec, ratio, weight)
        if beside and own.adds is None:
            part = GraphPart(file=f"{role}_scales.onnx", sha256=sha256(added).hexdigest(), bytes=len(added))
            entries[role] = replace(own, bundle=own.bundle or bundle.path.resolve().name, adds=part)
            files[part.file] = added
        else:
            whole = onnx.load_from_string(content + added).SerializeToString(deterministic=True)
            entries[role] = graph_file(role, whole, own.precision)
            files[entries[role].file] = whole
    manifest = _manifest(bundle, entries, ratio, weight, size)
    comparison = _compare(bundle, manifest.encoder, ratio, weight)
    if comparison.min_cosine < _MIN_COSINE:
        raise ExportError(f"the graph of two scales does not compute them: {comparison}; nothing was written")
    note = {
        "compared": "this graph with two runs of the one it was made from, joined in NumPy; on the CPU in fp32",
        "figures": asdict(comparison),
        "tolerance": {"min_cosine": _MIN_COSINE},
    }
    write_files(replace(manifest, verification={**manifest.verification, "scales": note}), files, output)
    return comparison


def scale_part(model: ModelProto, spec: EncoderSpec, ratio: Fraction, weight: float) -> bytes:
    """What turns an encoder's graph into one of two scales when it is appended to that: nodes, and one more output.

    Args:
        model: the graph: frames u8 [n, H, W, 3] are transposed and cast before anything else.
        spec: of the graph.
        ratio: see `join_scales`.
        weight: see there.

    Returns:
        An ONNX file; it names the graph's weights, and has none of its own.

    Raises:
        ExportError: the graph does not begin so.
    """
    begin, made = _picture(model, spec)
    shared = 1 / math.sqrt(1 + weight)
    bottom = ratio.denominator * spec.stride
    constants: dict[str, np.ndarray] = {
        "top": np.array([ratio.numerator], np.int64),
        "up": np.array([bottom - 1], np.int64),  # as in smaller_side
        "bottom": np.array([bottom], np.int64),
        "stride": np.array([spec.stride], np.int64),
        "last": np.array([-1], np.int64),
        "shortest": np.array(1e-12, np.float32),
        "fine": np.array(shared, np.float32),
        "coarse": np.array(shared * math.sqrt(weight), np.float32),
    }
    c = {name: f"scales.{name}" for name in constants}
    fine, planes, unit = spec.output_name, "scales.planes", "scales.unit"
    nodes = [
        *_sides("scales.sides", spec.input_name, 1),
        helper.make_node("Mul", ["scales.sides", c["top"]], ["scales.times"]),
        helper.make_node("Add", ["scales.times", c["up"]], ["scales.plus"]),
        helper.make_node("Div", ["scales.plus", c["bottom"]], ["scales.cells"]),
        helper.make_node("Mul", ["scales.cells", c["stride"]], ["scales.smaller"]),
        *_resize(begin, "scales.smaller", f"{_PREFIX}{begin}"),
        *_again(model, begin, made),
        helper.make_node("Transpose", [f"{_PREFIX}{fine}"], [planes], perm=[0, 3, 1, 2]),
        *_sides("scales.grid", fine, 1),
        *_resize(planes, "scales.grid", "scales.grown"),
        helper.make_node("Transpose", ["scales.grown"], ["scales.found"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceL2", ["scales.found", c["last"]], ["scales.length"], keepdims=1),
        helper.make_node("Max", ["scales.length", c["shortest"]], ["scales.divisor"]),
        helper.make_node("Div", ["scales.found", "scales.divisor"], [unit]),
        helper.make_node("Mul", [unit, c["coarse"]], ["scales.second"]),
        helper.make_node("Mul", [fine, c["fine"]], ["scales.first"]),
        helper.make_node("Concat", ["scales.first", "scales.second"], [OUTPUT_NAME], axis=3),
    ]
    part = ModelProto()
    for index, node in enumerate(nodes):
        node.name = f"scales.{index}"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(numpy_helper.from_array(value, c[name]) for name, value in constants.items())
    shape: list[str | int | None] = ["n", "h", "w", 2 * spec.channels]
    part.graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, shape))
    data: bytes = part.SerializeToString(deterministic=True)
    onnx.checker.check_model(onnx.load_from_string(model.SerializeToString() + data), full_check=True)
    return data


def _picture(model: ModelProto, spec: EncoderSpec) -> tuple[str, set[str]]:
    """The frames as float planes, and the names that lead to them."""
    name, made, operators = spec.input_name, {spec.input_name}, list[str]()
    while len(operators) < 2:
        takers = [node for node in model.graph.node if name in node.input]
        operators += [node.op_type for node in takers]
        if len(takers) != 1:
            break
        name = takers[0].output[0]
        made.add(name)
    if sorted(operators) != ["Cast", "Transpose"]:
        raise ExportError(
            f"the encoder begins with {', '.join(operators)}; expected Transpose and Cast, as vos-export writes them"
        )
    return name, made


def _again(model: ModelProto, begin: str, made: set[str]) -> Iterator[NodeProto]:
    """The nodes that the picture goes through, under names of their own."""
    depend = {begin}
    for node in model.graph.node:
        if depend.isdisjoint(node.input) or not made.isdisjoint(node.output):
            continue
        again = NodeProto()
        again.CopyFrom(node)
        again.input[:] = [f"{_PREFIX}{name}" if name in depend else name for name in node.input]
        again.output[:] = [f"{_PREFIX}{name}" for name in node.output]
        depend.update(node.output)
        yield again


def _sides(name: str, of: str, start: int) -> Iterator[NodeProto]:
    """Rows and columns of a map, i64 [2]."""
    yield helper.make_node("Shape", [of], [name], start=start, end=start + 2)


def _resize(planes: str, sides: str, name: str) -> Iterator[NodeProto]:
    """Resize f32 [n, K, rows, columns] to other rows and columns."""
    yield helper.make_node("Shape", [planes], [f"{name}.first"], start=0, end=2)
    yield helper.make_node("Concat", [f"{name}.first", sides], [f"{name}.shape"], axis=0)
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    yield helper.make_node("Resize", [planes, "", "", f"{name}.shape"], [name], **how)


def join(fine: F32Array, coarse: F32Array, weight: float) -> F32Array:
    """Join embeddings of two scales: f32 [h, w, K] and [h', w', K] -> [h, w, 2 K]; the definition of the graph."""
    grown = resize_soft(coarse, *fine.shape[:2])
    grown /= np.maximum(np.linalg.norm(grown, axis=-1, keepdims=True), 1e-12)
    joined = np.concatenate([fine, math.sqrt(weight) * grown], axis=-1) / math.sqrt(1 + weight)
    return np.asarray(joined, dtype=np.float32)


def read_ratio(text: str) -> Fraction:
    """Read a ratio as a person types it, such as 2/3 or 0.5.

    Raises:
        OptionError: it is no number.
    """
    try:
        return Fraction(text).limit_denominator(64)
    except (ValueError, ZeroDivisionError) as error:
        raise OptionError(f"ratio is {text!r}; expected a number such as 2/3 or 0.5") from error


def smaller_side(side: int, ratio: Fraction, stride: int) -> int:
    """A side of the smaller copy, in pixels, rounded up to whole cells."""
    return -(-ratio.numerator * side // (ratio.denominator * stride)) * stride


def _compare(bundle: Bundle, spec: EncoderSpec, ratio: Fraction, weight: float) -> Comparison:
    """Compare the encoder of two scales with two runs of the one that it is made from."""
    content = bundle.graph("encoder").content
    added = scale_part(onnx.load_from_string(content), bundle.manifest.encoder, ratio, weight)
    engine = create_encoder_engine(Graph(bundle.path, content + added), spec, engine="cpu", precision="fp32")
    both = Model(replace(bundle.manifest, encoder=spec), {"encoder": engine}, precision="fp32")
    one = Model.load(bundle, engine="cpu", precision="fp32")
    stride, random, pairs = spec.stride, np.random.default_rng(0), []
    for height, width in _CHECKED:
        frame = resize_bgr(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), height, width)
        small = resize_bgr(frame, *(smaller_side(side, ratio, stride) for side in (height, width)))
        wanted = join(one.encode(frame, "native").array, one.encode(small, "native").array, weight)
        pairs.append((wanted[None], both.encode(frame, "native").array[None]))
    return summarise(pairs)


def _manifest(
    bundle: Bundle, entries: Mapping[str, GraphFile], ratio: Fraction, weight: float, size: int | None
) -> Manifest:
    manifest, note = bundle.manifest, {"ratio": str(ratio), "weight": weight}
    inference = manifest.inference
    if size is not None:
        inference = replace(inference, radius=round(inference.radius * size / (manifest.size or DEFAULT_SIZE), 2))
    kept: dict[str, Any] = {key: value for key, value in manifest.provenance.items() if key != PROVENANCE_KEY}
    said = f"joined with embeddings of the frame at {ratio} of its size, which count {weight:g}"
    return replace(
        manifest,
        name=f"{manifest.name}-scales"[:100],
        summary=f"{manifest.summary.rstrip('.')}; {said}."[:_SUMMARY],
        encoder=replace(manifest.encoder, channels=2 * manifest.encoder.channels, output_name=OUTPUT_NAME),
        graphs=entries,
        inference=inference,
        size=size or manifest.size,
        provenance=kept | {"scales": note},
    )
