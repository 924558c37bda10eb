"""From a checkpoint to a bundle on disk: export, compare, write, and only then put it in its place."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from vosrt.bundle import (
    MANIFEST_NAME,
    EncoderSpec,
    Feature,
    GraphFile,
    Manifest,
    MaskSpec,
    WeightPrecision,
    file_sha256,
    load_bundle,
    write_manifest,
)
from vosrt.engines.tensorrt_files import FOLDER, holds_engines_only
from vosrt.errors import BundleError, OptionError, OutputError
from vosrt.types import PropagationOptions
from vosrt_export.graphs import EncoderGraph, check_feature, default_feature
from vosrt_export.mask_graphs import export_mask_graphs
from vosrt_export.onnx import INPUT_NAME, OPSET, OUTPUT_NAME, ExportError, export_onnx
from vosrt_export.verify import SIZES, TOLERANCES, Comparison, compare
from vosrt_export.verify_masks import MASK_CASES, MaskComparison, compare_masks
from vosrt_export.verify_masks import TOLERANCES as MASK_TOLERANCES
from vosrt_train.backbones import kind_of
from vosrt_train.bundle_weights import FILE_NAME as REMAINDER_NAME
from vosrt_train.bundle_weights import PROVENANCE_KEY, pack_remainder
from vosrt_train.checkpoint import Checkpoint, load_checkpoint
from vosrt_train.model import Encoder, MaskEmbedding

GRAPH_FILE = "encoder.onnx"
_OWN_FILES = {MANIFEST_NAME, REMAINDER_NAME}
_PUBLISHED_STRIDE = 8
# The reference and appearance frames for ever, and the last five frames (Li et al. 2023).
MASK_INFERENCE = PropagationOptions(context=5, pad_context=False)
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a bundle is to hold.

    Attributes:
        feature: the map that becomes the embedding; None: res4 where there is one, else res3.
        weights: precision that the weights are stored in.
        name: of the model; None makes one from what it is.
        summary: one line for people; None makes one.
        size: default short side of the working frame in pixels; None keeps the frame's own size.
        context: recent frames that are kept; None: as published, 20, or 5 with mask embedding.
        pad_context: whether frames before the reference are replaced by copies of it; None: as published, which is yes,
            or no with mask embedding.
        rounds: of refinement, unless the user says otherwise; for mask embedding alone.
        feedback: whether refined masks are what later frames read (see `vosrt.bundle.MaskSpec`).
        correction: by which the logits of a residual decoder are multiplied: below 1 it has to be surer of itself to
            overrule what was propagated.
        align_corners: whether masks are sampled as published, or where the features of networks trained here look (see
            `vosrt.bundle.EncoderSpec`).
    """

    feature: Feature | None = None
    weights: WeightPrecision = "fp16"
    name: str | None = None
    summary: str | None = None
    size: int | None = None
    context: int | None = None
    pad_context: bool | None = None
    rounds: int = MaskSpec.rounds
    feedback: bool = MaskSpec.feedback
    correction: float = 1.0
    align_corners: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.correction <= 10:
            raise OptionError(f"correction is {self.correction:g}; expected more than 0, at most 10")
        for option, text, longest in (("name", self.name, 100), ("summary", self.summary, 1000)):
            if text is not None and not (0 < len(text) <= longest and text.isprintable()):
                raise OptionError(f"the {option} is {text[:40]!r}; expected 1 to {longest} printable characters")


def export_bundle(
    checkpoint_path: Path, output: Path, options: ExportOptions | None = None, *, overwrite: bool = False
) -> Comparison:
    """Export a checkpoint to a bundle. The bundle appears whole or not at all.

    Args:
        checkpoint_path: the safetensors file.
        output: directory to make.
        options: what the bundle is to hold.
        overwrite: replace a bundle that is there.

    Returns:
        The figures of the comparison between the checkpoint and the exported graph.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not one of this network.
        OptionError: the checkpoint lacks the feature, or an option does not fit it.
        OutputError: the output is there already or cannot be written.
        ExportError: the exported graph does not compute what the checkpoint does.
    """
    options = options or ExportOptions()
    check_output(output, overwrite)
    checkpoint = load_checkpoint(checkpoint_path)
    feature = options.feature or _default_feature(checkpoint)
    check_feature(checkpoint.encoder, feature)
    if options.align_corners and checkpoint.masks is not None:
        raise OptionError(
            f"align_corners is set, but {checkpoint_path} has a mask embedding, which never aligns corners"
        )
    further: dict[str, bytes] = {}
    mask_comparison: MaskComparison | None = None
    if checkpoint.masks is None:
        model = export_onnx(EncoderGraph(checkpoint.encoder, feature), options.weights)
    else:
        assert isinstance(checkpoint.encoder, Encoder)  # no other is read together with masks
        _weaken(checkpoint.masks, options.correction)
        graphs = export_mask_graphs(checkpoint.encoder, checkpoint.masks, feature, options.weights)
        mask_comparison = compare_masks(checkpoint.encoder, checkpoint.masks, graphs)
        if not mask_comparison.passes(MASK_TOLERANCES[options.weights]):
            raise ExportError(
                f"the exported mask graphs do not compute what the checkpoint does: {mask_comparison}; expected up to "
                f"{MASK_TOLERANCES[options.weights]:g}; nothing was written"
            )
        model, further = graphs["encoder"], {role: graph for role, graph in graphs.items() if role != "encoder"}
    comparison = compare(checkpoint.encoder, feature, model)
    tolerance = TOLERANCES[options.weights]
    if not comparison.passes(tolerance):
        raise ExportError(
            f"the exported graph does not compute what the checkpoint does: {comparison}; expected max abs up to "
            f"{tolerance.max_abs:g}, min cosine from {tolerance.min_cosine:g}; nothing was written"
        )
    remainder = _remainder(checkpoint, feature)
    manifest = Manifest(
        family="correspondence" if checkpoint.masks is None else "mask-embedding",
        masks=_mask_spec(checkpoint, options),
        name=options.name or _name(checkpoint, feature),
        trained=checkpoint.training.trained,
        summary=options.summary or _summary(checkpoint, feature),
        encoder=EncoderSpec(
            channels=checkpoint.encoder.config.channels[feature],
            feature=feature,
            stride=checkpoint.encoder.config.stride,
            align_corners=options.align_corners,
            input_name=INPUT_NAME,
            output_name=OUTPUT_NAME,
        ),
        graphs={role: _graph_file(role, graph, options) for role, graph in {"encoder": model, **further}.items()},
        inference=_inference(checkpoint, options),
        size=options.size,
        verification={
            "compared": "PyTorch (fp32) with ONNX Runtime CPUExecutionProvider",
            "sizes": [list(size) for size in SIZES],
            "figures": asdict(comparison),
            "tolerance": asdict(tolerance),
        }
        | _mask_verification(mask_comparison, options),
        provenance=_provenance(checkpoint, checkpoint_path, remainder)
        | ({} if options.correction == 1 else {"correction": options.correction}),
    )
    files = {f"{role}.onnx": graph for role, graph in {"encoder": model, **further}.items()}
    write_files(manifest, files | ({} if remainder is None else {REMAINDER_NAME: remainder}), output)
    return comparison


def _default_feature(checkpoint: Checkpoint) -> Feature:
    """What the masks were learnt with, or what follows best without them."""
    have = checkpoint.encoder.config.channels
    return "key" if checkpoint.masks is not None and "key" in have else default_feature(checkpoint.encoder)


def _graph_file(role: str, graph: bytes, options: ExportOptions) -> GraphFile:
    return GraphFile(
        file=f"{role}.onnx",
        sha256=hashlib.sha256(graph).hexdigest(),
        bytes=len(graph),
        precision=options.weights,
    )


def _mask_spec(checkpoint: Checkpoint, options: ExportOptions) -> MaskSpec | None:
    if checkpoint.masks is None:
        return None
    context: Literal["context", "res3"] = "context" if checkpoint.encoder.config.layer4 else "res3"
    config = checkpoint.masks.config
    return MaskSpec(
        value_channels=config.value_channels,
        context=context,
        rounds=options.rounds,
        residual=config.residual,
        feedback=options.feedback,
    )


def _mask_verification(comparison: MaskComparison | None, options: ExportOptions) -> dict[str, Any]:
    if comparison is None:
        return {}
    return {
        "masks": {
            "cases": [list(case) for case in MASK_CASES],
            "figures": asdict(comparison),
            "tolerance": MASK_TOLERANCES[options.weights],
        }
    }


def _name(checkpoint: Checkpoint, feature: Feature) -> str:
    name = f"{kind_of(checkpoint.encoder.config)}-{feature}" + ("" if checkpoint.masks is None else "-masks")
    return name if checkpoint.training.trained else f"{name}-untrained"


def _summary(checkpoint: Checkpoint, feature: Feature) -> str:
    training = checkpoint.training
    network = f"{kind_of(checkpoint.encoder.config)}, feature {feature}"
    network += "" if checkpoint.masks is None else ", mask embedding"
    if training.trained:
        return f"{network}; {training.summary}."
    return f"{network}, with random weights ({training.summary}): it has learnt nothing."


def _remainder(checkpoint: Checkpoint, feature: Feature) -> bytes | None:
    """The file that training goes on from; there is none for encoders that training does not take."""
    return pack_remainder(checkpoint.encoder, feature) if isinstance(checkpoint.encoder, Encoder) else None


def _weaken(masks: MaskEmbedding, correction: float) -> None:
    """Multiply what the decoder says by a number."""
    if correction == 1:
        return
    if not masks.config.residual:
        raise OptionError(f"correction is {correction:g}, but this decoder draws masks instead of correcting them")
    with torch.no_grad():
        for parameter in masks.decoder.predict.parameters():
            parameter.mul_(correction)


def _inference(checkpoint: Checkpoint, options: ExportOptions) -> PropagationOptions:
    """The published settings; their radius is meant in pixels, 96 of the working frame."""
    published = PropagationOptions() if checkpoint.masks is None else MASK_INFERENCE
    if options.context is not None:
        published = replace(published, context=options.context)
    if options.pad_context is not None:
        published = replace(published, pad_context=options.pad_context)
    return replace(published, radius=published.radius * _PUBLISHED_STRIDE / checkpoint.encoder.config.stride)


def _provenance(checkpoint: Checkpoint, path: Path, remainder: bytes | None) -> dict[str, Any]:
    provenance: dict[str, Any] = {
        "checkpoint_sha256": file_sha256(path),
        "encoder": {"kind": kind_of(checkpoint.encoder.config)} | asdict(checkpoint.encoder.config),
        "training": {"trained": checkpoint.training.trained, "summary": checkpoint.training.summary},
        "licence": checkpoint.training.licence,
        "tools": {tool: version(tool) for tool in _TOOLS} | {"onnx_opset": OPSET},
    }
    if remainder is not None:
        provenance[PROVENANCE_KEY] = {"file": REMAINDER_NAME, "sha256": hashlib.sha256(remainder).hexdigest()}
    return provenance


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a place that a bundle may not take, before any work is done.

    Raises:
        OutputError: it holds something already, or cannot be written.
    """
    if not output.parent.is_dir():
        raise OutputError(f"cannot write the bundle {output}: there is no folder {output.parent}; make it first")
    if output.is_symlink():
        raise OutputError(f"{output} is a link; name the directory itself")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{output} is there already; name another directory, or replace a bundle with --overwrite")
    try:
        files = {graph.file for graph in load_bundle(output, verify_hashes=False).manifest.graphs.values()}
    except BundleError as error:
        raise OutputError(
            f"{output} is not a whole bundle and is not replaced ({error}); remove it yourself"
        ) from error
    if holds_engines_only(output / FOLDER):
        files.add(FOLDER)
    if strangers := sorted({entry.name for entry in output.iterdir()} - files - _OWN_FILES):
        raise OutputError(f"{output} holds more than a bundle ({strangers[0]}) and is not replaced; remove it yourself")


def write_files(manifest: Manifest, files: Mapping[str, bytes], output: Path) -> None:
    """Write a bundle beside its place and rename it, so that it appears whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    token = secrets.token_hex(4)
    place = output.resolve()
    fresh = place.with_name(f".{place.name}.{token}.tmp")
    old = place.with_name(f".{place.name}.{token}.old")
    try:
        fresh.mkdir()
        try:
            for name, content in files.items():
                (fresh / name).write_bytes(content)
            write_manifest(manifest, fresh / MANIFEST_NAME)
            load_bundle(fresh)
            if place.exists():
                place.rename(old)
            try:
                fresh.rename(place)
            except OSError:
                if old.exists():
                    old.rename(place)
                raise
        finally:
            for leftover in (fresh, old):
                if leftover.exists():
                    shutil.rmtree(leftover)
    except OSError as error:
        raise OutputError(f"cannot write the bundle {output}: {error.strerror or error}") from error
