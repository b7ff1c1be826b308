"""What every request passes first: Host, Origin, API key; and what every response carries."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ferkit.service.metrics import Metrics
from ferkit.service.problems import problem_response
from ferkit.service.settings import Settings

KEY_PROTOCOL = "ferkit.key."
"""Prefix of the WebSocket subprotocol with the API key in base64url: browsers set no headers there."""

STREAM_PROTOCOL = "ferkit.stream"
"""WebSocket subprotocol of the stream."""

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger("ferkit.service")


class Gate:
    """ASGI middleware: checks, headers, request ids, the access log and the request metrics."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._names = {"localhost", *(name.lower() for name in settings.hosts)}
        key = settings.api_key
        self._key = None if key is None else key.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request or a WebSocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope["ferkit.id"] = given if _ID.fullmatch(given) else uuid.uuid4().hex
        start = time.perf_counter()
        status = 0
        sent = 0

        async def sending(message: Message) -> None:
            nonlocal status, sent
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                response = MutableHeaders(scope=message)
                response["X-Request-Id"] = scope["ferkit.id"]
                for name, value in _HEADERS.items():
                    response[name] = value
                response.setdefault("Cache-Control", "no-store")
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is None:
                await self._app(scope, receive, sending)
            else:
                await self._refuse(scope, receive, sending, *refusal)
        finally:
            taken = time.perf_counter() - start
            self._record(scope, status, sent, taken)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        """Return status, detail and reason if a request is refused."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return (
                421,
                f"the host name {host[:100]!r} is not one of this server; allow it with --hosts, or use its "
                "address",
                "host",
            )
        origin = headers.get("origin")
        if origin is not None and not _same_origin(origin, host):
            return 403, f"requests from pages of {origin[:100]!r} are not allowed", "origin"
        path = scope["path"]
        if path.startswith("/v1/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "requests from pages of other sites are not allowed", "origin"
        locked = path.startswith("/v1/") or path == "/metrics"
        if self._key is not None and locked and not hmac.compare_digest(_key_of(headers), self._key):
            return (
                401,
                "an API key is needed: send the header Authorization: Bearer KEY, or X-API-Key: KEY",
                "key",
            )
        return None

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header is an IP address or one of the own names: no rebound DNS name is."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            _ = urlsplit(f"//{host}").port
        except ValueError:
            return False
        if not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", host):
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, status: int, detail: str, reason: str
    ) -> None:
        self._metrics.refusals.labels(reason).inc()
        extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        response = problem_response(status, detail, scope["ferkit.id"], extra)
        if scope["type"] == "websocket":
            await receive()
            if "websocket.http.response" not in scope.get("extensions", {}):
                await send({"type": "websocket.close", "code": 1008})
                return
        await response(scope, receive, send)

    def _record(self, scope: Scope, status: int, sent: int, taken: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope.get("method", "WEBSOCKET")
        if method not in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "WEBSOCKET"):
            method = "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        if scope["type"] == "http":
            self._metrics.seconds.labels(route).observe(taken)
        quiet = route in ("/healthz", "/readyz", "/metrics") and status < 400
        _log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={
                "fields": {
                    "id": scope["ferkit.id"],
                    "client": (scope.get("client") or ("",))[0],
                    "method": method,
                    "route": route,
                    "status": status,
                    "bytes": sent,
                    "ms": round(taken * 1000, 1),
                }
            },
        )


def _same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _key_of(headers: Headers) -> bytes:
    """Return the API key that a request carries; empty if none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode()
    if key := headers.get("x-api-key"):
        return key.encode()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if (name := protocol.strip()).startswith(KEY_PROTOCOL):
            text = name.removeprefix(KEY_PROTOCOL)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except ValueError:
                return b""
    return b""


class JsonLines(logging.Formatter):
    """One line of JSON per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
