"""Streams over WebSocket: frames in, masks out, with limits and figures for Prometheus.

A connection to ``/v1/stream`` is one stream. Its client sends, for each frame, one binary message with the frame as
JPEG or PNG; before a frame that marks objects, a text message ``{"mask": true}`` and a binary one with the mask as PNG,
whose values are object ids (0 is background). The server answers a frame with a text message, such as
``{"frame": 0, "objects": [{"id": 1, "box": [8, 8, 24, 24], …}], "ms": 21.5}``, and a binary one, the mask as PNG with
the DAVIS palette. What cannot be used is answered with ``{"error": "…"}`` and the stream goes on; a client that breaks
a limit is disconnected with the reason. The next frame is taken when the answer is sent: a client that is ahead waits.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vosrt.errors import InputError, MaskError, OptionError, SourceError, VosrtError
from vosrt.served import ServedStream, answer_of
from vosrt.types import StepResult, U8Array, WorkingSize
from vosrt.video.sinks import palette_png

if TYPE_CHECKING:
    from vosrt.model import Model

_POLICY, _TRY_LATER, _FAILED = 1008, 1013, 1011  # codes with which a WebSocket closes
_MARK_CHARACTERS = 1000
_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """What a server takes on.

    Attributes:
        sessions: streams at once; a further client is told to try later.
        workers: steps that run at the same time; others wait in order.
        megapixels: of a frame; a larger one is refused before it is decoded.
        idle_s: seconds without a message after which a stream is closed.
    """

    sessions: int = 16
    workers: int = 1
    megapixels: float = 16.0
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise OptionError(f"--{name.removesuffix('_s')} is {value:g}; expected more than 0")


class Server:
    """Streams of one model.

    Args:
        size: working size of all streams.
        limits: see `ServingLimits`.
        token: that a client sends as ``Authorization: Bearer TOKEN``; "" asks for none.
    """

    def __init__(self, model: Model, *, size: WorkingSize, limits: ServingLimits, token: str = "") -> None:
        self._model, self._size, self._limits, self._token = model, size, limits, token
        self._open = 0
        self._turns = asyncio.Semaphore(limits.workers)
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._sessions = Gauge("vosrt_sessions", "Streams that are open.", registry=registry)
        self._opened = Counter("vosrt_sessions_opened", "Streams that were opened.", registry=registry)
        self._frames = Counter("vosrt_frames", "Frames that were answered with a mask.", registry=registry)
        self._refused = Counter("vosrt_refused", "What was refused, by reason.", ["reason"], registry=registry)
        self._waited = Histogram("vosrt_wait_seconds", "Wait for a turn.", registry=registry, buckets=_SECONDS)
        self._took = Histogram("vosrt_step_seconds", "Decode, step, encode.", registry=registry, buckets=_SECONDS)

    def app(self) -> Starlette:
        """The application: ``/v1/stream``, ``/metrics``, ``/healthz``."""
        return Starlette(
            routes=[
                WebSocketRoute("/v1/stream", self._stream),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/healthz", self._health, methods=["GET"]),
            ]
        )

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "sessions": self._open, "free": self._limits.sessions - self._open})

    async def _metrics(self, request: Request) -> Response:
        if not self._may(request.headers):
            return JSONResponse({"error": "the token is missing or wrong"}, 401)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _may(self, headers: Mapping[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        return not self._token or hmac.compare_digest(given.encode(), self._token.encode())

    async def _stream(self, socket: WebSocket) -> None:
        # A page of another site could open a WebSocket to this machine; programs send no Origin.
        if not self._may(socket.headers) or (not self._token and "origin" in socket.headers):
            self._refused.labels("token").inc()
            await socket.close(_POLICY)
            return
        await socket.accept()
        if self._open >= self._limits.sessions:
            self._refused.labels("sessions").inc()
            await socket.close(_TRY_LATER, f"all {self._limits.sessions} streams are taken; try later")
            return
        self._open += 1
        self._sessions.set(self._open)
        self._opened.inc()
        stream = ServedStream(self._model.stream(size=self._size))
        try:
            await self._serve(socket, stream)
        except TimeoutError:
            self._refused.labels("idle").inc()
            await socket.close(_POLICY, f"no message came for {self._limits.idle_s:g} s")
        except WebSocketDisconnect:
            pass
        except VosrtError as error:  # the work failed, which no later frame mends
            await socket.close(_FAILED, str(error)[:120])
        finally:
            self._open -= 1
            self._sessions.set(self._open)
            await run_in_threadpool(stream.close)

    async def _serve(self, socket: WebSocket, stream: ServedStream) -> None:
        mask: U8Array | None = None
        mask_follows = False
        while True:
            message = await asyncio.wait_for(socket.receive(), self._limits.idle_s)
            if message["type"] == "websocket.disconnect":
                return
            try:
                if (text := message.get("text")) is not None:
                    mask_follows = _mask_follows(text)
                elif mask_follows:
                    mask_follows = False
                    mask = await run_in_threadpool(self._decode_mask, message.get("bytes") or b"")
                else:
                    stream.check(marked=mask is not None)
                    result, answer = await self._step(stream, message.get("bytes") or b"", mask)
                    mask = None
                    await socket.send_text(json.dumps(answer))
                    await socket.send_bytes(result)
                    self._frames.inc()
            except InputError as error:
                self._refused.labels("input").inc()
                mask = None
                await socket.send_text(json.dumps({"error": str(error)}))

    async def _step(self, stream: ServedStream, data: bytes, mask: U8Array | None) -> tuple[bytes, dict[str, Any]]:
        came = time.perf_counter()
        async with self._turns:
            began = time.perf_counter()
            self._waited.observe(began - came)
            # A client that vanishes meanwhile must not leave a thread in a stream that is being closed.
            work = asyncio.ensure_future(run_in_threadpool(self._work, stream, data, mask))
            try:
                result, png = await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])
                raise
            seconds = time.perf_counter() - began
            self._took.observe(seconds)
        return png, answer_of(result, 1e3 * seconds)

    def _work(self, stream: ServedStream, data: bytes, mask: U8Array | None) -> tuple[StepResult, bytes]:
        result = stream.take(self._decode(data), mask)
        return result, palette_png(result.labels)

    def _decode(self, data: bytes) -> U8Array:
        """Decode a frame."""
        self._check_size(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError("the frame cannot be decoded; expected a JPEG or PNG file")
        return np.asarray(image, np.uint8)

    def _decode_mask(self, data: bytes) -> U8Array:
        self._check_size(data)
        return _mask_of(data)

    def _check_size(self, data: bytes) -> None:
        """Refuse a picture whose header says that it is too large, before it is decoded."""
        height, width = _size_of(data)
        if height * width > self._limits.megapixels * 1e6:
            raise SourceError(
                f"the picture has {width}×{height} pixels; expected {self._limits.megapixels:g} megapixels"
            )


def _mask_follows(text: str) -> bool:
    """Read a text message.

    Raises:
        InputError: it is not ``{"mask": true}``.
    """
    try:
        document = json.loads(text[:_MARK_CHARACTERS])
    except ValueError:
        document = None
    if document != {"mask": True}:
        raise InputError('a text message is not {"mask": true}; expected that, then the mask, then the frame it marks')
    return True


def _size_of(data: bytes) -> tuple[int, int]:
    """Height and width as the header of a picture says, without decoding it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit on pixels is ours
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(
            'the message is no JPEG or PNG file; expected a frame or, after {"mask": true}, a mask'
        ) from error


def _mask_of(data: bytes) -> U8Array:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("L", "P", "1"):
                raise MaskError(
                    f"the mask has the mode {image.mode}; expected a PNG of one channel, whose values are ids"
                )
            return np.asarray(image, np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise MaskError("the mask cannot be decoded; expected a PNG file of one channel") from error
