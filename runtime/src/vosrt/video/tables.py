"""A table of the objects, a row per frame and object, and when each of them was away."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from vosrt._results import Target
from vosrt.types import ObjectState
from vosrt.video.base import SegmentedFrame
from vosrt.video.sinks import Lines

COLUMNS = "frame,time_s,object,area_px,x,y,w,h,centroid_x,centroid_y,confidence,present,state,state_confidence"
_ABSENCES_KEPT = 100  # of one object: a camera may run for days


@dataclass(frozen=True)
class Absence:
    """A stretch of frames in which a tracked object is lost; see `ObjectResult.state`.

    Attributes:
        left_frame: first frame in which it is lost.
        left_s: time of that frame.
        back_frame: first frame in which it is back; None if it did not come back.
        back_s: time of that frame.
    """

    object_id: int
    left_frame: int
    left_s: float
    back_frame: int | None = None
    back_s: float | None = None


class ObjectTable(Lines):
    """A CSV file with a row per frame and tracked object; box and centroid are empty where it is absent."""

    def __init__(self, target: Target, name: str) -> None:
        super().__init__(target, name)
        self._absences: dict[int, list[Absence]] = {}

    def header(self) -> str:
        """The names of the columns."""
        return f"{COLUMNS}\n"

    def lines(self, item: SegmentedFrame) -> str:
        """The rows of one frame."""
        return "".join(self._row(item, object_id) for object_id in item.object_ids)

    def absences(self) -> list[Absence]:
        """When objects were away so far, by object and time; the first hundred of each."""
        return [absence for object_id in sorted(self._absences) for absence in self._absences[object_id]]

    def summary(self) -> dict[str, Any]:
        """When objects left and came back."""
        return {"absences": [asdict(absence) for absence in self.absences()]}

    def keep(self) -> dict[str, Any]:
        """See `Sink`."""
        return {**super().keep(), **self.summary()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Sink`."""
        super().restore(state)
        self._absences = {}
        for absence in state["absences"]:
            self._absences.setdefault(absence["object_id"], []).append(Absence(**absence))

    def _row(self, item: SegmentedFrame, object_id: int) -> str:
        frame, region = item.frame, item.objects[object_id]
        self._follow(item, object_id, region.state)
        place = ["", "", "", "", "", ""]
        if region.centroid is not None:
            place = [*map(str, region.box), *(f"{value:.2f}" for value in region.centroid)]
        values = [
            frame.index,
            round(frame.time_s, 6),
            object_id,
            region.area_px,
            *place,
            f"{region.confidence:.4f}",
            int(region.present),
            region.state,
            f"{region.state_confidence:.4f}",
        ]
        return ",".join(map(str, values)) + "\n"

    def _follow(self, item: SegmentedFrame, object_id: int, state: ObjectState) -> None:
        """Begin or end an absence; an unsure object does neither."""
        frame, own = item.frame, self._absences.setdefault(object_id, [])
        away = bool(own) and own[-1].back_frame is None
        if away and state in ("present", "back"):
            own[-1] = replace(own[-1], back_frame=frame.index, back_s=round(frame.time_s, 6))
        elif not away and state == "lost" and len(own) < _ABSENCES_KEPT:
            own.append(Absence(object_id, frame.index, round(frame.time_s, 6)))
