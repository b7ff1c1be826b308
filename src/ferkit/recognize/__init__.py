"""From photos to expressions: the recognizer, its results, drawing and writers."""

from __future__ import annotations

from ferkit.recognize.recognizer import Recognizer
from ferkit.recognize.results import Expression, Face, Photo, Unreadable

__all__ = ["Expression", "Face", "Photo", "Recognizer", "Unreadable"]
