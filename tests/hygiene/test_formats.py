"""Files of every format so far still load; the policy is in CONTRIBUTING, and `tests/data/formats` has a file of each.

A new format adds its file and keeps the others. Sessions of formats 1, 2 and 4 to 7 are one of format 3 with
fewer fields, or more.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosrt.bundle import load_bundle
from vosrt.errors import SessionError
from vosrt.model import Model
from vosrt.types import U8Array

REPOSITORY = Path(__file__).resolve().parents[2]
FORMATS = REPOSITORY / "tests" / "data" / "formats"
MASK = np.zeros((64, 96), np.uint8)
MASK[16:40, 16:48] = 1


def frame(t: int) -> U8Array:
    """Frame t of the stream whose sessions are kept: a square in motion."""
    image = np.random.default_rng(5).integers(90, 130, (64, 96, 3), dtype=np.uint8)
    image[16:40, 16 + 2 * t : 48 + 2 * t] = (20, 20, 240)
    return image


def _numbers(pattern: str) -> set[int]:
    return {int(re.sub(r"\D", "", path.stem)) for path in FORMATS.glob(pattern)}


def _constant(file: str, name: str) -> int:
    found = re.search(rf"\b{name} = (\d+)", (REPOSITORY / file).read_text())
    assert found is not None, (file, name)
    return int(found[1])


@pytest.mark.parametrize(
    ("pattern", "file", "name"),
    [
        ("session-*.bin", "runtime/native/src/session.cpp", "kVersion"),
        ("bundle-*", "runtime/native/src/bundle.cpp", "kSchema"),
        ("checkpoint-*.safetensors", "train/src/vosrt_train/checkpoint.py", "FORMAT"),
    ],
)
def test_every_format_so_far_has_a_file(pattern: str, file: str, name: str) -> None:
    assert _numbers(pattern) == set(range(1, _constant(file, name) + 1))


@pytest.mark.parametrize("number", sorted(_numbers("bundle-*")))
def test_bundles_load(number: int) -> None:
    assert load_bundle(FORMATS / f"bundle-{number}").manifest.name == "tiny"


@pytest.mark.parametrize("number", sorted(_numbers("session-*.bin")))
def test_sessions_go_on_to_the_same_labels(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOSRT_ISA", "generic")
    model = Model.load(FORMATS / "bundle-1", engine="fake", threads=1)
    with model.stream(size="native") as stream:
        stream.load((FORMATS / f"session-{number}.bin").read_bytes())
        labels = stream.step(frame(3)).labels
    with Image.open(FORMATS / "labels.png") as expected:
        # A pixel on an edge may fall to the other side with another C library.
        assert (np.asarray(labels) != np.asarray(expected)).mean() < 1e-3


@pytest.mark.parametrize("isa", ["auto", "generic"])
def test_sessions_hold_the_sha256_of_what_follows(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable code and the instructions of processors that have some give the same."""
    monkeypatch.setenv("VOSRT_ISA", isa)
    model = Model.load(FORMATS / "bundle-1", engine="fake", threads=1)
    with model.stream(size="native") as stream:
        stream.start(frame(0), MASK)
        data = stream.save()
    assert data[24:56] == hashlib.sha256(data[56:]).digest()
    with model.stream(size="native") as later:
        later.load(data)


def test_a_session_of_a_later_format_is_refused() -> None:
    data = bytearray((FORMATS / "session-3.bin").read_bytes())
    data[8] = 200
    model = Model.load(FORMATS / "bundle-1", engine="fake", threads=1)
    with model.stream(size="native") as stream, pytest.raises(SessionError, match="has format 200"):
        stream.load(bytes(data))


@pytest.mark.parametrize("number", sorted(_numbers("checkpoint-*.safetensors")))
def test_checkpoints_load(number: int) -> None:
    checkpoints = pytest.importorskip("vosrt_train.checkpoint", reason="pip install 'vosrt[train]'")
    checkpoint = checkpoints.load_checkpoint(FORMATS / f"checkpoint-{number}.safetensors")
    assert checkpoint.training.summary == "untrained, seed 0"
    assert (checkpoint.masks is not None) == (number == 2)


def test_the_citation_has_the_version_of_the_package() -> None:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    text = (REPOSITORY / ".github" / "CITATION.cff").read_text()
    assert f'version: "{version}"' in text
    assert text.startswith("cff-version: 1.2.0\n")
