"""Faces and their expressions, drawn into the photo."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferkit.core.files import RealPaths
from ferkit.core.images import WRITABLE
from ferkit.recognize.results import UNCERTAIN, Explanation, Face, Photo

_COLOURS = (
    (228, 26, 28),
    (77, 175, 74),
    (152, 78, 163),
    (255, 200, 40),
    (55, 126, 184),
    (255, 127, 0),
    (160, 170, 180),
    (166, 86, 40),
    (247, 129, 191),
    (0, 170, 170),
)  # fmt: skip
_GRAY = (128, 128, 128)
_DARK_TEXT_ABOVE = 140
_HEAT_SIDE = 96
_RED = 230  # in OpenCV's colour map; above it darkens
_HEAT_SHARE = 0.6  # of the colour where the map is hottest


def draw(rgb: NDArray[np.uint8], photo: Photo, explanations: Sequence[Explanation] = ()) -> NDArray[np.uint8]:
    """Return a copy of the photo with a box, the landmarks and the label of each face.

    Args:
        rgb: uint8 ``[H, W, 3]``, the upright photo that ``photo`` was read from.
        photo: What was found in it.
        explanations: Maps to lay over the faces: blue, green, yellow, red, the more a place speaks for the
            label; where nothing does the photo stays as it is.
    """
    picture = rgb.copy()
    for explanation in explanations:
        _draw_heat(picture, explanation)
    labels = [_label_of(face, rgb.shape[0]) for face in photo.faces]
    places = label_places([face.box for face in photo.faces], [mask.shape for mask in labels], rgb.shape[:2])
    drawn = list(zip(photo.faces, labels, places, strict=True))
    for face, mask, (left, top) in reversed(drawn):  # the surest comes last and lies on top
        _draw_face(picture, face)
        _paste(picture, mask, left, top, colour(face))
    return picture


def colour(face: Face) -> tuple[int, int, int]:
    """Return the colour, RGB, of a face's label; the same for the same place in the taxonomy."""
    if face.label == UNCERTAIN:
        return _GRAY
    return _COLOURS[list(face.probabilities).index(face.label) % len(_COLOURS)]


def _draw_face(picture: NDArray[np.uint8], face: Face) -> None:
    import cv2

    height, width = picture.shape[:2]
    left, top, right, bottom = (
        int(np.clip(round(v), 0, limit - 1))
        for v, limit in zip(face.box, (width, height, width, height), strict=True)
    )
    line = max(1, round(max(height, width) / 400))
    cv2.rectangle(picture, (left, top), (right, bottom), colour(face), line, cv2.LINE_AA)
    for x, y in face.landmarks or ():
        at = int(np.clip(x, -1, width)), int(np.clip(y, -1, height))
        cv2.circle(picture, at, line + 1, colour(face), -1, cv2.LINE_AA)


def _label_of(face: Face, height: int) -> NDArray[np.uint8]:
    size = int(np.clip(max((face.box[2] - face.box[0]) / 7, height / 45), 10, 96))
    return _text(f"{face.label} {face.confidence:.0%}", size)


def label_places(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, ...]], picture: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Return where the labels of faces go: left and top of each.

    A label stands above its face, to the left; where that is outside the picture, or covers a label that
    comes earlier or another face, below or to the right. Where no place is free, it may cover a face, and
    where even that does not help, a label.

    Args:
        boxes: Left, top, right, bottom of each face, those first that are to have the best places.
        sizes: Height and width of each label.
        picture: Height and width.
    """
    height, width = picture[:2]
    frames = [
        tuple(int(np.clip(round(v), 0, limit - 1)) for v, limit in zip(box, (width, height) * 2, strict=True))
        for box in boxes
    ]
    taken: list[tuple[int, ...]] = []
    places = []
    for k, ((left, top, right, bottom), (high, wide)) in enumerate(zip(frames, sizes, strict=True)):
        options = []
        for x in (left, right + 1 - wide):
            for y, fits in ((top - high, top >= high), (bottom, bottom + high <= height)):
                if fits:
                    options.append((max(0, min(x, width - wide)), y))
        options = options or [(max(0, min(left, width - wide)), max(0, min(bottom, height - high)))]
        spots = [(x, y, x + wide, y + high) for x, y in options]
        others = frames[:k] + frames[k + 1 :]
        free = [spot for spot in spots if not _meets(spot, taken)]
        spot = next((one for one in free if not _meets(one, others)), (free or spots)[0])
        taken.append(spot)
        places.append((spot[0], spot[1]))
    return places


def _meets(one: tuple[int, ...], others: Iterable[tuple[int, ...]]) -> bool:
    return any(one[0] < o[2] and o[0] < one[2] and one[1] < o[3] and o[1] < one[3] for o in others)


def _draw_heat(picture: NDArray[np.uint8], explanation: Explanation) -> None:
    """Lay a map over the photo."""
    import cv2

    corners = np.array(explanation.corners)
    limit = (picture.shape[1], picture.shape[0])
    left, top = (int(v) for v in np.clip(np.floor(corners.min(axis=0)), 0, limit))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(axis=0)), 0, limit))
    if right <= left or bottom <= top:
        return
    # Enlarged first: the map has a few cells, and between them it is to change smoothly.
    fine = cv2.resize(explanation.heat, (_HEAT_SIDE, _HEAT_SIDE), interpolation=cv2.INTER_CUBIC)
    # Corners are pixel edges, OpenCV counts pixel centres: half a pixel lies between the two.
    edges = np.array([(0, 0), (_HEAT_SIDE, 0), (_HEAT_SIDE, _HEAT_SIDE)], np.float32) - 0.5
    target = (corners[:3] - (left, top) - 0.5).astype(np.float32)
    heat = cv2.warpAffine(fine, cv2.getAffineTransform(edges, target), (right - left, bottom - top))
    heat = np.clip(heat, 0, 1)
    shown = cv2.applyColorMap(np.rint(heat * _RED).astype(np.uint8), cv2.COLORMAP_JET)[:, :, ::-1]
    place = picture[top:bottom, left:right]
    share = _HEAT_SHARE * heat[:, :, None]
    place[:] = np.rint(place * (1 - share) + shown * share).astype(np.uint8)


@lru_cache(maxsize=256)
def _text(text: str, size: int) -> NDArray[np.uint8]:
    """Return a line of text as a mask uint8 ``[h, w]``, 255 where ink is."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    rim = max(1, size // 6)
    mask = Image.new("L", (int(right - left) + 2 * rim, int(bottom - top) + 2 * rim))
    ImageDraw.Draw(mask).text((rim - left, rim - top), text, fill=255, font=font)
    return np.asarray(mask)


def _paste(
    picture: NDArray[np.uint8], mask: NDArray[np.uint8], left: int, top: int, ground: tuple[int, int, int]
) -> None:
    """Put text on a plate of colour ``ground``, moved into the picture as far as it fits."""
    height, width = picture.shape[:2]
    left, top = max(0, min(left, width - mask.shape[1])), max(0, min(top, height - mask.shape[0]))
    place = picture[top : top + mask.shape[0], left : left + mask.shape[1]]
    ink = (mask[: place.shape[0], : place.shape[1], None] / 255).astype(np.float32)
    light = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    text = 0 if light > _DARK_TEXT_ABOVE else 255
    place[:] = np.rint(np.array(ground, np.float32) * (1 - ink) + text * ink).astype(np.uint8)


class AnnotatedNames:
    """Names for annotated pictures in one folder: never that of an input, never the same twice.

    Of the files that are there already, only copies of the same photo are replaced that are as they were
    drawn, which :func:`sign` tells: all else is somebody's own, or a copy of another photo of that name.

    Args:
        folder: Where the pictures go.
        inputs: The photos that are read.
    """

    def __init__(self, folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._folder = Path(folder)
        self._real = os.path.realpath(folder)
        # Some file systems do not tell capital letters from small ones.
        self._inputs = {real.casefold() for real in map(RealPaths(), inputs)}
        # Of each name, the number to try next: those before it are given away, or were passed over for good.
        self._next: dict[str, int] = {}
        # Copies by earlier calls that were passed over, since they are of photos that may be still to come.
        self._passed: dict[tuple[str, bytes], deque[Path]] = {}

    def name(self, source: str | os.PathLike[str], signed: bytes | None = None) -> Path:
        """Return the path for the annotated picture of ``source``, and take it.

        Args:
            source: The photo, or what its copy is to be called after.
            signed: The signature its copy will bear; by default that of ``source``.
        """
        path = Path(source)
        suffix = path.suffix if path.suffix.lower() in WRITABLE else ".png"
        stem = f"{path.stem or 'photo'}-faces"
        series = f"{stem}{suffix}".casefold()
        signed = signature(source) if signed is None else signed
        passed = self._passed.get((series, signed))
        if passed:
            return passed.popleft()
        number = self._next.get(series, 1)
        while True:
            target = self._folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            number += 1
            if os.path.join(self._real, target.name).casefold() in self._inputs:  # noqa: PTH118
                continue
            found = _signature_of(target)
            if found in (None, signed):
                self._next[series] = number
                return target
            if found:
                self._passed.setdefault((series, found), deque()).append(target)


_SIGN, _BETWEEN = b"\nferkit drew this from ", b" as "
_DIGEST_LETTERS = 32


def signature(source: str | os.PathLike[str] | bytes) -> bytes:
    """Return by what a later call knows the copies of a photo: a digest, which tells nobody the path.

    Args:
        source: The photo's file, or its bytes.
    """
    told = source if isinstance(source, bytes) else os.fsencode(os.path.realpath(source))
    return _SIGN + _digest(told)


def sign(picture: bytes, signature: bytes) -> bytes:
    """Return the file of an annotated copy: the picture, and after it, where readers do not look, a line.

    The line is the :func:`signature` of the photo, and a digest of the picture. Editors that save the picture
    drop the line, and some tools (exiftool) keep it, but change what is before: either way the copy is theirs
    then.
    """
    return picture + signature + _BETWEEN + _digest(picture)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LETTERS].encode()


def _signature_of(path: Path) -> bytes | None:
    """Return the signature of a copy as it was drawn, nothing of any other file; None if there is no file."""
    if not os.path.lexists(path):
        return None
    length = len(_SIGN) + len(_BETWEEN) + 2 * _DIGEST_LETTERS
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            return b""  # a folder, a pipe, a link to something of somebody's
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
