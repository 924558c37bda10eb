"""Reading masks: image files, and folders of them as DAVIS and YouTube-VOS lay them out."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vosrt.errors import MaskError
from vosrt.text import counted
from vosrt.types import MAX_OBJECT_ID, U8Array
from vosrt.video.base import SourceInfo
from vosrt.video.images import list_images
from vosrt.video.mask_images import read_pixels
from vosrt.video.soft_edges import distinct

MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".webp", ".npy", ".npz"})

VOID = 255  # in numbered masks: pixels of which the annotation says nothing


@dataclass(frozen=True)
class Mask:
    """A mask file.

    Attributes:
        labels: u8 [H, W], object ids; may be empty (all background).
        numbered: the pixel values number the objects; a black-and-white mask numbers none, and its object is 1.
        void: pixels of 255 beside other ids, which are void (a border as in PASCAL VOC), became background.
    """

    labels: U8Array
    numbered: bool
    void: bool


def read_mask(path: Path, width: int, height: int, *, numbered: bool = False, keep_void: bool = False) -> U8Array:
    """Return the labels of `read_mask_file`, which takes the same arguments, u8 [height, width]."""
    return read_mask_file(path, width, height, numbered=numbered, keep_void=keep_void).labels


def read_mask_file(path: Path, width: int, height: int, *, numbered: bool = False, keep_void: bool = False) -> Mask:
    """Read the object ids of an image; see `vosrt.video.mask_images` for what its pixels mean.

    Args:
        path: an image file without lossy compression.
        width: expected width in pixels, that of the frames.
        height: expected height in pixels.
        numbered: the mask belongs to a series whose values number objects: 0 and 255 are background and void, and not
            black and white.
        keep_void: leave 255 where it is void.

    Raises:
        MaskError: not an image, of another size, with soft edges, of unclear colours, or with ids above 255.
    """
    pixels = read_pixels(path, width, height, numbered=numbered)
    ids = distinct(pixels.values)
    objects = int(np.count_nonzero(ids))
    if ids[0] < 0:
        raise MaskError(f"{path}: holds the number {ids[0]}; expected 0 for the background and 1 to {MAX_OBJECT_ID}")
    if objects > MAX_OBJECT_ID:
        raise MaskError(f"{path}: holds {objects} objects; expected at most {MAX_OBJECT_ID}")
    if ids[-1] > MAX_OBJECT_ID:
        raise MaskError(
            f"{path}: holds object number {ids[-1]}; expected numbers from 1 to {MAX_OBJECT_ID} (renumber them)"
        )
    labels = pixels.values.astype(np.uint8)
    # All of 1 to 254 beside it say that 255 is one more object.
    void = pixels.numbered and ids[-1] == VOID and (numbered or 1 < objects < MAX_OBJECT_ID)
    if void and not keep_void:
        labels[labels == VOID] = 0
    return Mask(labels, pixels.numbered, void)


def name_key(stem: str) -> str:
    """Return what two file stems have in common that read the same: one form of Unicode (macOS writes another)."""
    return unicodedata.normalize("NFC", stem)


@dataclass(frozen=True)
class MaskFolder:
    """The annotations of a folder.

    Attributes:
        masks: per frame index, u8 [H, W] with the objects that start on that frame.
        warnings: one line each on what was left out or looks wrong.
    """

    masks: dict[int, U8Array]
    warnings: tuple[str, ...]


def read_mask_folder(folder: Path, source: SourceInfo, start: int = 0, end: int | None = None) -> MaskFolder:
    """Read a folder of masks by the rule of the benchmarks: an object starts at the first mask that holds it.

    File stems are matched to the stems of the frames where the source is a folder of images, and are
    frame numbers otherwise.

    Args:
        folder: e.g. ``Annotations/480p/blackswan``.
        source: what the masks belong to.
        start: masks of earlier frames are ignored.
        end: masks of this and later frames are ignored.

    Raises:
        MaskError: no mask exists or belongs to a frame, all are empty, or one cannot be used.
    """
    files = list_images(folder, MASK_SUFFIXES)
    if not files:
        lossy = "JPEG changes pixel values" if any(folder.glob("*.[jJ][pP]*[gG]")) else "holds no masks"
        raise MaskError(f"{folder}: {lossy}; expected PNG files named like the frames")
    matched, unmatched = _match(files, source)
    if not matched:
        expected = "frame files" if source.stems is not None else "frame numbers such as 00037.png"
        raise MaskError(
            f"{folder}: no mask is named like a frame ({files[0].name} …); expected the names of the {expected}"
        )
    chosen = {index: path for index, path in matched.items() if index >= start and (end is None or index < end)}
    masks: dict[int, U8Array] = {}
    known = np.zeros(256, bool)
    known[0] = True
    numbered, void = False, 0
    for index, path in chosen.items():
        mask = read_mask_file(path, source.width, source.height, numbered=numbered)
        numbered |= mask.numbered and bool(mask.labels.any())
        void += mask.void
        labels = np.where(known[mask.labels], 0, mask.labels).astype(np.uint8)
        if labels.any():
            masks[index] = labels
            known[np.unique(labels)] = True
    if not masks:
        what = "all masks are empty" if chosen else "no mask lies between --start and --end"
        raise MaskError(f"{folder}: {what}; expected at least one object")
    warnings = []
    if unmatched:
        warnings.append(f"{folder}: no frame belongs to {counted(len(unmatched), 'mask')}, unused: {unmatched[0]} …")
    if start == 0 and 0 not in matched and 1 in matched:
        warnings.append(
            f"{folder}: has {matched[1].name} but no mask of the first frame, which is number 0; if the masks are "
            "numbered from 1, each lies on the frame after its own: rename them, or give the first one as "
            f"--mask {matched[1]}"
        )
    if void:
        warnings.append(void_warning(folder))
    return MaskFolder(masks, tuple(warnings))


def void_warning(path: Path) -> str:
    """Return the line that says what became of 255."""
    return f"{path}: {VOID} beside other object numbers means void and is left out; give an object another number"


def _match(files: list[Path], source: SourceInfo) -> tuple[dict[int, Path], list[str]]:
    """Per frame index, ascending as the files, its mask; and names of masks that belong to no frame."""
    numbers = None
    if source.stems is not None:
        numbers = {name_key(stem): index for index, stem in enumerate(source.stems)}
    matched: dict[int, Path] = {}
    unmatched = []
    for path in files:
        if numbers is not None:
            index = numbers.get(name_key(path.stem))
        else:
            index = int(path.stem) if path.stem.isdecimal() else None
        if index is None or index in matched:
            unmatched.append(path.name)
        else:
            matched[index] = path
    return matched, unmatched
