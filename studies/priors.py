"""What does another prior do to accuracy and calibration, and does the estimate from the photos help?

    python studies/priors.py MODEL --photos labelled/

From photos in folders named by label, three sets: all of them, 300 of a wedding (70 % happy) and 300 of a
clinic (35 % neutral, 30 % sad), drawn with replacement where there are too few. On each: the output ``basic``
under its own prior, ``training``, ``uniform``, the set's true frequencies, and the estimate, with and without
the weight of the known prior. Faces that are not found are left out. Writes priors.json and priors.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from basic import photo_faces, scores
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.priors import STRENGTH, estimate_prior, read_prior, shift_prior
from ferkit.core.taxonomy import BASIC
from ferkit.evaluation.metrics import negative_log_likelihood

# In the order of BASIC: neutral, happy, sad, surprise, fear, disgust, angry.
SETS = {
    "wedding": (0.2, 0.7, 0.02, 0.06, 0.005, 0.005, 0.01),
    "clinic": (0.35, 0.05, 0.3, 0.02, 0.13, 0.03, 0.12),
}
DRAWN = 300


def draw(labels: NDArray[np.int64], frequencies: tuple[float, ...], rng: np.random.Generator) -> Any:
    """Return rows in which labels have these frequencies, as far as whole faces allow."""
    rows: list[int] = []
    for label, share in enumerate(frequencies):
        have, wanted = np.flatnonzero(labels == label), round(share * DRAWN)
        rows += rng.choice(have, wanted, replace=wanted > len(have)).tolist()
    return np.array(rows)


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/priors"))
    given = parser.parse_args()
    classifier = FaceClassifier(given.model)
    head = classifier.info.head(BASIC.id)
    crops, labels, found = photo_faces(given.photos, given.model)
    predicted = classifier.predict(crops[found], taxonomies=[BASIC.id])[BASIC.id].astype(np.float64)
    labels = labels[found]
    rng = np.random.default_rng(0)
    chosen = {"all photos": np.arange(len(labels))}
    chosen |= {name: draw(labels, frequencies, rng) for name, frequencies in SETS.items()}
    report: dict[str, Any] = {}
    lines = ["| photos | prior | accuracy % | mean recall % | ECE | NLL |", "|---|---|---:|---:|---:|---:|"]
    for name, rows in chosen.items():
        p, truth = predicted[rows], labels[rows]
        true = (np.bincount(truth, minlength=len(BASIC)) + 1) / (len(truth) + len(BASIC))
        own = np.array(head.prior)
        priors: dict[str, Any] = {
            "the model's own": own,
            "training": read_prior("training", head),
            "uniform": read_prior("uniform", head),
            "the true one": true,
            "estimate": estimate_prior(p, own),
            "estimate, known prior without weight": estimate_prior(p, own, strength=0),
        }
        report[name] = {}
        for prior, frequencies in priors.items():
            shifted = shift_prior(p, own, frequencies)
            s = scores(shifted, truth) | {"nll": negative_log_likelihood(shifted, truth)}
            report[name][prior] = s | {"prior": np.asarray(frequencies).tolist()}
            lines.append(
                f"| {name}, {len(rows)} | {prior} | {100 * s['accuracy']:.1f} | {100 * s['mean_recall']:.1f} "
                f"| {s['ece']:.3f} | {s['nll']:.3f} |"
            )
    head_line = f"`{classifier.info.name}`; the known prior counts as {STRENGTH:g} faces in the estimate."
    files.write_json(given.out / "priors.json", report)
    files.write_text(given.out / "priors.md", "\n".join([head_line, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
