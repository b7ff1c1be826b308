"""Balancing rare classes: by copies, by drawing with replacement, or by weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError

BALANCES = ("none", "copies", "oversample", "weights")
"""``copies``: every class filled up to the largest with repeated rows, which augmentation then varies;
``oversample``: as many rows as before, drawn so that classes are equally likely; ``weights``: rows as they
are, weighted by the inverse frequency of their class."""


def class_weights(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Return float32 ``[classes]``: inverse frequencies, of mean 1 over the rows; 0 for an absent class."""
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    weights = np.zeros(classes, np.float32)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def balanced_rows(labels: NDArray[np.int64], balance: str, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of one epoch, shuffled.

    Args:
        labels: int64 ``[N]``.
        balance: One of :data:`BALANCES`.
        rng: Source of randomness; the same state gives the same rows.

    Raises:
        DataError: If ``balance`` is unknown.
    """
    if balance not in BALANCES:
        raise DataError(f"unknown balance {balance!r}; known are {', '.join(BALANCES)}")
    rows = np.arange(len(labels))
    if balance == "copies":
        counts = np.bincount(labels)
        extra = [
            rng.choice(np.flatnonzero(labels == label), counts.max() - count)
            for label, count in enumerate(counts)
            if count
        ]
        rows = np.concatenate([rows, *extra])
    elif balance == "oversample":
        weights = class_weights(labels, int(labels.max()) + 1)[labels].astype(np.float64)
        rows = rng.choice(len(labels), len(labels), p=weights / weights.sum())
    return rng.permutation(rows)
