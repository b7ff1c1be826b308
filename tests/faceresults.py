"""Results made by hand, for tests of results, sinks and drawing."""

from __future__ import annotations

from typing import Any

from ferkit.core.taxonomy import FER2013
from ferkit.recognize.quality import Quality
from ferkit.recognize.results import UNCERTAIN, Expression, Face, Photo
from ferkit.video.recognition import FrameResult, TrackedFace

MARKS = tuple((20.0 + k, 30.0 + k) for k in range(5))


def expression(label: str, confidence: float = 0.7) -> Expression:
    """The label has that probability (``uncertain``: fear has it), the others share the rest."""
    best = "fear" if label == UNCERTAIN else label
    rest = (1 - confidence) / 6
    return Expression(label, confidence, {n: confidence if n == best else rest for n in FER2013.labels})


def example_face(label: str = "happy", marks: Any = MARKS) -> Face:
    quality = None if marks is None else Quality(59.5, 0.8, 120.0, -4.5, 3.0, 1.0, 0.0, ("small", "cut off"))
    return Face((10.25, 20.5, 60.0, 80.0), 0.875, marks, expression(label), quality)


PHOTOS = [
    Photo('a,"b".jpg', 160, 120, "fer2013", (example_face(), example_face(marks=None))),
    Photo("empty.jpg", 160, 120, "fer2013", ()),
    Photo(None, 160, 120, "fer2013", (example_face(UNCERTAIN),)),
]


def tracked(track: int | None = 1, label: str = "happy", marks: Any = MARKS) -> TrackedFace:
    return TrackedFace(track, example_face(label, marks), expression("sad", 0.5), detected=True)


def frame(index: int, *faces: TrackedFace, rate: float = 10.0) -> FrameResult:
    return FrameResult(index, index / rate, 1 / rate, 160, 120, "fer2013", faces)
