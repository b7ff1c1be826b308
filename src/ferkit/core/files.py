"""Writing files so that a reader, or a crash, never meets half of one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ferkit.core.errors import OutputError

_ROOM = 64  # bytes that the name of a temporary file may have however short that of its target is


def cache_folder() -> Path:
    """Return the folder for what can be rebuilt at any time: ``$FERKIT_CACHE`` or one in the user's cache."""
    chosen = os.environ.get("FERKIT_CACHE")
    if chosen:
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("ferkit")


class RealPaths:
    """``os.path.realpath``, which asks the system for every part of a path, but for each folder only once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str | os.PathLike[str]) -> str:
        """Return the one path of what may be reached by several."""
        folder, name = os.path.split(path)
        # On Windows a file itself has several names: of other letters, and a short one.
        if name in ("", os.curdir, os.pardir) or os.name == "nt" or os.path.islink(path):  # noqa: PTH114
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block ends well.

    The temporary file keeps the suffix of ``path``, since some writers choose the format by it. If the
    block raises, the temporary file is removed and ``path`` is as it was.

    A link stays, and what it leads to is replaced. A file that is replaced hands on its rights, and
    its owner and group where the system allows that. What is neither file nor folder (a device such as
    ``/dev/stdout``, a named pipe) stays too: the content is written into it when the block ends well.

    Raises:
        OutputError: If the folder cannot be made or written, or the disk is full.
        BrokenPipeError: As it comes from the block: the temporary file is no pipe, so it is another stream's.
    """
    target = Path(os.path.realpath(path))
    try:
        before = _state(path)
        mode = None if before is None else before.st_mode
        special = mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        folder = Path(tempfile.gettempdir()) if special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / _temporary_name(target, Path(path).suffix)
        # The system takes the umask off: to ask for it is to change it, for all threads. What is to get other
        # rights, or lies in a folder of all users, is nobody else's until then.
        rights = 0o666 if mode is None else 0o600
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, rights))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with blaming(path, known=temporary):
            yield temporary
        try:
            if special:
                _pour(temporary, path)
            else:
                _put(temporary, target, before)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def blaming(path: str | os.PathLike[str], *, known: str | os.PathLike[str] = "") -> Iterator[None]:
    """Explain what the system refuses within the block as an error of ``path``.

    Args:
        path: What is written.
        known: The file that really is. An error that names neither is told with the name it has.

    Raises:
        OutputError: In place of an OSError.
        BrokenPipeError: As it comes: who reads went away, and whoever started the work knows what that means.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        named = error.filename is not None and str(error.filename) not in (os.fspath(path), os.fspath(known))
        why = f"{error.filename}: " if named else ""
        raise OutputError(f"cannot write {path}: {why}{error.strerror or error}") from error


def _temporary_name(target: Path, suffix: str) -> str:
    """Return a name that nothing has; it is too long for the system where that of ``target`` is."""
    stem, end = target.stem, f"-{secrets.token_hex(8)}{suffix}"
    room = max(_ROOM, len(os.fsencode(target.name)))
    while stem and len(os.fsencode(f".{stem}{end}")) > room:
        stem = stem[:-1]
    return f".{stem}{end}"


def _put(temporary: Path, target: Path, before: os.stat_result | None) -> None:
    """Bring a file to disk and give it its name, and owner and rights of what was there before."""
    with temporary.open("r+b") as written:  # Windows refuses it for what is open for reading alone
        os.fsync(written.fileno())
    if before is not None:
        _hand_over(temporary, before.st_uid, before.st_gid)
        temporary.chmod(before.st_mode & 0o777)
    temporary.replace(target)


def _hand_over(path: Path, owner: int, group: int) -> None:
    """Give a file to an owner and a group, or to the group alone, as far as the system allows it."""
    if not hasattr(os, "chown"):  # Windows
        return
    for wanted in (owner, -1):
        # Only the administrator may give files away, and some file systems have no owners.
        with contextlib.suppress(OSError):
            os.chown(path, wanted, group)
            return


def _state(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return what the system says of what is at ``path``, of a link of its end; None if nothing is."""
    try:
        return os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None


def _pour(source: Path, path: str | os.PathLike[str]) -> None:
    """Write a file's content into something special that exists."""
    # Not by the path that links lead to: that of a pipe behind /dev/stdout cannot be opened. And without
    # O_CREAT, which Linux refuses for other people's pipes in a folder like /tmp.
    with source.open("rb") as content, os.fdopen(os.open(path, os.O_WRONLY), "wb") as stream:
        shutil.copyfileobj(content, stream)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` in one step.

    Raises:
        OutputError: As :func:`replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    r"""Write ``content`` to ``path`` as UTF-8 in one step.

    What no encoding has, as in file names that are no text, becomes an escape like ``\udce9``, which JSON
    reads back as it was.

    Raises:
        OutputError: As :func:`replacing`.
    """
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON in one step; numbers that are not finite are refused.

    Raises:
        OutputError: As :func:`replacing`.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
