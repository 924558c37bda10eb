"""Data sets as their authors lay them out: frames, annotations, and the masks that a server or toolkit wants.

davis16, davis17   PATH/JPEGImages/480p/SEQ/*.jpg      PATH/Annotations/480p/SEQ/*.png     ImageSets/*/val.txt
ytvos              PATH/JPEGImages/SEQ/*.jpg           PATH/Annotations/SEQ/*.png          meta.json
PATH_all_frames/JPEGImages/SEQ (every frame), if it exists
vip                PATH/Images/SEQ/*.jpg               PATH/Annotations/Category_ids/SEQ   lists/val_videos.txt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vosrt._files import plain_name
from vosrt._reading import read_json, read_text
from vosrt.errors import InputError, MaskError
from vosrt.types import U8Array
from vosrt.video.images import list_images
from vosrt.video.masks import MASK_SUFFIXES, name_key, read_mask, read_mask_file

DatasetKind = Literal["davis16", "davis17", "ytvos", "vip"]
DATASET_KINDS: tuple[str, ...] = get_args(DatasetKind)

_ALIASES = {
    **dict.fromkeys(("davis", "davis2017", "davis17val", "davis2017val"), "davis17"),
    **dict.fromkeys(("davis2016", "davis16val", "davis2016val"), "davis16"),
    **dict.fromkeys(("youtube", "youtubevos", "youtubevos2018", "youtubevos2019", "ytvos2018", "ytvos2019"), "ytvos"),
}
_RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
_SPLIT_LISTS = {
    "davis16": ("ImageSets/480p/val.txt", "ImageSets/2016/val.txt"),
    "davis17": ("ImageSets/2017/val.txt",),
    "vip": ("lists/val_videos.txt",),
}


@dataclass(frozen=True)
class AnnotatedSequence:
    """One video of a data set.

    Attributes:
        frames: folder of its images; every one is segmented.
        annotations: mask files by the stem of their frame, in order; may be fewer than the frames.
        wanted: stems of the frames whose masks are written; None writes all.
        objects: ids that are followed; None is all.
    """

    name: str
    frames: Path
    annotations: dict[str, Path]
    wanted: frozenset[str] | None = None
    objects: frozenset[int] | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set, or the part of it that was asked for.

    Attributes:
        kind: whose layout and protocol.
        sequences: by name.
        resolution: folder of one resolution, such as ``"480p"``, or empty.
        notes: what a reader of the results should know of how it was read.
    """

    kind: str
    root: Path
    sequences: tuple[AnnotatedSequence, ...]
    resolution: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def parts(self) -> bool:
        """Return whether labels are classes of parts, scored by mIoU, and not objects."""
        return self.kind == "vip"

    def mask_folder(self, sequence: str) -> str:
        """Return the folder of a sequence's masks among results, as the server or toolkit expects it."""
        return f"Annotations/{sequence}" if self.kind == "ytvos" else sequence

    def stored(self, labels: U8Array) -> U8Array:
        """Pixel values of the written mask: object ids; 255 for the object of DAVIS-2016, as in its annotations."""
        return np.where(labels > 0, 255, 0).astype(np.uint8) if self.kind == "davis16" else labels

    def read(self, path: Path, width: int, height: int, *, numbered: bool = False) -> U8Array:
        """Read a mask of this data set or of its results.

        As in the DAVIS toolkit, 255 beside object ids is void and read as background.

        Args:
            width: expected, in pixels.
            height: expected, in pixels.
            numbered: the sequence's masks number objects, so that 255 is void even where it is alone.

        Returns:
            u8 [height, width]: object ids or classes (255 where VIP annotates none); one object in DAVIS-2016,
            independent of its pixels.

        Raises:
            MaskError: it is no such mask.
        """
        if self.kind == "davis16":
            return (read_mask(path, width, height, keep_void=True) > 0).astype(np.uint8)
        return read_mask(path, width, height, numbered=numbered or self.parts, keep_void=self.parts)

    def numbers(self, path: Path, width: int, height: int) -> bool:
        """Return whether the pixels of this annotation number objects, and are not black and white.

        Raises:
            MaskError: it is no mask.
        """
        return read_mask_file(path, width, height).numbered

    def starts(self, sequence: AnnotatedSequence, stems: Sequence[str], width: int, height: int) -> dict[int, U8Array]:
        """Read the model's input: each object at the first annotation that holds it.

        In DAVIS-2016 and VIP it is the first annotation alone.

        Args:
            stems: of its frames, in order.
            width: of its frames, in pixels.
            height: of its frames, in pixels.

        Returns:
            Per frame index, u8 [height, width] with the objects that start on that frame.

        Raises:
            MaskError: no annotation belongs to a frame, all are empty, or one cannot be read.
        """
        index_of = {name_key(stem): index for index, stem in enumerate(stems)}
        starts: dict[int, U8Array] = {}
        numbered = False
        known = np.zeros(256, bool)
        known[0] = True
        if sequence.objects is not None:
            known[[i for i in range(256) if i not in sequence.objects]] = True
        for stem, path in sequence.annotations.items():
            if stem not in index_of:
                raise MaskError(f"{path}: belongs to no frame in {sequence.frames}; expected {stem}.jpg there")
            numbered = numbered or self.numbers(path, width, height)
            mask = self.read(path, width, height, numbered=numbered)
            mask[known[mask]] = 0
            if mask.any():
                starts[index_of[stem]] = mask
                known[np.unique(mask)] = True
                if self.kind in ("davis16", "vip"):
                    break
            if sequence.objects is not None and known.all():
                break
        if not starts:
            raise MaskError(f"{sequence.name}: its annotations mark no object; expected at least one in {path.parent}")
        return starts


def open_dataset(kind: str, root: Path, names: Sequence[str] = ()) -> Dataset:
    """Find the sequences of a data set. Where it lists a validation split, those; else all that have annotations.

    Args:
        kind: one of `DATASET_KINDS`.
        root: the folder with ``JPEGImages`` (``Images`` for VIP) and ``Annotations``.
        names: sequences to open; an empty list opens all.

    Raises:
        InputError: the kind is unknown, the layout another, or a sequence is missing.
    """
    if kind not in DATASET_KINDS:
        meant = _ALIASES.get("".join(filter(str.isalnum, kind.lower())))
        hint = f", here {meant}" if meant else ""
        raise InputError(f"--dataset is {kind!r}; expected one of {', '.join(DATASET_KINDS)}{hint}")
    openers: dict[str, Callable[[Path], Dataset]] = {
        "davis16": lambda path: _open_davis("davis16", path),
        "davis17": lambda path: _open_davis("davis17", path),
        "ytvos": _open_ytvos,
        "vip": _open_vip,
    }
    dataset = openers[kind](root)
    have = {sequence.name: sequence for sequence in dataset.sequences}
    if not have:
        raise InputError(f"{root}: no sequence has both frames and annotations; expected the {kind} layout")
    if unknown := [name for name in names if name not in have]:
        shown = ", ".join(sorted(have)[:8]) + (" …" if len(have) > 8 else "")
        raise InputError(f"--sequences {unknown[0]}: not in {root}; it has {shown}")
    chosen = [have[name] for name in dict.fromkeys(names)] if names else list(dataset.sequences)
    return Dataset(kind, root, tuple(chosen), dataset.resolution, dataset.notes)


def _open_davis(kind: str, root: Path) -> Dataset:
    for resolution in (*_RESOLUTIONS, ""):
        frames, annotations = root / "JPEGImages" / resolution, root / "Annotations" / resolution
        if frames.is_dir() and annotations.is_dir():
            break
    else:
        raise InputError(f"{root}: is not in the layout of DAVIS; expected JPEGImages/480p and Annotations/480p in it")
    names, note = _listed(kind, root, frames)
    sequences = _sequences(frames, annotations, names)
    return Dataset(kind, root, tuple(sequences), resolution, (note, *_absent(names, sequences)))


def _open_vip(root: Path) -> Dataset:
    frames, annotations = root / "Images", root / "Annotations" / "Category_ids"
    if not (frames.is_dir() and annotations.is_dir()):
        raise InputError(f"{root}: is not in the layout of VIP; expected Images and Annotations/Category_ids in it")
    names, note = _listed("vip", root, frames)
    sequences = _sequences(frames, annotations, names)
    return Dataset("vip", root, tuple(sequences), "", (note, *_absent(names, sequences)))


def _open_ytvos(root: Path) -> Dataset:
    frames, annotations, meta = root / "JPEGImages", root / "Annotations", root / "meta.json"
    if not (frames.is_dir() and annotations.is_dir() and meta.is_file()):
        raise InputError(
            f"{root}: is not in the layout of YouTube-VOS; expected JPEGImages, Annotations and meta.json in it, "
            "as in valid"
        )
    every = root.with_name(f"{root.name}_all_frames") / "JPEGImages"
    videos = _read_meta(meta)
    sequences = []
    for sequence in _sequences(frames, annotations, list(videos)):
        objects = videos[sequence.name]
        asked = frozenset(stem for stems in objects.values() for stem in stems)
        images = every / sequence.name if (every / sequence.name).is_dir() else sequence.frames
        sequences.append(
            AnnotatedSequence(sequence.name, images, sequence.annotations, asked or None, frozenset(objects))
        )
    segmented = every.parent.name if every.is_dir() else root.name
    note = f"the frames of {segmented} are segmented; those that meta.json asks for are written"
    return Dataset("ytvos", root, tuple(sequences), "", (note, *_absent(list(videos), sequences)))


def _read_meta(path: Path) -> dict[str, dict[int, list[str]]]:
    """Per video and object id, the stems of the frames that are asked for."""
    try:
        document: Any = read_json(path)
        return {
            plain_name(str(video), str(path)): {
                int(i): [plain_name(str(stem), str(path)) for stem in entry["frames"]]
                for i, entry in content["objects"].items()
            }
            for video, content in document["videos"].items()
        }
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path}: is not the meta.json of YouTube-VOS ({type(error).__name__}: {error}); expected {{"videos": '
            '{VIDEO: {"objects": {ID: {"frames": […]}}}}}'
        ) from error


def _listed(kind: str, root: Path, frames: Path) -> tuple[list[str], str]:
    """Sequences of the validation split if it is listed, else all; and what that was."""
    for name in _SPLIT_LISTS[kind]:
        path = root / name
        if path.is_file():
            # DAVIS-2016 lists frames: /JPEGImages/480p/SEQ/00000.jpg /Annotations/…; the others list sequences.
            words = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
            parts = [word.strip("/").split("/") for word in words]
            names = dict.fromkeys(part[-2:][0] if part[-1].endswith((".jpg", ".png")) else part[-1] for part in parts)
            return [plain_name(each, str(path)) for each in names], f"sequences of {name}"
    return sorted(path.name for path in frames.iterdir() if path.is_dir()), "every annotated sequence"


def _absent(names: Sequence[str], sequences: Sequence[AnnotatedSequence]) -> tuple[str, ...]:
    """Name the listed sequences that are missing."""
    absent = sorted(set(names) - {sequence.name for sequence in sequences})
    return (f"{len(absent)} of {len(names)} listed sequences are not there: {', '.join(absent)}",) if absent else ()


def _sequences(frames: Path, annotations: Path, names: Sequence[str]) -> list[AnnotatedSequence]:
    found = []
    for name in names:
        images, masks = frames / name, annotations / name
        if images.is_dir() and masks.is_dir():
            files = {name_key(path.stem): path for path in list_images(masks, MASK_SUFFIXES)}
            if files:
                found.append(AnnotatedSequence(name, images, files))
    return found
