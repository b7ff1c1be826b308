"""Two models on the same faces: what they differ by, and whether these faces tell them apart."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferkit.core.errors import DataError, TaxonomyError
from ferkit.core.taxonomy import Taxonomy
from ferkit.data.dataset import FaceDataset
from ferkit.evaluation.evaluate import SELECTION_SPLIT, Predict, faces_to_measure, targets_for
from ferkit.evaluation.metrics import checked_probabilities, log_losses
from ferkit.evaluation.model import ModelFacts
from ferkit.evaluation.report import (
    IN_SAMPLE,
    cautions,
    describe_model,
    is_selection_split,
    percent,
    split_label,
    table,
)

LEVEL = 0.05
"""Two models are told apart where chance alone would do as much in less than this share of such data sets."""

_LEAST_FACES = 2
"""With fewer there is no interval of a mean."""

logger = logging.getLogger("ferkit.evaluation")

_Z = NormalDist().inv_cdf(1 - LEVEL / 2)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two models' answers to the same faces against one set of labels; differences are second less first.

    Args:
        labels: Which labels, as in :attr:`ferkit.evaluation.evaluate.Scores.labels`.
        taxonomy: Id of the head that answered.
        n: Number of faces.
        accuracy: Of the first and the second model, 0..1.
        only_first: Faces that the first model alone has right.
        only_second: Faces that the second model alone has right.
        accuracy_difference: In -1..1.
        accuracy_interval: Its 95 % interval (:func:`share_interval`).
        p_value: Of McNemar's exact test (:func:`mcnemar`).
        nll: Mean negative log-likelihood of both in nats, as they answer.
        nll_difference: Below 0 where the second model's is better.
        nll_interval: Its 95 % interval (:func:`mean_interval`).
    """

    labels: str
    taxonomy: str
    n: int
    accuracy: tuple[float, float]
    only_first: int
    only_second: int
    accuracy_difference: float
    accuracy_interval: tuple[float, float]
    p_value: float
    nll: tuple[float, float]
    nll_difference: float
    nll_interval: tuple[float, float]

    @property
    def by_accuracy(self) -> bool:
        """Whether the models are told apart by accuracy."""
        return self.p_value < LEVEL

    @property
    def by_likelihood(self) -> bool:
        """Whether the models are told apart by likelihood."""
        low, high = self.nll_interval
        return low > 0 or high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models, measured on the same faces.

    Args:
        models: Both.
        source: Name of the data, without the folder.
        fingerprint: SHA-256 of the data set.
        split: Name of the split, or :data:`ferkit.evaluation.evaluate.EVERYTHING`.
        faces: Number of faces in it.
        tta: Name of the test-time augmentation.
        differences: One entry per set of labels.
        known_data: Of each, whether it was trained and selected on these data.
        in_sample: Of each, whether it is a vote whose weights were fitted on these faces.
        split_named: Whether the data name the split; otherwise it was held out when they were loaded.
    """

    models: tuple[ModelFacts, ModelFacts]
    source: str
    fingerprint: str
    split: str
    faces: int
    tta: str
    differences: tuple[Difference, ...]
    known_data: tuple[bool, bool] = (True, True)
    in_sample: tuple[bool, bool] = (False, False)
    split_named: bool = True

    @property
    def selection_split(self) -> bool:
        """Whether the split is the one on which models are selected, unless it was made up just now."""
        return is_selection_split(self.split, known_data=any(self.known_data), split_named=self.split_named)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test.

    Of two models that are right equally often, each face that one alone has right falls to either like a
    coin; p is how often coins fall at least as unevenly.

    Args:
        only_first: Faces that the first model alone has right.
        only_second: Faces that the second model alone has right.

    Raises:
        DataError: If a count is negative.

    Example:
        >>> mcnemar(5, 1)
        0.21875
    """
    if min(only_first, only_second) < 0:
        raise DataError(f"counts of faces are not negative. Received: {only_first} and {only_second}")
    tosses, term, tail = only_first + only_second, 1, 1
    for k in range(min(only_first, only_second)):
        term = term * (tosses - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << tosses))


def share_interval(only_first: int, only_second: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a difference of two paired shares (Agresti and Min 2005).

    Wald's interval after half a face was added to each of the four cells, so that it has a width even where
    the models never differ. It lies within -1..1.

    Args:
        only_first: Faces that the first model alone has right.
        only_second: Faces that the second model alone has right.
        total: Number of faces.

    Raises:
        DataError: If the counts do not fit together.

    Example:
        >>> low, high = share_interval(5, 1, 20)
        >>> round(low, 3), round(high, 3)
        (-0.405, 0.041)
    """
    if min(only_first, only_second) < 0 or total < max(1, only_first + only_second):
        raise DataError(
            f"of {total} faces {only_first} and {only_second} cannot be right with one model alone"
        )
    first, second, n = only_first + 0.5, only_second + 0.5, total + 2
    difference = (second - first) / n
    half = _Z * math.sqrt(first + second - (second - first) ** 2 / n) / n
    return max(-1.0, difference - half), min(1.0, difference + half)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the normal approximation.

    Args:
        values: ``[N]``, one per face, N of at least 2.

    Raises:
        DataError: If there are fewer than two.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < _LEAST_FACES:
        raise DataError(f"an interval of a mean needs two values or more. Received shape: {array.shape}")
    half = _Z * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()) - half, float(array.mean()) + half


def difference(
    first: NDArray[Any], second: NDArray[Any], labels: NDArray[np.int64], taxonomy: str, name: str
) -> Difference:
    """Return what two models differ by on the same faces.

    Args:
        first: Probabilities ``[N, K]`` of the first model.
        second: Probabilities ``[N, K]`` of the second model.
        labels: int64 ``[N]``.
        taxonomy: Id of the head that answered.
        name: What to call the set of labels.

    Raises:
        DataError: If the arrays do not fit together, or there are fewer than two faces.
    """
    (p, truth), (q, _) = checked_probabilities(first, labels), checked_probabilities(second, labels)
    here, there = p.argmax(axis=1) == truth, q.argmax(axis=1) == truth
    only_first, only_second = int((here & ~there).sum()), int((there & ~here).sum())
    losses = log_losses(p, truth), log_losses(q, truth)
    return Difference(
        labels=name,
        taxonomy=taxonomy,
        n=len(truth),
        accuracy=(float(here.mean()), float(there.mean())),
        only_first=only_first,
        only_second=only_second,
        accuracy_difference=(only_second - only_first) / len(truth),
        accuracy_interval=share_interval(only_first, only_second, len(truth)),
        p_value=mcnemar(only_first, only_second),
        nll=(float(losses[0].mean()), float(losses[1].mean())),
        nll_difference=float((losses[1] - losses[0]).mean()),
        nll_interval=mean_interval(losses[1] - losses[0]),
    )


def shared_heads(
    first: Mapping[str, Taxonomy], second: Mapping[str, Taxonomy], taxonomy: str | None = None
) -> dict[str, Taxonomy]:
    """Return the taxonomies that two models both answer in, or the one of them that is asked for.

    Raises:
        TaxonomyError: If there is none, or not that one.
    """
    both = {name: head for name, head in first.items() if second.get(name) == head}
    if not both:
        answers = [", ".join(f"{t.id} ({', '.join(t.labels)})" for t in h.values()) for h in (first, second)]
        raise TaxonomyError(
            f"the models answer with different labels and cannot be compared. First: {answers[0]}; "
            f"second: {answers[1]}"
        )
    if taxonomy is not None and taxonomy not in both:
        raise TaxonomyError(f"the models do not both answer in {taxonomy!r}; they do in {', '.join(both)}")
    return both if taxonomy is None else {taxonomy: both[taxonomy]}


def compare(
    predict: tuple[Predict, Predict],
    dataset: FaceDataset,
    *,
    heads: Mapping[str, Taxonomy],
    split: str = SELECTION_SPLIT,
    tta: str = "none",
) -> tuple[Difference, ...]:
    """Measure what two models differ by on one split, against each set of labels that there is for ``heads``.

    A set that keeps fewer than two faces is left out, which is said in a warning (``ferkit.evaluation``).

    Args:
        predict: Both models.
        dataset: The faces.
        heads: The taxonomies to compare in (:func:`shared_heads`).
        split: Which split to measure on, or :data:`ferkit.evaluation.evaluate.EVERYTHING`.
        tta: A name from :data:`ferkit.core.crops.TTA_MODES`.

    Raises:
        DataError: If the split is empty, or no label set of the data fits a head or keeps two faces.
    """
    chosen = faces_to_measure(dataset, split)
    every = targets_for(chosen, heads)
    targets = [t for t in every if t.keep.sum() >= _LEAST_FACES]
    few = [f"{t.name} ({t.keep.sum()})" for t in every if t not in targets]
    if not targets:
        raise DataError(
            f"{dataset.source}: two faces or more tell models apart. Received, of {split}: {', '.join(few)}"
        )
    if few:
        logger.warning("%s: left out, with too few faces of %s: %s", dataset.source, split, ", ".join(few))
    first, second = (model(chosen.images, tta) for model in predict)
    return tuple(
        difference(
            np.asarray(first[t.taxonomy.id])[t.keep],
            np.asarray(second[t.taxonomy.id])[t.keep],
            t.labels[t.keep],
            t.taxonomy.id,
            t.name,
        )
        for t in targets
    )


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain dicts and lists: shares in 0..1, unrounded, NLL in nats."""
    first, second = (
        {**asdict(model), "known_data": known, "weights_in_sample": fitted}
        for model, known, fitted in zip(
            comparison.models, comparison.known_data, comparison.in_sample, strict=True
        )
    )
    return {
        "first": first,
        "second": second,
        "data": {
            "source": comparison.source,
            "fingerprint": comparison.fingerprint,
            "split": comparison.split,
            "selection_split": comparison.selection_split,
            "faces": comparison.faces,
        },
        "tta": comparison.tta,
        "differences": [
            {
                **asdict(found),
                "told_apart_by_accuracy": found.by_accuracy,
                "told_apart_by_likelihood": found.by_likelihood,
            }
            for found in comparison.differences
        ],
    }


def _signed(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    return " to ".join(f"{value * scale:+.{digits}f}" for value in values)


def _verdict(found: Difference) -> str:
    p = f"p = {found.p_value:.2g}" if found.p_value >= 1e-4 else "p < 0.0001"
    right = "B" if found.accuracy_difference > 0 else "A"
    likely = "B" if found.nll_difference < 0 else "A"
    by_accuracy = f"told apart by accuracy ({p}): {right} is right more often"
    by_likelihood = f"told apart by likelihood: {likely} is better"
    parts = [
        by_accuracy if found.by_accuracy else f"not told apart by accuracy ({p})",
        by_likelihood if found.by_likelihood else "not told apart by likelihood",
    ]
    return f"{found.labels}: {'; '.join(parts)}."


def format_comparison(comparison: Comparison) -> str:
    """Return the comparison as text: figures of each set of labels, and in plain words what they tell."""
    split = split_label(comparison.split) if comparison.selection_split else comparison.split
    head = [f"{letter}: {describe_model(m)}" for letter, m in zip("AB", comparison.models, strict=True)]
    head.append(f"{comparison.source}, {split}, {comparison.faces:,} faces, {comparison.tta}")
    warned: dict[str, list[str]] = {}
    for letter, model, known, fitted in zip(
        "AB", comparison.models, comparison.known_data, comparison.in_sample, strict=True
    ):
        named = comparison.split_named
        said = cautions(model, comparison.split, known_data=known, split_named=named)
        for line in [*said, *([IN_SAMPLE] if fitted else [])]:
            warned.setdefault(line, []).append(letter)
    head += [f"{' and '.join(letters)}: {line}" for line, letters in warned.items()]
    accuracy: list[Sequence[str]] = [
        ("labels", "faces", "A %", "B %", "B - A", "95 % interval", "only A", "only B")
    ]
    accuracy += [
        (
            d.labels,
            f"{d.n:,}",
            percent(d.accuracy[0]),
            percent(d.accuracy[1]),
            _signed([d.accuracy_difference], 2, 100),
            _signed(d.accuracy_interval, 2, 100),
            f"{d.only_first:,}",
            f"{d.only_second:,}",
        )
        for d in comparison.differences
    ]
    likelihood: list[Sequence[str]] = [("labels", "NLL A", "NLL B", "B - A", "95 % interval")]
    likelihood += [
        (
            d.labels,
            f"{d.nll[0]:.4f}",
            f"{d.nll[1]:.4f}",
            _signed([d.nll_difference], 4),
            _signed(d.nll_interval, 4),
        )
        for d in comparison.differences
    ]
    notes = (
        "interval: of the difference, face by face (accuracy: Agresti and Min; NLL: normal). only A, only B: "
        "faces that\none alone has right; p: McNemar's exact test of these. Told apart: at "
        f"{100 * LEVEL:.0f} %; of many comparisons that many are by chance."
    )
    parts = ["\n".join(head), table(accuracy), table(likelihood), notes]
    return "\n\n".join([*parts, "\n".join(_verdict(d) for d in comparison.differences)]) + "\n"
