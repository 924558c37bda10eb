"""Soft aggregation of independent objects into one soft mask (Oh et al. 2019, "Space-Time Memory Networks")."""

from __future__ import annotations

import torch
from torch import Tensor

_CLAMP = 1e-7


def aggregate(logits: Tensor, dim: int = 1) -> Tensor:
    """Merge the logits of independent objects with a background.

    The probability of background is Π(1 - p); all are clamped to [1e-7, 1 - 1e-7] and converted to logits again. A
    softmax over ``dim`` gives soft masks. Computed in fp32.

    Args:
        logits: [..., M, ...], one per object, M along ``dim``; ``-inf`` is an absent object.

    Returns:
        f32 [..., 1 + M, ...], the background first.
    """
    p = torch.sigmoid(logits.float())
    p = torch.cat([(1 - p).prod(dim, keepdim=True), p], dim).clamp(_CLAMP, 1 - _CLAMP)
    return torch.log(p) - torch.log1p(-p)
