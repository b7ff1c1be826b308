"""Reading what data sets travel in: files, folders, .gz, .xz, .zip and tar, nothing unpacked to disk."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ferkit.core.errors import DataError

MAX_TABLE_BYTES = 4 << 30
"""A table that unpacks to more than this is refused (FER2013 is 0.3 GB)."""

MAX_MEMBERS = 2_000_000
"""An archive or folder with more files is refused."""

MAX_IMAGE_BYTES = 64 << 20
"""A picture file that is larger is refused."""

_SMALL = 1 << 16

MAX_TOTAL_BYTES = 64 << 30
"""An archive of pictures that unpacks to more than this is refused."""

MAX_DEPTH = 6
"""Folders deeper than this are not looked into."""

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
    # A path drops the leading "./" that `tar czf x.tgz .` writes.
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


def list_members(path: Path) -> list[str]:
    """List the files in a folder, a zip or a tar: names relative to it, sorted, without hidden ones.

    Raises:
        DataError: If the archive is damaged, too large, or a name points outside it.
    """
    with explained(path):
        if path.is_dir():
            names = _walk(path)
        elif is_zip(path):
            with zipfile.ZipFile(path) as zipped:
                infos = [i for i in zipped.infolist() if not i.is_dir()]
            check_total(path, len(infos), sum(i.file_size for i in infos))
            names = [i.filename for i in infos]
        elif is_tar(path):
            names = _list_tar(path)
        else:
            raise DataError(f"{path}: a folder, a .zip or a .tar was expected")
    if not path.is_dir():
        for name in names:
            check_member_name(path, name)
    return sorted(name for name in names if not is_hidden(name))


def _walk(path: Path) -> list[str]:
    """List the files below a folder; links are followed, and the limit of depth keeps them from circling."""
    names: list[str] = []

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        inside = Path(parent).relative_to(path)
        if len(inside.parts) >= MAX_DEPTH:
            folders.clear()
        prefix = "" if inside == Path() else f"{inside.as_posix()}/"
        names.extend(prefix + file for file in files)
        check_total(path, len(names), 0)
    return names


def _list_tar(path: Path) -> list[str]:
    """List a tar, stopping as soon as it grows too large."""
    names = []
    total = 0
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if member.isfile():
                names.append(member.name)
                total += member.size
                check_total(path, len(names), total)
    return names


def check_total(path: Path, count: int, size: int) -> None:
    """Refuse archives that unpack to more than any data set of faces holds.

    Raises:
        DataError: If there are more files or bytes than the limits.
    """
    if count > MAX_MEMBERS:
        raise DataError(f"{path}: holds more than {MAX_MEMBERS} files; this is no set of faces")
    if size > MAX_TOTAL_BYTES:
        raise DataError(
            f"{path}: says it unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB; such an archive is refused"
        )


def read_members(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of a folder, a zip or a tar, one at a time, in whatever order is cheapest.

    Yields:
        Name and content.

    Raises:
        DataError: If one cannot be read, or is larger than a picture may be.
    """
    with explained(path):
        if path.is_dir():
            for name in names:
                with explained(path / name), (path / name).open("rb") as stream:
                    yield name, _read_limited(path, name, stream)
        elif is_zip(path):
            with zipfile.ZipFile(path) as zipped:
                for name in names:
                    with zipped.open(name) as stream:
                        yield name, _read_limited(path, name, stream)
        else:
            wanted = set(names)
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    stream_or_none = archive.extractfile(member) if member.name in wanted else None
                    if stream_or_none is not None:
                        wanted.discard(member.name)
                        yield member.name, _read_limited(path, member.name, stream_or_none)


def _read_limited(path: Path, name: str, stream: IO[bytes]) -> bytes:
    """Read one file, whatever size its archive says it has, up to the limit."""
    # asked for all at once, the limit's own size would be set aside for every small file
    content = stream.read(_SMALL)
    if len(content) == _SMALL:
        content += stream.read(MAX_IMAGE_BYTES + 1 - _SMALL)
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(
            f"{path}: {name!r} is larger than {MAX_IMAGE_BYTES >> 20} MiB; such a picture is refused"
        )
    return content


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
            names = _list_tar(path)
            for name in names:
                check_member_name(path, name)
            chosen = choose_table(path, names)
            archive = stack.enter_context(tarfile.open(path, "r:*"))
            member = archive.extractfile(chosen)
            if member is None:
                raise DataError(f"{path}: {chosen!r} is not a plain file")
            yield f"{path}:{chosen}", stack.enter_context(member)
        elif is_zip(path):
            zipped = stack.enter_context(zipfile.ZipFile(path))
            infos = {i.filename: i for i in zipped.infolist() if not i.is_dir()}
            for name in infos:
                check_member_name(path, name)
            chosen = choose_table(path, list(infos))
            if infos[chosen].file_size > MAX_TABLE_BYTES:
                raise DataError(
                    f"{path}: {chosen!r} says it unpacks to {infos[chosen].file_size} bytes; too large"
                )
            yield f"{path}:{chosen}", stack.enter_context(zipped.open(infos[chosen]))
        elif path.name.lower().endswith(".gz"):
            yield str(path), cast(IO[bytes], stack.enter_context(gzip.open(path, "rb")))
        elif path.name.lower().endswith(".xz"):
            yield str(path), stack.enter_context(lzma.open(path, "rb"))
        else:
            yield str(path), stack.enter_context(path.open("rb", buffering=1 << 20))
