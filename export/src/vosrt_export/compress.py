"""``vos-export compress``: fewer channels, so that matching costs less.

Embeddings are projected on their principal axes and brought back to unit length. The axes are those of the second
moments of unit vectors, not centred: the projection that keeps most of their inner products, which is what matching
compares (Eckart and Young 1936). Matching costs in proportion to the channels; ``vos-eval`` tells what is lost in J&F.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from vosrt.bundle import ENCODER_ROLES, EncoderSpec, load_bundle
from vosrt.cli.stages import Tell, silent
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import InputError, OptionError
from vosrt.model import Model
from vosrt.types import F32Array, U8Array
from vosrt_export.errors import ExportError
from vosrt_export.quantise import calibration_frames
from vosrt_export.verify import Comparison, summarise
from vosrt_export.write_bundle import GRAPH_FILE, check_output, graph_file, own_graphs, write_files
from vosrt_train.bundle_weights import PROVENANCE_KEY

_SUMMARY = 1000  # characters, as the manifest allows
_CHECKED_FRAMES = 2
_MAX_DIFFERENCE = 2e-3  # axes are stored as halves


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """Result of a compression.

    Attributes:
        channels: before and after.
        energy: share of the squared length of unit embeddings that the axes keep, 0 to 1.
        comparison: the new graph against the old one's embeddings, projected by NumPy.
    """

    channels: tuple[int, int]
    energy: float
    comparison: Comparison


def compress_bundle(
    path: str,
    output: Path,
    clips: Sequence[str],
    channels: int,
    *,
    frames: int = 48,
    overwrite: bool = False,
    tell: Tell = silent,
) -> Compressed:
    """Make a bundle whose embeddings have fewer channels. It appears whole or not at all.

    Args:
        path: the bundle's directory, or the name of a packaged one.
        clips: videos or folders of images, without labels, on which the axes are found.

    Raises:
        BundleError: the bundle is not whole.
        SourceError: a clip cannot be read.
        OptionError: there are not that many channels, or nothing would change.
        OutputError: the output exists or cannot be written.
        ExportError: the new graph does not compute the projection.
    """
    check_output(output, overwrite)
    bundle = load_bundle(path)
    before = bundle.manifest.encoder.channels
    if not 1 <= channels < before:
        raise OptionError(f"channels is {channels}; bundle {path} has {before}: expected 1 to {before - 1}")
    images = calibration_frames(clips, frames, None, bundle.manifest)
    if not images:
        raise InputError(f"{', '.join(clips)}: no frames to find the axes on; name clips with at least one")
    model = Model.load(bundle, engine="cpu", precision="fp32")
    embeddings = []
    for index, image in enumerate(images):
        tell(f"finding the axes: frame {index + 1} of {len(images)}")
        embeddings.append(model.encode(image).array)
    axes, energy = principal_axes(embeddings, channels)
    tell("comparing the new graph with the old one")
    stored = axes.astype(np.float16)
    data = project_graph(onnx.load_from_string(bundle.graph("encoder").content), stored, bundle.manifest.encoder)
    manifest = bundle.manifest
    note: dict[str, Any] = {
        "from_sha256": manifest.graphs["encoder"].sha256,
        "channels": before,
        "energy": round(energy, 4),
        "frames": len(images),
    }
    provenance = {key: value for key, value in manifest.provenance.items() if key != PROVENANCE_KEY}
    encoder = replace(manifest.encoder, channels=channels)
    comparison = _compare(model, data, encoder, images[:_CHECKED_FRAMES], stored.astype(np.float32))
    if not comparison.max_abs <= _MAX_DIFFERENCE:
        raise ExportError(f"the compressed graph does not compute the projection: {comparison}; nothing was written")
    entries, files = own_graphs(bundle, without=ENCODER_ROLES)
    entry = graph_file("encoder", data, manifest.graphs["encoder"].precision)
    manifest = replace(
        manifest,
        name=f"{manifest.name}-{channels}"[:100],
        summary=f"{manifest.summary.rstrip('.')}; {before} channels projected on {channels} principal axes."[:_SUMMARY],
        encoder=encoder,
        graphs={**entries, "encoder": entry},
        verification={
            "compared": "this graph with what the wider one gives, projected in NumPy; both on the CPU in fp32",
            "frames": min(_CHECKED_FRAMES, len(images)),
            "figures": asdict(comparison),
            "tolerance": {"max_abs": _MAX_DIFFERENCE},
        },
        provenance=provenance | {"compressed": note},
    )
    write_files(manifest, {**files, entry.file: data}, output)
    return Compressed(channels=(before, channels), energy=energy, comparison=comparison)


def principal_axes(embeddings: Sequence[F32Array], channels: int) -> tuple[NDArray[np.float64], float]:
    """Compute the axes along which unit embeddings have most of their squared length.

    Args:
        embeddings: f32 [h, w, K] each, unit length per cell.
        channels: number of axes, at most K.

    Returns:
        f64 [channels, K], orthonormal, the strongest first; and the share of the squared length that they keep.
    """
    count = embeddings[0].shape[-1]
    moments = np.zeros((count, count))
    for embedding in embeddings:
        rows = embedding.reshape(-1, count).astype(np.float64)
        moments += rows.T @ rows
    values, vectors = np.linalg.eigh(moments)
    order = np.argsort(values)[::-1][:channels]
    axes = vectors[:, order].T
    axes *= np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)  # a sign of its own, for the same bytes everywhere
    return axes, float(values[order].sum() / values.sum())


def project(embedding: F32Array, axes: F32Array) -> F32Array:
    """Project and normalise to unit length: f32 [..., K] and [channels, K] -> [..., channels]."""
    projected = embedding @ axes.T
    length = np.linalg.norm(projected, axis=-1, keepdims=True)
    return np.asarray(projected / np.maximum(length, 1e-12), dtype=np.float32)


def project_graph(model: ModelProto, axes: NDArray[np.float16], spec: EncoderSpec) -> bytes:
    """Append `project` to the encoder's graph, and serialise it.

    Args:
        model: the graph; changed.
        axes: f16 [channels, K].
        spec: has the name of the output.
    """
    graph, wide = model.graph, f"{spec.output_name}.wide"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == spec.output_name:
                    names[index] = wide
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.ascontiguousarray(axes.T), "axes.fp16"),
            numpy_helper.from_array(np.array([-1], np.int64), "axes.last"),
            numpy_helper.from_array(np.array(1e-12, np.float32), "axes.shortest"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", ["axes.fp16"], ["axes"], name="axes.cast", to=TensorProto.FLOAT),
            helper.make_node("MatMul", [wide, "axes"], ["axes.projected"], name="axes.project"),
            helper.make_node(
                "ReduceL2", ["axes.projected", "axes.last"], ["axes.length"], name="axes.norm", keepdims=1
            ),
            helper.make_node("Max", ["axes.length", "axes.shortest"], ["axes.divisor"], name="axes.floor"),
            helper.make_node("Div", ["axes.projected", "axes.divisor"], [spec.output_name], name="axes.unit"),
        ]
    )
    graph.output[0].type.tensor_type.shape.dim[3].dim_value = len(axes)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _compare(model: Model, data: bytes, spec: EncoderSpec, images: Sequence[U8Array], axes: F32Array) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH_FILE
        path.write_bytes(data)
        engine = create_encoder_engine(path, spec, engine="cpu", precision="fp32", threads=0)
        manifest = replace(model.manifest, encoder=spec)
        small = Model(manifest, {"encoder": engine}, precision="fp32")
        return summarise(
            [(project(model.encode(image).array, axes)[None], small.encode(image).array[None]) for image in images]
        )
