"""Videos as files, and servers as cameras have them, for tests that read such."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
from numpy.typing import NDArray


def write_video(
    path: Path | str,
    pictures: Iterable[NDArray[Any]],
    *,
    codec: str = "libx264",
    rate: int = 10,
    pix_fmt: str = "yuv420p",
    colours: str = "bgr24",
    encoder: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    prepare: Callable[[av.VideoStream], object] = lambda _: None,
) -> Path:
    """Write pictures [H, W] or [H, W, 3] of the format ``colours`` as a video; ``prepare`` gets its open stream."""
    with av.open(str(path), "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder or {})
        assert isinstance(stream, av.VideoStream)
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pix_fmt
                prepare(stream)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=colours)))
        file.mux(stream.encode(None))
    return Path(path)


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
