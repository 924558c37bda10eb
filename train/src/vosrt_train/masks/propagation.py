"""Label propagation within a clip, for the segmentation loss: attention weights, and repeated propagation."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(query: Tensor, keys: Tensor, *, temperature: float, top_k: int) -> Tensor:
    """Compute the weights with which each cell reads from a memory: a softmax over its most similar cells.

    It is computed in fp32 at every precision of the training.

    Args:
        query: f32 [C, K, h, w] of unit length per cell.
        keys: f32 [C, K, N] of unit length per cell.
        temperature: τ.
        top_k: cells that are read; 0 is all.

    Returns:
        f32 [C, N, h * w], each column of sum 1. Gradient flows to both.
    """
    with torch.autocast(query.device.type, enabled=False):
        similarity = keys.float().transpose(1, 2) @ query.float().flatten(2) / temperature
        if 0 < top_k < keys.shape[2]:
            best, cells = similarity.topk(top_k, dim=1)
            return torch.zeros_like(similarity).scatter(1, cells, best.softmax(dim=1))
        return similarity.softmax(dim=1)


def attend_others(embedding: Tensor, *, temperature: float, top_k: int) -> list[Tensor]:
    """Compute the weights with which each later frame of a clip reads from all other frames.

    Args:
        embedding: f32 [C, T, K, h, w] of unit length per cell; frame 0 is the reference.
        temperature: τ.
        top_k: cells that are read; 0 is all.

    Returns:
        T - 1 times f32 [C, (T - 1) * h * w, h * w], the reference's cells first. Gradient flows to the embedding.
    """
    keys, later = embedding.flatten(3).unbind(1), range(1, embedding.shape[1])
    known = {t: torch.cat([of_frame for other, of_frame in enumerate(keys) if other != t], dim=2) for t in later}
    return [attend(embedding[:, t], known[t], temperature=temperature, top_k=top_k) for t in later]


@torch.no_grad()
def hop(from_reference: list[Tensor], from_others: list[Tensor], reference: Tensor, hops: Tensor) -> list[Tensor]:
    """Propagate soft masks from the reference, then repeatedly between the later frames.

    In a long video, soft masks grow less certain: borders spread, and similar regions take on some of the object. Later
    frames that read from the reference and from each other, many times, show the same decay within a short clip.

    Args:
        from_reference: for each later frame, weights f32 [C, h * w, h * w] over the cells of the reference.
        from_others: for each later frame, the weights of `attend_others`.
        reference: f32 [C, 1 + M, h, w], soft masks of frame 0.
        hops: i64 [C], how often the later frames of each clip read from each other; with 0, they read from the
            reference alone.

    Returns:
        For each later frame f32 [C, 1 + M, h, w], without gradient.
    """
    labels = reference.float().flatten(2)
    with torch.autocast(labels.device.type, enabled=False):
        soft = [labels @ weights for weights in from_reference]
        for number in range(int(hops.max())):
            goes_on = (number < hops).view(-1, 1, 1)
            known = [torch.cat([labels, *soft[:t], *soft[t + 1 :]], dim=2) for t in range(len(soft))]
            stepped = [masks @ weights for masks, weights in zip(known, from_others, strict=True)]
            soft = [torch.where(goes_on, after, before) for after, before in zip(stepped, soft, strict=True)]
    return [of_frame.view(reference.shape) for of_frame in soft]
