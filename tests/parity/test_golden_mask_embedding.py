"""Read-out and aggregation of mask embeddings against the released program of the method, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes.memories import read_values
from vosrt.core import reference
from vosrt.types import F32Array

CELLS = 12 * 22
TOLERANCE = 1e-4

Read = Callable[[reference.Neighbours, F32Array], F32Array]


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> Mapping[str, NDArray[Any]]:
    with np.load(shared_data / "golden" / "mask_embedding_blackswan_s96.npz") as data:
        return dict(data)


@pytest.fixture(params=["numpy", "native"])
def read(request: pytest.FixtureRequest) -> Read:
    """The read-out of one object's values on each core."""
    if request.param == "numpy":
        return lambda neighbours, values: reference.read_values(neighbours, [values], 0.05)[0]
    request.getfixturevalue("native")
    return lambda neighbours, values: read_values(
        np.ascontiguousarray(neighbours.similarity),
        np.ascontiguousarray(neighbours.slot),
        np.ascontiguousarray(neighbours.cell),
        [values],
        0.05,
    )[0]


def cells_last(maps: NDArray[Any]) -> NDArray[Any]:
    """[n, C, h, w] -> [n, h, w, C]."""
    return np.ascontiguousarray(maps.transpose(0, 2, 3, 1))


def test_aggregation(golden: Mapping[str, NDArray[Any]]) -> None:
    """The program keeps logits, and our soft masks are their softmax."""
    for logit, wanted in zip(golden["decoder_logit"], golden["refined_logits"], strict=True):
        soft = reference.aggregate(logit[0].transpose(1, 2, 0))
        odds = np.exp(wanted[:, 0].transpose(1, 2, 0))
        assert np.abs(soft - odds / odds.sum(axis=-1, keepdims=True)).max() < TOLERANCE


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_read_out_of_values_and_labels(golden: Mapping[str, NDArray[Any]], read: Read, frame: int) -> None:
    """V_q and the coarse mask of each frame follow from the recorded keys, values, labels and neighbours.

    The memory holds frame 0 in slot 0, attended globally, and the five frames before, copies of frame 0 at first.
    """
    slots = [0, *(max(0, earlier) for earlier in range(frame - 4, frame + 1))]
    keys, values = cells_last(golden["key"][:, 0]), cells_last(golden["value"][:, 0])
    chosen = golden["topk_i"][frame, 0].T
    slot, cell = (chosen // CELLS).astype(np.int32), (chosen % CELLS).astype(np.int32)
    query = keys[frame + 1].reshape(CELLS, -1)
    memory = keys[slots].reshape(len(slots), CELLS, -1)
    similarity = np.einsum("qc,qkc->qk", query, memory[slot, cell]).astype(np.float32)

    neighbours = reference.Neighbours(similarity, slot, cell)
    weights = read(neighbours, np.ones((len(slots), CELLS, 1), dtype=np.float32))
    assert np.abs(weights - 1).max() < 1e-5
    found = read(neighbours, values[slots].reshape(len(slots), CELLS, -1))
    assert np.abs(found - cells_last(golden["readout"][frame])[0].reshape(CELLS, -1)).max() < TOLERANCE


def test_the_neighbours_are_those_of_match(golden: Mapping[str, NDArray[Any]], read: Read) -> None:
    """In frame 1 the core gives the same weights and values for any choice among equal copies."""
    keys, values = cells_last(golden["key"][:, 0]), cells_last(golden["value"][:, 0])
    found = reference.match(keys[1], [keys[0]] * 6, [False] + [True] * 5, radius=12, top_k=10)
    copies = np.repeat(values[:1].reshape(1, CELLS, -1), 6, axis=0)
    assert np.abs(read(found, copies) - cells_last(golden["readout"][0])[0].reshape(CELLS, -1)).max() < TOLERANCE
