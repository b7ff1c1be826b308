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
    """Where a detector's class is, and which of ``min_face``, ``providers`` and ``threads`` it takes."""

    module: str
    factory: str
    settings: tuple[str, ...] = ()
    takes_file: bool = False


DETECTORS = {
    "centerface": _Entry("ferkit.detect.centerface", "CenterFace", ("min_face", "providers", "threads")),
    "yunet": _Entry("ferkit.detect.yunet", "YuNet", ("min_face",), takes_file=True),
    "none": _Entry("ferkit.detect.whole", "WholePicture"),
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
        spec: ``centerface``; ``yunet:FILE`` with the file of the network; or ``none`` for pictures that are
            face crops already.
        min_face: Height in pixels of the smallest face, at least 5; by default the detector's own. Its class
            documents the limit in large pictures: ``yunet`` finds no face below a 213th of the longest side.
        providers: ONNX Runtime execution providers, for ``centerface``.
        threads: Threads per call, for ``centerface``.

    Raises:
        FerkitError: If the providers are no sequence of names.
        MissingDependencyError: If a provider is not available here.
        DetectorError: If there is no such detector, its file is missing, ``min_face`` is out of its range, or
            the detector does not take it.
    """
    name, _, file = spec.partition(":")
    entry = DETECTORS.get(name)
    usage = {known: f"{known}:FILE" if one.takes_file else known for known, one in DETECTORS.items()}
    if entry is None:
        raise DetectorError(f"unknown detector {name!r}; known are {', '.join(usage.values())}")
    if entry.takes_file != bool(file):
        raise DetectorError(f"the detector is written {usage[name]}. Received: {spec!r}")
    if min_face is not None and "min_face" not in entry.settings:
        raise DetectorError(f"the detector {name!r} takes whole pictures and has no min_face")
    given = {"min_face": min_face, "providers": providers, "threads": threads}
    settings: dict[str, Any] = {key: given[key] for key in entry.settings}
    factory: Callable[..., Detector] = getattr(importlib.import_module(entry.module), entry.factory)
    return factory(file, **settings) if entry.takes_file else factory(**settings)
