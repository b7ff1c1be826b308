"""Annotated copies of photos: drawn, named and written so that no file of the user's is overwritten."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ferkit.batch import STDIN
from ferkit.core.errors import ImageError, OutputError
from ferkit.core.files import RealPaths, write_bytes
from ferkit.core.images import WRITABLE, encode_image

if TYPE_CHECKING:
    from ferkit.recognize import Photo, Recognizer

_SIGN, _BETWEEN = b"\nferkit drew this from ", b" as "
_DIGEST_LETTERS = 32
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


class AnnotatedCopies:
    """Writes copies of photos with the faces drawn in.

    The copies take no name of the ``inputs``. ``explainer`` is the recognizer whose activation maps are drawn
    as well.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        inputs: Iterable[str | os.PathLike[str]] = (),
        *,
        explainer: Recognizer | None = None,
        landmarks: bool = True,
    ) -> None:
        self._names = CopyNames(folder, inputs)
        self._explainer = explainer
        self._landmarks = landmarks

    def write(self, photo: Photo) -> Path:
        """Write the copy of a photo whose picture was kept, and return its path.

        Raises:
            ImageError: If this copy cannot be made: its format or its name does not allow it.
            OutputError: If no copy can be written, for example because the disk is full.
        """
        assert photo.picture is not None
        explanations = self._explainer.explain(photo.picture, photo) if self._explainer else ()
        drawn = photo.draw(explanations=explanations, landmarks=self._landmarks)
        if photo.source in (None, STDIN):
            source, signed = "stdin", signature(photo.picture.tobytes())
        else:
            source, signed = str(photo.source), signature(str(photo.source))
        target = self._names.choose(source, signed)
        content = encode_image(drawn, target.suffix)
        try:
            write_bytes(target, sign(content, signed))
        except OutputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NAME_ERRORS:
                raise ImageError(str(error)) from error
            raise
        return target


class CopyNames:
    """Names for annotated copies in one folder: never that of an input, never the same twice.

    An existing file is replaced only if it is a copy that ferkit drew from the same photo and that nobody has
    changed since, according to its signature (:func:`sign`).
    """

    def __init__(self, folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._folder = Path(folder)
        self._real = os.path.realpath(folder)
        # Some file systems ignore case.
        self._inputs = {real.casefold() for real in map(RealPaths(), inputs)}
        # The next number to try for each name; lower numbers are taken.
        self._next: dict[str, int] = {}
        # Copies that earlier calls drew from other photos of that name, which may still come.
        self._skipped: dict[tuple[str, bytes], deque[Path]] = {}

    def choose(self, source: str | os.PathLike[str], signed: bytes | None = None) -> Path:
        """Return the path for the copy of ``source`` and reserve it.

        ``signed`` is the signature of the copy; by default that of ``source``.
        """
        path = Path(source)
        suffix = path.suffix if path.suffix.lower() in WRITABLE else ".png"
        stem = f"{path.stem or 'photo'}-faces"
        series = f"{stem}{suffix}".casefold()
        signed = signature(source) if signed is None else signed
        skipped = self._skipped.get((series, signed))
        if skipped:
            return skipped.popleft()
        number = self._next.get(series, 1)
        while True:
            target = self._folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            number += 1
            if os.path.join(self._real, target.name).casefold() in self._inputs:  # noqa: PTH118
                continue
            found = read_signature(target)
            if found in (None, signed):
                self._next[series] = number
                return target
            if found:
                self._skipped.setdefault((series, found), deque()).append(target)


def signature(source: str | os.PathLike[str] | bytes) -> bytes:
    """Return the signature of the copies of a photo (file or content): a digest that hides its path."""
    return _SIGN + _digest(source if isinstance(source, bytes) else os.fsencode(os.path.realpath(source)))


def sign(picture: bytes, signature: bytes) -> bytes:
    """Return the file of an annotated copy: the picture, then the signature and a digest of the picture.

    Image readers ignore what follows the picture. Editors drop it when they save, or keep it (exiftool) with
    a digest that no longer matches; in both cases the file is the user's from then on.
    """
    return picture + signature + _BETWEEN + _digest(picture)


def read_signature(path: Path) -> bytes | None:
    """Return the signature of an unchanged copy, ``b""`` for any other file, None if there is no file."""
    if not os.path.lexists(path):
        return None
    length = len(_SIGN) + len(_BETWEEN) + 2 * _DIGEST_LETTERS
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            return b""  # a folder, a pipe, or a link to a file of the user's
        with path.open("rb") as content:
            content.seek(max(0, state.st_size - length))
            end = content.read(length)
            if not end.startswith(_SIGN):
                return b""
            content.seek(0)
            picture = content.read(state.st_size - length)
    except OSError:
        return b""
    found = end[: len(_SIGN) + _DIGEST_LETTERS]
    return found if end == found + _BETWEEN + _digest(picture) else b""


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LETTERS].encode()
