"""Weights and temperature of an ensemble, fitted to its members' predictions and evaluated out of fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError, ModelFileError
from ferkit.core.extras import require
from ferkit.core.modelfile import Fit, Metric
from ferkit.data.dataset import FaceDataset
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
from ferkit.evaluation.evaluate import Scores, Target, evaluate_split, leaks_show, measure
from ferkit.evaluation.metrics import SMALLEST_PROBABILITY, checked_probabilities, negative_log_likelihood
from ferkit.evaluation.model import metric_rows

LEAST_FACES = 13
"""Nothing is fitted to fewer faces: outside each fold there must be ten, which determine a temperature
(:func:`ferkit.evaluation.calibration.determined_temperature`)."""

LEAST_WEIGHT = 0.01
"""A fitted weight below this share of the largest is set to 0: it costs arithmetic and changes nothing."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """How members' predictions are combined."""

    weights: tuple[float, ...]  # one per member, summing to 1
    temperature: float = 1.0  # T of the mean p, which becomes ``softmax(log p / T)``

    def combine(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """Return the ensemble's probabilities ``[N, K]`` from its members' ``[M, N, K]``."""
        return temper(mean_probabilities(probabilities, self.weights), self.temperature)


@dataclass(frozen=True, slots=True)
class EnsembleFit:
    """What was fitted in one taxonomy, and the scores with it."""

    taxonomy: str
    labels: str  # the labels that it was fitted to, as in :attr:`ferkit.evaluation.evaluate.Target.name`
    fit: Fit  # what was fitted
    members: tuple[int, ...]  # positions of the members that have the taxonomy
    weighting: Weighting  # the weights of these members, and the temperature
    alone: tuple[Scores, ...]  # the scores of each of them
    # Equal weights, under a temperature that was fitted out of fold; None if nothing was fitted.
    equal: Scores | None
    in_sample: Scores  # the ensemble on the faces that it was fitted to, which is too favourable
    # Five fits, each measured on the fifth that it had not seen; None if nothing was fitted.
    out_of_fold: Scores | None
    # The ensemble's probabilities for every face of the split, float64 ``[N, K]``.
    predictions: NDArray[np.float64] = field(repr=False, compare=False)
    # The same, but out of fold for the labelled faces.
    held_out: NDArray[np.float64] = field(repr=False, compare=False)


def normalised(weights: Sequence[float], has: Sequence[bool]) -> tuple[float, ...]:
    """Return the weights of the members that have a taxonomy, made to sum to 1, and 0 for the others.

    Where all the weight lies on members without it, those that have it get equal weights.

    Raises:
        ModelFileError: If there is not one weight per member, or one is negative, not finite, or all are 0.
    """
    if len(weights) != len(has):
        raise ModelFileError(f"{len(has)} members need as many weights. Received: {len(weights)}")
    if not all(0 <= w < float("inf") for w in weights) or not sum(weights):
        raise ModelFileError(
            f"weights must be finite, not negative, and one above 0. Received: {list(weights)}"
        )
    kept = [w if h else 0.0 for w, h in zip(weights, has, strict=True)]
    kept = kept if sum(kept) else [float(h) for h in has]
    return tuple(w / sum(kept) for w in kept)


def mean_probabilities(probabilities: NDArray[Any], weights: ArrayLike) -> NDArray[np.float64]:
    """Return the weighted mean ``[N, K]`` of members' probabilities ``[M, N, K]``."""
    return np.asarray(np.tensordot(np.asarray(weights, dtype=np.float64), probabilities, axes=1))


def fit_weighting(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Weighting:
    """Return the weighting with the least NLL.

    Args:
        probabilities: ``[M, N, K]``, one layer per member.
        labels: Integers ``[N]``.
        weights: M fixed weights that sum to 1, so that only the temperature is fitted; None to fit both.
            Fitted weights below :data:`LEAST_WEIGHT` of the largest become 0.

    Returns:
        The weighting; its temperature is 1 where the faces do not determine one.

    Raises:
        DataError: If the arrays do not fit together.
    """
    array, truth, fixed = _checked(probabilities, labels, weights)
    chosen = _fit_weights(array, truth) if fixed is None else fixed
    temperature = determined_temperature(log_probabilities(mean_probabilities(array, chosen)), truth)
    return Weighting(tuple(float(w) for w in chosen), temperature)


def _checked(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
    """Return float64 ``[M, N, K]``, int64 ``[N]`` and float64 ``[M]`` or None."""
    array = np.asarray(probabilities, dtype=np.float64)
    if array.ndim != 3 or not len(array):
        raise DataError(f"members' probabilities must be [M, N, K]. Received shape: {array.shape}")
    for member in array:
        _, truth = checked_probabilities(member, labels)
    fixed = None if weights is None else np.asarray(weights, dtype=np.float64)
    if fixed is not None and fixed.shape != (len(array),):
        raise DataError(f"{len(array)} members need as many weights. Received shape: {fixed.shape}")
    return array, truth, fixed


def _fit_weights(array: NDArray[np.float64], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weights that, with the best temperature, have the least NLL."""
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
        predicted = softmax(beta * logits)
        error = predicted.copy()
        error[rows, truth] -= 1
        gradient = np.empty_like(point)
        gradient[:-1] = np.einsum("mnk,nk->m", array, beta * error / mean) / faces
        gradient[-1] = float((error * logits).sum()) / faces
        chosen = np.maximum(predicted[rows, truth], SMALLEST_PROBABILITY)
        return float(-np.log(chosen).mean()), gradient

    def best_loss(weights: NDArray[np.float64]) -> float:
        """Return the NLL of weights under their best temperature."""
        mean = mean_probabilities(array, weights)
        return negative_log_likelihood(temper(mean, fit_temperature(log_probabilities(mean), truth)), truth)

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
    # A search that stops early may have found worse weights than equal ones.
    candidates = [start[:-1]]
    if np.isfinite(found.x).all() and found.x[:-1].sum() > 0:
        candidates.append(found.x[:-1] / found.x[:-1].sum())
    chosen = min(candidates, key=best_loss)
    kept = np.where(chosen < LEAST_WEIGHT * chosen.max(), 0.0, chosen)
    return np.asarray(kept / kept.sum())


def predict_out_of_fold(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the ensemble's probabilities ``[N, K]``, each face by a weighting fitted without its fold.

    Arguments are those of :func:`fit_weighting`.

    Raises:
        DataError: If the arrays do not fit together or hold too few faces.
    """
    array, truth, fixed = _checked(probabilities, labels, weights)
    part = assign_folds(len(truth))
    result = np.empty(array.shape[1:])
    for fold in range(FOLDS):
        inside = part == fold
        result[inside] = fit_weighting(array[:, ~inside], truth[~inside], fixed).combine(array[:, inside])
    return result


def fit_and_measure(
    probabilities: ArrayLike,
    target: Target,
    weights: Sequence[float] | None = None,
    members: Sequence[int] | None = None,
) -> EnsembleFit:
    """Fit a weighting to the labelled faces of a split, and measure it beside its members and equal weights.

    Nothing is fitted to fewer than :data:`LEAST_FACES`: then the weights are those given, or equal, and the
    temperature is 1.

    ``probabilities`` ``[M, N, K]`` are those of every face of the split; ``members`` are the positions of the
    M members in the ensemble, by default 0..M-1.

    Raises:
        DataError: If the arrays do not fit together.
    """
    everything, keep = np.asarray(probabilities, dtype=np.float64), target.keep
    array, truth, fixed = _checked(everything[:, keep], target.labels[keep], weights)
    equal = np.full(len(array), 1 / len(array))
    enough = len(truth) >= LEAST_FACES
    given = Weighting(tuple(float(w) for w in (equal if fixed is None else fixed)))
    weighting = fit_weighting(array, truth, fixed) if enough else given
    predictions = weighting.combine(everything)
    held_out = predictions.copy()
    if enough:
        held_out[keep] = predict_out_of_fold(array, truth, fixed)

    def scores(predicted: NDArray[np.float64]) -> Scores:
        return measure(predicted, truth, target.taxonomy, target.name)

    return EnsembleFit(
        taxonomy=target.taxonomy.id,
        labels=target.name,
        fit="nothing" if not enough else "temperature" if fixed is not None else "weights and temperature",
        members=tuple(range(len(array)) if members is None else members),
        weighting=weighting,
        alone=tuple(map(scores, array)),
        equal=scores(predict_out_of_fold(array, truth, equal)) if enough else None,
        in_sample=scores(predictions[keep]),
        out_of_fold=scores(held_out[keep]) if enough else None,
        predictions=predictions,
        held_out=held_out,
    )


def fit_ensemble(
    predictions: Sequence[Mapping[str, NDArray[Any]]],
    targets: Sequence[Target],
    weights: Sequence[float],
    *,
    fit_weights: bool = False,
) -> tuple[EnsembleFit, ...]:
    """Fit an ensemble in each taxonomy that a split has labels for.

    Args:
        predictions: Of each member by taxonomy id: ``[N, K]``, of every face of the split.
        targets: The labels; of several for one taxonomy only the first counts (``ferplus majority``).
        weights: One per member.
        fit_weights: Fit the weights as well as the temperature. A taxonomy with fewer labelled faces than
            :data:`LEAST_FACES` then takes the weights of the first one.

    Raises:
        DataError: If the arrays do not fit together.
        ModelFileError: If the weights are no weights.
    """
    fits: list[EnsembleFit] = []
    for target in targets:
        taxonomy = target.taxonomy.id
        if taxonomy in [fit.taxonomy for fit in fits]:
            continue
        has = [taxonomy in predicted for predicted in predictions]
        free = fit_weights and int(target.keep.sum()) >= LEAST_FACES
        fixed = weights_of(fits, weights, has)
        members = [k for k, known in enumerate(has) if known]
        probabilities = np.stack([predictions[k][taxonomy] for k in members])
        given = None if free else [fixed[k] for k in members]
        fits.append(fit_and_measure(probabilities, target, given, members))
    return tuple(fits)


def weights_of(
    fits: Sequence[EnsembleFit], weights: Sequence[float], has: Sequence[bool], taxonomy: str = ""
) -> tuple[float, ...]:
    """Return the members' weights in a taxonomy: fitted there, else in the first fitted one, else as given.

    ``weights`` are the given ones, and ``has`` says whether each member has the taxonomy.

    Raises:
        ModelFileError: If the weights are no weights.
    """
    fitted = [fit for fit in fits if fit.fit == "weights and temperature"]
    source = next((fit for fit in fitted if fit.taxonomy == taxonomy), fitted[0] if fitted else None)
    if source is None:
        return normalised(weights, has)
    known = dict(zip(source.members, source.weighting.weights, strict=True))
    return normalised([known.get(k, 0.0) for k in range(len(has))], has)


def ensemble_metrics(
    fits: Mapping[str, Fit],
    predictions: Mapping[str, NDArray[np.float64]],
    held_out: Mapping[str, NDArray[np.float64]],
    dataset: FaceDataset,
    split: str,
    targets: Sequence[Target],
    trained_on: Sequence[str],
) -> tuple[Metric, ...]:
    """Return the rows of an ensemble's metadata, as :class:`ferkit.core.modelfile.Metric` defines them.

    ``held_out`` are the probabilities by fits that had not seen the face, ``predictions`` those of the file.
    The data set includes the training faces, which show leaks.
    """
    if not fits:
        return ()
    heads = {target.taxonomy.id: target.taxonomy for target in targets if target.taxonomy.id in fits}

    def rows(found: Mapping[str, NDArray[np.float64]]) -> tuple[Metric, ...]:
        return metric_rows(
            evaluate_split(
                lambda *_: found,
                dataset,
                heads=heads,
                split=split,
                drop_leaks=leaks_show(dataset, split, trained_on),
                train_splits=trained_on,
            )
        )

    fit_of = {target.name: fits[target.taxonomy.id] for target in targets if target.taxonomy.id in fits}
    found = []
    for row, unseen in zip(rows(predictions), rows(held_out), strict=True):
        fit = fit_of[row.labels]
        nll, ece = (None, None) if fit == "nothing" else (unseen.nll, unseen.ece)
        found.append(
            replace(unseen, nll=row.nll, ece=row.ece, nll_out_of_fold=nll, ece_out_of_fold=ece, fit=fit)
        )
    return tuple(found)
