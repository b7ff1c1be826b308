"""Face detectors behind one small interface, by name from a registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ferkit.core.errors import DetectorError
from ferkit.detect.base import Detection, Detector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DETECTORS", "Detection", "Detector", "make_detector"]


class _Entry(NamedTuple):
    module: str
    factory: str
    takes_file: bool
    searches: bool
    """Whether it knows the size of the smallest face."""
    sessions: bool
    """Whether ONNX Runtime runs it, so that its providers and threads can be chosen."""


DETECTORS = {
    "centerface": _Entry("ferkit.detect.centerface", "CenterFace", False, True, True),
    "yunet": _Entry("ferkit.detect.yunet", "YuNet", True, True, False),
    "none": _Entry("ferkit.detect.whole", "WholePicture", False, False, False),
}
"""Every detector by name."""


def make_detector(
    spec: str = "centerface",
    *,
    min_face: float | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Detector:
    """Return a detector.

    Args:
        spec: ``centerface``; ``yunet:FILE``, with the network's file; or ``none`` for pictures that are
            face crops already.
        min_face: Height in pixels of the smallest face wanted, at least 5; None leaves it to the detector.
            How small it can be in a large picture, the detector's class tells: ``yunet`` finds nothing below
            a 213th of the longest side.
        providers: ONNX Runtime execution providers; only ``centerface`` runs on ONNX Runtime, the others
            have no use for it.
        threads: Threads of one call, likewise.

    Raises:
        FerkitError: If the providers are no sequence of names.
        MissingDependencyError: If a provider is not available here.
        DetectorError: If there is no such detector, its file is missing, ``min_face`` is out of its range, or
            the detector has no use for it.
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
    options: dict[str, Any] = {"min_face": min_face} if entry.searches else {}
    if entry.sessions:
        options |= {"providers": providers, "threads": threads}
    return factory(file, **options) if entry.takes_file else factory(**options)
