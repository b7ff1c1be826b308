"""Bodies of requests: read piece by piece, within limits, without a temporary file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ferkit.service.engine import Upload
from ferkit.service.problems import Problem
from ferkit.service.settings import MIB

_MULTIPART = "multipart/form-data"
_FORM = "application/x-www-form-urlencoded"
_NAME = 200  # characters of a file's name that are kept
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]{64}|[\t\n\r\x20-\x7e\x80-\xff]*\Z")
_PLAYLISTS = (b"ffconcat", b"#EXTM3U")  # with a NUL byte they are no text


class _Parts:
    """The file parts of a multipart body, in order.

    More than ``limit`` parts are refused. ``open_part`` is called with the name of a file and returns what
    takes its bytes.
    """

    def __init__(
        self, boundary: bytes, limit: int, open_part: Callable[[str | None], Callable[[bytes], Any]]
    ) -> None:
        self._limit = limit
        self._open = open_part
        self._count = 0
        self._ended = False
        self._field = self._value = b""
        self._disposition = b""
        self._take: Callable[[bytes], Any] | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            Problem: If it is no valid multipart body or has too many files.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Problem(400, f"the multipart body is damaged: {error}", reason="body") from error

    def finish(self) -> None:
        """Check that the body is complete.

        Raises:
            Problem: If it was cut off or has no file.
        """
        if not self._ended:
            raise Problem(400, "the multipart body is cut off: its last boundary is missing", reason="body")
        if not self._count:
            raise Problem(422, "the form has no file; add at least one file part", reason="body")

    def _begin(self) -> None:
        self._field = self._value = self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._take = None
        if b"filename" not in options:
            return  # a field of the form: options are query parameters
        self._count += 1
        if self._count > self._limit:
            raise Problem(
                413,
                f"the request has more than {self._limit} files, which is the limit; send several requests",
                reason="files",
            )
        self._take = self._open(_clean(options[b"filename"].decode(errors="replace")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._take is not None:
            self._take(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _clean(name: str) -> str | None:
    """Return a client's file name without folders and control characters."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(letter for letter in last if letter.isprintable())[:_NAME] or None


def _boundary(request: Request) -> bytes | None:
    """Return the boundary of a multipart body; None for a raw body.

    Raises:
        Problem: If the content type is multipart without a boundary, or a form without files.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    name = kind.decode("latin-1").lower()
    if name == _FORM:
        raise Problem(
            415, f"a form without files was received; send {_MULTIPART} or the raw file", reason="body"
        )
    if not name.startswith("multipart/"):
        return None
    if name != _MULTIPART or not options.get(b"boundary"):
        raise Problem(400, f"the content type must be {_MULTIPART} with a boundary", reason="body")
    return options[b"boundary"]


async def _chunks(request: Request, limit: int, pause: float) -> AsyncIterator[bytes]:
    """Yield the body.

    Raises:
        Problem: 413 if it is larger than ``limit`` bytes, 408 if nothing arrives for ``pause`` seconds.
    """
    too_large = Problem(
        413, f"the body has more than {limit / MIB:g} MiB, which is the limit; send less", reason="body"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    size = 0
    stream = request.stream().__aiter__()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), pause)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Problem(
                408, f"nothing of the body arrived for {pause:g} seconds; send it again", reason="slow"
            ) from None
        except ClientDisconnect:
            raise Problem(400, "the client closed the connection", reason="gone") from None
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk


async def read_photos(request: Request, *, limit: int, photos: int, pause: float) -> list[Upload]:
    """Return the photos of a request, multipart or raw.

    ``limit`` are bytes of the body, ``pause`` seconds that it may pause.

    Raises:
        Problem: If the body is too large, too slow, damaged or empty.
    """
    boundary = _boundary(request)
    body = bytearray()
    async for chunk in _chunks(request, limit, pause):
        body += chunk
    if boundary is None:
        if not body:
            raise Problem(422, "the body is empty; a photo was expected", reason="body")
        return [Upload(None, bytes(body))]
    return await asyncio.to_thread(_split, bytes(body), boundary, photos)


def _split(body: bytes, boundary: bytes, photos: int) -> list[Upload]:
    found: list[tuple[str | None, bytearray]] = []

    def open_part(name: str | None) -> Callable[[bytes], Any]:
        found.append((name, bytearray()))
        return found[-1][1].extend

    parts = _Parts(boundary, photos, open_part)
    parts.write(body)
    parts.finish()
    return [Upload(name, bytes(content)) for name, content in found]


async def read_clip(request: Request, path: Path, *, limit: int, pause: float) -> str | None:
    """Write the clip of a request to a file and return the client's name for it.

    ``limit`` are bytes of the body, ``pause`` seconds that it may pause. The request is multipart with one
    file, or raw.

    Raises:
        Problem: If the body is too large, too slow, damaged, empty, text or a playlist.
    """
    boundary = _boundary(request)
    name: str | None = None
    with path.open("xb") as file:

        def open_part(given: str | None) -> Callable[[bytes], Any]:
            nonlocal name
            name = given
            return file.write

        parts = None if boundary is None else _Parts(boundary, 1, open_part)
        take = file.write if parts is None else parts.write
        async for chunk in _chunks(request, limit, pause):
            await asyncio.to_thread(take, chunk)
        if parts is not None:
            parts.finish()
    with path.open("rb") as written:
        _check_clip(written)
    return name


def _check_clip(file: BinaryIO) -> None:
    """Refuse text and playlists: FFmpeg would open the files that a playlist names."""
    begin = file.read(64)
    if not begin:
        raise Problem(422, "the body is empty; a clip was expected", reason="body")
    if begin.startswith(_PLAYLISTS) or _TEXT.match(begin):
        raise Problem(
            422,
            "the clip is text or a playlist; a video file such as MP4, MOV, MKV, WebM or AVI was expected",
            reason="body",
        )
