"""Reading FER2013's csv layout: one face per row, as text, strictly checked and fast."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, Taxonomy
from ferkit.data.archives import MAX_TABLE_BYTES, open_table
from ferkit.data.dataset import SPLITS

MAX_LINE_BYTES = 4 << 20
"""A line longer than this is no row of faces (a face of 48 pixels takes 9 KB)."""

MAX_SIDE = 512
"""Faces larger than this do not travel as text."""

_CHUNK_ROWS = 512
_BLANK, _ZERO, _NINE = 32, 48, 9


@dataclass(frozen=True, slots=True)
class FaceTable:
    """What a csv of faces holds.

    Args:
        images: uint8 ``[N, S, S]``.
        labels: int64 ``[N]``.
        split: uint8 ``[N]`` positions in ``SPLITS``, or None where the table has no Usage column.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8] | None


def where(name: str, row: int, line: int) -> str:
    """Name a row for a message; rows are counted from 1, after the header."""
    return f"{name}, row {row} (line {line})"


def rows_of(name: str, stream: IO[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield each line of a csv that is not blank, as its number and its fields without outer blanks.

    Raises:
        DataError: If a line is too long, a quoted field spans lines, or the whole is too large.
    """
    total = 0
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        total += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{name}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; this is no table of faces"
            )
        if total > MAX_TABLE_BYTES:
            raise DataError(
                f"{name}: unpacks to more than {MAX_TABLE_BYTES >> 30} GiB; this is no table of faces"
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # Excel's byte order mark
        line = line.strip()
        if not line:
            continue
        if b'"' in line:
            try:
                text = next(csv.reader(io.StringIO(line.decode("utf-8")), strict=True))
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{name}, line {number}: {error}") from error
            yield number, [field.strip().encode() for field in text]
        else:
            yield number, [field.strip() for field in line.split(b",")]


def parse_pixels(fields: list[bytes], count: int) -> NDArray[np.uint8] | None:
    """Read rows of ``count`` numbers 0..255 with one blank between them; None if any row is not of that form.

    Returns:
        uint8 ``[len(fields), count]``.
    """
    if any(field.count(b" ") != count - 1 for field in fields):
        return None
    text = np.frombuffer(b" ".join(fields), dtype=np.uint8)
    blank = text == _BLANK
    digits = text - np.uint8(_ZERO)
    if not bool(np.all(blank | (digits <= _NINE))):
        return None
    ends = np.append(np.flatnonzero(blank), text.size)
    lengths = np.diff(ends, prepend=-1) - 1
    if int(lengths.min()) < 1 or int(lengths.max()) > 3:
        return None
    values = digits[ends - 1].astype(np.uint16)
    # the indices below 0 that short numbers at the very start give are masked by their length
    values += np.where(lengths > 1, digits[ends - 2], 0).astype(np.uint16) * np.uint16(10)
    values += np.where(lengths > 2, digits[ends - 3], 0).astype(np.uint16) * np.uint16(100)
    if int(values.max()) > 255:
        return None
    pixels: NDArray[np.uint8] = values.astype(np.uint8).reshape(len(fields), count)
    return pixels


def _parse_slowly(field: bytes, count: int, place: str) -> NDArray[np.uint8]:
    """Read one row number by number, and say what is wrong with it."""
    words = field.split()
    if len(words) != count:
        side = math.isqrt(count)
        raise DataError(f"{place}: {len(words)} pixels where {count} ({side}x{side}) were expected")
    for position, word in enumerate(words, 1):
        if len(word) > 3 or not word.isdigit() or int(word) > 255:
            shown = word[:20].decode(errors="replace")
            raise DataError(f"{place}: pixel {position} is {shown!r}; pixels are whole numbers 0..255")
    return np.array([int(word) for word in words], dtype=np.uint8)


def _columns(name: str, header: list[bytes]) -> tuple[int, int, int | None]:
    """Find the columns emotion, pixels and Usage, whatever their order and case."""
    names = [field.decode(errors="replace").strip().lower() for field in header]
    for column in ("emotion", "pixels"):
        if column not in names:
            shown = ", ".join(n[:40] for n in names[:8])
            raise DataError(
                f"{name}, line 1: no column {column!r}; a table of faces has the columns emotion, pixels "
                f"and, where splits are known, Usage. Received: {shown}"
            )
    for column in ("emotion", "pixels", "usage"):
        if names.count(column) > 1:
            raise DataError(f"{name}, line 1: column {column!r} stands {names.count(column)} times")
    return names.index("emotion"), names.index("pixels"), names.index("usage") if "usage" in names else None


def _label(field: bytes, taxonomy: Taxonomy, place: str) -> int:
    """Read a label given as a number or by name."""
    text = field.decode(errors="replace")
    if text.isascii() and text.isdigit() and int(text) < len(taxonomy):
        return int(text)
    if text.lower() in taxonomy.labels:
        return taxonomy.labels.index(text.lower())
    known = ", ".join(f"{k} {label}" for k, label in enumerate(taxonomy.labels))
    raise DataError(f"{place}: unknown label {text[:40]!r}; labels of {taxonomy.id} are {known}")


def read_face_table(path: Path, taxonomy: Taxonomy = FER2013) -> FaceTable:
    """Read a csv of faces in FER2013's layout, plain or packed.

    Columns ``emotion`` (number or name), ``pixels`` (S*S numbers 0..255 with blanks between) and, if
    splits are known, ``Usage``; in any order, with blanks around names; other columns are ignored.

    Raises:
        DataError: If anything is wrong; the message names the file and the row.
    """
    with open_table(path) as (name, stream):
        return _read(name, stream, taxonomy)


def _read(name: str, stream: IO[bytes], taxonomy: Taxonomy) -> FaceTable:
    """Read the whole table from an open stream."""
    lines = rows_of(name, stream)
    first = next(lines, None)
    if first is None:
        raise DataError(f"{name}: is empty; a header line with emotion, pixels and Usage was expected")
    emotion, pixels, usage = _columns(name, first[1])
    columns = len(first[1])
    codes = {split.lower().encode(): k for k, split in enumerate(SPLITS)}
    labels: list[int] = []
    splits: list[int] = []
    chunks: list[NDArray[np.uint8]] = []
    pending: list[bytes] = []
    places: list[tuple[int, int]] = []
    count = 0

    def finish() -> None:
        """Turn the pending rows into pixels."""
        parsed = parse_pixels(pending, count)
        if parsed is None:
            parsed = np.stack(
                [_parse_slowly(f, count, where(name, *p)) for f, p in zip(pending, places, strict=True)]
            )
        chunks.append(parsed)
        pending.clear()
        places.clear()

    for row, (line, fields) in enumerate(lines, 1):
        if len(fields) != columns:
            raise DataError(
                f"{where(name, row, line)}: {len(fields)} fields where the header has {columns}; "
                "the row is broken or the file cut off"
            )
        if not count:
            count = len(fields[pixels].split())
            side = math.isqrt(count)
            if side * side != count or not 8 <= side <= MAX_SIDE:
                raise DataError(
                    f"{where(name, row, line)}: {count} pixels; a square face was expected (48x48 = 2304)"
                )
        pending.append(fields[pixels])
        places.append((row, line))
        place = where(name, row, line)
        labels.append(_label(fields[emotion], taxonomy, place))
        if usage is not None:
            code = codes.get(fields[usage].lower())
            if code is None:
                shown = fields[usage][:40].decode(errors="replace")
                raise DataError(f"{place}: unknown Usage {shown!r}; known are {', '.join(SPLITS)}")
            splits.append(code)
        if len(pending) == _CHUNK_ROWS:
            finish()
    if pending:
        finish()
    if not labels:
        raise DataError(f"{name}: has a header and no row")
    side = math.isqrt(count)
    return FaceTable(
        images=np.concatenate(chunks).reshape(-1, side, side),
        labels=np.array(labels, dtype=np.int64),
        split=None if usage is None else np.array(splits, dtype=np.uint8),
    )
