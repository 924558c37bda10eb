"""Opening of a source by the text that a user types."""

from __future__ import annotations

import re
from pathlib import Path

from vosrt.errors import OptionError, SourceError
from vosrt.video.base import FrameRange, FrameSource, SourceOptions, is_pipe

ARRAY_SUFFIXES = (".npy", ".npz")
TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".lsm", ".stk")


_INSTRUMENTS = re.compile(r"\.(czi|dcm|dicom|h5|hdf5|ims|lif|mrc|nd2|nii|oi[bf]|vsi|zarr)", re.IGNORECASE)
_CAMERA = re.compile(r"/dev/video(\d+)")


def is_video_file(source: str) -> bool:
    """Return whether ``source`` is neither a webcam nor a folder of images nor a URL nor a pipe."""
    return not (is_live(source) or Path(source).is_dir() or "://" in source or is_pipe(source))


def is_live(source: str) -> bool:
    """Return whether ``source`` is a webcam: its number, or a device such as ``/dev/video0``."""
    return (source.isdecimal() and not Path(source).exists()) or _CAMERA.fullmatch(source) is not None


def open_source(
    source: str,
    *,
    start: int = 0,
    end: int | None = None,
    decode_on: int | None = None,
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> FrameSource:
    """Open a video file, folder of images, stack of TIFF pages, NumPy array, pipe, webcam or address.

    Args:
        source: a path, ``"-"`` for standard input, ``"0"`` for the first webcam, or ``"rtsp://…"``.
        start: first frame to read, from 0.
        end: first frame that is not read; None reads to the end.
        decode_on: number of the GPU that decodes a video file and keeps its frames; None decodes on the processor.

    Raises:
        SourceError: it does not exist, cannot be read, or holds no frame.
        OptionError: the range is empty, or the GPU cannot decode this.
        MissingExtraError: it is a TIFF file, and tifffile is not installed.
    """
    if start < 0:
        raise OptionError(f"--start is {start}; expected 0 or more")
    if end is not None and end <= start:
        raise OptionError(f"--end is {end}; expected more than --start, which is {start}")
    if _INSTRUMENTS.fullmatch(Path(source).suffix) and Path(source).exists():
        raise SourceError(
            f"{source}: is of a kind of microscopes and scanners that is not read; save it as a TIFF stack, as Fiji "
            "does with Bio-Formats, or as an array [T, H, W] in an .npy file"
        )
    frames = FrameRange(start, end)
    if is_live(source):
        from vosrt.video.opencv import WebcamSource

        camera = _CAMERA.fullmatch(source)
        return WebcamSource(int(camera[1] if camera else source), frames, options)
    if Path(source).is_dir():
        from vosrt.video.images import ImageFolderSource

        return ImageFolderSource(Path(source), frames, options)
    if Path(source).suffix.lower() in TIFF_SUFFIXES and Path(source).is_file():
        from vosrt.video.tiff import TiffSource

        return TiffSource(Path(source), frames, options)
    if Path(source).suffix.lower() in ARRAY_SUFFIXES and Path(source).is_file():
        from vosrt.video.numpy_stack import NumpySource

        return NumpySource(Path(source), frames, options)
    if decode_on is not None:
        from vosrt.video.nvdec import NvdecSource

        return NvdecSource(source, frames, options, device=decode_on)
    from vosrt.video.av import VideoSource

    return VideoSource(source, frames, options)
