"""What a model answered about each face, as a table for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.dataset import SPLITS, FaceDataset
from ferkit.data.duplicates import flat_rows
from ferkit.evaluation.evaluate import EVERYTHING, Predict

Answers = dict[str, Mapping[str, NDArray[Any]]]
"""By tta and taxonomy id, probabilities ``[N, K]``."""


def recorded(predict: Predict) -> tuple[Predict, Answers]:
    """Return a model that answers as ``predict`` does, and what it will have answered by tta."""
    answers: Answers = {}

    def predict_and_keep(crops: NDArray[np.uint8], tta: str) -> Mapping[str, NDArray[Any]]:
        answers[tta] = predict(crops, tta)
        return answers[tta]

    return predict_and_keep, answers


def measured_rows(dataset: FaceDataset, split: str, *, drop_flat: bool = False) -> NDArray[np.int64]:
    """Return the rows, from 0, of the faces of a split in the whole data set: int64 ``[N]``.

    Args:
        dataset: The whole data set, before faces are selected.
        split: Name of the split, or :data:`ferkit.evaluation.evaluate.EVERYTHING`.
        drop_flat: Whether images of one constant colour are left out.
    """
    chosen = np.full(len(dataset), True) if split == EVERYTHING else dataset.split == SPLITS.index(split)
    return np.flatnonzero(chosen & ~flat_rows(dataset) if drop_flat else chosen)


def write_answers(
    path: Path, dataset: FaceDataset, rows: NDArray[np.int64], answers: Answers, heads: Mapping[str, Taxonomy]
) -> None:
    """Write one csv row per tta and face: its row in the data, split, label, and all probabilities.

    Args:
        path: The file.
        dataset: The whole data set.
        rows: Which of its faces were answered, in their order.
        answers: What was answered about these.
        heads: The taxonomies of the answers; their columns are called ``TAXONOMY LABEL``.

    Raises:
        OutputError: If it cannot be written.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{head.id} {label}" for head in heads.values() for label in head.labels]
    writer.writerow(["tta", "row", "split", "label", *columns])
    names = dataset.taxonomy.labels
    for tta, answered in answers.items():
        table = np.concatenate([np.asarray(answered[name]) for name in heads], axis=1)
        for row, probabilities in zip(rows, table, strict=True):
            told = [tta, row, SPLITS[dataset.split[row]], names[dataset.labels[row]]]
            writer.writerow([*told, *(f"{p:.6f}" for p in probabilities)])
    files.write_text(path, buffer.getvalue())
