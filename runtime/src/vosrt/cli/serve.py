"""``vos-run serve``: serve streams until Ctrl-C."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vosrt.cli.app import require
from vosrt.cli.options import ModelChoice
from vosrt.cli.ui import listen
from vosrt.console import note, say_json
from vosrt.errors import OptionError
from vosrt.types import WorkingSize

TOKEN_VARIABLE = "VOSRT_TOKEN"
_PING_S = 20.0  # a client that does not answer twice in a row has gone
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeRequest(ModelChoice):
    """Options of the command; see ``vos-run serve --help``."""

    host: str
    port: int
    size: WorkingSize
    sessions: int
    workers: int
    max_megapixels: float
    idle: float
    json: bool


def serve_streams(request: ServeRequest) -> int:
    """Serve streams.

    Returns:
        0 after Ctrl-C.

    Raises:
        MissingExtraError: a package of the extra ``serve`` is missing.
        OptionError: the port is taken, or a limit is impossible.
    """
    for module in ("starlette", "uvicorn", "websockets", "prometheus_client"):
        require(module, f"{module.replace('_', '-')}, which vos-run serve needs,", "serve")
    import uvicorn

    from vosrt.serving import Server, ServingLimits

    limits = ServingLimits(
        sessions=request.sessions, workers=request.workers, megapixels=request.max_megapixels, idle_s=request.idle
    )
    token = os.environ.get(TOKEN_VARIABLE, "")
    if request.host not in _LOCAL and not token:
        raise OptionError(
            f"--host {request.host}: other machines could connect; set {TOKEN_VARIABLE} to what clients send as "
            "Authorization: Bearer, or keep 127.0.0.1"
        )
    listening = listen(request.host, request.port)
    try:
        server = Server(request.load(), size=request.size, limits=limits, token=token)
        shown = f"[{request.host}]" if ":" in request.host else request.host
        address = f"ws://{shown}:{listening.getsockname()[1]}/v1/stream"
        if request.json:
            say_json({"address": address})
        else:
            note(f"streams are served at {address}; Ctrl-C ends the server")
        config = uvicorn.Config(
            server.app(),
            log_level="critical",
            lifespan="off",
            access_log=False,
            timeout_graceful_shutdown=1,
            ws="websockets-sansio",
            ws_max_size=int(4 * request.max_megapixels * 1e6),  # a PNG of random pixels has 3 bytes a pixel
            ws_max_queue=2,
            ws_ping_interval=_PING_S,
            ws_ping_timeout=_PING_S,
        )
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()
    return 0
