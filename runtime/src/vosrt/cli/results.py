"""Choice and look of the results that ``vos-run`` writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from vosrt._results import Results
from vosrt.errors import OptionError
from vosrt.video.base import SourceInfo
from vosrt.video.cleaning import Cleaning
from vosrt.video.cutout import CODINGS, CutOutPictures, CutOutVideo
from vosrt.video.interchange import FORMATS
from vosrt.video.overlay import OverlayStyle
from vosrt.video.sinks import CODECS, OverlayVideo, PaletteMasks, RleLines, Sink
from vosrt.video.tables import ObjectTable

MASKS, RLE, TABLE, SUMMARY = "masks", "masks.jsonl", "objects.csv", "summary.json"
_CUT_OUTS = {"png": "cutout", **{kind: f"cutout.{kind}" for kind in CODINGS}}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The results of a run; ``objects.csv`` and ``summary.json`` are always among them.

    Attributes:
        video: ``overlay.mp4``, or ``overlay.webm`` for VP9.
        codec: of it: ``"h264"``, ``"vp9"`` or ``"av1"``.
        png: ``masks/*.png``.
        rle: ``masks.jsonl``.
        cut_out: objects with an alpha channel, as ``"png"``, ``"mov"`` or ``"webm"``; "" for none.
        polygons: formats of other programs, by their names in `FORMATS`.
        ids: whether the overlay shows numbers; None shows them beside several objects.
    """

    video: bool = True
    codec: str = "h264"
    png: bool = True
    rle: bool = True
    cut_out: str = ""
    polygons: tuple[str, ...] = ()
    style: OverlayStyle = field(default_factory=OverlayStyle)
    ids: bool | None = None
    cleaning: Cleaning = Cleaning()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise OptionError(f"--codec is {self.codec!r}; expected {_either(*CODECS)}")
        if self.cut_out and self.cut_out not in _CUT_OUTS:
            raise OptionError(f"--cutout is {self.cut_out!r}; expected {_either(*_CUT_OUTS)}")
        for each in self.polygons:
            if each not in FORMATS:
                raise OptionError(f"--polygons is {each!r}; expected {_either(*FORMATS)}")

    @property
    def video_name(self) -> str:
        """Name of the overlay."""
        return f"overlay.{CODECS[self.codec].container}"

    @property
    def files(self) -> list[str]:
        """Names of the files and folders that are written."""
        named = {self.video_name: self.video, MASKS: self.png, RLE: self.rle}
        more = [*([_CUT_OUTS[self.cut_out]] if self.cut_out else []), *(FORMATS[each].file for each in self.polygons)]
        return [*(name for name, wanted in named.items() if wanted), TABLE, *more, SUMMARY]

    def settings(self) -> dict[str, Any]:
        """All of this as JSON."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # numbers as names become text
        return settings

    def sinks(self, results: Results, info: SourceInfo, object_ids: tuple[int, ...]) -> dict[str, Sink]:
        """Open what writes them, by name. The masks come last: where one exists, all else of its frame does."""
        sinks: dict[str, Sink] = {"table": ObjectTable(results, TABLE)}
        if self.video:
            ids = len(object_ids) > 1 if self.ids is None else self.ids
            style = OverlayStyle(self.style.opacity, self.style.colours, ids, self.style.size)
            sinks["video"] = OverlayVideo(results, self.video_name, info.fps, info.pixel_aspect, style, self.codec)
        if self.cut_out == "png":
            sinks["cutout"] = CutOutPictures(results, _CUT_OUTS["png"])
        elif self.cut_out:
            name, coding = _CUT_OUTS[self.cut_out], CODINGS[self.cut_out]
            sinks["cutout"] = CutOutVideo(results, name, info.fps, coding, info.pixel_aspect)
        for each in self.polygons:
            sinks[each] = FORMATS[each].open(results, FORMATS[each].file, info, object_ids)
        if self.rle:
            sinks["rle"] = RleLines(results, RLE)
        if self.png:
            sinks["masks"] = PaletteMasks(results, MASKS)
        return sinks


def _either(*names: str) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
