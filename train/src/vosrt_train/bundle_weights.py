"""From a bundle back to weights that can be trained further.

A bundle's graph has every batch-norm folded into the convolution before it, and ends at the embedding. What that
loses is small, and lies beside the graph in ``training.safetensors``: the vectors of the batch-norms, and the key head
where the embedding does not need it. Both together give the encoder back, up to the rounding of the stored weights.
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

from vosrt.bundle import Bundle, Feature, file_sha256, load_bundle
from vosrt.errors import BundleError, MissingExtraError
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Training
from vosrt_train.config import EncoderConfig
from vosrt_train.model.encoder import Encoder, empty_encoder

FILE_NAME = "training.safetensors"
PROVENANCE_KEY = "trainable"

_METADATA_KEY = "vosrt"
_KERNEL_DIMS = 4
_SMALLEST_SCALE = 1e-6


def pack_remainder(encoder: Encoder, feature: Feature) -> bytes:
    """What a graph that ends at ``feature`` does not hold of an encoder: the content of ``training.safetensors``.

    Layer4 is left out where the feature is res3: fine-tuning then goes on without it.

    Args:
        encoder: the network as trained.
        feature: the map that the graph ends at.
    """
    kept = part_of(encoder, layer4=feature != "res3")
    remainder = {
        name: (tensor.half() if tensor.dim() == _KERNEL_DIMS else tensor).contiguous()
        for name, tensor in kept.state_dict().items()
        if not (tensor.dim() == _KERNEL_DIMS and (feature == "key" or name.startswith("backbone.")))
    }
    return save(remainder, {_METADATA_KEY: json.dumps(asdict(kept.config), sort_keys=True)})


def load_trainable(path: Path | str) -> Checkpoint:
    """Read the encoder of a bundle as it was trained.

    Args:
        path: the bundle's directory, or the name of a packaged one.

    Raises:
        BundleError: it is not a whole bundle.
        CheckpointError: it holds nothing to train further, or not an encoder of this project.
        MissingExtraError: reading graphs needs onnx.
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


def part_of(encoder: Encoder, *, layer4: bool) -> Encoder:
    """The encoder, or a copy without layer4 and the key head."""
    if encoder.config.layer4 == layer4 or layer4:
        return encoder
    part = empty_encoder(replace(encoder.config, layer4=False))
    wanted = part.state_dict().keys()
    part.load_state_dict({name: tensor for name, tensor in encoder.state_dict().items() if name in wanted})
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
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(content), EncoderConfig(**json.loads(header["__metadata__"][_METADATA_KEY]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}; copy the bundle again") from error


def _graph_weights(bundle: Bundle) -> dict[str, Tensor]:
    """The weights in the encoder's graph, in fp32 and by the names of the network."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnx, to read a bundle's weights", "train") from error
    model = onnx.load(bundle.graph_path("encoder"), load_external_data=False)
    weights: dict[str, Tensor] = {}
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("encoder.").removesuffix(".fp16")
        weights[name] = torch.from_numpy(numpy_helper.to_array(tensor).astype("float32"))
    stem = weights.get("backbone.conv1.weight")
    if stem is not None:
        weights["backbone.conv1.weight"] = stem.flip(1)  # the graph takes BGR
    return weights


def _inverse_scale(encoder: Encoder, norm: str, vectors: Mapping[str, Tensor]) -> Tensor:
    """By what a folded kernel is to be multiplied: sqrt(var + eps) / gamma, f32 [outputs, 1, 1, 1].

    A channel that gamma has closed tells nothing of its kernel, which becomes 0.
    """
    module = cast(nn.BatchNorm2d, encoder.get_submodule(norm))
    scale = vectors[f"{norm}.weight"] / (vectors[f"{norm}.running_var"] + module.eps).sqrt()
    return torch.where(scale.abs() > _SMALLEST_SCALE, 1 / scale, 0.0)[:, None, None, None]


def _followed_by_norm(encoder: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each convolution that is followed by a batch-norm, and of that."""
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
