"""The C++ example with OpenVINO gives the labels that Python gives, frame by frame and pixel by pixel.

It runs where ``VOSRT_VOS_EMBED`` names the built example (runtime/native/README.md says how; `.ci/run` does it).
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
SEQUENCES = ("blackswan", "bmx-trees", "dog")
FRAMES, HEIGHT, WIDTH = 6, 240, 427


@pytest.fixture(scope="module")
def vos_embed(skip_or_fail: Callable[..., None]) -> Path:
    program = os.environ.get("VOSRT_VOS_EMBED", "")
    if not program:
        skip_or_fail("VOSRT_VOS_EMBED does not name the built C++ example", required="vos_embed")
    return Path(program)


def compare(program: Path, folder: Path, frames: list[U8Array], mask: U8Array) -> None:
    """Segment the frames twice and compare the labels."""
    source = folder / "frames with a space"
    source.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(source / f"{t:05d}.png")
    Image.fromarray(mask).save(folder / "mask.png")
    bundle = load_bundle("default").path
    command = [program, bundle, source, folder / "mask.png", folder / "labels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = Model.load("default", engine="openvino-direct", precision="fp32")
    with model.stream() as stream:
        results = [stream.start(frames[0], mask), *(stream.step(frame) for frame in frames[1:])]
    for t, result in enumerate(results):
        with Image.open(folder / "labels" / f"{t:05d}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), result.labels, err_msg=f"frame {t}")
    assert results[-1].labels.any(), "an object that is lost everywhere would prove little"


def test_on_a_generated_clip(vos_embed: Path, tmp_path: Path, tiny_clip: Clip) -> None:
    pytest.importorskip("openvino")
    frames, masks = tiny_clip
    compare(vos_embed, tmp_path, list(frames), masks[0])


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_on_a_real_sequence(vos_embed: Path, tmp_path: Path, shared_data: Path, sequence: str) -> None:
    """The first frames, at half size to be quick."""
    pytest.importorskip("openvino")
    root = shared_data / "data" / "davis16-dev"
    names = sorted((root / "JPEGImages" / "480p" / sequence).glob("*.jpg"))[:FRAMES]
    frames = [at_half_size(name, "RGB", Image.Resampling.BILINEAR)[..., ::-1].copy() for name in names]
    mask = root / "Annotations" / "480p" / sequence / f"{names[0].stem}.png"
    marks = (at_half_size(mask, "L", Image.Resampling.NEAREST) > 0).astype(np.uint8)
    compare(vos_embed, tmp_path, frames, marks)


def at_half_size(path: Path, mode: str, how: Image.Resampling) -> U8Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode).resize((WIDTH, HEIGHT), how), np.uint8)


def test_mistakes_are_one_line(vos_embed: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    done = subprocess.run(
        [vos_embed, tmp_path / "no bundle", tmp_path / "frames", tmp_path / "m.png", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no such bundle: ")
    assert done.stderr.count("\n") == 1
