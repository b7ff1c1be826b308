"""Draw faces, labels and activation maps into RGB pictures, of photos and of clips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import palette
from ferkit.recognize.results import UNCERTAIN, Explanation, Face

_WHITE = (255, 255, 255)
_DARK_TEXT_ABOVE = 140  # brightness of the ground
_TEXT_SIZES = (10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 57, 68, 80, 96)  # few: clips reuse their labels
_HEAT_SIDE = 96
_HEAT_OPACITY = 0.65  # at the maximum of a map
_SCALE_TEXT = "no evidence", "most evidence for the label"


def draw_faces(
    rgb: NDArray[np.uint8],
    faces: Sequence[Face],
    *,
    prefixes: Sequence[str] = (),
    landmarks: bool = True,
    explanations: Sequence[Explanation] = (),
) -> NDArray[np.uint8]:
    """Return a copy of a picture with the box and the label of each face.

    The box of a face is dashed if its label is ``uncertain`` or the face is turned. Activation maps are
    transparent where there is no evidence for the label, and yellow at their maximum; a scale is drawn.

    Of faces that overlap, the first is on top and its label has the best position. ``prefixes`` are texts
    before the labels, such as the number of a track.
    """
    picture = rgb.copy()
    for explanation in explanations:
        _draw_heat(picture, explanation)
    longest = max(rgb.shape[:2])
    labels = [
        _text(_label(face, prefix), _text_size(longest, face.box[2] - face.box[0]))
        for face, prefix in zip(faces, prefixes or [""] * len(faces), strict=True)
    ]
    places = label_places([face.box for face in faces], [mask.shape for mask in labels], rgb.shape[:2])
    for face, mask, (left, top) in reversed(list(zip(faces, labels, places, strict=True))):
        _draw_outline(picture, face, landmarks)
        _paste(picture, mask, left, top, colour(face))
    if explanations:
        _draw_scale(picture, [face.box for face in faces])
    return picture


def colour(face: Face) -> tuple[int, int, int]:
    """Return the colour, RGB, of a face's label."""
    if face.label == UNCERTAIN:
        return palette.UNCERTAIN.rgb
    return palette.palette(face.probabilities)[face.label].rgb


def label_places(
    boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, ...]], picture: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Return left and top of each face's label.

    A label is placed above its face, aligned to the left. If that is outside the picture, or covers an
    earlier label or another face, it is placed below or aligned to the right. If no position is free, it may
    cover a face, and finally a label.

    Boxes are left, top, right, bottom; sizes of labels and of the picture are height and width. Earlier faces
    get the better positions.
    """
    height, width = picture[:2]
    frames = [_clipped(box, width, height) for box in boxes]
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
        free = [spot for spot in spots if not _overlaps(spot, taken)]
        spot = next((one for one in free if not _overlaps(one, others)), (free or spots)[0])
        taken.append(spot)
        places.append((spot[0], spot[1]))
    return places


def _clipped(box: Sequence[float], width: int, height: int) -> tuple[int, ...]:
    """Return a box in whole pixels inside the picture."""
    limits = (width, height, width, height)
    return tuple(int(np.clip(round(v), 0, limit - 1)) for v, limit in zip(box, limits, strict=True))


def _overlaps(one: tuple[int, ...], others: Iterable[Sequence[float]]) -> bool:
    return any(one[0] < o[2] and o[0] < one[2] and one[1] < o[3] and o[1] < one[3] for o in others)


def _draw_outline(picture: NDArray[np.uint8], face: Face, landmarks: bool) -> None:
    import cv2

    height, width = picture.shape[:2]
    left, top, right, bottom = _clipped(face.box, width, height)
    line = max(1, round(max(height, width) / 320))
    doubtful = face.label == UNCERTAIN or _is_turned(face)
    cv2.rectangle(picture, (left, top), (right, bottom), _WHITE if doubtful else colour(face), line)
    if doubtful:
        dash = 5 * line
        for x in range(left, right, 2 * dash):
            for y in (top, bottom):
                cv2.line(picture, (x, y), (min(x + dash, right), y), colour(face), line)
        for y in range(top, bottom, 2 * dash):
            for x in (left, right):
                cv2.line(picture, (x, y), (x, min(y + dash, bottom)), colour(face), line)
    for mark in (landmarks and face.landmarks) or ():
        at = int(np.clip(mark[0], -1, width)), int(np.clip(mark[1], -1, height))
        cv2.circle(picture, at, line, colour(face), -1, cv2.LINE_AA)


def _is_turned(face: Face) -> bool:
    return face.quality is not None and "turned" in face.quality.flags


def _label(face: Face, prefix: str) -> str:
    return f"{prefix}{face.label} {face.confidence:.0%}{', turned' if _is_turned(face) else ''}"


def _text_size(longest: int, face: float) -> int:
    """Return the size of a label for a picture's longest side and a face's width, in pixels."""
    wanted = max(longest / 100, min(longest / 36, face / 4))
    return max((size for size in _TEXT_SIZES if size <= wanted), default=_TEXT_SIZES[0])


@lru_cache(maxsize=256)
def _text(text: str, size: int) -> NDArray[np.uint8]:
    """Return a line of text as a mask uint8 ``[h, w]``; letters are 255."""
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
    """Draw a text mask on a ground of one colour, as far as it fits into the picture."""
    height, width = picture.shape[:2]
    left, top = max(0, min(left, width - mask.shape[1])), max(0, min(top, height - mask.shape[0]))
    place = picture[top : top + mask.shape[0], left : left + mask.shape[1]]
    ink = (mask[: place.shape[0], : place.shape[1], None] / 255).astype(np.float32)
    light = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    text = 0 if light > _DARK_TEXT_ABOVE else 255
    place[:] = np.rint(np.array(ground, np.float32) * (1 - ink) + text * ink).astype(np.uint8)


def _draw_heat(picture: NDArray[np.uint8], explanation: Explanation) -> None:
    """Lay an activation map over a picture."""
    import cv2

    corners = np.array(explanation.corners)
    limit = (picture.shape[1], picture.shape[0])
    left, top = (int(v) for v in np.clip(np.floor(corners.min(axis=0)), 0, limit))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(axis=0)), 0, limit))
    if right <= left or bottom <= top:
        return
    # Upsampled first: a map has few cells, and colours are to change smoothly between them.
    fine = cv2.resize(explanation.heat, (_HEAT_SIDE, _HEAT_SIDE), interpolation=cv2.INTER_CUBIC)
    # Corners are pixel edges, OpenCV counts pixel centres: an offset of half a pixel.
    edges = np.array([(0, 0), (_HEAT_SIDE, 0), (_HEAT_SIDE, _HEAT_SIDE)], np.float32) - 0.5
    target = (corners[:3] - (left, top) - 0.5).astype(np.float32)
    heat = cv2.warpAffine(fine, cv2.getAffineTransform(edges, target), (right - left, bottom - top))
    heat = np.clip(heat, 0, 1)
    place = picture[top:bottom, left:right]
    place[:] = _heated(place, heat)


def _heated(picture: NDArray[np.uint8], heat: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a picture ``[H, W, 3]`` under an activation map ``[H, W]``, 0..1."""
    import cv2

    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_PLASMA)[:, :, ::-1]
    opacity = _HEAT_OPACITY * heat[:, :, None]
    return np.asarray(np.rint(picture * (1 - opacity) + colours * opacity), np.uint8)


def _draw_scale(picture: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> None:
    """Draw the scale of the activation maps into the corner that covers the least of the faces."""
    height, width = picture.shape[:2]
    none, most = (_text(text, _text_size(max(height, width) // 2, math.inf)) for text in _SCALE_TEXT)
    high, bar = max(none.shape[0], most.shape[0]), width // 8
    wide = none.shape[1] + bar + most.shape[1]
    if wide > width or high > height:
        return
    corners = [(x, y, x + wide, y + high) for y in (height - high, 0) for x in (0, width - wide)]
    left, top, *_ = min(corners, key=lambda corner: sum(_overlaps(corner, [box]) for box in boxes))
    _paste(picture, none, left, top, (0, 0, 0))
    ramp = np.tile(np.linspace(0, 1, bar, dtype=np.float32), (high, 1))
    ground = np.full((high, bar, 3), 128, np.uint8)
    picture[top : top + high, left + none.shape[1] :][:, :bar] = _heated(ground, ramp)
    _paste(picture, most, left + none.shape[1] + bar, top, (0, 0, 0))
