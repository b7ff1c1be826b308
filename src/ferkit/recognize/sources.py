"""From what a user names (files, folders, patterns, standard input) to the photos that are meant."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ferkit.errors import ImageError
from ferkit.images import is_url

STDIN = "-"
"""The name of standard input."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Files that count as photos in folders and patterns; a file that is named itself may have any suffix."""


def find_photos(
    names: Iterable[str], *, leave_out: str | os.PathLike[str] | None = None
) -> Iterator[str | ImageError]:
    """Return the photos that are meant, in order.

    * A file is itself, and so is ``-``, standard input.
    * A folder is all photos in it and below it, sorted by name; hidden ones and linked folders are passed
      over.
    * A pattern (``*``, ``?``, ``[a-z]``, ``**`` for any folders) is all photos that match, sorted.

    What comes from a folder or a pattern comes once, also where it is named several times.

    Args:
        names: What the user named.
        leave_out: A folder whose photos do not count: that of the annotated pictures, which an earlier call
            may have written into the folder that is read.

    Yields:
        A path, ``-``, or the error of a name that means no photo.
    """
    seen: set[str] = set()
    apart = None if leave_out is None else os.path.realpath(leave_out)
    for name in names:
        if name == STDIN:
            yield name
            continue
        if is_url(name):
            yield ImageError(f"{name} is a URL, and nothing is fetched from the network; download it first")
            continue
        if not os.path.isdir(name) and (os.path.lexists(name) or not glob.has_magic(name)):  # noqa: PTH112
            if os.path.lexists(name):
                seen.add(os.path.realpath(name))
            yield name
            continue
        found = False
        for path in _in_folder(name) if Path(name).is_dir() else _matches(name):
            key = os.path.realpath(path)
            if apart is not None and (key == apart or key.startswith(apart + os.sep)):
                continue
            found = True
            if key not in seen:
                seen.add(key)
                yield path
        if not found:
            known = ", ".join(SUFFIXES)
            where = (
                f"{name} is a folder without photos" if Path(name).is_dir() else f"no photo matches {name}"
            )
            yield ImageError(f"{where} ({known})")


def is_photo(name: str) -> bool:
    """Tell by its name whether a file in a folder counts as a photo."""
    base = os.path.basename(name)  # noqa: PTH119
    return base.lower().endswith(SUFFIXES) and not base.startswith(".")


def _in_folder(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if is_photo(name))  # noqa: PTH118


def _matches(pattern: str) -> Iterator[str]:
    for path in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        if Path(path).is_dir():
            continue
        if is_photo(path):
            yield path
