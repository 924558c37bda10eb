"""The mask networks of a bundle as callbacks of the native stream, which has the rounds, the values and the masks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import CONTEXT, RES2, RES3, MaskSpec
from vosrt.core.abi import CONSTANTS
from vosrt.core.library import STRUCTS
from vosrt.encoder import Embedding
from vosrt.engines.base import Engine
from vosrt.errors import EngineError, InputError
from vosrt.types import F32Array, U8Array

NO_MAPS = "this embedding was made without the maps that refinement needs; encode the frame again"


@dataclass(frozen=True)
class Refinement:
    """How masks are refined, and by which networks.

    Attributes:
        spec: contract of the graphs.
        mask_encoder: its engine.
        decoder: its engine.
        rounds: of refinement; 0 decodes what was read of the past alone.
    """

    spec: MaskSpec
    mask_encoder: Engine
    decoder: Engine
    rounds: int

    def model_options(self) -> dict[str, int]:
        """Its fields of ``vosrt_model_options``."""
        return {
            "value_channels": self.spec.value_channels,
            "rounds": self.rounds,
            "residual": self.spec.residual,
            "feedback": self.spec.feedback,
        }


class MaskNetworks:
    """Callbacks for the mask networks of one stream, whose frames come with the encoder's maps.

    Args:
        refinement: has the engines.
    """

    def __init__(self, refinement: Refinement) -> None:
        self._refinement = refinement
        self._maps: dict[str, F32Array] = {}
        self._failure: BaseException | None = None
        self._callbacks = [
            _callback("vosrt_encode_masks_task", self._encode, self._fail),
            _callback("vosrt_decode_masks_task", self._decode, self._fail),
        ]

    def callbacks(self) -> dict[str, int | None]:
        """Fields of ``vosrt_engine``, valid as long as this object."""
        pointers = (ctypes.cast(each, ctypes.c_void_p).value for each in self._callbacks)
        return dict(zip(("encode_masks", "decode_masks"), pointers, strict=True))

    def follow(self, embedding: Embedding) -> U8Array:
        """Work on a frame from now on.

        Returns:
            The frame as the encoder saw it, u8 [height, width, 3].

        Raises:
            InputError: the embedding was made without maps.
        """
        maps, working = embedding.maps_on_host()
        if working is None or not maps:
            raise InputError(NO_MAPS)
        self._maps = maps
        return working

    def take_failure(self) -> BaseException | None:
        """The exception that ended the last callback, once; None if it ended well."""
        failure, self._failure = self._failure, None
        return failure

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure

    def _encode(self, task: Any) -> None:
        frame, grid = (task.height, task.width), (task.grid_height, task.grid_width)
        inputs: dict[str, NDArray[Any]] = {
            "frames": _view(task.bgr, (1, *frame, 3), np.uint8),
            "masks": _view(task.masks, (task.objects, *frame), np.float32),
            CONTEXT: self._maps[self._refinement.spec.context],
        }
        values = _view(task.values, (task.objects, *grid, task.value_channels), np.float32)
        _keep(self._refinement.mask_encoder.run(inputs), "values", values)

    def _decode(self, task: Any) -> None:
        shape = (task.objects, task.grid_height, task.grid_width, task.value_channels)
        inputs = {
            "readout": _view(task.readout, shape, np.float32),
            "values": _view(task.values, shape, np.float32),
            RES3: self._maps[RES3],
            RES2: self._maps[RES2],
        }
        logits = _view(task.logits, (task.objects, task.logit_height, task.logit_width), np.float32)
        _keep(self._refinement.decoder.run(inputs), "logits", logits)


def _callback(task: str, run: Callable[[Any], None], fail: Callable[[BaseException], None]) -> Any:
    """A C function that runs a network; no exception may pass through C, so that it is kept for the caller."""

    def call(_: Any, pointer: Any) -> int:
        try:
            run(pointer.contents)
        except BaseException as failure:
            fail(failure)
            return CONSTANTS["VOSRT_ENGINE_FAILED"]
        return CONSTANTS["VOSRT_OK"]

    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(STRUCTS[task]))(call)


def _view(pointer: int, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array of the stream's memory, valid while its callback runs."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array: NDArray[Any] = np.frombuffer(memoryview((ctypes.c_char * count).from_address(pointer)), dtype)
    return array.reshape(shape)


def _keep(outputs: Mapping[str, NDArray[Any]], name: str, out: F32Array) -> None:
    """Copy an output to where the stream wants it."""
    array = outputs.get(name)
    if array is None or array.shape != out.shape or array.dtype != np.float32:
        given = {each: f"{found.dtype} {list(found.shape)}" for each, found in outputs.items()}
        raise EngineError(
            f"a graph of the bundle gave {given} instead of {name!r}: float32 {list(out.shape)}; "
            "export the bundle again"
        )
    np.copyto(out, array)
