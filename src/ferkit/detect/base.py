"""The interface of face detectors, and what they share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DetectorError


@dataclass(frozen=True, slots=True)
class Detection:
    """A face found in a picture. NumPy's numbers and arrays become plain floats and tuples.

    Attributes:
        box: Left, top, right, bottom in pixels of the picture. They are edges: the whole picture is
            ``(0, 0, W, H)``. A face at the border may reach beyond it.
        score: Confidence of the detector, 0..1.
        landmarks: x, y in pixels of the left eye and the right eye (as seen in the picture), the nose,
            the left and the right corner of the mouth; None if the detector gives none.

    Raises:
        DetectorError: If the box is not four numbers, the score is not one, the landmarks are not five points
            of two, or a number is not finite.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        """Validate the values, which may come from a user's own detector, and convert them."""
        box = _finite(self.box, (4,), "box is left, top, right, bottom")
        object.__setattr__(self, "box", tuple(box.tolist()))
        object.__setattr__(self, "score", float(_finite(self.score, (), "score is one number")))
        if self.landmarks is not None:
            marks = _finite(self.landmarks, (5, 2), "landmarks are x, y of five points, or None")
            object.__setattr__(self, "landmarks", tuple((x, y) for x, y in marks.tolist()))

    def scaled(self, across: float, down: float) -> Detection:
        """Return the same face in a picture whose width and height are multiplied by these factors."""
        left, top, right, bottom = self.box
        marks = self.landmarks and tuple((x * across, y * down) for x, y in self.landmarks)
        return Detection((left * across, top * down, right * across, bottom * down), self.score, marks)


def _finite(value: object, shape: tuple[int, ...], rule: str) -> NDArray[np.float64]:
    """Return a value as finite numbers of that shape."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise DetectorError(f"a detection's {rule}. Received: {value!r}") from None
    if numbers.shape != shape:
        raise DetectorError(f"a detection's {rule}. Received the shape: {list(numbers.shape)}")
    if not np.isfinite(numbers).all():
        raise DetectorError(f"a detection's {rule}, all finite. Received: {numbers.tolist()}")
    return numbers


def as_detections(
    boxes: NDArray[Any], scores: NDArray[Any], landmarks: NDArray[Any]
) -> tuple[Detection, ...]:
    """Return detections of boxes ``[N, 4]``, scores ``[N]`` and landmarks ``[N, 5, 2]``."""
    rows = zip(boxes.tolist(), scores.tolist(), landmarks.tolist(), strict=True)
    return tuple(Detection(box, score, marks) for box, score, marks in rows)


class Detector(Protocol):
    """Finds faces. A detector is safe to use from several threads at once."""

    @property
    def name(self) -> str:
        """The name in the registry, or any name of a user's own detector."""
        ...

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        """Find the faces of one picture.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Returns:
            The faces, by falling score, each once; empty if there is none.

        Raises:
            DetectorError: If the detector fails.
        """
        ...


@runtime_checkable
class ReducingDetector(Detector, Protocol):
    """A detector that may be given a reduced picture, which decoders of JPEG give in a third of the time."""

    @property
    def longest_side(self) -> int | None:
        """Pixels of a picture's longer side above which more of them change little; None: no limit."""
        ...

    def detect(self, image: NDArray[np.uint8], reduced: float = 1.0) -> tuple[Detection, ...]:
        """Find the faces of one picture, in pixels of ``image``; see :meth:`Detector.detect`.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            reduced: Factor by which the picture was reduced; the smallest face searched for is that of the
                original.
        """
        ...


def check_settings(min_face: float | None, min_score: float) -> None:
    """Refuse settings of a detector that are out of range.

    Args:
        min_face: Height in pixels of the smallest face, at least 5; None for the detector's own.
        min_score: Smallest score of a face, between 0 and 1.

    Raises:
        DetectorError: If one is out of its range, or not a number.
    """
    if min_face is not None and not 5 <= min_face < math.inf:
        raise DetectorError(f"min_face must be at least 5 pixels. Received: {min_face}")
    if not 0 < min_score < 1:
        raise DetectorError(f"min_score lies between 0 and 1. Received: {min_score}")


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], *, overlap: float = 0.3, cover: float = 0.7
) -> NDArray[np.intp]:
    """Return the rows of the boxes to keep, by falling score: non-maximum suppression.

    A box is removed if a better one overlaps it by more than ``overlap`` (intersection over union), or if one
    of the two covers more than ``cover`` of the smaller one: a part of a face is not a second face.

    Args:
        boxes: float ``[N, 4]``, left, top, right, bottom.
        scores: float ``[N]``.
        overlap: Largest intersection over union of two faces.
        cover: Largest intersection over the smaller area of two faces.
    """
    left, top, right, bottom = boxes.T
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        width = np.minimum(right[best], right[order]) - np.maximum(left[best], left[order])
        height = np.minimum(bottom[best], bottom[order]) - np.maximum(top[best], top[order])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[best] + area[order] - shared
        smaller = np.minimum(area[best], area[order])
        order = order[(shared <= overlap * union) & (shared <= cover * smaller)]
    return np.array(kept, dtype=np.intp)
