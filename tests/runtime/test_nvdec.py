"""Videos decoded on a GPU, with a stand-in for PyNvVideoCodec that decodes with PyAV, on the emulated GPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.fakes import media
from vosrt.arrays import DeviceTensor
from vosrt.cli.run import main
from vosrt.cuda.runtime import download, open_queue
from vosrt.errors import BrokenVideoError, MissingExtraError, OptionError
from vosrt.pipeline import Pipeline
from vosrt.stream import PendingStep
from vosrt.types import StepResult, U8Array
from vosrt.video.base import Frame, FrameOnGpu, FrameRange, SegmentedFrame
from vosrt.video.nvdec import NvdecSource, check_nvdec
from vosrt.video.source import open_source

WIDTH, HEIGHT, COUNT = 96, 64, 7


class FakeNvc(ModuleType):
    """PyNvVideoCodec 2.2, as far as it is called: signatures as its own introspection gives them."""

    __version__ = "2.2.4"
    ColorSpace = SimpleNamespace(BT_601="601", BT_709="709", UNSPEC="?")
    ColorRange = SimpleNamespace(MPEG="mpeg", JPEG="jpeg", UDEF="?")

    def __init__(self) -> None:
        super().__init__("PyNvVideoCodec")
        self.space, self.range, self.depth, self.chroma = "?", "?", 8, "420"
        self.breaks_at: int | None = None
        self.waited: list[int] = []
        self.gpus: list[int] = []

    def CreateDemuxer(self, filename: str) -> FakeDemuxer:  # noqa: N802 (the package's name, as below)
        return FakeDemuxer(self, filename)

    def CreateDecoder(self, gpuid: int = 0, codec: Any = None, usedevicememory: bool = False) -> FakeDecoder:  # noqa: N802
        if codec != "h264":
            raise RuntimeError("HW decoder\nfor this codec is not there")
        assert usedevicememory
        self.gpus.append(gpuid)
        return FakeDecoder(self)


class FakeDemuxer:
    """``PyNvDemuxer``: iterating gives packets, the last of them empty."""

    def __init__(self, nvc: FakeNvc, path: str) -> None:
        self._nvc, self._container = nvc, av.open(path)
        self._stream = self._container.streams.video[0]

    def Width(self) -> int:  # noqa: N802
        return self._stream.width

    def Height(self) -> int:  # noqa: N802
        return self._stream.height

    def ColorSpace(self) -> str:  # noqa: N802
        return self._nvc.space

    def ColorRange(self) -> str:  # noqa: N802
        return self._nvc.range

    def BitDepth(self) -> int:  # noqa: N802
        return self._nvc.depth

    def ChromaFormat(self) -> Any:  # noqa: N802
        return SimpleNamespace(name=self._nvc.chroma)

    def GetNvCodecId(self) -> str:  # noqa: N802
        return self._stream.codec_context.name

    def GetTimebaseNum(self) -> int:  # noqa: N802
        return self._stream.time_base.numerator if self._stream.time_base else 0

    def GetTimebaseDen(self) -> int:  # noqa: N802
        return self._stream.time_base.denominator if self._stream.time_base else 0

    def __iter__(self) -> Iterator[Any]:
        return self._container.demux(self._stream)


class FakeDecoder:
    """``PyNvDecoder``: pictures share memory that the next packet is decoded into."""

    def __init__(self, nvc: FakeNvc) -> None:
        self._nvc = nvc
        self._memory: list[U8Array] = []
        self._count = 0

    def Decode(self, packet: Any) -> list[FakePicture]:  # noqa: N802
        if self._nvc.breaks_at == self._count:
            raise RuntimeError("cuvidDecodePicture\nfailed")
        for array in self._memory:
            array[...] = 255
        pictures = [(each.pts, each.to_ndarray(format="nv12")) for each in packet.decode()]
        self._count += len(pictures)
        self._memory = [array for _, array in pictures]
        return [FakePicture(pts, array) for pts, array in pictures]

    def WaitOnCUStream(self, stream: int) -> None:  # noqa: N802
        self._nvc.waited.append(stream)


class FakePicture:
    """``DecodedFrame``."""

    def __init__(self, pts: int, array: U8Array) -> None:
        self._pts, self._array = pts, array

    def getPTS(self) -> int:  # noqa: N802
        return self._pts

    def cuda(self) -> list[Any]:
        height, width = self._array.shape[0] * 2 // 3, self._array.shape[1]
        planes = ((self._array[:height], (height, width, 1)), (self._array[height:], (height // 2, width // 2, 2)))
        return [
            SimpleNamespace(
                __cuda_array_interface__={
                    "shape": shape,
                    "strides": (width, shape[2], 1),
                    "typestr": "|u1",
                    "data": (plane.ctypes.data, False),
                    "version": 3,
                }
            )
            for plane, shape in planes
        ]


@pytest.fixture
def nvc(cuda_emulated: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvc:
    """A machine with the package."""
    module = FakeNvc()
    module.__spec__ = importlib.util.spec_from_loader("PyNvVideoCodec", None)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", module)
    return module


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """H.264 of 8 x 8 blocks of colour, 10 frames a second."""
    return write_video(tmp_path / "clip.mp4")


def write_video(path: Path, codec: str = "libx264", rotation: int = 0) -> Path:
    size = (HEIGHT // 16, WIDTH // 16, 3)
    blocks = (np.random.default_rng(t).integers(0, 256, size, dtype=np.uint8) for t in range(COUNT))

    def prepare(stream: av.VideoStream) -> None:
        stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)

    return media.write_video(path, (each.repeat(16, 0).repeat(16, 1) for each in blocks), codec=codec, prepare=prepare)


def inside(image: U8Array) -> U8Array:
    """The middle of every block, where converters agree about chroma."""
    return image.reshape(HEIGHT // 16, 16, WIDTH // 16, 16, 3)[:, 5:11, :, 5:11]


def test_frames_are_those_of_the_processor(nvc: FakeNvc, video: Path) -> None:
    """They come in order with their times, in memory that is used again; the decoder's stream is waited for."""
    source, expected = NvdecSource(str(video)), open_source(str(video))
    assert isinstance(source.first.image, np.ndarray)
    assert source.info == expected.info
    pointers: set[int] = set()
    streams: set[int | None] = set()
    held: list[tuple[Frame, Frame]] = []
    for frame, other in zip(source, expected, strict=True):
        assert isinstance(frame, FrameOnGpu)
        assert (frame.index, frame.name) == (other.index, other.name)
        assert frame.time_s == pytest.approx(other.time_s)
        assert frame.picture.shape == (HEIGHT, WIDTH, 3)
        pointers.add(frame.picture.pointer)
        streams.add(frame.picture.stream)
        held = [*held[-1:], (frame, other)]
        for kept, wanted in held:
            assert np.abs(inside(kept.image).astype(int) - inside(wanted.image)).max() <= 3
    assert len(pointers) <= 3
    assert nvc.gpus == [0]
    assert set(nvc.waited) == streams
    source.close()
    part = list(NvdecSource(str(video), FrameRange(2, 5)))
    assert [frame.index for frame in part] == [2, 3, 4]


@pytest.mark.parametrize("full_range", [False, True], ids=["16 to 235", "full range"])
@pytest.mark.parametrize("space", ["ITU601", "ITU709"])
def test_colours_are_converted_as_they_were_made(cuda_core: str, space: str, full_range: bool) -> None:
    """FFmpeg's own conversion there and back agrees, odd sizes included."""
    colours = av.video.reformatter.Colorspace[space]
    levels = av.video.reformatter.ColorRange["JPEG" if full_range else "MPEG"]
    blocks = np.random.default_rng(0).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    image = blocks.repeat(16, axis=0).repeat(16, axis=1)
    nv12 = (
        av.VideoFrame.from_ndarray(image, format="bgr24")
        .reformat(format="nv12", dst_colorspace=colours, dst_color_range=levels)
        .to_ndarray()
    )
    queue = open_queue(0)
    there = queue.allocate(nv12.shape, np.uint8, "a picture")
    queue.upload(np.ascontiguousarray(nv12), there)
    for height, width in ((HEIGHT, WIDTH), (HEIGHT - 1, WIDTH - 1)):
        target = queue.allocate((height, width, 3), np.uint8, "a frame")
        chroma = there.pointer + HEIGHT * WIDTH
        queue.nv12_to_bgr(there.pointer, chroma, WIDTH, target, bt709=space == "ITU709", full_range=full_range)
        found = np.zeros_like(image)
        found[:height, :width] = queue.download(target)
        difference = np.abs(inside(found).astype(int) - inside(image))
        assert difference.max() <= 3, difference.max()


def test_the_source_says_which_colours_they_are(nvc: FakeNvc, video: Path) -> None:
    images = {}
    for nvc.space, nvc.range in (("?", "?"), ("601", "mpeg"), ("709", "mpeg"), ("601", "jpeg")):
        images[nvc.space, nvc.range] = next(iter(NvdecSource(str(video)))).image
    np.testing.assert_array_equal(images["?", "?"], images["601", "mpeg"])
    assert (images["709", "mpeg"] != images["601", "mpeg"]).any()
    assert (images["601", "jpeg"] != images["601", "mpeg"]).any()


def test_what_cannot_be_decoded_is_one_line(
    nvc: FakeNvc, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what to do instead; a video that breaks half-way gives what came before."""

    def refused(path: str, words: str) -> None:
        with pytest.raises(OptionError, match=words):
            NvdecSource(path)

    refused(str(write_video(tmp_path / "other.mp4", codec="mpeg4")), "HW decoder for this codec is not there.*der cpu")
    refused(str(write_video(tmp_path / "turned.mp4", rotation=90)), "its frames are to be turned.*use --decoder cpu")
    refused("rtsp://camera", "NVDEC reads files here: use --decoder cpu")
    nvc.depth = 10
    refused(str(video), "its pixels are not 8-bit 4:2:0")
    nvc.depth, nvc.breaks_at = 8, 4
    source = NvdecSource(str(video))
    seen: list[int] = []
    with pytest.raises(BrokenVideoError, match=r"breaks at frame 4 \(cuvidDecodePicture failed\)"):
        seen.extend(frame.index for frame in source)
    assert seen == [0, 1, 2, 3]
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(MissingExtraError, match=r"install it with: pip install 'vosrt\[nvdec\]'"):
        NvdecSource(str(video))


class Tracker:
    """Keeps the frames that it is given."""

    def __init__(self) -> None:
        self.saw: list[U8Array | DeviceTensor] = []

    def prepare(self, frame: U8Array | DeviceTensor) -> U8Array | DeviceTensor:
        return frame

    def submit(self, frame: Any, mask: U8Array | None = None) -> PendingStep:
        self.saw.append(frame)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        return PendingStep(StepResult(len(self.saw) - 1, labels, labels.astype(np.float32), ()))


class Sink:
    """Looks at the pixels, as an overlay does."""

    def __init__(self) -> None:
        self.images: list[U8Array] = []

    def write(self, item: SegmentedFrame) -> None:
        self.images.append(item.frame.image)

    def close(self) -> None: ...


def test_the_pipeline_hands_them_on_where_they_are(nvc: FakeNvc, video: Path) -> None:
    """The tracker gets arrays on the GPU, a sink that asks for pixels gets the same in host memory."""
    tracker, sink = Tracker(), Sink()
    annotations = {2: np.ones((HEIGHT, WIDTH), np.uint8)}
    report = Pipeline(NvdecSource(str(video)), tracker=tracker, annotations=annotations, sink=sink).run()
    assert (report.frames, report.error) == (COUNT, None)
    assert len(tracker.saw) == COUNT - 2
    for given, image in zip(tracker.saw, sink.images[2:], strict=True):
        assert isinstance(given, DeviceTensor)
        np.testing.assert_array_equal(download(given), image)


def test_the_command_chooses(
    nvc: FakeNvc,
    video: Path,
    fake_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``auto`` falls back to the processor; what was asked for and cannot be had is one line and exit code 2."""
    mask = tmp_path / "mask.png"
    Image.fromarray(np.pad(np.ones((32, 48), np.uint8), ((0, HEIGHT - 32), (0, WIDTH - 48)))).save(mask)
    command = [str(video), "--mask", str(mask), "--engine", "fake", "--bundle", str(fake_bundle), "--no-video", "-q"]

    def run(*options: str) -> tuple[int, str]:
        code = main([*command, "-o", str(tmp_path / "out"), "--overwrite", *options])
        return code, capsys.readouterr().err

    code, error = run("--decoder", "nvdec")
    assert (code, "the memory is not on a GPU; see vos-run doctor, or add --device cuda" in error) == (2, True)
    code, error = run("--decoder", "nvdec", "--device", "cuda")
    assert (code, "the engine takes frames from host memory" in error) == (2, True)
    code, error = run("--decoder", "gpu")
    assert (code, "--decoder is 'gpu'; expected auto, cpu or nvdec" in error) == (2, True)
    assert run("--device", "cuda") == (0, "")
    monkeypatch.setattr("vosrt.model.Model.takes_frames_on_gpu", True)  # an engine that does is not here
    monkeypatch.setattr("vosrt.stream.Stream.prepare", _from_the_gpu(nvc))
    assert run("--device", "cuda") == (0, "")
    assert nvc.gpus == [0]
    nvc.depth = 10
    assert run("--device", "cuda") == (0, "")
    code, error = run("--device", "cuda", "--decoder", "nvdec")
    assert (code, "its pixels are not 8-bit 4:2:0" in error) == (2, True)
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec")
    code, error = run("--device", "cuda", "--decoder", "nvdec")
    assert (code, "pip install 'vosrt[nvdec]'" in error) == (2, True)
    with pytest.raises(MissingExtraError):
        check_nvdec(0)


def _from_the_gpu(nvc: FakeNvc) -> Callable[..., Any]:
    """`Stream.prepare` for an engine that takes frames from host memory after all."""

    def prepare(stream: Any, frame: Any) -> Any:
        return stream.encoder.encode(download(frame) if isinstance(frame, DeviceTensor) else frame, stream.size)

    return prepare
