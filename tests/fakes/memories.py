"""What the C interface does to memories that no stream owns: sessions of them, and values that are read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vosrt.core.library import LibraryMemory, address, choice, new_array, new_struct
from vosrt.core.memory import Memory
from vosrt.core.native import _isas, libvosrt
from vosrt.cuda import open_device
from vosrt.cuda.memory import CudaMemory
from vosrt.errors import OptionError
from vosrt.types import F32Array, I32Array, U8Array

FP32_ISAS, BF16_ISAS = ("generic", "avx2", "avx512", "neon"), ("avx512bf16", "amx", "amx-emulated")


AnyMemory = TypeVar("AnyMemory", bound=Memory)


def take(memory: AnyMemory, embedding: F32Array, mask: U8Array | None = None) -> AnyMemory:
    """The memory, after a frame and, where there are some, its marks."""
    memory.push(embedding)
    if mask is not None:
        memory.annotate(mask)
    return memory


class Session(NamedTuple):
    """A memory, its frames' rows and columns in pixels, the marks of the newest one, and its network's SHA-256."""

    memory: Memory
    frame_height: int
    frame_width: int
    annotation: U8Array | None
    model: bytes


def save_session(
    memory: Memory,
    frame_height: int = 0,
    frame_width: int = 0,
    annotation: U8Array | None = None,
    model: bytes = bytes(32),
) -> bytes:
    """The memory as bytes, by ``vosrt_memory_save``."""
    assert isinstance(memory, LibraryMemory)
    extra = new_struct(
        "vosrt_session",
        frame_height=frame_height,
        frame_width=frame_width,
        annotation=None if annotation is None else annotation.ctypes.data,
        model=(ctypes.c_uint8 * 32)(*model),
    )
    return memory._library.read_bytes("vosrt_memory_save", memory._handle, ctypes.byref(extra))


def load_session(session: bytes, *, device: str = "cpu", isa: str = "auto", **options: Any) -> Session:
    """What ``vosrt_memory_load`` makes of bytes; ``options`` are further fields of ``vosrt_load_options``."""
    gpu = open_device(device)
    library = libvosrt() if gpu is None else gpu.library
    handle, extra = ctypes.c_void_p(), new_struct("vosrt_session")
    if gpu is not None:
        options["device"] = gpu.number
    given = library.options("vosrt_load_options", isa=choice("isa", isa, _isas()), **options)
    library.call(
        "vosrt_memory_load", session, len(session), ctypes.byref(given), ctypes.byref(handle), ctypes.byref(extra)
    )
    height, width = extra.frame_height, extra.frame_width
    annotation = None
    if extra.annotation:  # lies in the session
        annotation = np.frombuffer(ctypes.string_at(extra.annotation, height * width), np.uint8).reshape(height, width)
    memory = LibraryMemory(library, handle) if gpu is None else CudaMemory.of(handle, gpu.number)
    return Session(memory, height, width, annotation, bytes(extra.model))


def read_values(
    similarity: F32Array,
    slot: I32Array,
    cell: I32Array,
    values: Sequence[F32Array],
    temperature: float,
    *,
    threads: int = 0,
) -> F32Array:
    """Values of objects, each f32 [slots, cells, V], read with their neighbours: f32 [objects, n, V].

    Raises:
        OptionError: an array does not fit, or a slot or a cell is out of range.
    """
    if not values:
        raise OptionError("values are of no object; expected an array for each of at least one")
    address("similarity", similarity, (0, 0), np.float32)
    near, kept = similarity.shape, values[0].shape if np.ndim(values[0]) == 3 else (0, 0, 0)
    of_objects = (ctypes.c_void_p * len(values))(*(address("values", each, kept, np.float32) for each in values))
    out = new_array((len(values), near[0], kept[2]), np.float32)
    task = new_struct(
        "vosrt_values_task",
        threads=threads,
        temperature=temperature,
        queries=near[0],
        top_k=near[1],
        objects=len(values),
        **dict(zip(("slots", "cells", "channels"), kept, strict=True)),
        similarity=similarity.ctypes.data,
        slot=address("slot", slot, near, np.int32),
        cell=address("cell", cell, near, np.int32),
        values=ctypes.addressof(of_objects),
        out=out.ctypes.data,
    )
    libvosrt().call("vosrt_read_values", ctypes.byref(task))
    return out
