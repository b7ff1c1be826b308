"""Members asked about a split of a data set, and the vote that follows from their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.classifier import FaceClassifier
from ferkit.data.dataset import FaceDataset
from ferkit.evaluation.ensemble_weights import LEAST_FACES, Figures, FittedVote, apply_vote, judge_vote
from ferkit.evaluation.evaluate import SELECTION_SPLIT, evaluate_split, leaks_show, targets_for
from ferkit.evaluation.subject import facts_of
from ferkit.export.ensemble import Member, normalised_weights, shared_taxonomies
from ferkit.export.run import summary_rows


@dataclass(frozen=True, slots=True)
class SplitVote:
    """The vote in one taxonomy.

    Args:
        taxonomy: Its id.
        labels: Which labels it was fitted to.
        voters: Positions of the members that have the taxonomy.
        fitted: The vote of these members, and what it is worth.
        weights_fitted: Whether weights were fitted.
        answers: What the vote answers about every face of the split, float64 ``[N, K]``.
        held_out: The same, but about each face that it was fitted to as a vote answers that had not seen it.
    """

    taxonomy: str
    labels: str
    voters: tuple[int, ...]
    fitted: FittedVote
    weights_fitted: bool
    answers: NDArray[np.float64] = field(repr=False, compare=False)
    held_out: NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def fit(self) -> str:
        """What was fitted: ``weights and temperature``, ``temperature`` or ``nothing``."""
        if self.fitted.out_of_fold is None:
            return "nothing"
        return "weights and temperature" if self.weights_fitted else "temperature"

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

    Where a taxonomy has too few labelled faces (fewer than LEAST_FACES), nothing is fitted to them: with
    ``fit_weights`` it takes the weights of the first taxonomy, as far as those were.

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
    answers = []
    for number, member in enumerate(members, 1):
        if progress is not None:
            progress(f"asking member {number} of {len(members)}: {member.info.name}")
        known = [head.id for head in member.info.taxonomies if head.id in wanted]
        answers.append(
            FaceClassifier(member.content, threads=threads).predict(chosen.images, taxonomies=known)
        )
    votes: list[SplitVote] = []
    for target in targets:
        taxonomy = target.taxonomy.id
        voters = tuple(k for k, answer in enumerate(answers) if taxonomy in answer)
        everybody = np.stack([answers[k][taxonomy] for k in voters])
        free = fit_weights and int(target.keep.sum()) >= LEAST_FACES
        fixed = weights_of(members, votes, weights)[taxonomy]
        judged = judge_vote(
            everybody[:, target.keep],
            target.labels[target.keep],
            None if free else [fixed[k] for k in voters],
        )
        said = apply_vote(everybody, judged.vote)
        held_out = said.copy()
        if judged.held_out is not None:
            held_out[target.keep] = judged.held_out
        votes.append(SplitVote(taxonomy, target.name, voters, judged, free, said, held_out))
    return tuple(votes)


def weights_of(
    members: Sequence[Member], votes: Sequence[SplitVote], weights: Sequence[float] | None = None
) -> dict[str, tuple[float, ...]]:
    """Return the weights per taxonomy after fitting.

    A taxonomy that the data have no labels for, or too few, takes the weights of the first that was fitted,
    as far as its members have it; where weights were given and not fitted, it takes those.
    """
    result = normalised_weights(members, weights)
    if votes and votes[0].weights_fitted:
        first = votes[0].weights(len(members))
        result = normalised_weights(members, first)
        result |= {vote.taxonomy: vote.weights(len(members)) for vote in votes if vote.weights_fitted}
    return result


def metrics_of(
    members: Sequence[Member], votes: Sequence[SplitVote], dataset: FaceDataset, split: str
) -> list[dict[str, Any]]:
    """Return what an ensemble's metadata says of each vote: rows as of an exported file.

    ``nll`` and ``ece`` are those of the file as it answers, which was fitted to these very faces. Accuracy,
    its interval, macro F1, recall, ``nll_out_of_fold`` and ``ece_out_of_fold`` are those of votes that were
    fitted without the measured face. ``fit`` tells what was fitted.

    Args:
        members: What votes.
        votes: The votes, as :func:`vote_on_split` returns them.
        dataset: The faces that they were fitted to, and those that members were trained on, which show leaks.
        split: As :func:`vote_on_split`.
    """
    if not votes:
        return []
    heads = {t.id: t for t in shared_taxonomies(members)}
    trained = dict.fromkeys(s for m in members for s in facts_of(m.info, None, None).train_splits)

    def rows(answers: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
        measured = evaluate_split(
            lambda *_: answers,
            dataset,
            heads=heads,
            split=split,
            drop_leaks=leaks_show(dataset, split, tuple(trained)),
            train_splits=tuple(trained),
        )
        return summary_rows(measured)

    by_taxonomy = {vote.taxonomy: vote for vote in votes}
    by_labels = {t.name: by_taxonomy[t.taxonomy.id] for t in targets_for(dataset.of_split(split), heads)}
    as_answered = rows({vote.taxonomy: vote.answers for vote in votes})
    unseen = rows({vote.taxonomy: vote.held_out for vote in votes})
    found = []
    for row, held_out in zip(as_answered, unseen, strict=True):
        vote = by_labels[row["labels"]]
        fitted = vote.fit != "nothing"
        found.append(
            {
                **held_out,
                "taxonomy": vote.taxonomy,
                "nll": row["nll"],
                "ece": row["ece"],
                "nll_out_of_fold": held_out["nll"] if fitted else None,
                "ece_out_of_fold": held_out["ece"] if fitted else None,
                "fit": f"{vote.fit}, out of fold" if fitted else "nothing",
            }
        )
    return found


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
            "equal_weights_out_of_fold": None if vote.fitted.equal is None else _plain(vote.fitted.equal),
            "in_sample": _plain(vote.fitted.in_sample),
            "out_of_fold": None if vote.fitted.out_of_fold is None else _plain(vote.fitted.out_of_fold),
        }
        for vote in votes
    ]


def _plain(figures: Figures) -> Mapping[str, float]:
    return {"accuracy": figures.accuracy, "nll": figures.nll, "ece": figures.ece}
