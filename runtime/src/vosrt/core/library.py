"""libvosrt and libvosrt_cuda through ctypes: calls that raise, structs, arrays, and the memory that both have.

What the libraries have is `vosrt.core.abi`, generated from their headers. ctypes releases the GIL for every call.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vosrt
from vosrt.core.abi import CONSTANTS, FUNCTIONS
from vosrt.core.abi import STRUCTS as _FIELDS
from vosrt.errors import (
    BundleError,
    EngineError,
    InputError,
    MaskError,
    OptionError,
    SessionError,
    VosrtError,
    WorkError,
)
from vosrt.locking import NotCopied
from vosrt.types import MAX_SIDE, F32Array, ObjectResult, ObjectState, Precision, PropagationOptions, TopK, U8Array

PRECISIONS: dict[Precision, int] = {"auto": 0, "fp32": 1, "bf16": 2}  # vosrt_precision
OBJECT_STATES: dict[int, ObjectState] = {
    CONSTANTS["VOSRT_STATE_PRESENT"]: "present",
    CONSTANTS["VOSRT_STATE_LOST"]: "lost",
    CONSTANTS["VOSRT_STATE_BACK"]: "back",
    CONSTANTS["VOSRT_STATE_UNSURE"]: "unsure",
}
_REMEDY = "reinstall vosrt"
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes, _new_bytes.restype = (ctypes.c_char_p, ctypes.c_ssize_t), ctypes.py_object
_ERRORS: dict[int, type[VosrtError]] = {
    CONSTANTS["VOSRT_INVALID_ARGUMENT"]: OptionError,
    CONSTANTS["VOSRT_UNSUPPORTED"]: OptionError,
    CONSTANTS["VOSRT_OUT_OF_MEMORY"]: OptionError,
    CONSTANTS["VOSRT_INVALID_MASK"]: MaskError,
    CONSTANTS["VOSRT_ENGINE_FAILED"]: EngineError,
    CONSTANTS["VOSRT_INVALID_BUNDLE"]: BundleError,
    CONSTANTS["VOSRT_INVALID_SESSION"]: SessionError,
    CONSTANTS["VOSRT_INVALID_HANDLE"]: InputError,
}
STRUCTS: dict[str, Any] = {
    name: type(name, (ctypes.Structure,), {"_fields_": fields}) for name, fields in _FIELDS.items()
}


def new_struct(name: str, /, **values: Any) -> Any:
    """A struct of the C interface with its size filled in.

    Raises:
        OptionError: a value is not what its field holds; ctypes itself would cut numbers off.
    """
    return _set_fields(STRUCTS[name](struct_size=ctypes.sizeof(STRUCTS[name])), values)


def _set_fields(struct: Any, values: dict[str, Any]) -> Any:
    kinds: dict[str, Any] = dict(struct._fields_)
    for field, value in values.items():
        if kinds[field] is ctypes.c_int32:
            value = integer(field, value)
        try:
            setattr(struct, field, value)
        except TypeError as error:
            raise OptionError(f"{field} is {value!r}; expected {kinds[field].__name__.removeprefix('c_')}") from error
    return struct


def integer(name: str, value: Any) -> int:
    """Return a number that C takes as int32.

    Raises:
        OptionError: it is none, or too large.
    """
    if not isinstance(value, int | np.integer) or not -(1 << 31) <= value < 1 << 31:
        raise OptionError(f"{name} is {value!r}; expected a whole number of at most 31 bits")
    return int(value)


def choice(name: str, value: Any, values: dict[Any, int]) -> int:
    """Return the number that a word stands for.

    Raises:
        OptionError: it stands for none.
    """
    if not isinstance(value, str) or value not in values:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(values)}")
    return values[value]


def address(name: str, array: Any, shape: Sequence[int], dtype: type[np.generic]) -> int:
    """Address of an array that C reads; the caller keeps the array alive.

    Args:
        name: what it is, for the error.
        array: to be read.
        shape: that it must have; 0 stands for any extent.
        dtype: of its elements.

    Raises:
        OptionError: it has another shape or dtype, has gaps, or is not in host memory.
    """
    if isinstance(array, np.ndarray):
        fits = array.ndim == len(shape) and all(map(_fits, shape, array.shape)) and array.dtype == dtype
        if fits and array.flags.c_contiguous and array.flags.aligned:
            return int(array.ctypes.data)
        if fits:
            raise OptionError(f"{name} has gaps between its elements or is not aligned; pass a contiguous copy")
        given = f"{array.dtype.name} {list(array.shape)}"
    else:
        given = type(array).__name__
    raise OptionError(f"{name} is {given}; expected {np.dtype(dtype).name} {list(shape)} in host memory")


def _fits(wanted: int, given: int) -> bool:
    return wanted in (0, given)


def new_array(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array that C fills.

    Raises:
        OptionError: it does not fit into memory.
    """
    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        raise OptionError(f"an array of {' x '.join(map(str, shape))} elements does not fit into memory") from error


def objects_of(found: Iterable[Any]) -> dict[int, ObjectResult]:
    """By id, what structs ``vosrt_object`` say; the Python package and its library always have the same struct."""
    return {
        each.id: ObjectResult(
            each.id,
            each.area_px,
            (each.x, each.y, each.width, each.height),
            (each.centroid_x, each.centroid_y) if each.present else None,
            each.confidence,
            OBJECT_STATES[each.state],
            each.state_confidence,
        )
        for each in found
    }


def measure_with(
    call: Callable[..., None], labels: U8Array, ids: Sequence[int], confidence: F32Array | None
) -> dict[int, ObjectResult]:
    """Have a function of the library measure the objects ``ids`` of u8 [H, W].

    Args:
        call: gets the parameters of ``vosrt_measure_objects``.
        labels: object ids, 0 for background.
        ids: the objects to measure, ascending.
        confidence: f32 [H, W]; None leaves the objects' confidence 0.

    Raises:
        OptionError: an array has another shape or dtype.
    """
    found = (STRUCTS["vosrt_object"] * len(ids))(*(new_struct("vosrt_object") for _ in ids[:1]))
    call(
        address("labels", labels, (0, 0), np.uint8),
        None if confidence is None else address("confidence", confidence, labels.shape, np.float32),
        *picture_size(*labels.shape),
        bytes(ids),
        len(ids),
        found,
    )
    return objects_of(found)


def picture_size(height: Any, width: Any) -> tuple[int, int]:
    """Rows and columns of a picture, in pixels.

    Raises:
        OptionError: they are those of none.
    """
    for name, value in (("height", height), ("width", width)):
        if not 1 <= integer(name, value) <= MAX_SIDE:
            raise OptionError(f"{name} is {value}; expected 1 to {MAX_SIDE}")
    return int(height), int(width)


def find_library(name: str) -> Path | None:
    """Path of a shared library of this installation, None where it was not built."""
    paths = (Path(folder, name) for folder in vosrt.__path__)
    return next((path for path in paths if path.is_file()), None)


class Library:
    """The functions of a shared library; a failed one raises.

    Args:
        path: of the library.

    Attributes:
        path: as given.

    Raises:
        OptionError: it cannot be opened, or is another version's.
    """

    _failure: type[VosrtError] = WorkError
    _failure_remedy = ""
    _memory_remedy = "use a smaller size or a shorter context"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            loaded = ctypes.CDLL(str(path))
            self._functions: dict[str, Any] = {}
            for name, (result, arguments) in FUNCTIONS.items():
                if self._has(name):
                    function = self._functions[name] = getattr(loaded, name)
                    function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            reason = f"{path} cannot be used: {' '.join(str(error).split())}"
            raise OptionError(f"{reason}; {_REMEDY}", reason=reason, remedy=_REMEDY) from error
        expected = CONSTANTS["VOSRT_ABI_VERSION"]
        if (version := self.plain("vosrt_abi_version")) != expected:
            reason = f"{path} has ABI {version}; expected {expected}"
            raise OptionError(f"{reason}; {_REMEDY}", reason=reason, remedy=_REMEDY)

    def _has(self, function: str) -> bool:
        return not function.startswith("vosrt_cuda_")

    @property
    def version(self) -> str:
        """Of the library."""
        return str(self.plain("vosrt_version").decode())

    def plain(self, name: str, *arguments: Any) -> Any:
        """Call a function that gives no status."""
        return self._functions[name](*arguments)

    def call(self, name: str, *arguments: Any, refused: type[VosrtError] = OptionError) -> None:
        """Call a function that gives a status.

        Args:
            name: of the function.
            arguments: for it.
            refused: what an impossible value is to the caller, in place of an OptionError.

        Raises:
            MaskError: an annotation marks nothing, or what the grid cannot hold.
            SessionError: a session is damaged, or of another network.
            BundleError: a graph is damaged, or is not one that may be run.
            OptionError: an impossible value; no GPU or driver, one too old; out of memory.
            InputError: the process was forked since the handle was made.
            WorkError: the work failed; an EngineError where CUDA did.
        """
        if status := self._functions[name](*arguments):
            self._raise(status, refused)

    def _raise(self, status: int, refused: type[VosrtError] = OptionError) -> None:
        text = self.plain("vosrt_last_error").decode(errors="replace")
        kind = _ERRORS.get(status, self._failure)
        if status == CONSTANTS["VOSRT_INVALID_ARGUMENT"]:
            kind = refused
        remedy = self._failure_remedy if status not in _ERRORS else ""
        if status == CONSTANTS["VOSRT_OUT_OF_MEMORY"]:
            remedy = self._memory_remedy
        raise kind(f"{text}; {remedy}" if remedy else text)

    def options(self, name: str, **values: Any) -> Any:
        """Options of the C interface: the library's defaults, but for some fields.

        Raises:
            OptionError: as `new_struct`.
        """
        struct = new_struct(name)
        self.call(f"{name}_init", ctypes.byref(struct))
        return _set_fields(struct, values)

    def read_bytes(self, name: str, *arguments: Any) -> bytes:
        """What a function writes to ``buffer, capacity, size``, its last parameters, once it has said how much that is.

        Raises:
            VosrtError: as for `call`.
        """
        size = ctypes.c_size_t()
        nothing_written = self._functions[name](*arguments, None, 0, ctypes.byref(size))
        if nothing_written != CONSTANTS["VOSRT_BUFFER_TOO_SMALL"]:
            self._raise(nothing_written)
        # A session may take 100 MB: it is written into the object that is returned, not copied there.
        written: bytes = _new_bytes(None, size.value)
        self.call(name, *arguments, written, size.value, ctypes.byref(size))
        return written


def memory_options(
    shape: tuple[int, int, int],
    options: PropagationOptions,
    *,
    align_corners: bool,
    precision: Precision,
    **others: int,
) -> Any:
    """A ``vosrt_memory_options``.

    Args:
        shape: h, w, K.
        options: how labels are propagated.
        align_corners: see `EncoderSpec`.
        precision: of the products in matching.
        others: further fields.

    Raises:
        OptionError: an impossible value.
    """
    return new_struct(
        "vosrt_memory_options",
        **dict(zip(("height", "width", "channels"), shape, strict=True)),
        **vars(options),
        align_corners=bool(align_corners),
        precision=choice("precision", precision, PRECISIONS),
        **others,
    )


def create_handle(
    library: Library, shape: tuple[int, int, int], options: PropagationOptions, **others: Any
) -> ctypes.c_void_p:
    """Create a memory in a library; see `memory_options`.

    Raises:
        OptionError: an impossible value, or not enough memory.
    """
    handle = ctypes.c_void_p()
    given = memory_options(shape, options, **others)
    library.call("vosrt_memory_create", ctypes.byref(given), ctypes.byref(handle))
    return handle


class LibraryMemory(NotCopied):
    """A memory in a library; the methods of `vosrt.core.memory.Memory`.

    Args:
        library: that holds it.
        handle: freed with the object.
    """

    _instead = "save() gives bytes from which another one goes on"

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        weakref.finalize(self, library.plain, "vosrt_memory_destroy", handle).atexit = False
        info = self._info()
        self._shape, self._top_k = (info.height, info.width, info.channels), int(info.top_k)
        self._masks = (info.height * info.parts, info.width * info.parts)

    def __getattr__(self, name: str) -> Any:
        """Refuse what was made by ``__new__`` alone.

        Raises:
            InputError: always, but for names that Python itself looks for.
        """
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(f"the memory has no {name}: it was never created; call the class")

    def _call(self, function: str, *arguments: Any, family: str = "vosrt_memory") -> None:
        self._library.call(f"{family}_{function}", self._handle, *arguments)

    def _info(self) -> Any:
        info = new_struct("vosrt_memory_info")
        self._call("get_info", ctypes.byref(info))
        return info

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Tracked objects, ascending."""
        ids, count = (ctypes.c_uint8 * 255)(), ctypes.c_int32()
        self._call("object_ids", ids, ctypes.byref(count))
        return tuple(ids[: count.value])

    @property
    def frames(self) -> int:
        """How many were pushed so far."""
        return int(self._info().frames)

    @property
    def info(self) -> dict[str, Any]:
        """Counters; see `vosrt.core.memory.Memory`."""
        info = self._info()
        names = ("threads", "objects", "references", "frames", "bytes", "head", "survivors", "parts")
        counters = {name: getattr(info, name) for name in names}
        isa = self._library.plain("vosrt_isa_name", info.isa).decode()
        return {"isa": isa, **counters, "shape": self._shape, "align_corners": info.align_corners == 1}

    def push(self, embedding: F32Array) -> None:
        """Take the next frame; see `vosrt.core.memory.Memory`."""
        self._call("push", address("embedding", embedding, self._shape, np.float32))

    def annotate(self, mask: U8Array) -> None:
        """Mark objects in the newest frame; see `vosrt.core.memory.Memory`."""
        data = address("mask", mask, (0, 0), np.uint8)
        self._call("annotate", data, *mask.shape, mask.shape[1])

    def remove(self, object_id: int) -> None:
        """Forget one object; see `vosrt.core.memory.Memory`."""
        self._call("remove", integer("object_id", object_id))

    def guide(self, frame: U8Array) -> None:
        """Take the newest frame's picture; see `vosrt.core.memory.Memory`."""
        data = address("frame", frame, (0, 0, 3), np.uint8)
        height, width = frame.shape[:2]
        self._call("guide", data, height, width, 3 * width)

    def labels(self, height: int, width: int) -> tuple[U8Array, F32Array]:
        """Labels and confidence of the newest frame; see `vosrt.core.memory.Memory`."""
        size = picture_size(height, width)
        labels, confidence = new_array(size, np.uint8), new_array(size, np.float32)
        self._call("labels", *size, labels.ctypes.data, confidence.ctypes.data)
        return labels, confidence

    def _masks_shape(self) -> tuple[int, ...]:
        return (*self._masks, 1 + len(self.object_ids))

    def soft_masks(self) -> F32Array:
        """Soft masks of the newest frame; see `vosrt.core.memory.Memory`."""
        masks = new_array(self._masks_shape(), np.float32)
        self._call("soft_masks", masks.ctypes.data)
        return masks

    def set_soft_masks(self, masks: F32Array) -> None:
        """Replace the newest frame's soft masks; see `vosrt.core.memory.Memory`."""
        self._call("set_soft_masks", address("soft masks", masks, self._masks_shape(), np.float32))

    def top_k(self) -> TopK:
        """What the newest frame attended to; see `vosrt.core.memory.Memory`."""
        references = ctypes.c_int32()
        self._call("top_k_references", ctypes.byref(references))
        shape = (references.value, self._shape[0] * self._shape[1], self._top_k)
        found = TopK(*(new_array(shape, dtype) for dtype in (np.float32, np.int32, np.int32)))
        self._call("top_k", found.similarity.ctypes.data, found.frame.ctypes.data, found.cell.ctypes.data)
        return found
