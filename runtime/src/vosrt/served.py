"""What servers do with the stream of a client: `vosrt.serving` over WebSocket, `vosrt.triton` in NVIDIA's server."""

from __future__ import annotations

from typing import Any

from vosrt.errors import MaskError
from vosrt.stream import Stream
from vosrt.types import StepResult, U8Array


class ServedStream:
    """A stream whose first frame must bring a mask, and whose later ones may.

    Args:
        stream: that has not begun; it is closed with this one.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._begun = False

    def check(self, *, marked: bool) -> None:
        """Raise MaskError where the next frame needs a mask and has none."""
        if not self._begun and not marked:
            raise MaskError("the first frame needs a mask that marks its objects; send it with the frame, or before it")

    def take(self, image: U8Array, mask: U8Array | None) -> StepResult:
        """Follow the objects into a frame.

        Args:
            image: BGR, u8 [H, W, 3].
            mask: ids of objects that the frame marks, u8 [H, W]; 0 is background.

        Raises:
            InputError: the frame or the mask cannot be used; the stream goes on.
        """
        self.check(marked=mask is not None)
        if self._begun or mask is None:
            return self._stream.step(image, mask)
        result = self._stream.start(image, mask)
        self._begun = True
        return result

    def close(self) -> None:
        """Free the stream's memory."""
        self._stream.close()


def answer_of(result: StepResult, ms: float) -> dict[str, Any]:
    """Return the answer about a frame, for JSON.

    Args:
        ms: that it took.
    """
    objects = [
        {
            "id": each.id,
            "state": each.state,
            "area_px": each.area_px,
            "box": each.box,
            "centroid": each.centroid,
            "confidence": round(each.confidence, 4),
        }
        for each in result.objects.values()
    ]
    return {"frame": result.index, "objects": objects, "ms": round(ms, 2)}
