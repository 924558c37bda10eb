"""The GStreamer element follows objects through pipelines of ``gst-launch-1.0``, with the labels that Python gives.

It runs where ``VOSRT_GSTREAMER`` names the folder of the built plugin, as in `.ci/run` (see runtime/native/README.md).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import save_pictures
from vosrt import Model, load_bundle
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]
Launch = Callable[..., subprocess.CompletedProcess[str]]
BOX = "boxes=8,8,24,24"  # the first object of the clip in its first frame


@pytest.fixture
def launch(skip_or_fail: Callable[..., None], tmp_path: Path) -> Launch:
    """``launch(pipeline)`` runs a pipeline; ``vosrt`` in it gets the default bundle."""
    folder = os.environ.get("VOSRT_GSTREAMER", "")
    if not folder:
        skip_or_fail("VOSRT_GSTREAMER does not name the folder of the GStreamer plugin", required="gstreamer")
    pytest.importorskip("openvino")
    registry = {"GST_PLUGIN_PATH": folder, "GST_REGISTRY": str(tmp_path / "registry.bin")}

    def run(pipeline: str, tool: str = "gst-launch-1.0", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        if shutil.which(tool) is None:
            skip_or_fail(f"{tool} is missing; apt install gstreamer1.0-tools", required="gstreamer")
        pipeline = pipeline.replace("vosrt ", f"vosrt bundle={load_bundle('default').path} engine=fp32 ")
        command = f"exec {tool} {pipeline}"
        environment = {**os.environ, **registry}
        return subprocess.run(command, shell=True, capture_output=True, text=True, timeout=timeout, env=environment)

    return run


@pytest.fixture
def read(tiny_clip: Clip, tmp_path: Path) -> str:
    """The elements that read the clip, from PNG files: BGR all the way, so nothing is lost before the network."""
    return reading(tiny_clip[0], tmp_path / "the frames")


def reading(frames: U8Array, folder: Path) -> str:
    save_pictures(folder, frames)
    return (
        f"multifilesrc location='{folder}/%05d.png' caps='image/png,framerate=(fraction)10/1' ! pngdec ! videoconvert"
    )


def written(launch: Launch, pipeline: str, folder: Path) -> list[U8Array]:
    """The pictures that leave a pipeline."""
    folder.mkdir()
    done = launch(f"{pipeline} ! videoconvert ! pngenc ! multifilesink location='{folder}/%05d.png'")
    assert done.returncode == 0, done.stderr
    return [np.array(Image.open(path)) for path in sorted(folder.iterdir())]


def labels_of_python(frames: U8Array, mask: U8Array) -> list[U8Array]:
    model = Model.load("default", engine="openvino", precision="fp32")
    with model.stream() as stream:
        results = [stream.start(frames[0], mask), *(stream.step(frame) for frame in frames[1:])]
    return [result.labels for result in results]


def test_labels_are_those_of_python(
    launch: Launch, read: str, tmp_path: Path, tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box and a mask file mark the same object; what is drawn is drawn where the labels are."""
    monkeypatch.setenv("VOSRT_ISA", "generic")  # fp32 in both
    frames, masks = tiny_clip
    mask = (masks[0] == 1).astype(np.uint8)
    expected = labels_of_python(frames, mask)
    Image.fromarray(mask).save(tmp_path / "first.png")
    for name, mark in (("box", BOX), ("mask", f"mask={tmp_path}/first.png")):
        found = written(launch, f"{read} ! vosrt {mark} output=mask", tmp_path / name)
        np.testing.assert_array_equal(found, expected)
    assert expected[-1].any()
    cut = written(launch, f"{read} ! vosrt {BOX} output=alpha", tmp_path / "cut")
    for picture, frame, labels in zip(cut, frames, expected, strict=True):
        np.testing.assert_array_equal(picture[..., 3], np.where(labels, 255, 0))
        np.testing.assert_array_equal(picture[..., 2::-1][labels > 0], frame[labels > 0])
    drawn = written(launch, f"{read} ! vosrt {BOX} opacity=1", tmp_path / "drawn")
    for picture, frame, labels in zip(drawn, frames, expected, strict=True):
        assert (picture[..., :3][labels == 1] == (128, 0, 0)).all(), "the first colour of DAVIS"
        np.testing.assert_array_equal(picture[..., 2::-1][labels == 0], frame[labels == 0])


def test_nv12_with_padded_rows(launch: Launch, tmp_path: Path, tiny_clip: Clip) -> None:
    """Decoders pad 90 pixels a row to 92 bytes. Greys are rounded, so a few labels may differ."""
    frames, masks = (array[:, :, :90] for array in tiny_clip)
    frames = np.repeat(frames[..., 2:], 3, axis=-1)  # colours would lose half their resolution
    nv12 = "video/x-raw,format=NV12,colorimetry=bt709"
    found = written(
        launch, f"{reading(frames, tmp_path / 'frames')} ! {nv12} ! vosrt {BOX} output=mask", tmp_path / "labels"
    )
    expected = labels_of_python(frames, (masks[0] == 1).astype(np.uint8))
    np.testing.assert_array_equal(found[0], expected[0])
    for labels, wanted in zip(found, expected, strict=True):
        assert np.sum(labels & wanted) / np.sum(labels | wanted) > 0.9


def test_labels_travel_as_metadata(launch: Launch, read: str) -> None:
    """In every mode; frames pass unchanged with ``output=meta``, and without labels where nothing is marked."""
    done = launch(f"-v {read} ! vosrt {BOX} output=meta ! identity silent=false ! fakesink")
    assert done.returncode == 0, done.stderr
    buffers = [line for line in done.stdout.splitlines() if "last-message" in line and "chain" in line]
    assert len(buffers) == 6
    assert all("GstVideoRegionOfInterestMeta" in line and "VosrtLabelsMeta" in line for line in buffers)
    done = launch(f"-v {read} ! vosrt output=meta ! identity silent=false ! fakesink")
    assert done.returncode == 0, done.stderr
    assert "nothing is marked: set mask or boxes" in done.stdout + done.stderr
    assert "VosrtLabelsMeta" not in done.stdout


def test_gst_inspect_lists_it(launch: Launch) -> None:
    done = launch("vosrt", tool="gst-inspect-1.0")
    assert done.returncode == 0, done.stderr
    for name in ("bundle", "mask", "boxes", "output", "size", "engine", "opacity"):
        assert f"\n  {name} " in done.stdout
    assert "(2): mask" in done.stdout


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ("vosrt boxes=0,0,9", "expected X,Y,WIDTH,HEIGHT"),
        ("vosrt boxes=5000,0,9,9", "expected at most 255 boxes that meet the frame of 96x64 pixels"),
        ("vosrt mask=no.png", "no.png cannot be opened"),
        ("vosrt bundle=nowhere", "no such bundle: nowhere"),
        ("vosrt engine=fp12 boxes=8,8,9,9", "precision is 'fp12'"),
    ],
)
def test_mistakes_are_one_line(launch: Launch, read: str, element: str, message: str) -> None:
    """A mistake ends the pipeline with its reason.

    After an error, gst-launch 1.22.0 now and then waits for ever by itself: after ``identity error-after=1``, too.
    An element that hangs each time fails all the same.
    """
    done = None
    for _ in range(5):
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = launch(f"{read} ! {element} ! fakesink", timeout=20)
            break
    assert done is not None
    assert done.returncode != 0
    assert sum(message in line for line in done.stderr.splitlines()) == 1
