"""libvosrt_cuda through ctypes: found, opened and checked when a GPU is asked for, never before."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vosrt.errors import EngineError, MaskError, OptionError, SessionError

LIBRARY_VARIABLE = "VOSRT_CUDA_LIBRARY"
_ABI_VERSION = 1
_OK, _INVALID_ARGUMENT, _UNSUPPORTED, _OUT_OF_MEMORY, _INVALID_MASK, _INVALID_SESSION = 0, 1, 2, 3, 4, 8
_BUFFER_TOO_SMALL = 9


class _Options(ctypes.Structure):
    """vosrt_memory_options of vosrt.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("height", "width", "channels", "context", "window")),
        ("radius", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("temperature", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("drop_padding", "local_reference", "keep_background")),
        *((name, ctypes.c_int32) for name in ("precision", "isa", "threads", "device", "half_pixel")),
    )


class _Info(ctypes.Structure):
    """vosrt_memory_info of vosrt.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("isa", "threads", "objects", "references", "half_pixel")),
        *((name, ctypes.c_int64) for name in ("frames", "bytes")),
        *((name, ctypes.c_int32) for name in ("height", "width", "channels", "top_k")),
    )


class _Device(ctypes.Structure):
    """vosrt_cuda_device of vosrt_cuda.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("architecture", "multiprocessors", "driver", "runtime", "reserved")),
        *((name, ctypes.c_int64) for name in ("total_bytes", "free_bytes")),
        ("name", ctypes.c_char * 256),
    )


class _Frame(ctypes.Structure):
    """vosrt_cuda_frame of vosrt_cuda.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("height", "width", "reserved")),
        *((name, ctypes.c_void_p) for name in ("embedding", "labels", "confidence", "totals")),
    )


class _Session(ctypes.Structure):
    """vosrt_session of vosrt.h."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("frame_height", "frame_width", "reserved")),
        ("annotation", ctypes.c_void_p),
        ("model", ctypes.c_uint8 * 32),
    )


STRUCTS = {
    "vosrt_session": _Session,
    "vosrt_memory_options": _Options,
    "vosrt_memory_info": _Info,
    "vosrt_cuda_device": _Device,
    "vosrt_cuda_frame": _Frame,
}


def new_struct(name: str, **values: Any) -> Any:
    """A struct of the C interface with its size filled in."""
    return STRUCTS[name](struct_size=ctypes.sizeof(STRUCTS[name]), **values)


_P, _I, _Z = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "vosrt_memory_create": (_P, _P),
    "vosrt_memory_get_info": (_P, _P),
    "vosrt_memory_push": (_P, _P),
    "vosrt_memory_annotate": (_P, _P, _I, _I, ctypes.c_int64),
    "vosrt_memory_remove": (_P, _I),
    "vosrt_memory_object_ids": (_P, _P, _P),
    "vosrt_memory_labels": (_P, _I, _I, _P, _P),
    "vosrt_memory_soft_masks": (_P, _P),
    "vosrt_memory_set_soft_masks": (_P, _P),
    "vosrt_memory_top_k_references": (_P, _P),
    "vosrt_memory_top_k": (_P, _P, _P, _P),
    "vosrt_memory_save": (_P, _P, _P, _Z, _P),
    "vosrt_cuda_memory_load": (_I, _P, _Z, _P, _P),
    "vosrt_cuda_device_count": (_P,),
    "vosrt_cuda_device_info": (_I, _P),
    "vosrt_cuda_allocate": (_I, _Z, ctypes.c_char_p, _P),
    "vosrt_cuda_allocate_host": (_Z, _P),
    "vosrt_cuda_queue_create": (_I, _P),
    "vosrt_cuda_queue_use_stream": (_P, _P),
    "vosrt_cuda_queue_upload": (_P, _P, _P, _Z),
    "vosrt_cuda_queue_download": (_P, _P, _P, _Z),
    "vosrt_cuda_queue_copy": (_P, _P, _P, _Z),
    "vosrt_cuda_queue_wait": (_P,),
    "vosrt_cuda_queue_resize_bgr": (_P, _P, _I, _I, ctypes.c_int64, _P, _I, _I),
    "vosrt_cuda_queue_nv12_to_bgr": (_P, _P, _P, ctypes.c_int64, _I, _I, _I, _I, _P),
    "vosrt_cuda_event_create": (_I, _P),
    "vosrt_cuda_event_wait": (_P,),
    "vosrt_cuda_queue_record": (_P, _P),
    "vosrt_cuda_queue_wait_for": (_P, _P),
    "vosrt_cuda_memory_use_stream": (_P, _P),
    "vosrt_cuda_memory_stream": (_P, _P),
    "vosrt_cuda_memory_frame": (_P, _P),
    "vosrt_cuda_memory_labels": (_P, _P),
    "vosrt_cuda_memory_time_frame": (_P, _P, _P),
    "vosrt_cuda_memory_repeated": (_P,),
    "vosrt_cuda_memory_values": (_P, _I, _P, _P, _I, _I, _P),
    "vosrt_cuda_memory_planes": (_P, _P, _I, _I),
    "vosrt_cuda_memory_refine": (_P, _P, _I, _I, _I, _P, _I, _I),
    "vosrt_cuda_memory_set_planes": (_P, _P, _I, _I),
    "vosrt_cuda_memory_label_planes": (_P, _P, _I, _I, _P),
    "vosrt_cuda_memory_recordings": (_P, _P),
}
_WITHOUT_STATUS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "vosrt_abi_version": (ctypes.c_uint32, ()),
    "vosrt_version": (ctypes.c_char_p, ()),
    "vosrt_last_error": (ctypes.c_char_p, ()),
    "vosrt_memory_destroy": (None, (_P,)),
    "vosrt_cuda_free": (None, (_P,)),
    "vosrt_cuda_free_host": (None, (_P,)),
    "vosrt_cuda_event_destroy": (None, (_P,)),
    "vosrt_cuda_queue_destroy": (None, (_P,)),
    "vosrt_cuda_queue_stream": (_P, (_P,)),
}


@dataclass(frozen=True)
class CudaDevice:
    """A GPU.

    Attributes:
        name: as NVIDIA calls it.
        architecture: compute capability, as ``"sm_90"``.
        driver: newest CUDA that its driver runs, as ``"13.0"``.
        total_mib: its memory.
        free_mib: what is free of it now.
    """

    name: str
    architecture: str
    driver: str
    total_mib: int
    free_mib: int


class CudaLibrary:
    """The functions of libvosrt_cuda; a failed one raises.

    Args:
        path: of the shared library.

    Raises:
        OptionError: it cannot be opened, or is another version's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._functions = ctypes.CDLL(str(path))
            for name, arguments in _SIGNATURES.items():
                getattr(self._functions, name).argtypes = arguments
            for name, (result, arguments) in _WITHOUT_STATUS.items():
                function = getattr(self._functions, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise OptionError(f"{path} cannot be used: {' '.join(str(error).split())}; reinstall vosrt") from error
        if (version := self.plain("vosrt_abi_version")) != _ABI_VERSION:
            raise OptionError(f"{path} has ABI {version}; expected {_ABI_VERSION}: reinstall vosrt")

    @property
    def version(self) -> str:
        """Of libvosrt_cuda."""
        return str(self.plain("vosrt_version").decode())

    def plain(self, name: str, *arguments: Any) -> Any:
        """Call a function that gives no status."""
        return getattr(self._functions, name)(*arguments)

    def session_size(self, memory: Any, session: Any) -> int:
        """Bytes that a memory and what its stream knows besides (a ``vosrt_session``) take.

        Raises:
            VosrtError: as for :meth:`call`.
        """
        size = ctypes.c_size_t()
        if self._functions.vosrt_memory_save(memory, session, None, 0, ctypes.byref(size)) != _BUFFER_TOO_SMALL:
            self.call("vosrt_memory_save", memory, session, None, 0, ctypes.byref(size))
        return size.value

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that gives a status.

        Raises:
            MaskError: an annotation marks nothing, or what the grid cannot hold.
            SessionError: a session is damaged.
            OptionError: an impossible value; no GPU or driver, one too old; out of memory.
            EngineError: CUDA failed.
        """
        status = getattr(self._functions, name)(*arguments)
        if status == _OK:
            return
        text = self.plain("vosrt_last_error").decode(errors="replace")
        if status == _INVALID_MASK:
            raise MaskError(text)
        if status == _INVALID_SESSION:
            raise SessionError(text)
        if status == _OUT_OF_MEMORY:
            raise OptionError(f"{text}; use a smaller size, a shorter context, or device 'cpu'")
        if status in (_INVALID_ARGUMENT, _UNSUPPORTED):
            raise OptionError(text)
        raise EngineError(f"{text}; see what nvidia-smi says, or use device 'cpu'")

    def device(self, number: int) -> CudaDevice:
        """What a GPU is.

        Raises:
            OptionError: there is none that this library can use.
        """
        info = new_struct("vosrt_cuda_device")
        self.call("vosrt_cuda_device_info", number, ctypes.byref(info))
        return CudaDevice(
            name=info.name.decode(errors="replace"),
            architecture=f"sm_{info.architecture}",
            driver=f"{info.driver // 1000}.{info.driver % 1000 // 10}",
            total_mib=info.total_bytes >> 20,
            free_mib=info.free_bytes >> 20,
        )


def load_cuda_library() -> CudaLibrary:
    """libvosrt_cuda of this installation, or the one that ``VOSRT_CUDA_LIBRARY`` names.

    Raises:
        OptionError: there is none.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    path = Path(named) if named else Path(__file__).parent / "libvosrt_cuda.so"
    if not path.is_file():
        raise OptionError(
            f"{path} is not there: this vosrt was built without CUDA; install the CUDA toolkit (nvcc 12.8 or newer) "
            "and reinstall vosrt, or use device 'cpu'"
        )
    return _open(path.resolve())


@cache
def _open(path: Path) -> CudaLibrary:
    return CudaLibrary(path)


def parse_device(device: str) -> int | None:
    """The number of the GPU that a device names, None for ``"cpu"``.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        OptionError: it is none of these.
    """
    if device == "cpu":
        return None
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit() and len(number) < 5)):
        raise OptionError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N' with the number of a GPU")
    return int(number or 0)
