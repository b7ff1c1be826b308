"""Facial expression recognition: train and ship small networks, and read expressions from photos and video.

>>> import ferkit
>>> recognizer = ferkit.Recognizer()
>>> [face.label for face in recognizer.predict("examples/astronaut.jpg").faces]
['happy']

What this module offers is imported when it is first used, so that ``import ferkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ferkit.core.classifier import FaceClassifier
    from ferkit.core.errors import FerkitError
    from ferkit.core.images import load_image
    from ferkit.data.load import load_data
    from ferkit.evaluation.report import evaluate
    from ferkit.export.run import export_run as export
    from ferkit.recognize import (
        Explanation,
        Expression,
        Face,
        Photo,
        Quality,
        Recognizer,
        Unreadable,
        to_pandas,
    )
    from ferkit.training.recipe import load_recipe
    from ferkit.training.runs import load_run
    from ferkit.training.trainer import train
    from ferkit.video.recognition import FrameResult, TrackedFace
    from ferkit.video.smoothing import Smoothing

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "Expression",
    "Face",
    "FaceClassifier",
    "FerkitError",
    "FrameResult",
    "Photo",
    "Quality",
    "Recognizer",
    "Smoothing",
    "TrackedFace",
    "Unreadable",
    "__version__",
    "evaluate",
    "export",
    "load_data",
    "load_image",
    "load_recipe",
    "load_run",
    "to_pandas",
    "train",
]

_HOMES = {
    "Explanation": "ferkit.recognize",
    "Expression": "ferkit.recognize",
    "Face": "ferkit.recognize",
    "FaceClassifier": "ferkit.core.classifier",
    "FerkitError": "ferkit.core.errors",
    "FrameResult": "ferkit.video.recognition",
    "Photo": "ferkit.recognize",
    "Quality": "ferkit.recognize",
    "Recognizer": "ferkit.recognize",
    "Smoothing": "ferkit.video.smoothing",
    "TrackedFace": "ferkit.video.recognition",
    "Unreadable": "ferkit.recognize",
    "evaluate": "ferkit.evaluation.report",
    "export": "ferkit.export",
    "load_data": "ferkit.data.load",
    "load_image": "ferkit.core.images",
    "load_recipe": "ferkit.training.recipe",
    "load_run": "ferkit.training.runs",
    "to_pandas": "ferkit.recognize",
    "train": "ferkit.training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ferkit' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except Exception as error:
        from ferkit.core.errors import MissingDependencyError
        from ferkit.core.extras import explain_import_error

        explained = error if isinstance(error, MissingDependencyError) else explain_import_error(error)
        if explained is None:
            raise
        if explained is not error:
            explained.__cause__ = error
        return _absent(name, explained)
    globals()[name] = value
    return value


def _absent(name: str, why: FerkitError) -> Any:
    """Return what stands for a function whose libraries are not installed: it says so when it is called."""

    def absent(*_: Any, **__: Any) -> Any:
        raise why

    absent.__name__ = absent.__qualname__ = name
    absent.__doc__ = f"Not installed: {why}."
    return absent


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
