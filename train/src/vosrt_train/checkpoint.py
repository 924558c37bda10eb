"""Checkpoints: safetensors with the configuration in the metadata. No code, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vosrt._files import replacing, write_all, writing
from vosrt._reading import WEIGHTS_BYTES, check_regular
from vosrt.bundle import Manifest
from vosrt.errors import InputError, OptionError, OutputError
from vosrt.types import PropagationOptions
from vosrt_train.backbones import DEFAULT_KIND, default_config, empty_network, kind_of
from vosrt_train.config import EncoderConfig
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.masks.networks import MaskEmbedding, empty_mask_embedding
from vosrt_train.model.contract import VisualConfig, VisualEncoder

FORMAT = 2  # format 1 has no mask embedding; a checkpoint without one is still written in format 1
_METADATA_KEY = "vosrt"
_MASKS = "masks."  # before the names of the mask embedding's tensors


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or not one of this network."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """History of weights.

    Attributes:
        trained: False for weights as initialised.
        summary: one line, e.g. ``"untrained, seed 0"``.
        licence: of the weights, e.g. an SPDX identifier.
    """

    trained: bool
    seed: int
    summary: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How masks are propagated with a network, and at which size; a network trained from a bundle inherits it.

    Attributes:
        size: default short side of the working frame in pixels; None is `vosrt.types.DEFAULT_SIZE`.
        enlarge_percent: most that smaller frames are enlarged to (see `vosrt.bundle.Manifest`).
    """

    options: PropagationOptions
    size: int | None = None
    enlarge_percent: int = 100

    @classmethod
    def of(cls, manifest: Manifest) -> Inference:
        """Return what a bundle's manifest says."""
        return cls(options=manifest.inference, size=manifest.size, enlarge_percent=manifest.enlarge_percent)


@dataclass(frozen=True)
class Checkpoint:
    """A network with its history.

    Attributes:
        encoder: in evaluation mode when read.
        masks: mask encoder and decoder; None where the checkpoint has none.
        inference: settings of the bundle that training started from, or of its teacher; None where there was none.
    """

    encoder: VisualEncoder
    training: Training
    masks: MaskEmbedding | None = None
    inference: Inference | None = None


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the file appears whole or not at all.

    Raises:
        OutputError: it is a directory, or the one that it goes into does not exist.
        WorkError: the system refused; what was there before stays.
    """
    if path.is_dir():
        raise OutputError(f"cannot write the checkpoint {path}: it is a directory; name a file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write the checkpoint {path}: there is no folder {path.parent}; make it first")
    metadata = {
        "format": 1 if checkpoint.masks is None else FORMAT,
        "encoder": _kind_section(checkpoint.encoder.config) | asdict(checkpoint.encoder.config),
        "training": asdict(checkpoint.training),
    }
    if checkpoint.masks is not None:
        metadata["masks"] = asdict(checkpoint.masks.config)
    if checkpoint.inference is not None:  # earlier versions ignore it
        metadata["inference"] = asdict(checkpoint.inference)
    tensors = _tensors(checkpoint.encoder)
    if checkpoint.masks is not None:
        tensors |= _tensors(checkpoint.masks, _MASKS)
    data = save(tensors, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with writing(path), replacing(path) as file:
        write_all(file, data)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, made by a newer vosrt, or does not fit the network.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}; make one with vos-train")
    try:
        check_regular(path, WEIGHTS_BYTES)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    config, training, mask_config, inference = _read_metadata(metadata, path)
    of_masks = {name: tensor for name, tensor in tensors.items() if name.startswith(_MASKS)}
    of_encoder = {name: tensor for name, tensor in tensors.items() if name not in of_masks}
    if mask_config is None:
        return Checkpoint(encoder_of(config, tensors, path), training, inference=inference)
    if not isinstance(config, EncoderConfig):
        raise CheckpointError(f"{path} has a mask embedding around a {kind_of(config)}; expected a {DEFAULT_KIND}")
    masks = empty_mask_embedding(mask_config, config)
    _check_tensors(of_masks, _tensors(masks, _MASKS), path)
    masks.load_state_dict({name.removeprefix(_MASKS): tensor for name, tensor in of_masks.items()})
    return Checkpoint(encoder_of(config, of_encoder, path), training, masks.eval(), inference)


def encoder_of(config: VisualConfig, tensors: Mapping[str, Tensor], path: Path) -> VisualEncoder:
    """Build an encoder with given weights, in evaluation mode.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape or not finite.
    """
    encoder = empty_network(config)
    _check_tensors(tensors, _tensors(encoder), path)
    encoder.load_state_dict(tensors)
    return encoder.eval()


def _kind_section(config: VisualConfig) -> dict[str, str]:
    """``kind`` is omitted for resnet18: files from before other backbones existed have none."""
    return {} if kind_of(config) == DEFAULT_KIND else {"kind": kind_of(config)}


def _tensors(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def _read_metadata(
    metadata: Mapping[str, str], path: Path
) -> tuple[VisualConfig, Training, MaskNetworkConfig | None, Inference | None]:
    if _METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} has no vosrt configuration in its metadata; expected a file made by vos-train")
    try:
        document = json.loads(metadata[_METADATA_KEY])
        version = document.get("format") if isinstance(document, dict) else None
        if type(version) is not int:
            raise ValueError("its format is not a number")
        if version > FORMAT:
            raise CheckpointError(
                f"{path} was made by a newer vosrt (format {version}; this one reads up to {FORMAT}); upgrade vosrt"
            )
        config = _encoder_config(document)
        untrained = Training(trained=False, seed=0, summary="", licence="")
        training = Training(**_section("training", document.get("training"), untrained))
        inference = _inference(document["inference"]) if "inference" in document else None
        if "masks" not in document:
            return config, training, None, inference
        masks = MaskNetworkConfig(**_section("masks", document["masks"], MaskNetworkConfig()))
        return config, training, masks, inference
    except (ValueError, RecursionError, OptionError) as error:
        raise CheckpointError(f"the vosrt metadata of {path} cannot be used: {error}") from error


def _inference(values: Any) -> Inference:
    names = [each.name for each in fields(Inference)]
    if not isinstance(values, dict) or sorted(values) != sorted(names) or not isinstance(values["options"], dict):
        raise ValueError(f"inference is {str(values)[:80]!r}; expected the names {', '.join(names)}")
    size, percent = values["size"], values["enlarge_percent"]
    if not (size is None or type(size) is int) or type(percent) is not int:
        raise ValueError(f"inference has size {size!r:.80} and enlarge_percent {percent!r:.80}; expected whole numbers")
    known = asdict(PropagationOptions())
    if unknown := sorted(values["options"].keys() - known.keys()):
        raise ValueError(f"inference.options has {unknown[0][:80]!r}; expected {', '.join(known)}")
    return Inference(options=PropagationOptions(**values["options"]), size=size, enlarge_percent=percent)


def _encoder_config(document: Mapping[str, Any]) -> VisualConfig:
    values = document.get("encoder")
    if not isinstance(values, dict):
        raise ValueError(f"encoder is {str(values)[:80]!r}; expected a JSON object")
    shape: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    kind = shape.pop("kind", DEFAULT_KIND)
    example: Any = default_config(kind)
    if kind != DEFAULT_KIND:  # files from before a field existed have its default
        shape = asdict(example) | shape
    config: VisualConfig = type(example)(**_section("encoder", shape, example))
    return config


def _section(key: str, values: Any, example: Any) -> dict[str, Any]:
    """Return the values of one dataclass, after checking their names and types against an example."""
    expected = asdict(example)
    if not isinstance(values, dict) or values.keys() != expected.keys():
        raise ValueError(f"{key} is {str(values)[:80]!r}; expected the names {', '.join(expected)}")
    for name, value in expected.items():
        if _types(values[name]) != _types(value):
            raise ValueError(f"{key}.{name} is {str(values[name])[:80]!r}; expected type {type(value).__name__}")
    return values


def _types(value: Any) -> list[type]:
    return [type(value), *(type(each) for each in (value if isinstance(value, tuple) else ()))]


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{path} lacks {len(missing)} tensors of the encoder, the first {missing[0]}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{path} has {len(unknown)} tensors that the encoder has not, the first {unknown[0]}")
    for name, tensor in expected.items():
        have = found[name]
        if have.shape != tensor.shape or have.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: {name} is {_shape(have)}; the encoder of its configuration has {_shape(tensor)}"
            )
        if not have.isfinite().all():
            raise CheckpointError(f"{path}: {name} has values that are not finite; take an earlier checkpoint")


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
