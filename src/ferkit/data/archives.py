"""Opening what data sets travel in: plain files, .gz, .xz, .zip and tar archives, read without unpacking to disk."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from ferkit.errors import DataError

MAX_TABLE_BYTES = 4 << 30
"""A table that unpacks to more than this is refused (FER2013 is 0.3 GB)."""

KNOWN_TABLES = ("fer2013.csv", "icml_face_data.csv")
"""Names that win where an archive holds several tables."""

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""What the standard library raises on archives that are cut off or damaged."""


def is_tar(path: Path) -> bool:
    """Tell by its name whether ``path`` is a tar archive."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def is_zip(path: Path) -> bool:
    """Tell by its name whether ``path`` is a zip archive."""
    return path.name.lower().endswith(".zip")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading ``path`` into one :class:`DataError` that names it."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"{path}: the archive is damaged or cut off ({error}); fetch or copy it again"
        ) from error
    except NotImplementedError as error:
        raise DataError(f"{path}: {error}; pack it again with the usual compression") from error
    except RuntimeError as error:
        # zipfile says so, in a bare RuntimeError, of members that are encrypted
        raise DataError(f"{path}: {error}; unpack it first") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_member_name(path: Path, name: str) -> None:
    """Refuse archive members whose names point outside the archive.

    Raises:
        DataError: If the name is absolute or climbs with ``..``.
    """
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (pure.parts and pure.parts[0].endswith(":")):
        raise DataError(f"{path}: member {name!r} points outside the archive; such an archive is refused")


def is_hidden(name: str) -> bool:
    """Tell whether an archive member is bookkeeping of macOS or a hidden file."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def choose_table(path: Path, names: list[str]) -> str:
    """Choose the one table among an archive's member names.

    Raises:
        DataError: If there is none, or more than one and not exactly one of a known name.
    """
    tables = [n for n in names if n.lower().endswith(".csv") and not is_hidden(n)]
    if not tables:
        raise DataError(f"{path}: holds no .csv file; it holds {_some(names)}")
    if len(tables) == 1:
        return tables[0]
    known = [n for n in tables if PurePosixPath(n).name.lower() in KNOWN_TABLES]
    if len(known) == 1:
        return known[0]
    raise DataError(
        f"{path}: holds {len(tables)} .csv files ({_some(tables)}); unpack it and name the one that is meant"
    )


def _some(names: list[str]) -> str:
    """List a few names for a message."""
    if not names:
        return "nothing"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Open the one table in ``path`` for reading bytes.

    Yields:
        The table's name for messages (``archive.zip:fer2013.csv`` inside an archive) and the stream.

    Raises:
        DataError: If the file cannot be read, is damaged, or does not hold exactly one table.
    """
    with explained(path), contextlib.ExitStack() as stack:
        if is_tar(path):
            # a tar has no index: one pass for the names, one to the table
            with tarfile.open(path, "r:*") as archive:
                names = [m.name for m in archive if m.isfile()]
            for name in names:
                check_member_name(path, name)
            chosen = choose_table(path, names)
            archive = stack.enter_context(tarfile.open(path, "r:*"))
            member = archive.extractfile(chosen)
            if member is None:
                raise DataError(f"{path}: {chosen!r} is not a plain file")
            yield f"{path}:{chosen}", io.BufferedReader(stack.enter_context(member), 1 << 20)  # type: ignore[arg-type]
        elif is_zip(path):
            zipped = stack.enter_context(zipfile.ZipFile(path))
            infos = {i.filename: i for i in zipped.infolist() if not i.is_dir()}
            for name in infos:
                check_member_name(path, name)
            chosen = choose_table(path, list(infos))
            if infos[chosen].file_size > MAX_TABLE_BYTES:
                raise DataError(f"{path}: {chosen!r} says it unpacks to {infos[chosen].file_size} bytes; too large")
            yield f"{path}:{chosen}", stack.enter_context(zipped.open(infos[chosen]))
        elif path.name.lower().endswith(".gz"):
            yield str(path), stack.enter_context(gzip.open(path, "rb"))
        elif path.name.lower().endswith(".xz"):
            yield str(path), stack.enter_context(lzma.open(path, "rb"))
        else:
            yield str(path), stack.enter_context(path.open("rb", buffering=1 << 20))
