"""Labelled faces: readers, cache, audit, and faces drawn by the program."""

from __future__ import annotations

from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.ferplus import argmax_targets, majority_targets, soft_targets
from ferkit.data.load import leaked_rows, load_dataset

__all__ = [
    "SPLITS",
    "VOTE_COLUMNS",
    "FaceDataset",
    "argmax_targets",
    "leaked_rows",
    "load_dataset",
    "majority_targets",
    "soft_targets",
]
