"""Files of strangers: what does not end, is no file or is absurdly large is refused at once, in one line."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosrt._reading import check_regular, open_image, open_regular, read_bytes, read_json, read_text
from vosrt.cli.eval import main as vos_eval
from vosrt.cli.run import main as vos_run
from vosrt.errors import InputError
from vosrt.evaluation.comparing import read_scores
from vosrt.video.mask_images import read_pixels
from vosrt.video.polygons import read_polygons

HUGE = 20 << 30  # bytes of a file with nothing in it


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A reader that waits for a pipe would hang the tests."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def huge(folder: Path) -> Path:
    with (folder / "huge").open("wb") as file:
        file.truncate(HUGE)
    return folder / "huge"


def own_folder(folder: Path) -> Path:
    return folder


Make = Callable[[Path], Path]
STRANGE = [
    pytest.param(lambda _: Path("/dev/zero"), "is a folder, pipe or device", id="device"),
    pytest.param(pipe, "is a folder, pipe or device", id="pipe"),
    pytest.param(own_folder, "is a folder, pipe or device", id="folder"),
    pytest.param(huge, f"has {HUGE:,} bytes; at most ", id="huge"),
]


@pytest.mark.parametrize(("make", "says"), STRANGE)
@pytest.mark.parametrize("reader", [open_regular, check_regular, read_bytes, read_text, read_json])
def test_readers_refuse(make: Make, says: str, reader: Callable[..., object], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(OSError, match=r"expected a file|are read") as caught:
        reader(path, 1 << 20)
    assert says in str(caught.value.strerror)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize(("make", "says"), STRANGE)
def test_prompts_and_scores_refuse(make: Make, says: str, tmp_path: Path) -> None:
    """The functions that commands read with raise errors that name the file."""
    path = make(tmp_path)
    readers: list[Callable[[], object]] = [
        lambda: read_polygons(path, 4, 4),
        lambda: read_pixels(path, 4, 4),
        lambda: read_scores(path),
    ]
    for read in readers:
        with pytest.raises(InputError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert says in str(caught.value)


def test_files_of_a_strangers_size_are_read(tmp_path: Path) -> None:
    """They are read at the limit, with the byte order mark of Windows, and grown since they were looked at."""
    file = tmp_path / "file.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    size = file.stat().st_size
    assert read_json(file, size) == {"a": [1]}
    with pytest.raises(OSError, match="are read"):
        read_bytes(file, size - 1)
    assert read_text(Path("/proc/self/status")).startswith("Name:")
    with pytest.raises(OSError, match="are read"):
        read_bytes(Path("/proc/self/status"), 10)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(file)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_picture_bombs_are_refused_in_one_line(
    side: int, tmp_path: Path, fake_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Masks and frames are refused at the size of Pillow's warning (10 000) and of its error (60 000)."""
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(frames / "0.png")
    mask = bomb(tmp_path / "mask.png", side, side)
    model = ["--bundle", str(fake_bundle), "--engine", "fake", "-o", str(tmp_path / "out")]
    assert vos_run([str(frames), "--mask", str(mask), *model]) == 2
    bomb(frames / "1.png", side, side)
    assert vos_run([str(frames), "--box", "1,1,9,9", *model]) == 2
    printed = capfd.readouterr()
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["error", "error"]
    assert not (tmp_path / "out").exists()


def test_honest_pictures_open(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (5, 3)


@pytest.mark.parametrize("make", [pipe, huge])
def test_commands_refuse_pipes_and_absurd_sizes(
    make: Make, tmp_path: Path, fake_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Polygons, masks and records give exit code 2 and one line, and nothing is written."""
    (tmp_path / "strange").mkdir()
    strange = make(tmp_path / "strange")
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(frames / "0.png")
    model = ["--bundle", str(fake_bundle), "--engine", "fake", "-o", str(tmp_path / "out")]
    assert vos_run([str(frames), "--polygon", str(strange), *model]) == 2
    assert vos_run([str(frames), "--mask", str(strange), *model]) == 2
    data = tmp_path / "data"
    (data / "JPEGImages").mkdir(parents=True)
    (data / "Annotations").mkdir()
    strange.rename(data / "meta.json")
    assert vos_eval(["run", str(data), "--dataset", "ytvos", *model]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error"] * 3
    assert not (tmp_path / "out").exists()
