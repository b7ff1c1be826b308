"""Which label set should be the default, FER2013's or FER+'s? Each head's agreement with the FER+ taggers.

    python studies/taxonomies.py --data fer2013.csv.gz --votes fer2013new.csv --model ferkit-small

For every PublicTest face with two or more votes for emotions: the probability that a FER+ tagger, drawn at
random, agrees with the label, with each head, and with another tagger. Then recall and precision by class,
and the accuracy of confident predictions. Writes taxonomies.json and taxonomies.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import load_data, majority_targets
from ferkit.evaluation.calibration import temper_out_of_fold
from ferkit.evaluation.metrics import expected_calibration_error, wilson_interval

SAME = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
"""The FER+ label for each of FER2013's labels, in FER2013's order."""

THRESHOLDS = (0.5, 0.7, 0.9)


def agreements(
    votes: NDArray[Any], labels: NDArray[np.int64], predictions: dict[str, NDArray[Any]]
) -> dict[str, float]:
    """Return the probability that a tagger drawn at random agrees with label, heads and taggers.

    Args:
        votes: Counts ``[N, 8]`` in FER+ order, with two or more votes in each row.
        labels: FER2013's labels ``[N]``.
        predictions: Probabilities ``[N, K]`` of the heads ``fer2013`` and ``ferplus``.
    """
    to_ferplus = np.array([FERPLUS.labels.index(word) for word in SAME])
    counts = votes.astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / total
    rows = np.arange(len(votes))
    # Drawn without replacement: no tagger is compared with himself.
    other = (counts * (counts - 1)).sum(axis=1) / (total * (total - 1))[:, 0]
    return {
        "FER2013's label": float(share[rows, to_ferplus[labels]].mean()),
        "the fer2013 head": float(share[rows, to_ferplus[predictions["fer2013"].argmax(axis=1)]].mean()),
        "the ferplus head": float(share[rows, predictions["ferplus"].argmax(axis=1)].mean()),
        "another tagger": float(other.mean()),
        "the most frequent vote": float(share.max(axis=1).mean()),
    }


def by_class(p: NDArray[Any], labels: NDArray[np.int64], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return faces, recall and precision of each class; None where one is undefined."""
    predicted = p.argmax(axis=1)
    rows = []
    for k, name in enumerate(names):
        true, positive = labels == k, predicted == k
        rows.append(
            {
                "label": name,
                "faces": int(true.sum()),
                "recall": float(positive[true].mean()) if true.any() else None,
                "precision": float(true[positive].mean()) if positive.any() else None,
            }
        )
    return rows


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path, required=True)
    parser.add_argument("--model", help="a model file or an embedded model")
    parser.add_argument("--out", type=Path, default=Path("results/taxonomies"))
    args = parser.parse_args()
    test = load_data(args.data, votes=args.votes).of_split("PublicTest")
    assert test.votes is not None
    classifier = FaceClassifier(args.model)
    predictions = classifier.predict(np.ascontiguousarray(test.images), taxonomies=["fer2013", "ferplus"])
    voted = test.votes[:, : len(FERPLUS)].sum(axis=1) > 1
    people = agreements(
        test.votes[voted, : len(FERPLUS)],
        np.asarray(test.labels)[voted],
        {head: p[voted] for head, p in predictions.items()},
    )
    majority, kept = majority_targets(test.votes)
    heads: dict[str, Any] = {}
    for taxonomy, labels, keep in (
        (FER2013, np.asarray(test.labels), np.ones(len(test), bool)),
        (FERPLUS, majority, kept),
    ):
        p, truth = predictions[taxonomy.id][keep], labels[keep]
        right, confidence = p.argmax(axis=1) == truth, p.max(axis=1)
        heads[taxonomy.id] = {
            "faces": len(truth),
            "accuracy": float(right.mean()),
            "interval": wilson_interval(int(right.sum()), len(right)),
            "ece": expected_calibration_error(temper_out_of_fold(p, truth), truth),
            "classes": by_class(p, truth, taxonomy.labels),
            "confident": [
                {
                    "at_least": t,
                    "share": float((confidence >= t).mean()),
                    "accuracy": float(right[confidence >= t].mean()) if (confidence >= t).any() else None,
                }
                for t in THRESHOLDS
            ],
        }
    report = {
        "model": classifier.info.name,
        "faces_with_votes": int(voted.sum()),
        "people": people,
        "heads": heads,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "taxonomies.json", report)
    files.write_text(args.out / "taxonomies.md", as_markdown(report))
    print(as_markdown(report))


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as tables."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    lines = [
        f"`{report['model']}` on PublicTest (selection split), tta none.",
        "",
        f"Agreement of a FER+ tagger drawn at random, over {report['faces_with_votes']:,} faces:",
        "",
        "| with | % |",
        "|---|---:|",
        *(f"| {who} | {percent(share)} |" for who, share in report["people"].items()),
    ]
    for head, figures in report["heads"].items():
        lines += [
            "",
            f"`{head}`{', majority labels' if head == 'ferplus' else ''}: {figures['faces']:,} faces, "
            f"accuracy {percent(figures['accuracy'])} % ({percent(figures['interval'][0])}-"
            f"{percent(figures['interval'][1])}), calibration error out of fold {figures['ece']:.3f}; "
            + ", ".join(
                f"{percent(c['share'])} % of predictions have a confidence of {100 * c['at_least']:.0f} % "
                f"or more, and {percent(c['accuracy'])} % of these are right"
                for c in figures["confident"]
            ),
            "",
            "| label | faces | recall % | precision % |",
            "|---|---:|---:|---:|",
            *(
                f"| {c['label']} | {c['faces']} | {percent(c['recall'])} | {percent(c['precision'])} |"
                for c in figures["classes"]
            ),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
