"""Import of weights that the authors of other label-free methods released.

The shape of a network is read off its tensors; what they do not say comes from ``config.json``, from what the family
has in common, or from the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from torch import Tensor

from vosrt.bundle import file_sha256
from vosrt.errors import OptionError
from vosrt_export.families import Family
from vosrt_export.foreign_names import network_tensors, residual_tensors, transformer_tensors
from vosrt_export.read_weights import Weights, read_weights
from vosrt_train.backbones import resnet18_mirrored, resnet50, vit
from vosrt_train.checkpoint import Checkpoint, CheckpointError, Training, encoder_of
from vosrt_train.config import EncoderConfig
from vosrt_train.model.contract import Colour, VisualConfig

_HEAD_CHANNELS = 64  # of every ViT of these families but for those of MoCo v3 and the 7B of DINOv3
_MOCO_HEADS = 12
_ROTARY_BASE = 100.0


class _Kind(StrEnum):
    """What a file holds, in words."""

    PLAIN = "a ViT as of DINO"
    SCALED = "a ViT with layer scale, as of DINOv2"
    ROTARY = "a ViT with rotary positions, as of DINOv3"
    RESNET18 = "a ResNet-18"
    RESNET50 = "a ResNet-50"


_KINDS: dict[Family, tuple[_Kind, ...]] = {
    Family.CRW: (_Kind.RESNET18,),
    Family.DINO: (_Kind.PLAIN, _Kind.RESNET50),
    Family.DINOV2: (_Kind.SCALED,),
    Family.DINOV3: (_Kind.ROTARY,),
    Family.MOCO: (_Kind.RESNET50, _Kind.PLAIN),
    Family.VFS: (_Kind.RESNET18, _Kind.RESNET50),
    Family.TRANSFORMERS: tuple(_Kind),
}
_MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "resnet")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the weights do not say.

    Attributes:
        heads: of attention; None: as in config.json, else 64 channels each (12 heads for MoCo).
        mean: red, green and blue that were subtracted, 0 to 1; None: preprocessor_config.json, else ImageNet's.
        deviation: by which was divided then.
        licence: of the weights, e.g. an SPDX identifier.
    """

    heads: int | None = None
    mean: Colour | None = None
    deviation: Colour | None = None
    licence: str = "not stated"


def import_backbone(family: Family, path: Path, options: ImportOptions | None = None) -> Checkpoint:
    """Read a backbone.

    Args:
        path: the file of the original repository, or a folder in the layout of `transformers`.
        options: what the file does not say.

    Raises:
        CheckpointError: something is missing, damaged, too large, holds code, or is of another family.
        OptionError: an option does not fit the network.
    """
    options = options or ImportOptions()
    weights = read_weights(path)
    _check_model_type(family, weights, path)
    tensors = network_tensors(weights.tensors)
    kind = _kind(tensors, family, path)
    if kind in (_Kind.RESNET18, _Kind.RESNET50):
        tensors = residual_tensors(tensors)
        config: VisualConfig = _residual_config(family, kind, tensors, weights, options, path)
    else:
        tensors = transformer_tensors(tensors, path)
        config = _transformer_config(family, kind, tensors, weights, options, path)
    encoder = encoder_of(config, tensors, path)
    summary = f"{family.value} weights of {path.name[:100]!a} (SHA-256 {file_sha256(weights.source)[:12]})"
    return Checkpoint(encoder, Training(trained=True, seed=0, summary=summary, licence=options.licence))


def _check_model_type(family: Family, weights: Weights, path: Path) -> None:
    if weights.config is None:
        if family is Family.TRANSFORMERS:
            raise CheckpointError(f"{path} is a file; expected the folder with config.json and model.safetensors")
        if any(name.startswith(("embeddings.", "embedder.")) for name in weights.tensors):
            raise CheckpointError(f"{path} has the names of transformers; give its folder, which has config.json too")
        return
    found = weights.config.get("model_type")
    if found not in _MODEL_TYPES:
        raise CheckpointError(
            f"{path / 'config.json'} has model_type {ascii(found)[:40]}; expected one of {', '.join(_MODEL_TYPES)}"
        )


def _kind(tensors: Mapping[str, Tensor], family: Family, path: Path) -> _Kind:
    """Say what network the names are those of, and refuse one that the family has not."""
    names = "\n".join(tensors)
    if re.search(r"(?m)cls_token$", names):
        rotary = not re.search(r"(?m)(pos_embed|position_embeddings)$", names)
        scaled = re.search(r"(?m)(ls1\.gamma|layer_scale1\.lambda1)$", names)
        kind = _Kind.ROTARY if rotary else _Kind.SCALED if scaled else _Kind.PLAIN
    elif re.search(r"(?m)^(conv1\.|embedder\.)", names):
        deep = re.search(r"(?m)^(layer1\.0\.conv3\.|encoder\.stages\.0\.layers\.0\.layer\.2\.)", names)
        kind = _Kind.RESNET50 if deep else _Kind.RESNET18
    else:
        some = ", ".join(ascii(name[:40]) for name in list(tensors)[:3]) or "heads alone"
        raise CheckpointError(f"{path} holds {some} …; expected {' or '.join(_KINDS[family])}")
    if kind not in _KINDS[family]:
        fitting = ", ".join(each.value for each, kinds in _KINDS.items() if kind in kinds)
        raise CheckpointError(
            f"{path} holds {kind}; {family.value} expects {' or '.join(_KINDS[family])}; name another family: {fitting}"
        )
    return kind


def _transformer_config(
    family: Family, kind: _Kind, tensors: Mapping[str, Tensor], weights: Weights, options: ImportOptions, path: Path
) -> vit.Config:
    stated = weights.config or {}
    patch, width = _shape(tensors, "patch_embed.proj.weight", 4, path)[-1], tensors["cls_token"].shape[-1]
    registers = _shape(tensors, "register_tokens", 3, path)[1]
    gated = "blocks.0.mlp.w12.weight" in tensors
    hidden = _shape(tensors, f"blocks.0.mlp.{'w12' if gated else 'fc1'}.weight", 2, path)[0]
    positions = 0
    if kind is not _Kind.ROTARY:
        places = _shape(tensors, "pos_embed", 3, path)[1] - 1
        positions = math.isqrt(max(places, 0))
        if positions**2 != places:
            raise CheckpointError(f"{path} has {places} position embeddings; expected those of a square grid")
    expected: dict[str, tuple[Any, ...]] = {"patch_size": (patch, [patch, patch])}
    if kind is _Kind.ROTARY or not gated:  # a gated DINOv2 states the activation that it would have without
        expected["hidden_act"] = ("silu",) if gated else ("gelu",)
    _check_stated(stated, expected, path)
    try:
        return vit.Config(
            patch=patch,
            width=width,
            depth=len({match[1] for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}),
            heads=options.heads or _heads(family, weights, width, path),
            registers=registers,
            positions=positions,
            antialias=kind is _Kind.SCALED and registers > 0,
            rotary=float(_number(stated, "rope_theta", _ROTARY_BASE, path)) if kind is _Kind.ROTARY else 0.0,
            hidden=hidden // 2 if gated else hidden if hidden != 4 * width else 0,
            gated=gated,
            scaled=kind is not _Kind.PLAIN,
            epsilon=float(_number(stated, "layer_norm_eps", 1e-5 if kind is _Kind.ROTARY else 1e-6, path)),
            **_normalisation(weights, options, path),
        )
    except OptionError as error:
        raise OptionError(
            f"{path}: {error}" + ("" if options.heads else "; --heads sets the number of heads")
        ) from error


def _heads(family: Family, weights: Weights, width: int, path: Path) -> int:
    if weights.config is not None:
        return int(_number(weights.config, "num_attention_heads", None, path))
    periods = next((each for name, each in weights.tensors.items() if name.endswith("rope_embed.periods")), None)
    if periods is not None:
        expected = _ROTARY_BASE ** (4 / max(4 * periods.numel(), 4))
        if periods.ndim != 1 or len(periods) < 2 or abs(float(periods[1] / periods[0]) / expected - 1) > 0.02:
            raise CheckpointError(f"{path} has other rotary periods than the released DINOv3; expected the base 100")
        return max(1, width // (4 * len(periods)))
    return _MOCO_HEADS if family is Family.MOCO else max(1, width // _HEAD_CHANNELS)


def _residual_config(
    family: Family, kind: _Kind, tensors: Mapping[str, Tensor], weights: Weights, options: ImportOptions, path: Path
) -> VisualConfig:
    stated = weights.config or {}
    expected = {"hidden_act": ("relu",), "downsample_in_first_stage": (False,), "downsample_in_bottleneck": (False,)}
    _check_stated(stated, expected, path)
    width = _shape(tensors, "backbone.conv1.weight", 4, path)[0]
    normalisation = _normalisation(weights, options, path)
    if options.heads is not None:
        raise OptionError(f"--heads is {options.heads}, but {path} holds {kind}, which has none; leave it out")
    if kind is _Kind.RESNET50:
        return resnet50.Config(width=width, reduction=0, **normalisation)
    if family is Family.CRW:
        return resnet18_mirrored.Config(width=width, **normalisation)
    if normalisation:
        raise OptionError(
            f"{path} holds {kind}, which takes ImageNet's mean and deviation alone; leave the options out"
        )
    return EncoderConfig(width=width, layer4=False)


def _normalisation(weights: Weights, options: ImportOptions, path: Path) -> dict[str, Any]:
    """Return mean and deviation, where they are stated."""
    stated = {}
    for name, key, chosen in (("mean", "image_mean", options.mean), ("deviation", "image_std", options.deviation)):
        values: Any = chosen if chosen is not None else weights.processor.get(key)
        if values is None:
            continue
        if not (
            isinstance(values, list | tuple) and len(values) == 3 and all(type(each) in (int, float) for each in values)
        ):
            raise CheckpointError(f"{path} has the {key} {str(values)[:40]!r}; expected three numbers from 0 to 1")
        stated[name] = tuple(float(each) for each in values)
    return stated


def _check_stated(stated: Mapping[str, Any], expected: Mapping[str, tuple[Any, ...]], path: Path) -> None:
    for key, choices in {"num_channels": (3,), **expected}.items():
        if key in stated and stated[key] not in choices:
            raise CheckpointError(
                f"{path / 'config.json'} has {key} {str(stated[key])[:40]!r}; expected {choices[0]!r} for them"
            )


def _number(stated: Mapping[str, Any], key: str, default: float | None, path: Path) -> float:
    value = stated.get(key, default)
    if type(value) not in (int, float):
        raise CheckpointError(f"{path / 'config.json'} has {key} {str(value)[:40]!r}; expected a number")
    number: float = value
    return number


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != dimensions:
        have = "lacks it" if tensor is None else f"has {list(tensor.shape)}"
        raise CheckpointError(f"{path} {have}: {name}; expected a tensor of {dimensions} dimensions")
    return tuple(tensor.shape)
