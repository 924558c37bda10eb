"""Pictures of a live source whose size changed on the way."""

from __future__ import annotations

import cv2
import numpy as np

from vosrt.types import U8Array


def fitted(image: U8Array, height: int, width: int) -> U8Array:
    """Return u8 [H, W, 3] in another size, u8 [height, width, 3], with black bars where its shape differs."""
    if image.shape[:2] == (height, width):
        return image
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    whole = np.zeros((height, width, 3), np.uint8)
    whole[top : top + inner[1], left : left + inner[0]] = small
    return whole
