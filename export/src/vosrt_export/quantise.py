"""``vos-export quantise``: a bundle with an int8 encoder beside its own, refused unless it follows objects as well.

Post-training quantisation by ONNX Runtime's tools: quantise / dequantise pairs around convolutions, matrix products
and residual sums, weights int8 per channel, activations with ranges seen on unlabelled clips. Then the gate: J&F on
annotated sequences, before and after. If too much is lost, the layers that alone cost most are left as they were, twice
as many at each attempt, until little enough is lost.
"""

from __future__ import annotations

import copy
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

from vosrt.bundle import Bundle, Manifest, encoder_role, load_bundle
from vosrt.cli.stages import Tell, silent
from vosrt.core.native import resize_bgr
from vosrt.encoder import working_size
from vosrt.engines.select import create_encoder_engine
from vosrt.errors import OptionError
from vosrt.model import Model, mask_engines
from vosrt.types import DEFAULT_SIZE, F32Array, U8Array
from vosrt.video.source import open_source
from vosrt_export.errors import ExportError
from vosrt_export.verify import Comparison, summarise
from vosrt_export.write_bundle import check_output, graph_file, whole_copy, write_files
from vosrt_train.validate import DavisSequence, find_sequences, validate

_SENSITIVITY_FRAMES = 4
_LAYERS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """Settings of the quantisation, and the loss that it may cost.

    Attributes:
        max_drop: points of J&F, of 100, that may be lost.
        frames: to calibrate on, spread evenly over the clips.
        size: short side in pixels that clips and sequences are worked on at; None is the bundle's default.
        symmetric: activations in int8 around zero, which every engine takes; otherwise uint8, which TensorRT refuses.
        sequences: names of the annotated ones to measure on; none is all.
        threads: 0 is one per processor.
    """

    max_drop: float = 0.5
    frames: int = 32
    size: int | None = None
    symmetric: bool = True
    sequences: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop <= 100):
            raise OptionError(f"max_drop is {self.max_drop}; expected 0 to 100 points of J&F")
        if not 1 <= self.frames <= 10_000:
            raise OptionError(f"frames is {self.frames}; expected 1 to 10000")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Result of a quantisation.

    Attributes:
        before: J&F of the bundle as it was, 0 to 100.
        layers: number of layers that could be quantised.
        kept: names of those that were not.
        comparison: embeddings after against before, on calibration frames.
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
    path: str,
    output: Path,
    clips: Sequence[str],
    davis: Path,
    options: QuantiseOptions,
    *,
    overwrite: bool = False,
    tell: Tell = silent,
) -> Quantised:
    """Add an int8 encoder to a bundle; all that it had stays as it is. The new bundle appears whole or not at all.

    Args:
        path: the bundle's directory, or the name of a packaged one.
        clips: videos or folders of images without labels, to calibrate on.
        davis: annotated sequences to measure on, in the layout of DAVIS.

    Raises:
        BundleError: the bundle is not whole.
        InputError: a clip or a sequence cannot be read.
        OptionError: the bundle's only encoder is quantised already.
        OutputError: the output exists or cannot be written.
        QuantisationRefusedError: too much is lost even with the most sensitive layers kept.
    """
    check_output(output, overwrite)
    bundle = load_bundle(path)
    if bundle.manifest.graphs["encoder"].quantised:
        raise OptionError(f"bundle {path} is quantised already; give the one that it was made from")
    sequences = find_sequences(davis, options.sequences)
    size = options.size or bundle.manifest.size
    frames = calibration_frames(clips, options.frames, options.size, bundle.manifest)
    with tempfile.TemporaryDirectory() as folder:
        work = Quantisation(bundle, frames, options, Path(folder), tell)
        result, model = _pass_the_gate(work, sequences, size, options.max_drop)
    note = {
        "calibration": {"clips": len(clips), "frames": len(frames)},
        "layers": result.layers,
        "kept_in_float": list(result.kept),
        **_verification(result, options, [each.name for each in sequences]),
    }
    write_with_int8(bundle, model, note, output, symmetric=options.symmetric)
    return result


def write_with_int8(bundle: Bundle, model: bytes, note: dict[str, Any], output: Path, *, symmetric: bool) -> None:
    """Write a copy of a bundle that carries an int8 encoder besides all that it had.

    Args:
        model: the graph, of `Quantisation.quantise`.
        note: how it was made and what it loses, for the manifest's verification.
        symmetric: whether activations are in int8 around zero, or in uint8.

    Raises:
        OutputError: the bundle cannot be written.
    """
    entries, files = whole_copy(bundle)
    entry = graph_file(encoder_role("int8"), model, "int8")
    about = {
        "from_sha256": entries["encoder"].sha256,
        "weights": "int8 per channel",
        "activations": "int8 symmetric" if symmetric else "uint8",
    }
    verification = {**bundle.manifest.verification, "int8": {**about, **note}}
    manifest = replace(bundle.manifest, graphs={**entries, encoder_role("int8"): entry}, verification=verification)
    write_files(manifest, {**files, entry.file: model}, output)


def calibration_frames(clips: Sequence[str], count: int, size: int | None, manifest: Manifest) -> list[U8Array]:
    """Frames spread evenly over clips, and over each clip, at a bundle's working size or ``size``: u8 [H, W, 3] each.

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
                    side, percent = (size, None) if size else (manifest.size or DEFAULT_SIZE, manifest.enlarge_percent)
                    height, width = working_size(manifest.encoder, given[0], given[1], side, enlarge_percent=percent)
                    frames.append(resize_bgr(frame.image, height, width))
                if position >= max(steps, default=-1):
                    break
        finally:
            source.close()
    return frames


def _pass_the_gate(
    work: Quantisation, sequences: Sequence[DavisSequence], size: int | None, max_drop: float
) -> tuple[Quantised, bytes]:
    def j_and_f(graph: Path, what: str) -> float:
        work.tell(f"J&F {what}, on {len(sequences)} sequences")
        return 100 * validate(work.model(graph), sequences, size).j_and_f

    before = j_and_f(work.float_graph, "before")
    ranking: list[str] | None = None
    kept, tried = 0, list[str]()
    while kept < len(work.layers):
        if kept and ranking is None:
            ranking = work.most_sensitive_first()
        names = tuple(ranking[:kept]) if ranking else ()
        graph = work.quantise([layer for layer in work.layers if layer not in names])
        after = j_and_f(graph, f"in int8 with {kept} of {len(work.layers)} layers kept in float")
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
    """The graph of a bundle before and after, on disk, as the tools of ONNX Runtime require.

    Args:
        frames: to calibrate on, each u8 [H, W, 3] BGR at the working size.
        folder: for the graphs; must outlive this.

    Attributes:
        float_graph: the graph as it was, with weights in fp32.
        layers: nodes that can be quantised.
    """

    def __init__(
        self,
        bundle: Bundle,
        frames: Sequence[U8Array],
        options: QuantiseOptions,
        folder: Path,
        tell: Tell = silent,
    ) -> None:
        self.tell = tell
        self._bundle, self._frames, self._options, self._folder = bundle, frames, options, folder
        self._proto = weights_in_fp32(onnx.load_from_string(bundle.graph("encoder").content))
        self.float_graph = self._save(self._proto, "float")
        self.layers = quantisable(self._proto)
        calibrator = _tool("calibrate").create_calibrator(
            self.float_graph,
            op_types_to_calibrate=sorted({*_LAYERS, "Add"}),
            augmented_model_path=str(folder / "augmented.onnx"),
            extra_options={"symmetric": options.symmetric},
        )
        calibrator.collect_data(_Reader(frames, bundle.manifest.encoder.input_name, tell))
        self._ranges = calibrator.compute_data()
        self._right = [self._embed(self.float_graph, frame) for frame in frames[:_SENSITIVITY_FRAMES]]

    def quantise(self, layers: Sequence[str]) -> Path:
        """Quantise these layers of the graph."""
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
        # New nodes are appended at the end; ONNX and TensorRT require every node after its inputs.
        quantizer.model.topological_sort()
        onnx.checker.check_model(quantizer.model.model, full_check=True)
        return self._save(quantizer.model.model, "int8")

    def title(self, layer: str) -> str:
        """Return a readable name of a node: that of its weight, if it has one."""
        node = next(node for node in self._proto.graph.node if node.name == layer)
        return str(node.input[1]).removeprefix("encoder.") if node.op_type in _LAYERS else layer

    def most_sensitive_first(self) -> list[str]:
        """Sort layers by the error of the embedding when each is quantised alone, the largest first."""
        errors = dict[str, float]()
        for layer in self.layers:
            self.tell(f"which layers suffer most: {len(errors) + 1} of {len(self.layers)}")
            errors[layer] = self._error(self.quantise([layer]))
        return sorted(self.layers, key=lambda layer: -errors[layer])

    def compare(self, graph: Path) -> Comparison:
        """Compare the embeddings of a graph with those of the float graph."""
        return summarise(
            [(right, self._embed(graph, frame)) for right, frame in zip(self._right, self._frames, strict=False)]
        )

    def model(self, graph: Path) -> Model:
        """Build the runtime around a graph, in fp32 except for quantised layers."""
        manifest, options = self._bundle.manifest, self._options
        engine = create_encoder_engine(graph, manifest.encoder, engine="cpu", precision="fp32", threads=options.threads)
        engines = {"encoder": engine, **mask_engines(self._bundle, engine.info, threads=options.threads)}
        return Model(manifest, engines, precision="fp32", threads=options.threads)

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
    """Frames in the interface of ONNX Runtime's calibration."""

    def __init__(self, frames: Sequence[U8Array], input_name: str, tell: Tell) -> None:
        self._inputs = self._read(frames, input_name, tell)

    @staticmethod
    def _read(frames: Sequence[U8Array], input_name: str, tell: Tell) -> Iterator[dict[str, U8Array]]:
        for index, frame in enumerate(frames):
            tell(f"calibrating: frame {index + 1} of {len(frames)}")
            yield {input_name: frame[None]}

    def get_next(self) -> dict[str, U8Array] | None:
        return next(self._inputs, None)


def _tool(module: str) -> Any:
    """Import a module of ONNX Runtime's quantisation, which has no types."""
    return importlib.import_module(f"onnxruntime.quantization.{module}")


def weights_in_fp32(model: ModelProto) -> ModelProto:
    """Copy a model with its weights in the type of their use, instead of fp16 with casts."""
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
    """Return the names of convolutions, matrix products with weights, and sums of two maps."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in _LAYERS and node.input[1] in constants)
        or (node.op_type == "Add" and not constants.intersection(node.input))
    ]


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
