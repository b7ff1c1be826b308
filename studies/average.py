"""Weights between those before and after fine-tuning: what do accuracy and robustness cost each other?

    python studies/average.py ferkit-distilled runs/photos --data fer2013.csv.gz --votes fer2013new.csv

A network that is fine-tuned on degraded faces is better on such faces and worse on FER2013's own. ``ferkit
export --average`` writes the mean of both. For each share of the second network FER2013's and FER+'s
accuracy are measured on PublicTest, and FER2013's on every third face of it, degraded in seven ways at the
middle step. Writes interpolation.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ferkit.core import files
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import FaceDataset, load_data
from ferkit.data.ferplus import majority_targets
from ferkit.evaluation.degrade import KINDS, degraded
from ferkit.training.average import average_runs
from ferkit.training.inference import predict_probabilities
from ferkit.training.runs import load_training_weights

EVERY = 3
"""Of so many faces one is degraded."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def measure(network: Any, dataset: FaceDataset) -> dict[str, float]:
    """Return accuracies in % on PublicTest, as it is and degraded, and the loss on FER2013's labels."""
    p = predict_probabilities(network, dataset.images)
    assert dataset.votes is not None
    labels, tagged = dataset.labels, majority_targets(dataset.votes)
    right = p[FER2013.id].argmax(axis=1) == labels
    some = dataset.select(np.arange(0, len(dataset), EVERY))
    clean = np.ascontiguousarray(some.images)
    row = {
        "fer2013": 100 * float(right.mean()),
        "nll": float(-np.log(p[FER2013.id][np.arange(len(labels)), labels]).mean()),
        "ferplus": 100 * float((p[FERPLUS.id].argmax(axis=1) == tagged[0])[tagged[1]].mean()),
    }
    for kind in KINDS:
        poor = degraded(clean, kind, kind.steps[len(kind.steps) // 2])
        found = predict_probabilities(network, poor)[FER2013.id].argmax(axis=1)
        row[kind.name] = 100 * float((found == some.labels).mean())
    row["degraded"] = float(np.mean([row[kind.name] for kind in KINDS]))
    return {name: round(figure, 4) for name, figure in row.items()}


def main() -> None:
    """Measure every share, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", help="training weights before fine-tuning: a run, a file, or a name")
    parser.add_argument("after", help="training weights after it")
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/photos"))
    given = parser.parse_args()
    before, after = (load_training_weights(source) for source in (given.before, given.after))
    dataset = load_data(given.data, votes=given.votes)
    faces = dataset.of_split("Training").images
    rows = []
    for share in SHARES:
        run = {0.0: before, 1.0: after}.get(share) or average_runs(after, before, share, faces)
        rows.append({"share": share, **measure(run.network(), dataset.of_split("PublicTest"))})
        print(rows[-1], flush=True)
    files.write_csv(given.out / "interpolation.csv", rows, list(rows[0]))


if __name__ == "__main__":
    main()
