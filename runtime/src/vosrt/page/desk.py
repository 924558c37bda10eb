"""The one clip that is open: its frames, its project, the model, and what runs at the moment."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vosrt.cli.explain import Seen, document_of, follow_to
from vosrt.errors import InputError, MaskError, VosrtError
from vosrt.page.following import KeptFrames, Way, follow_kept, follow_live
from vosrt.page.frames import FrameStore
from vosrt.page.live import LiveFrames, Pace
from vosrt.page.project import Clicks, Found, Project
from vosrt.prompt.points import Box, Point, Segmenter, check_prompts
from vosrt.types import U8Array, WorkingSize
from vosrt.video.base import SegmentedFrame
from vosrt.video.source import open_source

if TYPE_CHECKING:
    from vosrt.model import Model
    from vosrt.page.project import State
    from vosrt.stream import Stream

_REFERENCES = 5  # marked frames from which an explained one is followed
_CLICKABLE = 3  # frames that stay encoded, 20 MB each at 480p


@dataclass(frozen=True)
class Limits:
    """What the page may take of this machine.

    Attributes:
        upload_bytes: of one file.
        cache_bytes: of all frames that are kept.
    """

    upload_bytes: int = 4 << 30
    cache_bytes: int = 8 << 30


@dataclass(frozen=True)
class _Explained:
    """A stream that was followed to a frame, ready to be asked for its pixels."""

    position: int
    state: State
    stream: Stream
    seen: dict[int, Seen]


class Desk:
    """Everything behind the page. Its methods may be called from several threads.

    Args:
        load: loads the model; called once, in a thread.
        size: short side of the working frame, as for `Model.stream`.
    """

    def __init__(self, load: Callable[[], Model], *, size: WorkingSize = None, limits: Limits | None = None) -> None:
        self.limits, self._size = limits or Limits(), size
        self.folder = Path(tempfile.mkdtemp(prefix="vosrt-ui-"))
        self.project, self.name = Project(), ""
        self.frames: FrameStore | None = None
        self.task: dict[str, Any] = {"kind": "idle", "run": 0}  # once idle again: which run ended, what it was, and how
        self._runs = 0
        self.version = 0  # of everything but the labels
        self.clip = 0  # counts the clips that were opened
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._lock = threading.RLock()
        self._clickable: OrderedDict[int, Segmenter] = OrderedDict()
        self._explained: _Explained | None = None
        self.pace: Pace | None = None  # of the newest live run
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vosrt-model")
        self.model: Future[Model] = self._pool.submit(load)
        self.model.add_done_callback(lambda _: self.touch())

    def touch(self) -> None:
        """Let pages know that something changed."""
        self.version += 1

    def open(self, source: str, name: str) -> None:
        """Open a clip in place of the one before.

        Raises:
            SourceError: it cannot be opened.
        """
        with self._lock:
            opened, limit = open_source(source), self.limits.cache_bytes
            self.stop()
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            frames = (
                LiveFrames(opened, folder, limit_bytes=limit, reopen=lambda: open_source(source))
                if opened.info.live
                else FrameStore(opened, folder, limit_bytes=limit)
            )
            if self.frames is not None:
                self.frames.close()
            self.frames, self.name, self.project = frames, name, Project()
            self._clickable.clear()
            self.clip += 1
            self.touch()

    def close(self) -> None:
        """Stop everything and remove all temporary files."""
        self.stop()
        if self.frames is not None:
            self.frames.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        """Everything but frames and labels, as JSON."""
        frames, state = self.frames, self.project.state
        clip = None
        if frames is not None:
            info = frames.info
            clip = {
                "number": self.clip,
                "name": self.name,
                "width": info.width,
                "height": info.height,
                "fps": frames.fps,
                "live": info.live,
                "oldest": frames.oldest,
                "frames": len(frames),
                "expected": len(frames) if frames.done else max(info.frame_count or 0, len(frames)),
                "decoded": frames.done or info.live,
                "note": frames.note,
            }
        return {
            "clip": clip,
            "objects": [vars(each) for _, each in sorted(state.objects.items())],
            "clicks": [
                {
                    "frame": position,
                    "object": object_id,
                    "points": [[each.x, each.y, each.positive] for each in clicks.points],
                    "box": clicks.box,
                }
                for (position, object_id), clicks in state.clicks.items()
            ],
            "can": self.project.can,
            "task": self.task,
            "model": self._describe_model(),
        }

    def _describe_model(self) -> dict[str, Any]:
        if not self.model.done():
            return {"state": "loading"}
        error = self.model.exception()
        if error is not None:
            return {"state": "failed", "error": str(error)}
        return {"state": "ready", "name": self.model.result().manifest.name}

    def click(self, position: int, object_id: int, point: Point | None, box: Box | None) -> None:
        """Add a click or a box, and find the object there.

        Raises:
            VosrtError: it is outside the frame, or nothing is on the object yet.
        """
        frames = self._opened()
        with self._lock:
            self._idle()
            self.project.get(object_id)
            before = self.project.state.clicks.get((position, object_id))
            if before is None:
                mask = self.project.mask(position, object_id)
                before = Clicks(None if mask is None or box is not None else _png(mask))
            points = (*before.points, *([] if point is None else [point]))
            clicks = Clicks(None, (), box) if box is not None else Clicks(before.base, points, before.box)
            check_prompts(clicks.points, clicks.box, clicks.mask, frames.info.height, frames.info.width)
            found = self._segmenter(position).segment(clicks.points, clicks.box, clicks.mask)
            self.project.remember()
            self.project.mark(position, object_id, found, clicks)
            self.touch()

    def paint(
        self, position: int, object_id: int, points: Sequence[Sequence[float]], *, radius: float | None, add: bool
    ) -> None:
        """Add to an object's mask, or take away from it.

        Args:
            points: x and y in pixels: the path of a brush, or the corners of a polygon.
            radius: of the brush in pixels; None fills the polygon.
            add: whether pixels are added.

        Raises:
            InputError: the points are none.
        """
        frames = self._opened()
        path = np.asarray(points, np.float64)
        if path.ndim != 2 or path.shape[1] != 2 or not 1 <= len(path) <= 20_000 or not np.isfinite(path).all():
            raise InputError("a drawing has no points [x, y]; expected 1 to 20000")
        if radius is None and len(path) < 3:
            raise InputError(f"a polygon has {len(path)} corners; expected three or more")
        with self._lock:
            self._idle()
            self.project.get(object_id)
            frames.jpeg(position)
            drawn = np.zeros((frames.info.height, frames.info.width), np.uint8)
            fixed = np.round(np.clip(path, -1e4, 1e5) * 16).astype(np.int32)
            if radius is None:
                cv2.fillPoly(drawn, [fixed], 1, cv2.LINE_8, 4)
            else:
                width = max(1, round(2 * min(radius, 2000.0)))
                cv2.polylines(drawn, [fixed], False, 1, width, cv2.LINE_8, 4)
                for x, y in fixed[[0, -1]]:
                    cv2.circle(drawn, (int(x), int(y)), round(8 * width), 1, -1, cv2.LINE_8, 4)
            before = self.project.mask(position, object_id)
            mask = np.zeros(drawn.shape, bool) if before is None else before
            self.project.remember()
            self.project.mark(position, object_id, mask | (drawn > 0) if add else mask & (drawn == 0), None)
            self.touch()

    def change(self, step: Callable[[Project], object]) -> None:
        """Change the project while nothing runs."""
        with self._lock:
            self._idle()
            step(self.project)
            self.touch()

    def prepare(self, position: int) -> None:
        """Encode a frame ahead of its first click, if it is there and nothing else runs."""
        is_there = self.frames is not None and 0 <= position < len(self.frames)
        if is_there and self.task["kind"] == "idle" and self.model.done() and self.model.exception() is None:
            self._segmenter(position)

    def follow(self, position: int, direction: Way) -> None:
        """Follow all objects of a frame, in a thread.

        Raises:
            InputError: nothing is marked there.
        """
        self._opened()
        with self._lock:
            self._idle()
            found = self.project.state.found.get(position)
            if found is None or not any(found.areas.values()):
                raise InputError(f"frame {position} shows no object; mark one there first")
            self.model.result()
            self.project.remember()
            self.task = {"kind": "follow", "from": position, "at": position, "direction": direction}
            self._start(lambda: self._follow(position, direction))

    def live(self) -> LiveFrames:
        """The live source that is open.

        Raises:
            InputError: there is none.
        """
        if not isinstance(self.frames, LiveFrames):
            raise InputError("no live source is open")
        return self.frames

    def freeze(self, number: int) -> int:
        """Stop at a picture that was shown; return its position."""
        frames = self.live()
        with self._lock:
            self._idle()
            self.touch()
            return frames.freeze(number)

    def go_live(self) -> None:
        """Look at the newest picture again."""
        frames = self.live()
        with self._lock:
            self._idle()
            frames.keep_every_s = 0.0

    def explain(self, position: int, x: int, y: int) -> None:
        """Tell what the label of a pixel was read from, in a thread: follow the objects to its frame once more.

        Raises:
            InputError: nothing was followed there, or the pixel is outside the frame.
        """
        frames, state = self._opened(), self.project.state
        if not (0 <= x < frames.info.width and 0 <= y < frames.info.height):
            raise InputError(f"pixel {x},{y} is outside the frame of {frames.info.width}×{frames.info.height}")
        marked = sorted(at for at, each in state.found.items() if each.marked and any(each.areas.values()))
        if position not in state.found or not any(at != position for at in marked):
            raise InputError(f"frame {position} was read from no other; follow objects to it first")
        with self._lock:
            self._idle()
            self.task = {"kind": "explain", "at": position}
            self._start(lambda: self._explain(position, marked, state, (x, y)))

    def _explain(self, position: int, marked: list[int], state: State, pixel: tuple[int, int]) -> dict[str, Any]:
        known = self._explained
        if known is None or known.position != position or known.state is not state:
            if known is not None:
                known.stream.close()
            self._explained = known = self._followed_to(position, marked, state)
        if known is None:
            return {"stopped": True}
        x, y = pixel
        found = known.stream.explain(y, x)
        return {"explained": document_of(found, known.stream.result({}), known.seen, pixel)}

    def _followed_to(self, position: int, marked: list[int], state: State) -> _Explained | None:
        """Follow the objects from the marked frame before, else after, to a frame; None if it was stopped."""
        frames, model = self._opened(), self.model.result()
        before = [at for at in marked if at < position]
        start = before[-1] if before else min(at for at in marked if at > position)
        way = range(start, position + 1) if before else range(start, position - 1, -1)
        positions = [*before[-_REFERENCES:-1], *(at for at in way if at in state.found)]
        marks = {at: state.found[at].labels for at in positions if at in marked}
        stream = model.stream(size=self._size)
        try:
            seen = follow_to(
                stream, KeptFrames(frames, positions, self._stop), marks, model.manifest.inference.context, self._stop
            )
        except BaseException:
            stream.close()
            raise
        if self._stop.is_set():
            stream.close()
            return None
        return _Explained(position, state, stream, seen)

    def run(self, kind: str, work: Callable[[Callable[[int], None], threading.Event], dict[str, Any]]) -> None:
        """Do something longer in a thread; its result is in the task when it is done."""
        with self._lock:
            self._idle()
            self.task = {"kind": kind, "at": 0}

            def at(count: int) -> None:
                self.task = {"kind": kind, "at": count}
                self.touch()

            self._start(lambda: work(at, self._stop))

    def stop(self) -> None:
        """End what runs, and wait for it."""
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            self._stop.set()
            worker.join()

    def _start(self, work: Callable[[], dict[str, Any]]) -> None:
        def guarded() -> None:
            try:
                done = work()
            except Exception as error:  # the page is told, whatever it is
                known = isinstance(error, VosrtError)
                done = {"error": str(error) if known else f"{type(error).__name__}: {error}"}
            self._runs += 1
            self.task = {"kind": "idle", "run": self._runs, "was": self.task["kind"], **done}
            self._worker = None
            self.touch()

        self._stop = threading.Event()
        self._worker = threading.Thread(target=guarded, name="vosrt-work", daemon=True)
        self.touch()
        self._worker.start()

    def _idle(self) -> None:
        """Wait until nothing runs; a change ends the work that would overwrite it."""
        self.stop()

    def _opened(self) -> FrameStore:
        if self.frames is None:
            raise InputError("no clip is open; open or upload one first")
        return self.frames

    def _segmenter(self, position: int) -> Segmenter:
        with self._lock:
            known = self._clickable.get(position)
            if known is None:
                known = self.model.result().clickable(self._opened().image(position), self._size)
                self._clickable[position] = known
            self._clickable.move_to_end(position)
            while len(self._clickable) > _CLICKABLE:
                self._clickable.popitem(last=False)
            return known

    def _follow(self, start: int, way: Way) -> dict[str, Any]:
        frames, model, stop, found = self._opened(), self.model.result(), self._stop, self.project.state.found
        marks = {at: each.labels for at, each in found.items() if each.marked or at == start}
        ends = {start} if way == "forward" else {start, *(at for at in marks if at < start)}
        done: set[int] = set()
        live = frames if isinstance(frames, LiveFrames) and way == "forward" else None
        pace = Pace()

        def on_result(position: int, item: SegmentedFrame) -> None:
            known = self.project.state.found.get(position)
            marked = known is not None and known.marked
            self.project.put(position, Found.of(item.labels, item.object_confidence, marked=marked))
            done.add(position)
            self.task = {**self.task, "at": position}
            if live is not None:
                if live.oldest:
                    self.project.forget(live.oldest)
                    done.difference_update([each for each in done if each < live.oldest])
                if not live.keep_every_s:  # it has caught up
                    pace.add(live.age_ms(position))
                self.task["live"] = pace.figures()
            self.touch()

        given: dict[str, Any] = {
            "open_stream": lambda: model.stream(size=self._size),
            "on_result": on_result,
            "stop": stop,
        }
        shown = {at: each for at, each in marks.items() if each.any()}
        try:
            if live is None:
                follow_kept(frames, shown, start, way, **given)
            else:
                self.pace = pace
                follow_live(live, shown, start, **given)
        except MaskError as error:
            raise MaskError(f"what is marked is too small to follow; mark more of the object ({error})") from error
        finally:
            if live is not None:
                live.hold()
        told = {} if live is None else {"live": pace.figures()}
        return {"followed": len(done - ends), "at": self.task["at"], "stopped": stop.is_set(), **told}


def _png(mask: U8Array | np.ndarray[Any, np.dtype[np.bool_]]) -> bytes:
    return cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
