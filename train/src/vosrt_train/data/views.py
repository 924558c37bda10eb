"""The regularising view: a mirrored, zoomed-in part of each clip, and the maps of the whole clip seen through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class View:
    """Where the regularising view of each of B clips lies (Araslanov et al. 2021, guided similarity transform).

    The view is the square part of the clip with this offset and side, enlarged to the size of the clip and,
    with ``flip``, mirrored from left to right. It is the same for all frames of a clip.

    Attributes:
        flip: bool [B].
        scale: f32 [B], side of the part as a fraction of the clip's, at most 1.
        offset: f32 [B, 2], its top and left as fractions of the clip's side, at most 1 - scale.
    """

    flip: Tensor
    scale: Tensor
    offset: Tensor

    def to(self, device: torch.device | str) -> View:
        """Copy to a device."""
        return View(*(tensor.to(device, non_blocking=True) for tensor in (self.flip, self.scale, self.offset)))

    def places(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where the centres of the view's cells lie in the clip, as fractions of its sides.

        Args:
            height: cells of the view from top to bottom.
            width: cells from left to right.

        Returns:
            f32 [B, height] from the top and f32 [B, width] from the left.
        """
        down = (torch.arange(height, device=self.scale.device) + 0.5) / height
        right = (torch.arange(width, device=self.scale.device) + 0.5) / width
        right = torch.where(self.flip[:, None], 1 - right, right)
        scale = self.scale[:, None]
        return self.offset[:, :1] + scale * down, self.offset[:, 1:] + scale * right

    def cells(self, height: int, width: int) -> Tensor:
        """The clip's cell at the centre of each of the view's cells, on grids of one size.

        Returns:
            i64 [B, height * width], row-major.
        """
        down, right = self.places(height, width)
        row = (down * height).long().clamp(0, height - 1)
        column = (right * width).long().clamp(0, width - 1)
        return (row[:, :, None] * width + column[:, None, :]).flatten(1)


def apply_to_frames(frames: Tensor, view: View) -> Tensor:
    """Show frames through the view, interpolated bilinearly.

    Args:
        frames: u8 or float [B, T, 3, H, W].
        view: of the B clips.

    Returns:
        The same shape and type.
    """
    clips, count, _, height, width = frames.shape
    down, right = view.places(height, width)
    x = (2 * right - 1)[:, None, :].expand(-1, height, -1)
    y = (2 * down - 1)[:, :, None].expand(-1, -1, width)
    images = frames.reshape(clips, count * 3, height, width)
    images = images if images.is_floating_point() else images.float()
    grid = torch.stack((x, y), dim=-1).to(images.dtype)
    seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    seen = seen if frames.is_floating_point() else seen.round()
    return seen.to(frames.dtype).view(frames.shape)


def warp_to_view(maps: Tensor, view: View) -> Tensor:
    """Bring maps of the clip into the view: each cell takes the nearest one of the clip (align_corners False).

    Args:
        maps: any type, [B, ..., h, w]. Gradient flows through.
        view: of the B clips.

    Returns:
        The same shape and type.
    """
    cells = view.cells(*maps.shape[-2:])
    flat = maps.flatten(-2)
    index = cells.view(len(cells), *[1] * (flat.ndim - 2), -1).expand(flat.shape)
    return flat.gather(-1, index).view(maps.shape)
