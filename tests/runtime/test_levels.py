"""Pictures of more than 8 bits: thermal cameras, microscopes, stacks of TIFF pages."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tests.fakes.media import write_video
from vosrt.errors import BrokenVideoError, MissingExtraError, OptionError, SourceError, VosrtError
from vosrt.video.base import Frame, SourceOptions
from vosrt.video.levels import Levels
from vosrt.video.source import open_source

HEIGHT, WIDTH = 48, 64


def thermal(t: int, low: int = 7000, high: int = 7400) -> NDArray[np.uint16]:
    """A bright square that moves over a ramp, in a small part of the range."""
    ramp = np.linspace(low, low + (high - low) / 2, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    ramp[10:20, 5 + t : 15 + t] = high
    return ramp.astype(np.uint16)


def read(path: Path, levels: str = "auto", **options: Any) -> tuple[list[Frame], list[str]]:
    source = open_source(str(path), options=SourceOptions(levels=levels), **options)
    try:
        return list(source), list(source.warnings)
    finally:
        source.close()


def write_images(folder: Path, suffix: str, pictures: list[NDArray[Any]]) -> Path:
    folder.mkdir()
    for t, picture in enumerate(pictures):
        assert cv2.imwrite(str(folder / f"{t:05d}{suffix}"), picture)
    return folder


def write_stack(path: Path, pictures: list[NDArray[Any]], **options: Any) -> Path:
    tifffile.imwrite(path, np.stack(pictures), **options)
    return path


def check_stretched(frames: list[Frame], count: int) -> None:
    assert [frame.index for frame in frames] == list(range(count))
    for t, frame in enumerate(frames):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == np.uint8
        assert frame.image[15, 10 + t].tolist() == [255, 255, 255]
        assert frame.image[0, 0].max() <= 2
        assert 120 <= frame.image[-1, -1, 0] <= 132


@pytest.mark.parametrize(("pix_fmt", "high"), [("gray16le", 7400), ("gray12le", 900), ("gray10le", 500)])
def test_grey_videos_of_more_than_8_bits_are_stretched(tmp_path: Path, pix_fmt: str, high: int) -> None:
    pictures = [thermal(t, high - 400, high) for t in range(6)]
    path = tmp_path / "thermal.mkv"
    frames, warnings = read(write_video(path, pictures, codec="ffv1", rate=25, pix_fmt=pix_fmt, colours=pix_fmt))
    check_stretched(frames, 6)
    assert len(warnings) == 1
    assert f" to {high} are shown as black to white; --levels full or LO,HI changes that" in warnings[0]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_grey_images_of_more_than_8_bits_are_stretched(tmp_path: Path, suffix: str) -> None:
    folder = write_images(tmp_path / "frames", suffix, [thermal(t) for t in range(4)])
    frames, warnings = read(folder)
    check_stretched(frames, 4)
    assert len(warnings) == 1


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"imagej": True}])
def test_the_pages_of_a_stack_are_frames(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("compression") == "lzw":
        pytest.importorskip("imagecodecs")
    frames, _ = read(write_stack(tmp_path / "stack.tif", [thermal(t) for t in range(5)], **options))
    check_stretched(frames, 5)
    assert [frame.name for frame in frames[:2]] == ["00000", "00001"]
    assert [frame.index for frame in read(tmp_path / "stack.tif", start=2, end=4)[0]] == [2, 3]


def test_a_stack_keeps_the_rate_that_imagej_noted(tmp_path: Path) -> None:
    path = write_stack(
        tmp_path / "stack.tif", [thermal(t) for t in range(3)], imagej=True, metadata={"finterval": 0.5, "axes": "TYX"}
    )
    assert [frame.time_s for frame in read(path)[0]] == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize(
    ("axes", "frames", "words"),
    [
        ("TCYX", [0, 2, 4], "holds T 3 × C 2 planes; the first of C are the frames"),
        ("TZYX", [0, 2, 4], "holds T 3 × Z 2 planes; the first of Z are the frames"),
        ("CTYX", [0, 1, 2], "holds C 2 × T 3 planes; the first of C are the frames"),
        ("ZCYX", [0, 1, 2, 3, 4, 5], "holds Z 3 × C 2 planes; each is a frame"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_a_stack_of_several_kinds_of_planes_says_how_it_is_read(
    tmp_path: Path, ome: bool, axes: str, frames: list[int], words: str, options: dict[str, Any]
) -> None:
    """Channels and depths between two times would be frames that do not resemble each other."""
    if not ome and axes.startswith("C"):
        pytest.skip("ImageJ's order is TZC")
    sizes = (2, 3) if axes.startswith("C") else (3, 2)
    planes = np.stack([thermal(t) for t in range(6)]).reshape(*sizes, HEIGHT, WIDTH)
    path = tmp_path / ("hyper.ome.tif" if ome else "hyper.tif")
    tifffile.imwrite(path, planes, imagej=not ome, metadata={"axes": axes}, photometric="minisblack", **options)
    found, warnings = read(path)
    assert words in warnings[0]
    alone, _ = read(write_stack(tmp_path / "alone.tif", [thermal(t) for t in frames], photometric="minisblack"))
    np.testing.assert_array_equal([each.image for each in found], [each.image for each in alone])
    assert [frame.index for frame in found] == list(range(len(frames)))
    assert [frame.index for frame in read(path, start=1)[0]] == list(range(1, len(frames)))


@pytest.mark.parametrize("planar", [False, True])
def test_colour_stacks_keep_their_colours(tmp_path: Path, planar: bool) -> None:
    picture = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    picture[..., 0] = 200  # red
    if planar:
        picture = np.moveaxis(picture, -1, 1).copy()
    layout = "separate" if planar else "contig"
    tifffile.imwrite(tmp_path / "rgb.tif", picture, photometric="rgb", planarconfig=layout)
    frames, warnings = read(tmp_path / "rgb.tif")
    assert [frame.image[0, 0].tolist() for frame in frames] == [[0, 0, 200]] * 2
    assert warnings == []


@pytest.mark.parametrize("kind", ["u1", "u2", "f8"])
def test_stacks_that_are_damaged_end_in_plain_words(tmp_path: Path, kind: str) -> None:
    """Bytes are dropped or overwritten anywhere: frames, or an error of this project, come of it."""
    random = np.random.default_rng(7)
    whole = write_stack(tmp_path / "whole.tif", [thermal(t).astype(kind) for t in range(4)], photometric="minisblack")
    data, damaged = whole.read_bytes(), tmp_path / "damaged.tif"
    taken, refused = 0, []
    for attempt in range(150):
        head = attempt % 3 < 2  # most tags are at the start, a few at the end
        at = int(random.integers(400) if head else random.integers(len(data)))
        noise = random.bytes(int(random.choice([1, 4, 60])))
        damaged.write_bytes(data[:at] + (noise if attempt % 2 else b"") + data[at + len(noise) :])
        try:
            taken += len(read(damaged)[0]) > 0
        except VosrtError as error:
            refused.append(str(error))
    assert taken
    assert refused
    assert not any("\n" in line for line in refused)


def test_floats_are_stretched_and_holes_are_black(tmp_path: Path) -> None:
    picture = thermal(0).astype(np.float32)
    picture[-4:] = np.nan
    frames, _ = read(write_stack(tmp_path / "float.tif", [picture, picture]))
    assert frames[0].image[15, 10].tolist() == [255, 255, 255]
    assert not frames[0].image[-4:].any()


def test_full_shows_the_whole_range_and_two_numbers_what_they_say(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "stack.tif", [thermal(0)] * 2)
    frames, warnings = read(path, "full")
    assert 26 <= frames[0].image.min() <= frames[0].image.max() <= 29
    assert warnings == []
    image = read(path, "7200,7400")[0][0].image
    assert image[0, 0].max() == 0
    assert image[15, 10].min() == 255


def test_colours_are_stretched_only_where_they_are_very_dark(tmp_path: Path) -> None:
    """A film of 16 bits that begins dark goes on as it was made."""
    bright = np.full((HEIGHT, WIDTH, 3), 40_000, np.uint16)
    bright[:8] = 5_000
    frames, warnings = read(write_images(tmp_path / "film", ".png", [bright // 4, bright]))
    assert [int(frame.image[20, 20, 0]) for frame in frames] == pytest.approx([39, 156], abs=1)
    assert warnings == []
    frames, warnings = read(write_images(tmp_path / "camera", ".png", [bright // 16]))
    assert [int(frame.image[20, 20, 0]) for frame in frames] == [255]
    assert len(warnings) == 1


def test_a_stack_in_a_folder_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    write_stack(tmp_path / "frames" / "stack.tif", [thermal(t) for t in range(3)], photometric="minisblack")
    frames, warnings = read(tmp_path / "frames")
    assert len(frames) == 1
    assert "stack.tif: holds several pages, of which the first is read; give the file itself" in warnings[0]
    write_images(tmp_path / "single", ".tif", [thermal(0)])
    assert len(read(tmp_path / "single")[1]) == 1  # of the levels


def test_the_first_frames_set_the_levels_of_all(tmp_path: Path) -> None:
    frames, _ = read(write_stack(tmp_path / "stack.tif", [thermal(t % 6) for t in range(8)] + [thermal(0) + 200] * 2))
    assert frames[-1].image[0, 0, 0] == pytest.approx(128, abs=3)


def test_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    picture = np.full((HEIGHT, WIDTH), 100, np.uint8)
    picture[0, 0] = 101
    for path in (write_images(tmp_path / "frames", ".png", [picture]), write_stack(tmp_path / "s.tif", [picture] * 2)):
        frames, warnings = read(path)
        assert frames[0].image[0, 0].tolist() == [101, 101, 101]
        assert warnings == []


@pytest.mark.parametrize("text", ["dark", "5", "9,3", "1,2,3", "nan,5", ""])
def test_impossible_levels_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected auto, full or LO,HI"):
        Levels(text)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tifffile" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'vosrt\[tiff\]'"):
        read(write_stack(tmp_path / "stack.tif", [thermal(0)] * 2))


def test_damaged_stacks_are_refused_or_broken(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no picture")
    with pytest.raises(SourceError, match=r"text.tif: cannot be opened as TIFF"):
        read(tmp_path / "text.tif")
    with tifffile.TiffWriter(tmp_path / "one_by_one.tif") as writer:
        for t in range(6):
            writer.write(thermal(t), contiguous=False, compression="zlib")
    check_stretched(read(tmp_path / "one_by_one.tif")[0], 6)
    data = bytearray((tmp_path / "one_by_one.tif").read_bytes())
    with tifffile.TiffFile(io.BytesIO(data)) as stack:
        page = stack.pages[4]
        assert page is not None
        offset = page.dataoffsets[0]
    whole = write_stack(tmp_path / "imagej.tif", [thermal(t) for t in range(6)], imagej=True).read_bytes()
    page_bytes = 2 * HEIGHT * WIDTH
    for kept, damaged in (
        (4, data[:offset] + bytes(400) + data[offset + 400 :]),
        (4, data[: offset + 50]),
        (1, whole[: whole.index(thermal(0).tobytes()[:20]) + 4 * page_bytes + 100]),  # the list of pages is at the end
    ):
        (tmp_path / "damaged.tif").write_bytes(damaged)
        source = open_source(str(tmp_path / "damaged.tif"), options=SourceOptions(levels="full"))
        frames: list[Frame] = []
        with pytest.raises(BrokenVideoError, match=rf"page {kept} cannot be read|the stack ends at page {kept}"):
            frames.extend(source)
        source.close()
        assert len(frames) == kept


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_numpy_are_videos(tmp_path: Path, suffix: str) -> None:
    save = np.save if suffix == ".npy" else np.savez_compressed
    deep, path = np.stack([thermal(t) for t in range(6)]), tmp_path / f"stack{suffix}"
    for array in (deep, deep.astype(">u2"), deep[:, None], deep[None, ..., None], deep.astype(np.float32)):
        save(path, array)
        frames, warnings = read(path)
        check_stretched(frames, 6)
        assert "values of 7000 to 7400 are shown as black to white" in warnings[0]
    frames, _ = read(path, start=2, end=4)
    assert [frame.index for frame in frames] == [2, 3]
    rgb = np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)
    rgb[..., 0] = 200
    for array, count in ((rgb, 3), (rgb[0], 1)):
        save(path, array)
        frames, _ = read(path)
        assert len(frames) == count
        assert frames[0].image[0, 0].tolist() == [0, 0, 200]
    save(path, deep > 7300)
    assert set(np.unique(read(path)[0][0].image)) == {0, 255}


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 5, HEIGHT, WIDTH)), "holds float64 2×5×48×64; expected numbers as frames × height × width"),
        (np.zeros((0, HEIGHT, WIDTH)), "holds float64 0×48×64"),
        (np.zeros(HEIGHT), "holds float64 48"),
        (np.zeros((2, HEIGHT, WIDTH), complex), "holds complex128"),
        (np.array([{"masks": 1}], object), "cannot be read as an array|holds object"),
        (np.zeros((1, 9000, 9000), bool), "--max-megapixels raises that"),
    ],
)
def test_arrays_that_are_no_video_are_refused(tmp_path: Path, suffix: str, array: Any, words: str) -> None:
    path = tmp_path / f"stack{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, array)
    with pytest.raises(SourceError, match=words):
        read(path)
    np.save(tmp_path / "two.npy", np.zeros((2, HEIGHT, WIDTH), np.uint8))
    with pytest.raises(SourceError, match="past the end"):
        read(tmp_path / "two.npy", start=5)


@pytest.mark.parametrize("name", ["cells.nd2", "cells.LIF", "cells.czi", "scan.dcm", "cells.ims"])
def test_files_of_instruments_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(3000))
    with pytest.raises(SourceError, match=r"save it as a TIFF stack, as Fiji does .* or as an array \[T, H, W\]"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_arrays_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stack{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, np.stack([thermal(t) for t in range(6)]))
    whole = path.read_bytes()
    for end in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:end])
        with pytest.raises(SourceError) as raised:
            read(path)
        assert "\n" not in str(raised.value)


def test_a_thumbnail_is_no_frame(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "stack.tif") as writer:
        writer.write(np.stack([thermal(t) for t in range(4)]), photometric="minisblack")
        writer.write(np.zeros((8, 8), np.uint8))
    frames, warnings = read(tmp_path / "stack.tif")
    check_stretched(frames, 4)
    assert "pages of another size than 64×48 are left out" in warnings[0]


def test_a_page_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "stack.tif", [thermal(0)] * 2)
    with pytest.raises(SourceError, match=r"expected at most 0.001; --max-megapixels raises that"):
        open_source(str(path), options=SourceOptions(max_megapixels=0.001))
