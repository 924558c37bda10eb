"""The losses are what the supplement's pseudo-code says, read as loops; gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vosrt.errors import OptionError
from vosrt_train.data.views import View
from vosrt_train.losses import (
    cross_view_loss,
    grid_cells,
    pseudo_labels,
    sample_anchors,
    sample_points,
    space_time_loss,
)

CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH, GRID = 3, 3, 5, 6, 4, 2
TAU = 0.3


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    """Main and regularising maps, f64 [CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH] of unit length."""
    generator = torch.Generator().manual_seed(3)
    shape = (2, CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH)
    main, regular = F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=3)
    return main.requires_grad_(), regular.requires_grad_()


VIEW = View(
    flip=torch.tensor([True, False, True]),
    scale=torch.tensor([0.62, 0.83, 1.0]),
    offset=torch.tensor([[0.11, 0.3], [0.05, 0.02], [0.0, 0.0]]),
)
SHIFT = torch.tensor([[0.1, 0.9], [0.6, 0.2], [0.99, 0.0]])


def naive_warp(b: int, i: int, j: int) -> tuple[int, int]:
    """The cell of the clip that lies nearest to the centre of cell (i, j) of the view."""
    x = (j + 0.5) / WIDTH
    if VIEW.flip[b]:
        x = 1 - x
    top, left = VIEW.offset[b].tolist()
    scale = VIEW.scale[b].item()
    return math.floor((top + scale * (i + 0.5) / HEIGHT) * HEIGHT), math.floor((left + scale * x) * WIDTH)


def naive_grid(b: int, grid: int) -> list[tuple[int, int]]:
    down, right = SHIFT[b].tolist()
    rows = [math.floor((i + down) * HEIGHT / grid) for i in range(grid)]
    columns = [math.floor((j + right) * WIDTH / grid) for j in range(grid)]
    return [(i, j) for i in rows for j in columns]


def naive_space_time_loss(main: Tensor, regular: Tensor) -> Tensor:
    """``loss = cross_entropy(T(v), argmax(v_hat * block_ones))`` without frame 0."""
    anchors = [main[b, 0, :, i, j] for b in range(CLIPS) for i, j in naive_grid(b, GRID)]
    losses = []
    for b in range(CLIPS):
        own = range(b * GRID * GRID, (b + 1) * GRID * GRID)
        for t in range(1, FRAMES):
            for i in range(HEIGHT):
                for j in range(WIDTH):
                    label = max(own, key=lambda n: (anchors[n] @ regular[b, t, :, i, j]).item())
                    u, v = naive_warp(b, i, j)
                    weights = [torch.exp(anchor @ main[b, t, :, u, v] / TAU) for anchor in anchors]
                    losses.append(-torch.log(weights[label] / torch.stack(weights).sum()))
    return torch.stack(losses).mean()


def naive_cross_view_loss(main: Tensor, regular: Tensor) -> Tensor:
    """``-log(diag(softmax(r @ r_hat.T / tau)))`` over the points of all clips."""
    points, partners = [], []
    for b in range(CLIPS):
        for i, j in naive_grid(b, GRID):
            u, v = naive_warp(b, i, j)
            points.append(main[b, 0, :, u, v])
            partners.append(regular[b, 0, :, i, j])
    losses = []
    for n, point in enumerate(points):
        weights = [torch.exp(point @ partner / TAU) for partner in partners]
        losses.append(-torch.log(weights[n] / torch.stack(weights).sum()))
    return torch.stack(losses).mean()


def our_space_time_loss(main: Tensor, regular: Tensor) -> Tensor:
    return space_time_loss(main, regular, VIEW, sample_anchors(main, SHIFT, grid=GRID), temperature=TAU)


def our_cross_view_loss(main: Tensor, regular: Tensor) -> Tensor:
    return cross_view_loss(*sample_points(main, regular, VIEW, SHIFT, grid=GRID), temperature=TAU)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_space_time_loss_equals_its_loops(maps: tuple[Tensor, Tensor]) -> None:
    main, regular = maps
    ours, naive = our_space_time_loss(main, regular), naive_space_time_loss(main, regular)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(ours, main), gradients(naive, main), rtol=1e-9, atol=1e-14)


def test_cross_view_loss_equals_its_loops(maps: tuple[Tensor, Tensor]) -> None:
    ours, naive = our_cross_view_loss(*maps), naive_cross_view_loss(*maps)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(ours, *maps), gradients(naive, *maps), rtol=1e-9, atol=1e-14)


def test_gradients_are_those_of_finite_differences(maps: tuple[Tensor, Tensor]) -> None:
    main, regular = maps
    assert torch.autograd.gradcheck(lambda x: our_space_time_loss(x, regular.detach()), main)
    assert torch.autograd.gradcheck(our_cross_view_loss, (main, regular))


def test_space_time_loss_leaves_the_regularising_branch_alone(maps: tuple[Tensor, Tensor]) -> None:
    """Pseudo-labels are targets, and of frame 0 of the main branch only the anchors matter."""
    main, regular = maps
    our_space_time_loss(main, regular).backward()  # type: ignore[no-untyped-call]
    assert regular.grad is None
    assert main.grad is not None
    touched = main.grad[:, 0].abs().sum(1).nonzero().tolist()
    assert [tuple(cell) for cell in touched] == [
        (b, i, j) for b in range(CLIPS) for i, j in sorted(naive_grid(b, GRID))
    ]


def test_cross_view_loss_reaches_frame_0_of_both_branches_only(maps: tuple[Tensor, Tensor]) -> None:
    for gradient in gradients(our_cross_view_loss(*maps), *maps):
        assert gradient[:, 0].abs().sum() > 0
        assert gradient[:, 1:].abs().sum() == 0


def test_pseudo_labels_name_anchors_of_the_own_clip() -> None:
    """They do although another clip's anchor fits perfectly."""
    anchors = torch.eye(8).view(2, 4, 8)
    regular = torch.zeros(2, 2, 8, 1, 2)
    regular[0, 1, :, 0, 0] = anchors[1, 3] + 0.1 * anchors[0, 2]
    regular[0, 1, :, 0, 1] = anchors[0, 1]
    regular[1, 1, :, 0, 0] = anchors[1, 3]
    assert pseudo_labels(regular, anchors).tolist() == [[[[2, 1]]], [[[3, 0]]]]


@pytest.mark.parametrize("kind", ["space-time", "cross-view"])
def test_negatives_of_other_processes_make_the_joint_batch(maps: tuple[Tensor, Tensor], kind: str) -> None:
    """Clips alone, with the others' samples as negatives, have the batch's loss and gradient in the mean."""
    main, regular = maps

    def part(b: int) -> Tensor:
        own, others = slice(b, b + 1), [c for c in range(CLIPS) if c != b]
        view = View(VIEW.flip[own], VIEW.scale[own], VIEW.offset[own])
        if kind == "space-time":
            anchors = sample_anchors(main, SHIFT, grid=GRID)
            negatives = anchors[others].flatten(0, 1)
            return space_time_loss(main[own], regular[own], view, anchors[own], temperature=TAU, negatives=negatives)
        points, partners = (p.view(CLIPS, -1, CHANNELS) for p in sample_points(main, regular, VIEW, SHIFT, grid=GRID))
        return cross_view_loss(points[b], partners[b], temperature=TAU, negatives=partners[others].flatten(0, 1))

    joint = (our_space_time_loss if kind == "space-time" else our_cross_view_loss)(main, regular)
    parts = torch.stack([part(b) for b in range(CLIPS)]).mean()
    torch.testing.assert_close(parts, joint, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(parts, main), gradients(joint, main), rtol=1e-9, atol=1e-14)


def test_half_precision_maps_are_compared_in_full() -> None:
    """Under autocast, losses are bit by bit those of the same rounded values in 32 bits."""
    maps = F.normalize(torch.randn(2, CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH), dim=3).bfloat16()
    expected = our_space_time_loss(*maps.float()), our_cross_view_loss(*maps.float())
    with torch.autocast("cpu", torch.bfloat16):
        losses = our_space_time_loss(*maps), our_cross_view_loss(*maps)
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert losses == expected


def test_knowing_nothing_costs_the_logarithm_of_the_choices(maps: tuple[Tensor, Tensor]) -> None:
    """Equal embeddings make every anchor and every partner as likely as any other."""
    same = torch.ones_like(maps[0]) / CHANNELS**0.5
    choices = math.log(CLIPS * GRID * GRID)
    assert our_space_time_loss(same, same).item() == pytest.approx(choices)
    assert our_cross_view_loss(same, same).item() == pytest.approx(choices)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(0, 63))
def test_the_grid_moves_as_a_whole(grid: int, down: int, right: int, shift: int) -> None:
    """Every ``down`` rows and ``right`` columns are taken, from a first place within these."""
    fraction = (shift + 0.5) / 64
    cells = grid_cells(torch.tensor([[fraction, 1 - fraction]]), grid * down, grid * right, grid=grid)
    rows = int(fraction * down) + down * torch.arange(grid)
    columns = int((1 - fraction) * right) + right * torch.arange(grid)
    assert torch.equal(cells[0].view(grid, grid), rows[:, None] * grid * right + columns)


@given(st.integers(2, 5), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**24 - 1))
def test_the_grid_fits_maps_of_any_size(grid: int, extra_rows: int, extra_columns: int, shift: int) -> None:
    """All cells differ and lie on the map."""
    height, width = grid + extra_rows, grid + extra_columns
    cells = grid_cells(torch.full((2, 2), shift / 2**24), height, width, grid=grid)
    assert cells.shape == (2, grid * grid)
    assert cells.min() >= 0
    assert cells.max() < height * width
    assert len(set(cells[0].tolist())) == grid * grid


def test_maps_smaller_than_the_grid_are_refused() -> None:
    with pytest.raises(OptionError, match=r"maps of 7×16 cells cannot hold a 8×8 grid; use a larger crop"):
        grid_cells(torch.zeros(1, 2), 7, 16, grid=8)
