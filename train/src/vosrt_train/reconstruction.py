"""The reconstruction of colours (MAST: Lai, Lu and Xie, CVPR 2020, sections 3.1 and 3.2).

Each frame is rebuilt from the frame before: a cell takes the mean colour of similar cells near its place. The
network must not see the colour that it has to find, so one of the two colour channels of Lab is set to 0 in all frames
of a clip.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt_train.data.clips import ClipBatch

_UNIT = 6.4  # of Lab; the error of a colour counts squared below it and linearly above it

# Linear sRGB to CIE XYZ over the white point D65 (IEC 61966-2-1), and CIE 1976 L*a*b*.
_TO_XYZ = torch.tensor(
    [
        [0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456],
        [0.212671, 0.715160, 0.072169],
        [0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754],
    ]
)
_TO_LAB = torch.tensor([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
_BLACK = 6 / 29


def alternate_channels(batch: ClipBatch, clips: int) -> Tensor:
    """Choose the channel of Lab that each clip loses, a (1) or b (2), alternating over clips and steps.

    Returns:
        i64 [B], on the device of the batch.
    """
    return 1 + (batch.step + torch.arange(clips, device=batch.frames.device)) % 2


def drop_channel(frames: Tensor, channel: Tensor) -> Tensor:
    """Set one channel of Lab to 0.

    Args:
        frames: u8 [B, T, 3, H, W], RGB.
        channel: i64 [B], 1 or 2.

    Returns:
        u8 [B, T, 3, H, W], RGB.
    """
    kept = torch.arange(3, device=frames.device) != channel[:, None]
    return lab_to_rgb(rgb_to_lab(frames) * kept[:, None, :, None, None])


def reconstruction_loss(main: Tensor, frames: Tensor, channel: Tensor, *, temperature: float, radius: int) -> Tensor:
    """Compare the colours of each frame but the first with those taken from the frame before it.

    Args:
        main: float [B, T, K, h, w] of unit length per cell, embedded without the channel.
        frames: u8 [B, T, 3, H, W], RGB with all channels.
        channel: i64 [B], the channel of Lab that is compared.
        temperature: τ of the attention.
        radius: largest distance from a cell to those that it takes its colour from, down or right, in cells.

    Returns:
        float [], the Huber loss, mean over the cells.
    """
    clips, count, _, height, width = main.shape
    with torch.autocast(main.device.type, enabled=False):
        small = F.adaptive_avg_pool2d(frames.flatten(0, 1).float(), (height, width))
        lab = (
            rgb_to_lab(small).view(clips, count, 3, height, width)[torch.arange(clips), :, channel].flatten(2) / _UNIT
        )  # [B, T, N]
        cells = main.flatten(3).transpose(2, 3).to(lab.dtype)  # [B, T, N, K]
        similarity = cells[:, 1:] @ cells[:, :-1].transpose(2, 3) / temperature
        far = ~_near(height, width, radius, main.device)
        found = similarity.masked_fill(far, -torch.inf).softmax(-1) @ lab[:, :-1, :, None]
        return F.smooth_l1_loss(found[..., 0], lab[:, 1:])


def _near(height: int, width: int, radius: int, device: torch.device) -> Tensor:
    """Whether two cells lie within the radius of each other: bool [N, N]."""
    row, column = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, (height, width)), indexing="ij"))
    near = ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)
    return near.to(device)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB, u8 or float [..., 3, H, W] from 0 to 255, to CIE Lab, f32 of the same shape."""
    value = rgb.float() / 255
    linear = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = _mix(_TO_XYZ, linear)
    root = torch.where(xyz > _BLACK**3, xyz.clamp_min(_BLACK**3) ** (1 / 3), xyz / (3 * _BLACK**2) + 4 / 29)
    lab = _mix(_TO_LAB, root)
    lab[..., 0, :, :] -= 16
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIE Lab, f32 [..., 3, H, W], to the nearest sRGB, u8 of the same shape."""
    shifted = lab.clone()
    shifted[..., 0, :, :] += 16
    root = _mix(torch.linalg.inv(_TO_LAB), shifted)
    xyz = torch.where(root > _BLACK, root**3, 3 * _BLACK**2 * (root - 4 / 29))
    linear = _mix(torch.linalg.inv(_TO_XYZ), xyz).clamp(0, 1)
    value = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)
    return (255 * value).round().clamp(0, 255).to(torch.uint8)


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    """Multiply the channels of [..., 3, H, W] by a matrix."""
    return torch.einsum("ij,...jhw->...ihw", matrix.to(channels.device), channels)
