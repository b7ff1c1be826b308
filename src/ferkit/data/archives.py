"""Files in folders and archives: their type by content, their names, and reading them within limits."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ferkit.core.errors import DataError
from ferkit.core.filetypes import HEAD_BYTES, file_type
from ferkit.core.images import READABLE

MAX_TABLE_BYTES = 4 << 30
"""Limit of an unpacked table (FER2013 has 0.3 GB)."""

MAX_MEMBERS = 2_000_000
"""Limit of files in an archive or folder."""

MAX_IMAGE_BYTES = 64 << 20
"""Limit of an unpacked picture file."""

MAX_TOTAL_BYTES = 64 << 30
"""Limit of all unpacked files of an archive."""

MAX_DEPTH = 6
"""Folders below this depth are not searched."""

KNOWN_TABLES = ("fer2013.csv", "icml_face_data.csv")
"""The table that is read where an archive holds several."""

_SMALL = 1 << 16
_DECOMPRESSORS: dict[str, Any] = {"gzip": gzip.GzipFile, "xz": lzma.LZMAFile, "bzip2": bz2.BZ2File}
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
_ADVICE = {
    **dict.fromkeys(READABLE, "name the folder with one folder of pictures per label"),
    **dict.fromkeys(("RAR", "7z", "Zstandard"), "unpack it and name what it holds"),
    "pickle": "ferkit opens no pickles, since they can run code; save a .csv, .parquet or .npz",
    "web page": "the download failed or needs a login; fetch the file again",
    "Git LFS pointer": "fetch the file itself with git lfs pull",
}


@contextlib.contextmanager
def data_errors(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a file or archive into a :class:`DataError` that names ``path``."""
    try:
        yield
    except (
        EOFError,
        zlib.error,
        gzip.BadGzipFile,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            f"{path}: the file is damaged or truncated ({error}); fetch or copy it again"
        ) from error
    except NotImplementedError as error:
        raise DataError(f"{path}: {error}; pack it again with the usual compression") from error
    except RuntimeError as error:  # zipfile's exception for encrypted members
        raise DataError(f"{path}: {error}; unpack it first") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def source_kind(path: Path) -> str:
    """Return what a source is by its content: ``folder``, ``zip``, ``tar``, ``npz``, ``parquet`` or ``csv``.

    A compressed csv counts as ``csv``. The suffix matters for ``.npz`` only.

    Raises:
        DataError: If the file cannot be read or is of another type; the message names the type.
    """
    if path.is_dir():
        return "folder"
    if path.name.lower().endswith(".npz"):
        return "npz"
    with data_errors(path):
        with path.open("rb") as stream:
            head = stream.read(_SMALL)
        found = file_type(head[:HEAD_BYTES])
        if unpack := _DECOMPRESSORS.get(found):
            with unpack(path) as stream:
                head = stream.read(_SMALL)
            inside = file_type(head[:HEAD_BYTES])
            if inside not in ("tar", ""):
                raise DataError(
                    f"{path}: holds a file of type {inside}, packed with {found}; unpack it first"
                )
            found = inside
        if found == "zip":
            with zipfile.ZipFile(path) as archive:
                return "npz" if any(name.endswith(".npy") for name in archive.namelist()) else "zip"
    if found in ("tar", "Parquet"):
        return found.lower()
    if found in ("", "BMP") and b"\0" not in head:  # a header may begin with the letters BM
        return "csv"
    advice = _ADVICE.get(found, "save it as .csv (UTF-8), .parquet or .npz (images, labels, split, taxonomy)")
    what = f"of type {found}" if found else "binary, of an unknown type"
    raise DataError(
        f"{path}: the file is {what}; a csv, a Parquet file, an .npz, a .zip or a tar was expected: {advice}"
    )


def is_hidden(name: str) -> bool:
    """Return whether a file, or a folder above it, is hidden or belongs to an operating system."""
    # PurePosixPath drops the leading "./" of names in some tars.
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in PurePosixPath(name).parts)


def list_members(path: Path) -> list[str]:
    """List the files in a folder, a zip or a tar.

    Returns:
        Sorted names relative to ``path`` with ``/`` between folders, without hidden files. An empty folder is
        listed as well; its name ends with ``/``.

    Raises:
        DataError: If the archive is damaged, or exceeds a limit.
    """
    kind = source_kind(path)
    with data_errors(path):
        if kind == "folder":
            names = _list_folder(path)
        elif kind == "zip":
            with zipfile.ZipFile(path) as archive:
                members = _zip_members(archive)
            _check_total(path, len(members), sum(info.file_size for info in members.values()))
            names = list(members)
        elif kind == "tar":
            names = _list_tar(path)
        else:
            raise DataError(f"{path}: a folder, a .zip or a tar was expected")
    return sorted(name for name in names if not is_hidden(name))


def _list_folder(path: Path) -> list[str]:
    """List the files below a folder and its empty folders; links are followed down to the limit of depth."""
    names: list[str] = []

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        inside = Path(parent).relative_to(path)
        prefix = "" if inside == Path() else f"{inside.as_posix()}/"
        names += [prefix + file for file in files] if files or folders else [prefix]
        if len(inside.parts) >= MAX_DEPTH:
            folders.clear()
        _check_total(path, len(names), 0)
    return [name for name in names if name]


def _list_tar(path: Path) -> list[str]:
    """List the files of a tar, and stop at the limits."""
    names = []
    total = 0
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if member.isfile():
                names.append(member.name)
                total += member.size
                _check_total(path, len(names), total)
    return names


def _zip_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a zip by name; some programs on Windows write backslashes."""
    members = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
    return {name: info for name, info in members.items() if not name.endswith("/")}


def _check_total(path: Path, count: int, size: int) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"{path}: holds more than {MAX_MEMBERS} files, the limit of a dataset")
    if size > MAX_TOTAL_BYTES:
        raise DataError(f"{path}: unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB, the limit of an archive")


def read_members(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of a folder, a zip or a tar, one at a time, in the order that is cheapest.

    Yields:
        Name and content.

    Raises:
        DataError: If a file cannot be read, or exceeds the limit of a picture.
    """
    kind = source_kind(path)
    with data_errors(path), contextlib.ExitStack() as stack:
        if kind == "folder":
            for name in names:
                with data_errors(path / name), (path / name).open("rb") as stream:
                    yield name, _read_limited(path, name, stream)
        elif kind == "zip":
            zipped = stack.enter_context(zipfile.ZipFile(path))
            members = _zip_members(zipped)
            for name in names:
                with zipped.open(members[name]) as stream:
                    yield name, _read_limited(path, name, stream)
        else:
            wanted = set(names)
            archive = stack.enter_context(tarfile.open(path, "r:*"))
            for member in archive:
                content = archive.extractfile(member) if member.name in wanted else None
                if content is not None:
                    wanted.discard(member.name)
                    yield member.name, _read_limited(path, member.name, content)


def _read_limited(path: Path, name: str, stream: IO[bytes]) -> bytes:
    """Read one file up to the limit, whatever size the archive states."""
    # A single read of the limit would allocate that much for every small file.
    content = stream.read(_SMALL)
    if len(content) == _SMALL:
        content += stream.read(MAX_IMAGE_BYTES + 1 - _SMALL)
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(
            f"{path}: {name!r} is larger than {MAX_IMAGE_BYTES >> 20} MiB, the limit of a picture file"
        )
    return content


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Open the csv that a file is or holds.

    Yields:
        The table's name for messages (``archive.zip:fer2013.csv`` inside an archive) and the stream.

    Raises:
        DataError: If the file cannot be read, is damaged, or does not hold exactly one table.
    """
    kind = source_kind(path)
    with data_errors(path), contextlib.ExitStack() as stack:
        if kind == "zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = _zip_members(archive)
            chosen = _choose_table(path, list(members))
            if members[chosen].file_size > MAX_TABLE_BYTES:
                raise DataError(f"{path}: {chosen!r} unpacks to more than {MAX_TABLE_BYTES >> 30} GiB")
            yield f"{path}:{chosen}", stack.enter_context(archive.open(members[chosen]))
        elif kind == "tar":
            chosen = _choose_table(path, _list_tar(path))
            stream = stack.enter_context(tarfile.open(path, "r:*")).extractfile(chosen)
            assert stream is not None  # _list_tar lists plain files only
            yield f"{path}:{chosen}", stack.enter_context(stream)
        elif kind == "csv":
            with path.open("rb") as stream:
                packing = file_type(stream.read(HEAD_BYTES))
            opener = _DECOMPRESSORS.get(packing, partial(io.FileIO, mode="rb"))
            yield str(path), io.BufferedReader(stack.enter_context(opener(path)), 1 << 20)
        else:
            raise DataError(f"{path}: a csv, plain or packed, was expected. Received: {kind}")


def _choose_table(path: Path, names: Sequence[str]) -> str:
    """Return the one csv among the names, or the one of them with a known name."""
    tables = [n for n in names if n.lower().endswith(".csv") and not is_hidden(n)]
    known = [n for n in tables if PurePosixPath(n).name.lower() in KNOWN_TABLES]
    if not tables:
        raise DataError(f"{path}: holds no .csv file; it holds {name_some(names, 4)}")
    if len(tables) == 1 or len(known) == 1:
        return (known or tables)[0]
    raise DataError(
        f"{path}: holds {len(tables)} .csv files ({name_some(tables, 4)}); unpack it and name one of them"
    )


def name_some(names: Sequence[Any], count: int = 10) -> str:
    """Return up to ``count`` names and the number of the others, for a message."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return (", ".join(map(str, names[:count])) or "nothing") + more
