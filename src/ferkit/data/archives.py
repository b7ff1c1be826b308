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
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ferkit.core.errors import DataError
from ferkit.core.files import is_hidden
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
        UnicodeDecodeError,  # a name in a zip
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


def _files(path: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Yield name, size and an opener of each file in a folder, a zip or a tar, in the order of storage.

    Names have ``/`` between folders. An empty folder in a folder is listed too; its name ends with ``/``.
    Links in folders are followed down to :data:`MAX_DEPTH`. Sizes of files in folders are 0.
    """
    kind = source_kind(path)
    if kind == "folder":

        def refuse(error: OSError) -> None:
            raise error

        for parent, folders, files in os.walk(path, followlinks=True, onerror=refuse):
            inside = Path(parent).relative_to(path).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            for file in files if files or folders else [""]:
                yield prefix + file, 0, partial(cast(Any, Path(parent, file).open), "rb")
            if prefix.count("/") >= MAX_DEPTH:
                folders.clear()
    elif kind == "zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.replace("\\", "/")  # some programs on Windows write backslashes
                if not name.endswith("/"):
                    yield name, info.file_size, partial(archive.open, info)
    elif kind == "tar":
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                if member.isfile():
                    yield member.name, member.size, partial(cast(Any, tar.extractfile), member)
    else:
        raise DataError(f"{path}: a folder, a .zip or a tar was expected. Received: {kind}")


def list_members(path: Path) -> list[str]:
    """List the files in a folder, a zip or a tar.

    Returns:
        Sorted names relative to ``path`` with ``/`` between folders, without hidden files. An empty folder in
        a folder is listed too; its name ends with ``/``.

    Raises:
        DataError: If the archive is damaged, or exceeds a limit.
    """
    names: list[str] = []
    total = 0
    with data_errors(path):
        for name, size, _ in _files(path):
            names.append(name)
            total += size
            if len(names) > MAX_MEMBERS:
                raise DataError(f"{path}: holds more than {MAX_MEMBERS} files, the limit of a dataset")
            if total > MAX_TOTAL_BYTES:
                raise DataError(
                    f"{path}: unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB, the limit of an archive"
                )
    return sorted(name for name in names if name and not is_hidden(name))


def read_members(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of a folder, a zip or a tar, one at a time, in the order of storage.

    Yields:
        Name and content.

    Raises:
        DataError: If a file cannot be read, or exceeds the limit of a picture.
    """
    wanted = set(names)
    with data_errors(path):
        for name, _, opener in _files(path):
            if name in wanted:
                wanted.discard(name)  # a tar may hold a name twice
                with data_errors(path / name), opener() as stream:
                    content = _read_limited(path, name, stream)
                yield name, content


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
    with data_errors(path):
        if kind == "csv":
            with path.open("rb") as raw:
                unpack = _DECOMPRESSORS.get(file_type(raw.read(HEAD_BYTES)), partial(io.FileIO, mode="rb"))
            with unpack(path) as stream:
                yield str(path), io.BufferedReader(stream, 1 << 20)
            return
        chosen = _choose_table(path, list_members(path))
        for name, size, opener in _files(path):
            if name == chosen:
                if size > MAX_TABLE_BYTES:
                    raise DataError(f"{path}: {name!r} unpacks to more than {MAX_TABLE_BYTES >> 30} GiB")
                with opener() as stream:
                    yield f"{path}:{name}", stream
                return


def _choose_table(path: Path, names: Sequence[str]) -> str:
    """Return the one csv among the names, or the one of them with a known name."""
    tables = [n for n in names if n.lower().endswith(".csv")]
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
