"""The palindromes of a contrastive random walk (Jabri, Owens and Efros, NeurIPS 2020, equations 2 to 4).

A walker goes from frame to frame, each time to a similar cell, up to frame t and back again, and has to end where it
started. Since it takes many steps, the loss sees how small errors add up, as they do in propagation; the space-time
loss compares each frame with frame 0 only.

Convolutions know where the border is, so a walker could find its way back by place alone. It therefore starts in the
regularising view, where places are others, and has to end at the cell of frame 0 that this view shows. The paper cuts
frames into patches instead, each embedded without its surroundings.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vosrt_train.data.views import View

_DROPPED = -1e4  # a similarity far below all others; minus infinity would give NaN where a row loses all its edges
_LEAST = 1e-12  # probability below which the logarithm is cut off


def palindrome_loss(
    main: Tensor, start: Tensor, view: View, *, temperature: float, dropout: float = 0.0, seed: int = 0
) -> Tensor:
    """Compute the mean over the turning points t = 1 … T - 1 of the cross-entropy of walks 0 → t → 0.

    Args:
        main: float [B, T, K, h, w] of unit length per cell, in the order of time.
        start: float [B, K, h, w], frame 0 in the regularising view.
        temperature: τ of the transition probabilities.
        dropout: share of the transitions that are forbidden, drawn for each pair of frames.

    Returns:
        float [], mean over clips, turning points and cells of the view.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.autocast(main.device.type, enabled=False):
        frames = [_cells(frame) for frame in main.unbind(1)]

        def step(origin: Tensor, target: Tensor) -> Tensor:
            """Return the probabilities of going from each cell to each cell: [B, N, N]."""
            similarity = torch.bmm(origin, target.transpose(1, 2)) / temperature
            if dropout:
                forbidden = torch.rand(similarity.shape, generator=random) < dropout
                similarity = similarity.masked_fill(forbidden.to(similarity.device), _DROPPED)
            return similarity.softmax(-1)

        ends = view.cells(*main.shape[-2:])
        out, back, losses = None, None, []
        for t in range(1, len(frames)):
            forward = step(_cells(start) if out is None else frames[t - 1], frames[t])
            backward = step(frames[t], frames[t - 1])
            out = forward if out is None else torch.bmm(out, forward)
            back = backward if back is None else torch.bmm(backward, back)
            arrived = torch.bmm(out, back).clamp_min(_LEAST).log()
            losses.append(F.nll_loss(arrived.flatten(0, 1), ends.flatten()))
        return torch.stack(losses).mean()


def _cells(frame: Tensor) -> Tensor:
    """[B, K, h, w] -> [B, h * w, K] in at least 32 bits."""
    cells = frame.flatten(2).transpose(1, 2)
    return cells.float() if cells.dtype in (torch.bfloat16, torch.float16) else cells
