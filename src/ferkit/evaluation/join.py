"""The output ``basic``: fit how a FER2013 and a FER+ head are joined, and compute joined probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError
from ferkit.core.extras import require
from ferkit.core.modelfile import HeadInfo, Join
from ferkit.core.taxonomy import BASIC, FER2013, FERPLUS, FERPLUS_TO_FER2013, Taxonomy
from ferkit.data.dataset import FaceDataset
from ferkit.data.ferplus import soft_targets
from ferkit.evaluation.calibration import FOLDS, TEMPERATURE_RANGE, assign_folds, log_probabilities, softmax

VOTES = 0.7
"""Share of the FER+ taggers in the label distributions that a join is fitted to; the rest is the label.

Of 0.4 to 0.8, this share gives the largest sum of the accuracies on both label sets of PublicTest.
"""

PRIOR_EXPONENT = 0.5
"""Faces are weighted so that labels are as frequent as this power of their frequency.

1 is the prior of the data set, where few faces are fear or disgust; with 0 all labels are equally likely. On
PublicTest, a half gains most of the mean recall for little of the accuracy (results/basic/exponents.csv).
"""

LEAST_FACES = 30
"""Nothing is joined by fewer faces."""

HEADS = (FER2013, FERPLUS)
"""The heads that ``basic`` joins, in the order of the weights."""


def columns_of(head: Taxonomy) -> NDArray[np.int64]:
    """Return the column of each label of ``basic`` in a head's probabilities, int64 ``[7]``."""
    plus = {fer2013: name for name, fer2013 in FERPLUS_TO_FER2013.items()}
    return np.array([head.index(label if head == FER2013 else str(plus[label])) for label in BASIC.labels])


def has_both(heads: Mapping[str, Taxonomy]) -> bool:
    """Return whether a model has the heads that ``basic`` joins, and no such output yet."""
    return all(heads.get(head.id) == head for head in HEADS) and BASIC.id not in heads


def is_labelled_for_basic(dataset: FaceDataset) -> bool:
    """Return whether ``basic`` can be fitted: to enough faces with FER2013's labels and FER+ votes."""
    return len(dataset) >= LEAST_FACES and dataset.taxonomy == FER2013 and dataset.votes is not None


def label_distributions(dataset: FaceDataset, votes: float = VOTES) -> NDArray[np.float64]:
    """Return the distribution of each face's label over ``basic``: FER2013's label and the FER+ votes.

    A face without a vote for one of the seven labels has FER2013's label alone.

    A share ``votes`` of each distribution is that of the taggers.

    Returns:
        float64 ``[N, 7]``; rows sum to one.

    Raises:
        DataError: If the faces have other labels, or no votes.
    """
    if dataset.taxonomy != FER2013 or dataset.votes is None:
        raise DataError(
            f"{BASIC.id} is fitted to FER2013's labels and FER+ votes. Received: labels of "
            f"{dataset.taxonomy.id}{'' if dataset.votes is not None else ', no votes'} in {dataset.source}"
        )
    label = np.eye(len(FER2013))[dataset.labels][:, columns_of(FER2013)]
    counts = dataset.votes[:, columns_of(FERPLUS)].astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    voted = np.where(total > 0, counts / np.maximum(total, 1), label)
    return np.asarray((1 - votes) * label + votes * voted)


def label_frequencies(dataset: FaceDataset, head: Taxonomy) -> tuple[float, ...]:
    """Return how frequent each label of a head is among the targets that the head is trained on.

    Returns:
        Shares by label; empty if the data set has no such labels.
    """
    if head == dataset.taxonomy:
        counts = np.bincount(dataset.labels, minlength=len(head)).astype(np.float64)
    elif head == FERPLUS and dataset.votes is not None:
        targets, weights = soft_targets(dataset.votes)
        counts = (targets * weights[:, None]).sum(axis=0, dtype=np.float64)
    else:
        return ()
    return tuple((counts / counts.sum()).tolist()) if counts.sum() else ()


def fit_join(
    probabilities: Mapping[str, ArrayLike],
    distributions: NDArray[np.float64],
    *,
    votes: float = VOTES,
    prior_exponent: float = PRIOR_EXPONENT,
) -> HeadInfo:
    """Fit the join with the least weighted NLL.

    The nine numbers (two weights and T, seven offsets) minimise ``-sum_ik v_k q_ik log p_ik``, where q are
    the label distributions and v makes labels as frequent as the given power of their frequency. A
    penalty that weighs as much as one face holds them where few faces leave them open.

    Args:
        probabilities: Of both heads, by id: ``[N, 7]`` and ``[N, 8]``.
        distributions: q, ``[N, 7]``, from :func:`label_distributions`.
        votes: The share of the votes in q, for the record.
        prior_exponent: 1 keeps the frequencies of the labels, 0 makes them equal.

    Returns:
        The output ``basic``: join, temperature and prior.

    Raises:
        DataError: If the arrays do not fit together.
    """
    optimize = require("scipy.optimize", "train")
    logs = _logs(probabilities)
    if distributions.shape != logs.shape[1:]:
        raise DataError(
            f"label distributions must be {list(logs.shape[1:])}. Received: {list(distributions.shape)}"
        )
    weighted, prior = _weigh(distributions, prior_exponent)
    total = weighted.sum()
    start = np.array([0.5, 0.5, *np.zeros(len(BASIC))])

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = np.tensordot(point[:2], logs, axes=1) - point[2:]
        peak = logits.max(axis=1, keepdims=True)
        normaliser = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        error = weighted.sum(axis=1, keepdims=True) * np.exp(logits - normaliser) - weighted
        slope = np.array([(error * logs[0]).sum(), (error * logs[1]).sum(), *-error.sum(axis=0)])
        away = point - start
        nll = -float((weighted * (logits - normaliser)).sum())
        return (nll + float(away @ away) / 2) / total, (slope + away) / total

    low, high = TEMPERATURE_RANGE
    bounds = [(0.5 / high, 0.5 / low)] * 2 + [(None, None)] * len(BASIC)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-10).x
    scale = float(found[:2].sum())
    weights = {head.id: round(float(w) / scale, 6) for head, w in zip(HEADS, found, strict=False)}
    offsets = (found[2:] - found[2:].mean()) / scale
    join = Join(weights=weights, offsets=tuple(offsets.tolist()), votes=votes, prior_exponent=prior_exponent)
    return HeadInfo(
        id=BASIC.id,
        labels=BASIC.labels,
        temperature=round(1 / scale, 6),
        prior=tuple(prior.tolist()),
        join=join,
    )


def joined(head: HeadInfo, probabilities: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """Return the probabilities float64 ``[N, 7]`` of a join, from those of both heads by id.

    Raises:
        DataError: If the output joins nothing.
    """
    if head.join is None:
        raise DataError(f"output {head.id!r} joins no heads")
    weights = np.array([head.join.weights[one.id] for one in HEADS])
    logits = np.tensordot(weights, _logs(probabilities), axes=1) - np.array(head.join.offsets)
    return softmax(logits / head.temperature)


def joined_out_of_fold(
    probabilities: Mapping[str, NDArray[Any]],
    distributions: NDArray[np.float64],
    *,
    votes: float = VOTES,
    prior_exponent: float = PRIOR_EXPONENT,
) -> NDArray[np.float64]:
    """Return joined probabilities float64 ``[N, 7]``, each face by a join that was fitted without its fold.

    Arguments are those of :func:`fit_join`.

    Raises:
        DataError: If the arrays do not fit together or hold too few faces.
    """
    part = assign_folds(len(distributions))
    result = np.empty_like(distributions)
    for fold in range(FOLDS):
        inside = part == fold
        head = fit_join(
            {name: p[~inside] for name, p in probabilities.items()},
            distributions[~inside],
            votes=votes,
            prior_exponent=prior_exponent,
        )
        result[inside] = joined(head, {name: p[inside] for name, p in probabilities.items()})
    return result


def weighted_distributions(dataset: FaceDataset, join: Join) -> NDArray[np.float64]:
    """Return the label distributions that a join is fitted to, weighted by label, float64 ``[N, 7]``."""
    return _weigh(label_distributions(dataset, join.votes), join.prior_exponent)[0]


def _weigh(
    distributions: NDArray[np.float64], prior_exponent: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return distributions in which labels are as frequent as a power of their frequency, and that prior."""
    # One more face, spread over all labels, leaves no label without frequency.
    frequency = (distributions.sum(axis=0) + 1 / len(BASIC)) / (len(distributions) + 1)
    prior = frequency**prior_exponent / (frequency**prior_exponent).sum()
    return distributions * (prior / frequency), prior


def _logs(probabilities: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """Return log p of both heads in the columns of ``basic``, float64 ``[2, N, 7]``."""
    try:
        arrays = [np.asarray(probabilities[head.id], np.float64) for head in HEADS]
    except KeyError as error:
        raise DataError(f"{BASIC.id} needs the probabilities of {error}") from None
    if arrays[0].shape[:1] != arrays[1].shape[:1] or any(
        array.ndim != 2 or array.shape[1] != len(head) for array, head in zip(arrays, HEADS, strict=True)
    ):
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        raise DataError(f"probabilities must be [N, 7] and [N, 8]. Received: {shapes}")
    return np.stack(
        [log_probabilities(array[:, columns_of(head)]) for array, head in zip(arrays, HEADS, strict=True)]
    )
