"""The regularising view, a mirrored and enlarged part of each clip, and the maps of a clip as seen in the view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class View:
    """Place and colours of the regularising view in each of B clips (Araslanov et al. 2021, similarity transform).

    The view is the square part of the clip with this offset and side, enlarged to the size of the clip and,
    with ``flip``, mirrored from left to right. It is the same for all frames of a clip.

    Attributes:
        flip: bool [B].
        scale: f32 [B], side of the part as a fraction of the clip's, at most 1.
        offset: f32 [B, 2], its top and left as fractions of the clip's side, at most 1 - scale.
        colour: f32 [B, 3], factors of brightness, contrast and saturation; None leaves the colours.
    """

    flip: Tensor
    scale: Tensor
    offset: Tensor
    colour: Tensor | None = None

    def to(self, device: torch.device | str) -> View:
        """Copy to a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, clips: slice) -> View:
        """Return the views of some of the clips."""
        return self._each(lambda tensor: tensor[clips])

    def _each(self, change: Callable[[Tensor], Tensor]) -> View:
        colour = None if self.colour is None else change(self.colour)
        return View(change(self.flip), change(self.scale), change(self.offset), colour)

    def places(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Locate the centres of the cells of the view in the clip, as fractions of its sides.

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
        """Return the cell of the clip at the centre of each cell of the view, on grids of one size.

        Returns:
            i64 [B, height * width], row-major.
        """
        down, right = self.places(height, width)
        row = (down * height).long().clamp(0, height - 1)
        column = (right * width).long().clamp(0, width - 1)
        return (row[:, :, None] * width + column[:, None, :]).flatten(1)


def apply_to_frames(frames: Tensor, view: View) -> Tensor:
    """Crop and enlarge frames to the view, bilinearly, and change their colours to those of the view.

    Args:
        frames: u8 or float [B, T, 3, H, W], RGB from 0 to 255.

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
    seen = seen.view(frames.shape)
    if view.colour is not None:
        seen = _change_colours(seen, view.colour)
    return (seen if frames.is_floating_point() else seen.round()).to(frames.dtype)


def _change_colours(frames: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation of frames float [B, T, 3, H, W] by factors [B, 3]."""
    brightness, contrast, saturation = factors.to(frames.dtype)[:, :, None, None, None, None].unbind(1)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=frames.dtype, device=frames.device)[:, None, None]  # ITU-R BT.601
    brighter = frames * brightness
    mean = (brighter * luma).sum(dim=2, keepdim=True).mean(dim=(3, 4), keepdim=True)
    stretched = mean + contrast * (brighter - mean)
    grey = (stretched * luma).sum(dim=2, keepdim=True)
    return (grey + saturation * (stretched - grey)).clamp(0, 255)


def warp_to_view(maps: Tensor, view: View) -> Tensor:
    """Warp maps of the clip to the view: each cell takes the nearest cell of the clip (align_corners False).

    Args:
        maps: any type, [B, ..., h, w]. Gradient flows through.

    Returns:
        The same shape and type.
    """
    cells = view.cells(*maps.shape[-2:])
    flat = maps.flatten(-2)
    index = cells.view(len(cells), *[1] * (flat.ndim - 2), -1).expand(flat.shape)
    return flat.gather(-1, index).view(maps.shape)
