"""Results as JSON, JSON lines and CSV: writers that take one photo after the other."""

from __future__ import annotations

import codecs
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self, TextIO

from ferkit.core.errors import FerkitError
from ferkit.core.taxonomy import Taxonomy
from ferkit.recognize.results import Photo, Unreadable, photo_columns, photo_rows

FORMATS = ("json", "jsonl", "csv")
"""What :func:`make_writer` knows."""


class ResultWriter(ABC):
    """Writes photo after photo into a stream that stays open; used as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what closes the document, also after an error."""
        self._stream.flush()

    @abstractmethod
    def write(self, photo: Photo, besides: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write what was found in a photo.

        Args:
            photo: What was found.
            besides: What else is to be told of the photo, for JSON; the CSV has no columns for it.
        """

    def write_unreadable(self, unreadable: Unreadable) -> None:  # noqa: B027  # not every format tells it
        """Write why a photo could not be read, in the formats that tell it: JSON lines."""

    def flush(self) -> None:
        """Pass on what is written, so that an interruption does not lose it."""
        self._stream.flush()


class _JsonTextWriter(ResultWriter):
    """JSON is UTF-8: in a stream of any other encoding it has escapes in place of all but ASCII letters."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        encoding = getattr(stream, "encoding", None)  # a text in memory has none
        self._ascii = encoding is not None and codecs.lookup(encoding).name != "utf-8"

    def _json(self, content: dict[str, Any], indent: int | None = None) -> str:
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=self._ascii)


class JsonLinesWriter(_JsonTextWriter):
    """One line of JSON per photo, also per unreadable one: that has ``source`` and ``error`` alone."""

    def write(self, photo: Photo, besides: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write what was found in a photo."""
        self._stream.write(self._json(photo.to_dict() | dict(besides)) + "\n")

    def write_unreadable(self, unreadable: Unreadable) -> None:
        """Write why a photo could not be read."""
        self._stream.write(self._json({"source": unreadable.source, "error": str(unreadable.error)}) + "\n")


class JsonWriter(_JsonTextWriter):
    """One JSON array with an object per photo."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._separator = "[\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the array, also after an error."""
        self._stream.write("[]\n" if self._separator == "[\n" else "\n]\n")
        self._stream.flush()

    def write(self, photo: Photo, besides: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write what was found in a photo."""
        self._stream.write(self._separator + self._json(photo.to_dict() | dict(besides), indent=1))
        self._separator = ",\n"


class CsvWriter(ResultWriter):
    """One row per face; a photo without a face has one row, whose columns of the face are empty."""

    def __init__(self, stream: TextIO, taxonomy: Taxonomy) -> None:
        super().__init__(stream)
        self._rows = csv.writer(stream, lineterminator="\n")
        self._columns = photo_columns(taxonomy.labels)
        self._rows.writerow(self._columns)

    def write(self, photo: Photo, besides: Mapping[str, Any] = MappingProxyType({})) -> None:  # noqa: ARG002
        """Write what was found in a photo."""
        for row in photo_rows(photo):
            self._rows.writerow(row + [None] * (len(self._columns) - len(row)))


def make_writer(kind: str, stream: TextIO, taxonomy: Taxonomy) -> ResultWriter:
    """Return the writer of a format.

    Args:
        kind: One of :data:`FORMATS`.
        stream: Where to; it stays open.
        taxonomy: The label set of the results.

    Raises:
        FerkitError: If there is no such format.
    """
    if kind == "json":
        return JsonWriter(stream)
    if kind == "jsonl":
        return JsonLinesWriter(stream)
    if kind == "csv":
        return CsvWriter(stream, taxonomy)
    raise FerkitError(f"unknown format {kind!r}; known are {', '.join(FORMATS)}")
