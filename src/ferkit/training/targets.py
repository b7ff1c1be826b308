"""What each head is asked to answer: target mass per face and class, before and during training."""

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
        TrainingError: If the recipe asks for FER+ votes and the data has none.
    """
    heads = []
    if recipe.heads.label:
        heads.append(Head(taxonomy, recipe.heads.label))
    if recipe.heads.ferplus:
        if taxonomy == FERPLUS:
            raise TrainingError(
                f"recipe {recipe.name!r} trains a FER+ head on votes beside the data's own labels, but these "
                "are FER+ labels already; leave the second head out with --set heads.ferplus=0"
            )
        if not has_votes:
            raise TrainingError(
                f"recipe {recipe.name!r} trains a FER+ head, but the data has no votes; "
                "add --votes fer2013new.csv, or leave the head out with --set heads.ferplus=0"
            )
        heads.append(Head(FERPLUS, recipe.heads.ferplus))
    return tuple(heads)


def target_mass(
    dataset: FaceDataset, heads: tuple[Head, ...], balance: str = "none"
) -> dict[str, NDArray[np.float32]]:
    """Return float32 ``[N, K]`` by taxonomy id: the target's probabilities times the weight of the face.

    A row of zeros (a face that no tagger saw an emotion in) takes no part in that head's loss. Cross-entropy
    over mass is the weighted cross-entropy, and mass can be mixed like probabilities.
    """
    mass = {}
    for head in heads:
        if head.taxonomy == dataset.taxonomy:
            rows = np.eye(len(head.taxonomy), dtype=np.float32)[dataset.labels]
            if balance == "weights":
                rows *= class_weights(dataset.labels, len(head.taxonomy))[dataset.labels, None]
        else:
            assert dataset.votes is not None
            rows, weights = soft_targets(dataset.votes)
            rows = (rows * weights[:, None]).astype(np.float32)
        mass[head.taxonomy.id] = rows
    return mass
