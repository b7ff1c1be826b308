"""Temperature scaling: fit a temperature, apply it, and measure calibration out of fold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError
from ferkit.core.extras import require
from ferkit.evaluation.metrics import SMALLEST_PROBABILITY, checked_probabilities

FOLDS = 5
"""Folds of cross-validation."""

TEMPERATURE_RANGE = (0.05, 20.0)
"""Range of a fitted temperature; one at an end of it is not determined by the data."""


def log_probabilities(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Return ``log p`` with p raised to 1e-12: logits at temperature 1, up to a constant per row."""
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST_PROBABILITY))


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in float64."""
    array = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(array - array.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def temper(probabilities: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Return ``softmax(log p / T)``: flatter for T above 1, sharper below; the top label stays.

    Args:
        probabilities: ``[N, K]``.
        temperature: T > 0.

    Raises:
        DataError: If the temperature is not a positive number.
    """
    if not 0 < temperature < float("inf"):
        raise DataError(f"a temperature must be positive and finite. Received: {temperature}")
    return softmax(log_probabilities(probabilities) / temperature)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature T that minimises the NLL of ``softmax(logits / T)`` (Guo et al. 2017).

    Args:
        logits: ``[N, K]``, up to a constant per row. For a model with calibrated probabilities they are
            ``T_old * log p``, and the result replaces T_old.
        labels: Integers ``[N]``.

    Returns:
        T in :data:`TEMPERATURE_RANGE`.

    Raises:
        DataError: If shapes do not fit or a logit is not finite.
    """
    array = np.asarray(logits, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise DataError(f"logits must be finite and [N, K]. Received shape: {array.shape}")
    _, truth = checked_probabilities(softmax(array), labels)
    return fit_soft_temperature(array, np.eye(array.shape[1])[truth])


def fit_soft_temperature(logits: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return the temperature that minimises ``-sum targets * log softmax(logits / T)``.

    Args:
        logits: ``[N, K]``, up to a constant per row.
        targets: Label distributions ``[N, K]``, weighted or not.

    Raises:
        DataError: If the shapes differ.
    """
    optimize, special = require("scipy.optimize", "train"), require("scipy.special", "train")
    if logits.shape != targets.shape:
        raise DataError(f"logits and targets must be [N, K]. Received: {logits.shape}, {targets.shape}")
    low, high = TEMPERATURE_RANGE

    # In beta = 1 / T the loss is convex.
    def loss(log_beta: float) -> float:
        log_p = special.log_softmax(logits * np.exp(log_beta), axis=1)
        return -float((targets * log_p).sum() / targets.sum())

    found = optimize.minimize_scalar(
        loss, bounds=(-np.log(high), -np.log(low)), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(-found.x))


def assign_folds(count: int) -> NDArray[np.int64]:
    """Return the fold of each face, in five of equal size (within one), shuffled: int64 ``[N]``.

    Raises:
        DataError: If there are fewer faces than twice the folds.
    """
    if count < 2 * FOLDS:
        raise DataError(f"{FOLDS} folds need at least {2 * FOLDS} faces. Received: {count}")
    return np.random.default_rng(0).permutation(np.arange(count) % FOLDS)


def temper_out_of_fold(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities, each row under a temperature that was fitted on the other folds.

    Raises:
        DataError: If the arrays do not fit together or hold too few faces.
    """
    array, truth = checked_probabilities(probabilities, labels)
    part = assign_folds(len(truth))
    logits = log_probabilities(array)
    result = np.empty_like(array)
    for fold in range(FOLDS):
        inside = part == fold
        result[inside] = softmax(logits[inside] / fit_temperature(logits[~inside], truth[~inside]))
    return result


def determined_temperature(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Fit a temperature; return 1 where the faces do not determine one.

    Args:
        logits: ``[N, K]``, as :func:`fit_temperature`.
        labels: Integers ``[N]``; fewer than ten, or ones that are all right or all wrong, determine none.

    Raises:
        DataError: If shapes do not fit or a logit is not finite.
    """
    if len(labels) < 2 * FOLDS:
        return 1.0
    fitted = fit_temperature(logits, labels)
    low, high = TEMPERATURE_RANGE
    return fitted if low * 1.01 < fitted < high * 0.99 else 1.0
