"""Arrays handed on without a copy: DLPack against NumPy's own reader, lifetimes, and both ways of ONNX Runtime."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosrt.engines import device
from vosrt.engines.base import DeviceEngine
from vosrt.engines.device import DeviceTensor
from vosrt.engines.onnxruntime import cpu_engine


class Owner:
    """Something that can be watched."""

    def __init__(self, array: Any) -> None:
        self.array = array


def tensor_of(array: Any, **options: Any) -> tuple[DeviceTensor, weakref.ref[Owner]]:
    owner = Owner(array)
    tensor = DeviceTensor(
        pointer=array.ctypes.data, shape=array.shape, dtype=array.dtype, device="cpu", owner=owner, **options
    )
    return tensor, weakref.ref(owner)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(2, 3, 5), (4,), (), (0, 3)])
def test_numpy_reads_the_same_memory(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).random(shape) * 2).astype(dtype)
    tensor, _ = tensor_of(array)
    seen = np.from_dlpack(tensor)
    assert (seen.dtype, seen.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(seen, array)
    assert array.size == 0 or seen.ctypes.data == array.ctypes.data


def test_memory_lives_as_long_as_somebody_reads_it() -> None:
    tensor, owner = tensor_of(np.arange(6, dtype=np.float32))
    before = len(device._held)
    seen: Any = np.from_dlpack(tensor)
    del tensor
    gc.collect()
    assert owner() is not None
    assert seen.sum() == 15
    del seen
    gc.collect()
    assert owner() is None
    assert len(device._held) == before


def test_a_capsule_that_nobody_takes_lets_go() -> None:
    tensor, owner = tensor_of(np.arange(6, dtype=np.float32))
    capsule = tensor.__dlpack__()
    del tensor
    gc.collect()
    assert owner() is not None
    del capsule
    gc.collect()
    assert owner() is None


def test_streams_and_devices_are_told() -> None:
    """A consumer on another stream could read before the array is whole."""
    array = np.arange(6, dtype=np.float32)
    on_gpu = DeviceTensor(
        pointer=4096, shape=(2, 3), dtype=array.dtype, device="cuda", device_id=1, stream=7, owner=None
    )
    assert on_gpu.__dlpack_device__() == (2, 1)
    assert on_gpu.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (4096, False),
        "strides": None,
        "stream": 7,
        "version": 3,
    }
    on_gpu.__dlpack__(stream=7)
    with pytest.raises(BufferError, match="the array is written on stream 0x7"):
        on_gpu.__dlpack__(stream=8)
    tensor, _ = tensor_of(array)
    assert tensor.__dlpack_device__() == (1, 0)
    assert not hasattr(tensor, "__cuda_array_interface__")


def test_onnxruntime_leaves_its_outputs_where_they_are(encoder_graph: Path, mean_colours: Callable[..., Any]) -> None:
    """The same values as by way of the host, and memory of their own per call."""
    engine = cpu_engine(encoder_graph, {"frames": ("n", "height", "width", None)}, threads=1, reason="")
    assert isinstance(engine, DeviceEngine)
    rng = np.random.default_rng(0)
    frames = [rng.integers(1, 256, (1, 32, 48, 3), dtype=np.uint8) for _ in range(3)]
    outputs = [engine.run_on_device({"frames": each})["embedding"] for each in frames]
    gc.collect()
    for each, output in zip(frames, outputs, strict=True):
        assert (output.device, output.stream, output.shape) == ("cpu", None, (1, 4, 6, 3))
        seen = np.from_dlpack(output)
        assert seen.ctypes.data == output.pointer
        np.testing.assert_allclose(seen, mean_colours(each), atol=1e-5)
