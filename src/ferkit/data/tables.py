"""The reader of csv files in FER2013's layout: one face per row, its pixels as text."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013
from ferkit.data.archives import MAX_TABLE_BYTES, name_some, open_table
from ferkit.data.dataset import SPLITS, FaceDataset
from ferkit.data.holdout import name_splits
from ferkit.data.labels import label_column

MAX_LINE_BYTES = 4 << 20
"""Limit of a line (a face of 48 pixels takes 9 KB)."""

MAX_SIDE = 512
"""Largest side in pixels of a face in a table."""


def place_of(name: str, row: int, line: int) -> str:
    """Return the place of a row for messages; rows are counted from 1, after the header."""
    return f"{name}, row {row} (line {line})"


def rows_of(name: str, stream: IO[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of each line that is not blank, and its fields without outer blanks.

    Raises:
        DataError: If a line is too long, a quoted field spans lines, or the table is too large.
    """
    total = 0
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        total += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{name}, line {number}: is longer than {MAX_LINE_BYTES >> 20} MiB; no csv of faces"
            )
        if total > MAX_TABLE_BYTES:
            raise DataError(f"{name}: unpacks to more than {MAX_TABLE_BYTES >> 30} GiB, the limit of a table")
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


def header_of(name: str, rows: Iterator[tuple[int, list[bytes]]], needed: Sequence[str]) -> list[str]:
    """Read the header line: the names of the columns in lower case.

    Raises:
        DataError: If the table is empty, a needed column is missing, or one is repeated.
    """
    _, fields = next(rows, (0, []))
    header = [field.decode(errors="replace").lower() for field in fields]
    expected = f"the columns {', '.join(needed)} were expected"
    if not header:
        raise DataError(f"{name}: is empty; {expected}")
    for column in needed:
        if column.lower() not in header:
            received = name_some([column[:40] for column in header], 12)
            raise DataError(f"{name}, line 1: no column {column!r}; {expected}. Received: {received}")
    for column in (*needed, "Usage"):
        if header.count(column.lower()) > 1:
            raise DataError(f"{name}, line 1: column {column!r} appears {header.count(column.lower())} times")
    return header


def split_column(field: bytes, place: str) -> int:
    """Return the code of a split from the column Usage, in any case.

    Raises:
        DataError: If there is no such split.
    """
    name = field.decode(errors="replace")
    for code, split in enumerate(SPLITS):
        if name.lower() == split.lower():
            return code
    raise DataError(f"{place}: unknown Usage {name[:40]!r}; known are {', '.join(SPLITS)}")


def parse_pixels(text: bytes | str, count: int) -> NDArray[np.uint8] | None:
    """Parse ``count`` numbers 0..255 with blanks between them; None if the text is anything else.

    Returns:
        uint8 ``[count]``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            values = np.fromstring(text, np.int64, sep=" ")
        except (ValueError, DeprecationWarning):  # anything but numbers; a later NumPy raises ValueError
            return None
    if len(values) != count or int(values.min()) < 0 or int(values.max()) > 255:
        return None
    return values.astype(np.uint8)


def pixel_error(text: bytes | str, count: int) -> str:
    """Return what is wrong with the pixels of a face of ``count`` pixels."""
    words = (text.decode(errors="replace") if isinstance(text, bytes) else text).split()
    side = math.isqrt(count)
    if len(words) != count:
        return f"{len(words)} pixels; {count} ({side}x{side}) were expected"
    for position, word in enumerate(words, 1):
        if not word.isdigit() or int(word) > 255:
            return f"pixel {position} is {word[:20]!r}; pixels must be whole numbers 0..255"
    return f"pixels must be {count} whole numbers 0..255"


def square_side(count: int, place: str) -> int:
    """Return the side of a square face of ``count`` pixels.

    Raises:
        DataError: If it is no square, or smaller than 8 or larger than :data:`MAX_SIDE` pixels.
    """
    side = math.isqrt(count)
    if side * side != count or not 8 <= side <= MAX_SIDE:
        raise DataError(f"{place}: {count} pixels; a square face was expected, such as 48x48 = 2304")
    return side


def read_face_table(path: Path) -> FaceDataset:
    """Read a csv in FER2013's layout, plain or packed.

    Columns, in any order and case: ``emotion`` (number or name), ``pixels`` (S*S numbers 0..255 with blanks
    between) and, optionally, ``Usage`` (the split). Other columns are ignored. Where no row is PublicTest, a
    part of Training is held out as it.

    Raises:
        DataError: If a value is invalid; the message names file and row.
    """
    with open_table(path) as (name, stream):
        return _read(name, stream)


def _read(name: str, stream: IO[bytes]) -> FaceDataset:
    rows = rows_of(name, stream)
    header = header_of(name, rows, ("emotion", "pixels"))
    emotion, pixels = header.index("emotion"), header.index("pixels")
    usage = header.index("usage") if "usage" in header else None
    labels: list[int] = []
    splits: list[int] = []
    images: list[NDArray[np.uint8]] = []
    count = 0
    for row, (line, fields) in enumerate(rows, 1):
        place = place_of(name, row, line)
        if len(fields) != len(header):
            raise DataError(
                f"{place}: {len(fields)} fields where the header has {len(header)}; the row is invalid or "
                "the file truncated"
            )
        if not count:
            count = len(fields[pixels].split())
            square_side(count, place)
        face = parse_pixels(fields[pixels], count)
        if face is None:
            raise DataError(f"{place}: {pixel_error(fields[pixels], count)}")
        images.append(face)
        labels.append(label_column(fields[emotion].decode(errors="replace"), FER2013, place))
        splits.append(0 if usage is None else split_column(fields[usage], place))
    if not images:
        raise DataError(f"{name}: has a header and no row")
    side = math.isqrt(count)
    faces = np.stack(images).reshape(-1, side, side)
    columns = np.array(labels, np.int64)
    split, named = name_splits(faces, columns, np.array(splits, np.uint8))
    return FaceDataset(faces, columns, split, FER2013, split_named=named, in_rows=True)
