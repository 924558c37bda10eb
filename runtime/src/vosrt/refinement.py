"""The mask networks of a bundle as callbacks of the native stream, which has the rounds, the values and the masks.

Networks on a GPU, and arrays there, are in `vosrt.cuda.refine`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vosrt.bundle import CONTEXT, RES2, RES3, MaskSpec
from vosrt.core.abi import CONSTANTS
from vosrt.core.library import STRUCTS
from vosrt.encoder import Embedding
from vosrt.errors import EngineError, InputError
from vosrt.types import F32Array, U8Array

NO_MAPS = "this embedding was made without the maps that refinement needs; encode the frame again"


Network = TypeVar("Network")


@dataclass(frozen=True)
class Refinement(Generic[Network]):
    """How masks are refined, and by which networks.

    Attributes:
        rounds: of refinement; 0 decodes what was read of the past alone.
        on_gpu: whether the networks are on the GPU of the memory.
    """

    spec: MaskSpec
    mask_encoder: Network
    decoder: Network
    rounds: int
    on_gpu: ClassVar[bool] = False

    def networks(self) -> MaskNetworks:
        """Callbacks for one stream."""
        return MaskNetworks(self)

    def model_options(self) -> dict[str, int]:
        """Its fields of ``vosrt_model_options``."""
        return {
            "value_channels": self.spec.value_channels,
            "rounds": self.rounds,
            "residual": self.spec.residual,
            "feedback": self.spec.feedback,
        }


class MaskNetworks:
    """Callbacks for the mask networks of one stream, whose frames come with the encoder's maps."""

    flags = 0  # vosrt_engine_flags

    def __init__(self, refinement: Refinement[Any]) -> None:
        self._refinement = refinement
        self._maps: dict[str, Any] = {}
        self._failure: BaseException | None = None
        self._callbacks = [
            _callback("vosrt_encode_masks_task", self._encode, self._fail),
            _callback("vosrt_decode_masks_task", self._decode, self._fail),
        ]

    def callbacks(self) -> dict[str, Any]:
        """Fields of ``vosrt_engine``, valid as long as this object."""
        pointers = (ctypes.cast(each, ctypes.c_void_p).value for each in self._callbacks)
        return {"flags": self.flags, **dict(zip(("encode_masks", "decode_masks"), pointers, strict=True))}

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
        inputs = {
            "frames": self._array(task.bgr, (1, *frame, 3), np.uint8),
            "masks": self._array(task.masks, (task.objects, *frame), np.float32),
            CONTEXT: self._maps[self._refinement.spec.context],
        }
        values = self._array(task.values, (task.objects, *grid, task.value_channels), np.float32)
        self._run(self._refinement.mask_encoder, inputs, "values", values)

    def _decode(self, task: Any) -> None:
        shape = (task.objects, task.grid_height, task.grid_width, task.value_channels)
        inputs = {
            "readout": self._array(task.readout, shape, np.float32),
            "values": self._array(task.values, shape, np.float32),
            RES3: self._maps[RES3],
            RES2: self._maps[RES2],
        }
        logits = self._array(task.logits, (task.objects, task.logit_height, task.logit_width), np.float32)
        self._run(self._refinement.decoder, inputs, "logits", logits)

    def _array(self, pointer: int, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        """An array of the stream, valid while its callback runs."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(memoryview((ctypes.c_char * count).from_address(pointer)), dtype).reshape(shape)

    def _run(self, network: Any, inputs: dict[str, Any], name: str, out: Any) -> None:
        """Run a network, whose output goes where the stream wants it."""
        _keep(network.run(inputs), name, out)


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
