"""From clicks and a box to a mask of one frame, by ``vosrt_prompt`` of libvosrt (``runtime/native/src/prompt.hpp``)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from vosrt.core.abi import CONSTANTS
from vosrt.core.library import STRUCTS, address, new_struct
from vosrt.core.native import libvosrt
from vosrt.encoder import Embedding
from vosrt.locking import NotCopied
from vosrt.prompt.points import BoolArray, Box, check_prompts
from vosrt.types import F32Array, U8Array


def click_options(**values: float) -> dict[str, float]:
    """The constants of the method, as libvosrt has them; see ``vosrt_prompt_options`` in vosrt.h.

    Args:
        values: of constants that are to differ.
    """
    struct = libvosrt().options("vosrt_prompt_options", **values)
    names = [name for name, _ in STRUCTS["vosrt_prompt_options"]._fields_ if name != "struct_size"]
    return {name: getattr(struct, name) for name in names}


class ClickedFrame(NotCopied):
    """A frame that was encoded, ready for clicks. Several threads may share it: its calls run one after the other.

    Args:
        frame: u8 [Hw, Ww, 3] BGR, as the network saw it.
        features: f32 [h, w, K] of unit length, the embedding.
        height: of the mask, in pixels.
        width: likewise.
        stride: pixels of ``frame`` per cell.
        options: constants that are to differ; see `click_options`.

    Raises:
        OptionError: an impossible value.
    """

    _instead = "encode the frame again"

    def __init__(
        self,
        frame: U8Array,
        features: F32Array,
        height: int,
        width: int,
        *,
        stride: int = 8,
        options: Mapping[str, float] | None = None,
    ) -> None:
        self._size, library = (height, width), libvosrt()
        frame, features = np.ascontiguousarray(frame), np.ascontiguousarray(features)
        encoded = new_struct(
            "vosrt_embedding",
            frame_height=height,
            frame_width=width,
            height=frame.shape[0],
            width=frame.shape[1],
            grid_height=features.shape[0],
            grid_width=features.shape[1],
            channels=features.shape[2],
            array=address("features", features, features.shape, np.float32),
            bgr=address("frame", frame, (*frame.shape[:2], 3), np.uint8),
        )
        given = library.options("vosrt_prompt_options", **(options or {}))
        self._handle = ctypes.c_void_p()
        library.call(
            "vosrt_prompt_create", ctypes.byref(encoded), stride, ctypes.byref(given), ctypes.byref(self._handle)
        )
        weakref.finalize(self, library.plain, "vosrt_prompt_destroy", self._handle).atexit = False

    def segment(
        self,
        points: Sequence[Sequence[float]] = (),
        box: Box | None = None,
        mask: BoolArray | None = None,
    ) -> BoolArray:
        """Return the object that is clicked.

        Args:
            points: (x, y) or (x, y, positive) in pixels, in the order in which they were clicked; each corrects what
                those before it gave. A further point costs one step where box and mask are those of the call before.
            box: x, y, width, height in pixels around the object.
            mask: bool [H, W], what the clicks correct; None begins with nothing.

        Returns:
            bool [H, W].

        Raises:
            OptionError: there is neither a positive click nor a box nor a mask.
            MaskError: a click or the box lies outside the frame, or the mask has another size.
        """
        clicks = np.array(
            [(x, y, positive) for x, y, positive in check_prompts(points, box, mask, *self._size)], np.float32
        )
        around = None if box is None else np.array(box, np.float32)
        image, out = None, np.empty(self._size, np.uint8)
        if mask is not None:
            before = np.ascontiguousarray(mask, np.uint8)
            image = new_struct(
                "vosrt_image",
                format=CONSTANTS["VOSRT_FORMAT_GRAY"],
                height=self._size[0],
                width=self._size[1],
                data=address("mask", before, self._size, np.uint8),
            )
        libvosrt().call(
            "vosrt_prompt_segment",
            self._handle,
            clicks.ctypes.data if len(clicks) else None,
            len(clicks),
            None if around is None else around.ctypes.data,
            None if image is None else ctypes.byref(image),
            out.ctypes.data,
        )
        return out > 0


def click_on(embedding: Embedding, stride: int) -> ClickedFrame:
    """Make an encoded frame ready for clicks.

    Args:
        stride: pixels per cell of the working frame.
    """
    features, frame = embedding.on_host()
    return ClickedFrame(frame, features, embedding.frame_height, embedding.frame_width, stride=stride)
