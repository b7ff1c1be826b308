"""From photos to expressions: the recognizer, its results, drawing and writers."""

from __future__ import annotations

from ferkit.recognize.quality import Quality
from ferkit.recognize.recognizer import Recognizer
from ferkit.recognize.results import Explanation, Expression, Face, Photo, Unreadable, to_pandas

__all__ = [
    "Explanation",
    "Expression",
    "Face",
    "Photo",
    "Quality",
    "Recognizer",
    "Unreadable",
    "to_pandas",
]
