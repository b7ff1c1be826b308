"""How accurate and how confident is a model on degraded faces?

    python studies/robustness.py MODEL --data fer2013.csv.gz --votes fer2013new.csv

Every third face of PublicTest is degraded in seven ways, in five steps each: Gaussian blur, low light with
noise, JPEG, downscaling, covered eyes, covered mouth, and a turned head (the picture on a cylinder). Accuracy
on FER2013's labels is that of the output ``fer2013``. For ``basic``, right is what an annotator says, drawn
from label and taggers as it is fitted; its confidence is given as the graph computes it, and as ferkit
answers, after the model's quality curves. Faces are crops: what detectors do with degraded photos is not
measured. Writes MODEL.json and MODEL.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.taxonomy import BASIC, FER2013
from ferkit.data import FaceDataset, load_data
from ferkit.evaluation.degrade import KINDS, degraded
from ferkit.evaluation.join import label_distributions
from ferkit.recognize.adjust import Adjustment
from ferkit.recognize.quality import measure_quality

EVERY = 3
"""Of so many faces one is measured."""


def measure(classifier: FaceClassifier, faces: NDArray[np.uint8], dataset: FaceDataset) -> dict[str, float]:
    """Return the scores of a model on faces uint8 ``[N, S, S]``, degraded or not, of a data set."""
    p = classifier.predict(faces, taxonomies=[FER2013.id, BASIC.id])
    size = faces.shape[1]
    qualities = [measure_quality((0, 0, size, size), None, face, size, size) for face in faces]
    softened = Adjustment(classifier.info.head(BASIC.id)).soften(p[BASIC.id], qualities)
    shares = label_distributions(dataset)
    right = shares[np.arange(len(faces)), p[BASIC.id].argmax(axis=1)]
    flagged = [bool({"blurred", "dark"} & set(quality.flags)) for quality in qualities]
    return {
        "fer2013": float((p[FER2013.id].argmax(axis=1) == dataset.labels).mean()),
        "basic": float(right.mean()),
        "confidence": float(p[BASIC.id].max(axis=1).mean()),
        "answered": float(softened.max(axis=1).mean()),
        "flagged": float(np.mean(flagged)),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    lines = [
        f"`{report['model']}`, {report['faces']:,} faces of PublicTest, degraded; all figures in %. `basic`: "
        "annotators who agree.",
        "",
        "| degraded by | step | `fer2013` | `basic` | confidence (graph) | confidence (answer) | flagged |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        figures = (f"{100 * row[key]:.1f}" for key in ("fer2013", "basic", "confidence", "answered"))
        kind = f"{row['kind']} ({row['unit']})" if row["unit"] else row["kind"]
        lines.append(f"| {kind} | {row['step']:g} | {' | '.join(figures)} | {100 * row['flagged']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/robustness"))
    given = parser.parse_args()
    chosen = load_data(given.data, votes=given.votes).of_split("PublicTest")
    chosen = chosen.select(np.arange(0, len(chosen), EVERY))
    classifier = FaceClassifier(given.model)
    clean = np.ascontiguousarray(chosen.images)
    rows: list[dict[str, Any]] = [{"kind": "not degraded", "unit": "", "step": 0}]
    rows[0] |= measure(classifier, clean, chosen)
    for kind in KINDS:
        for step in kind.steps:
            found = measure(classifier, degraded(clean, kind, step), chosen)
            rows.append({"kind": kind.name, "unit": kind.unit, "step": step, **found})
            print(rows[-1], flush=True)
    report = {"model": classifier.info.name, "faces": len(chosen), "rows": rows}
    files.write_json(given.out / f"{classifier.info.name}.json", report)
    files.write_text(given.out / f"{classifier.info.name}.md", as_markdown(report))


if __name__ == "__main__":
    main()
