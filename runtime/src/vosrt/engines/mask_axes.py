"""The inputs of mask networks: which of their axes are dynamic, and how long these are for a frame."""

from __future__ import annotations

from vosrt.bundle import CONTEXT, RES2, RES3
from vosrt.engines.static_shape import Axes

# Dynamic axes of the further graphs of a mask-embedding bundle, by role and input.
MASK_AXES: dict[str, Axes] = {
    "mask_encoder": {
        "frames": (None, "height", "width", None),
        "masks": ("objects", "height", "width"),
        CONTEXT: (None, None, "h", "w"),
    },
    "decoder": {
        "readout": ("objects", "h", "w", None),
        "values": ("objects", "h", "w", None),
        RES3: (None, None, "h", "w"),
        RES2: (None, None, "h2", "w2"),
    },
}


def mask_sizes(role: str, height: int, width: int, objects: int = 1) -> dict[str, int]:
    """Sizes of the named axes of a mask network.

    Args:
        role: of `MASK_AXES`.
        height: rows of the working frame, pixels.
        width: columns of the working frame, pixels.
    """
    sizes = {
        "objects": objects,
        "height": height,
        "width": width,
        "h": -(-height // 8),
        "w": -(-width // 8),
        "h2": -(-height // 4),
        "w2": -(-width // 4),
    }
    return {axis: sizes[axis] for axes in MASK_AXES[role].values() for axis in axes if axis}
