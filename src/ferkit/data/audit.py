"""The audit of a dataset: balance, constant images, duplicates, conflicting labels, leaks, FER+ votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013
from ferkit.data.dataset import SPLITS, VOTE_COLUMNS, FaceDataset
from ferkit.data.duplicates import flat_rows, image_keys, leaked_rows, leaking_rows
from ferkit.data.ferplus import argmax_targets, label_agreement, majority_targets
from ferkit.data.labels import labels_without_training


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are equal pixel for pixel."""

    rows: tuple[int, ...]  # their positions in the dataset, counted from 1
    splits: tuple[str, ...]  # the split of each image
    labels: tuple[str, ...]  # the label of each image

    @property
    def conflicts(self) -> bool:
        """Whether the labels differ."""
        return len(set(self.labels)) > 1

    @property
    def crosses(self) -> bool:
        """Whether the images belong to more than one split."""
        return len(set(self.splits)) > 1


@dataclass(frozen=True, slots=True)
class VoteAudit:
    """Agreement of FER2013 labels with FER+ votes."""

    # Share of labels that equal the leading vote (ties: first in column order) among the images whose leading
    # vote is not "no face"; None if there are none.
    agreement: float | None
    by_label: Mapping[str, float | None]  # the same per label; None for labels without images
    majority: Mapping[str, int]  # images per split that the ``majority`` protocol keeps
    argmax: Mapping[str, int]  # images per split that the ``argmax`` protocol keeps


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of :func:`audit_dataset`. Rows are counted from 1; splits without images are left out."""

    source: str  # name of the dataset
    fingerprint: str  # fingerprint of the dataset
    images: int  # number of images
    size: int  # side of an image in pixels
    taxonomy: str  # id of the labels
    balance: Mapping[str, Mapping[str, int]]  # images per split and label
    flat: Mapping[str, tuple[int, ...]]  # rows per split of images of one constant colour
    groups: tuple[Group, ...]  # all groups of identical images, in order of their first row
    leaked: Mapping[str, int]  # images per test split with a duplicate in Training
    leaking: int  # number of Training images with a duplicate in a test split, which ``drop_leaks`` removes
    votes: VoteAudit | None  # agreement with FER+; None without votes or with other labels than FER2013's
    # Labels without Training images, and the most similar label that has some (or ``""``).
    untrained: Mapping[str, str]
    unreadable: tuple[str, ...]  # pictures that were left out, since they cannot be decoded

    @property
    def repeated(self) -> int:
        """Number of images in groups of identical ones."""
        return sum(len(group.rows) for group in self.groups)

    @property
    def conflicting(self) -> tuple[Group, ...]:
        """Groups whose labels differ."""
        return tuple(group for group in self.groups if group.conflicts)

    @property
    def crossing(self) -> tuple[Group, ...]:
        """Groups across splits."""
        return tuple(group for group in self.groups if group.crosses)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        content = asdict(self)
        content["identical"] = {
            "groups": len(self.groups),
            "images": self.repeated,
            "conflicting_groups": len(self.conflicting),
            "crossing_groups": len(self.crossing),
            "all": content.pop("groups"),
        }
        return content


def audit_dataset(dataset: FaceDataset) -> AuditReport:
    """Audit a dataset.

    It takes all splits, since leaks are duplicates across splits.
    """
    present = _present(dataset)
    flat = flat_rows(dataset)
    leaked = leaked_rows(dataset)
    return AuditReport(
        source=dataset.source,
        fingerprint=dataset.fingerprint,
        images=len(dataset),
        size=dataset.size,
        taxonomy=dataset.taxonomy.id,
        balance=balance_of(dataset),
        flat={SPLITS[k]: tuple((np.flatnonzero(flat & (dataset.split == k)) + 1).tolist()) for k in present},
        groups=_groups(dataset),
        leaked={SPLITS[k]: int(np.sum(leaked & (dataset.split == k))) for k in present if k},
        leaking=int(leaking_rows(dataset).sum()),
        votes=_audit_votes(dataset, present),
        untrained=labels_without_training(dataset),
        unreadable=dataset.unreadable,
    )


def balance_of(dataset: FaceDataset) -> dict[str, dict[str, int]]:
    """Count images per split and label; splits without images are left out."""
    names = dataset.taxonomy.labels
    balance = {}
    for k in _present(dataset):
        counts = np.bincount(dataset.labels[dataset.split == k], minlength=len(names)).tolist()
        balance[SPLITS[k]] = dict(zip(names, counts, strict=True))
    return balance


def picked_rows(dataset: FaceDataset, pick: str) -> NDArray[np.bool_]:
    """Mask ``[N]`` of the images of one finding.

    Args:
        dataset: All splits of it.
        pick: ``all``; ``flat``; ``leaks`` (test images and their duplicates in Training); ``repeats``;
            ``conflicts``.

    Raises:
        DataError: If ``pick`` is none of these.
    """
    if pick == "all":
        return np.ones(len(dataset), dtype=bool)
    if pick == "flat":
        return flat_rows(dataset)
    if pick == "leaks":
        return leaked_rows(dataset) | leaking_rows(dataset)
    if pick not in ("repeats", "conflicts"):
        raise DataError(f"pick must be all, flat, leaks, repeats or conflicts. Received: {pick!r}")
    mask = np.zeros(len(dataset), dtype=bool)
    for group in _groups(dataset):
        if pick == "repeats" or group.conflicts:
            mask[np.array(group.rows) - 1] = True
    return mask


def _present(dataset: FaceDataset) -> list[int]:
    """Return the codes of the splits that hold images."""
    return [k for k in range(len(SPLITS)) if bool(np.any(dataset.split == k))]


def _groups(dataset: FaceDataset) -> tuple[Group, ...]:
    """Find all groups of identical images."""
    keys = image_keys(dataset.images)
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    names = dataset.taxonomy.labels
    return tuple(
        Group(
            rows=tuple((rows + 1).tolist()),
            splits=tuple(SPLITS[k] for k in dataset.split[rows]),
            labels=tuple(names[k] for k in dataset.labels[rows]),
        )
        for rows in np.split(order, bounds)
        if len(rows) > 1
    )


def _audit_votes(dataset: FaceDataset, present: list[int]) -> VoteAudit | None:
    """Compare FER2013 labels with FER+ votes, where there are both."""
    votes = dataset.votes
    if votes is None or dataset.taxonomy != FER2013:
        return None
    seen = np.argmax(votes, axis=1) != VOTE_COLUMNS.index("NF")
    by_label: dict[str, float | None] = {}
    for k, name in enumerate(FER2013.labels):
        rows = seen & (dataset.labels == k)
        by_label[name] = label_agreement(dataset.labels[rows], votes[rows]) if rows.any() else None
    kept = {}
    for protocol, targets in (("majority", majority_targets), ("argmax", argmax_targets)):
        keep = targets(votes)[1]
        kept[protocol] = {SPLITS[k]: int(np.sum(keep & (dataset.split == k))) for k in present}
    overall = label_agreement(dataset.labels[seen], votes[seen]) if seen.any() else None
    return VoteAudit(overall, by_label, kept["majority"], kept["argmax"])
