"""From what a user names (files, folders, patterns, standard input) to the photos that are meant."""

from __future__ import annotations

import codecs
import glob
import os
import re
import threading
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile
from pathlib import Path

from ferkit.core.errors import ImageError
from ferkit.core.files import RealPaths
from ferkit.core.images import SUFFIXES, WRITABLE, is_url

STDIN = "-"
"""The name of standard input."""

_OTHER_PICTURES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".psd"),  # of telephones, browsers, programs
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".mrw", ".nef", ".nrw", ".orf", ".pef"),  # raw
    *(".raf", ".raw", ".rw2", ".rwl", ".srw", ".x3f"),
)  # photos of a kind that is not read


def read_list(content: bytes) -> list[str]:
    r"""Return the paths that a list of files holds: one a line, or between NUL bytes if it has any.

    Empty lines are passed over. Each path is a file's, whatever it looks like: ``-``, ``*`` and ``[`` mean
    nothing in it.

    The letters are those of the system's file names, or UTF-16 where its mark stands first, as PowerShell
    writes it.

    Raises:
        UnicodeDecodeError: If there are bytes that stand for no letters.

    Example:
        >>> read_list(b"a.jpg\r\n\nb 1.jpg\n"), read_list(b"./a.jpg\0./b\n1.jpg\0")
        (['a.jpg', 'b 1.jpg'], ['./a.jpg', './b\n1.jpg'])
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    else:
        text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    names = text.split("\0") if "\0" in text else [line.rstrip("\r") for line in text.split("\n")]
    # As a path "-" is what it is called beside the sign for standard input.
    return ["./-" if name == "-" else name for name in names if name]


def find_photos(
    names: Iterable[str],
    *,
    listed: Iterable[str] = (),
    leave_out: str | os.PathLike[str] | None = None,
    passed_over: dict[str, int] | None = None,
    stop: threading.Event | None = None,
) -> Iterator[str | ImageError]:
    """Return the photos that are meant, in order.

    * A file is itself, and so is ``-``, standard input.
    * A folder is all photos in it and below it, sorted by name; hidden ones and linked folders are passed
      over.
    * A pattern (``*``, ``?``, ``[a-z]``, ``**`` for any folders) is all photos that match, sorted.

    What comes from a folder or a pattern comes once, also where it is named several times. Folders are looked
    through when their photos are asked for; with ``leave_out`` all are at the first.

    Args:
        names: What the user named.
        listed: Files that come after these, each of which is itself whatever it is called.
        leave_out: The folder of the annotated pictures, which an earlier call may have written into the
            folder that is read. Where it lies below that (below the part of a pattern that is spelt out),
            none of its photos count. Elsewhere only the pictures that are named as copies of photos that are
            read do not: ``a-faces.jpg`` and ``a-faces-2.jpg`` beside ``a.jpg``.
        passed_over: Where photos of folders and patterns that are of no kind that is read, such as ``.heic``,
            are counted by suffix.
        stop: When it is set, no more photos come, at the latest after the folder that is looked through.

    Yields:
        A path, ``-``, or an error: of a name that means no photo, or of a folder that cannot be read.
    """
    unread: dict[str, list[ImageError]] = {}
    stop = threading.Event() if stop is None else stop
    groups: Iterable[tuple[str, Iterable[str] | None]] = (
        (name, _meant(name, unread, stop)) for name in names
    )
    apart, copied = None, set()
    if leave_out is not None:
        apart = Path(os.path.realpath(leave_out))
        listed = list(listed)
        groups = [(name, None if photos is None else list(photos)) for name, photos in groups]
        meant = [
            ["stdin" if name == STDIN else name] if photos is None else photos for name, photos in groups
        ]
        copied = {
            (f"{path.stem}-faces", path.suffix if path.suffix.lower() in WRITABLE else ".png")
            for path in map(Path, chain(listed, *meant))
        }
    passed_over = {} if passed_over is None else passed_over
    real = RealPaths()
    seen: set[str] = set()
    for name, photos in groups:
        if is_url(name):
            yield ImageError(f"{name} is a URL, and nothing is fetched from the network; download it first")
        elif photos is None:
            if os.path.lexists(name):
                seen.add(real(name))
            yield name
        else:
            base = Path(os.path.realpath(_fixed_part(name)))
            found = passed = False
            for path in photos:
                if stop.is_set():
                    break
                key = real(path)
                if not is_photo(path):
                    if key not in seen:
                        seen.add(key)
                        suffix = Path(path).suffix.lower()
                        passed_over[suffix] = passed_over.get(suffix, 0) + 1
                    continue
                if apart is not None and _is_apart(Path(key), apart, base, copied):
                    passed = True
                    continue
                found = True
                if key not in seen:
                    seen.add(key)
                    yield path
            if stop.is_set():
                return  # what was not found until now may be there
            if not found and name not in unread:
                yield ImageError(_nothing_in(name, passed))
            for error in unread.get(name, ()):
                if str(error) not in seen:
                    seen.add(str(error))
                    yield error
    yield from listed


def _meant(name: str, unread: dict[str, list[ImageError]], stop: threading.Event) -> Iterator[str] | None:
    """Return the pictures of a folder or a pattern, read or not; None for a name that stands for itself.

    What cannot be read of a folder is left in ``unread`` under its name, when its photos have been taken.
    """
    if name == STDIN or is_url(name):
        return None
    if os.path.isdir(name):  # noqa: PTH112
        return _in_folder(name, unread, stop)
    if os.path.lexists(name) or not glob.has_magic(name):
        return None
    return _matches(name, stop)


def _fixed_part(name: str) -> Path:
    """Return a folder itself, or the folders that a pattern begins with and spells out."""
    if Path(name).is_dir():
        return Path(name)
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(name).parent.parts))


def _is_apart(path: Path, apart: Path, base: Path, copied: set[tuple[str, str]]) -> bool:
    """Tell whether a photo below ``base`` is one of the annotated pictures in ``apart``."""
    if apart != base and apart.is_relative_to(base):
        return path.is_relative_to(apart)
    # As `drawing.AnnotatedNames` calls them. Only beside what they are copies of: somebody's own
    # "party-faces.jpg" is a photo.
    stem = re.sub(r"(?<=-faces)-\d+$", "", path.stem)
    return path.parent == apart and (stem, path.suffix) in copied


def _nothing_in(name: str, passed: bool) -> str:
    known = ", ".join(SUFFIXES)
    besides = "besides annotated pictures " if passed else ""
    if Path(name).is_dir():
        return f"{name} is a folder without photos {besides}({known})"
    return f"no photo {besides}matches {name} ({known})"


def is_photo(name: str) -> bool:
    """Tell by its name whether a file in a folder counts as a photo."""
    return _is_of(name, SUFFIXES)


def _is_picture(name: str) -> bool:
    return _is_of(name, SUFFIXES + _OTHER_PICTURES)


def _is_of(name: str, suffixes: tuple[str, ...]) -> bool:
    base = os.path.basename(name)  # noqa: PTH119
    return base.lower().endswith(suffixes) and not base.startswith(".")


def _in_folder(folder: str, unread: dict[str, list[ImageError]], stop: threading.Event) -> Iterator[str]:
    refused: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=refused.append):
        if stop.is_set():
            return
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if _is_picture(name))  # noqa: PTH118
    if refused:
        unread[folder] = [
            ImageError(f"cannot read the folder {error.filename}: {error.strerror or error}")
            for error in refused
        ]


def _matches(pattern: str, stop: threading.Event) -> Iterator[str]:
    for path in sorted(takewhile(lambda _: not stop.is_set(), glob.iglob(pattern, recursive=True))):  # noqa: PTH207
        if Path(path).is_dir():
            continue
        if _is_picture(path):
            yield path
