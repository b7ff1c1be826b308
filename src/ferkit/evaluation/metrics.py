"""Metrics of a classifier: pure NumPy functions of true labels and predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError

ECE_BINS = 15
"""Equal-width bins of the expected calibration error (Guo et al. 2017)."""

SMALLEST_PROBABILITY = 1e-12
"""Probabilities are raised to this before the logarithm, so that the loss stays finite."""

ROUNDING = 1e-2
"""How far a row of probabilities may sum from 1: float16 and int8 networks round."""

Z95 = NormalDist().inv_cdf(0.975)
"""Half the width of a 95 % interval in standard deviations."""


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class, in 0..1."""

    label: str  # name of the class
    support: int  # number of faces of this class
    precision: float | None  # share of the predictions of this class that are right; None without predictions
    recall: float | None  # share of the faces of this class that are predicted as such; None without faces
    f1: float | None  # harmonic mean of both; None without faces and predictions


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Faces whose top probability lies in ``(low, high]``."""

    low: float  # lower edge
    high: float  # upper edge
    count: int  # number of faces
    confidence: float  # their mean top probability, 0 for an empty bin
    accuracy: float  # the share of right predictions among them, 0 for an empty bin


def _checked_labels(labels: ArrayLike, name: str, classes: int | None = None) -> NDArray[np.int64]:
    """Return ``labels`` as int64 ``[N]``, N > 0, each in 0..classes-1."""
    array = np.asarray(labels)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} must be one-dimensional and not empty. Received shape: {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} must be integers. Received: {array.dtype}")
    if classes is not None and not 0 <= int(array.min()) <= int(array.max()) < classes:
        raise DataError(f"{name} must lie in 0..{classes - 1}. Received: {array.min()}..{array.max()}")
    return array.astype(np.int64)


def _checked_pair(
    labels: ArrayLike, predicted: ArrayLike, classes: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both as int64 ``[N]`` of one length."""
    truth = _checked_labels(labels, "labels", classes)
    guess = _checked_labels(predicted, "predictions", classes)
    if len(truth) != len(guess):
        raise DataError(f"{len(truth)} labels need as many predictions. Received: {len(guess)}")
    return truth, guess


def checked_probabilities(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return both as float64 ``[N, K]`` and int64 ``[N]`` after checking that they fit together.

    Raises:
        DataError: If shapes do not fit, a row does not sum to 1 (within 0.01), a value is negative or not
            finite, or a label has no column.
    """
    array = np.asarray(probabilities, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2:
        raise DataError(f"probabilities must be [N, K] with K of at least 2. Received shape: {array.shape}")
    truth = _checked_labels(labels, "labels", array.shape[1])
    if len(truth) != len(array):
        raise DataError(f"{len(truth)} labels need as many rows of probabilities. Received: {len(array)}")
    if not np.isfinite(array).all():
        raise DataError("probabilities must be finite. Received: NaN or infinity")
    sums = array.sum(axis=1)
    if array.min() < 0 or np.abs(sums - 1).max() > ROUNDING:
        raise DataError(
            "each row of probabilities must be positive and sum to 1. Received: minimum "
            f"{array.min():.3g}, sums {sums.min():.4g}..{sums.max():.4g}; these may be logits"
        )
    return array, truth


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Return the share of right predictions.

    Args:
        labels: Integers ``[N]``.
        predicted: Integers ``[N]``.

    Raises:
        DataError: If there is nothing to measure or the lengths differ.

    Example:
        >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
        0.75
    """
    truth, guess = _checked_pair(labels, predicted)
    return float(np.mean(truth == guess))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share ``correct / total`` (Wilson 1927).

    Raises:
        DataError: If ``correct`` does not lie in 0..total, or total is 0.

    Example:
        >>> low, high = wilson_interval(2387, 3589)
        >>> round(low, 4), round(high, 4)
        (0.6495, 0.6803)
    """
    if total < 1 or not 0 <= correct <= total:
        raise DataError(f"an interval needs 0 <= correct <= total, total > 0. Received: {correct} of {total}")
    share, z2 = correct / total, Z95**2 / total
    centre = share + z2 / 2
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    # At 0 and at total the bound is exact in theory and a rounding error away in floating point.
    low = 0.0 if correct == 0 else (centre - half) / (1 + z2)
    return low, 1.0 if correct == total else (centre + half) / (1 + z2)


def mean_recall(correct: Sequence[int], support: Sequence[int]) -> tuple[float, tuple[float, float]]:
    """Return the plain mean of the recalls of the classes that have faces, and its 95 % interval.

    The interval is the normal approximation for independent classes. One right and one wrong face are added
    to each class for its variance, so that a recall of 0 or 1 is not taken as certain.

    Args:
        correct: Right predictions of each class, ``[K]``.
        support: Faces of each class, ``[K]``; not all 0.

    Example:
        >>> value, (low, high) = mean_recall([90, 5, 0], [100, 10, 0])
        >>> round(value, 2), round(low, 2), round(high, 2)
        (0.7, 0.56, 0.84)
    """
    pairs = [(c, n) for c, n in zip(correct, support, strict=True) if n]
    value = sum(c / n for c, n in pairs) / len(pairs)
    variance = sum((c + 1) * (n - c + 1) / (n + 2) ** 3 for c, n in pairs) / len(pairs) ** 2
    half = Z95 * math.sqrt(variance)
    return value, (max(0.0, value - half), min(1.0, value + half))


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count predictions: int64 ``[K, K]``, row = true class, column = predicted class.

    Raises:
        DataError: If a label or a prediction does not lie in 0..classes-1.
    """
    truth, guess = _checked_pair(labels, predicted, classes)
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)


def per_class(confusion: NDArray[np.int64], names: tuple[str, ...]) -> tuple[ClassScores, ...]:
    """Return precision, recall, F1 and support of every class.

    Args:
        confusion: int ``[K, K]`` as :func:`confusion_matrix` returns it.
        names: The K class names.
    """
    columns = (np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
    return tuple(
        ClassScores(
            label=name,
            support=support,
            precision=hits / predicted if predicted else None,
            recall=hits / support if support else None,
            f1=2 * hits / (support + predicted) if support + predicted else None,
        )
        for name, hits, support, predicted in zip(names, *(c.tolist() for c in columns), strict=True)
    )


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the plain mean of F1 over the classes that occur or are predicted, as scikit-learn does."""
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    seen = both > 0
    return float(np.mean(2 * np.diag(confusion)[seen] / both[seen]))


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of ``-log p(true class)``, in nats; see :func:`log_losses`."""
    return float(log_losses(probabilities, labels).mean())


def log_losses(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return ``-log p(true class)`` of each face, in nats: float64 ``[N]``.

    Args:
        probabilities: ``[N, K]``, each row summing to 1; raised to 1e-12 before the logarithm.
        labels: Integers ``[N]``.

    Raises:
        DataError: As :func:`checked_probabilities`.
    """
    array, truth = checked_probabilities(probabilities, labels)
    chosen = array[np.arange(len(truth)), truth]
    return np.asarray(-np.log(np.maximum(chosen, SMALLEST_PROBABILITY)))


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = ECE_BINS
) -> tuple[ReliabilityBin, ...]:
    """Compare the top probability with the share of right predictions, in equal-width bins ``(low, high]``.

    Raises:
        DataError: As :func:`checked_probabilities`.
    """
    array, truth = checked_probabilities(probabilities, labels)
    top, right = array.max(axis=1), array.argmax(axis=1) == truth
    edges = np.linspace(0, 1, bins + 1)
    where = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    means = [np.bincount(where, weights=w, minlength=bins) / np.maximum(count, 1) for w in (top, right)]
    columns = (edges[:-1], edges[1:], count, *means)
    return tuple(ReliabilityBin(*row) for row in zip(*(c.tolist() for c in columns), strict=True))


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top label (Guo et al. 2017), in 0..1.

    It is biased upwards: a perfectly calibrated model has about 0.018 on 3,589 faces.

    Raises:
        DataError: As :func:`reliability`.
    """
    found = reliability(probabilities, labels, bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / sum(b.count for b in found)
