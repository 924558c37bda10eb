"""Label propagation within a clip: what is read, and what hops to and fro do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vosrt.core import reference
from vosrt_train.masks.propagation import attend, attend_others, hop


def random_units(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


@pytest.mark.parametrize("top_k", [4, 1000])
def test_attention_is_the_runtimes(top_k: int) -> None:
    """Its weights read from a memory what the runtime's match and read-out do, with every slot attended globally."""
    query, keys = random_units(1, 8, 5, 6), random_units(1, 8, 2 * 30, seed=1)
    labels = torch.rand((1, 3, 60), generator=torch.Generator().manual_seed(2))
    weights = attend(query, keys, temperature=0.05, top_k=top_k)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1, 30))
    slots = [keys[0, :, 30 * slot : 30 * slot + 30].T.reshape(5, 6, 8).numpy() for slot in range(2)]
    found = reference.match(query[0].permute(1, 2, 0).numpy(), slots, [False, False], radius=1, top_k=min(top_k, 60))
    on_slots = labels[0].view(3, 2, 5, 6).permute(1, 2, 3, 0).numpy()
    wanted = reference.read_out(found, np.ascontiguousarray(on_slots), 0.05)
    np.testing.assert_allclose((labels @ weights)[0].view(3, 5, 6).permute(1, 2, 0).numpy(), wanted, atol=1e-5)


def test_attention_reads_what_the_released_program_read(shared_data: Path) -> None:
    """V_q of frame 1 from the recorded keys and values; its memory holds frame 0 alone, six times.

    The program attended five of them within a window; what it cut off is left out of the comparison.
    """
    with np.load(shared_data / "golden" / "mask_embedding_blackswan_s96.npz") as golden:
        key, value = (torch.from_numpy(golden[name][:, 0]) for name in ("key", "value"))
        weights = attend(key[1:2], key[:1].flatten(2).repeat(1, 1, 6), temperature=0.05, top_k=10)
        readout = value[:1].flatten(2).repeat(1, 1, 6) @ weights
        wanted = torch.from_numpy(golden["readout"][0]).flatten(2)
        same = (weights.topk(10, dim=1).values[0] - torch.from_numpy(golden["topk_w"][0, 0])).abs().amax(dim=0) < 1e-5
    assert same.float().mean() > 0.5
    assert (readout - wanted)[:, :, same].abs().max() < 1e-4


def hopped(embedding: Tensor, masks: Tensor, hops: Tensor, *, top_k: int) -> Tensor:
    """Soft masks [C, T - 1, 1 + M, h, w]."""
    reference = embedding[:, 0].flatten(2)
    alone = [attend(of_frame, reference, temperature=0.05, top_k=top_k) for of_frame in embedding.unbind(1)[1:]]
    return torch.stack(hop(alone, attend_others(embedding, temperature=0.05, top_k=top_k), masks, hops), dim=1)


def test_hops_of_each_clip() -> None:
    """With none a frame reads from the reference; each one more reads also from the other later frames."""
    embedding = random_units(2 * 3, 8, 4, 5).view(2, 3, 8, 4, 5)
    masks = torch.rand((2, 2, 4, 5), generator=torch.Generator().manual_seed(1))
    masks /= masks.sum(dim=1, keepdim=True)
    found = hopped(embedding, masks, torch.tensor([0, 2]), top_k=4)
    torch.testing.assert_close(found.sum(dim=2), torch.ones(2, 2, 4, 5))
    for clip, hops in ((0, 0), (1, 2)):
        keys, labels = embedding[clip : clip + 1].flatten(3), masks[clip].flatten(1)

        def read(t: int, frames: list[int], keys: Tensor = keys) -> Tensor:
            known = torch.cat([keys[:, each] for each in frames], dim=2)
            return attend(keys[:, t].view(1, 8, 4, 5), known, temperature=0.05, top_k=4)[0]

        soft = {t: labels @ read(t, [0]) for t in (1, 2)}
        for _ in range(hops):
            soft = {t: torch.cat([labels, soft[3 - t]], dim=1) @ read(t, [0, 3 - t]) for t in (1, 2)}
        for t in (1, 2):
            torch.testing.assert_close(found[clip, t - 1].flatten(1), soft[t])


def test_hops_carry_a_mask_where_the_reference_does_not_reach() -> None:
    """What became of the object step by step looks more like the background of the reference than like the object."""
    changes = {
        "object": (1.0, 0.0, 0.0),
        "background": (0.0, 0.0, 1.0),
        "halfway": (0.7, 0.7, 0.0),
        "late": (0.0, 0.9, 0.4),
    }
    looks = {name: torch.nn.functional.normalize(torch.tensor(vector), dim=0) for name, vector in changes.items()}
    frames = [("object", "background"), ("halfway", "background"), ("late", "background")]
    embedding = torch.stack([torch.stack([looks[each] for each in frame], dim=1) for frame in frames])[None, :, :, None]
    masks = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
    alone, once = (hopped(embedding, masks, torch.tensor([n]), top_k=1)[0, :, 1, 0] for n in (0, 1))
    assert alone.tolist() == [[1, 0], [0, 0]]
    assert once.tolist() == [[1, 0], [1, 0]]
