"""Calibration on poor faces: temperatures by sharpness and brightness, fitted to degraded faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ferkit.core.measures import brightness, sharpness
from ferkit.core.modelfile import QualityCurve
from ferkit.evaluation.calibration import fit_soft_temperature, log_probabilities
from ferkit.evaluation.degrade import BLUR, LOW_LIGHT, Kind, degraded

FACES = 600
"""Faces that are degraded, in each of ten ways; more change the temperatures by little."""

NOISE = 1.1
"""Fitted temperatures below this do not differ from 1 by more than chance, with :data:`FACES` faces."""

_MEASURES: tuple[tuple[Literal["sharpness", "brightness"], Kind, Callable[[Any], float]], ...] = (
    ("sharpness", BLUR, sharpness),
    ("brightness", LOW_LIGHT, brightness),
)


def fit_quality(
    predict: Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]],
    faces: NDArray[np.uint8],
    targets: Mapping[str, NDArray[np.float64]],
) -> dict[str, tuple[QualityCurve, ...]]:
    """Return how an output's temperature depends on sharpness and brightness.

    Faces are blurred and darkened in five steps; each step has a temperature, at the median of the measure.
    Temperatures below :data:`NOISE` become 1, and others are raised to that of any better step, so that a
    worse face never raises confidence.

    Args:
        predict: From faces uint8 ``[N, S, S]`` to calibrated probabilities by output.
        faces: uint8 ``[N, S, S]``, at most :data:`FACES` of which are used, evenly spread.
        targets: Label distributions ``[N, K]`` by output; rows of zeros do not count.

    Returns:
        The curves by output; an output that is calibrated on all steps has none.
    """
    rows = np.unique(np.linspace(0, len(faces) - 1, min(FACES, len(faces))).round().astype(int))
    found: dict[str, list[QualityCurve]] = {head: [] for head in targets}
    for name, kind, measure in _MEASURES:
        points: dict[str, list[tuple[float, float]]] = {head: [] for head in targets}
        for step in kind.steps:
            worse = degraded(faces[rows], kind, step)
            value = float(np.median([measure(face) for face in worse]))
            predictions = predict(worse)
            for head, target in targets.items():
                logits = log_probabilities(predictions[head])
                points[head].append((value, fit_soft_temperature(logits, target[rows])))
        for head, curve in points.items():
            curve.sort(reverse=True)
            values = [round(value, 3) for value, _ in curve]
            risen = np.maximum.accumulate([t if t > NOISE else 1.0 for _, t in curve]).round(3)
            # Steps without correction end where the last of them is.
            first = int(np.argmax(risen > 1)) if (risen > 1).any() else len(risen)
            if first == len(risen):
                continue
            begin = max(0, first - 1)
            kept = [1.0 if k < first else float(t) for k, t in enumerate(risen)]
            found[head].append(
                QualityCurve(
                    measure=name,
                    values=tuple(values[begin:][::-1]),
                    temperatures=tuple(kept[begin:][::-1]),
                )
            )
    return {head: tuple(curves) for head, curves in found.items()}
