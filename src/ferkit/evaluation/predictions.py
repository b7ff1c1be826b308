"""The predictions for each face of a data set, as a csv for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.dataset import SPLITS, FaceDataset
from ferkit.data.duplicates import flat_rows
from ferkit.evaluation.evaluate import EVERYTHING


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The predictions of a model for some faces of a data set."""

    dataset: FaceDataset  # the whole data set
    rows: NDArray[np.int64]  # which of its faces, int64 ``[N]``, from 0
    heads: Mapping[str, Taxonomy]  # the taxonomies of the model
    # By test-time augmentation and taxonomy id, probabilities ``[N, K]``.
    by_tta: Mapping[str, Mapping[str, NDArray[Any]]]

    def write(self, path: Path) -> None:
        """Write one csv row per tta and face: its row in the data, split, label, and all probabilities.

        The columns of the probabilities are called ``TAXONOMY LABEL``.

        Raises:
            OutputError: If it cannot be written.
        """
        columns = [f"{head.id} {label}" for head in self.heads.values() for label in head.labels]
        labels, splits = self.dataset.labels, self.dataset.split
        rows = []
        for tta, predicted in self.by_tta.items():
            table = np.concatenate([np.asarray(predicted[name]) for name in self.heads], axis=1)
            for row, probabilities in zip(self.rows, table, strict=True):
                face = [tta, row, SPLITS[splits[row]], self.dataset.taxonomy.labels[labels[row]]]
                rows.append([*face, *(f"{p:.6f}" for p in probabilities)])
        files.write_csv(path, rows, ["tta", "row", "split", "label", *columns])


def measured_rows(dataset: FaceDataset, split: str, *, drop_flat: bool = False) -> NDArray[np.int64]:
    """Return the rows, from 0, of the faces of a split in the whole data set: int64 ``[N]``."""
    chosen = np.full(len(dataset), True) if split == EVERYTHING else dataset.split == SPLITS.index(split)
    return np.flatnonzero(chosen & ~flat_rows(dataset) if drop_flat else chosen)
