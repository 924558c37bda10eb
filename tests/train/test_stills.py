"""Clips made of photographs: they move, an object passes over some, and the same seed gives the same clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vosrt.errors import InputError, OptionError
from vosrt.types import U8Array
from vosrt_train.cli import main
from vosrt_train.data.stills import StillsRequest, make_clips, render

REQUEST = StillsRequest(Path("stills"), Path("clips"), frames=9, height=64)


def photograph(seed: int, colour: tuple[int, int, int]) -> U8Array:
    random = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(random.normal(0, 60, (90, 120, 3)), (0, 0), 2) * 3
    return np.asarray(np.clip(texture + colour, 0, 255), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stills").mkdir()
    for number, colour in enumerate([(40, 40, 200), (40, 200, 40)]):
        assert cv2.imwrite(str(tmp_path / "stills" / f"{number}.png"), photograph(number, colour))
    return tmp_path / "stills"


def frames_of(path: Path) -> list[U8Array]:
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in container.decode(video=0)]


def test_a_clip_moves_smoothly_and_depends_on_the_seed_alone() -> None:
    scene = photograph(0, (100, 100, 100))
    one, same, other = (render(scene, None, REQUEST, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert len(one) == REQUEST.frames
    assert one[0].shape == (64, 114, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    first = one[0].astype(int)
    near, far = (np.abs(one[t].astype(int) - first).mean() for t in (1, 8))
    assert 0 < near < far


def test_an_object_passes_from_outside_through_the_frame() -> None:
    """Its colour is that of no place of the scene."""
    red, green = np.full((90, 120, 3), (30, 30, 200), np.uint8), np.full((90, 120, 3), (30, 200, 30), np.uint8)
    for seed in range(5):
        frames = render(red, green, replace(REQUEST, frames=21), np.random.default_rng(seed))
        share = [float((frame[..., 1] > frame[..., 2].astype(int)).mean()) for frame in frames]
        assert share[0] < 0.2
        assert share[-1] < 0.2
        assert 0.03 < max(share) < 0.9
        assert max(share) > max(share[0], share[-1])


def test_the_command_makes_one_clip_of_each_photograph_and_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = folder.parent / "clips"
    arguments = ["stills", str(folder), "-o", str(clips), "--frames", "5", "--height", "64"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == f"{clips}: 2 clips"
    paths = sorted(clips.iterdir())
    assert [path.name for path in paths] == ["00000_0.mp4", "00001_1.mp4"]
    assert [frame.shape for frame in frames_of(paths[0])] == [(64, 114, 3)] * 5
    before = paths[0].read_bytes()
    paths[0].unlink()
    untouched = paths[1].stat().st_mtime_ns
    assert main([*arguments, "--quiet"]) == 0
    assert paths[0].read_bytes() == before
    assert paths[1].stat().st_mtime_ns == untouched


def test_every_object_share_is_taken_and_wrong_requests_are_refused(folder: Path, tmp_path: Path) -> None:
    given = replace(REQUEST, stills=folder, output=tmp_path / "clips", frames=2)
    assert len(make_clips(replace(given, clips=3, objects=1.0), quiet=True)) == 3
    for wrong in ({"height": 63}, {"frames": 1}, {"clips": -1}, {"objects": 1.5}):
        with pytest.raises(OptionError, match="expected"):
            make_clips(replace(given, **wrong))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image; expected a folder of JPEG or PNG files"):
        make_clips(replace(given, stills=tmp_path / "empty"))
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2\.png: cannot be read"):
        make_clips(replace(given, output=tmp_path / "more"), quiet=True)
