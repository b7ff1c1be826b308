"""FER+ votes (Barsoum et al. 2016): reading them, joining them to faces by row, and targets from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, FERPLUS, FERPLUS_TO_FER2013
from ferkit.data.archives import open_table
from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.tables import header_of, place_of, rows_of, split_column

EMOTIONS = len(FERPLUS)
"""Number of vote columns that are emotions; ``unknown`` and ``NF`` (no face) follow."""

MIN_AGREEMENT = 0.4
"""Lowest share of labels that equal the leading vote if rows are aligned.

FER2013 has 0.63; rows in different orders have about 0.16."""

_ENOUGH_TO_JUDGE = 500


@dataclass(frozen=True, slots=True)
class VoteTable:
    """The content of a FER+ csv."""

    votes: NDArray[np.uint8]  # uint8 ``[N, 10]`` in the order of ``VOTE_COLUMNS``
    split: NDArray[np.uint8]  # uint8 ``[N]`` positions in ``SPLITS``
    name: str  # name of the file in messages


def read_votes(path: Path) -> VoteTable:
    """Read ``fer2013new.csv``: ``Usage, Image name`` and ten columns of counts.

    The image name is ignored, since it is empty for images that FER+ removed.

    Raises:
        DataError: If a column is missing or a value is invalid; the message names file and row.
    """
    with open_table(path) as (name, stream):
        rows = rows_of(name, stream)
        header = header_of(name, rows, ("Usage", *VOTE_COLUMNS))
        usage, *columns = (header.index(column.lower()) for column in ("Usage", *VOTE_COLUMNS))
        votes: list[list[int]] = []
        split: list[int] = []
        for row, (line, fields) in enumerate(rows, 1):
            place = place_of(name, row, line)
            if len(fields) != len(header):
                raise DataError(f"{place}: {len(fields)} fields where the header has {len(header)}")
            split.append(split_column(fields[usage], place))
            counts = [fields[c] for c in columns]
            for column, count in zip(VOTE_COLUMNS, counts, strict=True):
                if len(count) > 3 or not count.isdigit() or int(count) > 255:
                    shown = count[:20].decode(errors="replace")
                    raise DataError(f"{place}: {column} is {shown!r}; votes must be whole numbers 0..255")
            votes.append([int(count) for count in counts])
    if not votes:
        raise DataError(f"{name}: has a header and no row")
    return VoteTable(np.array(votes, dtype=np.uint8), np.array(split, dtype=np.uint8), name)


def align_votes(
    table: VoteTable, labels: NDArray[np.int64], split: NDArray[np.uint8], source: str
) -> NDArray[np.uint8]:
    """Return the votes of each face, row by row.

    Both files must list the same images in the same order. Votes of a split that the faces lack altogether
    are left out (the complete FER+ file with a csv without PrivateTest).

    Labels are those of FER2013, int64 ``[N]``; splits are positions in ``SPLITS``, uint8 ``[N]``.

    Returns:
        uint8 ``[N, 10]``.

    Raises:
        DataError: If numbers of rows, splits or labels show that the rows are not aligned.
    """
    present = np.isin(table.split, np.unique(split))
    votes, named = table.votes[present], table.split[present]
    refused = f"{table.name} does not match {source}"
    same = "both files must list the same images in the same order"
    if len(votes) != len(labels):
        raise DataError(f"{refused}: {_counts(table.split)} rows against {_counts(split)}; {same}")
    if not np.array_equal(named, split):
        row = int(np.flatnonzero(named != split)[0])
        raise DataError(
            f"{refused}: row {row + 1} is {SPLITS[named[row]]} in the votes and {SPLITS[split[row]]} in the "
            f"faces; {same}"
        )
    agreement = label_agreement(labels, votes)
    if len(labels) >= _ENOUGH_TO_JUDGE and agreement < MIN_AGREEMENT:
        raise DataError(
            f"{refused}: only {agreement:.0%} of the labels equal the leading vote (63% is usual), so the "
            f"rows are in another order; {same}"
        )
    return np.ascontiguousarray(votes)


def _counts(split: NDArray[np.uint8]) -> str:
    """Return the number of rows of each split."""
    counts = np.bincount(split, minlength=len(SPLITS))
    return " + ".join(f"{n} {name}" for n, name in zip(counts, SPLITS, strict=True) if n)


def to_fer2013(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map FER+ columns to FER2013 labels; contempt, unknown and no-face become -1.

    ``columns`` are positions in ``VOTE_COLUMNS``; the result has their shape.
    """
    same = [FERPLUS_TO_FER2013.get(name) for name in VOTE_COLUMNS]
    table = np.array([-1 if label is None else FER2013.index(label) for label in same], np.int64)
    mapped: NDArray[np.int64] = table[columns]
    return mapped


def label_agreement(labels: NDArray[np.int64], votes: NDArray[np.uint8]) -> float:
    """Return the share of FER2013 labels that equal the leading vote (ties: first in column order)."""
    if not len(labels):
        return float("nan")
    return float(np.mean(to_fer2013(np.argmax(votes, axis=1)) == labels))


def majority_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return FER+ labels of votes uint8 ``[N, 10]`` by the ``majority`` protocol.

    Single votes are set to zero; an image is kept if its leading class has more than half of the remaining
    votes and is an emotion. Ties go to the first in column order.

    Returns:
        Labels int64 ``[N]`` (columns of FERPLUS, 0 where not kept) and the mask ``[N]`` of images to keep.
    """
    counts = np.where(votes > 1, votes, 0)
    return _leading_emotion(counts, counts.sum(axis=1) / 2)


def argmax_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return FER+ labels by the ``argmax`` protocol, which drops images whose leading vote is no emotion.

    Returns:
        Labels int64 ``[N]`` (columns of FERPLUS, 0 where not kept) and the mask ``[N]`` of images to keep.
    """
    return _leading_emotion(votes, np.zeros(len(votes)))


def _leading_emotion(
    votes: NDArray[Any], minimum: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the leading columns, and the mask of those that are emotions with over ``minimum`` votes."""
    top = np.argmax(votes, axis=1)
    keep = (top < EMOTIONS) & (votes.max(axis=1) > minimum)
    return np.where(keep, top, 0).astype(np.int64), keep


def soft_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return votes uint8 ``[N, 10]`` as label distributions for training.

    Returns:
        Distributions float32 ``[N, 8]`` over the emotions (uniform where none has a vote) and sample weights
        float32 ``[N]``: the share of votes for emotions, so that unclear images count little.
    """
    counts = votes.astype(np.float32)
    emotions = counts[:, :EMOTIONS]
    of_emotion = emotions.sum(axis=1, keepdims=True)
    total = counts.sum(axis=1)
    uniform = np.float32(1 / EMOTIONS)
    soft = np.where(of_emotion > 0, emotions / np.maximum(of_emotion, 1), uniform)
    return soft.astype(np.float32), (of_emotion[:, 0] / np.maximum(total, 1)).astype(np.float32)


LabelSource = Literal["given", "ferplus-majority", "ferplus-argmax", "fer2013-majority", "fer2013-argmax"]
"""The origin of labels: the source, or votes by a FER+ protocol in the named taxonomy."""


def relabel(dataset: FaceDataset, labels: LabelSource) -> FaceDataset:
    """Replace the labels by those that FER+ votes give.

    ``ferplus-…`` gives FER+ labels; ``fer2013-…`` the FER2013 labels of the same emotions, without contempt.
    Images that the protocol drops are left out.

    Raises:
        DataError: If there are no votes, or ``labels`` is unknown.
    """
    if labels == "given":
        return dataset
    if labels not in get_args(LabelSource):
        raise DataError(f"labels must be {', '.join(get_args(LabelSource))}. Received: {labels!r}")
    if dataset.votes is None:
        raise DataError(f"{dataset.source}: has no FER+ votes, which the labels {labels} are derived from")
    name, protocol = labels.split("-")
    targets = majority_targets if protocol == "majority" else argmax_targets
    columns, keep = targets(dataset.votes)
    taxonomy = FERPLUS
    if name == FER2013.id:
        columns, taxonomy = to_fer2013(columns), FER2013
        keep = keep & (columns >= 0)
    if not keep.any():
        raise DataError(f"{dataset.source}: no image has a label {labels}")
    return replace(
        dataset,
        labels=np.where(keep, columns, 0),
        taxonomy=taxonomy,
        fingerprint=hashlib.sha256(f"{dataset.fingerprint}\n{labels}".encode()).hexdigest(),
    ).select(keep)
