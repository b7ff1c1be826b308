"""The server process: Uvicorn around the application, with limits on connections and slow headers."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import webbrowser
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ferkit.core.errors import FerkitError
from ferkit.core.extras import require
from ferkit.service.app import create_app
from ferkit.service.security import JsonLines
from ferkit.service.settings import MIB, Settings

_HEADER_BYTES = 16 * 1024
_KEEP_ALIVE = 15


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Return the HTTP protocol with limits on open connections and on the time for headers."""

    class Limited(H11Protocol):
        _until_headers: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.connections:
                transport.close()
                return
            self._await_headers()

        def _await_headers(self) -> None:
            """Close the connection unless the headers of its next request come in time."""
            self._cancel()
            self._until_headers = self.loop.call_later(settings.body_seconds, self._close_idle)

        def _close_idle(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def on_response_complete(self) -> None:
            self._await_headers()
            super().on_response_complete()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._cancel()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _cancel(self) -> None:
            if self._until_headers is not None:
                self._until_headers.cancel()

    return Limited


def configure_logging(level: str) -> None:
    """Log JSON lines on stderr, errors of Uvicorn included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("ferkit.service", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    uvicorn_errors = logging.getLogger("uvicorn.error")
    uvicorn_errors.setLevel("WARNING")
    # Uvicorn 0.54 reports each WebSocket that was refused with a response as an error of the application.
    uvicorn_errors.addFilter(lambda record: "without completing handshake" not in record.getMessage())


def listen(settings: Settings) -> socket.socket:
    """Return the listening socket.

    Raises:
        FerkitError: If the address is not available.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only where the protocol is named; without it a response waits 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(256)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise FerkitError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}; choose "
            "another with --host and --port"
        ) from error
    return listening


def make_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """Return the server of an application, with the limits of the settings."""
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="websockets-sansio",
        ws_max_size=int(settings.frame_mib * MIB) + 1024,
        ws_max_queue=2,
        ws_per_message_deflate=False,
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    return uvicorn.Server(config)


def serve(settings: Settings, *, browse: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished then.

    ``browse`` opens a browser at this part of the page, such as ``#camera``.

    Raises:
        FerkitError: If the address, the model, or the queue is not available.
        MissingDependencyError: If an extra is not installed.
    """
    require("av", "video")
    configure_logging(settings.log_level)
    with listen(settings) as listening:
        server = make_server(create_app(settings), settings)
        port = listening.getsockname()[1]
        host = settings.host if ":" not in settings.host else f"[{settings.host}]"
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}/"
        logging.getLogger("ferkit.service").info("serving", extra={"fields": {"url": url}})
        page = url + (browse or "")
        if sys.stderr.isatty():
            sys.stderr.write(f"open {page} in a browser; Ctrl-C ends the server\n")
        if browse is not None:
            threading.Timer(1.0, webbrowser.open, (page,)).start()
        server.run(sockets=[listening])
