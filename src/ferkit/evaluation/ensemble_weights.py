"""The weights of a vote: fitted by minimising NLL, and judged on faces that they were not fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError
from ferkit.core.extras import require
from ferkit.evaluation.calibration import (
    FOLDS,
    TEMPERATURE_RANGE,
    assign_folds,
    determined_temperature,
    fit_temperature,
    log_probabilities,
    softmax,
    temper,
)
from ferkit.evaluation.metrics import (
    SMALLEST_PROBABILITY,
    accuracy,
    checked_probabilities,
    expected_calibration_error,
    negative_log_likelihood,
    wilson_interval,
)

LEAST_FACES = 13
"""To fewer faces no vote is fitted: outside each fold there must be ten, which determine a temperature
(:func:`ferkit.evaluation.calibration.determined_temperature`), or figures out of fold were of another fit."""

LEAST_WEIGHT = 0.01
"""A fitted weight below this share of the largest is set to 0: it costs arithmetic and changes nothing."""


@dataclass(frozen=True, slots=True)
class Vote:
    """How members vote.

    Args:
        weights: One per member, summing to 1.
        temperature: T of the mean p, which becomes ``softmax(log p / T)``.
    """

    weights: tuple[float, ...]
    temperature: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one way to answer: accuracy in 0..1, NLL in nats, ECE in 0..1."""

    accuracy: float
    nll: float
    ece: float


@dataclass(frozen=True, slots=True)
class FittedVote:
    """A vote, and what it is worth.

    Args:
        vote: The vote, fitted on all faces.
        n: Number of faces.
        members: Each member's figures, as it answers alone.
        equal: Equal weights, under a temperature fitted out of fold: what fitting must beat. None where
            there are fewer than :data:`LEAST_FACES`.
        in_sample: The vote on the faces that it was fitted to: too good to be believed.
        out_of_fold: The same fit, made five times, each time measured on the fifth that it had not seen.
            None where nothing was fitted, the faces being fewer than :data:`LEAST_FACES`.
        held_out: What the votes behind ``out_of_fold`` answer, float64 ``[N, K]``, or None.
    """

    vote: Vote
    n: int
    members: tuple[Figures, ...]
    equal: Figures | None
    in_sample: Figures
    out_of_fold: Figures | None
    held_out: NDArray[np.float64] | None = field(repr=False, compare=False)

    def interval(self, figures: Figures) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the accuracy among any of these figures."""
        return wilson_interval(round(figures.accuracy * self.n), self.n)


def _checked_members(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return float64 ``[M, N, K]`` and int64 ``[N]``."""
    array = np.asarray(probabilities, dtype=np.float64)
    if array.ndim != 3 or not len(array):
        raise DataError(f"members' probabilities must be [M, N, K]. Received shape: {array.shape}")
    for member in array:
        _, truth = checked_probabilities(member, labels)
    return array, truth


def mean_probabilities(probabilities: NDArray[Any], weights: ArrayLike) -> NDArray[np.float64]:
    """Return the weighted mean ``[N, K]`` of members' probabilities ``[M, N, K]``."""
    return np.asarray(np.tensordot(np.asarray(weights, dtype=np.float64), probabilities, axes=1))


def apply_vote(probabilities: NDArray[Any], vote: Vote) -> NDArray[np.float64]:
    """Return what the ensemble answers, ``[N, K]``, from its members' probabilities ``[M, N, K]``."""
    return temper(mean_probabilities(probabilities, vote.weights), vote.temperature)


def fit_vote(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Vote:
    """Return the vote whose NLL is least.

    Args:
        probabilities: ``[M, N, K]``, one layer per member.
        labels: Integers ``[N]``.
        weights: M weights that sum to 1 and stay as they are, so that only the temperature is fitted; None to
            fit both. Fitted weights below :data:`LEAST_WEIGHT` of the largest become 0.

    Returns:
        The vote; its temperature is 1 where the faces do not determine one, as in an exported file.

    Raises:
        DataError: If the arrays do not fit together.
        MissingDependencyError: If SciPy is not installed.
    """
    array, truth = _checked_members(probabilities, labels)
    chosen = _fit_weights(array, truth) if weights is None else _checked_weights(array, weights)
    temperature = determined_temperature(log_probabilities(mean_probabilities(array, chosen)), truth)
    return Vote(tuple(float(w) for w in chosen), temperature)


def _checked_weights(array: NDArray[np.float64], weights: ArrayLike) -> NDArray[np.float64]:
    chosen = np.asarray(weights, dtype=np.float64)
    if chosen.shape != (len(array),):
        raise DataError(f"{len(array)} members need as many weights. Received shape: {chosen.shape}")
    return chosen


def _fit_weights(array: NDArray[np.float64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weights that, with the best temperature, give the least NLL."""
    if len(array) == 1:
        return np.ones(1)
    optimize = require("scipy.optimize", "train")
    members, faces = len(array), len(truth)
    rows = np.arange(faces)

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return NLL and its gradient; the last coordinate is 1 / T, in which NLL is convex."""
        weights, beta = point[:-1], point[-1]
        mean = np.maximum(mean_probabilities(array, weights), SMALLEST_PROBABILITY)
        logits = np.log(mean)
        answer = softmax(beta * logits)
        error = answer.copy()
        error[rows, truth] -= 1
        gradient = np.empty_like(point)
        gradient[:-1] = np.einsum("mnk,nk->m", array, beta * error / mean) / faces
        gradient[-1] = float((error * logits).sum()) / faces
        chosen = np.maximum(answer[rows, truth], SMALLEST_PROBABILITY)
        return float(-np.log(chosen).mean()), gradient

    low, high = TEMPERATURE_RANGE
    start = np.append(np.full(members, 1 / members), 1.0)
    found = optimize.minimize(
        loss,
        start,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * members + [(1 / high, 1 / low)],
        constraints=optimize.LinearConstraint(np.append(np.ones(members), 0.0)[None], 1, 1),
        options={"maxiter": 500, "ftol": 1e-10},
    )
    # A search that stops early may have found worse weights than equal ones: each is judged at its best T.
    candidates = [start[:-1]]
    if np.isfinite(found.x).all() and found.x[:-1].sum() > 0:
        candidates.append(found.x[:-1] / found.x[:-1].sum())
    chosen = min(candidates, key=lambda weights: _best_loss(array, truth, weights))
    kept = np.where(chosen < LEAST_WEIGHT * chosen.max(), 0.0, chosen)
    return np.asarray(kept / kept.sum())


def _best_loss(array: NDArray[np.float64], truth: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Return the NLL of weights under the temperature that suits them."""
    mean = mean_probabilities(array, weights)
    temperature = fit_temperature(log_probabilities(mean), truth)
    return negative_log_likelihood(temper(mean, temperature), truth)


def _figures(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> Figures:
    return Figures(
        accuracy=accuracy(labels, probabilities.argmax(axis=1)),
        nll=negative_log_likelihood(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
    )


def vote_out_of_fold(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None, folds: int = FOLDS
) -> NDArray[np.float64]:
    """Return what the ensemble answers, ``[N, K]``, each face by a vote that was fitted without its fold.

    Args:
        probabilities: ``[M, N, K]``.
        labels: Integers ``[N]``.
        weights: As :func:`fit_vote`.
        folds: Number of folds.

    Raises:
        DataError: If the arrays do not fit together or hold too few faces.
        MissingDependencyError: If SciPy is not installed.
    """
    array, truth = _checked_members(probabilities, labels)
    part = assign_folds(len(truth), folds)
    result = np.empty(array.shape[1:])
    for fold in range(folds):
        inside = part == fold
        vote = fit_vote(array[:, ~inside], truth[~inside], weights)
        result[inside] = apply_vote(array[:, inside], vote)
    return result


def judge_vote(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> FittedVote:
    """Fit a vote and say what it is worth beside its members and beside equal weights.

    To fewer than :data:`LEAST_FACES` nothing is fitted: the weights are those given, or equal, and the
    temperature is 1.

    Args:
        probabilities: ``[M, N, K]``.
        labels: Integers ``[N]``.
        weights: As :func:`fit_vote`.

    Raises:
        DataError: If the arrays do not fit together.
        MissingDependencyError: If SciPy is not installed.
    """
    array, truth = _checked_members(probabilities, labels)
    even = np.full(len(array), 1 / len(array))
    enough = len(truth) >= LEAST_FACES
    if enough:
        vote = fit_vote(array, truth, weights)
    else:
        given = even if weights is None else _checked_weights(array, weights)
        vote = Vote(tuple(float(w) for w in given), 1.0)
    held_out = vote_out_of_fold(array, truth, weights) if enough else None
    return FittedVote(
        vote=vote,
        n=len(truth),
        members=tuple(_figures(member, truth) for member in array),
        equal=_figures(vote_out_of_fold(array, truth, even), truth) if enough else None,
        in_sample=_figures(apply_vote(array, vote), truth),
        out_of_fold=None if held_out is None else _figures(held_out, truth),
        held_out=held_out,
    )
