"""Arrays handed on without a copy: DLPack against NumPy's own reader, lifetimes, and both ways of ONNX Runtime."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosrt import arrays
from vosrt.arrays import DeviceTensor, adopt, is_on_gpu
from vosrt.engines.base import DeviceEngine
from vosrt.engines.onnxruntime import cpu_engine
from vosrt.errors import OptionError


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
    before = len(arrays._held)
    seen: Any = np.from_dlpack(tensor)
    del tensor
    gc.collect()
    assert owner() is not None
    assert seen.sum() == 15
    del seen
    gc.collect()
    assert owner() is None
    assert len(arrays._held) == before


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


class Shown:
    """Another library's array: DLPack of a tensor in host memory that claims to be on a GPU."""

    def __init__(self, array: Any, **interface: Any) -> None:
        self.owner = Owner(array)
        self.tensor = DeviceTensor(
            pointer=array.ctypes.data,
            shape=array.shape,
            dtype=array.dtype,
            device="cuda",
            owner=self.owner,
            device_id=1,
        )
        if interface:
            self.__cuda_array_interface__ = {**self.tensor.__cuda_array_interface__, **interface}

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream == arrays.DEFAULT_STREAM
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16, np.int64, np.bool_])
def test_dlpack_of_others_is_taken(dtype: Any) -> None:
    """It is taken in place behind the default stream; its producer hears when it is released."""
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    shown = Shown(array)
    owner = weakref.ref(shown.owner)
    taken = adopt(shown)
    assert (taken.pointer, taken.shape, taken.dtype) == (array.ctypes.data, (2, 3, 4), array.dtype)
    assert (taken.device, taken.device_id, taken.stream) == ("cuda", 1, arrays.DEFAULT_STREAM)
    del shown
    gc.collect()
    assert owner() is not None
    part = taken[1]
    assert part.pointer == array[1].ctypes.data
    del taken
    gc.collect()
    assert owner() is not None, "a part holds it too"
    del part
    gc.collect()
    assert owner() is None


def test_the_stream_that_an_array_names_is_its_own() -> None:
    """Version 3 of the interface names one, or says that none is needed; older ones are asked by DLPack."""
    array = np.zeros((2, 3), np.uint8)
    for stream in (None, 7):
        assert adopt(Shown(array, stream=stream)).stream == stream
    older = Shown(array, version=2)
    del older.__cuda_array_interface__["stream"]
    assert adopt(older).stream == arrays.DEFAULT_STREAM


def test_arrays_that_cannot_be_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives one line, and its capsule is given back."""
    array = np.zeros((4, 6), np.uint8)
    with pytest.raises(OptionError, match="a ndarray in host memory was given; expected an array on a GPU"):
        adopt(array)
    assert not is_on_gpu(array)
    assert not is_on_gpu("text")
    with pytest.raises(OptionError, match=r"an array with strides \(12, 1\) was given; pass a contiguous copy"):
        adopt(Shown(array[:, :3], strides=(12, 1)))
    shown = Shown(array)
    monkeypatch.setattr(Shown, "__dlpack__", lambda self, stream: np.zeros(3, np.uint8).__dlpack__())
    with pytest.raises(OptionError, match="on device 1 was given; expected plain numbers on a GPU"):
        adopt(shown)
    monkeypatch.undo()
    capsule = shown.tensor.__dlpack__()
    arrays.take_capsule(capsule)
    with pytest.raises(OptionError, match="that is used or of another version"):
        arrays.take_capsule(capsule)


def test_onnxruntime_takes_inputs_where_they_are(encoder_graph: Path, mean_colours: Callable[..., Any]) -> None:
    """They are bound by their address, as its outputs are."""
    engine = cpu_engine(encoder_graph, {"frames": ("n", "height", "width", None)}, threads=1, reason="")
    frames = np.random.default_rng(0).integers(1, 256, (2, 32, 48, 3), dtype=np.uint8)
    tensor, _ = tensor_of(frames)
    output = engine.run_on_device({"frames": tensor})["embedding"]
    np.testing.assert_allclose(np.from_dlpack(output), mean_colours(frames), atol=1e-5)


def test_onnxruntime_leaves_its_outputs_where_they_are(encoder_graph: Path, mean_colours: Callable[..., Any]) -> None:
    """They have the values of the way over the host, and memory of their own per call."""
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
