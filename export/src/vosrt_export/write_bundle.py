"""Export of a checkpoint to a bundle on disk: export, compare, write, and move to its place at last."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from vosrt._files import LOCK, locked, replacing, sync_folder, write_all, writing
from vosrt.bundle import (
    MANIFEST_NAME,
    Bundle,
    EncoderSpec,
    Feature,
    GraphFile,
    GraphPrecision,
    Manifest,
    MaskSpec,
    WeightPrecision,
    file_sha256,
    load_bundle,
    write_manifest,
)
from vosrt.cli.stages import Tell, silent
from vosrt.engines.tensorrt_files import FOLDER, holds_engines_only
from vosrt.errors import BundleError, OptionError, OutputError
from vosrt.types import PropagationOptions
from vosrt_export.errors import ExportError
from vosrt_export.graphs import EncoderGraph, check_feature, default_feature
from vosrt_export.mask_graphs import export_mask_graphs
from vosrt_export.onnx import INPUT_NAME, OPSET, OUTPUT_NAME, export_onnx
from vosrt_export.verify import SIZES, TOLERANCES, Comparison, compare
from vosrt_export.verify_masks import MASK_CASES, MaskComparison, compare_masks
from vosrt_export.verify_masks import TOLERANCES as MASK_TOLERANCES
from vosrt_train.backbones import kind_of
from vosrt_train.bundle_weights import FILE_NAME as REMAINDER_NAME
from vosrt_train.bundle_weights import PROVENANCE_KEY, pack_remainder
from vosrt_train.checkpoint import Checkpoint, Inference, load_checkpoint
from vosrt_train.masks.networks import MaskEmbedding
from vosrt_train.model import Encoder
from vosrt_train.run_folder import weights_of

GRAPH_FILE = "encoder.onnx"
PUBLISHED = "published"
_GUIDED = 4
_OWN_FILES = {MANIFEST_NAME, REMAINDER_NAME}
_PUBLISHED_STRIDE = 8
# Reference and appearance frames stay; beside them, the last five frames (Li et al. 2023).
MASK_INFERENCE = PropagationOptions(context=5, pad_context=False)
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of a bundle.

    Attributes:
        feature: the map that becomes the embedding; None: res4, or res3 without layer4.
        name: of the model; None makes one from what it is.
        summary: one line for people; None makes one.
        propagation: bundle whose settings of propagation this one gets, with its size; ``"published"`` for those of the
            papers. None: of the bundle that the training started from or had as its teacher, else as published. The
            four below change one each.
        size: default short side of the working frame in pixels; None: as above, else 480.
        context: recent frames that are kept; None, as published: 20, or 5 with mask embedding.
        pad_context: whether frames before the reference are replaced by copies of it; None, as published: yes, or no
            with mask embedding.
        guided: radius of the filter that shown masks are guided with, in half-resolution pixels; None: 4, but as
            published, 0, where ``propagation`` says so.
        rounds: of refinement, unless the user says otherwise; for mask embedding alone.
        feedback: whether refined masks are what later frames read (see `vosrt.bundle.MaskSpec`).
        correction: by which the logits of a residual decoder are multiplied: below 1 it has to be surer of itself to
            overrule what was propagated.
        align_corners: whether masks are sampled as published, or where the features of our own networks look (see
            `vosrt.bundle.EncoderSpec`).
    """

    feature: Feature | None = None
    weights: WeightPrecision = "fp16"
    name: str | None = None
    summary: str | None = None
    propagation: str | None = None
    size: int | None = None
    context: int | None = None
    pad_context: bool | None = None
    guided: int | None = None
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
    checkpoint_path: Path,
    output: Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    tell: Tell = silent,
) -> Comparison:
    """Export a checkpoint to a bundle. The bundle appears whole or not at all.

    Args:
        checkpoint_path: the safetensors file, or the folder of a run, whose best weights are taken, else its last.
        tell: is called with each stage of the work.

    Returns:
        The figures of the comparison between the checkpoint and the exported graph.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not one of this network.
        OptionError: the checkpoint lacks the feature, or an option does not fit it.
        OutputError: the output exists or cannot be written.
        ExportError: the exported graph does not compute what the checkpoint does.
    """
    options = options or ExportOptions()
    check_output(output, overwrite)
    checkpoint_path = weights_of(checkpoint_path)
    checkpoint = load_checkpoint(checkpoint_path)
    feature = options.feature or _default_feature(checkpoint)
    check_feature(checkpoint.encoder, feature)
    inference = _inference(checkpoint, options)
    if options.align_corners and checkpoint.masks is not None:
        raise OptionError(
            f"align_corners is set, but {checkpoint_path} has a mask embedding, which never aligns corners"
        )
    tell("turning PyTorch into ONNX")
    graphs, mask_comparison = _export_graphs(checkpoint, feature, options)
    tell("comparing PyTorch with ONNX Runtime")
    comparison = compare(checkpoint.encoder, feature, graphs["encoder"])
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
        graphs={role: graph_file(role, graph, options.weights) for role, graph in graphs.items()},
        inference=inference.options,
        size=inference.size,
        enlarge_percent=inference.enlarge_percent,
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
    files = {f"{role}.onnx": graph for role, graph in graphs.items()}
    write_files(manifest, files | ({} if remainder is None else {REMAINDER_NAME: remainder}), output)
    return comparison


def _export_graphs(
    checkpoint: Checkpoint, feature: Feature, options: ExportOptions
) -> tuple[dict[str, bytes], MaskComparison | None]:
    """Return the graphs by role, and how those of the mask networks compare with them, if there are any.

    Raises:
        ExportError: a mask graph does not compute what the checkpoint does.
    """
    if checkpoint.masks is None:
        return {"encoder": export_onnx(EncoderGraph(checkpoint.encoder, feature), options.weights)}, None
    assert isinstance(checkpoint.encoder, Encoder)  # no other is read together with masks
    _weaken(checkpoint.masks, options.correction)
    graphs = export_mask_graphs(checkpoint.encoder, checkpoint.masks, feature, options.weights)
    comparison = compare_masks(checkpoint.encoder, checkpoint.masks, graphs)
    if not comparison.passes(MASK_TOLERANCES[options.weights]):
        raise ExportError(
            f"the exported mask graphs do not compute what the checkpoint does: {comparison}; expected up to "
            f"{MASK_TOLERANCES[options.weights]:g}; nothing was written"
        )
    return graphs, comparison


def _default_feature(checkpoint: Checkpoint) -> Feature:
    """Return the feature that the mask networks were trained with, or the default one without them."""
    have = checkpoint.encoder.config.channels
    return "key" if checkpoint.masks is not None and "key" in have else default_feature(checkpoint.encoder)


def graph_file(role: str, graph: bytes, precision: GraphPrecision) -> GraphFile:
    """The entry of a graph that a bundle holds itself."""
    digest = hashlib.sha256(graph).hexdigest()
    return GraphFile(file=f"{role}.onnx", sha256=digest, bytes=len(graph), precision=precision)


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
    """Pack the file for further training; None for encoders that training does not take."""
    return pack_remainder(checkpoint.encoder, feature) if isinstance(checkpoint.encoder, Encoder) else None


def _weaken(masks: MaskEmbedding, correction: float) -> None:
    """Multiply the logits of the decoder by a number."""
    if correction == 1:
        return
    if not masks.config.residual:
        raise OptionError(f"correction is {correction:g}, but this decoder draws masks instead of correcting them")
    with torch.no_grad():
        for parameter in masks.decoder.predict.parameters():
            parameter.mul_(correction)


def _inference(checkpoint: Checkpoint, options: ExportOptions) -> Inference:
    """Return how the bundle propagates: as another one, or as published, but for what the options change."""
    if options.propagation is not None and options.propagation != PUBLISHED:
        base = Inference.of(load_bundle(options.propagation).manifest)
    elif checkpoint.inference is not None and checkpoint.masks is None and options.propagation is None:
        base = checkpoint.inference
    else:
        published = PropagationOptions() if checkpoint.masks is None else MASK_INFERENCE
        radius = published.radius * _PUBLISHED_STRIDE / checkpoint.encoder.config.stride  # 96 pixels
        guided = 0 if options.propagation == PUBLISHED else _GUIDED
        base = Inference(options=replace(published, radius=radius, guided=guided))
    changes = {name: getattr(options, name) for name in ("context", "pad_context", "guided")}
    changed = replace(base.options, **{name: value for name, value in changes.items() if value is not None})
    if options.align_corners:  # its cells have no parts
        changed = replace(changed, parts=1)
    return replace(base, options=changed, size=base.size if options.size is None else options.size)


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


@contextmanager
def claimed(output: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold the place of a bundle, so that another command that makes one there is refused at once.

    Raises:
        OutputError: another process holds it, or as for `check_output`.
    """
    check_output(output, overwrite)
    with locked(output, "{folder}: another command (process {process}) makes a bundle there; wait, or name another"):
        yield


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse an output that a bundle may not replace, before any work.

    Raises:
        OutputError: it holds something already, or cannot be written.
    """
    if not output.parent.is_dir():
        raise OutputError(f"cannot write the bundle {output}: there is no folder {output.parent}; make it first")
    if output.is_symlink():
        raise OutputError(f"{output} is a link; name the directory itself")
    if not output.exists() or (output.is_dir() and not {each.name for each in output.iterdir()} - {LOCK}):
        return
    if not overwrite:
        raise OutputError(f"{output} is there already; name another directory, or replace a bundle with --overwrite")
    try:
        graphs = load_bundle(output).manifest.graphs.values()
        own = (*(each for each in graphs if each.bundle is None), *(each.adds for each in graphs if each.adds))
        files = {each.file for each in own}
    except BundleError as error:
        raise OutputError(
            f"{output} is not a whole bundle and is not replaced ({error}); remove it yourself"
        ) from error
    if holds_engines_only(output / FOLDER):
        files.add(FOLDER)
    if strangers := sorted({entry.name for entry in output.iterdir()} - files - _OWN_FILES - {LOCK}):
        raise OutputError(f"{output} holds more than a bundle ({strangers[0]}) and is not replaced; remove it yourself")


def own_graphs(bundle: Bundle, without: Sequence[str] = ()) -> tuple[dict[str, GraphFile], dict[str, bytes]]:
    """Graphs for a bundle that is made from this one and needs no other, by role, and their files by name."""
    entries, files = dict[str, GraphFile](), dict[str, bytes]()
    for role, graph in bundle.manifest.graphs.items():
        if role in without:
            continue
        content = bundle.graph(role).content
        if graph.adds is not None:  # one message, as others write them
            content = onnx.load_from_string(content).SerializeToString(deterministic=True)
        entries[role] = graph_file(role, content, graph.precision)
        files[entries[role].file] = content
    return entries, files


def whole_copy(bundle: Bundle) -> tuple[dict[str, GraphFile], dict[str, bytes]]:
    """As `own_graphs`, with the file for further training where the bundle has it."""
    entries, files = own_graphs(bundle)
    if (remainder := bundle.path / REMAINDER_NAME).is_file():
        files[REMAINDER_NAME] = remainder.read_bytes()
    return entries, files


def write_files(manifest: Manifest, files: Mapping[str, bytes], output: Path) -> None:
    """Write a bundle beside its place and rename it, so that it appears whole or not at all.

    Raises:
        WorkError: the system refused; what was there before stays.
    """
    token = secrets.token_hex(4)
    place = output.resolve()
    fresh = place.with_name(f".{place.name}.{token}.tmp")
    old = place.with_name(f".{place.name}.{token}.old")
    with writing(output):
        fresh.mkdir()
        try:
            for name, content in files.items():
                with replacing(fresh / name) as file:
                    write_all(file, content)
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
            sync_folder(place.parent)
        finally:
            for leftover in (fresh, old):
                if leftover.exists():
                    shutil.rmtree(leftover)
