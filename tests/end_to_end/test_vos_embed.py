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
from typing import Literal, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import save_pictures
from vosrt import Model, load_bundle
from vosrt.types import U8Array

Clip = tuple[U8Array, U8Array]
NAMES = ["default", "fast", "refined", "int8"]


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
    return Example(Path(program), {"openvino": "openvino", "onnxruntime": "cpu"}[library])


def compare(
    example: Example,
    folder: Path,
    frames: list[U8Array],
    mask: U8Array,
    name: str | Path = "default",
    precision: Literal["fp32", "auto"] = "fp32",
) -> None:
    """Segment the frames twice and compare the labels."""
    source = save_pictures(folder / "frames with a space", frames)
    Image.fromarray(mask).save(folder / "mask.png")
    bundle = load_bundle(name)
    command = [*map(str, (example.program, bundle.path, source, folder / "mask.png", folder / "labels"))]
    command += [] if precision == "fp32" else [precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = Model.load(bundle, engine=example.engine, precision=precision)
    if bundle.manifest.graphs["encoder"].quantised:
        loaded = Model.load(bundle, engine=example.engine, precision="int8")
        model = Model(loaded.manifest, loaded._engines, precision="fp32")  # as the program matches
    with model.stream() as stream:
        results = [stream.start(frames[0], mask), *(stream.step(frame) for frame in frames[1:])]
    for t, result in enumerate(results):
        with Image.open(folder / "labels" / f"{t:05d}.png") as picture:
            assert picture.mode == "P"
            np.testing.assert_array_equal(np.asarray(picture), result.labels, err_msg=f"frame {t}")
    found = sum(result.labels.any() for result in results)
    assert found > len(results) / 4, "an object that is lost everywhere would prove little"


@pytest.mark.parametrize("name", NAMES)
def test_on_generated_clips(
    example: Example, tmp_path: Path, tiny_clip: Clip, bundle_of: Callable[[str], Path], name: str
) -> None:
    """The clip is followed as it is, mirrored and backwards; `refined` has mask networks on the program's engine."""
    (frames, masks), bundle = tiny_clip, bundle_of(name)
    compare(example, tmp_path / "clip", list(frames), masks[0], bundle)
    compare(example, tmp_path / "mirrored", list(frames[:, :, ::-1]), masks[0][:, ::-1], bundle)
    compare(example, tmp_path / "backwards", list(frames[::-1]), masks[-1], bundle)


def test_auto_is_the_same_precision(example: Example, tmp_path: Path, tiny_clip: Clip) -> None:
    """int8 where the bundle carries it and the processor has dot products, else what the engine is fastest in."""
    compare(example, tmp_path, list(tiny_clip[0]), tiny_clip[1][0], precision="auto")


def test_under_sanitizers(skip_or_fail: Callable[..., None], tmp_path: Path, tiny_clip: Clip) -> None:
    """They end the program at the first finding, and at leaks of this library's."""
    frames, masks = tiny_clip
    compare(named_by("VOSRT_VOS_EMBED_SANITIZED", "onnxruntime", skip_or_fail), tmp_path, list(frames), masks[0])


@pytest.mark.parametrize("name", NAMES)
def test_on_a_real_sequence(
    example: Example,
    tmp_path: Path,
    real_clip: Callable[[int], Clip],
    bundle_of: Callable[[str], Path],
    name: str,
) -> None:
    """The first frames are followed at a third of their size; of `default` more than the memory holds."""
    frames, marks = real_clip(24 if name == "default" else 6)
    compare(example, tmp_path, list(frames), marks, bundle_of(name))


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
