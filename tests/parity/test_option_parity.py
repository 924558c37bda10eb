"""Every option of propagation that a manifest can hold does on a GPU what it does on the processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import vosrt
from vosrt.bundle import EncoderSpec
from vosrt.encoder import Embedding, FrameEncoder
from vosrt.engines.base import EngineInfo
from vosrt.stream import Stream
from vosrt.types import F32Array, PropagationOptions, U8Array

H, W, K = 9, 14, 40  # of `video`
VALUES: dict[str, tuple[Any, ...]] = {  # the first is the plain one
    "context": (3, 0, 1, 7),
    "radius": (4.0, 1.0, 2.5, 12.0),
    "top_k": (10, 1, 20, 64),
    "temperature": (0.05, 0.02, 1.0),
    "pad_context": (True, False),
    "yield_background": (True, False),
    "centring": (0.0, 0.5, 1.0),
    "sharpness": (1.0, 0.5, 1.5, 3.0),
    "object_bias": (0.0, -0.5, 0.1, 1.0),
    "guided": (0, 1, 4, 32),
    "calibration": (0, 1, 5, 1024),
    "motion": (0.0, 0.3, 10.0),
    "parts": (1, 2, 4),
}
FORMER = {"window", "global_reference"}  # keys that allow one value
SIZES = {"size", "enlarge_percent"}  # which no memory sees
PRESENCE = {  # which change no mask: tests/runtime/test_presence.py
    "lost_share",
    "clear_share",
    "lost_after",
    "back_after",
    "back_for",
    "back_confidence",
    "iou_factor",
    "iou_power",
}


class NoEngine:
    """For streams that are given embeddings."""

    info = EngineInfo("none", "fp32", "", "for this test")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Not called."""
        raise AssertionError("a frame was encoded")


def test_all_options_are_compared() -> None:
    """What the schema of manifests names, and what the options have."""
    lines = (Path(vosrt.__file__).parent / "bundle" / "schema.txt").read_text().splitlines()
    keys = {line.split()[0].removeprefix("inference.") for line in lines if line.startswith("inference.")}
    assert keys - FORMER - SIZES == set(VALUES) | PRESENCE == set(vars(PropagationOptions()))


def compare(
    native: Any,
    options: PropagationOptions,
    frames: list[F32Array],
    mark: Callable[..., U8Array],
    *,
    align_corners: bool,
) -> None:
    """One video on both devices, from the same masks in every frame, while objects come and go."""
    if not any(native.isa_available(isa) for isa in ("avx512bf16", "amx")):
        pytest.skip("this processor has no bf16 path, whose number format the GPU has")
    encoder = FrameEncoder(EncoderSpec(channels=K, feature="key", align_corners=align_corners), NoEngine())
    streams = [Stream(encoder, options, precision="bf16", threads=2, device=device) for device in ("cpu", "cuda")]
    random, relabelled = np.random.default_rng(5), 0
    for t, array in enumerate(frames):
        picture = np.kron(random.integers(0, 256, (H, W, 3)), np.ones((7, 7, 1))).astype(np.uint8)
        marks = {0: mark(1, 2), 3: np.where(mark(1, 2) == 2, 7, 0).astype(np.uint8)}.get(t)
        if t == 5:
            for stream in streams:
                stream.remove(2)
        embedding = Embedding(array, 8 * H, 8 * W, frame=picture)
        ours, theirs = (stream.step(embedding, marks) for stream in streams)
        assert ours.object_ids == theirs.object_ids
        soft = streams[0].soft_masks()
        np.testing.assert_allclose(streams[1].soft_masks(), soft, atol=2e-3)
        alike = ours.labels == theirs.labels
        relabelled += int((~alike).sum())
        assert (alike | (np.abs(ours.confidence - theirs.confidence) < 2e-2)).all()
        np.testing.assert_allclose(ours.confidence[alike], theirs.confidence[alike], atol=2e-2)
        for object_id, found in ours.objects.items():
            other = theirs.objects[object_id]
            assert abs(found.area_px - other.area_px) <= 0.01 * array[..., 0].size * 64
            assert abs(found.confidence - other.confidence) < 2e-2
            assert found.state == other.state
        streams[1].set_soft_masks(soft)
    assert relabelled < 2e-3 * len(frames) * 64 * H * W


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in VALUES.items() for value in values[1:]], ids=str
)
def test_each_option_alone(native: Any, cuda_emulated: Path, video: Any, mark: Any, name: str, value: Any) -> None:
    """Labels agree but for 0.2 % of the pixels, as do confidence, and area, confidence and state of each object."""
    options = PropagationOptions(**{**{each: values[0] for each, values in VALUES.items()}, name: value})
    compare(native, options, video(7), mark, align_corners=False)


@given(
    chosen=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()}),
    corners=st.booleans(),
)
@settings(derandomize=True, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_options_together(
    native: Any, cuda_emulated: Path, video: Any, mark: Any, chosen: dict[str, Any], corners: bool
) -> None:
    """Likewise."""
    compare(native, PropagationOptions(**chosen), video(7), mark, align_corners=corners and chosen["parts"] == 1)
