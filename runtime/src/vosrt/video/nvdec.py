"""Video files decoded on an NVIDIA GPU (NVDEC) through PyNvVideoCodec; frames stay there.

No GPU has run this yet: its tests have a stand-in with the signatures of PyNvVideoCodec 2.2.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from vosrt.arrays import DeviceTensor
from vosrt.cuda.device import load_cuda_library
from vosrt.cuda.runtime import TensorPool, open_queue
from vosrt.errors import BrokenVideoError, MissingExtraError, OptionError, VosrtError
from vosrt.video.av import VideoSource
from vosrt.video.base import Frame, FrameOnGpu, FrameRange, SourceOptions, is_reading
from vosrt.video.container import is_url

PACKAGE = "PyNvVideoCodec"
_EXTRA = "nvdec"


def check_nvdec(device: int) -> None:
    """Refuse a machine on which videos cannot be decoded with NVDEC, without importing the package.

    Args:
        device: number of the GPU.

    Raises:
        MissingExtraError: the package is not installed.
        OptionError: the GPU cannot be used.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingExtraError(PACKAGE, _EXTRA)
    load_cuda_library().device(device)


def nvdec_version() -> str:
    """Name and version of the package.

    Raises:
        MissingExtraError: it is not installed.
        OptionError: it does not load.
    """
    return str(_load().__version__)


class NvdecSource:
    """Frames of a video file, decoded on a GPU and left there as u8 [H, W, 3] in BGR order.

    PyAV opens the file, describes it and decodes the first frame; NVDEC decodes the rest.

    Args:
        source: path of a file.
        frames: range of frames to read.
        options: how it is read.
        device: number of the GPU.

    Raises:
        MissingExtraError: the package is not installed.
        OptionError: it does not load, or NVDEC cannot decode such a video as it is to be shown.
        SourceError: as for `vosrt.video.av.VideoSource`.
    """

    def __init__(
        self,
        source: str,
        frames: FrameRange = FrameRange(),  # noqa: B008 (frozen)
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
        *,
        device: int = 0,
    ) -> None:
        self._codec = _load()
        if is_url(source):
            raise OptionError(f"{source} is a URL; NVDEC reads files here: use --decoder cpu")
        self._name, self._range = source, frames
        self._queue = open_queue(device)
        self._pool = TensorPool("the frames")
        self._file = VideoSource(source, frames, options)
        try:
            self.info, self.first = self._file.info, self._file.first
            if self._file.turned:
                raise self._refused("its frames are to be turned")
            if self._file.trimmed:
                raise self._refused("an edit list hides some of its frames")
            try:
                self._demuxer = self._codec.CreateDemuxer(filename=source)
                self._decoder = self._codec.CreateDecoder(
                    gpuid=device, codec=self._demuxer.GetNvCodecId(), usedevicememory=True
                )
            except Exception as error:  # the package's own classes, pybind11's, and plain ones
                raise self._refused(" ".join(str(error).split())) from error
            if (self._demuxer.BitDepth(), self._demuxer.ChromaFormat().name) != (8, "420"):
                raise self._refused("its pixels are not 8-bit 4:2:0")
            if (self._demuxer.Width(), self._demuxer.Height()) != (self.info.width, self.info.height):
                raise self._refused("its frames are cropped")
        except BaseException:
            self._file.close()
            raise
        self._bt709 = self._demuxer.ColorSpace() == self._codec.ColorSpace.BT_709  # unknown is BT.601, as on the CPU
        self._full_range = self._demuxer.ColorRange() == self._codec.ColorRange.JPEG
        self._timeline = self._file.packets.new_timeline()
        self._frames = self._decode()

    @property
    def warnings(self) -> Sequence[str]:
        """Joined recordings; see `FrameSource`."""
        return self._timeline.warnings(self._name)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order; see `vosrt.video.base.FrameSource`."""
        yield from self._frames

    def close(self) -> None:
        """Let decoder and file go; see `vosrt.video.base.FrameSource`."""
        if not is_reading(self._frames):
            self._frames.close()
            self._decoder = self._demuxer = None
            self._file.close()

    def _decode(self) -> Generator[Frame, None, None]:
        ticks = self._demuxer.GetTimebaseNum() / max(self._demuxer.GetTimebaseDen(), 1)
        timeline = self._timeline
        end_s = -np.inf
        for picture in self._pictures():
            stamp_s = float(picture.getPTS()) * ticks
            end_s = max(end_s, stamp_s + timeline.step_s)
            index, time_s = timeline.place(stamp_s - (self._file.began_s or 0.0))
            if self._range.end is not None and index >= self._range.end:
                return
            if index >= self._range.start:
                yield FrameOnGpu(self._to_bgr(picture, index), index, time_s, f"{index:05d}")
        if (missing := self._file.packets.what_is_missing(timeline.step_s, timeline.count, end_s)) is not None:
            at = timeline.count
            raise BrokenVideoError(f"{self._name}: the video breaks at frame {at} ({missing})", at)

    def _pictures(self) -> Iterator[Any]:
        """Decoded pictures in the order of display; each is good until the next packet is decoded."""
        count = 0
        try:
            for packet in self._demuxer:
                for picture in self._decoder.Decode(packet):
                    count += 1
                    yield picture
        except VosrtError:
            raise
        except Exception as error:  # as above
            words = " ".join(str(error).split())
            raise BrokenVideoError(f"{self._name}: the video breaks at frame {count} ({words})", count) from error

    def _to_bgr(self, picture: Any, index: int) -> DeviceTensor:
        """A picture of its own memory, whole."""
        luma, chroma = (plane.__cuda_array_interface__ for plane in picture.cuda())
        height, width = luma["shape"][:2]
        if (height, width) != (self.info.height, self.info.width):
            raise BrokenVideoError(
                f"{self._name}: the frame size changes from {self.info.width}×{self.info.height} to {width}×{height} "
                f"at frame {index}; expected one size",
                index,
            )
        self._decoder.WaitOnCUStream(self._queue.stream)
        image = self._pool.take(self._queue, (height, width, 3), np.dtype(np.uint8))
        stride = int((luma.get("strides") or (width,))[0])
        self._queue.nv12_to_bgr(
            luma["data"][0], chroma["data"][0], stride, image, bt709=self._bt709, full_range=self._full_range
        )
        self._queue.wait()  # the decoder reuses its pictures
        return image

    def _refused(self, why: str) -> OptionError:
        return OptionError(f"{self._name} cannot be decoded with NVDEC ({why}); use --decoder cpu")


def _load() -> Any:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError:
        raise MissingExtraError(PACKAGE, _EXTRA) from None
    except Exception as error:  # it looks for the driver's libraries when it is imported
        words = " ".join(str(error).split())
        reason, remedy = f"{PACKAGE} does not load ({words[:160]})", "use --decoder cpu"
        raise OptionError(f"{reason}; {remedy}", reason=reason, remedy=remedy) from error
