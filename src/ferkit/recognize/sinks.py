"""Sinks: results of photos or frames written one by one as JSON, JSON lines or CSV."""

from __future__ import annotations

import codecs
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from ferkit.core.errors import FerkitError
from ferkit.recognize.results import Result, Unreadable


class ResultSink(ABC):
    """Writes results into a text stream, which stays open; used as a context manager.

    ``columns`` are those of tables: ``photo_columns`` or ``frame_columns`` of the labels.
    """

    def __init__(self, stream: TextIO, columns: Sequence[str] = ()) -> None:
        self._stream = stream
        self._columns = columns

    def __enter__(self) -> Self:
        """Return the sink."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the document, also after an error."""
        self.flush()

    @abstractmethod
    def write(self, result: Result | Unreadable, **extra: Any) -> None:
        """Write a result.

        Only JSON lines have unreadable photos. ``extra`` are further fields of the JSON object.
        """

    def flush(self) -> None:
        """Flush the stream, so that nothing is lost if the process is killed."""
        self._stream.flush()

    def _json(self, content: dict[str, Any], indent: int | None = None) -> str:
        # JSON is UTF-8, so streams of other encodings get ASCII with escapes. Streams in memory have none.
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        ascii_only = codecs.lookup(encoding).name != "utf-8"
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=ascii_only)


class JSONLinesSink(ResultSink):
    """One line of JSON per result; that of an unreadable photo has only ``source`` and ``error``."""

    def write(self, result: Result | Unreadable, **extra: Any) -> None:
        """Write a result."""
        self._stream.write(self._json(result.to_dict() | extra) + "\n")


class JSONSink(ResultSink):
    """One JSON array with an object per result, without unreadable photos."""

    _separator = "[\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the array, also after an error."""
        self._stream.write("[]\n" if self._separator == "[\n" else "\n]\n")
        self.flush()

    def write(self, result: Result | Unreadable, **extra: Any) -> None:
        """Write a result."""
        if not isinstance(result, Unreadable):
            self._stream.write(self._separator + self._json(result.to_dict() | extra, indent=1))
            self._separator = ",\n"


class CSVSink(ResultSink):
    """One row per face; a result without a face has one row, and an unreadable photo has none."""

    def __init__(self, stream: TextIO, columns: Sequence[str]) -> None:
        super().__init__(stream, columns)
        self._rows = csv.writer(stream, lineterminator="\n")
        self._rows.writerow(columns)

    def write(self, result: Result | Unreadable, **extra: Any) -> None:  # noqa: ARG002
        """Write the rows of a result."""
        if not isinstance(result, Unreadable):
            _, rows = result.table()
            self._rows.writerows(row + [None] * (len(self._columns) - len(row)) for row in rows)


SINKS: dict[str, type[ResultSink]] = {"json": JSONSink, "jsonl": JSONLinesSink, "csv": CSVSink}
"""Every sink by the name of its format."""


def make_sink(name: str, stream: TextIO, columns: Sequence[str]) -> ResultSink:
    """Return the sink of a format; see :class:`ResultSink`.

    Raises:
        FerkitError: If there is no such format.
    """
    if name not in SINKS:
        raise FerkitError(f"unknown format {name!r}; known are {', '.join(SINKS)}")
    return SINKS[name](stream, columns)
