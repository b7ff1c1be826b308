"""Labelled faces: loading, converting and auditing datasets."""

from __future__ import annotations

from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.duplicates import flat_rows, leaked_rows, leaking_rows
from ferkit.data.ferplus import argmax_targets, majority_targets, relabel, soft_targets
from ferkit.data.labels import check_training_labels
from ferkit.data.load import check_source, faces_digest, load_data, make_dataset, select_faces

__all__ = [
    "SPLITS",
    "VOTE_COLUMNS",
    "FaceDataset",
    "argmax_targets",
    "check_source",
    "check_training_labels",
    "faces_digest",
    "flat_rows",
    "leaked_rows",
    "leaking_rows",
    "load_data",
    "majority_targets",
    "make_dataset",
    "relabel",
    "select_faces",
    "soft_targets",
]
