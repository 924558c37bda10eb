"""libvosrt_cuda through ctypes: found, opened and checked when a GPU is asked for, never before."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vosrt.core.library import Library, find_library, new_struct
from vosrt.errors import EngineError, OptionError

LIBRARY_VARIABLE = "VOSRT_CUDA_LIBRARY"


@dataclass(frozen=True)
class CudaDevice:
    """A GPU.

    Attributes:
        architecture: compute capability, as ``"sm_90"``.
        driver: newest CUDA that its driver runs, as ``"13.0"``.
    """

    name: str
    architecture: str
    driver: str
    total_mib: int
    free_mib: int


class CudaLibrary(Library):
    """The functions of libvosrt_cuda; a failed one raises. See `Library`."""

    _failure = EngineError
    _failure_remedy = "see what nvidia-smi says, or use device 'cpu'"
    _memory_remedy = "use a smaller size, a shorter context, or device 'cpu'"

    def _has(self, function: str) -> bool:
        return True

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
    path = Path(named) if named else find_library("libvosrt_cuda.so")
    if path is None or not path.is_file():
        reason = f"{path or 'libvosrt_cuda.so'} is not there: this vosrt was built without CUDA"
        remedy = "install the CUDA toolkit (nvcc 12.8 or newer) and reinstall vosrt"
        raise OptionError(f"{reason}; {remedy}, or use device 'cpu'", reason=reason, remedy=remedy)
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
    kind, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit() and len(number) < 5)):
        raise OptionError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N' with the number of a GPU")
    return int(number or 0)
