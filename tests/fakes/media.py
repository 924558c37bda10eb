"""Videos as files, and servers as cameras have them, for tests that read such."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_video(
    path: Path | str,
    pictures: Iterable[NDArray[Any]],
    *,
    codec: str = "libx264",
    rate: Fraction | int = 10,
    pix_fmt: str = "yuv420p",
    colours: str = "bgr24",
    encoder: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    prepare: Callable[[av.VideoStream], object] = lambda _: None,
    stamp: Callable[[int], tuple[int, Fraction]] | None = None,
    held_s: float = 0.0,
) -> Path:
    """Write pictures [H, W] or [H, W, 3] of the format ``colours`` as a video.

    Args:
        prepare: gets its open stream.
        stamp: pts and time base of a frame by its number; None has them follow ``rate``.
        held_s: duration of the last frame in seconds; 0 leaves it alone.
    """
    with av.open(str(path), "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder or {})
        assert isinstance(stream, av.VideoStream)
        packets = []
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pix_fmt
                prepare(stream)
            frame = av.VideoFrame.from_ndarray(picture, format=colours)
            if stamp is not None:
                frame.pts, frame.time_base = stamp(number)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if held_s:
            last = max(packets, key=lambda packet: packet.pts or 0)
            assert last.time_base is not None
            last.duration = round(held_s / last.time_base)
        file.mux(packets)
    return Path(path)


def save_pictures(folder: Path, pictures: Iterable[NDArray[Any]], suffix: str = "png") -> Path:
    """Write frames u8 [H, W, 3] BGR or masks u8 [H, W] into a new folder: 00000.png and so on."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        image = Image.fromarray(np.ascontiguousarray(picture[..., ::-1] if picture.ndim == 3 else picture))
        image.save(folder / f"{number:05d}.{suffix}", quality=100)
    return folder


def save_davis(
    root: Path, name: str, frames: Iterable[NDArray[Any]], masks: Iterable[NDArray[Any]], suffix: str = "png"
) -> Path:
    """Write an annotated sequence in the layout of DAVIS; ``suffix`` is that of the frames."""
    save_pictures(root / "Annotations" / "480p" / name, masks)
    return save_pictures(root / "JPEGImages" / "480p" / name, frames, suffix)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address, as ``127.0.0.1:PORT``, of a server that answers each request in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
