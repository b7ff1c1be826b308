"""Measure probabilities against the labels of one split of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import BASIC, FER2013, FERPLUS, FERPLUS_TO_FER2013, Taxonomy
from ferkit.data import faces_digest
from ferkit.data.dataset import FaceDataset
from ferkit.data.duplicates import leaked_rows, rows_of_splits
from ferkit.data.ferplus import argmax_targets, majority_targets
from ferkit.data.labels import OWN, label_in
from ferkit.evaluation.calibration import FOLDS, temper_out_of_fold
from ferkit.evaluation.metrics import (
    ClassScores,
    ReliabilityBin,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    mean_recall,
    negative_log_likelihood,
    per_class,
    reliability,
    wilson_interval,
)

TRAINING_SPLIT = "Training"
"""The split that models are trained on unless their recipe names another."""

SELECTION_SPLIT = "PublicTest"
"""The split on which recipes are compared and temperatures fitted; its figures are labelled so."""

EVERYTHING = "all"
"""In place of the name of a split: all faces."""

logger = logging.getLogger("ferkit.evaluation")

Predict = Callable[[NDArray[np.uint8], str], Mapping[str, NDArray[Any]]]
"""From crops ``[N, S, S]`` and the name of a tta to probabilities ``[N, K]`` by taxonomy id."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores on one set of labels.

    Args:
        labels: Which labels: ``fer2013``, ``ferplus majority``, ``ferplus argmax``, a user's taxonomy, or for
            the output ``basic``: ``basic`` (FER2013's labels), ``basic majority`` (FER+'s without contempt).
        taxonomy: Id of the head whose predictions are measured.
        n: Number of faces.
        correct: Number of right predictions.
        accuracy: Their share, 0..1.
        interval: 95 % Wilson interval of the accuracy.
        mean_recall: Plain mean of the recalls of the classes that have faces, 0..1.
        mean_recall_interval: Its 95 % interval (:func:`ferkit.evaluation.metrics.mean_recall`).
        macro_f1: Plain mean of F1 over the classes.
        nll: Mean negative log-likelihood in nats.
        ece: Expected calibration error (top label, 15 bins).
        nll_out_of_fold: NLL under temperatures that were fitted without the measured faces; None if not
            measured. For an ensemble whose weights were fitted on these faces: the figure in its
            file, None if the file has none (:func:`ferkit.evaluation.model.with_held_out`).
        ece_out_of_fold: ECE under the same.
        classes: Scores of each class.
        confusion: Counts, row = true class, column = predicted class.
        reliability: The bins behind ``ece``.
    """

    labels: str
    taxonomy: str
    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    mean_recall: float
    mean_recall_interval: tuple[float, float]
    macro_f1: float
    nll: float
    ece: float
    nll_out_of_fold: float | None
    ece_out_of_fold: float | None
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class TtaScores:
    """Scores under one test-time augmentation."""

    tta: str  # ``none``, ``flip`` or ``ten-crop``
    scores: tuple[Scores, ...]  # one entry per set of labels; the data set's own labels come first
    # The same without the faces that the model was trained on; None if not measured.
    without_leaks: tuple[Scores, ...] | None
    # Probabilities ``[N, K]`` of all measured faces by taxonomy id.
    predictions: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured on one split."""

    source: str  # name of the data, without the folder
    fingerprint: str  # SHA-256 of the data set
    split: str  # name of the split, or :data:`EVERYTHING`
    faces: int  # number of faces in it
    leaked: int | None  # how many of them have a duplicate in ``train_splits``; None if not measured
    tta_modes: tuple[TtaScores, ...]  # one entry per tta
    faces_digest: str = ""  # SHA-256 of the measured faces, their labels and split, without votes
    train_splits: tuple[str, ...] = (TRAINING_SPLIT,)  # the splits in which duplicates were counted


@dataclass(frozen=True, slots=True)
class Target:
    """One set of true labels to measure against."""

    name: str  # as in :attr:`Scores.labels`
    taxonomy: Taxonomy  # the head to measure
    labels: NDArray[np.int64]  # int64 ``[N]``, columns of the taxonomy; undefined where ``keep`` is False
    keep: NDArray[np.bool_]  # bool ``[N]``, the faces that have a label


def targets_for(dataset: FaceDataset, heads: Mapping[str, Taxonomy]) -> tuple[Target, ...]:
    """Return the sets of labels in ``dataset`` that a model with these heads can be measured against.

    A folder's own labels fit a head that has all of them and perhaps more (:func:`match_labels`).

    Raises:
        DataError: If there is none, or a head has the data set's taxonomy id but other labels.
    """
    own = dataset.taxonomy
    found = []
    head = heads.get(own.id)
    if head is not None and head.labels == own.labels:
        found.append(Target(own.id, own, dataset.labels, np.ones(len(dataset), dtype=bool)))
    elif own.id == OWN:
        if (match := match_labels(own.labels, heads.values())) is not None:
            fitting, label_of = match
            columns = np.array([fitting.index(label_of[label]) for label in own.labels], np.int64)
            everything = np.ones(len(dataset), dtype=bool)
            found.append(Target(fitting.id, fitting, columns[dataset.labels], everything))
    elif head is not None:
        raise DataError(
            f"{dataset.source} and the model both have the taxonomy {own.id!r}, with different labels. Data: "
            f"{', '.join(own.labels)}. Model: {', '.join(head.labels)}"
        )
    if dataset.votes is not None and FERPLUS.id in heads:
        if heads[FERPLUS.id].labels != FERPLUS.labels:
            raise DataError(
                f"the model's head {FERPLUS.id!r} does not have the FER+ labels. Received: "
                f"{', '.join(heads[FERPLUS.id].labels)}; expected: {', '.join(FERPLUS.labels)}"
            )
        for name, make in (("majority", majority_targets), ("argmax", argmax_targets)):
            labels, keep = make(dataset.votes)
            if keep.any():
                found.append(Target(f"{FERPLUS.id} {name}", FERPLUS, labels, keep))
    if heads.get(BASIC.id) == BASIC:
        found += _basic_targets(dataset)
    if not found:
        have = "; ".join(f"{t.id} ({', '.join(t.labels)})" for t in heads.values())
        raise DataError(
            f"{dataset.source} has the labels of {own.id} ({', '.join(own.labels)}), the model those of "
            f"{have}: give data with labels of the model, or a model trained on these labels"
        )
    return tuple(found)


def _basic_targets(dataset: FaceDataset) -> list[Target]:
    """Return the labels of faces for the output ``basic``: their own, and those most FER+ taggers gave."""
    found = []
    if dataset.taxonomy == FER2013:
        columns = np.array([BASIC.index(label) for label in FER2013.labels])
        everything = np.ones(len(dataset), dtype=bool)
        found.append(Target(BASIC.id, BASIC, columns[dataset.labels], everything))
    if dataset.votes is not None:
        labels, keep = majority_targets(dataset.votes)
        same = [FERPLUS_TO_FER2013[label] for label in FERPLUS.labels]
        columns = np.array([-1 if label is None else BASIC.index(label) for label in same])
        labels = np.where(keep, columns[labels], -1)
        if (labels >= 0).any():
            found.append(Target(f"{BASIC.id} majority", BASIC, np.maximum(labels, 0), labels >= 0))
    return found


def label_in_head(name: str, head: Taxonomy) -> str | None:
    """Return the head's label that a name is, in any case of letters, or means: ``anger`` is ``angry``."""
    labels = {label.casefold(): label for label in head.labels}
    return labels.get(name.casefold()) or label_in(head, name, {})


def match_labels(names: Iterable[str], heads: Iterable[Taxonomy]) -> tuple[Taxonomy, dict[str, str]] | None:
    """Return the first head that has all labels, and its label for each name; None if no head has.

    A head with the very names comes before one whose labels they mean; the latter is logged as a warning.
    """
    names = list(names)
    matches = [(head, {name: label_in_head(name, head) for name in names}) for head in heads]
    complete = [
        (head, {name: label for name, label in labels.items() if label})
        for head, labels in matches
        if all(labels.values())
    ]
    if not complete:
        return None

    def renamed(match: tuple[Taxonomy, dict[str, str]]) -> list[str]:
        return [
            f"{name} = {label}" for name, label in match[1].items() if name.casefold() != label.casefold()
        ]

    best = min(complete, key=lambda match: bool(renamed(match)))
    if changes := renamed(best):
        logger.warning("labels taken as those of %s: %s", best[0].id, ", ".join(changes))
    return best


def measure(
    probabilities: NDArray[Any],
    labels: NDArray[np.int64],
    taxonomy: Taxonomy,
    name: str,
    *,
    out_of_fold: bool = True,
) -> Scores:
    """Return all scores on one set of labels.

    Probabilities are ``[N, K]``, labels int64 ``[N]``. The figures out of fold, whose temperatures are
    fitted, need SciPy.

    Raises:
        DataError: If the arrays do not fit together.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != len(taxonomy):
        raise DataError(
            f"{taxonomy.id} needs {len(taxonomy)} columns of probabilities. Received: {probabilities.shape}"
        )
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(taxonomy))
    right = np.diag(confusion).tolist()
    recall, recall_interval = mean_recall(right, confusion.sum(axis=1).tolist())
    held_out = None
    if out_of_fold and len(labels) >= 2 * FOLDS:
        held_out = temper_out_of_fold(probabilities, labels)
    return Scores(
        labels=name,
        taxonomy=taxonomy.id,
        n=len(labels),
        correct=sum(right),
        accuracy=sum(right) / len(labels),
        interval=wilson_interval(sum(right), len(labels)),
        mean_recall=recall,
        mean_recall_interval=recall_interval,
        macro_f1=macro_f1(confusion),
        nll=negative_log_likelihood(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        nll_out_of_fold=None if held_out is None else negative_log_likelihood(held_out, labels),
        ece_out_of_fold=None if held_out is None else expected_calibration_error(held_out, labels),
        classes=per_class(confusion, taxonomy.labels),
        confusion=tuple(map(tuple, confusion.tolist())),
        reliability=reliability(probabilities, labels),
    )


def _measure_targets(
    predictions: Mapping[str, NDArray[Any]], targets: Sequence[Target], rows: NDArray[np.bool_]
) -> tuple[Scores, ...]:
    """Measure every target on the faces in ``rows``, leaving out a target that has none of them."""
    kept = [(target, target.keep & rows) for target in targets]
    return tuple(
        measure(np.asarray(predictions[t.taxonomy.id])[keep], t.labels[keep], t.taxonomy, t.name)
        for t, keep in kept
        if keep.any()
    )


def faces_to_measure(dataset: FaceDataset, split: str) -> FaceDataset:
    """Return the faces of a split, or all of :data:`EVERYTHING`.

    Raises:
        DataError: If there is no such split, or no face in it.
    """
    chosen = dataset if split == EVERYTHING else dataset.of_split(split)
    if not len(chosen):
        raise DataError(f"{dataset.source} has no face to measure on")
    return chosen


def leaks_show(dataset: FaceDataset, split: str, train_splits: Sequence[str] = (TRAINING_SPLIT,)) -> bool:
    """Tell whether leaks into a split can be found: it is no training split, and the data have one."""
    return split not in (EVERYTHING, *train_splits) and bool(rows_of_splits(dataset, train_splits).any())


def evaluate_split(
    predict: Predict,
    dataset: FaceDataset,
    *,
    heads: Mapping[str, Taxonomy],
    split: str = SELECTION_SPLIT,
    tta_modes: Sequence[str] = ("none",),
    drop_leaks: bool = False,
    train_splits: Sequence[str] = (TRAINING_SPLIT,),
) -> Evaluation:
    """Measure a prediction function on one split under each tta.

    Args:
        predict: For example ``FaceClassifier.predict``, or a Keras network.
        dataset: All splits, the training split included, since leaks are duplicates of faces in it.
        heads: The taxonomies that ``predict`` returns.
        split: Which split to measure on, or :data:`EVERYTHING`.
        tta_modes: Names from :data:`ferkit.core.crops.TTA_MODES`.
        drop_leaks: Measure also without the faces that have an exact duplicate in the training splits.
        train_splits: The splits that the model was trained on.

    Raises:
        DataError: If the split is empty, no label set of the data fits a head, or leaks are to be dropped
            where none can be found (:func:`leaks_show`).
    """
    chosen = faces_to_measure(dataset, split)
    targets = targets_for(chosen, heads)
    leaked: NDArray[np.bool_] | None = None
    if drop_leaks:
        if not leaks_show(dataset, split, train_splits):
            trained = " and ".join(train_splits)
            raise DataError(
                f"leaks are faces of another split with a duplicate in {trained}, on which the model was "
                f"trained. Received: {split} of {dataset.source}, which has "
                f"{rows_of_splits(dataset, train_splits).sum():,} faces in {trained}. Measure without "
                "--drop-leaks, or another split of data that hold both"
            )
        leaked = leaked_rows(dataset, train_splits)[rows_of_splits(dataset, [split])]
    everything = np.ones(len(chosen), dtype=bool)
    measured = []
    for tta in tta_modes:
        predictions = predict(chosen.images, tta)
        measured.append(
            TtaScores(
                tta=tta,
                scores=_measure_targets(predictions, targets, everything),
                without_leaks=None if leaked is None else _measure_targets(predictions, targets, ~leaked),
                predictions=predictions,
            )
        )
    return Evaluation(
        source=Path(chosen.source).name,
        fingerprint=chosen.fingerprint,
        split=split,
        faces=len(chosen),
        leaked=None if leaked is None else int(leaked.sum()),
        tta_modes=tuple(measured),
        faces_digest=faces_digest(chosen),
        train_splits=tuple(train_splits),
    )
