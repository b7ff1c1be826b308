"""How differently do the networks err, and what does each add to an ensemble?

    python studies/diversity.py --data fer2013.csv.gz --votes fer2013new.csv
    python studies/diversity.py runs/zoo/member-vgg.onnx ferkit-large --data ... --votes ... --out report/

On PublicTest, without test-time augmentation, for FER2013's labels and FER+'s majority. Of each pair of
networks: how often their labels differ, and how often both are wrong. Of each network: accuracy and negative
log-likelihood of two ensembles with and without it, of ``best`` and of all networks, with equal weights and a
temperature out of fold; intervals and p values are those of ``ferkit compare``. Without MODEL: every network
of the wheel and of zoo/. Predictions are kept in the user's cache. Writes pairs.csv, gains.csv, diversity.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.errors import FerkitError, TrainingError
from ferkit.core.modelfile import read_model, resolve_model
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import FaceDataset, faces_digest, load_data
from ferkit.evaluation.calibration import temper_out_of_fold
from ferkit.evaluation.compare import Difference, difference
from ferkit.evaluation.evaluate import SELECTION_SPLIT, Target, targets_for
from ferkit.evaluation.metrics import accuracy, negative_log_likelihood
from ferkit.training.state import read_archive, write_archive
from ferkit.weights import embedded_models, zoo_models

HEADS = {head.id: head for head in (FER2013, FERPLUS)}
LABELS = ("fer2013", "ferplus majority")
REFERENCE = "best"
"""The ensemble to which every network is added, or from which it is taken."""

ALL = "all networks"

Predictions = Mapping[str, NDArray[Any]]
"""Probabilities ``[N, K]`` of each network by its name."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two networks on the same faces; shares of the faces in 0..1.

    Args:
        labels: The set of labels.
        first: A network.
        second: Another.
        n: Number of faces.
        disagree: Predicted labels differ.
        both_wrong: Both are wrong.
        same_error: Both predict the same wrong label.
        only_first: The first alone is right.
        only_second: The second alone is right.
    """

    labels: str
    first: str
    second: str
    n: int
    disagree: float
    both_wrong: float
    same_error: float
    only_first: float
    only_second: float


@dataclass(frozen=True, slots=True)
class Gain:
    """What a network adds to an ensemble.

    Args:
        labels: The set of labels.
        ensemble: The ensemble's name.
        model: The network.
        is_member: Whether the ensemble has it.
        alone: Its own accuracy, 0..1.
        nll_alone: Its own NLL in nats, with its own temperature.
        change: From the ensemble without it to the one with it.
    """

    labels: str
    ensemble: str
    model: str
    is_member: bool
    alone: float
    nll_alone: float
    change: Difference


def pair_of(labels: str, first: str, second: str, predicted: Predictions, truth: NDArray[np.int64]) -> Pair:
    """Return how differently two networks err.

    Args:
        labels: The set of labels.
        first: A network.
        second: Another.
        predicted: Predicted labels int64 ``[N]`` by network.
        truth: The labels, int64 ``[N]``.
    """
    a, b = predicted[first], predicted[second]
    shares = {
        "disagree": a != b,
        "both_wrong": (a != truth) & (b != truth),
        "same_error": (a == b) & (a != truth),
        "only_first": (a == truth) & (b != truth),
        "only_second": (a != truth) & (b == truth),
    }
    return Pair(labels, first, second, len(truth), **{name: float(x.mean()) for name, x in shares.items()})


def mean_of(
    members: Sequence[str], predictions: Predictions, truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean of members' probabilities ``[N, K]``, with a temperature out of fold."""
    return temper_out_of_fold(np.mean([predictions[m] for m in members], axis=0, dtype=np.float64), truth)


def gains_of(
    labels: str,
    ensembles: Mapping[str, Sequence[str]],
    predictions: Predictions,
    truth: NDArray[np.int64],
    taxonomy: str,
) -> list[Gain]:
    """Return what each network adds to each ensemble; one alone adds nothing to itself.

    Args:
        labels: The set of labels.
        ensembles: The members of each.
        predictions: Of every network.
        truth: The labels, int64 ``[N]``.
        taxonomy: Id of the head.
    """
    found = []
    for name, members in ensembles.items():
        for model, p in predictions.items():
            others = [member for member in members if member != model]
            if not others:
                continue
            without, joined = (mean_of(m, predictions, truth) for m in (others, [*others, model]))
            change = difference(without, joined, truth, taxonomy, labels)
            alone = accuracy(truth, p.argmax(axis=1)), negative_log_likelihood(p, truth)
            found.append(Gain(labels, name, model, model in members, *alone, change))
    return found


def predict(models: Sequence[str], faces: FaceDataset, digest: str) -> dict[str, dict[str, NDArray[Any]]]:
    """Return each network's predictions by taxonomy, from the cache if they are there.

    Args:
        models: Names or files.
        faces: The faces.
        digest: Of the data set, for the cache.

    Raises:
        FerkitError: If a network has not both heads, or two have one name.
    """
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for model in models:
        content, info = read_model(resolve_model(model))
        if info.name in found or not HEADS.keys() <= {head.id for head in info.taxonomies}:
            raise FerkitError(f"{model}: networks need distinct names, and the outputs {' and '.join(HEADS)}")
        name = f"{hashlib.sha256(content).hexdigest()[:24]}-{digest[:24]}.npz"
        saved = files.cache_folder() / "diversity" / name
        try:
            arrays = read_archive(saved)[0]
        except TrainingError:
            predicted = FaceClassifier(content).predict(np.ascontiguousarray(faces.images))
            arrays = {head: predicted[head] for head in HEADS}
            with contextlib.suppress(OSError):
                saved.parent.mkdir(parents=True, exist_ok=True)
            write_archive(saved, arrays, {})
        found[info.name] = arrays
    return found


def as_markdown(pairs: Sequence[Pair], gains: Sequence[Gain], members: Mapping[str, Sequence[str]]) -> str:
    """Return the report as tables."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    lines = [
        f"{SELECTION_SPLIT} (selection split), tta none; equal weights and a temperature out of fold.",
        "`ferkit compare` explains intervals (95 %, paired) and p (McNemar's exact test).",
    ]
    for labels in LABELS:
        known = {frozenset((p.first, p.second)): p for p in pairs if p.labels == labels}
        if not known:
            continue
        n = next(iter(known.values())).n
        lines += [
            "",
            f"## Pairs, {labels}, {n:,} faces",
            "",
            "% of faces on which two networks disagree / both are wrong:",
        ]
        lines += ["", "| | " + " | ".join(names[1:]) + " |", "|---|" + "---:|" * (len(names) - 1)]
        for row, first in enumerate(names[:-1]):
            cells = [""] * row
            for second in names[row + 1 :]:
                pair = known[frozenset((first, second))]
                cells.append(f"{100 * pair.disagree:.1f} / {100 * pair.both_wrong:.1f}")
            lines.append(f"| {first} | " + " | ".join(cells) + " |")
        for ensemble, used in members.items():
            rows = [gain for gain in gains if (gain.labels, gain.ensemble) == (labels, ensemble)]
            lines += ["", f"## What each adds to {ensemble}, {labels}", ""]
            lines.append(
                f"The ensemble has {', '.join(used)}; a member is taken out, another network is added."
            )
            lines += [
                "",
                "| network | | alone %, NLL | without it | with it | gain, points | p | change of NLL |",
                "|---|---|---:|---:|---:|---:|---:|---:|",
            ]
            lines += [_row(gain) for gain in rows]
    return "\n".join(lines) + "\n"


def _row(gain: Gain) -> str:
    d = gain.change
    low, high = (100 * end for end in d.accuracy_interval)
    before, after = (f"{100 * share:.1f}, {nll:.3f}" for share, nll in zip(d.accuracy, d.nll, strict=True))
    points = f"{100 * d.accuracy_difference:+.2f} ({low:+.1f} to {high:+.1f})"
    nats = f"{d.nll_difference:+.4f} ({d.nll_interval[0]:+.4f} to {d.nll_interval[1]:+.4f})"
    kind = "member" if gain.is_member else "added"
    alone = f"{100 * gain.alone:.1f}, {gain.nll_alone:.3f}"
    return f"| {gain.model} | {kind} | {alone} | {before} | {after} | {points} | {d.p_value:.2g} | {nats} |"


def write(out: Path, pairs: Sequence[Pair], gains: Sequence[Gain], text: str) -> None:
    """Write the tables, shares in percent, and the report.

    Raises:
        OutputError: If they cannot be written.
    """
    shares = ("disagree", "both_wrong", "same_error", "only_first", "only_second")
    table = [asdict(p) | {name: f"{100 * getattr(p, name):.2f}" for name in shares} for p in pairs]
    files.write_csv(out / "pairs.csv", table, list(Pair.__dataclass_fields__))
    rows = [
        {
            "labels": g.labels,
            "ensemble": g.ensemble,
            "model": g.model,
            "member": "yes" if g.is_member else "no",
            "n": g.change.n,
            "accuracy_alone": f"{100 * g.alone:.2f}",
            "nll_alone": f"{g.nll_alone:.4f}",
            "accuracy_without": f"{100 * g.change.accuracy[0]:.2f}",
            "accuracy_with": f"{100 * g.change.accuracy[1]:.2f}",
            "gain": f"{100 * g.change.accuracy_difference:.2f}",
            "gain_low": f"{100 * g.change.accuracy_interval[0]:.2f}",
            "gain_high": f"{100 * g.change.accuracy_interval[1]:.2f}",
            "p": f"{g.change.p_value:.4g}",
            "nll_without": f"{g.change.nll[0]:.4f}",
            "nll_with": f"{g.change.nll[1]:.4f}",
            "nll_change": f"{g.change.nll_difference:.4f}",
            "nll_low": f"{g.change.nll_interval[0]:.4f}",
            "nll_high": f"{g.change.nll_interval[1]:.4f}",
        }
        for g in gains
    ]
    files.write_csv(out / "gains.csv", rows, list(rows[0]))
    files.write_text(out / "diversity.md", text)


def ensembles_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the members of the ensembles: of ``best``, if they are among the networks, and of all."""
    members = [member.name for member in read_model(resolve_model(REFERENCE))[1].members]
    reference = {REFERENCE: members} if set(members) <= set(names) else {}
    return reference if sorted(members) == sorted(names) else {**reference, ALL: list(names)}


def measured(
    target: Target, predictions: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return each network's probabilities for the faces that have a label."""
    return {name: p[target.taxonomy.id][target.keep] for name, p in predictions.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/diversity"))
    args = parser.parse_args()
    every = [name for name in (*embedded_models(), *zoo_models()) if name != REFERENCE]
    data = load_data(args.data, votes=args.votes)
    faces = data.of_split(SELECTION_SPLIT)
    predictions = predict(args.models or every, faces, faces_digest(data))
    ensembles = ensembles_of(list(predictions))
    pairs: list[Pair] = []
    gains: list[Gain] = []
    for target in (t for t in targets_for(faces, HEADS) if t.name in LABELS):
        truth, p = target.labels[target.keep], measured(target, predictions)
        predicted = {name: q.argmax(axis=1) for name, q in p.items()}
        pairs += [pair_of(target.name, *names, predicted, truth) for names in itertools.combinations(p, 2)]
        gains += gains_of(target.name, ensembles, p, truth, target.taxonomy.id)
    text = as_markdown(pairs, gains, ensembles)
    print(text, end="")
    write(args.out, pairs, gains, text)


if __name__ == "__main__":
    main()
