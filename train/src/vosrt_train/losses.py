"""The two losses of Araslanov et al. 2021 (equations 2 to 6; supplement, figure 5b).

Maps are [B, T, K, h, w]: B clips of T frames, K channels of unit length. Each loss has two steps, sampling and
comparison, so that samples of other processes can join the comparison as negatives. Similarities are computed in at
least 32 bits at any precision of the maps: after division by the temperature, bfloat16 is too coarse.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt.errors import OptionError
from vosrt_train.data.views import View, warp_to_view

TEMPERATURE = 0.05


def sample_anchors(main: Tensor, shift: Tensor, *, grid: int = 8) -> Tensor:
    """Sample the anchors of each clip: a grid of cells of its frame 0, shifted as a whole.

    Args:
        main: float [B, T, K, h, w], the main branch.
        shift: f32 [B, 2] in [0, 1), down and right, as a fraction of the distance between anchors.
        grid: anchors from top to bottom and from left to right.

    Returns:
        float [B, grid * grid, K], row-major. Gradient flows through.
    """
    return _pick(_precise(main[:, 0]), grid_cells(shift, *main.shape[-2:], grid=grid))


def pseudo_labels(regular: Tensor, anchors: Tensor) -> Tensor:
    """Assign to every cell of the frames after frame 0 the most similar anchor of its clip.

    Args:
        regular: float [B, T, K, h, w], the regularising branch.
        anchors: float [B, A, K], from `sample_anchors`.

    Returns:
        i64 [B, T - 1, h, w], numbers of anchors within the clip, without gradient.
    """
    with torch.no_grad(), _no_autocast(regular):
        similarity = torch.bmm(_cells_last(_precise(regular[:, 1:])).flatten(1, 2), _precise(anchors).transpose(1, 2))
        return similarity.argmax(-1).view(*regular[:, 1:, 0].shape)


def space_time_loss(
    main: Tensor,
    regular: Tensor,
    view: View,
    anchors: Tensor,
    *,
    temperature: float = TEMPERATURE,
    negatives: Tensor | None = None,
) -> Tensor:
    """Compute L_ST: the main branch has to predict the pseudo-labels of the regularising branch.

    The cross-entropy is over the similarities of the main branch, warped to the view, to the anchors of the whole
    batch. Frame 0, from which the anchors come, is left out.

    Args:
        main: float [B, T, K, h, w].
        regular: float [B, T, K, h, w]; no gradient reaches it.
        anchors: float [B, A, K], from `sample_anchors`.
        temperature: τ.
        negatives: float [N, K], anchors of other processes; gradient flows to them.

    Returns:
        float [], mean over the cells.
    """
    labels = pseudo_labels(regular, anchors)
    with _no_autocast(main):
        first = torch.arange(len(anchors), device=labels.device) * anchors.shape[1]
        targets = labels.flatten(1) + first[:, None]
        cells = _cells_last(warp_to_view(_precise(main[:, 1:]), view))
        logits = cells.flatten(0, 2) @ (_with(anchors.flatten(0, 1), negatives) / temperature).T
        return F.cross_entropy(logits, targets.flatten())


def sample_points(main: Tensor, regular: Tensor, view: View, shift: Tensor, *, grid: int = 4) -> tuple[Tensor, Tensor]:
    """Sample points of frame 0 in the view, as both branches embed them.

    Args:
        main: float [B, T, K, h, w]; only frame 0 is used.
        regular: float [B, T, K, h, w]; only frame 0 is used.
        shift: f32 [B, 2] in [0, 1), down and right, as a fraction of the distance between points.
        grid: points from top to bottom and from left to right.

    Returns:
        The main and the regularising embeddings, each float [B * grid * grid, K]. Gradient flows to both branches.
    """
    cells = grid_cells(shift, *main.shape[-2:], grid=grid)
    points = _pick(_precise(warp_to_view(main[:, 0], view)), cells)
    return points.flatten(0, 1), _pick(_precise(regular[:, 0]), cells).flatten(0, 1)


def cross_view_loss(
    points: Tensor, partners: Tensor, *, temperature: float = TEMPERATURE, negatives: Tensor | None = None
) -> Tensor:
    """Compute L_CV (InfoNCE): a point of the main branch has to match its partner in the regularising branch.

    Args:
        points: float [P, K], main embeddings from `sample_points`.
        partners: float [P, K], regularising embeddings of the same points.
        temperature: τ.
        negatives: float [N, K], partners of other processes' points; gradient flows to them.

    Returns:
        float [], mean over the points.
    """
    with _no_autocast(points):
        logits = _precise(points) @ (_with(_precise(partners), negatives) / temperature).T
        return F.cross_entropy(logits, torch.arange(len(points), device=points.device))


def grid_cells(shift: Tensor, height: int, width: int, *, grid: int) -> Tensor:
    """Return the cells of a regular grid that is shifted as a whole by less than the distance between its points.

    Args:
        shift: f32 [B, 2] in [0, 1), down and right, as a fraction of that distance.
        height: of the map, in cells.
        width: of the map, in cells.
        grid: points from top to bottom and from left to right.

    Returns:
        i64 [B, grid * grid], row-major cells of the map.

    Raises:
        OptionError: the map has fewer cells than the grid.
    """
    if min(height, width) < grid:
        raise OptionError(f"feature maps of {height}×{width} cells cannot hold a {grid}×{grid} grid; use a larger crop")
    places = (
        torch.arange(grid, device=shift.device) + shift.double()[:, :, None]
    )  # in 32 bits, 7 + shift could round to 8
    rows, columns = (places[:, 0] * height / grid).long(), (places[:, 1] * width / grid).long()
    return (rows[:, :, None] * width + columns[:, None, :]).flatten(1)


def _pick(maps: Tensor, cells: Tensor) -> Tensor:
    """Take cells i64 [B, n] out of maps [B, K, h, w]: [B, n, K]."""
    rows = _cells_last(maps)
    return rows.gather(1, cells[:, :, None].expand(-1, -1, rows.shape[-1]))


def _cells_last(maps: Tensor) -> Tensor:
    """[..., K, h, w] -> [..., h * w, K]."""
    return maps.flatten(-2).transpose(-1, -2)


def _with(own: Tensor, others: Tensor | None) -> Tensor:
    return own if others is None else torch.cat((own, others.to(own.dtype)))


def _precise(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _no_autocast(values: Tensor) -> torch.autocast:
    return torch.autocast(values.device.type, enabled=False)
