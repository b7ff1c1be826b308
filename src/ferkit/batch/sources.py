"""Find the photos that a user names: files, folders, patterns, lists, standard input."""

from __future__ import annotations

import codecs
import glob
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from ferkit.batch import STDIN
from ferkit.batch.copies import read_signature
from ferkit.core.errors import ImageError
from ferkit.core.files import RealPaths, is_hidden
from ferkit.core.images import SUFFIXES, is_url

_UNSUPPORTED = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".psd"),  # of phones, browsers, editors
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".mrw", ".nef", ".nrw", ".orf", ".pef"),  # raw
    *(".raf", ".raw", ".rw2", ".rwl", ".srw", ".x3f"),
)


def read_list(content: bytes) -> list[str]:
    r"""Return the paths in a list of files: one a line, or separated by NUL bytes if it has any.

    Empty lines are ignored. Each path is that of a file: ``-``, ``*`` and ``[`` have no special meaning.
    The encoding is that of the system's file names, or UTF-16 after its byte order mark (PowerShell).

    Raises:
        UnicodeDecodeError: If UTF-16 is invalid.

    Example:
        >>> read_list(b"a.jpg\r\n\nb 1.jpg\n"), read_list(b"./a.jpg\0./b\n1.jpg\0")
        (['a.jpg', 'b 1.jpg'], ['./a.jpg', './b\n1.jpg'])
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    else:
        text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    names = text.split("\0") if "\0" in text else [line.rstrip("\r") for line in text.split("\n")]
    # "-" alone would mean standard input.
    return ["./-" if name == STDIN else name for name in names if name]


def find_photos(
    names: Iterable[str],
    *,
    listed: Iterable[str] = (),
    leave_out: str | os.PathLike[str] | None = None,
    passed_over: dict[str, int] | None = None,
    stop: threading.Event | None = None,
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Iterator[str | ImageError]:
    """Yield the photos that a user names, in order.

    * A file is itself, and so is ``-``, standard input.
    * A folder stands for all photos in it and below it, sorted by name, without hidden files and folders,
      folders of operating systems (``@eaDir``, ``$RECYCLE.BIN``), and linked folders.
    * A pattern (``*``, ``?``, ``[a-z]``, ``**`` for any folders) stands for all photos that match, sorted.

    A photo from a folder or a pattern is yielded once, even if several names cover it. Folders are searched
    while their photos are taken, so the first photo comes at once.

    Args:
        names: Files, folders, patterns, ``-``.
        listed: Files to yield after those.
        leave_out: The folder of annotated copies. If it is below a folder that is searched, all of it is left
            out; if it is the folder itself, the unchanged copies in it are.
        passed_over: A dictionary in which photos of unsupported formats, such as ``.heic``, are counted by
            suffix.
        stop: No more photos are yielded once it is set, at the latest after the folder being searched.
        suffixes: Those of the files in folders and patterns that are yielded.

    Yields:
        A path, ``-``, or an error: for a name without photos, or a folder that cannot be read.
    """
    passed_over = {} if passed_over is None else passed_over
    stop = threading.Event() if stop is None else stop
    copies = None if leave_out is None else Path(os.path.realpath(leave_out))
    real = RealPaths()
    names = list(names)
    # A folder alone covers no photo twice, and may have millions.
    alone = len(names) == 1 and os.path.isdir(names[0])  # noqa: PTH112
    seen: set[str] = set()
    for name in names:
        if is_url(name):
            yield ImageError(f"{name} is a URL, and nothing is fetched from the network; download it first")
            continue
        refused: list[OSError] = []
        photos = _expand(name, refused, stop, suffixes + _UNSUPPORTED)
        if photos is None:
            if os.path.lexists(name):
                seen.add(real(name))
            yield name
            continue
        base = Path(os.path.realpath(_fixed_part(name)))
        found = left_out = False
        for path in photos:
            if stop.is_set():
                return
            key = real(path)
            if not is_photo(path, suffixes):
                if key not in seen:
                    seen.add(key)
                    suffix = Path(path).suffix.lower()
                    passed_over[suffix] = passed_over.get(suffix, 0) + 1
            elif copies is not None and _is_copy(Path(key), copies, base):
                left_out = True
            else:
                found = True
                if alone:
                    yield path
                elif key not in seen:
                    seen.add(key)
                    yield path
        if stop.is_set():
            return
        errors = [f"cannot read the folder {error.filename}: {error.strerror or error}" for error in refused]
        if not found and not refused:
            errors = [_nothing_in(name, left_out, suffixes)]
        for message in errors:
            if message not in seen:
                seen.add(message)
                yield ImageError(message)
    yield from listed


class Lookup:
    """Photos that are found in a thread, ahead of their use, so that their number is known early.

    ``photos`` are those of :func:`find_photos`, which the event ``stop`` ends early.

    Attributes:
        found: Photos and errors found so far.
        complete: Whether these are all.
    """

    def __init__(self, photos: Iterable[str | ImageError], stop: threading.Event) -> None:
        self._photos = photos
        self._stop = stop
        self._queue: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self.found = 0
        self.complete = False

    def __iter__(self) -> Iterator[str | ImageError]:
        """Start the search and yield the photos; to be called once. An error of the search is raised."""
        threading.Thread(target=self._search, name="ferkit-search", daemon=True).start()
        while (photo := self._queue.get()) is not None:
            if isinstance(photo, Exception) and not isinstance(photo, ImageError):
                raise photo
            yield photo

    @property
    def total(self) -> str:
        """The number of photos as text, "at least" so many if the search is not complete."""
        return str(self.found) if self.complete else f"at least {self.found}"

    def _search(self) -> None:
        try:
            for photo in self._photos:
                self.found += 1
                self._queue.put(photo)
            self.complete = not self._stop.is_set()
        except Exception as error:  # noqa: BLE001 -- raised by __iter__
            self._queue.put(error)
        self._queue.put(None)


def is_photo(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file in a folder is a photo, judged by its name."""
    base = os.path.basename(name)  # noqa: PTH119
    return base.lower().endswith(suffixes) and not base.startswith(".")


def _expand(
    name: str, refused: list[OSError], stop: threading.Event, suffixes: tuple[str, ...]
) -> Iterator[str] | None:
    """Return the files of a folder or a pattern with one of the suffixes; None for any other name.

    Folders that cannot be read are added to ``refused``.
    """
    if name == STDIN:
        return None
    if os.path.isdir(name):  # noqa: PTH112
        return _in_folder(name, refused, stop, suffixes)
    if os.path.lexists(name) or not glob.has_magic(name):
        return None
    return _matches(name, stop, suffixes)


def _in_folder(
    folder: str, refused: list[OSError], stop: threading.Event, suffixes: tuple[str, ...]
) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=refused.append):
        if stop.is_set():
            return
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if is_photo(name, suffixes):
                yield os.path.join(parent, name)  # noqa: PTH118


def _matches(pattern: str, stop: threading.Event, suffixes: tuple[str, ...]) -> Iterator[str]:
    for path in sorted(takewhile(lambda _: not stop.is_set(), glob.iglob(pattern, recursive=True))):  # noqa: PTH207
        if is_photo(path, suffixes) and not os.path.isdir(path):  # noqa: PTH112
            yield path


def _fixed_part(name: str) -> Path:
    """Return a folder itself, or the folders at the beginning of a pattern that contain no wildcard."""
    if os.path.isdir(name):  # noqa: PTH112
        return Path(name)
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(name).parent.parts))


def _is_copy(path: Path, copies: Path, base: Path) -> bool:
    """Whether a photo found below ``base`` is one of the annotated copies in the folder ``copies``."""
    if copies != base and copies.is_relative_to(base):
        return path.is_relative_to(copies)
    return path.parent == copies and "-faces" in path.name and bool(read_signature(path))


def _nothing_in(name: str, left_out: bool, suffixes: tuple[str, ...]) -> str:
    besides = "besides annotated copies " if left_out else ""
    photo = "photo" if suffixes == SUFFIXES else "clip"
    if os.path.isdir(name):  # noqa: PTH112
        return f"{name} is a folder without {photo}s {besides}({', '.join(suffixes)})"
    return f"no {photo} {besides}matches {name} ({', '.join(suffixes)})"
