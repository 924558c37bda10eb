"""``vos-run ui``: serve the page until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from vosrt.cli.app import require
from vosrt.cli.options import ModelChoice
from vosrt.console import note, say_json
from vosrt.errors import OptionError
from vosrt.types import WorkingSize


@dataclass(frozen=True, kw_only=True)
class PageRequest(ModelChoice):
    """What the user asked for; see ``vos-run ui --help``."""

    source: str | None
    root: Path
    host: str
    port: int
    size: WorkingSize
    upload_mb: int
    cache_mb: int
    browser: bool
    json: bool


def serve(request: PageRequest) -> int:
    """Serve the page.

    Returns:
        0 after Ctrl-C.

    Raises:
        MissingExtraError: Starlette or uvicorn is not installed.
        OptionError: the port is taken, or another option is wrong.
        SourceError: the source cannot be opened.
    """
    require("starlette", "Starlette, which serves the page,", "ui")
    require("uvicorn", "uvicorn, which serves the page,", "ui")
    import uvicorn

    from vosrt.page.desk import Desk, Limits
    from vosrt.page.server import Page, shown_name

    if not request.root.is_dir():
        raise OptionError(f"--root {request.root}: is no folder")
    if request.upload_mb < 1 or request.cache_mb < 1:
        raise OptionError("--upload-mb and --cache-mb are in megabytes; expected 1 or more")
    listening = listen(request.host, request.port)
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    desk = Desk(
        request.load,
        size=request.size,
        limits=Limits(upload_bytes=request.upload_mb << 20, cache_bytes=request.cache_mb << 20),
    )
    try:
        if request.source is not None:
            desk.open(request.source, shown_name(request.source))
        named = request.source if request.source is not None and not Path(request.source).exists() else ""
        shown = f"[{request.host}]" if ":" in request.host else request.host
        address = f"http://{shown}:{port}/#{token}"
        names = {shown.lower(), "localhost", "127.0.0.1", "[::1]"}
        app = Page(desk, request.root, named).app(frozenset(f"{name}:{port}" for name in names), token)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, access_log=False)
        )
        if request.json:
            say_json({"address": address})
        else:
            note(f"open {address} in a browser; Ctrl-C ends the page")
        if request.browser:
            webbrowser.open(address)
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
        desk.close()
    if desk.pace is not None and "fps" in (pace := desk.pace.figures()):
        if request.json:
            say_json({"live": pace})
        else:
            note(
                f"followed {pace['frames']} frames live, {pace['fps']} a second; from picture to masks "
                f"{pace['p50_ms']} ms p50, {pace['p95_ms']} ms p95"
            )
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on which a server listens.

    Raises:
        OptionError: the port is taken, or the host is none of this machine.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--host {host} --port {port}: cannot be used ({reason}); choose another") from error
    return listening
