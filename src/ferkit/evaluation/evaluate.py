"""Measuring anything that answers with probabilities on one split of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FERPLUS, Taxonomy
from ferkit.data import faces_digest
from ferkit.data.dataset import FaceDataset
from ferkit.data.duplicates import leaked_rows, rows_of_splits
from ferkit.data.ferplus import argmax_targets, majority_targets
from ferkit.evaluation.calibration import FOLDS, temper_out_of_fold
from ferkit.evaluation.metrics import (
    ClassScores,
    ReliabilityBin,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    negative_log_likelihood,
    per_class,
    reliability,
    wilson_interval,
)

TRAINING_SPLIT = "Training"
"""The split that models are trained on unless their recipe names another."""

SELECTION_SPLIT = "PublicTest"
"""The split that recipes are compared and temperatures are fitted on; its numbers are labelled so."""

EVERYTHING = "all"
"""In place of a split's name: all faces, which for data that a model has not seen is the measure."""

Predict = Callable[[NDArray[np.uint8], str], Mapping[str, NDArray[Any]]]
"""From crops ``[N, S, S]`` and the name of a tta to probabilities ``[N, K]`` by taxonomy id."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured on one set of labels.

    Args:
        labels: Which labels: ``fer2013``, ``ferplus majority``, ``ferplus argmax``, or a user's taxonomy.
        taxonomy: Id of the head that answered.
        n: Number of faces.
        correct: Number of right answers.
        accuracy: Their share, 0..1.
        interval: 95 % Wilson interval of the accuracy.
        macro_f1: Plain mean of F1 over the classes.
        nll: Mean negative log-likelihood in nats, as the model answers.
        ece: Expected calibration error (top label, 15 bins), as the model answers.
        nll_out_of_fold: NLL under temperatures that were fitted without the measured faces; None if there
            are too few faces. Of a vote whose weights were fitted on them: what its file tells of votes that
            were not, None if it tells nothing (:func:`ferkit.evaluation.model.with_held_out`).
        ece_out_of_fold: ECE under the same.
        classes: Scores of each class.
        confusion: Counts, row = true class, column = answered class.
        reliability: The bins behind ``ece``.
    """

    labels: str
    taxonomy: str
    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
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
    """What was measured under one test-time augmentation.

    Args:
        tta: ``none``, ``flip`` or ``ten-crop``.
        scores: One entry per set of labels; the data set's own labels come first.
        without_leaks: The same without the faces that the model was trained on; None if not asked for.
    """

    tta: str
    scores: tuple[Scores, ...]
    without_leaks: tuple[Scores, ...] | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured on one split.

    Args:
        source: Name of the data, without the folder, which says nothing to others.
        fingerprint: SHA-256 of the data set.
        split: Name of the split, or :data:`EVERYTHING`.
        faces: Number of faces in it.
        leaked: How many of them also stand in ``train_splits``; None if not asked for.
        tta_modes: One entry per tta, in the order asked for.
        faces_digest: SHA-256 of the measured faces, their labels and split, without votes.
        train_splits: The splits that leaks were counted against.
    """

    source: str
    fingerprint: str
    split: str
    faces: int
    leaked: int | None
    tta_modes: tuple[TtaScores, ...]
    faces_digest: str = ""
    train_splits: tuple[str, ...] = (TRAINING_SPLIT,)


@dataclass(frozen=True, slots=True)
class Target:
    """One set of true labels to measure against.

    Args:
        name: As in :attr:`Scores.labels`.
        taxonomy: The head that answers, and its labels.
        labels: int64 ``[N]``; where ``keep`` is False the value means nothing.
        keep: bool ``[N]``, the faces that this tta of labelling keeps.
    """

    name: str
    taxonomy: Taxonomy
    labels: NDArray[np.int64]
    keep: NDArray[np.bool_]


def targets_for(dataset: FaceDataset, heads: Mapping[str, Taxonomy]) -> tuple[Target, ...]:
    """Return the sets of labels in ``dataset`` that a model with these heads can be measured against.

    Raises:
        DataError: If there is none, or a head has the data set's taxonomy id but other labels.
    """
    own = dataset.taxonomy
    found = []
    head = heads.get(own.id)
    if head is not None:
        if head.labels != own.labels:
            raise DataError(
                f"{dataset.source} and the model both speak of {own.id!r} but mean different labels. Data: "
                f"{', '.join(own.labels)}. Model: {', '.join(head.labels)}"
            )
        found.append(Target(own.id, own, dataset.labels, np.ones(len(dataset), dtype=bool)))
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
    if not found:
        have = "; ".join(f"{t.id} ({', '.join(t.labels)})" for t in heads.values())
        raise DataError(
            f"{dataset.source} is labelled with {own.id} ({', '.join(own.labels)}), the model answers "
            f"{have}: give data with one of the model's label sets, or a model trained on these labels"
        )
    return tuple(found)


def measure(probabilities: NDArray[Any], labels: NDArray[np.int64], taxonomy: Taxonomy, name: str) -> Scores:
    """Return all scores of one set of labels.

    Args:
        probabilities: ``[N, K]``.
        labels: int64 ``[N]``.
        taxonomy: The K labels.
        name: What to call the set of labels.

    Raises:
        DataError: If the arrays do not fit together.
        MissingDependencyError: If SciPy is not installed.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != len(taxonomy):
        raise DataError(
            f"{taxonomy.id} needs {len(taxonomy)} columns of probabilities. Received: {probabilities.shape}"
        )
    answers = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, answers, len(taxonomy))
    correct = int(np.trace(confusion))
    bins = reliability(probabilities, labels)
    held_out = temper_out_of_fold(probabilities, labels) if len(labels) >= 2 * FOLDS else None
    return Scores(
        labels=name,
        taxonomy=taxonomy.id,
        n=len(labels),
        correct=correct,
        accuracy=correct / len(labels),
        interval=wilson_interval(correct, len(labels)),
        macro_f1=macro_f1(confusion),
        nll=negative_log_likelihood(probabilities, labels),
        ece=expected_calibration_error(probabilities, labels),
        nll_out_of_fold=None if held_out is None else negative_log_likelihood(held_out, labels),
        ece_out_of_fold=None if held_out is None else expected_calibration_error(held_out, labels),
        classes=per_class(confusion, taxonomy.labels),
        confusion=tuple(tuple(int(c) for c in row) for row in confusion),
        reliability=bins,
    )


def _measure_targets(
    answers: Mapping[str, NDArray[Any]], targets: Sequence[Target], rows: NDArray[np.bool_]
) -> tuple[Scores, ...]:
    """Measure every target on the faces in ``rows``, leaving out a target that keeps none of them."""
    scores = []
    for target in targets:
        keep = target.keep & rows
        if keep.any():
            chosen = np.asarray(answers[target.taxonomy.id])[keep]
            scores.append(measure(chosen, target.labels[keep], target.taxonomy, target.name))
    return tuple(scores)


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
    """Tell whether leaks into a split can be seen: it is no training split, and there are faces of one."""
    return split not in (EVERYTHING, *train_splits) and bool(rows_of_splits(dataset, train_splits).any())


def evaluate(
    predict: Predict,
    dataset: FaceDataset,
    *,
    heads: Mapping[str, Taxonomy],
    split: str = SELECTION_SPLIT,
    tta_modes: Sequence[str] = ("none",),
    drop_leaks: bool = False,
    train_splits: Sequence[str] = (TRAINING_SPLIT,),
) -> Evaluation:
    """Measure a model on one split under each tta.

    Args:
        predict: The model; ``FaceClassifier.predict`` and a Keras network fit alike.
        dataset: All splits, the training split included, since leaks are found by comparing with it.
        heads: The taxonomies that ``predict`` answers in.
        split: Which split to measure on, or :data:`EVERYTHING`.
        tta_modes: Names from :data:`ferkit.core.crops.TTA_MODES`.
        drop_leaks: Measure also without the faces that stand, pixel for pixel, in the training splits.
        train_splits: The splits that the model was trained on.

    Raises:
        DataError: If the split is empty, no label set of the data fits a head, or leaks are to be dropped
            where none can be seen (:func:`leaks_show`).
        MissingDependencyError: If SciPy is not installed.
    """
    chosen = faces_to_measure(dataset, split)
    targets = targets_for(chosen, heads)
    leaked: NDArray[np.bool_] | None = None
    if drop_leaks:
        if not leaks_show(dataset, split, train_splits):
            named, trained = " and ".join(train_splits), rows_of_splits(dataset, train_splits).sum()
            raise DataError(
                f"leaks are faces of another split that also stand in {named}, which the model was trained "
                f"on; of {dataset.source} {split} is measured, and its {named} has {trained:,} "
                "faces. Measure without --drop-leaks, or another split of data that hold both"
            )
        leaked = leaked_rows(dataset, train_splits)[rows_of_splits(dataset, [split])]
    everything = np.ones(len(chosen), dtype=bool)
    measured = []
    for tta in tta_modes:
        answers = predict(chosen.images, tta)
        measured.append(
            TtaScores(
                tta=tta,
                scores=_measure_targets(answers, targets, everything),
                without_leaks=None if leaked is None else _measure_targets(answers, targets, ~leaked),
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
