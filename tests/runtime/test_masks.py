"""Masks, boxes and polygons: what is read, and what is refused in which words."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vosrt.errors import MaskError, OptionError, SourceError
from vosrt.types import U8Array
from vosrt.video.base import Frame, SourceInfo
from vosrt.video.masks import read_mask, read_mask_folder
from vosrt.video.palette import davis_palette
from vosrt.video.polygons import read_polygons
from vosrt.video.prompts import Prompts, load_annotations

WIDTH, HEIGHT = 24, 16


class OneFrame:
    """A source of known size; its first frame is a bright square on dark noise."""

    def __init__(self, frame_count: int | None = 40, stems: tuple[str, ...] | None = None) -> None:
        image = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        image[4:12, 6:16] = (200, 220, 240)
        self.first = Frame(image, 0, 0.0, "00000")
        self.warnings: tuple[str, ...] = ()
        self.info = SourceInfo("clip.mp4", WIDTH, HEIGHT, 25.0, frame_count, stems=stems)

    def __iter__(self) -> Iterator[Frame]:
        yield self.first

    def close(self) -> None:
        pass


@pytest.fixture
def two_objects() -> U8Array:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:6, 3:9], mask[8:12, 10:20] = 1, 2
    return mask


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(array: Any, name: str = "mask.png", mode: str | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(array))
        if mode == "P":
            image.putpalette(davis_palette().tobytes())
        elif mode is not None:
            image = image.convert(mode)
        image.save(path)
        return path

    return write


@pytest.mark.parametrize("mode", ["P", "L", "I"])
def test_palette_and_index_images_keep_their_ids(save: Callable[..., Path], two_objects: U8Array, mode: str) -> None:
    path = save(two_objects, "mask.tif" if mode == "I" else "mask.png", mode=mode)  # PNG has no 32 bits
    np.testing.assert_array_equal(read_mask(path, WIDTH, HEIGHT), two_objects)


def test_sixteen_bit_images_keep_their_ids(save: Callable[..., Path], two_objects: U8Array) -> None:
    path = save(two_objects.astype(np.uint16))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    np.testing.assert_array_equal(read_mask(path, WIDTH, HEIGHT), two_objects)


@pytest.mark.parametrize(("white", "dtype"), [(255, np.uint8), (65535, np.uint16), (True, np.bool_)])
def test_white_in_a_black_and_white_image_is_object_1(save: Callable[..., Path], white: int, dtype: Any) -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype)
    mask[2:6, 3:9] = white
    np.testing.assert_array_equal(read_mask(save(mask), WIDTH, HEIGHT), mask.astype(bool).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_255_beside_other_objects_is_void_and_warned_of(
    save: Callable[..., Path], two_objects: U8Array, mode: str
) -> None:
    """The borders of PASCAL VOC are such."""
    path = save(np.where(two_objects == 2, 255, two_objects).astype(np.uint8), mode=mode)
    read = load_annotations(Prompts(masks=(str(path),)), OneFrame())
    np.testing.assert_array_equal(read.masks[0], two_objects == 1)
    assert "mask.png: 255 beside other object numbers means void" in read.warnings[0]
    np.testing.assert_array_equal(read_mask(path, WIDTH, HEIGHT, keep_void=True) == 255, two_objects == 2)


def test_255_is_an_object_where_all_other_numbers_are_taken(save: Callable[..., Path]) -> None:
    labels = np.kron(np.arange(256, dtype=np.uint8).reshape(16, 16), np.ones((4, 4), np.uint8))
    assert read_mask(save(labels), 64, 64).max() == 255


def test_255_alone_is_void_in_a_folder_whose_masks_number_objects(
    save: Callable[..., Path], two_objects: U8Array
) -> None:
    folder = save(two_objects, "masks/00000.png").parent
    save(np.where(two_objects == 2, 255, 0).astype(np.uint8), "masks/00001.png")
    read = read_mask_folder(folder, OneFrame().info)
    assert sorted(read.masks) == [0]
    assert "255 beside other object numbers means void" in read.warnings[0]
    white = save(np.where(two_objects == 2, 255, 0).astype(np.uint8), "white/00001.png").parent
    assert read_mask_folder(white, OneFrame().info).masks[1].max() == 1


def test_lossy_images_are_refused(save: Callable[..., Path], two_objects: U8Array) -> None:
    with pytest.raises(MaskError, match="JPEG changes pixel values"):
        read_mask(save(two_objects * 80, "mask.jpg"), WIDTH, HEIGHT)


def test_another_size_is_refused_naming_both(save: Callable[..., Path], two_objects: U8Array) -> None:
    with pytest.raises(MaskError, match="the mask is 24×16 but the frames are 48×32"):
        read_mask(save(two_objects), 48, 32)


def test_more_than_255_objects_are_refused(save: Callable[..., Path]) -> None:
    cells = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    mask = np.kron(cells, np.ones((4, 4), np.uint16))
    with pytest.raises(MaskError, match="holds 383 objects; expected at most 255"):
        read_mask(save(mask), 4 * WIDTH, 4 * HEIGHT)


def test_object_numbers_above_255_are_refused(save: Callable[..., Path], two_objects: U8Array) -> None:
    with pytest.raises(MaskError, match="object number 600; expected numbers from 1 to 255"):
        read_mask(save(two_objects.astype(np.uint16) * 300), WIDTH, HEIGHT)


def test_soft_edges_are_recognised(save: Callable[..., Path]) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:12, 6:16] = 255
    mask[4, 6:16] = np.arange(20, 220, 20)
    with pytest.raises(MaskError, match=r"soft edges.*without antialiasing"):
        read_mask(save(mask), WIDTH, HEIGHT)


def test_damaged_and_foreign_files_are_refused(save: Callable[..., Path], two_objects: U8Array, tmp_path: Path) -> None:
    whole = save(np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8))
    whole.write_bytes(whole.read_bytes()[:70])
    with pytest.raises(MaskError, match=r"mask.png: .*expected a (whole|mask as) PNG"):
        read_mask(whole, WIDTH, HEIGHT)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(MaskError, match="is not an image"):
        read_mask(tmp_path / "text.png", WIDTH, HEIGHT)
    with pytest.raises(MaskError, match="no such mask"):
        read_mask(tmp_path / "absent.png", WIDTH, HEIGHT)


def test_a_folder_starts_each_object_at_its_first_mask(save: Callable[..., Path], two_objects: U8Array) -> None:
    first = np.where(two_objects == 1, 1, 0).astype(np.uint8)
    folder = save(first, "masks/00000.png", "P").parent
    save(first[:, ::-1], "masks/00005.png", "P")
    save(two_objects, "masks/00010.png", "P")
    read = read_mask_folder(folder, OneFrame().info)
    assert sorted(read.masks) == [0, 10]
    np.testing.assert_array_equal(read.masks[0], first)
    np.testing.assert_array_equal(read.masks[10], np.where(two_objects == 2, 2, 0))


def test_a_folder_of_arrays_is_a_folder_of_masks(tmp_path: Path, two_objects: U8Array) -> None:
    np.save(tmp_path / "00000.npy", two_objects.astype(np.int32))
    np.savez_compressed(tmp_path / "00010.npz", two_objects * np.uint16(3))
    read = read_mask_folder(tmp_path, OneFrame().info)
    np.testing.assert_array_equal(read.masks[0], two_objects)
    assert {index: set(np.unique(mask)) for index, mask in read.masks.items()} == {0: {0, 1, 2}, 10: {0, 3, 6}}


def test_a_folder_is_matched_to_frame_stems(save: Callable[..., Path], two_objects: U8Array) -> None:
    folder = save(two_objects, "masks/00015.png", "P").parent
    save(two_objects, "masks/99999.png", "P")
    read = read_mask_folder(folder, OneFrame(stems=("00005", "00010", "00015")).info)
    assert sorted(read.masks) == [2]
    assert "no frame belongs to 1 mask, unused: 99999.png" in read.warnings[0]


def test_names_match_in_any_form_of_unicode(save: Callable[..., Path], two_objects: U8Array) -> None:
    """One system composes letters with accents, another takes them apart."""
    composed, apart = (unicodedata.normalize(form, "Vögel_00000") for form in ("NFC", "NFD"))
    assert composed != apart
    for there, stem in ((composed, apart), (apart, composed)):
        folder = save(two_objects, f"{len(there)}/{there}.png").parent
        assert sorted(read_mask_folder(folder, OneFrame(stems=(stem,)).info).masks) == [0]


@pytest.mark.parametrize("stems", [None, ("00000", "00001", "00002")])
def test_masks_that_seem_to_be_numbered_from_1_are_warned_of(
    save: Callable[..., Path], two_objects: U8Array, stems: tuple[str, ...] | None
) -> None:
    folder = save(two_objects, "masks/00001.png").parent
    read = read_mask_folder(folder, OneFrame(stems=stems).info)
    assert "has 00001.png but no mask of the first frame" in read.warnings[0]
    save(two_objects, "masks/00000.png")
    assert read_mask_folder(folder, OneFrame(stems=stems).info).warnings == ()


def test_folders_without_use_are_refused(save: Callable[..., Path], two_objects: U8Array, tmp_path: Path) -> None:
    empty = save(two_objects * 0, "empty/00000.png").parent
    with pytest.raises(MaskError, match="all masks are empty"):
        read_mask_folder(empty, OneFrame().info)
    other = save(two_objects, "other/cat.png").parent
    with pytest.raises(MaskError, match="no mask is named like a frame"):
        read_mask_folder(other, OneFrame().info)
    (tmp_path / "none").mkdir()
    with pytest.raises(MaskError, match="holds no masks"):
        read_mask_folder(tmp_path / "none", OneFrame().info)
    lossy = save(two_objects * 100, "lossy/00000.jpg").parent
    with pytest.raises(MaskError, match="JPEG changes pixel values; expected PNG files named like the frames"):
        read_mask_folder(lossy, OneFrame().info)
    twice = save(two_objects, "twice/00000.png").parent
    save(two_objects, "twice/00000.bmp")
    with pytest.raises(SourceError, match="share a name"):
        read_mask_folder(twice, OneFrame().info)


def test_later_masks_carry_their_frame_number(save: Callable[..., Path], two_objects: U8Array) -> None:
    first, late = save(np.where(two_objects == 1, 255, 0).astype(np.uint8)), save(two_objects, "late.png")
    read = load_annotations(Prompts(masks=(str(first), f"37:{late}")), OneFrame())
    assert sorted(read.masks) == [0, 37]
    assert read.object_ids == (1, 2)


def test_a_frame_number_that_is_not_read_is_refused(save: Callable[..., Path], two_objects: U8Array) -> None:
    late = save(two_objects)
    with pytest.raises(OptionError, match=r"frame 40 is not among the frames that are read; expected 0 to 39"):
        load_annotations(Prompts(masks=(f"40:{late}",)), OneFrame())
    with pytest.raises(OptionError, match="frame 3 is not among"):
        load_annotations(Prompts(masks=(f"3:{late}",)), OneFrame(), start=5)


def test_empty_masks_and_no_prompt_are_refused(save: Callable[..., Path], two_objects: U8Array) -> None:
    with pytest.raises(MaskError, match="the mask is empty"):
        load_annotations(Prompts(masks=(str(save(two_objects * 0)),)), OneFrame())
    with pytest.raises(OptionError, match="nothing to follow: give --mask"):
        load_annotations(Prompts(), OneFrame())


def test_a_box_cuts_out_what_differs_from_its_surroundings() -> None:
    read = load_annotations(Prompts(boxes=("4,2,14,12",)), OneFrame())
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:12, 6:16] = 1
    np.testing.assert_array_equal(read.masks[0], expected)


def test_a_box_takes_the_next_free_id(save: Callable[..., Path]) -> None:
    corner = np.zeros((HEIGHT, WIDTH), np.uint8)
    corner[14:, 20:] = 1
    read = load_annotations(Prompts(masks=(str(save(corner)),), boxes=("4,2,14,12",)), OneFrame())
    assert read.object_ids == (1, 2)


def test_a_box_around_nothing_is_followed_as_an_ellipse_and_warned_of() -> None:
    """Where no outline stands out the user hears of it, and still gets what the box holds."""
    source = OneFrame()
    source.first.image[:] = 90
    read = load_annotations(Prompts(boxes=("4,2,10,8",)), source)
    assert [w for w in read.warnings if "--box 4,2,10,8: no outline stands out" in w]
    inside = read.masks[0][2:10, 4:14]
    assert inside[4, 5] == 1
    assert inside[0, 0] == 0
    assert 0.6 < inside.mean() < 0.95
    assert read.masks[0].sum() == inside.sum()


def test_black_and_white_masks_are_objects_of_their_own(save: Callable[..., Path]) -> None:
    """They number nothing, so each takes the next free number; numbered masks keep theirs."""
    left, right = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    left[:, :4], right[:, 20:] = 255, 255
    masks = (str(save(left, "left.png")), str(save(right, "right.png")))
    read = load_annotations(Prompts(masks=masks), OneFrame())
    assert (read.masks[0][0, 0], read.masks[0][0, -1]) == (1, 2)
    assert read.warnings == []
    twice = load_annotations(Prompts(masks=(masks[0], masks[0])), OneFrame())
    assert "covers object 1 of frame 0 completely" in twice.warnings[0]
    numbered = save(right // 255, "numbered.png")
    read = load_annotations(Prompts(masks=(masks[0], str(numbered))), OneFrame())
    assert read.object_ids == (1,)
    assert "object 1 is marked in frame 0 already; both marks count" in read.warnings[0]


def test_one_bit_masks_are_objects_of_their_own_at_later_frames_too(save: Callable[..., Path]) -> None:
    left, right = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    left[:, :4], right[:, 20:] = True, True
    masks = (str(save(left, "left.png")), f"5:{save(right, 'right.png')}")
    read = load_annotations(Prompts(masks=masks), OneFrame())
    assert (read.masks[0][0, 0], read.masks[5][0, -1]) == (1, 2)


@pytest.mark.parametrize(
    ("box", "error", "words"),
    [
        ("10,4,20,4", MaskError, "reaches outside the frame.*width ≤ 24 and y . height ≤ 16"),
        ("-1,4,5,4", MaskError, "reaches outside the frame"),
        ("1,4,0,4", MaskError, "is empty"),
        ("0,0,24,16", MaskError, "is the whole frame"),
        ("1,2,3", OptionError, "expected four whole numbers"),
        ("1,2,3,x", OptionError, "expected four whole numbers"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(box: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load_annotations(Prompts(boxes=(box,)), OneFrame())


def test_polygons_of_several_objects(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    square, other = [[2, 2], [6, 2], [6, 6], [2, 6]], [[10, 2], [14, 2], [14, 6], [10, 6]]
    path.write_text(
        json.dumps(
            {
                "size": [WIDTH, HEIGHT],
                "objects": [
                    {"id": 3, "name": "pair", "polygons": [square, other]},
                    {"polygons": [[[4, 4], [12, 4], [12, 5], [4, 5]]]},
                ],
            }
        )
    )
    mask = read_polygons(path, WIDTH, HEIGHT).labels
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:7, 2:7] = expected[2:7, 10:15] = 3
    expected[4:6, 4:13] = 2
    np.testing.assert_array_equal(mask, expected)


def test_overlapping_polygons_of_an_object_are_united(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    square = [[2, 2], [6, 2], [6, 6], [2, 6]]
    path.write_text(json.dumps({"objects": [{"polygons": [square, square]}]}))
    assert read_polygons(path, WIDTH, HEIGHT).labels[2:7, 2:7].all()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is not JSON"),
        pytest.param('{"objects":' + "[" * 100_000, "is not JSON", id="nested too deeply"),
        ("[]", "names no objects"),
        ('{"objects": []}', "names no objects"),
        (
            '{"objects": [{"id": 0, "polygons": [[[1,1],[2,2],[3,1]]]}]}',
            "no usable id; expected a number from 1 to 255",
        ),
        ('{"objects": [{"id": 1}]}', "has no polygons"),
        ('{"objects": [{"id": 1, "polygons": [[[1,1],[2,2]]]}]}', "three or more points"),
        ('{"objects": [{"id": 1, "polygons": [["a","b","c"]]}]}', "three or more points"),
        pytest.param(
            '{"objects": [{"id": 1, "polygons": [[[1' + "0" * 400 + ",1],[2,2],[3,1]]]}]}",
            "three or more points",
            id="too large for a float",
        ),
        (
            '{"objects": [{"id": 1, "polygons": [[[0.1,0.1],[0.9,0.2],[0.5,1]]]}]}',
            "coordinates from 0 to 1; expected pixels",
        ),
        ('{"objects": [{"id": 1, "polygons": [[[1,1],[2,2],[99,1]]]}]}', r"\(99, 1\) outside the frame"),
        ('{"size": [8, 8], "objects": [{"id": 1, "polygons": [[[1,1],[2,2],[3,1]]]}]}', "drawn on 8×8 but.*24×16"),
        (
            '{"objects": [{"id": 1, "polygons": [[[1,1],[2,2],[3,1]]]}, {"id": 1, "polygons": [[[1,1],[2,2],[3,1]]]}]}',
            "object 1 is there twice",
        ),
    ],
)
def test_polygon_files_that_do_not_fit_are_refused(tmp_path: Path, document: str, words: str) -> None:
    path = tmp_path / "objects.json"
    path.write_text(document)
    with pytest.raises(MaskError, match=words):
        read_polygons(path, WIDTH, HEIGHT)
