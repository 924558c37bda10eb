"""vos-run on recordings and masks as people have them: what comes out of the whole command.

Faults of single files are tested where they are mended, in tests/runtime/test_damaged_videos.py, test_sources.py,
test_levels.py, test_mask_images.py and test_masks.py.
"""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.fakes.media import write_video
from vosrt.cli.run import main
from vosrt.types import U8Array

WIDTH, HEIGHT, RATE = 160, 120, 25
Run = Callable[..., dict[str, Any]]


def disc(x: int = 40) -> U8Array:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((rows - 60) ** 2 + (columns - x) ** 2 < 18**2, np.uint8)


def write(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 20,
    pix_fmt: str = "yuv420p",
    seconds: Fraction = Fraction(1, RATE),
    begin_s: float = 0.0,
    held_s: float = 0.0,
    prepare: Callable[[Any], None] = lambda stream: None,
    **options: str,
) -> Path:
    """A disc that moves to the right by two pixels a frame."""

    def pictures() -> Iterator[U8Array]:
        for t in range(count):
            image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
            image[disc(40 + 2 * t) > 0] = (0, 230, 230)
            yield image

    begin, encoder = round(begin_s / seconds), {"x265-params": "log-level=none"}
    how: dict[str, Any] = {"codec": codec, "rate": RATE, "pix_fmt": pix_fmt, "encoder": encoder, "options": options}
    return write_video(path, pictures(), **how, prepare=prepare, held_s=held_s, stamp=lambda t: (t + begin, seconds))


@pytest.fixture
def run(tmp_path: Path, fake_bundle: Path) -> Run:
    """Runs the command on a source with a mask, and returns the summary and ``times``, those of the frames."""
    first = tmp_path / "first.png"
    Image.fromarray(disc() * 255).save(first)

    def segment(source: Path | str, *given: str, out: str | Path = tmp_path / "out") -> dict[str, Any]:
        marks = given or ("--mask", str(first))
        assert main([str(source), *marks, "-o", str(out), "--bundle", str(fake_bundle), "--engine", "fake", "-q"]) == 0
        summary: dict[str, Any] = json.loads((Path(out) / "summary.json").read_text())
        assert summary["complete"]
        rows = csv.DictReader((Path(out) / "objects.csv").read_text().splitlines())
        summary["times"] = sorted({float(row["time_s"]) for row in rows})
        return summary

    return segment


def overlay(out: Path) -> tuple[list[float | None], Fraction | None]:
    """Times of its frames, and its pixels' aspect."""
    with av.open(str(out / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        return [frame.time for frame in container.decode(stream)], stream.sample_aspect_ratio


STEPS = [pytest.approx(t / RATE, abs=2e-3) for t in range(20)]


@pytest.mark.parametrize(
    ("name", "codec", "more"),
    [
        ("hevc_10bit.mp4", "libx265", {"pix_fmt": "yuv420p10le", "prepare": "pq"}),
        ("mjpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
        ("held.apng", "apng", {"pix_fmt": "rgb24", "held_s": 5.0}),
        ("prores.mov", "prores_ks", {"pix_fmt": "yuv422p10le"}),
        ("old.mpg", "mpeg2video", {}),
        ("gray.mkv", "ffv1", {"pix_fmt": "gray"}),
        ("full_range.mp4", "libx264", {"pix_fmt": "yuvj420p"}),
        ("av1.webm", "libsvtav1", {}),
    ],
)
def test_codecs_and_containers_are_whole(
    run: Run, tmp_path: Path, name: str, codec: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVT_LOG", "1")

    def pq(stream: Any) -> None:
        stream.codec_context.color_trc = 16

    if more.get("prepare") == "pq":
        more = {**more, "prepare": pq}
    summary = run(write(tmp_path / name, codec, **more))
    assert (summary["frames"], summary["warnings"]) == (20, [])
    assert summary["times"] == STEPS


def test_a_clock_that_wraps_after_33_bits_goes_on(run: Run, tmp_path: Path) -> None:
    begin_s = (1 << 33) / 90_000 - 0.5
    summary = run(write(tmp_path / "wrap.ts", begin_s=begin_s, muxdelay="0"))
    assert (summary["frames"], summary["times"]) == (20, STEPS)


@pytest.mark.parametrize("begin_s", [0.0, 3600.0])
def test_the_overlay_of_joined_recordings_has_the_time_of_both(run: Run, tmp_path: Path, begin_s: float) -> None:
    first, second = write(tmp_path / "a.ts"), write(tmp_path / "b.ts", begin_s=begin_s)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    summary = run(joined)
    times = [pytest.approx(t / RATE, abs=2e-3) for t in range(40)]
    assert (summary["frames"], summary["times"], len(summary["warnings"])) == (40, times, 1)
    assert overlay(tmp_path / "out")[0] == times


@pytest.mark.parametrize("seconds", [600, 3600])
def test_a_time_lapse_keeps_its_times(run: Run, tmp_path: Path, seconds: int) -> None:
    summary = run(write(tmp_path / "lapse.mp4", count=6, seconds=Fraction(seconds)))
    assert (summary["frames"], summary["times"]) == (6, [t * seconds for t in range(6)])
    assert overlay(tmp_path / "out")[0] == summary["times"]


def test_an_end_that_an_edit_list_cuts_off_is_not_counted(run: Run, tmp_path: Path) -> None:
    """An edit that ends before the media do, as QuickTime trims, shortens the count."""
    data = bytearray(write(tmp_path / "whole.mp4").read_bytes())
    place = data.index(b"elst") + 12
    (length,) = struct.unpack_from(">I", data, place)
    struct.pack_into(">I", data, place, length // 2)
    (tmp_path / "trimmed.mp4").write_bytes(data)
    summary = run(tmp_path / "trimmed.mp4")
    assert (summary["frames"], summary["times"]) == (10, STEPS[:10])


def test_the_overlay_has_the_pixel_aspect_of_the_source(run: Run, tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    run(write(tmp_path / "anamorphic.mp4", prepare=wide))
    assert overlay(tmp_path / "out")[1] == 2


@pytest.mark.parametrize("name", ["12:30:15", "out [v3]", os.fsdecode(b"caf\xe9"), "%05d", "-o"])
def test_results_may_have_any_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The name is given as a relative path."""
    source = write(tmp_path / "clip.mp4", count=4)
    monkeypatch.chdir(tmp_path)
    assert run(source, out=name)["frames"] == 4
    assert len(overlay(tmp_path / name)[0]) == 4


def test_a_source_of_a_name_in_latin_1_is_whole(run: Run, tmp_path: Path) -> None:
    assert run(write(tmp_path / "clip.mp4", count=4).rename(tmp_path / os.fsdecode(b"caf\xe9.mp4")))["frames"] == 4


@pytest.mark.parametrize(
    ("values", "object_ids"),
    [
        ((0, 1, 5, 254), [1, 5, 254]),
        ((0, 254), [254]),  # almost white, and a number all the same
        ((0, 1, 2, 255), [1, 2]),
        ((255, 0), [1]),  # black on white: the background is what is marked
    ],
)
def test_objects_have_the_numbers_of_the_mask(
    run: Run, tmp_path: Path, values: tuple[int, ...], object_ids: list[int]
) -> None:
    mask = np.full((HEIGHT, WIDTH), values[0], np.uint8)
    for place, value in enumerate(values[1:]):
        mask[disc(30 + 45 * place) > 0] = value
    Image.fromarray(mask).save(tmp_path / "marks.png")
    source = write(tmp_path / "clip.mp4", count=3)
    assert run(source, "--mask", str(tmp_path / "marks.png"))["object_ids"] == object_ids
    stored = np.array(Image.open(tmp_path / "out/masks/00000.png"))
    assert sorted(set(np.unique(stored)) - {0}) == object_ids
    lines = (tmp_path / "out/masks.jsonl").read_text().splitlines()
    assert [each["id"] for each in json.loads(lines[0])["objects"]] == object_ids
    if values == (255, 0):
        assert (stored == 1).sum() > WIDTH * HEIGHT / 2


def test_masks_whose_names_are_no_frame_numbers_are_refused(
    tmp_path: Path, fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(disc()).save(tmp_path / "masks/frame_000000.png")
    source, out = write(tmp_path / "clip.mp4", count=3), tmp_path / "out"
    options = ["-o", str(out), "--bundle", str(fake_bundle), "--engine", "fake"]
    assert main([str(source), "--mask", str(tmp_path / "masks"), *options]) == 2
    error = capsys.readouterr().err
    assert "no mask is named like a frame (frame_000000.png" in error
    assert not out.exists()
