"""The GStreamer example follows an object from one pipeline to another, with the labels that Python gives.

It runs where ``VOSRT_VOS_GSTREAMER`` names the built example (runtime/native/README.md says how; `.ci/run` does it).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosrt import Model, load_bundle
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]
BOX = (8, 8, 24, 24)  # the first object of the clip in its first frame


@pytest.fixture(scope="module")
def vos_gstreamer(skip_or_fail: Callable[..., None]) -> Path:
    program = os.environ.get("VOSRT_VOS_GSTREAMER", "")
    if not program:
        skip_or_fail("VOSRT_VOS_GSTREAMER does not name the built GStreamer example", required="gstreamer")
    return Path(program)


def run(
    program: Path, source: str, results: Path, box: str = ",".join(map(str, BOX))
) -> subprocess.CompletedProcess[str]:
    results.mkdir()
    command = [
        str(program),
        str(load_bundle("default").path),
        source,
        box,
        f'pngenc ! multifilesink location="{results}/%05d.png"',
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def labels_in(results: Path) -> list[U8Array]:
    return [np.array(Image.open(path)) for path in sorted(results.iterdir())]


def source_of(frames: U8Array, folder: Path) -> str:
    """The clip as PNG files, and the pipeline that reads them."""
    folder.mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(folder / f"{t:05d}.png")
    return f'multifilesrc location="{folder}/%05d.png" caps=image/png,framerate=(fraction)10/1 ! pngdec'


def labels_of_python(frames: U8Array, mask: U8Array) -> list[U8Array]:
    model = Model.load("default", engine="openvino", precision="fp32")
    with model.stream() as stream:
        results = [stream.start(frames[0], mask), *(stream.step(frame) for frame in frames[1:])]
    return [result.labels for result in results]


def test_labels_are_those_of_python(
    vos_gstreamer: Path, tmp_path: Path, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PNG files stay BGR all the way, so nothing is lost before the network."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("VOSRT_ISA", "generic")  # fp32 in both
    frames, masks = tiny_clip
    done = run(vos_gstreamer, source_of(frames, tmp_path / "the frames"), tmp_path / "labels")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("BGR 96x64\n6 frames, ")
    found = labels_in(tmp_path / "labels")
    expected = labels_of_python(frames, (masks[0] == 1).astype(np.uint8))
    assert len(found) == len(expected)
    for t, (labels, wanted) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(labels, wanted, err_msg=f"frame {t}")
    assert found[-1].any()


def test_nv12_with_padded_rows(vos_gstreamer: Path, tmp_path: Path, tiny_clip: Clip) -> None:
    """Decoders pad 90 pixels a row to 92 bytes. Greys are rounded, so a few labels may differ."""
    pytest.importorskip("openvino")
    frames, masks = (array[:, :, :90] for array in tiny_clip)
    frames = np.repeat(frames[..., 2:], 3, axis=-1)  # colours would lose half their resolution
    to_nv12 = " ! videoconvert ! video/x-raw,format=NV12,colorimetry=bt709"
    done = run(vos_gstreamer, source_of(frames, tmp_path / "frames") + to_nv12, tmp_path / "labels")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("NV12 90x64\n6 frames, ")
    found = labels_in(tmp_path / "labels")
    expected = labels_of_python(frames, (masks[0] == 1).astype(np.uint8))
    np.testing.assert_array_equal(found[0], expected[0])
    for labels, wanted in zip(found, expected, strict=True):
        assert np.sum(labels & wanted) / np.sum(labels | wanted) > 0.9


@pytest.mark.parametrize(
    ("source", "box", "message"),
    [
        ('filesrc location="no such file" ! decodebin', "0,0,9,9", "filesrc0: "),
        ("videotestsrc ! nonsense", "0,0,9,9", 'no element "nonsense"'),
        ("videotestsrc num-buffers=2", "0,0,9", "expected X,Y,WIDTH,HEIGHT"),
        ("videotestsrc num-buffers=2", "5000,0,9,9", "mask"),
        ("videotestsrc num-buffers=2 ! identity error-after=1", "0,0,9,9", "identity0: "),
    ],
)
def test_mistakes_are_one_line(vos_gstreamer: Path, tmp_path: Path, source: str, box: str, message: str) -> None:
    """A mistake ends the program with its reason, wherever in the pipelines it is; nothing hangs."""
    pytest.importorskip("openvino")
    done = run(vos_gstreamer, source, tmp_path / "labels", box)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
