"""From a face in a picture to the crop that a network was trained on: one geometry for both halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ferkit.core.errors import ImageError

TtaMode = Literal["none", "flip", "ten-crop"]

TTA_MODES: tuple[TtaMode, ...] = get_args(TtaMode)
"""Test-time augmentation: the crop alone; it and its mirror image; five shifts, each mirrored."""

_FINEST = 16  # samples for a pixel of the crop, along each side
_MAX_SIDE = 30_000  # cv2.warpAffine counts pixels in 16 bits

Fraction = Annotated[float, Field(ge=-1.0, le=2.0, allow_inf_nan=False)]


class CropGeometry(BaseModel):
    """Where a detected face sits inside the square crop; all numbers are fractions of the crop's side.

    The defaults are those of FER2013, measured with CenterFace on its enlarged images: medians of the
    face box and of the eyes.

    Attributes:
        align: ``box`` cuts an upright square that brings the box to its place; ``eyes`` turns, scales
            and shifts the picture so that the eyes come to theirs.
        box: Left, top, right, bottom of the face box.
        left_eye: x, y of the eye on the left of the picture.
        right_eye: x, y of the eye on the right of the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    align: Literal["box", "eyes"] = "box"
    box: tuple[Fraction, Fraction, Fraction, Fraction] = (0.11, 0.05, 0.90, 0.98)
    left_eye: tuple[Fraction, Fraction] = (0.31, 0.40)
    right_eye: tuple[Fraction, Fraction] = (0.69, 0.40)

    @model_validator(mode="after")
    def _check_extent(self) -> CropGeometry:
        left, top, right, bottom = self.box
        if right - left < 0.1 or bottom - top < 0.1 or self.right_eye[0] - self.left_eye[0] < 0.05:
            raise ValueError("the box, and the distance of the eyes, must have an extent")
        return self


@dataclass(frozen=True, slots=True)
class _Square:
    """A square in a picture: its centre and side in pixels, turned by an angle in radians."""

    x: float
    y: float
    side: float
    angle: float = 0.0


def _from_box(box: NDArray[np.float64], geometry: CropGeometry) -> _Square:
    """Return the square that puts ``box`` in its place."""
    left, top, right, bottom = geometry.box
    width, height = box[2] - box[0], box[3] - box[1]
    # Boxes of one face differ in shape more than in area: the crop follows the area.
    side = float(np.sqrt(max(0.0, width * height) / ((right - left) * (bottom - top))))
    x = (box[0] + box[2]) / 2 - ((left + right) / 2 - 0.5) * side
    y = (box[1] + box[3]) / 2 - ((top + bottom) / 2 - 0.5) * side
    return _Square(float(x), float(y), side)


def _from_eyes(eyes: NDArray[np.float64], geometry: CropGeometry) -> _Square:
    """Return the square that puts the eyes in their place."""
    seen = complex(*(eyes[1] - eyes[0]))
    wanted = complex(*geometry.right_eye) - complex(*geometry.left_eye)
    turn = seen / wanted
    middle = (complex(*geometry.left_eye) + complex(*geometry.right_eye)) / 2
    centre = complex(*eyes.mean(axis=0)) + turn * (complex(0.5, 0.5) - middle)
    return _Square(centre.real, centre.imag, abs(turn), float(np.angle(turn)))


def _cut(gray: NDArray[np.uint8], square: _Square, size: int) -> NDArray[Any]:
    """Cut a square and bring it to ``size`` pixels."""
    import cv2

    side, cos, sin = square.side, float(np.cos(square.angle)), float(np.sin(square.angle))
    reach = side / 2 * (abs(cos) + abs(sin)) + 2
    height, width = gray.shape
    left, right = (int(np.clip(v, 0, width - 1)) for v in (square.x - reach, square.x + reach))
    top, bottom = (int(np.clip(v, 0, height - 1)) for v in (square.y - reach, square.y + reach))
    region = np.ascontiguousarray(gray[top : bottom + 1, left : right + 1])
    # Sampled at about the picture's own resolution first, then averaged over whole pixels of the crop:
    # area interpolation that keeps fractions of a pixel and works at any angle.
    over = min(max(1, int(np.ceil(side / size))), _FINEST)
    grid = size * over
    step, middle = side / grid, (grid - 1) / 2
    # Boxes are counted in pixel edges, OpenCV counts pixel centres: half a pixel lies between the two.
    to_region = step * np.array([[cos, -sin, -middle * (cos - sin)], [sin, cos, -middle * (sin + cos)]])
    to_region[:, 2] += (square.x - 0.5 - left, square.y - 0.5 - top)
    if step >= 2:
        # A face of thousands of pixels would take a grid of millions: the region is shrunk to meet it.
        shrunk = [max(1, round(length / step)) for length in region.shape]
        scale = np.array([[shrunk[1] / region.shape[1]], [shrunk[0] / region.shape[0]]])
        to_region[:, 2] += 0.5
        to_region *= scale
        to_region[:, 2] -= 0.5
        region = np.asarray(
            cv2.resize(region, (shrunk[1], shrunk[0]), interpolation=cv2.INTER_AREA), np.uint8
        )
    sampled = cv2.warpAffine(
        region,
        to_region,
        (grid, grid),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return sampled if over == 1 else cv2.resize(sampled, (size, size), interpolation=cv2.INTER_AREA)


def crop_faces(
    gray: NDArray[np.uint8],
    boxes: ArrayLike,
    landmarks: ArrayLike | None = None,
    *,
    geometry: CropGeometry | None = None,
    size: int = 48,
) -> NDArray[np.uint8]:
    """Cut the faces of one picture as the networks want them.

    What lies outside the picture is replicated from its border. Crops do not influence each other.

    Args:
        gray: uint8 ``[H, W]``, the picture.
        boxes: float ``[N, 4]``, left, top, right, bottom in pixels; edges, so that a box of the whole
            picture is ``0, 0, W, H``.
        landmarks: float ``[N, 5, 2]``, x and y of left eye, right eye (as seen in the picture), nose and
            corners of the mouth; needed only for ``geometry.align == "eyes"``.
        geometry: Where the face sits in the crop; by default that of FER2013.
        size: Side S of the crops in pixels.

    Returns:
        uint8 ``[N, S, S]``.

    Raises:
        ImageError: If arrays do not fit together, or a box is empty, not finite or absurdly large.
    """
    _check_gray(gray)
    squares = _squares(boxes, landmarks, geometry or CropGeometry())
    crops = np.empty((len(squares), size, size), np.uint8)
    for k, square in enumerate(squares):
        crops[k] = _cut(gray, square, size)
    return crops


def crop_corners(
    boxes: ArrayLike, landmarks: ArrayLike | None = None, *, geometry: CropGeometry | None = None
) -> NDArray[np.float64]:
    """Return where :func:`crop_faces` cuts.

    Args:
        boxes: As in :func:`crop_faces`.
        landmarks: As in :func:`crop_faces`.
        geometry: As in :func:`crop_faces`.

    Returns:
        float64 ``[N, 4, 2]``: x, y in the picture of each crop's corners: upper left, upper right, lower
        right, lower left.

    Raises:
        ImageError: As :func:`crop_faces`.
    """
    corners = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    found = np.empty((0, 4, 2))
    for square in _squares(boxes, landmarks, geometry or CropGeometry()):
        cos, sin = float(np.cos(square.angle)), float(np.sin(square.angle))
        turn = square.side * np.array([[cos, sin], [-sin, cos]])
        found = np.concatenate([found, (np.array(corners) @ turn + (square.x, square.y))[None]])
    return found


def _squares(boxes: ArrayLike, landmarks: ArrayLike | None, geometry: CropGeometry) -> list[_Square]:
    """Return the square of each face after checking that there is one."""
    places = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    eyes = None
    if geometry.align == "eyes":
        if landmarks is None:
            raise ImageError("this model aligns faces by the eyes, and the detector gives no landmarks")
        eyes = np.asarray(landmarks, dtype=np.float64).reshape(-1, 5, 2)[:, :2]
        if len(eyes) != len(places):
            raise ImageError(f"{len(places)} boxes need as many landmarks. Received: {len(eyes)}")
    if not (np.isfinite(places).all() and (places[:, 2:] > places[:, :2]).all()):
        raise ImageError(f"boxes are left, top, right, bottom. Received: {places.tolist()}")
    squares = []
    for k, box in enumerate(places):
        square = _from_box(box, geometry) if eyes is None else _from_eyes(eyes[k], geometry)
        if not np.isfinite([square.x, square.y]).all() or not 0 < square.side <= _MAX_SIDE:
            raise ImageError(
                f"a face needs a place and an extent of 1 to {_MAX_SIDE} pixels. Received: box {box.tolist()}"
            )
        squares.append(square)
    return squares


def fit_crop(gray: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Bring a picture that is a face crop already, uint8 ``[H, W]``, to uint8 ``[size, size]``.

    What is not square is made so by replicating its borders, since squeezing would change the face.

    Raises:
        ImageError: If the picture is not uint8 ``[H, W]``, empty or absurdly large.
    """
    _check_gray(gray)
    height, width = gray.shape
    if max(height, width) > _MAX_SIDE:
        raise ImageError(f"a face crop has at most {_MAX_SIDE} pixels a side. Received: {height} x {width}")
    if (height, width) == (size, size):
        return gray
    return _cut(gray, _Square(width / 2, height / 2, max(height, width)), size)


def _check_gray(gray: NDArray[np.uint8]) -> None:
    if gray.dtype != np.uint8 or gray.ndim != 2 or not gray.size:
        raise ImageError(f"faces are cut from uint8 [H, W]. Received: {gray.dtype} {list(gray.shape)}")


def tta_views(crops: NDArray[Any], tta: TtaMode, *, shift: int = 2) -> list[NDArray[Any]]:
    """Return what a test-time augmentation shows the network: a list of arrays shaped like ``crops``.

    ``none``: the crops. ``flip``: they and their mirror images. ``ten-crop``: the crops and their four
    diagonal shifts by ``shift`` pixels with replicated edges, then the mirror images of those five.

    Args:
        crops: ``[N, S, S]``, any dtype.
        tta: One of :data:`TTA_MODES`.
        shift: Pixels, for ``ten-crop``.

    Raises:
        ImageError: If the tta is unknown, the shift negative, or the crops are not ``[N, S, S]``.
    """
    if tta not in TTA_MODES:
        raise ImageError(f"unknown tta {tta!r}; known are {', '.join(TTA_MODES)}")
    if crops.ndim != 3 or shift < 0:
        raise ImageError(
            f"views are taken of [N, S, S] with a shift of 0 or more. "
            f"Received: {list(crops.shape)}, shift {shift}"
        )
    shown = [crops]
    if tta == "ten-crop":
        height, width = crops.shape[1:]
        padded = np.pad(crops, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        shown += [
            padded[:, dy : dy + height, dx : dx + width] for dy in (0, 2 * shift) for dx in (0, 2 * shift)
        ]
    if tta != "none":
        shown += [view[:, :, ::-1] for view in shown]
    return shown
