"""What Python hands to libvosrt is checked before C reads it, and calls let other threads run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vosrt.core import native
from vosrt.core.library import new_struct
from vosrt.errors import OptionError

H, W, K = 3, 4, 5
PYTHON_API = 4  # FUNCFLAG_PYTHONAPI of ctypes: the function is called with the GIL held


def begun() -> native.Memory:
    memory = native.Memory(H, W, K, threads=1)
    memory.push(np.ones((H, W, K), np.float32))
    return memory


def unaligned(shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.zeros(size + 1, np.uint8)[1:].view(dtype).reshape(shape)


CALLS: dict[str, tuple[Callable[[native.Memory, Any], object], tuple[int, ...], Any]] = {
    "embedding": (lambda memory, array: memory.push(array), (H, W, K), np.float32),
    "mask": (lambda memory, array: memory.annotate(array), (H, W), np.uint8),
    "soft masks": (lambda memory, array: memory.set_soft_masks(array), (H, W, 1), np.float32),
    "frame": (lambda memory, array: memory.guide(array), (H, W, 3), np.uint8),
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_are_checked_before_c_reads_them(name: str) -> None:
    call, shape, dtype = CALLS[name]
    memory, good = begun(), np.ones(shape, dtype)
    for wrong, message in (
        (good.astype(np.float64), f"{name} is float64 .*; expected {np.dtype(dtype).name}"),
        (good[None], f"{name} is .*; expected"),
        (np.repeat(good, 2, axis=1)[:, ::2], f"{name} has gaps between its elements"),
        (good.tolist(), f"{name} is list; expected .* in host memory"),
        (None, f"{name} is NoneType; expected .* in host memory"),
    ):
        with pytest.raises(OptionError, match=message):
            call(memory, wrong)
    good.setflags(write=False)
    call(memory, good)


def test_arrays_that_are_not_aligned_are_refused() -> None:
    with pytest.raises(OptionError, match="embedding has gaps between its elements or is not aligned"):
        begun().push(unaligned((H, W, K), np.float32))


@pytest.mark.parametrize("value", [1.5, "1", None, 1 << 31])
def test_numbers_that_c_would_cut_off_are_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=r"threads is .*; expected a whole number of at most 31 bits"):
        new_struct("vosrt_memory_options", threads=value)


def test_calls_let_other_threads_run() -> None:
    functions = native.libvosrt()._functions.values()
    assert functions
    assert not any(type(function)._flags_ & PYTHON_API for function in functions)
