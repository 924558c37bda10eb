"""Cameras, addresses and pipes: what is live, what ends, what drops, and what a network waits for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from tests.fakes.media import serving, write_video
from tests.fakes.programs import program
from vosrt.errors import BrokenVideoError, OptionError, SourceError
from vosrt.types import U8Array
from vosrt.video import container
from vosrt.video.av import VideoSource
from vosrt.video.base import Frame, SourceOptions
from vosrt.video.source import is_live, is_video_file, open_source

_SPEC = spec_from_file_location("rtsp", Path(__file__).with_name("rtsp.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
rtsp = module_from_spec(_SPEC)
_SPEC.loader.exec_module(rtsp)


def clip(count: int = 20, format: str = "mpegts") -> bytes:
    options = {"movflags": "+faststart"} if format == "mp4" else {}
    noise = (np.random.default_rng(t).integers(0, 255, (64, 96, 3), dtype=np.uint8) for t in range(count))
    with TemporaryDirectory() as folder:
        path, encoder = Path(folder, "clip"), {"g": "5", "tune": "zerolatency"}
        return write_video(path, noise, rate=25, encoder=encoder, options=options, container=format).read_bytes()


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    with serving(answer) as host:
        yield f"http://{host}/clip"


def sends(data: bytes, *, length: int | None) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.mark.parametrize("format", ["mpegts", "mp4", "h264"])
def test_a_finite_file_behind_http_is_a_file(format: str) -> None:
    data = clip(format=format)
    with serve(sends(data, length=len(data))) as address:
        source = open_source(address)
        assert not source.info.live
        assert len(list(source)) == 20
        source.close()


def test_an_endless_answer_is_live() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(clip())

    with serve(answer) as address:
        source = open_source(address, end=5)
        assert source.info.live
        assert len(list(source)) == 5
        source.close()


def test_a_file_whose_connection_drops_is_broken() -> None:
    data = clip(format="mp4")
    with serve(sends(data[: len(data) * 2 // 3], length=len(data))) as address:
        source = open_source(address)
        frames: list[Frame] = []
        with pytest.raises(BrokenVideoError, match="the video breaks at frame"):
            frames.extend(source)
        source.close()
    assert 5 < len(frames) < 20


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_a_file_of_unknown_length_is_whole_when_all_its_frames_came(format: str) -> None:
    """FFmpeg calls the end of such an answer an error."""
    with serve(sends(clip(format=format), length=None)) as address:
        source = open_source(address)
        assert not source.info.live
        assert len(list(source)) == 20
        source.close()


def test_a_file_that_was_cut_off_on_its_server_is_told_of() -> None:
    data = clip(60, format="matroska")
    data = data[: len(data) * 2 // 3]
    with serve(sends(data, length=len(data))) as address:
        source = open_source(address)
        assert 20 < len(list(source)) < 60
        source.close()
    assert "its header promises 2.4 s but it ends at" in source.warnings[-1]


def test_a_camera_that_drops_is_broken() -> None:
    with rtsp.camera(drop_after=(15,)) as address:
        source = open_source(address)
        assert source.info.live
        frames: list[Frame] = []
        with pytest.raises(BrokenVideoError, match=r"the video breaks at frame \d+ \(the connection ended\)"):
            frames.extend(source)
        source.close()
    assert 10 <= len(frames) <= 15


def test_a_camera_that_drops_is_reached_again_where_that_is_asked_for() -> None:
    with rtsp.camera(drop_after=(15, None)) as address:
        source = open_source(address, end=30, options=SourceOptions(reconnect_s=10))
        frames = list(source)
        source.close()
    assert [frame.index for frame in frames] == list(range(30))
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    assert any("the connection dropped before frame" in line for line in source.warnings)


def test_a_camera_that_stays_away_is_broken_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with rtsp.camera(drop_after=(15,)) as address:
        source = open_source(address, options=SourceOptions(reconnect_s=0.2))
    with pytest.raises(BrokenVideoError, match="the connection ended"):
        list(source)
    source.close()


def test_a_camera_that_accepts_connections_and_sends_nothing_is_broken_after_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect, connections = VideoSource._connect, []

    def count(source: VideoSource) -> None:
        connections.append(source)
        connect(source)

    monkeypatch.setattr(VideoSource, "_connect", count)
    with rtsp.camera(drop_after=(15, *[0] * 99)) as address:
        source = open_source(address, options=SourceOptions(reconnect_s=1.5))
        with pytest.raises(BrokenVideoError, match="the video breaks at frame"):
            list(source)
    assert 2 <= len(connections) <= 4  # one a second, after the first two
    assert sum("dropped before frame " in line for line in source.warnings) == 1


def test_a_camera_that_stalls_for_too_long_is_reached_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "READ_TIMEOUT_S", 2.0)
    with rtsp.camera(stall_at=15) as address:
        source = open_source(address, end=30, options=SourceOptions(reconnect_s=30))
        frames = list(source)
        source.close()
    assert [frame.index for frame in frames] == list(range(30))
    assert frames[-1].time_s > 3.0  # the 29 steps, and the time of the stall
    assert any("the connection dropped before frame 1" in line for line in source.warnings)


def test_pictures_of_another_size_are_fitted_into_the_first() -> None:
    """A file ends there; a camera goes on."""
    with rtsp.camera(count=40, then=(48, 64)) as address:
        source = open_source(address, end=30)
        frames = list(source)
        source.close()
    assert [frame.index for frame in frames] == list(range(30))
    assert {frame.image.shape for frame in frames} == {(64, 96, 3)}
    last = frames[-1].image  # grey between black bars
    assert last[:, :20].max() == last[:, -20:].max() == 0
    assert last[:, 28:68].min() > 40
    assert any(
        re.search(r"changes from 96×64 to 48×64 at frame 2\d; frames are fitted", line) for line in source.warnings
    )


def test_a_live_source_takes_its_first_frame_when_the_network_is_ready() -> None:
    """Frames that arrive meanwhile are dropped, and later ones are whole and in order."""
    seen: list[U8Array] = []

    def ready(image: U8Array) -> None:
        seen.append(image)
        time.sleep(0.3)

    with rtsp.camera(count=48, interval_s=0.04) as address:
        source = open_source(address, end=10, options=SourceOptions(ready=ready))
        frames = list(source)
        source.close()
    assert [image.shape for image in seen] == [(64, 96, 3)]
    assert [frame.index for frame in frames] == list(range(10))
    greys = [int(frame.image.mean()) for frame in frames]
    assert greys == pytest.approx([greys[0] + 5 * t for t in range(10)], abs=4)


@pytest.mark.parametrize("answers", [1, 2])
def test_a_server_that_answers_once_keeps_its_connection(answers: int) -> None:
    served: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        served.append(len(served))
        if len(served) > answers:
            handler.send_error(503)
            return
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(clip(40))

    seen: list[U8Array] = []
    with serve(answer) as address:
        source = open_source(address, end=40, options=SourceOptions(ready=seen.append))
        assert source.info.live
        assert [frame.index for frame in source] == list(range(40))
        source.close()
    assert len(seen) == 1
    assert len(served) == 2


def test_a_file_has_no_network_wait(tmp_path: Path) -> None:
    (tmp_path / "clip.ts").write_bytes(clip())
    called: list[U8Array] = []
    open_source(str(tmp_path / "clip.ts"), options=SourceOptions(ready=called.append)).close()
    assert not called


@pytest.mark.parametrize("options", [{"reconnect_s": -1.0}, {"reconnect_s": float("nan")}, {"max_megapixels": -1.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="expected a number from 0"):
        SourceOptions(**options)  # type: ignore[arg-type]


@contextmanager
def writing(path: Path, data: bytes) -> Iterator[None]:
    def write() -> None:
        with path.open("wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    yield
    thread.join(10)


@pytest.mark.parametrize("format", ["mpegts", "matroska", "mp4"])
def test_a_fifo_is_read_as_a_stream(tmp_path: Path, format: str) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    assert not is_video_file(str(fifo))
    with writing(fifo, clip(format=format)):
        source = open_source(str(fifo))
        frames = list(source)
        source.close()
    assert [frame.index for frame in frames] == list(range(20))
    assert not source.info.live


def test_a_fifo_without_a_writer_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_OPEN_TIMEOUT_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="no data came in 0 s; expected a program that writes to it"):
        open_source(str(tmp_path / "pipe"))


def test_a_fifo_whose_writer_stalls_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "READ_TIMEOUT_S", 0.3)
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    go_on = threading.Event()

    def write() -> None:
        with fifo.open("wb") as file:
            file.write(clip(60))
            file.flush()
            go_on.wait(20)

    thread = threading.Thread(target=write)
    thread.start()
    source = open_source(str(fifo))
    with pytest.raises(BrokenVideoError, match="no data came"):
        list(source)
    go_on.set()
    thread.join(10)
    source.close()


def test_standard_input_is_read_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.ts").write_bytes(clip())
    with (tmp_path / "clip.ts").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert not is_video_file("-")
        source = open_source("-")
        assert len(list(source)) == 20
        source.close()


def test_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    master, terminal = os.openpty()
    with os.fdopen(terminal) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(SourceError, match="standard input is a terminal; expected a video from a pipe"):
            open_source("-")
    os.close(master)


def test_devices_are_no_files() -> None:
    with pytest.raises(SourceError, match="/dev/zero: is neither a file nor a folder; expected a video"):
        open_source("/dev/zero")
    assert is_live("/dev/video7")
    with pytest.raises(SourceError, match="camera 97: cannot be opened"):
        open_source("/dev/video97")


def test_a_run_compiles_for_the_size_of_a_live_source_before_its_first_frame(
    tmp_path: Path, fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vosrt.cli import segment
    from vosrt.cli.run import main

    opened: list[str] = []
    connect, warm_up = VideoSource._connect, segment._warm_up

    def noted(name: str, action: Callable[..., None]) -> Callable[..., None]:
        def act(*given: Any) -> None:
            opened.append(name)
            action(*given)

        return act

    monkeypatch.setattr(VideoSource, "_connect", noted("connect", connect))
    monkeypatch.setattr(segment, "_warm_up", noted("compile", warm_up))
    arguments = ["--bundle", str(fake_bundle), "--engine", "fake", "--box", "20,20,30,30", "--end", "12", "--quiet"]
    with rtsp.camera(count=80) as address:
        assert main([address, *arguments, "-o", str(tmp_path / "out")]) == 0
    assert opened == ["connect", "compile", "connect"]
    assert (tmp_path / "out" / "masks" / "00000.png").exists()


def test_a_run_reads_standard_input_and_leaves_nothing_out(tmp_path: Path, fake_bundle: Path) -> None:
    options = ["--bundle", str(fake_bundle), "--engine", "fake", "--box", "20,20,30,30", "-o", str(tmp_path / "out")]
    done = subprocess.run(program("-", *options), input=clip(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 20
