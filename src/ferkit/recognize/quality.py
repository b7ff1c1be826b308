"""The quality of a detected face: size, sharpness, brightness, pose, and whether the border cuts it off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.measures import brightness, sharpness

FLAGS = ("small", "blurred", "dark", "turned", "tilted", "cut off")
"""Warnings about a face; see :class:`Quality`."""

SMALL = 24.0
"""Height in pixels below which a face is ``small``: half of the size that the networks were trained on."""

BLURRED = 0.45
"""Sharpness below which a face is ``blurred``: that of less than 1 % of FER2013's crops."""

DARK = 30.0
"""Brightness below which a face is ``dark``: that of less than 0.1 % of FER2013's crops.

Detectors find such faces, but the networks were not trained on them: of FER2013's faces, darkened to 25, a
tenth more are misclassified, and darker faces become neutral.
"""

TURNED = 35.0
"""Degrees of yaw or pitch from which a face is ``turned``."""

TILTED = 30.0
"""Degrees of roll from which a face is ``tilted``: more than the networks were trained on."""

CUT_OFF = 0.04
"""Distance of the box from the border, in sides of the box, below which a face is ``cut off``.

Boxes of faces that the border cuts end at the border or hardly beyond it.
"""

# A frontal face in units of the distance of the eyes: x to the right, y down, z away from the viewer. x and y
# are the medians of YuNet's landmarks on FER2013, made symmetric; depths are those of an average head.
_HEAD = np.array(
    [(-0.5, 0, 0), (0.5, 0, 0), (0, 0.57, -0.5), (-0.41, 1.01, -0.05), (0.41, 1.01, -0.05)], np.float64
)


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of a face. It is reported; no face is left out because of it.

    Attributes:
        size: Height of the face's box in pixels of the photo.
        sharpness: Detail of the face at the network's input size: the standard deviation of the Laplacian
            over that of the pixels; about 0.5 to 1.2 in FER2013.
        brightness: Mean gray of the middle of the crop, two thirds of each side, 0..255.
        yaw: Degrees by which the face is turned to the right of the picture; None without landmarks.
        pitch: Degrees by which it is turned up.
        roll: Degrees by which it is tilted clockwise.
        outside: Share of the face's box beyond the border of the photo, 0..1.
        flags: Those of :data:`FLAGS` that apply.
    """

    size: float
    sharpness: float
    brightness: float
    yaw: float | None
    pitch: float | None
    roll: float | None
    outside: float
    flags: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self) | {"flags": list(self.flags)}


def measure_quality(
    box: tuple[float, float, float, float],
    landmarks: ArrayLike | None,
    crop: NDArray[np.uint8],
    width: int,
    height: int,
) -> Quality:
    """Measure the quality of a face.

    The box is left, top, right, bottom in pixels of the photo, landmarks are float ``[5, 2]`` or None, the
    crop is the network's input, uint8 ``[S, S]``; width and height are those of the photo.
    """
    left, top, right, bottom = box
    inside = max(0.0, min(right, width) - max(left, 0.0)) * max(0.0, min(bottom, height) - max(top, 0.0))
    area = (right - left) * (bottom - top)
    outside = min(1.0, max(0.0, 1 - inside / area)) if area > 0 else 0.0
    detail = sharpness(crop)
    angles = None if landmarks is None else head_pose(landmarks)
    yaw, pitch, roll = angles or (None, None, None)
    light = brightness(crop)
    applies = {
        "small": bottom - top < SMALL,
        "blurred": detail < BLURRED,
        "dark": light < DARK,
        "turned": angles is not None and max(abs(angles[0]), abs(angles[1])) >= TURNED,
        "tilted": angles is not None and abs(angles[2]) >= TILTED,
        "cut off": _reaches_border(box, width, height),
    }
    flags = tuple(flag for flag in FLAGS if applies[flag])
    return Quality(bottom - top, detail, light, yaw, pitch, roll, outside, flags)


def head_pose(landmarks: ArrayLike) -> tuple[float, float, float] | None:
    """Return yaw, pitch and roll in degrees, or None if the landmarks cannot be those of a face.

    An average head is fitted to the landmarks under scaled orthographic projection (least squares, then the
    nearest rotation). With five points the error is about 10 degrees, and more for profiles; angles are
    rounded to a millionth of a degree.

    Args:
        landmarks: float ``[5, 2]``: eyes, nose, corners of the mouth, left to right as seen in the picture.

    Example:
        >>> head_pose([(40, 50), (60, 50), (50, 61.4), (41.8, 70.2), (58.2, 70.2)])
        (0.0, 0.0, 0.0)
    """
    points = np.asarray(landmarks, np.float64).reshape(5, 2)
    if not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        return None
    head = _HEAD - _HEAD.mean(axis=0)
    projection = np.linalg.lstsq(head, points - points.mean(axis=0), rcond=None)[0].T
    left, scale, right = np.linalg.svd(projection, full_matrices=False)
    if scale[1] < 1e-6 * max(1.0, scale[0]):
        return None
    across, down = left @ right
    forward = -np.array([across[2], down[2], across[0] * down[1] - across[1] * down[0]])
    yaw = np.arctan2(forward[0], -forward[2])
    pitch = np.arctan2(-forward[1], np.hypot(forward[0], forward[2]))
    roll = np.arctan2(down[0], across[0])
    # Rounding errors would otherwise appear as -0.0 or 1e-15 for frontal faces.
    yaw, pitch, roll = (round(float(np.degrees(angle)), 6) + 0.0 for angle in (yaw, pitch, roll))
    return yaw, pitch, roll


def _reaches_border(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    left, top, right, bottom = box
    if box == (0, 0, width, height):  # a face crop, used whole
        return False
    across, down = CUT_OFF * (right - left), CUT_OFF * (bottom - top)
    return left < across or top < down or right > width - across or bottom > height - down
