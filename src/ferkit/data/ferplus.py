"""FER+ votes (Barsoum et al. 2016): reading them, joining them to faces by row, making targets of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, FERPLUS, FERPLUS_TO_FER2013
from ferkit.data.archives import open_table
from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.tables import rows_of, where

EMOTIONS = len(FERPLUS)
"""The first columns of the votes are emotions; the two after them are ``unknown`` and ``NF`` (no face)."""

MIN_AGREEMENT = 0.4
"""Below this share of labels that equal the leading vote, the rows cannot be of the same images.

On FER2013 it is 0.63; rows that do not belong together agree on about 0.16."""

_ENOUGH_TO_JUDGE = 500


@dataclass(frozen=True, slots=True)
class VoteTable:
    """What a FER+ csv holds.

    Args:
        votes: uint8 ``[N, 10]`` in the order of ``VOTE_COLUMNS``.
        split: uint8 ``[N]`` positions in ``SPLITS``.
        name: The file, for messages.
    """

    votes: NDArray[np.uint8]
    split: NDArray[np.uint8]
    name: str


def read_votes(path: Path) -> VoteTable:
    """Read ``fer2013new.csv``: ``Usage, Image name`` and ten columns of counts.

    The image name is not used: it is empty for images that FER+ removed.

    Raises:
        DataError: If a column is missing or a value is wrong; the message names file and row.
    """
    with open_table(path) as (name, stream):
        lines = rows_of(name, stream)
        first = next(lines, None)
        if first is None:
            raise DataError(f"{name}: is empty; FER+ votes were expected")
        header = [field.decode(errors="replace").lower() for field in first[1]]
        wanted = ["usage", *(column.lower() for column in VOTE_COLUMNS)]
        missing = [column for column in wanted if column not in header]
        if missing:
            raise DataError(
                f"{name}, line 1: no column {missing[0]!r}; FER+ votes have the columns Usage, "
                f"{', '.join(VOTE_COLUMNS)}. Received: {', '.join(header)[:120]}"
            )
        usage, *columns = (header.index(column) for column in wanted)
        codes = {split.lower().encode(): k for k, split in enumerate(SPLITS)}
        votes: list[list[int]] = []
        split: list[int] = []
        for row, (line, fields) in enumerate(lines, 1):
            if len(fields) != len(header):
                raise DataError(
                    f"{where(name, row, line)}: {len(fields)} fields where the header has {len(header)}"
                )
            code = codes.get(fields[usage].lower())
            if code is None:
                shown = fields[usage][:40].decode(errors="replace")
                raise DataError(
                    f"{where(name, row, line)}: unknown Usage {shown!r}; known are {', '.join(SPLITS)}"
                )
            counts = [fields[c] for c in columns]
            for column, count in zip(VOTE_COLUMNS, counts, strict=True):
                if len(count) > 3 or not count.isdigit() or int(count) > 255:
                    shown = count[:20].decode(errors="replace")
                    raise DataError(
                        f"{where(name, row, line)}: {column} is {shown!r}; votes are whole numbers 0..255"
                    )
            votes.append([int(count) for count in counts])
            split.append(code)
    if not votes:
        raise DataError(f"{name}: has a header and no row")
    return VoteTable(np.array(votes, dtype=np.uint8), np.array(split, dtype=np.uint8), name)


def align_votes(
    table: VoteTable, labels: NDArray[np.int64], split: NDArray[np.uint8] | None, source: str
) -> NDArray[np.uint8]:
    """Return the votes of each face, row by row.

    The two files must list the same images in the same order. Where the votes also cover a split that the
    faces lack altogether (the full FER+ file beside a csv without PrivateTest), those rows are left out.

    Args:
        table: The votes.
        labels: int64 ``[N]``, FER2013 labels of the faces.
        split: uint8 ``[N]``, or None where the faces' file has no Usage column.
        source: The faces' file, for messages.

    Returns:
        uint8 ``[N, 10]``.

    Raises:
        DataError: If counts, splits or labels show that the rows do not belong together.
    """
    votes, given = table.votes, table.split
    if split is not None:
        present = np.isin(given, np.unique(split))
        votes, given = votes[present], given[present]
    if len(votes) != len(labels):
        raise DataError(
            f"{table.name} does not line up with {source}: {_counts(table.split)} against "
            f"{_counts(split) if split is not None else f'{len(labels)} rows'}; "
            "both files must list the same images in the same order"
        )
    if split is not None and not np.array_equal(given, split):
        row = int(np.flatnonzero(given != split)[0])
        raise DataError(
            f"{table.name} does not line up with {source}: row {row + 1} is {SPLITS[given[row]]} in the "
            f"votes and {SPLITS[split[row]]} in the faces; both files must list "
            "the same images in the same order"
        )
    agreement = label_agreement(labels, votes)
    if len(labels) >= _ENOUGH_TO_JUDGE and agreement < MIN_AGREEMENT:
        raise DataError(
            f"{table.name} does not line up with {source}: only {agreement:.0%} of the labels equal the "
            "leading vote (63% is usual); the rows seem to be in another order"
        )
    return np.ascontiguousarray(votes)


def _counts(split: NDArray[np.uint8]) -> str:
    """Say how many rows each split has."""
    counts = np.bincount(split, minlength=len(SPLITS))
    return " + ".join(f"{n} {name}" for n, name in zip(counts, SPLITS, strict=True) if n)


def to_fer2013(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map FER+ columns to FER2013 labels; contempt, which FER2013 lacks, and all else become -1.

    Args:
        columns: int64, positions in ``VOTE_COLUMNS``.

    Returns:
        int64 of the same shape.
    """
    table = np.full(len(VOTE_COLUMNS), -1, dtype=np.int64)
    for k, label in enumerate(FERPLUS.labels):
        same = FERPLUS_TO_FER2013[label]
        if same is not None:
            table[k] = FER2013.index(same)
    mapped: NDArray[np.int64] = table[columns]
    return mapped


def label_agreement(labels: NDArray[np.int64], votes: NDArray[np.uint8]) -> float:
    """Return the share of FER2013 labels that equal the leading vote (ties: first in column order)."""
    if not len(labels):
        return float("nan")
    return float(np.mean(to_fer2013(np.argmax(votes, axis=1)) == labels))


def majority_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """FER+ labels by the ``majority`` protocol.

    Single votes are set to zero; an image is kept if its leading class has more than half of the remaining
    votes and is an emotion. Ties go to the first in column order.

    Args:
        votes: uint8 ``[N, 10]``.

    Returns:
        Labels int64 ``[N]`` (columns of FERPLUS, 0 where not kept) and the mask ``[N]`` of images to keep.
    """
    counts = np.where(votes > 1, votes, 0).astype(np.int64)
    top = np.argmax(counts, axis=1) if len(counts) else np.zeros(0, dtype=np.int64)
    keep = (2 * counts.max(axis=1, initial=0) > counts.sum(axis=1)) & (top < EMOTIONS)
    return np.where(keep, top, 0).astype(np.int64), keep


def argmax_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """FER+ labels by the ``argmax`` protocol: images led by unknown or no-face are dropped.

    Args:
        votes: uint8 ``[N, 10]``.

    Returns:
        Labels int64 ``[N]`` (columns of FERPLUS, 0 where not kept) and the mask ``[N]`` of images to keep.
    """
    counts = votes.astype(np.int64)
    top = np.argmax(counts, axis=1) if len(counts) else np.zeros(0, dtype=np.int64)
    keep = (top < EMOTIONS) & (counts.max(axis=1, initial=0) > 0)
    return np.where(keep, top, 0).astype(np.int64), keep


def soft_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Votes as label distributions for training.

    Args:
        votes: uint8 ``[N, 10]``.

    Returns:
        Distributions float32 ``[N, 8]`` over the emotions (uniform where there is no such vote) and weights
        float32 ``[N]``: the share of all votes that went to an emotion, so that images which taggers could
        not read, or that show no face, teach little or nothing.
    """
    counts = votes.astype(np.float32)
    emotions = counts[:, :EMOTIONS]
    of_emotion = emotions.sum(axis=1, keepdims=True)
    total = counts.sum(axis=1)
    uniform = np.float32(1 / EMOTIONS)
    soft = np.where(of_emotion > 0, emotions / np.maximum(of_emotion, 1), uniform)
    return soft.astype(np.float32), (of_emotion[:, 0] / np.maximum(total, 1)).astype(np.float32)


LabelSource = Literal["given", "ferplus-majority", "ferplus-argmax", "fer2013-majority", "fer2013-argmax"]
"""Where labels come from: the source, or the votes by a FER+ protocol, in the taxonomy that is named."""


def relabel(dataset: FaceDataset, labels: LabelSource) -> FaceDataset:
    """Take labels from the votes.

    ``ferplus-…`` gives FER+ labels; ``fer2013-…`` gives the FER2013 labels that mean the same, without
    contempt. Images that the protocol drops are left out.

    Raises:
        DataError: If there are no votes, or ``labels`` is unknown.
    """
    if labels == "given":
        return dataset
    if labels not in get_args(LabelSource):
        raise DataError(f"labels come from {', '.join(get_args(LabelSource))}. Received: {labels!r}")
    if dataset.votes is None:
        raise DataError(f"{dataset.source}: labels {labels} are taken from FER+ votes, and there are none")
    name, protocol = labels.split("-")
    targets = majority_targets if protocol == "majority" else argmax_targets
    columns, keep = targets(dataset.votes)
    taxonomy = FERPLUS
    if name == FER2013.id:
        columns, taxonomy = to_fer2013(columns), FER2013
        keep = keep & (columns >= 0)
    if not keep.any():
        raise DataError(f"{dataset.source}: no image has a label by {labels}")
    return replace(
        dataset,
        labels=np.where(keep, columns, 0),
        taxonomy=taxonomy,
        fingerprint=hashlib.sha256(f"{dataset.fingerprint}\n{labels}".encode()).hexdigest(),
    ).select(keep)
