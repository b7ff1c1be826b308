"""Face detectors behind one small interface, by name from a registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ferkit.core.errors import DetectorError
from ferkit.detect.base import Detection, Detector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DEFAULT", "DETECTORS", "Detection", "Detector", "make_detector"]


class _Entry(NamedTuple):
    """Where a detector's class is, and which of ``min_face``, ``providers`` and ``threads`` it takes.

    With ``takes_file`` it may be written ``NAME:FILE``, with a network of the user's own.
    """

    module: str
    factory: str
    settings: tuple[str, ...] = ()
    takes_file: bool = False


DEFAULT = "yunet"
"""The detector that is used when none is named."""

_ALL = ("min_face", "providers", "threads")

DETECTORS = {
    "yunet": _Entry("ferkit.detect.yunet", "YuNet", _ALL, takes_file=True),
    "centerface": _Entry("ferkit.detect.centerface", "CenterFace", _ALL),
    "none": _Entry("ferkit.detect.whole", "WholePicture"),
}
"""Every detector by name."""


def make_detector(
    spec: str = DEFAULT,
    *,
    min_face: float | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Detector:
    """Return a detector.

    Args:
        spec: ``yunet``; ``yunet:FILE`` with another file of that network; ``centerface``; or ``none`` for
            pictures that are face crops already.
        min_face: Height in pixels of the smallest face, at least 5; by default the detector's own.
        providers: ONNX Runtime execution providers.
        threads: Threads per call.

    Raises:
        FerkitError: If the providers are no sequence of names.
        MissingDependencyError: If a provider is not available here.
        DetectorError: If there is no such detector, its file is missing, ``min_face`` is out of its range, or
            the detector does not take it.
    """
    name, _, file = spec.partition(":")
    entry = DETECTORS.get(name)
    if entry is None:
        usage = [f"{one}[:FILE]" if DETECTORS[one].takes_file else one for one in DETECTORS]
        raise DetectorError(f"unknown detector {name!r}; known are {', '.join(usage)}")
    if spec != name and not (file and entry.takes_file):
        usage = [name, f"{name}:FILE"] if entry.takes_file else [name]
        raise DetectorError(f"the detector is written {' or '.join(usage)}. Received: {spec!r}")
    if min_face is not None and "min_face" not in entry.settings:
        raise DetectorError(f"the detector {name!r} takes whole pictures and has no min_face")
    given = {"min_face": min_face, "providers": providers, "threads": threads}
    settings: dict[str, Any] = {key: given[key] for key in entry.settings}
    factory: Callable[..., Detector] = getattr(importlib.import_module(entry.module), entry.factory)
    return factory(file, **settings) if file else factory(**settings)
