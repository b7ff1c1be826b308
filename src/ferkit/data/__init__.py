"""Labelled faces: readers, cache, audit, and faces drawn by the program."""

from __future__ import annotations

from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.duplicates import flat_rows, leaked_rows, leaking_rows
from ferkit.data.ferplus import argmax_targets, majority_targets, relabel, soft_targets
from ferkit.data.load import faces_digest, load_dataset, make_dataset, select_faces

__all__ = [
    "SPLITS",
    "VOTE_COLUMNS",
    "FaceDataset",
    "argmax_targets",
    "faces_digest",
    "flat_rows",
    "leaked_rows",
    "leaking_rows",
    "load_dataset",
    "majority_targets",
    "make_dataset",
    "relabel",
    "select_faces",
    "soft_targets",
]
