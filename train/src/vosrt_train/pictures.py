"""Pictures of what the network learns: pseudo-labels, and frames rebuilt from the reference frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 8  # pixels per cell of the feature maps

_OPACITY = 0.6
_GAP = 2  # pixels between tiles


def pseudo_label_picture(frames: Tensor, labels: Tensor, anchors: int) -> Tensor:
    """The frames of one clip above the same frames tinted by their pseudo-labels.

    Args:
        frames: u8 [T, 3, H, W], RGB, as the regularising branch sees them.
        labels: i64 [T, h, w], for each cell the number of its anchor within the clip.
        anchors: anchors per side of the grid.

    Returns:
        u8 [3, rows, columns]: the frames above, the labels below. Colours are places on the reference frame: red grows
        to the right, green downwards.
    """
    tint = _place_colours(anchors, labels.device)[labels].permute(0, 3, 1, 2).float()
    tint = nn.functional.interpolate(tint, size=frames.shape[-2:], mode="nearest")
    tinted = ((1 - _OPACITY) * frames.float() + _OPACITY * tint).round().to(torch.uint8)
    return _tile([frames, tinted])


def nearest_neighbour_picture(frames: Tensor, embeddings: Tensor) -> Tensor:
    """The frames of one clip above their reconstructions from the first one.

    Each cell takes the pixels of the cell of the first frame that is most similar to it.

    Args:
        frames: u8 [T, 3, H, W], RGB; the first is the reference.
        embeddings: f32 [T, K, h, w] of unit length per cell.

    Returns:
        u8 [3, rows, columns].
    """
    count, _, h, w = embeddings.shape
    height, width = h * STRIDE, w * STRIDE
    fitted = nn.functional.interpolate(frames.float(), size=(height, width), mode="nearest").to(torch.uint8)
    patches = fitted[0].view(3, h, STRIDE, w, STRIDE).permute(1, 3, 0, 2, 4).reshape(h * w, 3, STRIDE, STRIDE)
    cells = embeddings.flatten(2)
    similarity = cells.transpose(1, 2) @ cells[0]  # [T, h * w, h * w]
    rebuilt = patches[similarity.argmax(dim=-1)].view(count, h, w, 3, STRIDE, STRIDE)
    rebuilt = rebuilt.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, height, width)
    return _tile([fitted, rebuilt])


def _place_colours(side: int, device: torch.device) -> Tensor:
    """u8 [side * side, 3]: row-major places of a grid as colours."""
    steps = torch.linspace(0, 255, side, device=device)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([right, down, 255 - (right + down) / 2], dim=-1).round().to(torch.uint8).view(-1, 3)


def _tile(rows: list[Tensor]) -> Tensor:
    """Frames u8 [T, 3, H, W] per row, side by side with white gaps: u8 [3, rows, columns]."""
    padded = [nn.functional.pad(row, (0, _GAP, 0, _GAP), value=255) for row in rows]
    lines = [row.permute(1, 2, 0, 3).flatten(2) for row in padded]
    return torch.cat(lines, dim=1)[:, :-_GAP, :-_GAP]
