"""The WebSocket of a webcam: frames in, results out; a new frame replaces one that still waits."""

from __future__ import annotations

import asyncio
import json
import time

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from ferkit.core.errors import FerkitError
from ferkit.service.app import Service, client_of, service_of
from ferkit.service.engine import Live, Options
from ferkit.service.problems import Problem
from ferkit.service.security import STREAM_PROTOCOL

router = APIRouter()

_BUSY, _REFUSED, _TOO_SLOW = 1013, 1008, 1001
"""Codes of WebSocket closures: try again later, not acceptable, going away."""


class _Newest:
    """A slot for one frame: the newest wins."""

    def __init__(self) -> None:
        self._frame: tuple[int, bytes, float] | None = None
        self._begun: float | None = None
        self._ready = asyncio.Event()
        self._count = 0
        self.dropped = 0
        self.closed = False

    def put(self, content: bytes) -> None:
        """Offer a frame; one that waits is dropped."""
        if self._frame is not None:
            self.dropped += 1
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
        self._frame = (self._count, content, now - self._begun)
        self._count += 1
        self._ready.set()

    def close(self) -> None:
        """Say that no frame comes any more."""
        self.closed = True
        self._ready.set()

    async def get(self) -> tuple[int, bytes, float] | None:
        """Take the frame, or wait for one; None at the end."""
        await self._ready.wait()
        self._ready.clear()
        frame, self._frame = self._frame, None
        return None if self.closed else frame


@router.websocket("/v1/stream")
async def stream(socket: WebSocket, taxonomy: str | None = None, min_face: int | None = None) -> None:
    """Classify the frames of a camera: binary messages in, one JSON text per classified frame out.

    A result is a frame as of ``ferkit video --jsonl``, with ``index``, the number of the frame among those
    sent, ``time``, the seconds since the first frame came, ``dropped``, the number of frames that newer ones
    replaced, and ``ms``, the milliseconds it took. An unreadable frame gives ``index`` and ``error``.
    """
    service = service_of(socket)
    asked = socket.headers.get("sec-websocket-protocol", "")
    protocol = STREAM_PROTOCOL if STREAM_PROTOCOL in (name.strip() for name in asked.split(",")) else None
    await socket.accept(subprotocol=protocol)
    open_streams: set[WebSocket] = socket.app.state.streams
    if len(open_streams) >= service.settings.streams:
        service.metrics.refusals.labels("streams").inc()
        await socket.close(_BUSY, f"all {service.settings.streams} streams are taken; try again later")
        return
    open_streams.add(socket)
    service.metrics.streams.set(len(open_streams))
    try:
        with service.pool.client(client_of(socket)):
            if min_face is not None and min_face < 5:
                raise Problem(422, "min_face is at least 5")
            options = Options(taxonomy, min_face)
            live = await service.pool.run(
                "/v1/stream", lambda _: service.engine.live(options), service.settings.request_seconds
            )
            await _serve(socket, service, live)
    except Problem as problem:
        await _close(socket, _BUSY if problem.status in (429, 503) else _REFUSED, problem.detail)
    except FerkitError as error:
        await _close(socket, _REFUSED, str(error))
    finally:
        open_streams.discard(socket)
        service.metrics.streams.set(len(open_streams))


async def _serve(socket: WebSocket, service: Service, live: Live) -> None:
    newest = _Newest()
    receiving = asyncio.create_task(_receive(socket, service, newest))
    try:
        while (frame := await newest.get()) is not None:
            await socket.send_text(await _classify(service, live, newest, *frame))
    except WebSocketDisconnect:
        pass
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


async def _receive(socket: WebSocket, service: Service, newest: _Newest) -> None:
    try:
        while True:
            message = await asyncio.wait_for(socket.receive(), service.settings.stream_idle_seconds)
            if message["type"] == "websocket.disconnect":
                return
            content = message.get("bytes")
            if content is None:
                await _close(socket, 1003, "frames are binary messages")
                return
            if len(content) > service.settings.frame_mib * (1 << 20):
                await _close(socket, 1009, "the frame is too large")
                return
            newest.put(content)
    except TimeoutError:
        await _close(socket, _TOO_SLOW, "no frame came for a while")
    finally:
        newest.close()


async def _classify(
    service: Service, live: Live, newest: _Newest, index: int, content: bytes, arrived: float
) -> str:
    """Return the message on a frame; an error of the frame is one, too."""
    begun = time.monotonic()
    try:
        text = await service.pool.run(
            "/v1/stream",
            lambda _: json.dumps(live.frame(content, index, arrived), allow_nan=False)[:-1],
            service.settings.request_seconds,
        )
    except (FerkitError, Problem) as error:
        service.metrics.frames.labels("refused").inc()
        busy = isinstance(error, Problem)
        if busy:
            await asyncio.sleep(0.2)  # the server is full: this camera is no reason to ask again at once
        return json.dumps({"index": index, "error": str(error), "busy": busy, "dropped": newest.dropped})
    service.metrics.frames.labels("classified").inc()
    milliseconds = {
        "ms": round((time.monotonic() - begun) * 1000, 1),
        "waited_ms": round((begun - arrived) * 1000, 1),
        "dropped": newest.dropped,
    }
    return f"{text}, {json.dumps(milliseconds)[1:]}"


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """Close, unless the other side has; a reason has at most 123 bytes."""
    if {socket.application_state, socket.client_state} == {WebSocketState.CONNECTED}:
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))
