"""What the pixels of a mask image mean, in every form that programs save; soft edges, and label images beside them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vosrt.errors import MaskError
from vosrt.types import U8Array
from vosrt.video.masks import Mask, read_mask_file
from vosrt.video.palette import davis_palette

WIDTH, HEIGHT = 160, 120
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 200, 0)


def disc(x: int, y: int = 60, radius: int = 18) -> U8Array:
    """Bool as u8 [HEIGHT, WIDTH]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2, np.uint8)


ONE, TWO = disc(40), disc(40) + 2 * disc(110)


def read(path: Path, image: Any, **options: Any) -> Mask:
    """Save an image and read it as a mask."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    image.save(path, **options)
    return read_mask_file(path, *image.size)


def with_palette(index: U8Array, *colours: tuple[int, ...]) -> Image.Image:
    image = Image.fromarray(index)
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def colours_of(index: U8Array, *colours: tuple[int, ...]) -> U8Array:
    return np.array(colours, np.uint8)[index]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("one bit.png", ONE.astype(bool)),
        ("one bit.tif", ONE.astype(bool)),
        ("one bit.bmp", ONE.astype(bool)),
        ("one bit.gif", Image.fromarray(ONE.astype(bool))),
        ("one bit.pbm", ONE.astype(bool)),
        ("grey.png", ONE * 255),
        ("white is 1.png", with_palette(ONE, BLACK, WHITE)),
        ("white is 0.png", with_palette(1 - ONE, WHITE, BLACK)),
        ("white is 0.bmp", with_palette(1 - ONE, WHITE, BLACK)),
        ("white is 0.gif", with_palette(1 - ONE, WHITE, BLACK)),
        ("white is 0.tif", with_palette(1 - ONE, WHITE, BLACK)),
        ("red is 0.png", with_palette(1 - ONE, RED, BLACK)),
        ("red is 1.png", with_palette(ONE, BLACK, RED)),
        ("white among others.png", with_palette(ONE * 2, BLACK, RED, WHITE, GREEN)),
        ("turned grey ramp.png", with_palette(255 - ONE * 255, *[(255 - i,) * 3 for i in range(256)])),
        ("white.png", colours_of(ONE, BLACK, WHITE)),
        ("grey 128.png", colours_of(ONE, BLACK, (128, 128, 128))),
        ("red.png", colours_of(ONE, BLACK, RED)),
        ("white.webp", colours_of(ONE, BLACK, WHITE)),
        ("opaque.png", colours_of(ONE, (0, 0, 0, 255), (255, 255, 255, 255))),
        ("alpha.png", colours_of(ONE, (255, 255, 255, 0), (255, 255, 255, 255))),
        ("alpha of a black object.png", colours_of(ONE, (255, 255, 255, 0), (0, 0, 0, 255))),
        ("half transparent object.png", colours_of(ONE, (0, 0, 0, 0), (255, 0, 0, 128))),
        ("grey with alpha.png", Image.fromarray(colours_of(ONE, (0, 255), (255, 255)), "LA")),
        ("alpha of grey.png", Image.fromarray(colours_of(ONE, (7, 0), (7, 255)), "LA")),
        ("sixteen bits.png", ONE.astype(np.uint16) * 65535),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_an_image_that_shows_one_object_does_not_number_it(tmp_path: Path, name: str, image: Any) -> None:
    mask = read(tmp_path / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(mask.labels, ONE)
    assert not mask.numbered


DAVIS = [tuple(int(channel) for channel in colour) for colour in davis_palette()]


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", TWO),
        ("grey.gif", TWO),
        ("float.tif", TWO.astype(np.float32)),
        ("sixteen bits.png", TWO.astype(np.uint16)),
        ("davis.png", with_palette(TWO, *DAVIS)),
        ("davis.gif", with_palette(TWO, *DAVIS)),
        ("three entries.png", with_palette(TWO, BLACK, RED, GREEN)),
        ("no black.png", with_palette(TWO, WHITE, RED, GREEN)),
        ("all entries black.png", with_palette(TWO, BLACK, BLACK, BLACK)),
        ("black is 1.png", with_palette(np.array([1, 0, 2], np.uint8)[TWO], RED, BLACK, GREEN)),
        ("davis colours.png", colours_of(TWO, *DAVIS[:3])),
        ("davis colours.webp", colours_of(TWO, *DAVIS[:3])),
        ("davis colours on transparent.png", colours_of(TWO, (9, 9, 9, 0), (128, 0, 0, 255), (0, 128, 0, 255))),
        ("grey saved as colours.png", colours_of(TWO, BLACK, (1, 1, 1), (2, 2, 2))),
    ],
)
def test_an_image_of_several_objects_numbers_them(tmp_path: Path, name: str, image: Any) -> None:
    mask = read(tmp_path / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(mask.labels, TWO)
    assert mask.numbered


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_a_single_object_keeps_its_number_where_the_image_could_hold_more(tmp_path: Path) -> None:
    for name, image in {
        "davis.png": with_palette(2 * ONE, *DAVIS),
        "colours.png": colours_of(ONE, BLACK, DAVIS[2]),
        "grey.png": 2 * ONE,
        "grey with alpha.png": Image.fromarray(colours_of(ONE, (0, 255), (2, 255)), "LA"),
    }.items():
        mask = read(tmp_path / name, image)
        np.testing.assert_array_equal(mask.labels, 2 * ONE)
        assert mask.numbered
    path = tmp_path / "grey in colours.png"
    Image.fromarray(colours_of(ONE, BLACK, (2, 2, 2))).save(path)
    assert read_mask_file(path, WIDTH, HEIGHT).labels.max() == 1
    assert read_mask_file(path, WIDTH, HEIGHT, numbered=True).labels.max() == 2
    assert read(tmp_path / "no background.png", ONE + 1).labels.min() == 1
    assert read(tmp_path / "almost white.png", 254 * ONE).labels.max() == 254


def test_a_transparent_palette_entry_is_background(tmp_path: Path) -> None:
    swapped = np.array([1, 0, 2], np.uint8)[TWO]
    mask = read(tmp_path / "numbered.png", with_palette(swapped, RED, WHITE, GREEN), transparency=1)
    np.testing.assert_array_equal(mask.labels, TWO)
    mask = read(tmp_path / "one.png", with_palette(1 - ONE, BLACK, WHITE), transparency=1)
    np.testing.assert_array_equal(mask.labels, ONE)
    assert not mask.numbered


def png(values: U8Array, bits: int, colour_type: int = 0) -> bytes:
    """A PNG of fewer than 8 bits, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    groups = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(len(values), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in groups)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", davis_palette()[: 1 << bits].tobytes()) if colour_type == 3 else b""
    parts = chunk(b"IHDR", header), palette, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("colour_type", [0, 3])
def test_few_bits_number_objects_all_the_same(tmp_path: Path, bits: int, colour_type: int) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(TWO, bits, colour_type))
    np.testing.assert_array_equal(read_mask_file(path, WIDTH, HEIGHT).labels, TWO)


def test_white_of_two_bits_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(3 * ONE, 2))
    mask = read_mask_file(path, WIDTH, HEIGHT)
    assert (mask.labels.max(), mask.numbered) == (1, False)
    assert read_mask_file(path, WIDTH, HEIGHT, numbered=True).labels.max() == 3


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        ("two colours.png", colours_of(TWO, BLACK, RED, GREEN), "RGB image of 2 colours, which do not say"),
        ("no black.png", colours_of(ONE, WHITE, RED), "RGB image of 2 colours and no black"),
        ("print.tif", Image.fromarray(colours_of(ONE, BLACK, WHITE)).convert("CMYK"), "is an image of mode CMYK"),
        ("fractions.tif", ONE.astype(np.float32) / 3, "holds fractions"),
        ("nan.tif", np.where(ONE > 0, np.nan, 0).astype(np.float32), "holds fractions"),
        ("negative.tif", ONE.astype(np.int32) - 1, "holds the number -1; expected 0 for the background"),
        ("video levels.png", 16 + 219 * ONE, "holds 16 and 235 only, and no 0, which is the background"),
        ("video levels in colours.png", colours_of(ONE, (1, 1, 1), WHITE), "holds 1 and 255 only, and no 0"),
        ("ids.png", ONE.astype(np.uint16) * 41000, "object number 41000; expected numbers from 1 to 255"),
        ("lossy.jpg", ONE * 255, "JPEG changes pixel values"),
        ("lossy.webp", colours_of(ONE, BLACK, WHITE), "WEBP changes pixel values"),
        (
            "cut-out.png",
            np.dstack([np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), ONE * 255]),
            "soft edges|colours",
        ),
    ],
)
def test_images_whose_meaning_is_unclear_are_refused(tmp_path: Path, name: str, image: Any, words: str) -> None:
    with pytest.raises(MaskError, match=words):
        read(tmp_path / name, image)


def test_several_pictures_in_a_file_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(disc(x) * 255) for x in (40, 50, 60)]
    with pytest.raises(MaskError, match="holds 3 pictures; expected the mask of one frame"):
        read(tmp_path / "pages.tif", frames[0], save_all=True, append_images=frames[1:])


def write_array(path: Path, array: Any) -> Path:
    """Write an array as its name says."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, array)
    else:
        pytest.importorskip("tifffile").imwrite(path, array, photometric="minisblack")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif"])
@pytest.mark.parametrize("kind", ["bool", "u1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", ">i8"])
def test_arrays_are_masks(tmp_path: Path, suffix: str, kind: str) -> None:
    """Label images of scikit-image and SciPy have 64 bits, which Pillow does not read in TIFF files."""
    several = ONE if kind == "bool" else TWO
    for name, array in (("plain", several), ("of three axes", several[None])):
        mask = read_mask_file(write_array(tmp_path / f"{name}{suffix}", array.astype(kind)), WIDTH, HEIGHT)
        np.testing.assert_array_equal(mask.labels, several)
        assert mask.numbered == (kind != "bool")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif"])
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (TWO.T.astype(np.int64), "holds an array of 160×120; expected 120×160 numbers"),
        (np.stack([TWO] * 3).astype(np.int64), "holds an array of 3×120×160; expected 120×160 numbers"),
        (TWO.astype(np.complex128), "holds complex128, not numbers"),
        (TWO * 0.4, "holds fractions, not object numbers"),
        (np.where(TWO == 1, np.nan, 0.0), "holds fractions, not object numbers"),
        (TWO.astype(np.int64) * 200, "holds object number 400; expected numbers from 1 to 255"),
        (TWO.astype(np.uint64) << 62, "holds numbers up to 9223372036854775808, not object numbers"),
        (-TWO.astype(np.int64), "holds the number -2"),
    ],
)
def test_arrays_that_are_no_mask_are_refused(tmp_path: Path, suffix: str, array: Any, words: str) -> None:
    with pytest.raises(MaskError, match=words):
        read_mask_file(write_array(tmp_path / f"mask{suffix}", array), WIDTH, HEIGHT)


def test_files_of_arrays_that_lie_are_refused(tmp_path: Path) -> None:
    """Nothing is unpickled, and no header makes the reader allocate more than a frame."""
    pickled, whole, packed, several = (tmp_path / name for name in ("p.npy", "w.npy", "w.npz", "s.npz"))
    np.save(pickled, np.array([{"masks": TWO}], object), allow_pickle=True)
    np.save(whole, TWO)
    np.savez_compressed(packed, TWO)
    np.savez(several, TWO, TWO)
    huge = tmp_path / "huge.npy"
    huge.write_bytes(whole.read_bytes().replace(b"(120, 160)", b"(9120, 16000000000)".ljust(10))[:80])
    for path, words in (
        (pickled, "cannot be read|not numbers"),
        (huge, "cannot be read|holds an array"),
        (several, r"holds 2 arrays \(arr_0.npy, arr_1.npy\); expected one array"),
    ):
        with pytest.raises(MaskError, match=words):
            read_mask_file(path, WIDTH, HEIGHT)
    for path in (whole, packed):
        data = path.read_bytes()
        for end in range(0, len(data), max(1, len(data) // 40)):
            path.write_bytes(data[:end])
            with pytest.raises(MaskError):
                read_mask_file(path, WIDTH, HEIGHT)


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib", "tile": (32, 32)}])
@pytest.mark.parametrize("kind", ["u2", "i8"])
def test_tiff_masks_that_are_damaged_are_one_line(
    tmp_path: Path, kind: str, options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither libtiff nor tifffile prints lines of its own, and no kind of exception of theirs gets out."""
    tifffile = pytest.importorskip("tifffile")
    if options.get("compression") == "lzw":
        pytest.importorskip("imagecodecs")
    random, path, refused = np.random.default_rng(3), tmp_path / "mask.tif", 0
    tifffile.imwrite(path, TWO.astype(kind), photometric="minisblack", **options)
    np.testing.assert_array_equal(read_mask_file(path, WIDTH, HEIGHT).labels, TWO)
    data = path.read_bytes()
    for attempt in range(120):
        at = int(random.integers(400 if attempt % 2 else len(data)))
        noise = random.bytes(int(random.choice([1, 4, 60])))
        path.write_bytes(data[:at] + (noise if attempt % 3 else b"") + data[at + len(noise) :])
        try:
            read_mask_file(path, WIDTH, HEIGHT)
        except MaskError as error:
            refused += "\n" not in str(error)
    assert refused > 10
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_per_colour_channel_keep_their_low_byte(tmp_path: Path, suffix: str) -> None:
    """Pillow drops it: objects 1 and 2 were an empty mask."""
    two, dog = TWO.astype(np.uint16), davis_palette()[TWO][..., ::-1].astype(np.uint16)
    wide = {"numbers": two, "widened": two * 257, "shifted": two << 8, "large": two * 1000}
    for name, values in wide.items():
        path = tmp_path / f"{name}{suffix}"
        assert cv2.imwrite(str(path), np.dstack([values] * 3))
        if name == "large":
            with pytest.raises(MaskError, match="object number 2000; expected numbers from 1 to 255"):
                read_mask_file(path, WIDTH, HEIGHT)
        else:
            np.testing.assert_array_equal(read_mask_file(path, WIDTH, HEIGHT).labels, TWO)
    red = (two[..., None] > 0) * np.array([0, 0, 65535])
    for name, colours, expected in (("davis", dog, TWO), ("widened", dog * 257, TWO), ("red", red, TWO > 0)):
        path = tmp_path / f"{name} in colour{suffix}"
        assert cv2.imwrite(str(path), colours.astype(np.uint16))
        np.testing.assert_array_equal(read_mask_file(path, WIDTH, HEIGHT).labels, expected)
    assert cv2.imwrite(str(tmp_path / f"odd{suffix}"), np.dstack([two * 300, two, two]))
    with pytest.raises(MaskError, match="has colours of 16 bits per channel"):
        read_mask_file(tmp_path / f"odd{suffix}", WIDTH, HEIGHT)


def test_sixteen_bits_beside_transparency(tmp_path: Path) -> None:
    shown = np.where(TWO > 0, 65535, 0)
    for name, alpha in (("opaque", shown * 0 + 65535), ("cut out", shown)):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), np.dstack([TWO] * 3 + [alpha]).astype(np.uint16))
        np.testing.assert_array_equal(read_mask_file(tmp_path / f"{name}.png", WIDTH, HEIGHT).labels, TWO)


def test_a_tiff_of_four_bits_keeps_its_numbers(tmp_path: Path) -> None:
    """Pillow spreads them over 0 to 255."""
    path = tmp_path / "mask.tif"
    pytest.importorskip("imagecodecs")
    pytest.importorskip("tifffile").imwrite(path, TWO, photometric="minisblack", bitspersample=4)
    np.testing.assert_array_equal(read_mask_file(path, WIDTH, HEIGHT).labels, TWO)


def test_a_plain_tiff_is_read_without_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other threads print meanwhile is lost only where libtiff decodes."""
    monkeypatch.setattr("vosrt.video.mask_images.silenced", lambda: pytest.fail("standard error was closed"))
    np.testing.assert_array_equal(read(tmp_path / "plain.tif", TWO).labels, TWO)


BW = ONE * 255
POLYGON = np.array([[20, 10], [140, 30], [90, 60], [120, 110], [30, 90]], np.int32)


def drawn(line: int, value: int = 255) -> U8Array:
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(image, [POLYGON], value, line)
    return image


def jpeg(image: U8Array, quality: int) -> U8Array:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def enlarged(image: U8Array, factor: float, how: int) -> U8Array:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=how), np.uint8)


def touching(count: int, *, background: bool, seed: int = 0) -> U8Array:
    """Cells that touch, as a segmentation of a microscope's picture numbers them."""
    places = np.random.default_rng(seed).random((count, 2)) * (HEIGHT, WIDTH)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows[..., None] - places[:, 0], columns[..., None] - places[:, 1])
    labels = distance.argmin(axis=2) + 1
    if background:
        labels[distance.min(axis=2) > 8] = 0
    return np.asarray(labels, np.uint8)


ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
HALF_ROW = np.zeros((HEIGHT, WIDTH), np.uint8)
HALF_ROW[20:60, 30:90], HALF_ROW[19, 30:90] = 255, 128

SOFT = {
    "antialiased polygon": drawn(cv2.LINE_AA),
    "antialiased, of grey 200": drawn(cv2.LINE_AA, 200),
    "supersampled by 2": enlarged(enlarged(BW, 2.2, cv2.INTER_NEAREST), 0.5, cv2.INTER_AREA),
    "one half row": HALF_ROW,
    "blurred": cv2.GaussianBlur(BW, (0, 0), 1),
    "blurred until nothing is white": cv2.GaussianBlur(BW, (0, 0), 9),
    "two greys, blurred": cv2.GaussianBlur(100 * TWO, (0, 0), 1),
    "blurred, of 4 levels": cv2.GaussianBlur(BW, (0, 0), 2) // 64 * 64,
    "enlarged, linear": enlarged(BW, 3, cv2.INTER_LINEAR),
    "enlarged, cubic": enlarged(BW, 1.3, cv2.INTER_CUBIC),
    "reduced": enlarged(drawn(cv2.LINE_8), 0.7, cv2.INTER_AREA),
    "numbers enlarged": enlarged(touching(30, background=True), 3, cv2.INTER_LINEAR),
    "JPEG 75": jpeg(BW, 75),
    "JPEG 95": jpeg(BW, 95),
    "JPEG 100": jpeg(BW, 100),
    "gradient": np.kron(np.arange(256, dtype=np.uint8)[None], np.ones((40, 4), np.uint8)),
    "heat": np.maximum(0, 255 - 3 * np.hypot(ROWS - 60, COLUMNS - 80)).astype(np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8),
}
LABELS = {
    "hard edges": drawn(cv2.LINE_8),
    "blurred and thresholded": ((cv2.GaussianBlur(BW, (0, 0), 2) > 127) * 255).astype(np.uint8),
    "enlarged, nearest": enlarged(BW, 4, cv2.INTER_NEAREST),
    "three greys": 85 * TWO + 254 * disc(75, 30, 12) * (TWO == 0),
    "30 touching cells": touching(30, background=False),
    "200 touching cells": touching(200, background=True),
    "254 small cells": touching(254, background=True, seed=1),
    "layers": ((ROWS + 6 * np.sin(COLUMNS / 9)) // 14).clip(0, 9).astype(np.uint8),
    "rope between two objects": 5 * disc(60, 60, 30) + 2 * (disc(60, 60, 31) - disc(60, 60, 30)),
    "2 × 2 specks": np.kron(
        np.where(np.random.default_rng(0).random((60, 80)) < 0.04, np.arange(4800).reshape(60, 80) % 250, 0),
        np.ones((2, 2)),
    ).astype(np.uint8),
    "mosaic of 4 × 4": np.kron(np.arange(1200).reshape(30, 40) % 254 + 1, np.ones((4, 4))).astype(np.uint8),
}


FEW_COLOURS = ("one half row", "JPEG 100")  # in a palette of colours these are objects


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name in SOFT
        for form in ("L", "RGB", "LA", "16 bit", "alpha", "palette")
        if form != "palette" or name not in FEW_COLOURS
    ],
)
def test_soft_edges_are_refused_by_name(tmp_path: Path, name: str, form: str) -> None:
    image = SOFT[name]
    forms: dict[str, Any] = {
        "L": image,
        "RGB": Image.fromarray(image).convert("RGB"),
        "LA": Image.fromarray(image).convert("LA"),
        "16 bit": image.astype(np.uint16) * 257,
        "alpha": np.dstack([np.full_like(image, 255)] * 3 + [image]),
        "palette": with_palette(image, *[(i, i // 2, 0) for i in range(256)]),
    }
    with pytest.raises(MaskError, match=r"mask.png: has soft edges.*save it without antialiasing"):
        read(tmp_path / "mask.png", forms[form])


@pytest.mark.parametrize("image", LABELS.values(), ids=LABELS.keys())
def test_label_images_are_taken_however_many_objects_they_hold(tmp_path: Path, image: U8Array) -> None:
    for name, form in {"grey.png": image, "sixteen.png": image.astype(np.uint16)}.items():
        labels = read(tmp_path / name, form).labels
        np.testing.assert_array_equal(labels, image // 255 if set(np.unique(image)) == {0, 255} else image)
    colours = np.random.default_rng(2).integers(1, 256, (255, 3))
    labels = read(tmp_path / "palette.png", with_palette(image, BLACK, *colours.tolist())).labels
    np.testing.assert_array_equal(labels > 0, image > 0)
