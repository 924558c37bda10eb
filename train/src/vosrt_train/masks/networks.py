"""Mask encoder and decoder (Li et al. 2023; blocks after Cheng et al. 2021, "Rethinking Space-Time Networks").

Objects are a batch dimension: what depends on the frame alone is computed once for all of them. Every cell of a map
lies on the middle of its pixels, so that a frame and its mirror image give maps that are mirror images; frames are
whole numbers of cells.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vosrt_train.config import EncoderConfig
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.model.encoder import Features
from vosrt_train.model.initialise import initialise
from vosrt_train.model.resnet import BasicBlock

_CBAM_RATIO = 16
_CBAM_KERNEL = 7
# Behind a ReLU the gain is sqrt(6); other inputs are signed, and need sqrt(3).
_GAINS = {"conv1": 6**0.5, "object1": 6**0.5, "conv2": 0.5 * 6**0.5}
_COARSE_CLAMP = 0.01  # as in the runtime; at 0 or 1, no residual decoder could correct the coarse mask


class ResBlock(nn.Module):
    """Pre-activation block without batch-norm: two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 3, padding=1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, inputs, h, w] -> [n, outputs, h, w]."""
        residual: Tensor = self.conv2(torch.relu(self.conv1(torch.relu(x))))
        return residual + (x if self.shortcut is None else self.shortcut(x))


class JoiningBlock(nn.Module):
    """`ResBlock` on the concatenation of maps of objects and maps of their frame.

    A convolution of a concatenation is the sum of convolutions of its parts: the frame's is computed once.
    """

    def __init__(self, of_object: int, of_frame: int, outputs: int) -> None:
        super().__init__()
        self.object1 = nn.Conv2d(of_object, outputs, 3, padding=1)
        self.frame1 = nn.Conv2d(of_frame, outputs, 3, padding=1, bias=False)
        self.object_shortcut = nn.Conv2d(of_object, outputs, 3, padding=1)
        self.frame_shortcut = nn.Conv2d(of_frame, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, objects: Tensor, frames: Tensor) -> Tensor:
        """f32 [n * M, of_object, h, w] and [n, of_frame, h, w] -> [n * M, outputs, h, w]."""
        hidden = _per_object(self.frame1(torch.relu(frames)), self.object1(torch.relu(objects)))
        shortcut = _per_object(self.frame_shortcut(frames), self.object_shortcut(objects))
        residual: Tensor = self.conv2(torch.relu(hidden))
        return residual + shortcut


class Attention(nn.Module):
    """Convolutional block attention module (Woo et al. 2018): first channels, then places are weighted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _CBAM_RATIO)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.place = nn.Conv2d(2, 1, _CBAM_KERNEL, padding=_CBAM_KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        """f32 [n, channels, h, w] -> the same shape."""
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        weight = sum(self.excite(torch.relu(self.squeeze(each))) for each in pooled)
        x = x * torch.sigmoid(weight)
        places = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.place(places))


class MaskEncoder(nn.Module):
    """A ResNet-18 up to layer3 over RGB and one object's mask, fused with the visual encoder's last map."""

    def __init__(self, config: MaskNetworkConfig, context: int) -> None:
        super().__init__()
        width, value = config.width, config.value_channels
        # One convolution over four channels, in two parts.
        self.rgb = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.mask = nn.Conv2d(1, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 1), BasicBlock(4 * width, 4 * width, 1))
        self.join = JoiningBlock(4 * width, context, value)
        self.attention = Attention(value)
        self.refine = ResBlock(value, value)

    def forward(self, rgb: Tensor, masks: Tensor, context: Tensor) -> Tensor:
        """Embed objects.

        Args:
            rgb: f32 [n, 3, H, W], normalised.
            masks: f32 [n, M, H, W], soft masks of the objects, without background.
            context: f32 [n, context, h, w], the visual encoder's last map.

        Returns:
            f32 [n, M, value_channels, h, w].
        """
        objects = masks.shape[1]
        x = _per_object(self.rgb(rgb), self.mask(masks.flatten(0, 1).unsqueeze(1)))
        x = F.max_pool2d(torch.relu(self.bn1(x)), 3, 2, padding=1)
        x = self.join(self.layer3(self.layer2(self.layer1(x))), context)
        value: Tensor = self.refine(x + self.attention(x))
        return value.view(-1, objects, *value.shape[1:])


class Decoder(nn.Module):
    """Read-outs and skip connections to one logit per object and place, at a quarter of the size of the frame.

    Args:
        res3: channels of the skip connection at 1/8.
        res2: channels of the skip connection at 1/4.
    """

    def __init__(self, config: MaskNetworkConfig, res3: int, res2: int) -> None:
        super().__init__()
        value = config.value_channels
        self.compress = ResBlock(2 * value, value)
        self.skip3 = nn.Conv2d(res3, value, 3, padding=1)
        self.block3 = ResBlock(value, value // 2)
        self.skip2 = nn.Conv2d(res2, value // 2, 3, padding=1)
        self.block2 = ResBlock(value // 2, value // 4)
        self.predict = nn.Conv2d(value // 4, 1, 3, padding=1)

    def forward(self, readout: Tensor, value: Tensor, res3: Tensor, res2: Tensor) -> Tensor:
        """Decode objects.

        Args:
            readout: f32 [n, M, value_channels, h, w], V_q, read from the memory.
            value: f32 [n, M, value_channels, h, w], embedding of the coarse masks; in round 0, which has none yet, the
                read-out again.
            res3: f32 [n, res3, h, w].
            res2: f32 [n, res2, h2, w2], h2 = ceil(H / 4).

        Returns:
            f32 [n, M, h2, w2], for `upsample` to the size of the frame, then `aggregate`.
        """
        objects = readout.shape[1]
        x = self.compress(torch.cat([readout, value], dim=2).flatten(0, 1))
        x = self.block3(_per_object(self.skip3(res3), x))
        x = upsample(x, *res2.shape[-2:])
        x = self.block2(_per_object(self.skip2(res2), x))
        logits: Tensor = self.predict(torch.relu(x))
        return logits.view(-1, objects, *logits.shape[2:])


class MaskEmbedding(nn.Module):
    """Mask encoder and decoder around the features of one encoder; see `build_mask_embedding`."""

    def __init__(self, config: MaskNetworkConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = encoder.channels
        self.mask_encoder = MaskEncoder(config, channels.get("res4", channels["res3"]))
        self.decoder = Decoder(config, channels["res3"], encoder.width)


def context_of(features: Features) -> Tensor:
    """Return the map that the mask encoder fuses: res4, or res3 without layer4."""
    return features.res3 if features.res4 is None else features.res4


def correct(soft: Tensor, logits: Tensor) -> Tensor:
    """Correct a coarse mask by the logits of a residual decoder; logits of 0 leave it unchanged.

    Soft aggregation would not leave it unchanged: for one object it squares the odds, and a memory of such masks loses
    all uncertainty within a few frames.

    Args:
        soft: f32 [n, 1 + M, H, W], the coarse mask, the background first.
        logits: f32 [n, M, H, W]; ``-inf`` is an absent object.

    Returns:
        f32 [n, 1 + M, H, W], logits for a softmax over the channels.
    """
    return soft.float().clamp_min(_COARSE_CLAMP).log() + F.pad(logits, (0, 0, 0, 0, 1, 0))


def upsample(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize maps [n, M, h, w] to [n, M, height, width], larger or smaller: bilinear, as in the runtime."""
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def to_grid(soft: Tensor, height: int, width: int) -> Tensor:
    """Reduce annotations [n, M, H, W] to the share that they cover of each cell: [n, M, height, width]."""
    return F.adaptive_avg_pool2d(soft, (height, width))


def empty_mask_embedding(config: MaskNetworkConfig, encoder: EncoderConfig) -> MaskEmbedding:
    """Build networks without weights; draw no random numbers."""
    with torch.device("meta"):
        networks = MaskEmbedding(config, encoder)
    return networks.to_empty(device="cpu")


def build_mask_embedding(config: MaskNetworkConfig, encoder: EncoderConfig, *, seed: int) -> MaskEmbedding:
    """Build untrained networks whose weights depend on the configurations and the seed alone.

    Args:
        seed: any non-negative integer.
    """
    networks = initialise(empty_mask_embedding(config, encoder), seed)
    for module in networks.modules():
        if isinstance(module, ResBlock | JoiningBlock | Decoder):
            _keep_variance(module)
    if config.residual:
        nn.init.zeros_(networks.decoder.predict.weight)
        nn.init.zeros_(cast(Tensor, networks.decoder.predict.bias))
    return networks


def _keep_variance(block: nn.Module) -> None:
    """Scale the convolutions of a block, which were drawn within ±1 / sqrt(fan-in), so that they keep the variance.

    The block has no batch-norm. Unscaled, a convolution would keep a third of the variance, or a sixth behind a ReLU:
    the last layer of the decoder received a constant, and its ReLU stayed at 0. Gains as in He et al. 2015, residual
    branches at half.
    """
    for name, child in block.named_children():
        if isinstance(child, nn.Conv2d) and child.bias is not None and name != "predict":
            with torch.no_grad():
                child.weight *= _GAINS.get(name, 3**0.5)
                child.bias.zero_()


def _per_object(of_frame: Tensor, of_object: Tensor) -> Tensor:
    """Add a frame's map [n, c, h, w] to those of each of its objects [n * M, c, h, w]."""
    grouped = of_object.view(len(of_frame), -1, *of_object.shape[1:])
    return (grouped + of_frame.unsqueeze(1)).flatten(0, 1)
