"""TensorRT-RTX takes the graphs of a mask-embedding bundle, without a GPU: any size of frame, any number of objects."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import onnx
import pytest

from vosrt.engines.tensorrt_flavour import TENSORRT_RTX
from vosrt.errors import EngineError, MissingExtraError
from vosrt_export.mask_graphs import export_mask_graphs
from vosrt_export.polygraphy_loader import failures_as_errors, load_polygraphy
from vosrt_export.precision import cast_frames_first, convert_precision
from vosrt_train.config import EncoderConfig
from vosrt_train.masks.config import MaskNetworkConfig
from vosrt_train.masks.networks import build_mask_embedding
from vosrt_train.model import build_encoder

ENCODER = EncoderConfig(width=4, layer4=False)
# Smallest, best and largest of what a graph's sizes may be: one to five objects, frames of 32² to 96 x 64.
SIZES = {
    "objects": (1, 2, 5),
    "height": (32, 48, 64),
    "width": (32, 64, 96),
    "h": (4, 6, 8),
    "w": (4, 8, 12),
    "h2": (8, 12, 16),
    "w2": (8, 16, 24),
}


@pytest.fixture(scope="module")
def graphs() -> dict[str, bytes]:
    encoder = build_encoder(ENCODER, seed=0).eval()
    masks = build_mask_embedding(MaskNetworkConfig(width=4, value_channels=16), ENCODER, seed=0).eval()
    return export_mask_graphs(encoder, masks, "res3", "fp32")


@pytest.fixture
def polygraphy(skip_or_fail: Callable[..., None]) -> Any:
    try:
        TENSORRT_RTX.load()
        return load_polygraphy(TENSORRT_RTX)
    except (MissingExtraError, EngineError) as error:
        skip_or_fail(str(error), required="tensorrt-rtx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("role", ["mask_encoder", "decoder"])
def test_mask_graphs_become_engines(graphs: dict[str, bytes], polygraphy: Any, role: str, precision: Any) -> None:
    model = convert_precision(onnx.load_from_string(graphs[role]), precision)
    if role == "mask_encoder":
        model = cast_frames_first(model)
    profile = polygraphy.Profile()
    for each in model.graph.input:
        dims = each.type.tensor_type.shape.dim
        bounds = [SIZES[dim.dim_param] if dim.dim_param else (dim.dim_value,) * 3 for dim in dims]
        profile.add(each.name, **{name: [b[i] for b in bounds] for i, name in enumerate(("min", "opt", "max"))})
    rtx = importlib.import_module("polygraphy.backend.tensorrt_rtx")
    with failures_as_errors(f"cannot build the {role}"):
        plan = polygraphy.engine_bytes_from_network(
            polygraphy.network_from_onnx_bytes(model.SerializeToString(), strongly_typed=True),
            config=rtx.CreateConfigRTX(profiles=[profile], compute_capabilities=[(8, 6)]),
        )
    assert len(bytes(plan)) > 10_000
