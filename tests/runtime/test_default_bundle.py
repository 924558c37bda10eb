"""The bundle that comes with the package, through real engines, without PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vosrt import EngineError, MissingExtraError, Model
from vosrt.types import Precision, U8Array


def test_the_default_bundle_segments_a_clip_on_the_cpu(tiny_clip: tuple[U8Array, U8Array]) -> None:
    """The first frame shows its mask; the others have labels and finite confidence."""
    frames, masks = tiny_clip
    model = Model.load(engine="cpu")
    with model.stream() as stream:
        results = [stream.start(frames[0], masks[0]), *(stream.step(frame) for frame in frames[1:])]
    np.testing.assert_array_equal(results[0].labels, masks[0])
    for result in results[1:]:
        assert set(np.unique(result.labels)) <= {0, 1, 2}
        assert result.labels.any()
        assert np.isfinite(result.confidence).all()
    assert model.describe()["weights"] in ("trained", "untrained")


@pytest.mark.parametrize(("precision", "similarity"), [("fp32", 0.99999), ("bf16", 0.999)])
def test_openvino_computes_what_the_cpu_provider_computes(
    tiny_clip: tuple[U8Array, U8Array],
    precision: Precision,
    similarity: float,
    skip_or_fail: Callable[..., None],
) -> None:
    """The cosine of each cell is compared with fp32; where OpenVINO does not run, its reason skips the test."""
    try:
        model = Model.load(engine="openvino", precision=precision)
    except (EngineError, MissingExtraError) as error:
        skip_or_fail(str(error), required="openvino")
    frame = tiny_clip[0][0]
    exact = Model.load(engine="cpu", precision="fp32").encode(frame).array
    assert (model.encode(frame).array * exact).sum(axis=-1).min() > similarity
