"""The graphs of a mask-embedding bundle: an encoder that returns its maps, the mask encoder, and the decoder.

    encoder        frames u8 [n, H, W, 3] -> embedding f32 [n, h, w, K], context, res3, res2 f32 [n, C, ., .]
    mask_encoder   frames u8 [1, H, W, 3], masks f32 [M, H, W], context -> values f32 [M, h, w, V]
    decoder        readout, values f32 [M, h, w, V], res3, res2 -> logits f32 [M, h2, w2]

Maps that only go from one engine to the next stay as they are; what the core reads has its channels last. Without
layer4 the context is res3, and the encoder gives it once.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vosrt.bundle import CONTEXT, RES2, RES3, Feature, WeightPrecision
from vosrt_export.graphs import EncoderGraph, fold_batch_norm
from vosrt_export.onnx import INPUT_NAME, OUTPUT_NAME, Signature, export_graph
from vosrt_train.masks.networks import MaskEmbedding, MaskEncoder
from vosrt_train.model import Encoder
from vosrt_train.pixels import DEVIATION_RGB, MEAN_RGB

# Unequal, odd sizes: the exporter may not take a coincidence of the example for a rule.
_HEIGHT, _WIDTH, _OBJECTS = 43, 61, 3
_GRID = (6, 8)
_QUARTER = (11, 16)


class FeatureEncoderGraph(EncoderGraph):
    """`EncoderGraph` with further outputs: the maps that mask encoder and decoder need."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Embed frames u8 [n, H, W, 3] BGR; see the module."""
        embedding, features = self.embed(frames)
        maps = (features.res3, features.res2)
        return (embedding, *maps) if features.res4 is None else (embedding, features.res4, *maps)

    @staticmethod
    def signature(encoder: Encoder, feature: Feature) -> Signature:
        """Names and shapes of a graph around this encoder."""
        channels = encoder.config.channels
        context = {CONTEXT: ("n", channels["res4"], "h", "w")} if "res4" in channels else {}
        return Signature(
            inputs={INPUT_NAME: ("n", "height", "width", 3)},
            examples=(torch.zeros((2, 35, 45, 3), dtype=torch.uint8),),
            outputs={
                OUTPUT_NAME: ("n", "h", "w", channels[feature]),
                **context,
                RES3: ("n", channels["res3"], "h", "w"),
                RES2: ("n", encoder.config.width, "h2", "w2"),
            },
        )


class MaskEncoderGraph(nn.Module):
    """The mask encoder with normalisation inside and batch-norm folded away; it takes BGR like the encoder.

    Args:
        masks: the networks; they are copied, not changed.
    """

    def __init__(self, masks: MaskEmbedding) -> None:
        super().__init__()
        self.mask_encoder = _fold(copy.deepcopy(masks.mask_encoder).eval())
        stem = self.mask_encoder.rgb
        stem.weight = nn.Parameter(stem.weight.flip(1), requires_grad=False)
        self.register_buffer("scale", (1 / (255 * torch.tensor(DEVIATION_RGB[::-1]))).view(1, 3, 1, 1))
        offset = torch.tensor(MEAN_RGB[::-1]) / torch.tensor(DEVIATION_RGB[::-1])
        self.register_buffer("offset", offset.view(1, 3, 1, 1))

    def forward(self, frames: Tensor, masks: Tensor, context: Tensor) -> Tensor:
        """Embed the objects of one frame; see the module."""
        bgr = frames.permute(0, 3, 1, 2).float() * self.get_buffer("scale") - self.get_buffer("offset")
        value: Tensor = self.mask_encoder(bgr, masks[None], context)
        return value[0].permute(0, 2, 3, 1)

    @staticmethod
    def signature(encoder: Encoder, masks: MaskEmbedding) -> Signature:
        """Names and shapes of a graph around these networks."""
        channels = encoder.config.channels
        context = channels.get("res4", channels["res3"])
        return Signature(
            inputs={
                INPUT_NAME: (1, "height", "width", 3),
                "masks": ("objects", "height", "width"),
                CONTEXT: (1, context, "h", "w"),
            },
            examples=(
                torch.zeros((1, _HEIGHT, _WIDTH, 3), dtype=torch.uint8),
                torch.zeros((_OBJECTS, _HEIGHT, _WIDTH)),
                torch.zeros((1, context, *_GRID)),
            ),
            outputs={"values": ("objects", "h", "w", masks.config.value_channels)},
        )


class DecoderGraph(nn.Module):
    """The decoder with channels last where the core reads and writes.

    Args:
        masks: the networks; they are copied, not changed.
    """

    def __init__(self, masks: MaskEmbedding) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(masks.decoder).eval()

    def forward(self, readout: Tensor, values: Tensor, res3: Tensor, res2: Tensor) -> Tensor:
        """Decode the objects of one frame; see the module."""
        maps = (each.permute(0, 3, 1, 2)[None] for each in (readout, values))
        logits: Tensor = self.decoder(*maps, res3, res2)
        return logits[0]

    @staticmethod
    def signature(encoder: Encoder, masks: MaskEmbedding) -> Signature:
        """Names and shapes of a graph around these networks."""
        value, res3, res2 = masks.config.value_channels, encoder.config.channels["res3"], encoder.config.width
        return Signature(
            inputs={
                "readout": ("objects", "h", "w", value),
                "values": ("objects", "h", "w", value),
                RES3: (1, res3, "h", "w"),
                RES2: (1, res2, "h2", "w2"),
            },
            examples=(
                torch.zeros((_OBJECTS, *_GRID, value)),
                torch.zeros((_OBJECTS, *_GRID, value)),
                torch.zeros((1, res3, *_GRID)),
                torch.zeros((1, res2, *_QUARTER)),
            ),
            outputs={"logits": ("objects", "h2", "w2")},
        )


def export_mask_graphs(
    encoder: Encoder, masks: MaskEmbedding, feature: Feature, weights: WeightPrecision
) -> dict[str, bytes]:
    """Export all graphs of a mask-embedding bundle.

    Args:
        encoder: in evaluation mode.
        masks: in evaluation mode.

    Returns:
        Serialised models by role.

    Raises:
        ExportError: see `export_graph`.
    """
    graphs: tuple[tuple[str, nn.Module, Signature], ...] = (
        ("encoder", FeatureEncoderGraph(encoder, feature), FeatureEncoderGraph.signature(encoder, feature)),
        ("mask_encoder", MaskEncoderGraph(masks), MaskEncoderGraph.signature(encoder, masks)),
        ("decoder", DecoderGraph(masks), DecoderGraph.signature(encoder, masks)),
    )
    return {role: export_graph(graph, role, signature, weights) for role, graph, signature in graphs}


def _fold(network: MaskEncoder) -> MaskEncoder:
    """Fold every batch-norm into the convolution before it; the first one follows the sum of two convolutions."""
    norm = network.bn1
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        network.rgb.weight.mul_(scale[:, None, None, None])
        network.mask.weight.mul_(scale[:, None, None, None])
        network.mask.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    network.bn1 = nn.Identity()  # type: ignore[assignment]
    for layer in (network.layer1, network.layer2, network.layer3):
        fold_batch_norm(layer)
    return network
