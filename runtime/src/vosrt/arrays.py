"""Arrays that stay where an engine left them, handed on without a copy: DLPack and ``__cuda_array_interface__``."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from vosrt.errors import OptionError

DeviceKind = Literal["cpu", "cuda"]

_DEVICE_TYPES: dict[DeviceKind, int] = {"cpu": 1, "cuda": 2}  # DLDeviceType of dlpack.h
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode
_ON_CUDA = (2, 13)  # DLDeviceType: its own memory, and managed memory
_CAPSULE_NAME, _USED_NAME = b"dltensor", b"used_dltensor"
DEFAULT_STREAM = 1  # CUDA's legacy default stream, as both protocols number it


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """A dense array in row-major order, in host or GPU memory.

    Attributes:
        pointer: address of the first element.
        device: which memory the address is in.
        device_id: number of the GPU.
        stream: CUDA stream on which the array is written, as an integer handle; work queued there afterwards sees it
            whole. None: it is whole already.
        owner: whatever keeps the memory alive.
        hand_over: makes a consumer's stream, a handle, wait for the work that writes the array; None where nobody can.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: DeviceKind
    owner: object
    device_id: int = 0
    stream: int | None = None
    hand_over: Callable[[int], None] | None = field(default=None, compare=False, repr=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of Numba's protocol, which CuPy, PyTorch and RAPIDS read.

        Consumers bring their work behind ``stream``; CUDA's default stream has been made to wait for it, as some
        read the array there without looking at ``stream``.

        Raises:
            AttributeError: the array is in host memory.
        """
        if self.device != "cuda":
            raise AttributeError("the array is in host memory; it has no __cuda_array_interface__")
        if self.stream not in (None, DEFAULT_STREAM) and self.hand_over is not None:
            self.hand_over(DEFAULT_STREAM)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __getitem__(self, index: int) -> DeviceTensor:
        """One part of the first axis, in the same memory.

        Raises:
            IndexError: there is no such part.
        """
        if not self.shape or not 0 <= index < self.shape[0]:
            raise IndexError(f"part {index} of an array {list(self.shape)}")
        part = self.shape[1:]
        offset = index * int(np.prod(part, dtype=np.int64)) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + offset, shape=part)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device type and number."""
        return _DEVICE_TYPES[self.device], self.device_id

    def __dlpack__(self, *, stream: int | None = None, **_: object) -> Any:
        """A capsule around the memory, which lives as long as the consumer holds it.

        Args:
            stream: of the consumer, which is made to wait for the work that writes the array. None is CUDA's default
                stream; -1 asks for no order.
            _: what newer versions of the protocol may ask for; a copy is never made.

        Raises:
            BufferError: the consumer's stream cannot be made to wait.
        """
        reader = DEFAULT_STREAM if stream is None else stream
        if self.stream is not None and reader not in (-1, self.stream):
            if self.hand_over is None:
                raise BufferError(
                    f"the array is written on stream {self.stream:#x}; use it there, or wait for that stream"
                )
            self.hand_over(reader)
        return _capsule(self)


class CudaArray(Protocol):
    """An array on a GPU, as CuPy, Numba, PyTorch and RAPIDS show it."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class DlpackArray(Protocol):
    """An array anywhere, as the Python array API shows it."""

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


GpuArray: TypeAlias = CudaArray | DlpackArray


def is_on_gpu(array: object) -> bool:
    """Whether an array is, or shows itself, as one on an NVIDIA GPU."""
    if isinstance(array, DeviceTensor):
        return array.device == "cuda"
    if isinstance(array, np.ndarray):
        return False
    if getattr(array, "__cuda_array_interface__", None) is not None:
        return True
    place = getattr(array, "__dlpack_device__", None)
    return callable(place) and int(place()[0]) in _ON_CUDA


def adopt(array: GpuArray) -> DeviceTensor:
    """An array on a GPU that another library made (CuPy, PyTorch, RAPIDS, Numba, JAX), without a copy.

    The stream that the array is whole on is the one that it names (``__cuda_array_interface__`` from version 3 on), or
    CUDA's default one: DLPack's producers bring their work there when asked, and what names none is taken to be there.

    Args:
        array: what has ``__cuda_array_interface__`` or ``__dlpack__``; dense.

    Raises:
        OptionError: it is not on a GPU, or has gaps between its elements.
    """
    if isinstance(array, DeviceTensor) and array.device == "cuda":
        return array
    if not is_on_gpu(array):
        raise OptionError(
            f"a {type(array).__name__} in host memory was given; expected an array on a GPU (__cuda_array_interface__ "
            "or __dlpack__)"
        )
    interface = getattr(array, "__cuda_array_interface__", None)
    if hasattr(array, "__dlpack__") and (interface is None or "stream" not in interface):
        try:
            return take_capsule(array.__dlpack__(stream=DEFAULT_STREAM))
        except BufferError as error:
            raise OptionError(f"a {type(array).__name__} cannot be taken: {error}") from error
    assert interface is not None
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    _check_dense(shape, interface.get("strides"), dtype.itemsize)
    device_id = array.__dlpack_device__()[1] if hasattr(array, "__dlpack_device__") else 0
    return DeviceTensor(
        pointer=interface["data"][0],
        shape=shape,
        dtype=dtype,
        device="cuda",
        device_id=device_id,
        owner=array,
        stream=interface.get("stream", DEFAULT_STREAM),
    )


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> None:
    """Refuse gaps; strides are in bytes, and those of axes of one element mean nothing."""
    dense = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) * itemsize for axis in range(len(shape))]
    if strides is None or 0 in shape:
        return
    if any(size > 1 and given != wanted for size, given, wanted in zip(shape, strides, dense, strict=True)):
        raise OptionError(f"an array with strides {tuple(strides)} was given; pass a contiguous copy")


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_held: dict[int, tuple[_Managed, object, object]] = {}  # by address, until the consumer is done


def _delete(managed: Any) -> None:
    _held.pop(ctypes.addressof(managed.contents), None)


_deleter = _Deleter(_delete)


_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_python = ctypes.pythonapi
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_python.PyCapsule_IsValid.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_python.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)


def _destroy(capsule: int) -> None:
    """A capsule that nobody took still owns its array; a consumer renames the one it takes."""
    if _python.PyCapsule_IsValid(capsule, _CAPSULE_NAME):
        _held.pop(_python.PyCapsule_GetPointer(capsule, _CAPSULE_NAME), None)


_destructor = _Destructor(_destroy)


def _capsule(array: DeviceTensor) -> Any:
    shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
    managed = _Managed(
        tensor=_Tensor(
            data=array.pointer,
            device_type=_DEVICE_TYPES[array.device],
            device_id=array.device_id,
            ndim=len(array.shape),
            code=_TYPE_CODES[array.dtype.kind],
            bits=8 * array.dtype.itemsize,
            lanes=1,
            shape=shape,
        ),
        deleter=_deleter,
    )
    address = ctypes.addressof(managed)
    _held[address] = (managed, shape, array.owner)
    return _python.PyCapsule_New(address, _CAPSULE_NAME, _destructor)


def take_capsule(capsule: Any) -> DeviceTensor:
    """The array on a GPU that a DLPack capsule holds; its producer is told when nobody holds it any more.

    Raises:
        OptionError: the capsule is empty or used, or its array is not on a GPU, of an unknown type, or not dense.
    """
    if not _IsValid(capsule, _CAPSULE_NAME):
        raise OptionError("a DLPack capsule was given that is used or of another version; pass a fresh array")
    managed = _Managed.from_address(_GetPointer(capsule, _CAPSULE_NAME))
    _python.PyCapsule_SetName(capsule, _USED_NAME)
    owner = _Taken()
    weakref.finalize(owner, _give_back, managed).atexit = False
    tensor = managed.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kinds = {code: kind for kind, code in _TYPE_CODES.items()}
    if tensor.device_type not in _ON_CUDA or tensor.lanes != 1 or tensor.code not in kinds or tensor.bits % 8:
        raise OptionError(
            f"a DLPack array of type {tensor.code}:{tensor.bits} on device {tensor.device_type} was given; expected "
            "plain numbers on a GPU"
        )
    dtype = np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")
    strides = tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim)) if tensor.strides else None
    _check_dense(shape, strides, dtype.itemsize)
    return DeviceTensor(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=dtype,
        device="cuda",
        device_id=tensor.device_id,
        owner=owner,
        stream=DEFAULT_STREAM,
    )


class _Taken:
    """Tells a producer that its array is let go."""


def _give_back(managed: _Managed) -> None:
    if managed.deleter:
        managed.deleter(ctypes.byref(managed))


_IsValid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_GetPointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))
