"""The C++ example gives the labels that Python gives on the same engine, frame by frame and pixel by pixel.

It runs where ``VOSRT_VOS_EMBED`` names the example built on OpenVINO, and ``VOSRT_VOS_EMBED_ONNXRUNTIME`` the one built
on ONNX Runtime (runtime/native/README.md says how; `.ci/run` does it); ``VOSRT_VOS_EMBED_SANITIZED`` names one on
ONNX Runtime, it and the library under sanitizers. (OpenVINO opens a library in a way that they do not admit.)
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from vosrt import Model, load_bundle
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]
SEQUENCES = ("blackswan", "bmx-trees", "dog")
FRAMES, HEIGHT, WIDTH = 24, 160, 285  # more frames than the memory holds


class Example(NamedTuple):
    """The program, and the engine of Python that runs the same network in the same library."""

    program: Path
    engine: str


@pytest.fixture(params=["openvino", "onnxruntime"], scope="module")
def example(request: pytest.FixtureRequest, skip_or_fail: Callable[..., None]) -> Example:
    library = str(request.param)
    variable = "VOSRT_VOS_EMBED" if library == "openvino" else "VOSRT_VOS_EMBED_ONNXRUNTIME"
    return named_by(variable, library, skip_or_fail)


def named_by(variable: str, library: str, skip_or_fail: Callable[..., None]) -> Example:
    program = os.environ.get(variable, "")
    if not program:
        skip_or_fail(f"{variable} does not name the C++ example built on {library}", required="vos_embed")
    pytest.importorskip(library)
    return Example(Path(program), {"openvino": "openvino-direct", "onnxruntime": "cpu"}[library])


def compare(example: Example, folder: Path, frames: list[U8Array], mask: U8Array) -> None:
    """Segment the frames twice and compare the labels."""
    source = folder / "frames with a space"
    source.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(source / f"{t:05d}.png")
    Image.fromarray(mask).save(folder / "mask.png")
    bundle = load_bundle("default").path
    command = [example.program, bundle, source, folder / "mask.png", folder / "labels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = Model.load("default", engine=example.engine, precision="fp32")
    with model.stream() as stream:
        results = [stream.start(frames[0], mask), *(stream.step(frame) for frame in frames[1:])]
    for t, result in enumerate(results):
        with Image.open(folder / "labels" / f"{t:05d}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), result.labels, err_msg=f"frame {t}")
    found = sum(result.labels.any() for result in results)
    assert found > len(results) / 4, "an object that is lost everywhere would prove little"


def test_on_a_generated_clip(example: Example, tmp_path: Path, tiny_clip: Clip) -> None:
    frames, masks = tiny_clip
    compare(example, tmp_path, list(frames), masks[0])


def test_under_sanitizers(skip_or_fail: Callable[..., None], tmp_path: Path, tiny_clip: Clip) -> None:
    """They end the program at the first finding, and at leaks of this library's."""
    frames, masks = tiny_clip
    compare(named_by("VOSRT_VOS_EMBED_SANITIZED", "onnxruntime", skip_or_fail), tmp_path, list(frames), masks[0])


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_on_a_real_sequence(example: Example, tmp_path: Path, shared_data: Path, sequence: str) -> None:
    """The first frames, at a third of their size to be quick."""
    root = shared_data / "data" / "davis16-dev"
    names = sorted((root / "JPEGImages" / "480p" / sequence).glob("*.jpg"))[:FRAMES]
    frames = [at_a_third(name, "RGB", Image.Resampling.BILINEAR)[..., ::-1].copy() for name in names]
    mask = root / "Annotations" / "480p" / sequence / f"{names[0].stem}.png"
    marks = (at_a_third(mask, "L", Image.Resampling.NEAREST) > 0).astype(np.uint8)
    compare(example, tmp_path, frames, marks)


def at_a_third(path: Path, mode: str, how: Image.Resampling) -> U8Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode).resize((WIDTH, HEIGHT), how), np.uint8)


def test_mistakes_are_one_line(example: Example, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    done = subprocess.run(
        [example.program, tmp_path / "no bundle", tmp_path / "frames", tmp_path / "m.png", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no such bundle: ")
    assert done.stderr.count("\n") == 1
