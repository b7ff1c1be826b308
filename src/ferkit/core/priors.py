"""Priors of labels: correct probabilities for another one, estimate it from the faces, and read it.

A network answers as if labels were as frequent as where it was trained or fitted. Where other frequencies are
known, Bayes' rule corrects its probabilities; where they are not, they can be estimated from the predictions
(Saerens, Latinne and Decaestecker 2002).
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import FerkitError, TaxonomyError
from ferkit.core.modelfile import HeadInfo

KINDS = ("training", "uniform")
"""Priors by name: that of the training labels, and equal frequencies."""

STRENGTH = 50.0
"""Faces as many as which the known prior counts when another is estimated."""

_STEPS = 1000
_CHANGE = 1e-6

Prior = str | os.PathLike[str] | Mapping[str, float] | None
"""A name of :data:`KINDS`, a TOML file, or a frequency by label; None for the model's own prior."""


def shift_prior(probabilities: ArrayLike, known: ArrayLike, wanted: ArrayLike) -> NDArray[np.float64]:
    """Return probabilities under another prior: ``p * wanted / known``, renormalised.

    Args:
        probabilities: ``[N, K]``.
        known: The prior that they presume, ``[K]``.
        wanted: The other prior, ``[K]``; its sum does not matter.

    Returns:
        float64 ``[N, K]``; rows sum to one.

    Example:
        >>> shift_prior([[0.8, 0.2]], [0.8, 0.2], [0.5, 0.5])
        array([[0.5, 0.5]])
    """
    p = np.asarray(probabilities, np.float64)
    shifted = np.maximum(p, 1e-12) * (np.asarray(wanted, np.float64) / np.asarray(known, np.float64))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def estimate_prior(
    probabilities: ArrayLike, known: ArrayLike, *, strength: float = STRENGTH
) -> NDArray[np.float64]:
    """Return how frequent labels are among the faces themselves, by expectation maximisation.

    Args:
        probabilities: ``[N, K]``, under the known prior.
        known: The prior that they presume, ``[K]``.
        strength: Faces as many as which the known prior counts, so that few faces change it little.

    Returns:
        float64 ``[K]``, summing to one; the known prior for no face.
    """
    p, old = np.asarray(probabilities, np.float64), np.asarray(known, np.float64)
    old = old / old.sum()
    prior = old
    for _ in range(_STEPS):
        before = prior
        prior = (shift_prior(p, old, before).sum(axis=0) + strength * old) / (len(p) + strength)
        if np.abs(prior - before).max() < _CHANGE:
            break
    return np.asarray(prior)


def read_prior(wanted: Prior, head: HeadInfo) -> NDArray[np.float64] | None:
    """Return a prior over the labels of an output, float64 ``[K]``; None for the model's own.

    ``training`` of an output that joins heads is the label frequencies of the faces it was fitted to.

    Raises:
        FerkitError: If the file cannot be read, or a frequency is not a positive number.
        TaxonomyError: If labels are missing or unknown, or the model does not record a prior for the output.
    """
    if wanted is None:
        return None
    if not head.prior or not all(head.prior):
        raise TaxonomyError(
            f"the model does not record the prior of {head.id!r}, or a label was never seen, so it cannot be "
            "replaced; export the model again"
        )
    if wanted == "uniform":
        return np.full(len(head.labels), 1 / len(head.labels))
    if wanted == "training":
        power = 1.0 if head.join is None else head.join.prior_exponent
        if not power:
            raise TaxonomyError(
                f"output {head.id!r} was fitted without a training prior; name the frequencies"
            )
        own = np.array(head.prior) ** (1 / power)
        return np.asarray(own / own.sum())
    shares = wanted if isinstance(wanted, Mapping) else _read(wanted)
    name = "the prior" if isinstance(wanted, Mapping) else os.fspath(wanted)
    missing = [label for label in head.labels if label not in shares]
    unknown = [label for label in shares if label not in head.labels]
    if missing or unknown:
        what = f"{', '.join(missing)} missing" if missing else f"{', '.join(map(str, unknown))} unknown"
        raise TaxonomyError(
            f"{name} needs a frequency for each label of {head.id!r}: {', '.join(head.labels)}. "
            f"Received: {what}"
        )
    values = [shares[label] for label in head.labels]
    for label, value in zip(head.labels, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise FerkitError(
                f"{name}: frequencies must be positive numbers. Received: {label} = {value!r}; give a rare "
                "label a small one"
            )
    found = np.array(values, np.float64)
    return np.asarray(found / found.sum())


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the frequencies in a TOML file."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        kinds = ", ".join(KINDS)
        raise FerkitError(
            f"cannot read the prior {os.fspath(path)}: {error}. Expected: {kinds}, or a TOML file with "
            "LABEL = FREQUENCY for each label"
        ) from error
