"""What comes out of the instrument: expressions, faces, photos. Frozen, and exact: nothing is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.errors import ImageError
from ferkit.taxonomy import Taxonomy

UNCERTAIN = "uncertain"
"""The label where no probability reaches the confidence that the caller asks for."""

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
"""Names of the five landmarks; left and right as seen in the picture."""


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of a face.

    Attributes:
        label: The most probable label, or ``uncertain``.
        confidence: The largest probability, calibrated, 0..1.
        probabilities: Probability of every label, in the taxonomy's order; they sum to one.
    """

    label: str
    confidence: float
    probabilities: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "label": self.label,
            "confidence": self.confidence,
            "probabilities": dict(self.probabilities),
        }


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photo.

    Attributes:
        box: Left, top, right, bottom in pixels of the upright photo; may reach beyond its borders.
        score: How sure the detector is that this is a face, 0..1.
        landmarks: x, y in pixels of left eye, right eye, nose, left and right corner of the mouth (left
            and right as seen in the picture); None where the detector gives none.
        expression: What the face shows.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...] | None
    expression: Expression

    @property
    def label(self) -> str:
        """The most probable label, or ``uncertain``."""
        return self.expression.label

    @property
    def confidence(self) -> float:
        """The largest probability."""
        return self.expression.confidence

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Probability of every label."""
        return self.expression.probabilities

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        marks = self.landmarks
        return {
            "box": list(self.box),
            "score": self.score,
            "landmarks": None
            if marks is None
            else {n: list(m) for n, m in zip(LANDMARKS, marks, strict=True)},
            **self.expression.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Photo:
    """What was found in a photo.

    Attributes:
        source: The file, or None for bytes, arrays and Pillow images.
        width: In pixels, upright.
        height: In pixels, upright.
        taxonomy: Id of the label set.
        faces: The faces, the surest first; empty if there is none.
    """

    source: str | None
    width: int
    height: int
    taxonomy: str
    faces: tuple[Face, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "source": self.source,
            "width": self.width,
            "height": self.height,
            "taxonomy": self.taxonomy,
            "faces": [face.to_dict() for face in self.faces],
        }


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A photo that could not be read, among others that could.

    Attributes:
        source: The file, or None for bytes, arrays and Pillow images.
        error: Why.
    """

    source: str | None
    error: ImageError


def expressions(
    probabilities: NDArray[np.float32], taxonomy: Taxonomy, *, min_confidence: float = 0.0
) -> tuple[Expression, ...]:
    """Turn probabilities float32 ``[N, K]`` into expressions; below ``min_confidence`` they are uncertain."""
    found = []
    for row in probabilities:
        values = row.tolist()
        best = int(np.argmax(row))
        label = taxonomy.labels[best] if values[best] >= min_confidence else UNCERTAIN
        named = MappingProxyType(dict(zip(taxonomy.labels, values, strict=True)))
        found.append(Expression(label, values[best], named))
    return tuple(found)
