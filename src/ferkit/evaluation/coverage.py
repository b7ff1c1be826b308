"""Selective answers: the error among the faces whose confidence reaches a threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError
from ferkit.core.modelfile import Coverage

THRESHOLDS = tuple(round(0.02 * k, 2) for k in range(50))
"""Confidences of a coverage curve."""

LEAST_FACES = 50
"""A curve ends before the threshold that fewer faces reach: their error is not determined."""


def measure_coverage(
    probabilities: ArrayLike, right: NDArray[np.float64], *, split: str, labels: str
) -> Coverage | None:
    """Return the coverage curve of predictions (El-Yaniv and Wiener 2010).

    Args:
        probabilities: ``[N, K]``, out of fold where they were fitted to these faces.
        right: float64 ``[N, K]``, 0..1: how right each label would be. One-hot rows are labels; distributions
            of annotators make the error the share of annotators who disagree.
        split: The split, for the record.
        labels: The labels, for the record.

    Returns:
        The curve; None for fewer faces than :data:`LEAST_FACES`.

    Raises:
        DataError: If the shapes differ.
    """
    array = np.asarray(probabilities, np.float64)
    if array.ndim != 2 or array.shape != right.shape:
        raise DataError(f"probabilities and labels must be [N, K]. Received: {array.shape}, {right.shape}")
    if len(array) < LEAST_FACES:
        return None
    confidence = array.max(axis=1)
    wrong = 1 - right[np.arange(len(array)), array.argmax(axis=1)]
    reached = [confidence >= threshold for threshold in THRESHOLDS]
    kept = [k for k, rows in enumerate(reached) if rows.sum() >= LEAST_FACES]
    return Coverage(
        split=split,
        labels=labels,
        n=len(array),
        thresholds=tuple(THRESHOLDS[k] for k in kept),
        coverage=tuple(float(reached[k].mean()) for k in kept),
        error=tuple(float(wrong[reached[k]].mean()) for k in kept),
    )
