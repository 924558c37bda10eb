"""Views: what the regularising branch sees, and that maps are brought to exactly there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from vosrt_train.data.views import View, apply_to_frames, warp_to_view


def view(*clips: tuple[bool, float, float, float]) -> View:
    """Of clips given as (flip, scale, top, left)."""
    return View(
        flip=torch.tensor([clip[0] for clip in clips]),
        scale=torch.tensor([clip[1] for clip in clips]),
        offset=torch.tensor([clip[2:] for clip in clips]),
    )


@st.composite
def views(draw: st.DrawFn, count: int = 2) -> View:
    clips = []
    for _ in range(count):
        scale = draw(st.floats(0.5, 1, width=32))
        top, left = (draw(st.floats(0, 1)) * (1 - scale) for _ in range(2))
        clips.append((draw(st.booleans()), scale, top, left))
    return view(*clips)


def smooth_frames(size: int) -> torch.Tensor:
    """f32 [2, 3, 3, size, size]: waves of a few periods, different in each clip, frame and channel."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    phase = torch.arange(18).view(2, 3, 3, 1, 1)
    return 127 + 60 * torch.sin(6 * x + phase) + 60 * torch.cos(5 * y - phase)


def test_the_whole_clip_is_itself() -> None:
    """Without flip and zoom, frames and maps come back bit by bit, in their own type."""
    frames = torch.randint(0, 256, (1, 2, 3, 24, 24), dtype=torch.uint8)
    whole = view((False, 1.0, 0.0, 0.0))
    assert torch.equal(apply_to_frames(frames, whole), frames)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64):
        maps = torch.arange(1 * 2 * 5 * 7).view(1, 2, 5, 7).to(dtype)
        warped = warp_to_view(maps, whole)
        assert warped.dtype == dtype
        assert torch.equal(warped, maps)


def test_a_flip_mirrors_from_left_to_right() -> None:
    frames = torch.randint(0, 256, (1, 2, 3, 24, 24), dtype=torch.uint8)
    mirrored = view((True, 1.0, 0.0, 0.0))
    assert torch.equal(apply_to_frames(frames, mirrored), frames.flip(-1))
    assert torch.equal(warp_to_view(frames, mirrored), frames.flip(-1))


@pytest.mark.parametrize("flip", [False, True])
def test_a_zoom_is_a_crop_resized(flip: bool) -> None:
    """OpenCV resizes alike; the outermost pixels may also see what lies beyond the crop."""
    frames = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    seen = apply_to_frames(frames, view((flip, 0.5, 0.25, 0.125)))
    for t in range(2):
        crop = np.ascontiguousarray(frames[0, t].permute(1, 2, 0).numpy()[8:24, 4:20])
        expected = cv2.resize(crop, (32, 32), interpolation=cv2.INTER_LINEAR)
        expected = expected[:, ::-1] if flip else expected
        difference = np.abs(seen[0, t].permute(1, 2, 0).numpy().astype(int) - expected)[1:-1, 1:-1]
        assert difference.max() <= 1


@given(views())
def test_the_warp_of_the_image_lines_up_with_the_view(chosen: View) -> None:
    """The nearest pixel is at most half a pixel away, hardly a difference on a smooth image."""
    frames = smooth_frames(48)
    steepest = max((frames.diff(dim=axis)).abs().max().item() for axis in (-1, -2))
    difference = (warp_to_view(frames, chosen) - apply_to_frames(frames, chosen)).abs()
    assert difference.max().item() <= 1.1 * steepest


@given(views())
def test_the_warp_is_nearest_sampling_without_aligned_corners(chosen: View) -> None:
    """PyTorch's own sampler agrees on an affine grid, except where two cells are equally near."""
    theta = torch.zeros(2, 2, 3)
    theta[:, 0, 0] = torch.where(chosen.flip, -chosen.scale, chosen.scale)
    theta[:, 1, 1] = chosen.scale
    theta[:, :, 2] = (2 * chosen.offset + chosen.scale[:, None] - 1).flip(1)
    maps = torch.arange(2 * 8 * 8, dtype=torch.float32).view(2, 1, 8, 8)
    grid = F.affine_grid(theta, [2, 1, 8, 8], align_corners=False)
    expected = F.grid_sample(maps, grid, mode="nearest", align_corners=False)
    places = [place * 8 for place in chosen.places(8, 8)]
    down, right = ((place - place.round()).abs() > 1e-4 for place in places)
    clear = (down[:, :, None] & right[:, None, :])[:, None]
    assert torch.equal(warp_to_view(maps, chosen)[clear], expected[clear])


def test_gradient_returns_to_the_cells_it_came_from() -> None:
    maps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    chosen = view((True, 0.6, 0.1, 0.3), (False, 0.9, 0.0, 0.1))
    assert torch.autograd.gradcheck(lambda x: warp_to_view(x, chosen), maps)


def test_every_clip_has_its_own_view() -> None:
    """A clip of a batch is seen as it would be alone, and all its frames alike."""
    frames = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    clips = [(True, 0.7, 0.2, 0.1), (False, 0.55, 0.0, 0.4)]
    together = apply_to_frames(frames, view(*clips))
    for b, clip in enumerate(clips):
        for t in range(3):
            assert torch.equal(together[b, t], apply_to_frames(frames[b : b + 1, t : t + 1], view(clip))[0, 0])
