"""Comparison of mask encoder and decoder in PyTorch with the graphs in ONNX Runtime, for any size and count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vosrt.bundle import CONTEXT, RES2, RES3, WeightPrecision
from vosrt.engines.onnxruntime import load_onnxruntime
from vosrt.text import reason_of
from vosrt_export.errors import ExportError
from vosrt_export.onnx import INPUT_NAME
from vosrt_export.verify import sample_frames
from vosrt_train.masks.networks import MaskEmbedding, context_of
from vosrt_train.model import Encoder
from vosrt_train.pixels import normalise

# Height, width, objects: the smallest that a manifest admits, no multiples of 8, one and several objects.
MASK_CASES = ((16, 16, 1), (50, 61, 3), (33, 47, 2))

TOLERANCES: dict[WeightPrecision, float] = {"fp32": 1e-4, "fp16": 1e-2}


@dataclass(frozen=True, kw_only=True)
class MaskComparison:
    """Result of a comparison, over all cases.

    Attributes:
        values: largest difference of two values of the mask encoder, relative to the largest value.
        logits: largest difference of two logits of the decoder, relative to the largest logit.
    """

    values: float
    logits: float

    def passes(self, tolerance: float) -> bool:
        """Return whether both differences stay within the tolerance; NaN does not."""
        return self.values <= tolerance and self.logits <= tolerance

    def __str__(self) -> str:
        return f"values within {self.values:.1e}, logits within {self.logits:.1e} of the largest"


def compare_masks(encoder: Encoder, masks: MaskEmbedding, graphs: Mapping[str, bytes]) -> MaskComparison:
    """Run the same frames and masks through the checkpoint's networks and the exported graphs, end to end.

    Args:
        encoder: the network as trained, in evaluation mode.
        masks: the networks as trained, in evaluation mode.
        graphs: the serialised ``encoder``, ``mask_encoder`` and ``decoder``.

    Raises:
        ExportError: a graph does not load, does not run or gives another shape.
    """
    random = np.random.default_rng(0)
    cases = [(frames, random.random((objects, height, width), dtype=np.float32))
             for height, width, objects in MASK_CASES
             for frames in sample_frames([(1, height, width)])]  # fmt: skip
    try:
        runtime = load_onnxruntime()
        sessions = {
            name: runtime.InferenceSession(graph, providers=["CPUExecutionProvider"]) for name, graph in graphs.items()
        }
        found = [_run_graphs(sessions, frames, soft) for frames, soft in cases]
    except Exception as error:  # the errors of ONNX Runtime have no other base
        raise ExportError(f"ONNX Runtime cannot run the exported graphs: {reason_of(error)}") from error
    wanted = [_run_networks(encoder, masks, frames, soft) for frames, soft in cases]
    return MaskComparison(
        values=max(_relative(want[0], have[0]) for want, have in zip(wanted, found, strict=True)),
        logits=max(_relative(want[1], have[1]) for want, have in zip(wanted, found, strict=True)),
    )


def _run_graphs(sessions: Mapping[str, Any], frames: NDArray[np.uint8], soft: NDArray[np.float32]) -> list[Any]:
    names = [output.name for output in sessions["encoder"].get_outputs()]
    maps = dict(zip(names, sessions["encoder"].run(None, {INPUT_NAME: frames}), strict=True))
    context = maps.get(CONTEXT, maps[RES3])
    values = sessions["mask_encoder"].run(None, {INPUT_NAME: frames, "masks": soft, CONTEXT: context})[0]
    # Read-out and values differ, so that a mix-up would show.
    inputs = {"readout": np.flip(values, axis=0).copy(), "values": values, RES3: maps[RES3], RES2: maps[RES2]}
    return [values, sessions["decoder"].run(None, inputs)[0]]


def _run_networks(
    encoder: Encoder, masks: MaskEmbedding, frames: NDArray[np.uint8], soft: NDArray[np.float32]
) -> list[NDArray[Any]]:
    with torch.no_grad():
        rgb = normalise(torch.from_numpy(frames).flip(-1).permute(0, 3, 1, 2))
        features = encoder(rgb)
        value: Tensor = masks.mask_encoder(rgb, torch.from_numpy(soft)[None], context_of(features))
        logits: Tensor = masks.decoder(value.flip(1), value, features.res3, features.res2)
    return [value[0].permute(0, 2, 3, 1).numpy(), logits[0].numpy()]


def _relative(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    if wanted.shape != found.shape:
        raise ExportError(f"an exported graph gives shape {found.shape}; the checkpoint gives {wanted.shape}")
    return float(f"{np.abs(wanted - found).max() / max(np.abs(wanted).max(), 1e-12):.2e}")
