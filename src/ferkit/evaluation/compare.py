"""Two models on the same faces: their differences, with intervals and McNemar's test."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit import __version__
from ferkit.core.errors import DataError, TaxonomyError
from ferkit.core.taxonomy import Taxonomy
from ferkit.data import FaceDataset, select_faces
from ferkit.evaluation.evaluate import SELECTION_SPLIT, faces_to_measure, targets_for
from ferkit.evaluation.metrics import Z95, checked_probabilities, log_losses
from ferkit.evaluation.model import EvaluatedModel, ModelFacts, knows_data, open_model, weights_fitted_here
from ferkit.evaluation.report import (
    IN_SAMPLE,
    cautions,
    describe_model,
    is_selection_split,
    load_for,
    split_label,
)
from ferkit.evaluation.text import paragraph, percent, table

LEVEL = 0.05
"""Significance level."""

_LEAST_FACES = 2
"""With fewer there is no interval of a mean."""

logger = logging.getLogger("ferkit.evaluation")


@dataclass(frozen=True, slots=True)
class Difference:
    """Two models on the same faces and one set of labels; differences are second minus first.

    Args:
        labels: Which labels, as in :attr:`ferkit.evaluation.evaluate.Scores.labels`.
        taxonomy: Id of the head.
        n: Number of faces.
        accuracy: Of the first and the second model, 0..1.
        only_first: Faces on which the first model alone is right.
        only_second: Faces on which the second model alone is right.
        accuracy_difference: In -1..1.
        accuracy_interval: Its 95 % interval (:func:`share_interval`).
        p_value: Of McNemar's exact test (:func:`mcnemar`).
        nll: Mean negative log-likelihood of both, in nats.
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
    def accuracy_differs(self) -> bool:
        """Whether the accuracies differ significantly."""
        return self.p_value < LEVEL

    @property
    def nll_differs(self) -> bool:
        """Whether the likelihoods differ significantly."""
        low, high = self.nll_interval
        return low > 0 or high < 0

    def __str__(self) -> str:
        """Return in words which differences are significant."""
        p = f"p = {self.p_value:.2g}" if self.p_value >= 1e-4 else "p < 0.0001"
        higher, lower = "BA"[self.accuracy_difference < 0], "BA"[self.nll_difference > 0]
        accuracy = f"accuracy differs significantly ({p}): {higher} is higher"
        nll = f"NLL differs significantly: {lower} is lower"
        return (
            f"{self.labels}: "
            + (accuracy if self.accuracy_differs else f"accuracy does not differ significantly ({p})")
            + ("; " + nll if self.nll_differs else "; NLL does not differ significantly")
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same faces. ``print(comparison)`` shows it as text.

    Args:
        models: Both.
        source: Name of the data, without the folder.
        fingerprint: SHA-256 of the data set.
        split: Name of the split, or :data:`ferkit.evaluation.evaluate.EVERYTHING`.
        faces: Number of faces in it.
        tta: Name of the test-time augmentation.
        differences: One entry per set of labels.
        known_data: Of each, whether it was trained, selected or fitted on these data.
        in_sample: Of each, whether it is an ensemble whose weights were fitted on these faces.
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
        """Whether the split is the one on which models are selected, as the data name it."""
        return is_selection_split(self.split, known_data=any(self.known_data), split_named=self.split_named)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain dicts and lists: shares in 0..1, unrounded, NLL in nats."""
        models = [
            {**asdict(model), "known_data": known, "weights_in_sample": in_sample}
            for model, known, in_sample in zip(self.models, self.known_data, self.in_sample, strict=True)
        ]
        return {
            "ferkit_version": __version__,
            "first": models[0],
            "second": models[1],
            "data": {
                "source": self.source,
                "fingerprint": self.fingerprint,
                "split": self.split,
                "selection_split": self.selection_split,
                "faces": self.faces,
            },
            "tta": self.tta,
            "differences": [
                asdict(d) | {"accuracy_differs": d.accuracy_differs, "nll_differs": d.nll_differs}
                for d in self.differences
            ],
        }

    def __str__(self) -> str:
        """Return the figures of each set of labels, and in words which differences are significant."""
        split = split_label(self.split) if self.selection_split else self.split
        head = [f"{letter}: {describe_model(m)}" for letter, m in zip("AB", self.models, strict=True)]
        head.append(f"{self.source}, {split}, {self.faces:,} faces, tta {self.tta}")
        warned: dict[str, list[str]] = {}
        for k, letter in enumerate("AB"):
            lines = cautions(
                self.models[k], self.split, known_data=self.known_data[k], split_named=self.split_named
            )
            for line in [*lines, *([IN_SAMPLE] if self.in_sample[k] else [])]:
                warned.setdefault(line, []).append(letter)
        head += [f"{' and '.join(letters)}: {line}" for line, letters in warned.items()]
        accuracy: list[Sequence[str]] = [
            ("labels", "faces", "A %", "B %", "B - A", "95 % interval", "only A", "only B")
        ]
        likelihood: list[Sequence[str]] = [("labels", "NLL A", "NLL B", "B - A", "95 % interval")]
        for d in self.differences:
            change = (_signed([d.accuracy_difference], 2, 100), _signed(d.accuracy_interval, 2, 100))
            only = (f"{d.only_first:,}", f"{d.only_second:,}")
            accuracy.append((d.labels, f"{d.n:,}", *map(percent, d.accuracy), *change, *only))
            change = (_signed([d.nll_difference], 4), _signed(d.nll_interval, 4))
            likelihood.append((d.labels, *(f"{nll:.4f}" for nll in d.nll), *change))
        notes = (
            "95 % interval: of the paired difference (accuracy: Agresti and Min; NLL: normal)",
            "only A, only B: faces that only one has right; p: McNemar's exact test on them",
            f"significant: at the {100 * LEVEL:.0f} % level, without correction for several comparisons",
        )
        parts = [head, notes, [str(d) for d in self.differences]]
        text, foot, verdicts = ("\n".join(map(paragraph, lines)) for lines in parts)
        return "\n\n".join([text, table(accuracy), table(likelihood), foot, verdicts])


def _signed(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    return " to ".join(f"{value * scale:+.{digits}f}" for value in values)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test: a binomial test with probability 1/2.

    ``only_first`` and ``only_second`` are the faces on which one model alone is right.

    Example:
        >>> mcnemar(5, 1)
        0.21875
    """
    n = only_first + only_second
    # Not SciPy's binomtest: comparing models needs the base install only.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << n))


def share_interval(only_first: int, only_second: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a difference of two paired shares (Agresti and Min 2005).

    Wald's interval after half a face was added to each of the four cells, so that it has a width even where
    the models never differ. It lies within -1..1.

    Example:
        >>> low, high = share_interval(5, 1, 20)
        >>> round(low, 3), round(high, 3)
        (-0.405, 0.041)
    """
    first, second, n = only_first + 0.5, only_second + 0.5, total + 2
    difference = (second - first) / n
    half = Z95 * math.sqrt(first + second - (second - first) ** 2 / n) / n
    return max(-1.0, difference - half), min(1.0, difference + half)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two values or more, by the normal approximation."""
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def difference(
    first: NDArray[Any], second: NDArray[Any], labels: NDArray[np.int64], taxonomy: str, name: str
) -> Difference:
    """Return the differences between two models' probabilities ``[N, K]`` for the same faces.

    Raises:
        DataError: If the arrays do not fit together.
    """
    (p, truth), (q, _) = checked_probabilities(first, labels), checked_probabilities(second, labels)
    p_right, q_right = p.argmax(axis=1) == truth, q.argmax(axis=1) == truth
    only_first, only_second = int((p_right & ~q_right).sum()), int((q_right & ~p_right).sum())
    losses = log_losses(p, truth), log_losses(q, truth)
    return Difference(
        labels=name,
        taxonomy=taxonomy,
        n=len(truth),
        accuracy=(float(p_right.mean()), float(q_right.mean())),
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
    """Return the taxonomies that both models have, or ``taxonomy`` alone.

    Raises:
        TaxonomyError: If there is none, or not that one.
    """
    both = {name: head for name, head in first.items() if second.get(name) == head}
    if not both:
        have = [", ".join(f"{t.id} ({', '.join(t.labels)})" for t in h.values()) for h in (first, second)]
        raise TaxonomyError(
            f"the models have different labels and cannot be compared. First: {have[0]}; second: {have[1]}"
        )
    if taxonomy is not None and taxonomy not in both:
        raise TaxonomyError(
            f"the models do not both have the taxonomy {taxonomy!r}; both have {', '.join(both)}"
        )
    return both if taxonomy is None else {taxonomy: both[taxonomy]}


def compare(
    first: str | os.PathLike[str] | EvaluatedModel | None,
    second: str | os.PathLike[str] | EvaluatedModel | None,
    data: str | os.PathLike[str] | FaceDataset,
    *,
    votes: str | os.PathLike[str] | None = None,
    split: str = SELECTION_SPLIT,
    tta: str = "none",
    taxonomy: str | None = None,
    drop_flat: bool = False,
    threads: int | None = None,
) -> Comparison:
    """Compare two models on the same labelled faces.

    A set of labels with fewer than two faces is left out, with a warning (logger ``ferkit.evaluation``).

    Args:
        first: A model file, the folder of a run, the name of a model, or an opened model.
        second: Another.
        data: Labelled faces, as :func:`ferkit.data.load_data` takes them, or a data set.
        votes: FER+ votes, for a csv; adds the FER+ labels.
        split: Training, PublicTest, PrivateTest, or ``all``.
        tta: Name of the test-time augmentation.
        taxonomy: Compare in this taxonomy alone; by default in all that both models have.
        drop_flat: Leave out images of one constant colour.
        threads: Threads of ONNX Runtime; a run's network uses those of its backend.

    Raises:
        DataError: If the data cannot be read, have no labels of the models or fewer than two faces, or the
            models take faces of different sizes.
        TaxonomyError: If the models have no taxonomy in common.
        FerkitError: If a model cannot be opened, or a library for it is not installed.
    """
    one, other = (
        m if isinstance(m, EvaluatedModel) else open_model(m, threads=threads) for m in (first, second)
    )
    heads = shared_heads(one.heads, other.heads, taxonomy)
    if one.input_size != other.input_size:
        raise DataError(
            f"the models take faces of different sizes and cannot be compared: {one.facts.name} of "
            f"{one.input_size} pixels, {other.facts.name} of {other.input_size}"
        )
    whole = data if isinstance(data, FaceDataset) else load_for(one, data, votes=votes, split=split)
    chosen = faces_to_measure(select_faces(whole, drop_flat=drop_flat), split)
    every = targets_for(chosen, heads)
    targets = [t for t in every if t.keep.sum() >= _LEAST_FACES]
    few = ", ".join(f"{t.name} ({t.keep.sum()})" for t in every if t not in targets)
    if not targets:
        raise DataError(f"{whole.source}: a comparison needs two faces or more. Received, of {split}: {few}")
    if few:
        logger.warning("%s: left out, with too few faces of %s: %s", whole.source, split, few)
    p, q = one.predict(chosen.images, tta), other.predict(chosen.images, tta)
    differences = []
    for t in targets:
        head = t.taxonomy.id
        differences.append(difference(p[head][t.keep], q[head][t.keep], t.labels[t.keep], head, t.name))
    return Comparison(
        models=(one.facts, other.facts),
        source=Path(whole.source).name,
        fingerprint=whole.fingerprint,
        split=split,
        faces=len(chosen),
        tta=tta,
        differences=tuple(differences),
        known_data=(knows_data(one.facts, whole), knows_data(other.facts, whole)),
        in_sample=(
            weights_fitted_here(one.facts, whole, split),
            weights_fitted_here(other.facts, whole, split),
        ),
        split_named=whole.split_named,
    )
