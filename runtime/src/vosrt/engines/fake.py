"""An encoder without a network, for tests: cells of the same colour get the same embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import EncoderSpec
from vosrt.engines.base import EngineInfo
from vosrt.errors import EngineError
from vosrt.types import F32Array

_COLOUR_SCALE = 25.0


class FakeEngine:
    """Embeds each cell by its mean colour: deterministic, and good enough to follow a coloured square.

    The embedding is K random Fourier features of a Gaussian kernel on colours (Rahimi and Recht 2007), so that
    similarity falls smoothly with colour distance.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        self._spec = spec
        rng = np.random.default_rng(0)
        self._frequency = rng.standard_normal((3, spec.channels)).astype(np.float32) / _COLOUR_SCALE
        self._phase = rng.uniform(0, 2 * np.pi, spec.channels).astype(np.float32)

    @property
    def info(self) -> EngineInfo:
        """What runs and why."""
        return EngineInfo("fake", "fp32", f"numpy {np.__version__}", "asked for; no network runs, for tests only")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed frames u8 [n, height, width, 3] as f32 [n, h, w, K].

        Raises:
            EngineError: the frames are missing or no such array.
        """
        frames = inputs.get(self._spec.input_name)
        if frames is None or frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
            raise EngineError(f"the fake engine needs {self._spec.input_name!r}: uint8 [n, height, width, 3]")
        embeddings = np.stack([self._embed(frame) for frame in frames.astype(np.float32)])
        return {self._spec.output_name: embeddings}

    def _embed(self, frame: F32Array) -> F32Array:
        height, width = self._spec.grid(*frame.shape[:2])
        stride = self._spec.stride
        below, right = height * stride - frame.shape[0], width * stride - frame.shape[1]
        padded = np.pad(frame, ((0, below), (0, right), (0, 0)), mode="edge")
        colour = padded.reshape(height, stride, width, stride, 3).mean(axis=(1, 3))
        features = np.cos(colour @ self._frequency + self._phase)
        length = np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
        embedding: F32Array = (features / length).astype(np.float32)
        return embedding
