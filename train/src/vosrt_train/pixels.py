"""Normalisation of pixels for the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN_RGB = (0.485, 0.456, 0.406)
DEVIATION_RGB = (0.229, 0.224, 0.225)


def normalise(rgb: Tensor) -> Tensor:
    """Normalise pixels with the mean and deviation of ImageNet.

    Args:
        rgb: u8 or f32 [n, 3, H, W], 0 to 255.

    Returns:
        f32 [n, 3, H, W].
    """
    mean, deviation = (
        255 * torch.tensor(values, device=rgb.device).view(1, 3, 1, 1) for values in (MEAN_RGB, DEVIATION_RGB)
    )
    return (rgb.float() - mean) / deviation
