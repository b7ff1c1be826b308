"""Hard cuts: comparisons of two successive frames that tell a new shot from motion, flashes and fades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.detect import Detection
from ferkit.video.association import intersection_over_union

# Measured by studies/cuts.py on pairs of frames with and without a cut.
_SAME_COLOURS = 0.66  # in common; with a cut at most 0.62, without one at least 0.71
_SAME_GRAYS = 0.74  # in common, for shots in black and white; without a cut at least 0.77
_SAME_LAYOUT = 0.9  # correlation; with a cut at most 0.87
_OTHER_LAYOUT = 0.3  # correlation; without a cut only in pans by a tenth of the width and more
_MOVED = 0.65  # correlation of blocks with their best match; in such pans at least 0.96
_SAME_FACE = 0.6  # correlation of two face crops; of one face 0.2 s apart at least 0.66
_SAME_PLACE = 0.1  # intersection over union
_WHOLE = 0.8  # share of the picture from which a face is judged with the picture
_FLAT = 2.0  # standard deviation of gray levels below which pictures cannot be compared
_LAYOUT = (32, 18)
_COLOURS = (64, 36)
_BLOCKS = (128, 72)
_BLOCK = 24
_REACH = (40, 16)
_FACE = (24, 24)


class CutDetector:
    """Finds the frames that begin another shot.

    A cut changes the layout of the picture, and the colours too or so that no motion explains it. Motion and
    zooms keep the colours; flashes and fades keep the layout, and the colours relative to mean brightness and
    contrast.
    """

    def __init__(self) -> None:
        self._before: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def is_cut(self, rgb: NDArray[np.uint8], gray: NDArray[np.uint8]) -> bool:
        """Return whether the next frame begins another shot.

        ``rgb`` is uint8 ``[H, W, 3]``; ``gray``, uint8 ``[h, w]``, is the same frame, may be smaller.
        """
        layout = _resized(gray, _LAYOUT)
        if layout.std() < _FLAT:
            return False  # black, as between two fades: the frame after it is compared with the one before
        # Every n-th pixel: averaging a whole frame would take longer than tracking.
        step = max(1, min(rgb.shape[0] // (4 * _COLOURS[1]), rgb.shape[1] // (4 * _COLOURS[0])))
        before, self._before = self._before, (gray, rgb[::step, ::step])
        if before is None:
            return False
        alike = correlation(_resized(before[0], _LAYOUT), layout)
        if alike >= _SAME_LAYOUT:
            return False
        one, other = (_resized(picture, _COLOURS) for picture in (before[1], self._before[1]))
        if in_common(one, other, bins=8) < _SAME_COLOURS:
            return True
        if (
            in_common(one.mean(axis=2, keepdims=True), other.mean(axis=2, keepdims=True), bins=32)
            < _SAME_GRAYS
        ):
            return True
        return alike < _OTHER_LAYOUT and motion_match(before[0], gray) < _MOVED


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA), np.uint8)


def correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the correlation of two pictures of the same shape, -1..1; 1 if one of them is flat."""
    if min(one.std(), other.std()) < _FLAT:
        return 1.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def motion_match(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> float:
    """Return how well blocks of a frame are found again nearby in the next: a median correlation, -1..1."""
    import cv2

    before, now = _resized(before, _BLOCKS), _resized(now, _BLOCKS)
    found = []
    for y in range(0, _BLOCKS[1], _BLOCK):
        for x in range(0, _BLOCKS[0] - _BLOCK + 1, _BLOCK):
            block = before[y : y + _BLOCK, x : x + _BLOCK]
            nearby = now[
                max(0, y - _REACH[1]) : y + _BLOCK + _REACH[1], max(0, x - _REACH[0]) : x + _BLOCK + _REACH[0]
            ]
            if block.std() >= _FLAT:
                found.append(float(cv2.matchTemplate(nearby, block, cv2.TM_CCOEFF_NORMED).max()))
    return float(np.median(found)) if found else 1.0


def in_common(one: NDArray[Any], other: NDArray[Any], *, bins: int) -> float:
    """Return the intersection of the histograms of two pictures ``[h, w, C]``, 0..1.

    It is the larger one of the plain histograms, and of those after both pictures are brought to the same
    mean and contrast.

    Values are 0..255; ``bins`` are those per channel.
    """

    def histogram(picture: NDArray[Any]) -> NDArray[np.float64]:
        values = np.clip(picture * (bins / 256), 0, bins - 1).astype(int).reshape(-1, picture.shape[2])
        counts = np.bincount(values @ bins ** np.arange(picture.shape[2]), minlength=bins ** picture.shape[2])
        return np.asarray(counts / len(values), np.float64)

    def standardized(picture: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(128 + 64 * (picture - picture.mean()) / max(4.0, float(picture.std())))

    pairs = (one, other), (standardized(one), standardized(other))
    return max(float(np.minimum(histogram(a), histogram(b)).sum()) for a, b in pairs)


def are_replaced(
    before: NDArray[np.uint8], faces: Sequence[Detection], now: NDArray[np.uint8], found: Sequence[Detection]
) -> bool:
    """Return whether other faces are at the places of all earlier ones: a cut within one scenery.

    ``before`` and ``now`` are two frames uint8 ``[h, w]``, at most 0.25 s apart.
    """
    boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
    others = np.array([face.box for face in found], np.float64).reshape(-1, 4)
    whole = np.array([[0, 0, *now.shape[::-1]]], np.float64)
    same = intersection_over_union(boxes, others) >= _SAME_PLACE
    same &= intersection_over_union(whole, others) < _WHOLE
    alike = [
        correlation(crop, other)
        for row, column in np.argwhere(same)
        if (crop := _crop(before, boxes[row])) is not None
        and (other := _crop(now, others[column])) is not None
    ]
    return bool(alike) and max(alike) < _SAME_FACE


def _crop(gray: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.uint8] | None:
    left, top, right, bottom = (max(0, round(value)) for value in box)
    face = gray[top:bottom, left:right]
    return _resized(face, _FACE) if face.size else None
