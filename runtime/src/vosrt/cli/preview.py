"""``vos-run --preview``: what would be followed, as ``first.jpg``, without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vosrt._listing import read_listing, remove_listed
from vosrt._results import open_results
from vosrt.console import note, say_json, warn
from vosrt.errors import OptionError
from vosrt.video.base import FrameSource
from vosrt.video.first_picture import FirstPicture
from vosrt.video.overlay import OverlayStyle
from vosrt.video.prompts import Annotations

FIRST = "first.jpg"
_COMMAND = "vos-run --preview"


def write_preview(
    out: Path, source: FrameSource, annotations: Annotations, style: OverlayStyle, *, quiet: bool, as_json: bool
) -> int:
    """Write the first marked frame with its marks and nothing else.

    Args:
        out: folder for it; this process holds it, and it holds nothing but an earlier preview.
        source: opened; it is read to the first marked frame.
        quiet: print errors and warnings only.
        as_json: print one JSON object.

    Returns:
        0.

    Raises:
        OptionError: the source ends before the first mark.
        BrokenVideoError: it breaks before.
        WorkError: the picture cannot be written.
    """
    with open_results(out, _COMMAND, {}, overwrite=is_preview(out)) as results:
        picture = FirstPicture(results, FIRST, annotations.masks, style)
        if not any(picture.show(frame) for frame in source):
            raise OptionError(f"the source ends before frame {min(annotations.masks)}, which has the first mark")
        results.complete()
    warnings = [*annotations.warnings, *source.warnings]
    if as_json:
        ids = list(annotations.object_ids)
        say_json(
            {"schema": 1, "out": str(out), "files": [FIRST], "preview": True, "object_ids": ids, "warnings": warnings}
        )
        return 0
    for warning in warnings:
        warn(warning)
    if not quiet:
        telling(out)()
        note("the same command without --preview follows it")
    return 0


def telling(out: Path) -> Callable[[], None]:
    """Return what says where the picture is."""
    return lambda: note(f"{out / FIRST} shows what is followed, on the first marked frame")


def is_preview(out: Path) -> bool:
    """Return whether a folder holds a preview and no results, so that it may give way to them."""
    listing = read_listing(out)
    return listing is not None and listing.command == _COMMAND


def remove_preview(out: Path) -> None:
    """Make room in a folder that this process holds."""
    listing = read_listing(out)
    if listing is not None and listing.command == _COMMAND:
        remove_listed(out, listing)
