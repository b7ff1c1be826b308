"""Members asked about a split of a data set, and the vote that follows from their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ferkit.classifier import FaceClassifier
from ferkit.data.dataset import FaceDataset
from ferkit.ensemble.combine import Member, normalised_weights, shared_taxonomies
from ferkit.ensemble.fit import Figures, FittedVote, judge_vote
from ferkit.evaluation.evaluate import SELECTION_SPLIT, targets_for


@dataclass(frozen=True, slots=True)
class SplitVote:
    """The vote in one taxonomy.

    Args:
        taxonomy: Its id.
        labels: Which labels it was fitted to.
        voters: Positions of the members that have the taxonomy.
        fitted: The vote of these members, and what it is worth.
        weights_fitted: Whether weights were fitted, or only the temperature.
    """

    taxonomy: str
    labels: str
    voters: tuple[int, ...]
    fitted: FittedVote
    weights_fitted: bool

    def weights(self, members: int) -> tuple[float, ...]:
        """Return one weight per member of the whole ensemble, 0 for those without the taxonomy."""
        result = [0.0] * members
        for voter, weight in zip(self.voters, self.fitted.vote.weights, strict=True):
            result[voter] = weight
        return tuple(result)


def vote_on_split(
    members: Sequence[Member],
    dataset: FaceDataset,
    *,
    split: str = SELECTION_SPLIT,
    weights: Sequence[float] | None = None,
    fit_weights: bool = False,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[SplitVote, ...]:
    """Fit a vote per taxonomy that the data have labels for; ``ferplus`` on the majority labels.

    Args:
        members: What votes.
        dataset: The faces.
        split: Which split to fit on.
        weights: One per member, where they are given; equal ones if None.
        fit_weights: Fit the weights, too, and not the temperature alone.
        threads: Threads of ONNX Runtime.
        progress: Called with a line of text before each member is asked.

    Raises:
        DataError: If the split is empty, or its labels fit no member.
        ModelFileError: If the members cannot vote together, or one does not answer.
        MissingDependencyError: If SciPy is not installed.
    """
    heads = {taxonomy.id: taxonomy for taxonomy in shared_taxonomies(members)}
    chosen = dataset.of_split(split)
    targets = [t for t in targets_for(chosen, heads) if t.name != "ferplus argmax"]
    wanted = {target.taxonomy.id for target in targets}
    given = normalised_weights(members, weights)
    answers = []
    for number, member in enumerate(members, 1):
        if progress is not None:
            progress(f"asking member {number} of {len(members)}: {member.info.name}")
        known = [head.id for head in member.info.taxonomies if head.id in wanted]
        answers.append(
            FaceClassifier(member.content, threads=threads).predict(chosen.images, taxonomies=known)
        )
    votes = []
    for target in targets:
        taxonomy = target.taxonomy.id
        voters = tuple(k for k, answer in enumerate(answers) if taxonomy in answer)
        stacked = np.stack([answers[k][taxonomy][target.keep] for k in voters])
        fixed = None if fit_weights else [given[taxonomy][k] for k in voters]
        votes.append(
            SplitVote(
                taxonomy=taxonomy,
                labels=target.name,
                voters=voters,
                fitted=judge_vote(stacked, target.labels[target.keep], fixed),
                weights_fitted=fit_weights,
            )
        )
    return tuple(votes)


def weights_of(
    members: Sequence[Member], votes: Sequence[SplitVote], weights: Sequence[float] | None = None
) -> dict[str, tuple[float, ...]]:
    """Return the weights per taxonomy after fitting.

    A taxonomy that the data have no labels for takes the weights of the first that was fitted, as far as
    its members have it; where weights were given and not fitted, it takes those.
    """
    result = normalised_weights(members, weights)
    if votes and votes[0].weights_fitted:
        first = votes[0].weights(len(members))
        result = normalised_weights(members, first)
        result |= {vote.taxonomy: vote.weights(len(members)) for vote in votes}
    return result


def metrics_of(votes: Sequence[SplitVote], split: str) -> list[dict[str, Any]]:
    """Return what an ensemble's metadata says of each vote: only figures from outside the fit."""
    return [
        {
            "split": split,
            "selection_split": split == SELECTION_SPLIT,
            "protocol": "single",
            "taxonomy": vote.taxonomy,
            "labels": vote.labels,
            "n": vote.fitted.n,
            "accuracy": vote.fitted.out_of_fold.accuracy,
            "interval": list(vote.fitted.interval(vote.fitted.out_of_fold)),
            "nll": vote.fitted.out_of_fold.nll,
            "ece": vote.fitted.out_of_fold.ece,
            "fit": "weights and temperature, out of fold"
            if vote.weights_fitted
            else "temperature, out of fold",
        }
        for vote in votes
    ]


def votes_as_json(members: Sequence[Member], votes: Sequence[SplitVote]) -> list[dict[str, Any]]:
    """Return all figures as plain dicts and lists: shares in 0..1, unrounded."""
    return [
        {
            "taxonomy": vote.taxonomy,
            "labels": vote.labels,
            "n": vote.fitted.n,
            "temperature": vote.fitted.vote.temperature,
            "weights_fitted": vote.weights_fitted,
            "members": [
                {"name": members[k].info.name, "sha256": members[k].sha256, "weight": w, **_plain(f)}
                for k, w, f in zip(vote.voters, vote.fitted.vote.weights, vote.fitted.members, strict=True)
            ],
            "equal_weights_out_of_fold": _plain(vote.fitted.equal),
            "in_sample": _plain(vote.fitted.in_sample),
            "out_of_fold": _plain(vote.fitted.out_of_fold),
        }
        for vote in votes
    ]


def _plain(figures: Figures) -> Mapping[str, float]:
    return {"accuracy": figures.accuracy, "nll": figures.nll, "ece": figures.ece}
