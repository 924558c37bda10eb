"""Python and a C host get the same labels from every packaged bundle and from an int8 one, mask networks included.

The C host is vosrt.h through ctypes as a program uses it: it opens the bundle, gives frames to ``vosrt_stream_step``
and lends the library its engines as callbacks. C++ is held to Python in tests/end_to_end/test_vos_embed.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vosrt.bundle import load_bundle
from vosrt.core.abi import CONSTANTS
from vosrt.core.library import STRUCTS, new_struct
from vosrt.core.native import libvosrt
from vosrt.encoder import Embedding
from vosrt.errors import VosrtError
from vosrt.model import Model
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]
CLIPS: dict[str, Callable[[Clip], Clip]] = {
    "as it is": lambda clip: clip,
    "mirrored": lambda clip: (clip[0][:, :, ::-1].copy(), clip[1][:, :, ::-1].copy()),
    "backwards": lambda clip: (clip[0][::-1].copy(), clip[1][::-1].copy()),
}


class HostOfC:
    """A program that opens a bundle and follows objects through one video."""

    def __init__(self, bundle: Path, networks: Model) -> None:
        self._networks, self._kept = networks, dict[int, Embedding]()
        self._bundle, self._model, self._stream = (ctypes.c_void_p() for _ in range(3))
        library = libvosrt()
        library.call("vosrt_bundle_open", str(bundle).encode(), ctypes.byref(self._bundle))
        options = new_struct("vosrt_model_options")
        library.call("vosrt_bundle_model_options", self._bundle, ctypes.byref(options))
        memory = STRUCTS["vosrt_memory_options"].from_address(options.memory)
        memory.precision = CONSTANTS["VOSRT_PRECISION_FP32"]
        self._callbacks = {
            "encode": self._callback("vosrt_encode_task", self._encode),
            "encode_masks": self._callback("vosrt_encode_masks_task", self._encode_masks),
            "decode_masks": self._callback("vosrt_decode_masks_task", self._decode_masks),
            "release": ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(
                lambda _, features: self._kept.pop(features)
            ),
        }
        if networks.manifest.masks is None:
            self._callbacks = {"encode": self._callbacks["encode"]}
        table = {name: ctypes.cast(each, ctypes.c_void_p).value for name, each in self._callbacks.items()}
        engine = new_struct("vosrt_engine", **table)
        library.call("vosrt_model_create", ctypes.byref(options), ctypes.byref(engine), ctypes.byref(self._model))
        library.call("vosrt_stream_create", self._model, None, ctypes.byref(self._stream))

    @staticmethod
    def _callback(task: str, run: Callable[[Any], None]) -> Any:
        def call(_: Any, pointer: Any) -> int:
            run(pointer.contents)
            return 0

        return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(STRUCTS[task]))(call)

    def _encode(self, task: Any) -> None:
        frame = view(task.bgr, (task.height, task.width, 3), np.uint8)
        embedding = self._networks.encode(frame, "native")
        view(task.embedding, (task.grid_height, task.grid_width, task.channels))[:] = embedding.array
        if task.features:
            token = ctypes.c_void_p.from_address(task.features)
            token.value = 1 + max(self._kept, default=0)
            self._kept[token.value or 0] = embedding

    def _encode_masks(self, task: Any) -> None:
        assert self._networks.manifest.masks is not None
        size, grid = (task.height, task.width), (task.grid_height, task.grid_width)
        inputs: dict[str, Any] = {
            "frames": view(task.bgr, (1, *size, 3), np.uint8),
            "masks": view(task.masks, (task.objects, *size)),
            "context": self._kept[task.features].maps[self._networks.manifest.masks.context],
        }
        values = self._networks._engines["mask_encoder"].run(inputs)["values"]
        view(task.values, (task.objects, *grid, task.value_channels))[:] = values

    def _decode_masks(self, task: Any) -> None:
        shape = (task.objects, task.grid_height, task.grid_width, task.value_channels)
        maps: Any = self._kept[task.features].maps
        inputs = {"readout": view(task.readout, shape), "values": view(task.values, shape)}
        logits = self._networks._engines["decoder"].run({**inputs, "res3": maps["res3"], "res2": maps["res2"]})[
            "logits"
        ]
        view(task.logits, (task.objects, task.logit_height, task.logit_width))[:] = logits

    def step(self, frame: U8Array, mask: U8Array | None) -> U8Array:
        """Labels u8 [H, W] of the next frame."""
        result, marks = new_struct("vosrt_result"), None
        if mask is not None:
            marks = ctypes.byref(image(mask, CONSTANTS["VOSRT_FORMAT_GRAY"]))
        given = image(frame, CONSTANTS["VOSRT_FORMAT_BGR"])
        libvosrt().call("vosrt_stream_step", self._stream, ctypes.byref(given), marks, ctypes.byref(result))
        assert (result.refine_ms > 0) == (self._networks.manifest.masks is not None)
        return view(result.labels, frame.shape[:2], np.uint8).copy()

    def close(self) -> None:
        """End everything, and see that the library gave back all that it was lent."""
        for kind in ("stream", "model"):
            libvosrt().plain(f"vosrt_{kind}_destroy", getattr(self, f"_{kind}"))
        libvosrt().plain("vosrt_bundle_close", self._bundle)
        assert not self._kept


def image(pixels: U8Array, layout: int) -> Any:
    """A view of dense pixels, which must outlive it."""
    height, width = pixels.shape[:2]
    return new_struct("vosrt_image", format=layout, height=height, width=width, data=pixels.ctypes.data)


def view(address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """An array at an address of the library."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array: NDArray[Any] = np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)), dtype)
    return array.reshape(shape)


@pytest.fixture
def labels_of_c() -> Iterator[Callable[..., list[U8Array]]]:
    """Follows a clip as a C program, whose handles are freed behind the test."""
    hosts: list[HostOfC] = []

    def follow(bundle: Path, networks: Model, frames: U8Array, mask: U8Array) -> list[U8Array]:
        hosts.append(HostOfC(bundle, networks))
        return [hosts[-1].step(frame, mask if t == 0 else None) for t, frame in enumerate(frames)]

    yield follow
    for host in hosts:
        host.close()


NAMES = ["default", "fast", "refined", "int8"]


@pytest.fixture
def compare(
    labels_of_c: Callable[..., list[U8Array]], bundle_of: Callable[[str], Path]
) -> Callable[[str, list[tuple[U8Array, U8Array]]], None]:
    """``compare(name, clips)``: holds C to Python, pixel by pixel."""

    def check(name: str, clips: list[tuple[U8Array, U8Array]]) -> None:
        model = Model.load(bundle_of(name), engine="cpu", precision="int8" if name == "int8" else "fp32", threads=1)
        fp32 = Model(model.manifest, model._engines, precision="fp32", threads=1)
        for frames, marks in clips:
            with fp32.stream() as stream:
                expected = [stream.step(frame, marks if t == 0 else None).labels for t, frame in enumerate(frames)]
            np.testing.assert_array_equal(labels_of_c(bundle_of(name), model, frames, marks), expected)
            assert np.mean([labels.any() for labels in expected]) > 0.5, "objects that are lost would prove little"

    return check


@pytest.mark.parametrize("name", NAMES)
def test_c_and_python_give_the_same_labels(name: str, compare: Callable[..., None], tiny_clip: Clip) -> None:
    """A clip as it is, mirrored, and backwards."""
    compare(name, [(frames, masks[0]) for frames, masks in (change(tiny_clip) for change in CLIPS.values())])


@pytest.mark.parametrize("name", NAMES)
def test_c_and_python_give_the_same_labels_of_real_frames(
    name: str, compare: Callable[..., None], real_clip: Callable[[int], Clip]
) -> None:
    """The first frames of a sequence."""
    compare(name, [real_clip(8)])


def test_a_host_without_mask_networks_follows_by_the_encoder(tiny_clip: Clip) -> None:
    """Its streams are not refined, and say so where they are asked to."""
    library, bundle = libvosrt(), ctypes.c_void_p()
    library.call("vosrt_bundle_open", str(load_bundle("refined").path).encode(), ctypes.byref(bundle))
    options, model, stream = new_struct("vosrt_model_options"), ctypes.c_void_p(), ctypes.c_void_p()
    library.call("vosrt_bundle_model_options", bundle, ctypes.byref(options))
    engine = new_struct("vosrt_engine")
    library.call("vosrt_model_create", ctypes.byref(options), ctypes.byref(engine), ctypes.byref(model))
    for refine, refused in (
        (0, ""),
        (-1, ""),
        (2, "the engine does not run the mask networks"),
        (5, "expected -2 to 4"),
    ):
        chosen = library.options("vosrt_stream_options", refine=refine)
        arguments = (model, ctypes.byref(chosen), ctypes.byref(stream))
        if refused:
            with pytest.raises(VosrtError, match=refused):
                library.call("vosrt_stream_create", *arguments)
            continue
        library.call("vosrt_stream_create", *arguments)
        given = image(tiny_clip[0][0], CONSTANTS["VOSRT_FORMAT_BGR"])
        with pytest.raises(VosrtError, match="this model's engine has no encode; give frames with their embedding"):
            library.call("vosrt_stream_step", stream, ctypes.byref(given), None, None)
        library.plain("vosrt_stream_destroy", stream)
    library.plain("vosrt_model_destroy", model)
    library.plain("vosrt_bundle_close", bundle)


def test_embeddings_that_do_not_fit_are_refused() -> None:
    """They are refused before the stream takes anything; one that fits is taken afterwards."""
    library, model, stream = libvosrt(), ctypes.c_void_p(), ctypes.c_void_p()
    options, engine = library.options("vosrt_model_options", channels=4), new_struct("vosrt_engine")
    library.call("vosrt_model_create", ctypes.byref(options), ctypes.byref(engine), ctypes.byref(model))
    library.call("vosrt_stream_create", model, None, ctypes.byref(stream))
    array = np.full((2, 3, 4), 0.5, np.float32)
    fits = {"frame_height": 16, "frame_width": 24, "grid_height": 2, "grid_width": 3, "channels": 4}

    def take(**fields: Any) -> Any:
        given = new_struct("vosrt_embedding", **{"array": array.ctypes.data, **fits, **fields})
        result = new_struct("vosrt_result")
        library.call("vosrt_stream_take", stream, ctypes.byref(given), None, ctypes.byref(result))
        return result

    for fields, words in (
        ({"array": None}, "embedding.array is NULL"),
        ({"channels": 5}, "embedding.channels is 5; expected 4 to 4"),
        ({"grid_height": 0}, "embedding.grid_height is 0"),
        ({"frame_width": 1 << 20}, "embedding.frame_width is 1048576"),
        ({"bgr": array.ctypes.data}, "embedding.height is 0"),
    ):
        with pytest.raises(VosrtError, match=words):
            take(**fields)
    assert (take().index, take(encode_ms=7.0).encode_ms) == (0, 7.0)
    with pytest.raises(VosrtError, match="the frame size changed within the stream"):
        take(grid_height=1)
    library.plain("vosrt_stream_destroy", stream)
    library.plain("vosrt_model_destroy", model)
