"""A C program and Python get the same labels from the same frames, and continue each other's sessions bit for bit."""

from __future__ import annotations

import ctypes as ct
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vosrt import Model, PropagationOptions, SessionError, StepResult, load_bundle
from vosrt.bundle import EncoderSpec, GraphFile, Manifest, write_manifest
from vosrt.core import reference
from vosrt.core.library import STRUCTS, new_struct, objects_of
from vosrt.cuda.runtime import open_queue
from vosrt.engines.fake import FakeEngine
from vosrt.types import RANGES, U8Array, WorkingSize

Clip = tuple[U8Array, U8Array]
I32, I64, Pointer = ct.c_int32, ct.c_int64, ct.c_void_p
ENCODE = ct.CFUNCTYPE(ct.c_int, Pointer, ct.POINTER(STRUCTS["vosrt_encode_task"]))
ON_RESULT = ct.CFUNCTYPE(None, Pointer, ct.POINTER(STRUCTS["vosrt_result"]))
BGR, RGB, BGRA, RGBA, GRAY, NV12, NV12_709 = range(7)
FP32 = 1
NATIVE = -1  # vosrt_size


def options_of(library: ct.CDLL, kind: str, **values: Any) -> Any:
    """Options with their defaults, but for `values`."""
    options = new_struct(f"vosrt_{kind}_options")
    assert library[f"vosrt_{kind}_options_init"](ct.byref(options)) == 0
    for name, value in values.items():
        setattr(options, name, value)
    return options


def manifest(
    size: int | None = None, align_corners: bool = True, enlarge_percent: int = 100, **options: Any
) -> Manifest:
    return Manifest(
        name="fake",
        trained=False,
        summary="mean colours",
        encoder=EncoderSpec(channels=32, feature="res4", align_corners=align_corners, min_side=16, max_side=1024),
        graphs={"encoder": GraphFile(file="encoder.onnx", sha256="ab" * 32, bytes=1, precision="fp32")},
        size=size,
        enlarge_percent=enlarge_percent,
        inference=PropagationOptions(context=3, radius=3.0, **options),
    )


def python_model(
    size: int | None = None, align_corners: bool = True, enlarge_percent: int = 100, **options: Any
) -> Model:
    said = manifest(size, align_corners, enlarge_percent, **options)
    return Model(said, {"encoder": FakeEngine(said.encoder)}, precision="fp32", threads=2)


def array(address: int, shape: tuple[int, ...], kind: Any) -> Any:
    """A view of memory that the library owns."""
    return np.ctypeslib.as_array(ct.cast(address, ct.POINTER(kind)), shape)


class CStream:
    """The stream of a C program whose engine is the same fake one."""

    def __init__(
        self,
        library: ct.CDLL,
        size: int = 0,
        session: bytes | None = None,
        sha256: str = "ab" * 32,
        align_corners: bool = True,
        stream_size: int = 0,
        enlarge_percent: int = 100,
        **propagation: Any,
    ) -> None:
        self._library, spec = library, manifest().encoder
        engine = FakeEngine(spec)
        self.fail_with = b""
        self.working_frame: U8Array = np.empty((0, 0, 3), np.uint8)
        self.seen: list[int] = []

        def encode(_: Any, task: Any) -> int:
            t = task.contents
            if self.fail_with:
                library.vosrt_set_last_error(self.fail_with)
                return 5
            frame = array(t.bgr, (1, t.height, t.width, 3), ct.c_uint8)
            self.working_frame = frame[0].copy()
            out = engine.run({spec.input_name: frame})[spec.output_name]
            array(t.embedding, (1, t.grid_height, t.grid_width, t.channels), ct.c_float)[:] = out
            return 0

        def on_result(_: Any, result: Any) -> None:
            self.seen.append(result.contents.index)

        self._callbacks = ENCODE(encode), ON_RESULT(on_result)
        memory = options_of(
            library,
            "memory",
            precision=FP32,
            threads=2,
            align_corners=align_corners,
            **{"context": 3, "radius": 3.0, **propagation},
        )
        options = options_of(
            library,
            "model",
            channels=32,
            max_side=1024,
            enlarge_percent=enlarge_percent,
            **({"size": size} if size else {}),
            memory=ct.addressof(memory),
            graph_sha256=(ct.c_uint8 * 32)(*bytes.fromhex(sha256)),
        )
        table = new_struct("vosrt_engine", encode=ct.cast(self._callbacks[0], Pointer))
        model, self._stream = Pointer(), Pointer()
        self.check(library.vosrt_model_create(ct.byref(options), ct.byref(table), ct.byref(model)))
        stream_options = options_of(library, "stream", size=stream_size, on_result=ct.cast(self._callbacks[1], Pointer))
        if session is None:
            status = library.vosrt_stream_create(model, ct.byref(stream_options), ct.byref(self._stream))
        else:
            status = library.vosrt_stream_load(
                model, ct.byref(stream_options), session, ct.c_size_t(len(session)), ct.byref(self._stream)
            )
        library.vosrt_model_destroy(model)  # the stream keeps what it needs
        self.check(status)

    def check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"{status}: {self._library.vosrt_last_error().decode()}")

    def step(self, frame: Any, mask: U8Array | None = None) -> dict[str, Any]:
        frame = image(frame) if isinstance(frame, np.ndarray) else frame
        marks, result = None if mask is None else image(mask, GRAY), new_struct("vosrt_result")
        self.check(
            self._library.vosrt_stream_step(self._stream, ct.byref(frame), marks and ct.byref(marks), ct.byref(result))
        )
        return self.values(result)

    def add(self, mask: U8Array) -> dict[str, Any]:
        result = new_struct("vosrt_result")
        self.check(self._library.vosrt_stream_add(self._stream, ct.byref(image(mask, GRAY)), ct.byref(result)))
        return self.values(result)

    def remove(self, object_id: int) -> None:
        self.check(self._library.vosrt_stream_remove(self._stream, I32(object_id)))

    def values(self, result: Any) -> dict[str, Any]:
        shape = (result.height, result.width)
        ids = array(result.object_ids, (result.object_count,), ct.c_uint8).tolist() if result.object_count else []
        sure = array(result.object_confidence, (256,), ct.c_float)[: len(ids)].tolist()
        return {
            "index": result.index,
            "labels": array(result.labels, shape, ct.c_uint8).copy(),
            "confidence": array(result.confidence, shape, ct.c_float).copy(),
            "object_confidence": dict(zip(ids, sure, strict=True)),
            "objects": objects_of((STRUCTS["vosrt_object"] * len(ids)).from_address(result.objects)),
        }

    def save(self) -> bytes:
        size = ct.c_size_t()
        assert self._library.vosrt_stream_save(self._stream, None, ct.c_size_t(0), ct.byref(size)) == 9
        buffer = ct.create_string_buffer(size.value)
        self.check(self._library.vosrt_stream_save(self._stream, buffer, size, ct.byref(size)))
        return buffer.raw

    def close(self) -> None:
        self._library.vosrt_stream_destroy(self._stream)


def image(pixels: U8Array, layout: int = BGR) -> Any:
    """A view of an array, which must outlive it; any row stride, also a negative one."""
    height, width = pixels.shape[:2]
    where = {"data": pixels.ctypes.data, "stride": pixels.strides[0]}
    view = new_struct("vosrt_image", format=layout, height=height, width=width, **where)
    view.keep = pixels
    return view


@pytest.fixture(scope="module")
def library(native: Any) -> ct.CDLL:
    path = native.libvosrt().path
    loaded = ct.CDLL(str(path))
    loaded.vosrt_last_error.restype = loaded.vosrt_describe.restype = ct.c_char_p
    return loaded


@pytest.fixture
def open_c(library: ct.CDLL) -> Iterator[Callable[..., CStream]]:
    opened: list[CStream] = []

    def create(**options: Any) -> CStream:
        opened.append(CStream(library, **options))
        return opened[-1]

    yield create
    for stream in opened:
        stream.close()


def assert_same(ours: dict[str, Any], theirs: StepResult) -> None:
    assert ours["index"] == theirs.index
    np.testing.assert_array_equal(ours["labels"], theirs.labels)
    np.testing.assert_array_equal(ours["confidence"], theirs.confidence)
    assert ours["objects"] == theirs.objects
    assert ours["object_confidence"] == pytest.approx(theirs.object_confidence, abs=1e-7)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("bundle", "percent", "stream", "frame"),
    [
        (0, 100, 0, (500, 550)),
        (0, 100, 0, (64, 96)),
        (0, 100, NATIVE, (500, 550)),
        (0, 150, 240, (500, 550)),
        (0, 100, 128, (64, 96)),
        (32, 150, 0, (64, 96)),
        (32, 100, NATIVE, (64, 96)),
        (NATIVE, 150, 0, (500, 550)),
        (128, 150, 0, (64, 97)),
        (128, 400, 0, (97, 65)),
        (128, 135, 0, (71, 65)),
    ],
)
def test_frames_are_worked_on_at_the_size_of_python(
    open_c: Callable[..., CStream], bundle: int, percent: int, stream: int, frame: tuple[int, int], align_corners: bool
) -> None:
    """Frames are at 480 or the model's size, but enlarged no further than it says, unless the stream names a size."""
    image_, mask = np.full((*frame, 3), 90, np.uint8), np.ones(frame, np.uint8)
    ours = open_c(size=bundle, enlarge_percent=percent, stream_size=stream, align_corners=align_corners)
    ours.step(image_, mask)
    model = python_model(bundle if bundle > 0 else None, align_corners, enlarge_percent=percent)
    named: WorkingSize = "native" if NATIVE in (stream, stream or bundle) else stream or None
    height, width, _ = ours.working_frame.shape
    assert (height, width) == model.working_size(*frame, named)


def test_a_size_that_is_none_is_refused_in_c(open_c: Callable[..., CStream]) -> None:
    """It is neither a number of pixels nor a constant of vosrt_size."""
    for sizes in ({"size": -2}, {"size": 7}, {"stream_size": -2}, {"stream_size": 16385}):
        with pytest.raises(RuntimeError, match=r"options\.size is -?\d+; expected 8 to 16384"):
            open_c(**sizes)
    for percent in (99, 401):
        with pytest.raises(RuntimeError, match=r"options\.enlarge_percent is \d+; expected 100 to 400"):
            open_c(enlarge_percent=percent)


@pytest.mark.parametrize(("size", "align_corners"), [(0, True), (48, True), (0, False), (51, False)])
def test_c_and_python_give_the_same_labels(
    open_c: Callable[..., CStream], tiny_clip: Clip, size: int, align_corners: bool
) -> None:
    """Frame by frame, bit by bit: objects marked, corrected, added late and removed, at full and at working size."""
    frames, masks = tiny_clip
    ours = open_c(size=size, align_corners=align_corners)
    theirs = python_model(size or None, align_corners).stream()
    assert_same(ours.step(frames[0]), theirs.step(frames[0]))
    first = np.where(masks[1] == 1, 1, 0).astype(np.uint8)
    assert_same(ours.step(frames[1], first), theirs.step(frames[1], first))
    second = np.where(masks[1] == 2, 9, 0).astype(np.uint8)
    assert_same(ours.add(second), theirs.add(second))
    assert_same(ours.step(frames[2]), theirs.step(frames[2]))
    assert_same(ours.step(frames[3], first), theirs.step(frames[3], first))
    ours.remove(9)
    theirs.remove(9)
    assert_same(ours.step(frames[4]), theirs.step(frames[4]))
    assert ours.seen == [0, 1, 1, 2, 3, 4]


def test_c_and_python_remember_alike(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """With altered embeddings and masks they agree bit by bit, and differ from the published settings."""
    frames, masks = tiny_clip
    altered: dict[str, Any] = {"centring": 0.8, "sharpness": 1.5, "object_bias": 0.1, "guided": 2, "calibration": 2}
    altered["motion"] = 0.3
    ours, theirs, plain = open_c(**altered), python_model(**altered).stream(), python_model().stream()
    for t, frame in enumerate(frames):
        result = theirs.step(frame, masks[0] if t == 0 else None)
        assert_same(ours.step(frame, masks[0] if t == 0 else None), result)
        published = plain.step(frame, masks[0] if t == 0 else None)
    assert not np.array_equal(result.confidence, published.confidence)
    assert ours.save() == theirs.save()


def test_every_pixel_format_and_stride_reads_the_same_picture(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """RGB, BGRA, RGBA, padded rows and bottom-up pictures give the labels of dense BGR."""
    frames, masks = tiny_clip
    alpha = np.full((64, 96, 1), 77, np.uint8)
    padded = np.full((64, 96 + 5, 3), 255, np.uint8)
    expected = [r["labels"] for r in clip_through(open_c(size=48), frames, masks[0], lambda f: image(f))]
    variants: dict[str, Callable[[U8Array], Any]] = {
        "rgb": lambda f: image(np.ascontiguousarray(f[..., ::-1]), RGB),
        "bgra": lambda f: image(np.concatenate([f, alpha], 2), BGRA),
        "rgba": lambda f: image(np.concatenate([f[..., ::-1], alpha], 2), RGBA),
        "padded": lambda f: image(copy_into(padded, f)[:, :96]),
        "bottom up": lambda f: image(np.ascontiguousarray(f[::-1])[::-1]),
    }
    for name, view in variants.items():
        got = [r["labels"] for r in clip_through(open_c(size=48), frames, masks[0], view)]
        np.testing.assert_array_equal(got, expected, err_msg=name)


def copy_into(target: U8Array, frame: U8Array) -> U8Array:
    target[:, : frame.shape[1]] = frame
    return target


def clip_through(
    stream: CStream, frames: U8Array, mask: U8Array, view: Callable[[U8Array], Any]
) -> list[dict[str, Any]]:
    return [stream.step(view(frame), mask if t == 0 else None) for t, frame in enumerate(frames)]


def test_nv12_becomes_the_colours_that_it_encodes(open_c: Callable[..., CStream]) -> None:
    """BT.601 studio range: grey stays grey, and primaries come back within two steps, odd sizes included."""
    for y, u, v, bgr in ((16, 128, 128, (0, 0, 0)), (235, 128, 128, (255, 255, 255)), (81, 90, 240, (0, 0, 255))):
        luma = np.full((33, 35), y, np.uint8)
        chroma = np.tile(np.array([u, v], np.uint8), (17, 18))
        view = image(luma, NV12)
        view.chroma, view.chroma_stride = chroma.ctypes.data, 36
        stream = open_c()
        stream.step(view)
        assert np.abs(stream.working_frame.astype(int) - np.array(bgr)).max() <= 2


NV12_SIZE = (64, 96)
NV12_TOLERANCE = 1  # steps of 255: the processor rounds its weights to 1/256, the GPU computes in fp32


def nv12_noise(height: int, width: int) -> tuple[U8Array, U8Array]:
    """Luma and chroma of every value, those outside the limited range included."""
    random = np.random.default_rng(12)
    halves = ((height + 1) // 2, (width + 1) // 2, 2)
    return random.integers(0, 256, (height, width), np.uint8), random.integers(0, 256, halves, np.uint8)


@pytest.mark.parametrize("layout", [NV12, NV12_709])
def test_the_processor_reads_nv12_as_defined(open_c: Callable[..., CStream], layout: int) -> None:
    luma, chroma = nv12_noise(*NV12_SIZE)
    view = image(luma, layout)
    view.chroma, view.chroma_stride = chroma.ctypes.data, chroma.strides[0]
    stream = open_c(size=NATIVE)
    stream.step(view)
    expected = reference.nv12_to_bgr(luma, chroma, bt709=layout == NV12_709)
    assert stream.working_frame.shape == expected.shape
    assert np.abs(stream.working_frame.astype(int) - expected).max() <= NV12_TOLERANCE


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("bt709", [False, True])
def test_the_gpu_reads_nv12_as_defined(cuda_core: str, bt709: bool, full_range: bool) -> None:
    for height, width in (NV12_SIZE, (33, 35)):
        luma, chroma = nv12_noise(height, width + width % 2)  # the rows of both lie equally far apart
        luma = luma[:, :width]
        queue = open_queue(0)
        planes = np.concatenate([luma.base, chroma.reshape(len(chroma), -1)])
        there = queue.allocate(planes.shape, np.uint8, "a picture")
        queue.upload(planes, there)
        target = queue.allocate((height, width, 3), np.uint8, "a frame")
        behind = there.pointer + height * planes.shape[1]
        queue.nv12_to_bgr(there.pointer, behind, planes.shape[1], target, bt709=bt709, full_range=full_range)
        expected = reference.nv12_to_bgr(luma, chroma, bt709=bt709, full_range=full_range)
        assert np.abs(queue.download(target).astype(int) - expected).max() <= NV12_TOLERANCE


def test_sessions_continue_across_languages(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """From Python to C and back, right after an annotation and later, the rest of the video is the same."""
    frames, masks = tiny_clip
    for pause in (0, 2):
        whole = python_model().stream()
        whole.start(frames[0], masks[0])
        for frame in frames[1 : pause + 1]:
            whole.step(frame)
        session = whole.save()
        mine = open_c(session=session)
        assert mine.save() == session, "saving what was loaded gives the same bytes"
        back = python_model().stream()
        back.load(mine.save())
        extra = np.where(masks[pause] == 2, 2, 0).astype(np.uint8)
        assert_same(mine.add(extra), whole.add(extra))
        back.add(extra)
        for frame in frames[pause + 1 :]:
            expected = whole.step(frame)
            assert_same(mine.step(frame), expected)
            np.testing.assert_array_equal(back.step(frame).labels, expected.labels)


def test_sessions_say_how_the_grid_is_aligned(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """Sessions of the first format, which does not say, have aligned corners."""
    frames, masks = tiny_clip
    for align_corners in (True, False):
        stream = python_model(align_corners=align_corners).stream()
        stream.start(frames[0], masks[0])
        session = stream.save()
        expected = stream.step(frames[1])
        assert_same(open_c(session=session, align_corners=align_corners).step(frames[1]), expected)
        with pytest.raises(SessionError, match="load the bundle that it was saved with"):
            python_model(align_corners=not align_corners).stream().load(session)
        with pytest.raises(RuntimeError, match="load the bundle that it was saved with"):
            open_c(session=session, align_corners=not align_corners)
        if align_corners:
            for version in (1, 2, 3, 4, 5, 6):
                first = open_c(session=in_format(version, session))
                assert first.save() == session
                assert_same(first.step(frames[1]), expected)


def in_format(version: int, session: bytes) -> bytes:
    """A session of format 7 with aligned corners that alters and calibrates nothing, as an earlier format has it.

    Format 6 does not say how many parts cells have; format 5 has no thresholds of what becomes of objects; format 4
    does not say how much motion counts; format 3 does not say whether it calibrates; format 2 ends its options,
    thirteen of them, with how the grid is aligned; format 1 does not say that either.
    """
    flag = 56 + 32 + 12 + 12 * 4
    assert session[8:12] == (7).to_bytes(4, "little")
    assert session[flag : flag + 28] == np.array([0, 0, 1, 0, 0, 0, 0], np.float32).tobytes()
    content = session[56 : flag + {1: 0, 2: 4, 3: 20, 4: 24, 5: 28, 6: 80}[version]] + session[flag + 84 :]
    return with_content(session[:8] + version.to_bytes(4, "little") + session[12:16], content)


def with_content(start: bytes, content: bytes) -> bytes:
    """A session whose size and hash are right."""
    return start + (56 + len(content)).to_bytes(8, "little") + hashlib.sha256(content).digest() + content


def test_sessions_whose_options_are_impossible_are_refused(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """They are refused also where the hash is right, and so are those of a later format."""
    frames, masks = tiny_clip
    stream = python_model(centring=0.8, sharpness=1.5, object_bias=0.1).stream()
    stream.start(frames[0], masks[0])
    session = stream.save()
    options = 56 + 32 + 12 + 13 * 4
    for n, values in enumerate([(-0.1, 1.1, np.nan), (-1, 0.01, 101, np.inf), (-11, 11, np.nan)]):
        for value in values:
            at = options + 4 * n
            content = session[56:at] + np.float32(value).tobytes() + session[at + 4 :]
            with pytest.raises(SessionError, match=("centring", "sharpness", "object_bias")[n]):
                python_model().stream().load(with_content(session[:16], content))
    content = session[56 : options + 12] + (33).to_bytes(4, "little") + session[options + 16 :]
    with pytest.raises(SessionError, match="guided is 33; expected 0 to 32"):
        python_model().stream().load(with_content(session[:16], content))
    # Without the mean that is removed, slots are read from the wrong place.
    content = session[56:options] + bytes(4) + session[options + 4 :]
    with pytest.raises(SessionError):
        python_model().stream().load(with_content(session[:16], content))
    later = with_content(session[:8] + (8).to_bytes(4, "little") + session[12:16], session[56:])
    with pytest.raises(SessionError, match="it has format 8; this libvosrt reads up to 7"):
        python_model().stream().load(later)


def test_a_session_continues_in_another_process(tiny_clip: Clip, tmp_path: Path, native: Any) -> None:
    frames, masks = tiny_clip
    stream = python_model().stream()
    stream.start(frames[0], masks[0])
    (tmp_path / "session").write_bytes(stream.save())
    np.save(tmp_path / "frame.npy", frames[1])
    code = (
        "import numpy as np, pathlib, tests.fakes.memories as m\n"
        "from vosrt.engines.fake import FakeEngine; from vosrt.bundle import EncoderSpec\n"
        "s = m.load_session(pathlib.Path('session').read_bytes(), threads=1)\n"
        "e = EncoderSpec(channels=32, feature='res4'); f = np.load('frame.npy')\n"
        "s.memory.push(FakeEngine(e).run({e.input_name: f[None]})[e.output_name][0])\n"
        "np.save('labels.npy', s.memory.labels(64, 96)[0])\n"
    )
    path = ":".join(sys.path)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": path})
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), stream.step(frames[1]).labels)


def test_damaged_and_foreign_sessions_are_refused(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """Every truncation and every flipped byte is noticed; so is another network. Nothing crashes."""
    frames, masks = tiny_clip
    stream = python_model().stream()
    stream.start(frames[0], masks[0])
    session = stream.save()
    for cut in (0, 1, 7, 8, 55, 56, 100, len(session) // 2, len(session) - 1):
        with pytest.raises(SessionError, match="session"):
            python_model().stream().load(session[:cut])
    for at in range(0, len(session), max(1, len(session) // 97)):
        broken = bytearray(session)
        broken[at] ^= 0x41
        with pytest.raises(SessionError):
            python_model().stream().load(bytes(broken))
    with pytest.raises(RuntimeError, match="another network"):
        open_c(session=session, sha256="cd" * 32)
    with pytest.raises(SessionError, match="begin"):
        python_model().stream().load(b"x" * 500)


def test_an_engine_that_fails_leaves_the_stream_as_it_was(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    """Its words reach the caller; the next frame goes on as if nothing had happened."""
    frames, masks = tiny_clip
    ours, theirs = open_c(), python_model().stream()
    ours.fail_with = b"the accelerator is on fire"
    with pytest.raises(RuntimeError, match="6: the accelerator is on fire"):
        ours.step(frames[0], masks[0])
    ours.fail_with = b""
    assert_same(ours.step(frames[0], masks[0]), theirs.start(frames[0], masks[0]))
    ours.fail_with = b"again"
    with pytest.raises(RuntimeError, match="again"):
        ours.step(frames[1])
    ours.fail_with = b""
    assert_same(ours.step(frames[1]), theirs.step(frames[1]))


def test_wrong_use_is_refused_with_what_was_expected(open_c: Callable[..., CStream], tiny_clip: Clip) -> None:
    frames, masks = tiny_clip
    stream = open_c()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: stream.remove(1), "1: removing an object needs a frame"),
        (lambda: stream.step(image(frames[0], 7)), "1: frame.format is 7; expected 0 to 6"),
        (lambda: stream.step(frames[0][:8]), "would be encoded at 96 x 8; this model takes sides of 16 to 1024"),
        (lambda: stream.step(frames[0], masks[0][:, :50].copy()), "4: the mask has 50 x 64 pixels, the frame 96 x 64"),
        (lambda: stream.step(frames[0], np.zeros_like(masks[0])), "4: the mask marks no object"),
        (lambda: stream.step(new_struct("vosrt_image", height=64, width=96)), "1: frame.data is NULL"),
        (
            lambda: stream.step(new_struct("vosrt_image", height=64, width=96, data=1, stride=287)),
            "frame.stride is 287 bytes; expected 0 or at least 288",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
    stream.step(frames[0], masks[0])
    with pytest.raises(RuntimeError, match="the frame size changed within the stream from 96 x 64"):
        stream.step(frames[0][:48].copy())


def test_structs_of_other_versions_are_understood(library: ct.CDLL) -> None:
    """A newer caller's fields are refused unless they are zero; a smaller struct than the first is an error."""
    options = (STRUCTS["vosrt_memory_options"] * 2)()
    options[0] = options_of(library, "memory", height=2, width=2, channels=4)
    memory = Pointer()
    options[0].struct_size = ct.sizeof(options)
    assert library.vosrt_memory_create(ct.byref(options), ct.byref(memory)) == 0
    library.vosrt_memory_destroy(memory)
    options[1].channels = 5
    assert library.vosrt_memory_create(ct.byref(options), ct.byref(memory)) == 2
    assert b"upgrade" in library.vosrt_last_error()
    options[0].struct_size = 4
    assert library.vosrt_memory_create(ct.byref(options), ct.byref(memory)) == 1
    assert json.loads(library.vosrt_describe())["isa"]["generic"] is True


def test_the_default_bundle_reads_the_same_in_c(library: ct.CDLL) -> None:
    """Channels, sizes and the hash of the graph are those that Python reads."""
    bundle = load_bundle("default")
    handle, options = Pointer(), new_struct("vosrt_model_options")
    assert library.vosrt_bundle_open(str(bundle.path).encode(), ct.byref(handle)) == 0, library.vosrt_last_error()
    assert library.vosrt_bundle_model_options(handle, ct.byref(options)) == 0
    path = ct.c_char_p()
    assert library.vosrt_bundle_graph_path(handle, b"encoder", ct.byref(path)) == 0
    assert Path((path.value or b"").decode()) == bundle.graph_path("encoder")
    assert options.channels == bundle.manifest.encoder.channels
    memory = STRUCTS["vosrt_memory_options"].from_address(options.memory)
    assert memory.align_corners == bundle.manifest.encoder.align_corners
    assert (options.min_side, options.max_side, options.size) == (16, 4096, bundle.manifest.size or 480)
    assert options.enlarge_percent == bundle.manifest.enlarge_percent
    assert bytes(options.graph_sha256).hex() == bundle.manifest.graphs["encoder"].sha256
    assert library.vosrt_bundle_graph_path(handle, b"decoder", ct.byref(path)) == 7
    assert b"no graph 'decoder'; it has: encoder" in library.vosrt_last_error()
    library.vosrt_bundle_close(handle)


def test_options_of_a_bundle_read_the_same_in_c(library: ct.CDLL, fake_bundle: Path) -> None:
    """They agree to the last bit of fp32; those that a manifest leaves out are the defaults."""
    for options in (
        PropagationOptions(),
        PropagationOptions(
            context=7,
            radius=2.5,
            top_k=20,
            temperature=0.1,
            centring=0.8,
            sharpness=1.5,
            object_bias=-0.1,
            guided=4,
            calibration=5,
            motion=0.3,
            parts=2,
            lost_share=0.1,
            clear_share=0.2,
            lost_after=4,
            back_after=2,
            back_for=7,
            back_confidence=0.7,
            iou_factor=0.4,
            iou_power=1.2,
        ),
    ):
        manifest = load_bundle(fake_bundle).manifest
        encoder = replace(manifest.encoder, align_corners=options.parts == 1)
        said = replace(manifest, encoder=encoder, inference=options)
        write_manifest(said, fake_bundle / "manifest.json")
        document = json.loads((fake_bundle / "manifest.json").read_text())
        for name, value in vars(PropagationOptions()).items():
            if document["inference"][name] == value:
                del document["inference"][name]
        (fake_bundle / "manifest.json").write_text(json.dumps(document))
        handle, model = Pointer(), new_struct("vosrt_model_options")
        assert library.vosrt_bundle_open(str(fake_bundle).encode(), ct.byref(handle)) == 0, library.vosrt_last_error()
        assert library.vosrt_bundle_model_options(handle, ct.byref(model)) == 0
        memory = STRUCTS["vosrt_memory_options"].from_address(model.memory)
        assert load_bundle(fake_bundle).manifest.inference == options
        for name in RANGES:
            assert getattr(memory, name) == np.float32(getattr(options, name)), name
        for flag in ("pad_context", "yield_background"):
            assert getattr(memory, flag) == getattr(options, flag), flag
        library.vosrt_bundle_close(handle)
