"""``vos-export quantise``: an int8 bundle that is refused unless it follows objects as well as before.

Post-training quantisation by ONNX Runtime's tools: quantise / dequantise pairs around convolutions, matrix products
and residual sums, weights int8 per channel, activations with ranges seen on unlabelled clips. Then the gate: J&F on
annotated sequences, before and after. If too much is lost, the layers that alone cost most are left as they were, twice
as many at each attempt, until little enough is lost.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from vosrt.bundle import Bundle, EncoderSpec, GraphFile, Manifest, load_bundle
from vosrt.encoder import working_size
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import OptionError
from vosrt.model import Model
from vosrt.ops import resize_bgr
from vosrt.types import F32Array, U8Array
from vosrt.video.source import open_source
from vosrt_export.onnx import ExportError
from vosrt_export.verify import Comparison, summarise
from vosrt_export.write_bundle import GRAPH_FILE, check_output, write_files
from vosrt_train.bundle_weights import PROVENANCE_KEY
from vosrt_train.validate import AnnotatedSequence, find_sequences, validate

_SENSITIVITY_FRAMES = 4
_LAYERS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """How to quantise, and when to be content.

    Attributes:
        max_drop: points of J&F, of 100, that may be lost.
        frames: to calibrate on, spread evenly over the clips.
        size: short side in pixels that clips and sequences are worked on at; None is the bundle's default.
        symmetric: activations in int8 around zero, as TensorRT needs; otherwise in uint8, which is finer.
        sequences: names of the annotated ones to measure on; none is all.
        threads: 0 is one per processor.
    """

    max_drop: float = 0.5
    frames: int = 32
    size: int | None = None
    symmetric: bool = False
    sequences: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop <= 100):
            raise OptionError(f"max_drop is {self.max_drop}; expected 0 to 100 points of J&F")
        if not 1 <= self.frames <= 10_000:
            raise OptionError(f"frames is {self.frames}; expected 1 to 10000")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What came of it.

    Attributes:
        before: J&F of the bundle as it was, 0 to 100.
        after: J&F of the quantised one.
        layers: number of layers that could be quantised.
        kept: names of those that were not.
        comparison: embeddings after against before, on calibration frames.
        bytes: size of the quantised graph.
    """

    before: float
    after: float
    layers: int
    kept: tuple[str, ...]
    comparison: Comparison
    bytes: int

    @property
    def drop(self) -> float:
        """Points of J&F lost."""
        return self.before - self.after


class QuantisationRefusedError(ExportError):
    """No quantised graph is good enough."""


def quantise_bundle(
    path: str, output: Path, clips: Sequence[str], davis: Path, options: QuantiseOptions, *, overwrite: bool = False
) -> Quantised:
    """Quantise the encoder of a bundle. The new bundle appears whole or not at all.

    Args:
        path: the bundle's directory, or the name of a packaged one.
        output: directory to make.
        clips: videos or folders of images without labels, to calibrate on.
        davis: annotated sequences to measure on, in the layout of DAVIS.
        options: how.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: the bundle is not whole.
        InputError: a clip or a sequence cannot be read.
        OptionError: the bundle is quantised already.
        OutputError: the output is there already or cannot be written.
        QuantisationRefusedError: too much is lost even with the most sensitive layers kept.
    """
    check_output(output, overwrite)
    bundle = load_bundle(path)
    if bundle.manifest.graphs["encoder"].precision == "int8":
        raise OptionError(f"bundle {path} is quantised already; give the one that it was made from")
    sequences = find_sequences(davis, options.sequences)
    size = options.size or bundle.manifest.size
    frames = calibration_frames(clips, options.frames, size, bundle.manifest.encoder)
    with tempfile.TemporaryDirectory() as folder:
        work = Quantisation(bundle, frames, options, Path(folder))
        result, model = _pass_the_gate(work, sequences, size, options.max_drop)
    manifest = _manifest(bundle, model, result, options, clips=len(clips), frames=len(frames))
    manifest = replace(manifest, verification=_verification(result, options, [each.name for each in sequences]))
    write_files(manifest, {GRAPH_FILE: model}, output)
    return result


def calibration_frames(clips: Sequence[str], count: int, size: int | None, spec: EncoderSpec) -> list[U8Array]:
    """Frames spread evenly over clips, and over each clip, at the working size of an encoder: u8 [H, W, 3] each.

    Raises:
        SourceError: a clip cannot be read.
    """
    frames = list[U8Array]()
    for index, clip in enumerate(clips):
        wanted = count * (index + 1) // len(clips) - count * index // len(clips)
        source = open_source(clip)
        try:
            known = source.info.frame_count or wanted
            steps = {known * step // wanted for step in range(wanted)}
            for position, frame in enumerate(source):
                if position in steps:
                    given = frame.image.shape
                    height, width = working_size(spec, given[0], given[1], size, upscale=False)
                    frames.append(resize_bgr(frame.image, height, width))
                if position >= max(steps, default=-1):
                    break
        finally:
            source.close()
    return frames


def _pass_the_gate(
    work: Quantisation, sequences: Sequence[AnnotatedSequence], size: int | None, max_drop: float
) -> tuple[Quantised, bytes]:
    def j_and_f(graph: Path) -> float:
        return 100 * validate(work.model(graph), sequences, size).j_and_f

    before = j_and_f(work.float_graph)
    ranking: list[str] | None = None
    kept, tried = 0, list[str]()
    while kept < len(work.layers):
        if kept and ranking is None:
            ranking = work.most_sensitive_first()
        names = tuple(ranking[:kept]) if ranking else ()
        graph = work.quantise([layer for layer in work.layers if layer not in names])
        after = j_and_f(graph)
        if before - after <= max_drop:
            data = graph.read_bytes()
            comparison = work.compare(graph)
            result = Quantised(
                before=before,
                after=after,
                layers=len(work.layers),
                kept=tuple(work.title(name) for name in names),
                comparison=comparison,
                bytes=len(data),
            )
            return result, data
        tried.append(f"{before - after:.2f} with {kept} of {len(work.layers)} layers kept")
        kept = max(1, 2 * kept)
    raise QuantisationRefusedError(
        f"no int8 engine is good enough: J&F falls from {before:.2f} by {', '.join(tried)}; expected at most "
        f"{max_drop:g}; calibrate on clips like yours, or allow more with --max-drop; nothing was written"
    )


class Quantisation:
    """A bundle's graph before and after, on disk, where ONNX Runtime's tools want it.

    Args:
        bundle: whose encoder is quantised.
        frames: to calibrate on, each u8 [H, W, 3] BGR at the working size.
        options: how.
        folder: for the graphs; must outlive this.

    Attributes:
        float_graph: the graph as it was, with weights in fp32.
        layers: nodes that can be quantised.
    """

    def __init__(self, bundle: Bundle, frames: Sequence[U8Array], options: QuantiseOptions, folder: Path) -> None:
        self._bundle, self._frames, self._options, self._folder = bundle, frames, options, folder
        self._proto = weights_in_fp32(onnx.load(bundle.graph_path("encoder")))
        self.float_graph = self._save(self._proto, "float")
        self.layers = quantisable(self._proto)
        calibrator = _tool("calibrate").create_calibrator(
            self.float_graph,
            op_types_to_calibrate=sorted({*_LAYERS, "Add"}),
            augmented_model_path=str(folder / "augmented.onnx"),
            extra_options={"symmetric": options.symmetric},
        )
        calibrator.collect_data(_Reader(frames, bundle.manifest.encoder.input_name))
        self._ranges = calibrator.compute_data()
        self._right = [self._embed(self.float_graph, frame) for frame in frames[:_SENSITIVITY_FRAMES]]

    def quantise(self, layers: Sequence[str]) -> Path:
        """The graph with these layers quantised."""
        symmetric, kind = self._options.symmetric, _tool("quant_utils").QuantType
        quantizer = _tool("qdq_quantizer").QDQQuantizer(
            copy.deepcopy(self._proto),
            per_channel=True,
            reduce_range=False,
            weight_qType=kind.QInt8,
            activation_qType=kind.QInt8 if symmetric else kind.QUInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=list(layers),
            nodes_to_exclude=[],
            op_types_to_quantize=sorted({*_LAYERS, "Add"}),
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        quantizer.quantize_model()
        return self._save(quantizer.model.model, "int8")

    def title(self, layer: str) -> str:
        """What a node is to people: the name of its weight, if it has one."""
        node = next(node for node in self._proto.graph.node if node.name == layer)
        return str(node.input[1]).removeprefix("encoder.") if node.op_type in _LAYERS else layer

    def most_sensitive_first(self) -> list[str]:
        """Layers by the error of the embedding when each is quantised alone, the largest first."""
        return sorted(self.layers, key=lambda layer: -self._error(self.quantise([layer])))

    def compare(self, graph: Path) -> Comparison:
        """Embeddings of a graph against those of the float one."""
        return summarise(
            [(right, self._embed(graph, frame)) for right, frame in zip(self._right, self._frames, strict=False)]
        )

    def model(self, graph: Path) -> Model:
        """The runtime around a graph, in fp32 but for what is quantised."""
        manifest, options = self._bundle.manifest, self._options
        engine = create_encoder_engine(graph, manifest.encoder, engine="cpu", precision="fp32", threads=options.threads)
        return Model(manifest, {"encoder": engine}, precision="fp32", threads=options.threads)

    def _embed(self, graph: Path, frame: U8Array) -> F32Array:
        return self.model(graph).encode(frame).array[None]

    def _error(self, graph: Path) -> float:
        model = self.model(graph)
        return math.fsum(
            float(1 - (right[0] * model.encode(frame).array).sum(axis=-1).mean())
            for right, frame in zip(self._right, self._frames, strict=False)
        )

    def _save(self, model: ModelProto, name: str) -> Path:
        path = self._folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


class _Reader:
    """Frames as ONNX Runtime's calibration reads them."""

    def __init__(self, frames: Sequence[U8Array], input_name: str) -> None:
        self._inputs: Iterator[dict[str, U8Array]] = ({input_name: frame[None]} for frame in frames)

    def get_next(self) -> dict[str, U8Array] | None:
        return next(self._inputs, None)


def _tool(module: str) -> Any:
    """A module of ONNX Runtime's quantisation, which has no types."""
    return importlib.import_module(f"onnxruntime.quantization.{module}")


def weights_in_fp32(model: ModelProto) -> ModelProto:
    """A copy whose weights are stored as they are used, not as halves that are cast back."""
    converted = copy.deepcopy(model)
    graph = converted.graph
    halves = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for node in list(graph.node):
        if node.op_type == "Cast" and node.input[0] in halves:
            tensor = halves[node.input[0]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
            graph.node.remove(node)
    return converted


def quantisable(model: ModelProto) -> list[str]:
    """Names of convolutions, matrix products with weights, and sums of two maps."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in _LAYERS and node.input[1] in constants)
        or (node.op_type == "Add" and not constants.intersection(node.input))
    ]


def _manifest(
    bundle: Bundle, model: bytes, result: Quantised, options: QuantiseOptions, *, clips: int, frames: int
) -> Manifest:
    manifest = bundle.manifest
    provenance: dict[str, Any] = {key: value for key, value in manifest.provenance.items() if key != PROVENANCE_KEY}
    provenance["quantised"] = {
        "from_sha256": manifest.graphs["encoder"].sha256,
        "weights": "int8 per channel",
        "activations": "int8 symmetric" if options.symmetric else "uint8",
        "calibration": {"clips": clips, "frames": frames},
        "layers": result.layers,
        "kept_in_float": list(result.kept),
    }
    graph = GraphFile(file=GRAPH_FILE, sha256=hashlib.sha256(model).hexdigest(), bytes=len(model), precision="int8")
    name = f"{manifest.name[:90]}-int8"
    return replace(manifest, name=name, graphs={**manifest.graphs, "encoder": graph}, provenance=provenance)


def _verification(result: Quantised, options: QuantiseOptions, sequences: Sequence[str]) -> dict[str, Any]:
    return {
        "compared": "the graph before with the graph after quantisation, on ONNX Runtime CPUExecutionProvider",
        "figures": asdict(result.comparison),
        "gate": {
            "sequences": list(sequences),
            "j_and_f_before": round(result.before, 2),
            "j_and_f_after": round(result.after, 2),
            "max_drop": options.max_drop,
        },
    }
