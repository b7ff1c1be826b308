"""The dataset type that every reader returns: faces, labels, splits and, where there are any, FER+ votes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FERPLUS, Taxonomy

SPLITS = ("Training", "PublicTest", "PrivateTest")
"""Names of the splits; their positions are the codes in :attr:`FaceDataset.split`."""

TRAINING, PUBLIC_TEST, PRIVATE_TEST = range(3)

VOTE_COLUMNS = (*FERPLUS.labels, "unknown", "NF")
"""Columns of :attr:`FaceDataset.votes`: the FER+ emotions, then the two that are no emotion."""


@dataclass(frozen=True, slots=True)
class FaceDataset:
    """Labelled faces in memory or memory-mapped.

    Args:
        images: uint8 ``[N, S, S]``, grayscale, 0..255.
        labels: int64 ``[N]``, columns of ``taxonomy``.
        split: uint8 ``[N]``, positions in :data:`SPLITS`.
        taxonomy: The labels' names and order.
        votes: uint8 ``[N, 10]``, FER+ tagger counts in the order of :data:`VOTE_COLUMNS`, or None.
        source: The name of the source.
        fingerprint: SHA-256 (hex) of images, labels, split, votes and taxonomy; empty until it is computed.
        split_named: Whether the source names a PublicTest; False where a part of Training was held out as it
            (:mod:`ferkit.data.holdout`).
        in_rows: Whether the faces are the rows of a table, by which FER+ votes are joined.
        unreadable: Pictures that were skipped, since they cannot be decoded: name and reason.
        notes: Remarks of the reader, one sentence each.

    Raises:
        DataError: If shapes, dtypes or codes do not match.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    taxonomy: Taxonomy
    votes: NDArray[np.uint8] | None = None
    source: str = ""
    fingerprint: str = ""
    split_named: bool = True
    in_rows: bool = False
    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the arrays."""
        n = len(self.images)
        if self.images.ndim != 3 or self.images.shape[1] != self.images.shape[2]:
            raise DataError(f"images must be [N, S, S]. Received: {self.images.shape}")
        if self.images.dtype != np.uint8:
            raise DataError(f"images must be uint8. Received: {self.images.dtype}")
        if self.labels.shape != (n,) or self.split.shape != (n,):
            raise DataError(
                f"{n} images need {n} labels and splits. Received: {self.labels.shape} and {self.split.shape}"
            )
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.taxonomy):
            raise DataError(
                f"labels of {self.taxonomy.id} must be in 0..{len(self.taxonomy) - 1}. "
                f"Received: {int(self.labels.min())}..{int(self.labels.max())}"
            )
        if n and int(self.split.max()) >= len(SPLITS):
            raise DataError(f"split codes must be in 0..2. Received: {int(self.split.max())}")
        if self.votes is not None and self.votes.shape != (n, len(VOTE_COLUMNS)):
            raise DataError(f"votes must be [{n}, {len(VOTE_COLUMNS)}]. Received: {self.votes.shape}")

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of a face in pixels."""
        return int(self.images.shape[1])

    def select(self, rows: NDArray[Any]) -> FaceDataset:
        """Return the faces at ``rows``: a boolean mask ``[N]``, or positions, whose order is kept.

        The fingerprint stays that of the whole dataset, which is what a run records.
        """
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            split=self.split[rows],
            votes=None if self.votes is None else self.votes[rows],
        )

    def of_split(self, name: str) -> FaceDataset:
        """Return the faces of one split.

        Raises:
            DataError: If there is no such split, or it holds no face.
        """
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}; known are {', '.join(SPLITS)}")
        rows = np.flatnonzero(self.split == SPLITS.index(name))
        if not len(rows):
            have = [s for k, s in enumerate(SPLITS) if bool(np.any(self.split == k))]
            raise DataError(f"{self.source} has no face in split {name}; it has {', '.join(have) or 'none'}")
        return self.select(rows)
