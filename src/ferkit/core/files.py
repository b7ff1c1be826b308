"""Atomic writes, by which a file appears complete or not at all, and other helpers for paths.

All writers raise the errors of :func:`replacing`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ferkit.core.errors import OutputError

_NAME_BYTES = 64  # shortest limit of a temporary file's name
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")


def cache_folder() -> Path:
    """Return the folder for data that can be rebuilt: ``$FERKIT_CACHE``, or one in the user's cache."""
    chosen = os.environ.get("FERKIT_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("ferkit")


def is_hidden(name: str) -> bool:
    """Return whether a file, or a folder above it, is hidden or belongs to an operating system."""
    # PurePosixPath drops the leading "./" of names in some tars.
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in PurePosixPath(name).parts)


class RealPaths:
    """``os.path.realpath`` that resolves each folder only once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str | os.PathLike[str]) -> str:
        """Return the canonical path."""
        folder, name = os.path.split(path)
        # On Windows a file has several names itself: in other case, and a short one.
        if name in ("", os.curdir, os.pardir) or os.name == "nt" or os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it to ``path`` when the block succeeds.

    The temporary file keeps the suffix of ``path``, since some writers choose the format by it. If the block
    raises, the temporary file is removed and ``path`` stays as it was.

    A link stays, and its target is replaced. The new file keeps the permissions of the old one, and its owner
    and group where the system allows it. A device or a named pipe (``/dev/stdout``) stays too: the content is
    copied into it when the block succeeds.

    Raises:
        OutputError: If ``path`` is a folder, its folder cannot be created or written, or the disk is full.
        BrokenPipeError: Raised by the block, which then writes to a pipe as well; it is not converted.
    """
    target = Path(os.path.realpath(path))
    try:
        before = _stat(path)
        mode = None if before is None else before.st_mode
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        special = mode is not None and not stat.S_ISREG(mode)
        folder = Path(tempfile.gettempdir()) if special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / _temporary_name(target, Path(path).suffix)
        # The system applies the umask, which cannot be read without changing it for all threads. A file that
        # gets other permissions later is private until then.
        permissions = 0o666 if mode is None else 0o600
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, permissions))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with output_errors(path, temporary):
            yield temporary
        try:
            if special:
                _copy_into_special_file(temporary, path)
            else:
                _rename_and_keep_owner(temporary, target, before)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_errors(path: str | os.PathLike[str], temporary: str | os.PathLike[str] = "") -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names ``path``.

    Args:
        path: The file or folder that the block writes.
        temporary: The file that it really writes. An error of another file names that file as well.

    Raises:
        OutputError: In place of an OSError.
        BrokenPipeError: Unchanged: the reader of a pipe went away, which the caller handles.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        other = error.filename is not None and str(error.filename) not in (
            os.fspath(path),
            os.fspath(temporary),
        )
        why = f"{error.filename}: " if other else ""
        raise OutputError(f"cannot write {path}: {why}{error.strerror or error}") from error


def _temporary_name(target: Path, suffix: str) -> str:
    """Return an unused name, no longer than the name of ``target`` or 64 bytes."""
    stem, end = target.stem, f"-{secrets.token_hex(8)}{suffix}"
    limit = max(_NAME_BYTES, len(os.fsencode(target.name)))
    while stem and len(os.fsencode(f".{stem}{end}")) > limit:
        stem = stem[:-1]
    return f".{stem}{end}"


def _rename_and_keep_owner(temporary: Path, target: Path, before: os.stat_result | None) -> None:
    """Sync a file to disk and rename it, with the owner and permissions of the file that it replaces."""
    with temporary.open("r+b") as written:  # Windows syncs only files that are open for writing
        os.fsync(written.fileno())
    if before is not None:
        if hasattr(os, "chown"):  # not on Windows
            for owner in (before.st_uid, -1):  # only the administrator may change the owner
                with contextlib.suppress(OSError):  # and some file systems have none
                    os.chown(temporary, owner, before.st_gid)
                    break
        temporary.chmod(before.st_mode & 0o777)
    temporary.replace(target)


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return the status of a file, or of the target of a link; None if there is none."""
    try:
        return os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None


def _copy_into_special_file(source: Path, path: str | os.PathLike[str]) -> None:
    """Copy a file's content into a device or a pipe."""
    # By the path as given, since the pipe behind /dev/stdout has no path of its own. Without O_CREAT, which
    # Linux refuses for other users' pipes in folders like /tmp.
    with source.open("rb") as content, os.fdopen(os.open(path, os.O_WRONLY), "wb") as stream:
        shutil.copyfileobj(content, stream)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    r"""Write ``content`` to ``path`` as UTF-8 atomically.

    Undecodable bytes of file names are written as escapes such as ``\udce9``, which JSON reads back.
    """
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON atomically; numbers that are not finite are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(
    path: str | os.PathLike[str],
    rows: Iterable[Sequence[Any] | Mapping[str, Any]],
    columns: Sequence[str],
) -> None:
    """Write a table as CSV atomically: the names of the columns, then a line per row.

    Rows are values in the order of the columns, or by their names; missing ones are empty.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row.get(name, "") for name in columns] if isinstance(row, Mapping) else row)
    write_text(path, text.getvalue())
