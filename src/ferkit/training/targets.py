"""The heads of a network, and the soft targets that each head is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferkit.augment.balance import class_weights
from ferkit.core.errors import TrainingError
from ferkit.core.taxonomy import FERPLUS, Taxonomy
from ferkit.data import FaceDataset, soft_targets
from ferkit.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Head:
    """One output of the network: its taxonomy and the weight of its loss."""

    taxonomy: Taxonomy
    weight: float


def heads_of(recipe: Recipe, taxonomy: Taxonomy, has_votes: bool) -> tuple[Head, ...]:
    """Return the heads that a recipe builds for data of a taxonomy, the data's own first.

    Raises:
        TrainingError: If the recipe has a FER+ head and the data has no votes, or FER+ labels already.
    """
    heads = []
    if recipe.heads.label:
        heads.append(Head(taxonomy, recipe.heads.label))
    if recipe.heads.ferplus:
        if taxonomy == FERPLUS:
            raise TrainingError(
                f"recipe {recipe.name!r} adds a FER+ head for votes, but the data's own labels are "
                "FER+ labels already; leave the second head out with --set heads.ferplus=0"
            )
        if not has_votes:
            raise TrainingError(
                f"recipe {recipe.name!r} trains a FER+ head, but the data has no votes; "
                "add --votes fer2013new.csv, or leave the head out with --set heads.ferplus=0"
            )
        heads.append(Head(FERPLUS, recipe.heads.ferplus))
    return tuple(heads)


def label_frequencies(targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how frequent each label is in weighted soft targets ``[N, K]``: float64 ``[K]``, above 0.

    One more face, spread over all labels, gives an absent label a frequency.
    """
    counts = targets.sum(axis=0, dtype=np.float64) + 1 / targets.shape[1]
    return np.asarray(counts / counts.sum())


def weighted_targets(
    dataset: FaceDataset, heads: tuple[Head, ...], balance: str = "none"
) -> dict[str, NDArray[np.float32]]:
    """Return sample-weighted soft targets float32 ``[N, K]`` by taxonomy id: probabilities times weight.

    A row of zeros (a face in which no FER+ tagger saw an emotion) does not count in that head's loss.
    Cross-entropy with these targets is the weighted cross-entropy, and they can be mixed like probabilities.

    The balance ``weights`` weighs faces by the inverse frequency of their label.
    """
    targets = {}
    for head in heads:
        if head.taxonomy == dataset.taxonomy:
            rows = np.eye(len(head.taxonomy), dtype=np.float32)[dataset.labels]
            if balance == "weights":
                rows *= class_weights(dataset.labels, len(head.taxonomy))[dataset.labels, None]
        else:
            assert dataset.votes is not None
            rows, weights = soft_targets(dataset.votes)
            rows = (rows * weights[:, None]).astype(np.float32)
        targets[head.taxonomy.id] = rows
    return targets


def group_means(rows: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """Replace each row of float32 ``[N, K]`` by the mean of its group, int64 ``[N]`` from 0 on."""
    sums = np.zeros((groups.max(initial=-1) + 1, rows.shape[1]))
    np.add.at(sums, groups, rows)
    return np.asarray((sums / np.bincount(groups)[:, None])[groups], np.float32)
