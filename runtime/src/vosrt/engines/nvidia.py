"""What the NVIDIA driver says: whether there is a GPU, and of which architecture. Needs no package of NVIDIA's."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from vosrt.errors import EngineError

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of cuda.h
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver offers.

    Attributes:
        architecture: compute capability as ``"sm_86"``.
        cuda: newest CUDA that the driver runs, as ``"13.0"``.
    """

    name: str
    architecture: str
    cuda: str


def find_gpu() -> Gpu:
    """The first NVIDIA GPU (``CUDA_VISIBLE_DEVICES`` says which one that is).

    Raises:
        EngineError: there is no driver, or it offers no GPU.
    """
    driver = _load_driver()
    _call(driver, "cuInit", 0)
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise _refusal("the NVIDIA driver offers no GPU", "see what nvidia-smi and CUDA_VISIBLE_DEVICES say")
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        architecture=f"sm_{major.value}{minor.value}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def has_gpu() -> bool:
    """Whether `find_gpu` finds one."""
    try:
        find_gpu()
    except EngineError:
        return False
    return True


def _load_driver() -> Any:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError:
        raise _refusal(f"no NVIDIA driver here ({_DRIVER} is not found)", "install the driver of your GPU") from None


def _refusal(reason: str, remedy: str) -> EngineError:
    return EngineError(f"{reason}; {remedy}", reason=reason, remedy=remedy)


def _call(driver: Any, function: str, *arguments: Any) -> None:
    if status := getattr(driver, function)(*arguments):
        raise _refusal(f"the NVIDIA driver cannot be used: {function} returned {status}", "see what nvidia-smi says")
