"""Comparison at the end of every export: the checkpoint in PyTorch with the graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vosrt.bundle import Feature, WeightPrecision
from vosrt.engines.onnxruntime import load_onnxruntime
from vosrt.text import reason_of
from vosrt.types import F32Array, U8Array
from vosrt_export.errors import ExportError
from vosrt_export.graphs import reference_embedding
from vosrt_export.onnx import INPUT_NAME, OUTPUT_NAME
from vosrt_train.model.contract import VisualEncoder

# n, height, width: the smallest that a manifest admits, odd, one of them even, a batch, a landscape frame.
SIZES = ((1, 16, 16), (1, 17, 95), (2, 61, 48), (1, 97, 171))


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Limits of the difference.

    Attributes:
        max_abs: largest absolute difference of two elements.
        min_cosine: smallest cosine between the embeddings of a cell.
    """

    max_abs: float
    min_cosine: float


TOLERANCES: dict[WeightPrecision, Tolerance] = {
    "fp32": Tolerance(max_abs=2e-5, min_cosine=0.999999),
    "fp16": Tolerance(max_abs=2e-3, min_cosine=0.9999),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of a comparison, over all sizes.

    Attributes:
        min_cosine: smallest cosine between the embeddings of a cell.
        cells: number of cells compared.
    """

    max_abs: float
    mean_abs: float
    min_cosine: float
    cells: int

    def passes(self, tolerance: Tolerance) -> bool:
        """Return whether the difference stays within the tolerance; NaN does not."""
        return self.max_abs <= tolerance.max_abs and self.min_cosine >= tolerance.min_cosine

    def __str__(self) -> str:
        return f"max abs {self.max_abs:.2e}, mean abs {self.mean_abs:.2e}, min cosine {self.min_cosine:.7f}"


def compare(
    encoder: VisualEncoder,
    feature: Feature,
    model: bytes,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
) -> Comparison:
    """Run the same frames through the checkpoint's network and the exported graph.

    Args:
        encoder: the network as trained, in evaluation mode.
        feature: the map that the graph was exported for.
        model: the serialised graph.
        sizes: n, height, width of the batches.

    Raises:
        ExportError: the graph does not load, does not run or gives another shape.
    """
    try:
        session = load_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs = [(frames, session.run([OUTPUT_NAME], {INPUT_NAME: frames})[0]) for frames in sample_frames(sizes)]
    except Exception as error:  # the errors of ONNX Runtime have no other base
        raise ExportError(f"ONNX Runtime cannot run the exported graph: {reason_of(error)}") from error
    return summarise([(reference_embedding(encoder, feature, torch.from_numpy(x)).numpy(), y) for x, y in outputs])


def summarise(pairs: Sequence[tuple[F32Array, F32Array]]) -> Comparison:
    """Compare pairs of expected and found embeddings, f32 [n, h, w, K] each.

    They are rounded to digits that matter and that do not depend on the processor.

    Raises:
        ExportError: the shapes of a pair differ.
    """
    for wanted, found in pairs:
        if wanted.shape != found.shape:
            raise ExportError(f"the exported graph gives shape {found.shape}; the checkpoint gives {wanted.shape}")
    wanted = np.concatenate([a.reshape(-1, a.shape[-1]) for a, _ in pairs]).astype(np.float64)
    found = np.concatenate([b.reshape(-1, b.shape[-1]) for _, b in pairs]).astype(np.float64)
    difference = np.abs(wanted - found)
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    # A cell without activation has length 0 on both sides: equal, although it has no direction.
    cosine = np.where(
        lengths == 0, 1 - difference.max(axis=1), (wanted * found).sum(axis=1) / np.maximum(lengths, 1e-30)
    )
    return Comparison(
        max_abs=float(f"{difference.max():.2e}"),
        mean_abs=float(f"{difference.mean():.2e}"),
        min_cosine=round(float(cosine.min()), 7),
        cells=len(cosine),
    )


def sample_frames(sizes: Sequence[tuple[int, int, int]]) -> Iterator[U8Array]:
    """Noise over a coloured gradient, so that flat areas, edges and both ends of the range occur."""
    random = np.random.default_rng(0)
    for n, height, width in sizes:
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        gradient = 255 * np.stack([x, y, 1 - x], axis=-1)
        noise = random.normal(scale=random.uniform(0, 80, (n, 1, 1, 1)), size=(n, height, width, 3))
        yield np.clip(gradient + noise, 0, 255).astype(np.uint8)
