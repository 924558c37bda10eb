"""The HTTP side of the page: who may ask, and what for.

Anyone with the token may use the page; the browser keeps it in its tab and sends it in a header, which no other site
can do. Besides, requests are taken only under the names of this server (against DNS rebinding) and from its own pages.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vosrt.errors import InputError, VosrtError
from vosrt.page.desk import Desk
from vosrt.page.export import export
from vosrt.prompt.points import Point
from vosrt.types import PropagationOptions

_STATIC = Path(__file__).with_name("static")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_VIDEO_SUFFIXES = ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .ts .mts .gif .ogv .wmv .flv .y4m .tif .tiff .npy .npz"
_VIDEOS = frozenset(_VIDEO_SUFFIXES.split())
_BODY_BYTES = 4 << 20  # of a request that is no upload
_POLL_S, _LIVE_POLL_S = 0.1, 0.02  # how late pages see a change
_LOOK_S = 2.0  # how long a request waits for a newer picture
_BEAT_S = 10.0
_TICKET_S = 600.0  # how long a download may wait
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses requests under other names, from other sites and without the token, and adds headers to all answers.

    Args:
        hosts: ``name:port`` under which this server is reached.
        token: that requests below ``/api`` carry.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], token: str) -> None:
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            await send(message)

        refusal = self._refusal(Request(scope))
        await (self._app if refusal is None else refusal)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", "").lower(), request.headers.get("origin")
        if not self._is_ours(host):
            return _error(f"this server is not called that; expected one of {', '.join(sorted(self._hosts))}", 421)
        if origin is not None and origin.lower() != f"http://{host}":
            return _error("a page of another site may not ask; open the address that vos-run ui printed", 403)
        given = request.headers.get("x-vosrt-token", "")
        if request.url.path.startswith("/api/") and not hmac.compare_digest(given.encode(), self._token.encode()):
            return _error("the token is missing or wrong; open the whole address that vos-run ui printed", 401)
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a host is a name of this server, or an address, which no foreign name server can hand out."""
        name, _, port = host.rpartition(":")
        if host in self._hosts or port not in {each.rpartition(":")[2] for each in self._hosts}:
            return host in self._hosts
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


class Page:
    """The routes.

    Args:
        root: folder whose files may be opened.
        source: what may be opened besides: the source that the command named.
    """

    def __init__(self, desk: Desk, root: Path, source: str = "") -> None:
        self._desk, self._root, self._source = desk, root.resolve(), source
        self._owner = ""  # the tab that may change things
        self._tickets: dict[str, tuple[Path, float]] = {}

    def app(self, hosts: frozenset[str], token: str) -> ASGIApp:
        """The guarded application."""
        get, post = partial(Route, methods=["GET"]), partial(Route, methods=["POST"])
        changes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "open": self._open,
            "object": self._object,
            "remove": lambda body: self._desk.change(lambda project: project.remove(_int(body, "object"))),
            "click": self._click,
            "paint": self._paint,
            "accept": self._accept,
            "prepare": lambda body: self._desk.prepare(_int(body, "frame")),
            "follow": self._follow,
            "stop": lambda body: self._desk.stop(),
            "freeze": lambda body: {"frame": self._desk.freeze(_int(body, "number"))},
            "live": lambda body: self._desk.go_live(),
            "explain": lambda body: self._desk.explain(_int(body, "frame"), _int(body, "x"), _int(body, "y")),
            "undo": lambda body: self._desk.change(lambda project: project.undo()),
            "redo": lambda body: self._desk.change(lambda project: project.redo()),
            "export": self._export,
        }
        routes = [
            get("/", self._static),
            get("/static/{name}", self._static),
            get("/download/{ticket}", self._download),
            get("/api/events", self._events),
            get("/api/files", self._files),
            get("/api/live", self._live),
            get("/api/frame/{position:int}", self._frame),
            get("/api/labels/{position:int}", self._labels),
            post("/api/take", self._take),
            post("/api/upload", self._upload),
            *(post(f"/api/{name}", self._changing(change)) for name, change in changes.items()),
        ]
        return Guard(Starlette(routes=routes), hosts, token)

    def _changing(self, change: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        """A route that changes something: for the one tab that may, in a thread, with errors as one line."""

        async def answer(request: Request) -> Response:
            if self._is_other(request):
                return _error("another tab is at work here; take over there first", 409)
            try:
                body = json.loads(await _read(request, _BODY_BYTES) or b"{}")
                if not isinstance(body, dict):
                    raise InputError("the request is no JSON object")
                done = await run_in_threadpool(change, body)
            except json.JSONDecodeError:
                return _error("the request is no JSON", 400)
            except VosrtError as error:
                return _error(str(error), 400 if error.exit_code == 2 else 500)
            return JSONResponse(done if isinstance(done, dict) else {})

        return answer

    def _is_other(self, request: Request) -> bool:
        return bool(self._owner) and request.headers.get("x-vosrt-tab", "") != self._owner

    async def _static(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        known = {path.name: path for path in _STATIC.iterdir() if path.suffix in _TYPES}
        if name not in known:
            return _error("there is no such file", 404)
        return FileResponse(known[name], media_type=_TYPES[known[name].suffix])

    async def _frame(self, request: Request) -> Response:
        frames, position = self._desk.frames, request.path_params["position"]
        try:
            if frames is None:
                raise InputError("no clip is open")
            return Response(await run_in_threadpool(frames.jpeg, position), media_type="image/jpeg")
        except InputError as error:
            return _error(str(error), 404)

    async def _live(self, request: Request) -> Response:
        """The newest picture of a live source, as soon as there is a newer one than the page has."""
        after = request.query_params.get("after", "0")
        if not re.fullmatch(r"\d{1,15}", after):
            return _error("after is no number", 400)
        try:
            newest = await run_in_threadpool(self._desk.live().look, int(after), _LOOK_S)
        except InputError as error:
            return _error(str(error), 404)
        if newest is None:
            return Response(status_code=204)
        return Response(newest[1], media_type="image/jpeg", headers={"X-Vosrt-Number": str(newest[0])})

    async def _labels(self, request: Request) -> Response:
        found = self._desk.project.state.found.get(request.path_params["position"])
        if found is None:
            return Response(status_code=204)
        return Response(found.png, media_type="image/png")

    async def _events(self, request: Request) -> Response:
        tab = request.query_params.get("tab", "")
        if not re.fullmatch(r"[0-9a-f]{32}", tab):
            return _error("the tab has no number; load the page again", 400)
        return StreamingResponse(self._changes(request, tab), media_type="application/x-ndjson")

    async def _changes(self, request: Request, tab: str) -> AsyncIterator[bytes]:
        """One line of JSON for every change; labels of frames only as their numbers."""
        desk, seen, owned, sent_s, project, position = self._desk, -1, None, 0.0, None, 0
        count: Any = None
        try:
            while not await request.is_disconnected():
                self._owner = self._owner or tab
                line: dict[str, Any] = {}
                if desk.project is not project:
                    project, position = desk.project, 0
                    line["frames"] = {each: project.rows(each) for each in project.state.found}
                    line["all"], position = True, len(project.changes)
                elif position < len(project.changes):
                    changed, position = project.changes[position:], len(project.changes)
                    line["all"] = -1 in changed
                    which = project.state.found if -1 in changed else dict.fromkeys(changed)
                    line["frames"] = {each: project.rows(each) for each in which}
                frames = desk.frames
                kept = None if frames is None else (len(frames), frames.done, frames.note)
                if desk.version != seen or kept != count:
                    seen, count = desk.version, kept
                    line["state"] = await run_in_threadpool(desk.describe)
                if (tab == self._owner) != owned:
                    owned = tab == self._owner
                    line["owner"] = owned
                if line or time.monotonic() - sent_s > _BEAT_S:
                    sent_s = time.monotonic()
                    yield (json.dumps(line) + "\n").encode()
                await asyncio.sleep(_LIVE_POLL_S if "live" in desk.task else _POLL_S)
        finally:
            if tab == self._owner:
                self._owner = ""

    async def _take(self, request: Request) -> Response:
        self._owner = request.headers.get("x-vosrt-tab", "")
        return JSONResponse({})

    async def _files(self, request: Request) -> Response:
        """What can be opened in a folder below the root."""
        try:
            folder = self._inside(request.query_params.get("folder", ""))
            entries = sorted(folder.iterdir(), key=lambda path: path.name.lower())
        except (InputError, OSError) as error:
            return _error(str(error), 404)
        shown = [
            {"name": path.name, "path": str(path.relative_to(self._root)), "folder": path.is_dir()}
            for path in entries
            if path.name[0] != "." and (path.is_dir() or path.suffix.lower() in _VIDEOS)
        ]
        above = None if folder == self._root else str(folder.parent.relative_to(self._root))
        source = {"source": shown_name(self._source)} if self._source else {}
        return JSONResponse({"folder": str(folder), "above": above, "entries": shown[:2000], **source})

    def _inside(self, text: str) -> Path:
        """A path below the root, links followed.

        Raises:
            InputError: it is not below it, or does not exist.
        """
        try:
            path = (self._root / text).resolve()
            known = path.is_relative_to(self._root) and path.exists()
        except (OSError, ValueError, RuntimeError):  # a name too long, a zero byte, links in a circle
            known = False
        if not known:
            raise InputError(f"{text[:200]}: is not in {self._root}; expected a path in it (--root chooses another)")
        return path

    def _open(self, body: dict[str, Any]) -> None:
        if self._source and body.get("source") is True:
            self._desk.open(self._source, shown_name(self._source))
            return
        path = self._inside(_text(body, "path"))
        self._desk.open(str(path), path.name)

    async def _upload(self, request: Request) -> Response:
        """Take a file into the temporary folder, and open it."""
        if self._is_other(request):
            return _error("another tab is at work here; take over there first", 409)
        name, most = request.query_params.get("name", "clip"), self._desk.limits.upload_bytes
        suffix = Path(name).suffix.lower()
        target = self._desk.folder / f"{secrets.token_hex(8)}{suffix if suffix in _VIDEOS else ''}"
        try:
            if int(request.headers.get("content-length") or 0) > most:
                raise InputError(_too_large(most))
            size = 0
            with target.open("xb") as file:
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise InputError(_too_large(most))
                    await run_in_threadpool(file.write, part)
            await run_in_threadpool(self._desk.open, str(target), name[:200])
            for earlier in self._desk.folder.iterdir():
                if earlier.is_file() and earlier != target:
                    earlier.unlink()
        except (VosrtError, ValueError, ClientDisconnect, OSError) as error:
            target.unlink(missing_ok=True)
            message = str(error).replace(str(target), name[:200]) or "the upload was interrupted"
            return _error(message, 413 if message == _too_large(most) else 400)
        return JSONResponse({})

    def _object(self, body: dict[str, Any]) -> dict[str, Any]:
        if "object" not in body:
            added: list[int] = []
            self._desk.change(lambda project: added.append(project.add().object_id))
            return {"object": added[0]}
        name, colour = body.get("name"), body.get("colour")
        if name is not None and (not isinstance(name, str) or not 1 <= len(name.strip()) <= 60):
            raise InputError("the name is empty or too long; expected 1 to 60 characters")
        if colour is not None and not (isinstance(colour, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", colour)):
            raise InputError("the colour is none; expected #rrggbb")
        object_id = _int(body, "object")
        self._desk.change(lambda project: project.change(object_id, name=name and name.strip(), colour=colour))
        return {}

    def _click(self, body: dict[str, Any]) -> None:
        box = body.get("box")
        point = None if box else Point(_number(body, "x"), _number(body, "y"), bool(body.get("positive", True)))
        self._desk.click(_int(body, "frame"), _int(body, "object"), point, tuple(box) if box else None)

    def _paint(self, body: dict[str, Any]) -> None:
        radius = None if body.get("radius") is None else _number(body, "radius")
        points = body.get("points")
        if not isinstance(points, list):
            raise InputError("points are missing; expected a list of [x, y]")
        try:
            self._desk.paint(
                _int(body, "frame"), _int(body, "object"), points, radius=radius, add=bool(body.get("add", True))
            )
        except (TypeError, ValueError) as error:
            raise InputError("points are no numbers; expected a list of [x, y]") from error

    def _accept(self, body: dict[str, Any]) -> None:
        position, marked = _int(body, "frame"), bool(body.get("marked", True))
        self._desk.change(lambda project: project.accept(position, marked=marked))

    def _follow(self, body: dict[str, Any]) -> None:
        direction = body.get("direction", "forward")
        if direction not in ("forward", "backward"):
            raise InputError(f"direction is {direction!r}; expected 'forward' or 'backward'")
        self._desk.follow(_int(body, "frame"), direction)

    def _export(self, body: dict[str, Any]) -> None:
        """Begin to write a ZIP file, whose ticket is in the task when it is done."""
        kinds, desk = body.get("kinds"), self._desk
        frames = desk.frames
        if not isinstance(kinds, list) or frames is None:
            raise InputError("kinds are missing, or no clip is open")

        def work(at: Callable[[int], None], stop: Any) -> dict[str, Any]:
            self._tickets.clear()
            for earlier in desk.folder.glob("export-*"):
                shutil.rmtree(earlier, ignore_errors=True)
            folder = desk.folder / f"export-{secrets.token_hex(8)}"
            folder.mkdir()
            # Masks drawn by hand can be had even where no model loads.
            loaded = desk.model.exception() is None
            options = desk.model.result().manifest.inference if loaded else PropagationOptions()
            chosen = tuple(map(str, kinds))
            packed = export(frames, desk.project.state, chosen, folder, options=options, on_frame=at, stop=stop)
            if packed is None:
                return {"stopped": True}
            ticket = secrets.token_urlsafe(24)
            self._tickets[ticket] = packed, time.monotonic() + _TICKET_S
            return {"download": f"/download/{ticket}"}

        if not desk.project.state.found:
            raise InputError("nothing was marked or followed yet; there is nothing to export")
        desk.run("export", work)

    async def _download(self, request: Request) -> Response:
        packed, until = self._tickets.get(request.path_params["ticket"], (None, 0.0))
        if packed is None or time.monotonic() > until:
            return _error("this download is over; export again", 404)
        name = re.sub(r"[^\w.-]+", "-", Path(self._desk.name).stem).strip("-.") or "clip"
        return FileResponse(packed, media_type="application/zip", filename=f"{name}-vosrt.zip")


def _error(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


def _too_large(most: int) -> str:
    return f"the file is larger than {most >> 20} MB; start vos-run ui with a larger --upload-mb, or open it from disk"


async def _read(request: Request, most: int) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise InputError(f"the request is larger than {most >> 20} MB")
    return body


def _number(body: dict[str, Any], name: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {value!r}; expected a number")
    return float(value)


def _int(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is {value!r}; expected a whole number")
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; expected text")
    return value


def shown_name(source: str) -> str:
    """What the page calls a source: a file's name, or an address without its password."""
    return re.sub(r"//[^/@]*@", "//", source) if "://" in source else Path(source).name
