"""``vos-run`` on a real RTSP server that drops out, stalls and changes its size: benchmarks/stream/live.py, short.

They run where GStreamer's RTSP server and its Python bindings are installed (benchmarks/stream/rtsp_server.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def live(skip_or_fail: Callable[..., None]) -> ModuleType:
    """``benchmarks.stream.live``."""
    if not (REPOSITORY / "benchmarks").is_dir():
        pytest.skip("no benchmarks beside the tests")
    module = importlib.import_module("benchmarks.stream.live")
    if module.find_python() is None:
        skip_or_fail(
            "GStreamer's RTSP server is not installed: apt-get install gstreamer1.0-rtsp gir1.2-gst-rtsp-server-1.0 "
            "python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly",
            required="rtsp",
        )
    return module


@pytest.fixture
def camera(live: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A camera that films the demo clip, 320 x 240."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    filming = live.Camera(live.find_python(), live.frames_of(live.CLIP), folder, fps=20)
    yield filming
    filming.close()


def test_a_camera_that_drops_stalls_and_changes_its_size_is_followed_on(
    live: ModuleType, camera: Any, shared_fake_bundle: Path, tmp_path: Path
) -> None:
    events = [(20, "drop", 0.3), (60, "size", 0.0), (100, "stall", 0.5), (140, "resize", 0.3)]
    options = ["--bundle", str(shared_fake_bundle), "--engine", "fake", "--size", "64", "--reconnect", "120"]
    row = live.follow(camera, tmp_path / "out", options, events, 200)
    assert row["seen"] > 200
    assert 0 < row["written"] <= row["seen"]
    assert row["reconnects"] >= 2
    assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
    assert any("the frame size changes from 320×240 to 480×360" in line for line in row["warnings"])
    assert not any("timestamps" in line for line in row["warnings"])
