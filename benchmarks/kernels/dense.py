"""Label propagation as its formulas read (Araslanov et al. 2021, appendix C), in PyTorch: the baseline of benchmarks.

One affinity of hw x N·hw is written to memory, masked outside the circle, and searched for the top k. Frames before the
reference are replaced by it, so there are always N = 1 + context slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vosrt.types import PropagationOptions


def cells_outside(height: int, width: int, radius: float) -> Tensor:
    """Return the cells that each cell may not attend to in the recent frames: bool [h*w, h*w]."""
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    return (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 >= radius**2


def propagate(query: Tensor, keys: Tensor, labels: Tensor, outside: Tensor, options: PropagationOptions) -> Tensor:
    """Soft masks of a frame.

    Args:
        query: f32 [h*w, K], unit length per cell.
        keys: f32 [N*h*w, K], the reference first.
        labels: f32 [N*h*w, M], soft masks of those frames.
        outside: of `cells_outside`.
        options: top_k and temperature.

    Returns:
        f32 [h*w, M].
    """
    cells = query.shape[0]
    affinity = query @ keys.T
    affinity.view(cells, -1, cells)[:, 1:].masked_fill_(outside[:, None], -torch.inf)
    similarity, index = affinity.topk(options.top_k, dim=1)
    weight = torch.softmax(similarity / options.temperature, dim=1)
    return torch.einsum("qk,qkm->qm", weight, labels[index])


class DenseTracker:
    """Follows the objects of a first frame through a video.

    Args:
        encode: u8 [1, H, W, 3] BGR -> f32 [1, h, w, K], unit length per cell.
        options: how labels are propagated; a circle, a global reference and padding are what this knows.
        step: `propagate`, or the same compiled.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        options: PropagationOptions,
        step: Callable[[Tensor, Tensor, Tensor, Tensor, PropagationOptions], Tensor] = propagate,
    ) -> None:
        self._encode, self._options, self._step = encode, options, step
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=options.context)

    @torch.inference_mode()
    def start(self, frame: Tensor, mask: Tensor, objects: int, *, device: str = "cpu") -> None:
        """Take the first frame u8 [H, W, 3] with its objects, integers [H, W] from 0 (background) to ``objects``."""
        embedding = self._encode(frame[None])[0]
        self._grid, self._frame = embedding.shape[:2], frame.shape[:2]
        one_hot = functional.one_hot(mask.long(), objects + 1).permute(2, 0, 1).float()
        soft = functional.interpolate(one_hot[None], size=self._grid, mode="bilinear", align_corners=True)[0]
        self._outside = cells_outside(*self._grid, self._options.radius).to(device)
        self._recent.extend([(embedding.flatten(0, 1), soft.flatten(1).T)] * self._options.context)
        self._reference = self._recent[0]

    @torch.inference_mode()
    def step(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, integers [H, W], and confidence f32 [H, W] of the next frame, u8 [H, W, 3]."""
        query = self._encode(frame[None])[0].flatten(0, 1)
        slots = [self._reference, *self._recent]
        keys, labels = (torch.cat(each) for each in zip(*slots, strict=True))
        soft = self._step(query, keys, labels, self._outside, self._options)
        self._recent.append((query, soft))
        planes = soft.T.unflatten(1, self._grid)[None]
        full = functional.interpolate(planes, size=self._frame, mode="bilinear", align_corners=True)[0]
        confidence, label = full.max(dim=0)
        return label, confidence
