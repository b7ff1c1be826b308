"""Face detectors behind one small interface, by name from a registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from ferkit.detect.base import Detection, Detector
from ferkit.errors import DetectorError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DETECTORS", "Detection", "Detector", "make_detector"]


class _Entry(NamedTuple):
    module: str
    factory: str
    takes_file: bool
    searches: bool
    """Whether it knows the size of the smallest face."""


DETECTORS = {
    "centerface": _Entry("ferkit.detect.centerface", "CenterFace", takes_file=False, searches=True),
    "yunet": _Entry("ferkit.detect.yunet", "YuNet", takes_file=True, searches=True),
    "none": _Entry("ferkit.detect.whole", "WholePicture", takes_file=False, searches=False),
}
"""Every detector by name."""


def make_detector(spec: str = "centerface", *, min_face: float | None = None) -> Detector:
    """Return a detector.

    Args:
        spec: ``centerface``; ``yunet:FILE``, with the network's file; or ``none`` for pictures that are
            face crops already.
        min_face: Height in pixels of the smallest face wanted; None leaves it to the detector.

    Raises:
        DetectorError: If there is no such detector, its file is missing, or it has no use for ``min_face``.
    """
    name, _, file = spec.partition(":")
    entry = DETECTORS.get(name)
    if entry is None:
        raise DetectorError(f"unknown detector {name!r}; known are centerface, yunet:FILE and none")
    if entry.takes_file != bool(file):
        want = f"{name}:FILE" if entry.takes_file else name
        raise DetectorError(f"the detector is written {want}. Received: {spec!r}")
    if min_face is not None and not entry.searches:
        raise DetectorError(f"detector {name!r} takes pictures whole, so there is no smallest face to set")
    factory: Callable[..., Detector] = getattr(importlib.import_module(entry.module), entry.factory)
    options = {"min_face": min_face} if entry.searches else {}
    return factory(file, **options) if entry.takes_file else factory(**options)
