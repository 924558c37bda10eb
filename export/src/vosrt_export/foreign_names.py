"""Names of tensors: from those of original repositories and of `transformers` to those of our encoders.

A vision transformer has the names of DINO and DINOv2, a residual network those of torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vosrt_export.import_released import with_counters
from vosrt_train.checkpoint import CheckpointError

_Rules = Iterable[tuple[str, str]]

# Programs that train two networks save both; the first of these that a file has is the one that is evaluated.
_WRAPPERS = (
    *("encoder_q.", "base_encoder.", "backbone.", "encoder.model."),
    *("vit.", "dinov2_with_registers.", "dinov2.", "resnet."),
)
_PARALLEL = "module."

# Heads, what stands for masked patches, a second normalisation of class tokens, and what follows from the shape.
_UNUSED = re.compile(
    r"mask_token|(embeddings\.)?mask_token|(pooler|classifier|head|fc|selfsim_fc|dino_head|ibot_head|layer4|local_cls_norm|cls_norm)"
    r"\..+|rope_embed(dings)?\..+|encoder\.stages\.3\..+"
)

_TRANSFORMER: _Rules = (
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^storage_tokens$", "register_tokens"),
    (r"^(?:model\.|encoder\.)?layer\.(?=\d)", "blocks."),
    (r"^blocks\.\d+\.(?=\d)", "blocks."),  # DINOv2's training groups blocks; the second number counts through
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
_GATED: _Rules = ((r"\.mlp\.up_proj\.", ".mlp.w2."), (r"\.mlp\.down_proj\.", ".mlp.w3."))
_UNGATED: _Rules = ((r"\.mlp\.up_proj\.", ".mlp.fc1."), (r"\.mlp\.down_proj\.", ".mlp.fc2."))

_RESIDUAL: _Rules = (
    (r"^(layer\d\.\d+\.)?conv(\d)\.conv\.", r"\1conv\2."),
    (r"^(layer\d\.\d+\.)?conv(\d)\.bn\.", r"\1bn\2."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)


def network_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors of the encoder alone, without what its names begin with and without heads."""
    bare = {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    for wrapper in _WRAPPERS:
        inside = {name.removeprefix(wrapper): each for name, each in bare.items() if name.startswith(wrapper)}
        if any(
            name.endswith(("conv1.weight", "conv1.conv.weight", "convolution.weight", "cls_token")) for name in inside
        ):
            bare = inside
    return {name: tensor for name, tensor in bare.items() if not _UNUSED.fullmatch(name)}


def transformer_tensors(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Rename the tensors of a vision transformer, and join what our layers have in one.

    Raises:
        CheckpointError: parts that belong together do not fit.
    """
    gated = any(".mlp.gate_proj." in name for name in tensors)
    ours = _renamed(tensors, (*_TRANSFORMER, *(_GATED if gated else _UNGATED)))
    width = ours["cls_token"].shape[-1]
    for block in sorted({match[0] for name in ours if (match := re.match(r"blocks\.\d+\.", name))}):
        if f"{block}attn.q.weight" in ours:
            for part in "qkv":  # DINOv3 has no bias for keys
                ours.setdefault(f"{block}attn.{part}.bias", torch.zeros(width))
            _join(ours, f"{block}attn.", ("q", "k", "v"), "qkv", source)
        if f"{block}mlp.w1.weight" in ours:
            _join(ours, f"{block}mlp.", ("w1", "w2"), "w12", source)
        if f"{block}attn.qkv.weight" in ours:
            ours.setdefault(f"{block}attn.qkv.bias", torch.zeros(3 * width))
        if ours.pop(f"{block}attn.qkv.bias_mask", None) is not None:  # DINOv3: that of keys counts as 0
            bias = ours[f"{block}attn.qkv.bias"].clone()
            bias[width : 2 * width] = 0
            ours[f"{block}attn.qkv.bias"] = bias
    ours.setdefault("register_tokens", torch.empty(1, 0, width))
    return ours


def residual_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a residual network."""
    stages: _Rules = (
        *_RESIDUAL,
        *((rf"^encoder\.stages\.{i}\.layers\.", f"layer{i + 1}.") for i in range(3)),
        *((rf"\.layer\.{i}\.convolution\.", f".conv{i + 1}.") for i in range(3)),
        *((rf"\.layer\.{i}\.normalization\.", f".bn{i + 1}.") for i in range(3)),
    )
    return with_counters({f"backbone.{name}": tensor for name, tensor in _renamed(tensors, stages).items()})


def _renamed(tensors: Mapping[str, Tensor], rules: _Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _join(ours: dict[str, Tensor], prefix: str, parts: tuple[str, ...], whole: str, source: object) -> None:
    for kind in ("weight", "bias"):
        names = [f"{prefix}{part}.{kind}" for part in parts]
        try:
            ours[f"{prefix}{whole}.{kind}"] = torch.cat([ours.pop(name) for name in names])
        except (KeyError, RuntimeError, IndexError) as error:
            raise CheckpointError(f"{source} has no whole {', '.join(names)} of one shape; copy it again") from error
