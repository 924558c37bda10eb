"""Recovery of trainable weights from a bundle.

The graph of a bundle has every batch-norm folded into the convolution before it, and ends at the embedding.
``training.safetensors`` beside it holds the rest: the vectors of the batch-norms, and the key head where the embedding
does not need it. Together they give the encoder back, up to the rounding of the stored weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vosrt._reading import WEIGHTS_BYTES, read_bytes
from vosrt.bundle import MANIFEST_NAME, Bundle, Feature, file_sha256, is_packaged, load_bundle
from vosrt.errors import BundleError, MissingExtraError
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Inference, Training, load_checkpoint
from vosrt_train.config import EncoderConfig
from vosrt_train.model.encoder import Encoder, empty_encoder
from vosrt_train.run_folder import weights_of

FILE_NAME = "training.safetensors"
PROVENANCE_KEY = "trainable"

_METADATA_KEY = "vosrt"
_KERNEL_DIMS = 4
_SMALLEST_SCALE = 1e-6


def pack_remainder(encoder: Encoder, feature: Feature) -> bytes:
    """Pack the part of an encoder that a graph ending at ``feature`` lacks: the content of ``training.safetensors``.

    Without layer4 where the feature is res3: fine-tuning then continues without it.

    Args:
        feature: the map at which the graph ends.
    """
    kept = part_of(encoder, layer4=feature != "res3")
    remainder = {
        name: (tensor.half() if tensor.dim() == _KERNEL_DIMS else tensor).contiguous()
        for name, tensor in kept.state_dict().items()
        if not (tensor.dim() == _KERNEL_DIMS and (feature == "key" or name.startswith("backbone.")))
    }
    return save(remainder, {_METADATA_KEY: json.dumps(asdict(kept.config), sort_keys=True)})


def load_trainable(path: Path | str) -> Checkpoint:
    """Read the trainable encoder of a bundle.

    Args:
        path: the bundle's directory, or the name of a packaged one.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the bundle holds no trainable weights, or another kind of encoder.
        MissingExtraError: onnx is not installed.
    """
    bundle = load_bundle(path)
    remainder, config = _read_remainder(bundle)
    graph = _graph_weights(bundle)
    encoder = empty_encoder(config)
    norms = dict(_followed_by_norm(encoder))
    try:
        tensors = dict(remainder)
        for name in encoder.state_dict().keys() - remainder.keys():
            norm = norms.get(name.removesuffix(".weight"))
            tensors[name] = graph[name] * (1 if norm is None else _inverse_scale(encoder, norm, remainder))
        encoder.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"bundle {bundle.path} does not hold a whole encoder to train further: {reason}"
        ) from error
    return Checkpoint(encoder.eval(), _training(bundle))


def is_bundle(source: str) -> bool:
    """Return whether a source of weights is a bundle, packaged or a folder, rather than a checkpoint or a run."""
    return is_packaged(source) or (Path(source) / MANIFEST_NAME).is_file()


def inference_of(source: str) -> Inference | None:
    """Return how a bundle propagates masks, or the one that a checkpoint or run came from.

    None for one that came from no bundle, and for bundles with mask embedding, whose settings suit refined masks.

    Raises:
        BundleError: the bundle is not whole.
        CheckpointError: the checkpoint is missing or damaged.
    """
    if not is_bundle(source):
        return load_checkpoint(weights_of(Path(source))).inference
    manifest = load_bundle(source).manifest
    return Inference.of(manifest) if manifest.family == "correspondence" else None


def part_of(encoder: Encoder, *, layer4: bool) -> Encoder:
    """Return the encoder, or a copy without layer4 and the key head."""
    if encoder.config.layer4 == layer4 or layer4:
        return encoder
    part = empty_encoder(replace(encoder.config, layer4=False))
    names = part.state_dict().keys()
    part.load_state_dict({name: tensor for name, tensor in encoder.state_dict().items() if name in names})
    return part.train(encoder.training)


def _read_remainder(bundle: Bundle) -> tuple[Mapping[str, Tensor], EncoderConfig]:
    note = bundle.manifest.provenance.get(PROVENANCE_KEY)
    file = bundle.path / FILE_NAME
    if not isinstance(note, dict) or not file.is_file():
        raise CheckpointError(
            f"bundle {bundle.path} holds a network for running only; start from the checkpoint (.safetensors) that it "
            "was exported from, or export it again"
        )
    if file_sha256(file) != note.get("sha256"):
        raise BundleError(f"{file} was altered: its SHA-256 is not what the manifest says; copy the bundle again")
    try:
        content = read_bytes(file, WEIGHTS_BYTES)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(content), EncoderConfig(**json.loads(header["__metadata__"][_METADATA_KEY]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}; copy the bundle again") from error


def _graph_weights(bundle: Bundle) -> dict[str, Tensor]:
    """Read the weights of the encoder's graph, in fp32 and under the names of the network."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnx, to read a bundle's weights", "train") from error
    model = onnx.load_from_string(bundle.graph("encoder").content)
    weights: dict[str, Tensor] = {}
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("encoder.").removesuffix(".fp16")
        weights[name] = torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))
    stem = weights.get("backbone.conv1.weight")
    if stem is not None:
        weights["backbone.conv1.weight"] = stem.flip(1)  # the graph takes BGR
    return weights


def _inverse_scale(encoder: Encoder, norm: str, vectors: Mapping[str, Tensor]) -> Tensor:
    """Factor that undoes the folding of a batch-norm: sqrt(var + eps) / gamma, f32 [outputs, 1, 1, 1].

    Where gamma is 0, the folded kernel is lost; it becomes 0.
    """
    module = cast(nn.BatchNorm2d, encoder.get_submodule(norm))
    scale = vectors[f"{norm}.weight"] / (vectors[f"{norm}.running_var"] + module.eps).sqrt()
    return torch.where(scale.abs() > _SMALLEST_SCALE, 1 / scale, 0.0)[:, None, None, None]


def _followed_by_norm(encoder: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of each convolution that a batch-norm follows, and of that batch-norm."""
    for prefix, module in encoder.named_modules():
        for (conv_name, conv), (norm_name, norm) in pairwise(module.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield f"{prefix}.{conv_name}", f"{prefix}.{norm_name}"


def _training(bundle: Bundle) -> Training:
    provenance: Mapping[str, Any] = bundle.manifest.provenance
    training = provenance.get("training")
    summary = training.get("summary") if isinstance(training, dict) else None
    return Training(
        trained=bundle.manifest.trained,
        seed=0,
        summary=str(summary or bundle.manifest.summary),
        licence=str(provenance.get("licence", "not stated")),
    )
