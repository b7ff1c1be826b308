"""Crop detected faces as the networks were trained on them, and make views for test-time augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ferkit.core.errors import ImageError

TtaMode = Literal["none", "flip", "ten-crop"]

TTA_MODES: tuple[TtaMode, ...] = get_args(TtaMode)
"""Modes of test-time augmentation; see :func:`tta_views`."""

_MAX_OVERSAMPLING = 16  # samples per pixel of the crop, along each side
_MAX_SIDE = 30_000  # cv2.warpAffine counts pixels in 16 bits

_Fraction = Annotated[float, Field(ge=-1.0, le=2.0, allow_inf_nan=False)]


class CropGeometry(BaseModel):
    """The position of a detected face in its square crop; all numbers are fractions of the crop's side.

    The defaults are those of FER2013: medians of the face box and the eyes that YuNet finds in its enlarged
    images.

    Attributes:
        align: ``box`` cuts an upright square around the box; ``eyes`` rotates, scales and shifts the picture
            such that the eyes lie at their positions.
        box: Left, top, right, bottom of the face box.
        left_eye: x, y of the eye on the left of the picture.
        right_eye: x, y of the eye on the right of the picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    align: Literal["box", "eyes"] = "box"
    box: tuple[_Fraction, _Fraction, _Fraction, _Fraction] = (0.11, -0.01, 0.89, 1.01)
    left_eye: tuple[_Fraction, _Fraction] = (0.32, 0.39)
    right_eye: tuple[_Fraction, _Fraction] = (0.68, 0.39)

    @model_validator(mode="after")
    def _check_extent(self) -> CropGeometry:
        left, top, right, bottom = self.box
        if right - left < 0.1 or bottom - top < 0.1 or self.right_eye[0] - self.left_eye[0] < 0.05:
            raise ValueError("the box must be at least 0.1 wide and high, and the eyes at least 0.05 apart")
        return self


FER2013_CROPS: Mapping[str, CropGeometry] = {
    "yunet": CropGeometry(),
    "centerface": CropGeometry(box=(0.11, 0.05, 0.90, 0.98), left_eye=(0.31, 0.40), right_eye=(0.69, 0.40)),
}
"""FER2013's crops by detector: each puts its box elsewhere. Measured by ``studies/crop_geometry.py``."""


@dataclass(frozen=True, slots=True)
class _Square:
    """A square in a picture: centre and side in pixels, rotated by an angle in radians."""

    x: float
    y: float
    side: float
    angle: float = 0.0


def crop_faces(
    gray: NDArray[np.uint8],
    boxes: ArrayLike,
    landmarks: ArrayLike | None = None,
    *,
    geometry: CropGeometry | None = None,
    size: int = 48,
) -> NDArray[np.uint8]:
    """Crop the faces of one picture.

    Pixels outside the picture are replicated from its border. Each crop depends on its own face alone.

    Args:
        gray: uint8 ``[H, W]``, the picture.
        boxes: float ``[N, 4]``, left, top, right, bottom in pixels. They are edges: the box of a whole
            picture is ``0, 0, W, H``.
        landmarks: float ``[N, 5, 2]``, x and y of left eye, right eye (as seen in the picture), nose and
            corners of the mouth; required only if ``geometry.align == "eyes"``.
        geometry: Position of the face in the crop; FER2013's by default.
        size: Side S of the crops in pixels.

    Returns:
        uint8 ``[N, S, S]``.

    Raises:
        ImageError: If arrays do not match in length, or a box is empty, not finite or too large.
    """
    _check_gray(gray)
    squares = _squares(boxes, landmarks, geometry or CropGeometry())
    crops = np.empty((len(squares), size, size), np.uint8)
    for k, square in enumerate(squares):
        crops[k] = _crop_square(gray, square, size)
    return crops


def crop_corners(
    boxes: ArrayLike, landmarks: ArrayLike | None = None, *, geometry: CropGeometry | None = None
) -> NDArray[np.float64]:
    """Return the corners of the squares that :func:`crop_faces` cuts.

    Returns:
        float64 ``[N, 4, 2]``: x, y in pixels; upper left, upper right, lower right, lower left.

    Raises:
        ImageError: As :func:`crop_faces`.
    """
    unit = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    corners = []
    for square in _squares(boxes, landmarks, geometry or CropGeometry()):
        cos, sin = float(np.cos(square.angle)), float(np.sin(square.angle))
        corners.append(unit @ (square.side * np.array([[cos, sin], [-sin, cos]])) + (square.x, square.y))
    return np.array(corners).reshape(-1, 4, 2)


def fit_crop(gray: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize a picture that is a face crop already, uint8 ``[H, W]``, to uint8 ``[size, size]``.

    A picture that is not square is padded by replicating its borders: squeezing would distort the face.

    Raises:
        ImageError: If the picture is not uint8 ``[H, W]``, is empty, or has a side above 30,000 pixels.
    """
    _check_gray(gray)
    height, width = gray.shape
    if max(height, width) > _MAX_SIDE:
        raise ImageError(f"a face crop has at most {_MAX_SIDE} pixels a side. Received: {height} x {width}")
    if (height, width) == (size, size):
        return gray
    return _crop_square(gray, _Square(width / 2, height / 2, max(height, width)), size)


def tta_views(crops: NDArray[Any], tta: TtaMode, *, shift: int = 2) -> list[NDArray[Any]]:
    """Return the views of test-time augmentation: a list of arrays shaped like ``crops``.

    ``none``: the crops. ``flip``: the crops and their mirror images. ``ten-crop``: the crops and their four
    diagonal shifts by ``shift`` pixels with replicated edges, then the mirror images of those five.

    Args:
        crops: ``[N, S, S]``, any dtype.
        tta: One of :data:`TTA_MODES`.
        shift: Pixels, for ``ten-crop``.

    Raises:
        ImageError: If the tta is unknown, the shift is negative, or the crops are not ``[N, S, S]``.
    """
    if tta not in TTA_MODES:
        raise ImageError(f"unknown tta {tta!r}; known are {', '.join(TTA_MODES)}")
    if crops.ndim != 3 or shift < 0:
        raise ImageError(
            f"views need crops [N, S, S] and a shift of at least 0. "
            f"Received: {list(crops.shape)}, shift {shift}"
        )
    views = [crops]
    if tta == "ten-crop":
        height, width = crops.shape[1:]
        padded = np.pad(crops, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        views += [
            padded[:, dy : dy + height, dx : dx + width] for dy in (0, 2 * shift) for dx in (0, 2 * shift)
        ]
    if tta != "none":
        views += [view[:, :, ::-1] for view in views]
    return views


def _squares(boxes: ArrayLike, landmarks: ArrayLike | None, geometry: CropGeometry) -> list[_Square]:
    """Validate boxes and landmarks, and return the square of each face."""
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
        square = _square_of_box(box, geometry) if eyes is None else _square_of_eyes(eyes[k], geometry)
        if not np.isfinite([square.x, square.y]).all() or not 0 < square.side <= _MAX_SIDE:
            raise ImageError(
                f"a face has a finite position and an extent of 1 to {_MAX_SIDE} pixels. "
                f"Received: box {box.tolist()}"
            )
        squares.append(square)
    return squares


def _square_of_box(box: NDArray[np.float64], geometry: CropGeometry) -> _Square:
    """Return the square in which ``box`` lies at the position that ``geometry`` gives it."""
    left, top, right, bottom = geometry.box
    width, height = box[2] - box[0], box[3] - box[1]
    # Boxes of one face vary in shape more than in area, so the side of the crop is computed from the area.
    side = float(np.sqrt(max(0.0, width * height) / ((right - left) * (bottom - top))))
    x = (box[0] + box[2]) / 2 - ((left + right) / 2 - 0.5) * side
    y = (box[1] + box[3]) / 2 - ((top + bottom) / 2 - 0.5) * side
    return _Square(float(x), float(y), side)


def _square_of_eyes(eyes: NDArray[np.float64], geometry: CropGeometry) -> _Square:
    """Return the square in which the eyes ``[2, 2]`` lie at the positions that ``geometry`` gives them."""
    left, right = complex(*geometry.left_eye), complex(*geometry.right_eye)
    turn = complex(*(eyes[1] - eyes[0])) / (right - left)
    centre = complex(*eyes.mean(axis=0)) + turn * (complex(0.5, 0.5) - (left + right) / 2)
    return _Square(centre.real, centre.imag, abs(turn), float(np.angle(turn)))


def _crop_square(gray: NDArray[np.uint8], square: _Square, size: int) -> NDArray[Any]:
    """Crop a square and resize it to ``size`` pixels.

    The square is sampled at about the picture's own resolution, then averaged over whole pixels of the crop:
    area interpolation that works at any angle and keeps fractions of a pixel.
    """
    import cv2

    side, cos, sin = square.side, float(np.cos(square.angle)), float(np.sin(square.angle))
    reach = side / 2 * (abs(cos) + abs(sin)) + 2
    height, width = gray.shape
    left, right = (int(np.clip(v, 0, width - 1)) for v in (square.x - reach, square.x + reach))
    top, bottom = (int(np.clip(v, 0, height - 1)) for v in (square.y - reach, square.y + reach))
    region = np.ascontiguousarray(gray[top : bottom + 1, left : right + 1])
    over = min(max(1, int(np.ceil(side / size))), _MAX_OVERSAMPLING)
    grid = size * over
    step, middle = side / grid, (grid - 1) / 2
    # Boxes are given by pixel edges, OpenCV counts pixel centres: an offset of half a pixel.
    to_region = step * np.array([[cos, -sin, -middle * (cos - sin)], [sin, cos, -middle * (sin + cos)]])
    to_region[:, 2] += (square.x - 0.5 - left, square.y - 0.5 - top)
    if step >= 2:
        # A face of thousands of pixels would need a grid of millions, so the region is shrunk first.
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


def _check_gray(gray: NDArray[np.uint8]) -> None:
    if gray.dtype != np.uint8 or gray.ndim != 2 or not gray.size:
        raise ImageError(f"faces are cropped from uint8 [H, W]. Received: {gray.dtype} {list(gray.shape)}")
