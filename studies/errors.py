"""Errors on FER2013's labels, by the majority vote of the FER+ taggers.

    python studies/errors.py --data fer2013.csv.gz --votes fer2013new.csv \
        --models ferkit-large ferkit-cutmix standard

The faces of PublicTest are of three kinds: the taggers' majority agrees with the label, disagrees with it, or
there is no majority. For each model: accuracy on each kind, and whether it predicts the label or the majority
where these disagree. Then the faces for which all models predict the same wrong label. Writes errors.json and
errors.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.data import load_data, majority_targets
from ferkit.data.ferplus import to_fer2013
from ferkit.evaluation.metrics import wilson_interval

KINDS = ("the label", "something else", "no majority")
"""The kinds of faces, in the order of their numbers: the taggers' majority is the label, another, or none."""


def kinds_of_faces(
    labels: NDArray[np.int64], votes: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each face's kind, an index into ``KINDS``, and its majority label, in FER2013's labels.

    Args:
        labels: FER2013's labels ``[N]``.
        votes: Counts of the taggers, ``[N, 10]``.

    Returns:
        Kinds ``[N]`` and labels ``[N]``: -1 without a majority, and for contempt, which FER2013 lacks.
    """
    majority, kept = majority_targets(votes)
    seen = np.where(kept, to_fer2013(majority), -1)
    return np.where(~kept, 2, np.where(seen == labels, 0, 1)), seen


def figures(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    kinds: NDArray[np.int64],
    seen: NDArray[np.int64],
) -> dict[str, Any]:
    """Return accuracy and errors on each kind of face, and predictions where label and majority differ."""
    right = predicted == labels
    contradicted = kinds == 1
    return {
        "accuracy": float(right.mean()),
        "errors": int((~right).sum()),
        "kinds": {
            name: {
                "accuracy": float(right[kinds == k].mean()),
                "interval": wilson_interval(int(right[kinds == k].sum()), int((kinds == k).sum())),
                "errors": int((~right[kinds == k]).sum()),
            }
            for k, name in enumerate(KINDS)
            if (kinds == k).any()
        },
        "sides": {
            "label": int(right[contradicted].sum()),
            "taggers": int((predicted == seen)[contradicted].sum()),
            "neither": int(((predicted != seen) & ~right)[contradicted].sum()),
        },
    }


def in_common(
    predictions: dict[str, NDArray[np.int64]],
    labels: NDArray[np.int64],
    kinds: NDArray[np.int64],
    seen: NDArray[np.int64],
) -> dict[str, int]:
    """Return for how many faces all models predict the same wrong label, and the majority on these."""
    every = np.stack(list(predictions.values()))
    same = (every == every[0]).all(axis=0) & (every[0] != labels)
    return {
        "faces": int(same.sum()),
        "taggers_see_what_the_models_see": int((same & (seen == every[0])).sum()),
        "taggers_see_the_label": int((same & (kinds == 0)).sum()),
        "taggers_see_something_else": int((same & (kinds == 1) & (seen != every[0])).sum()),
        "no_majority": int((same & (kinds == 2)).sum()),
        "some_model_is_right": int((every == labels).any(axis=0).sum()),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as tables."""

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    total = report["faces"]
    counts = report["counts"]
    lines = [
        f"PublicTest (selection split), tta none, FER2013's labels; {total:,} faces.",
        "",
        "| the taggers' majority | faces | % of all | "
        + " | ".join(f"`{name}` % (errors)" for name in report["models"])
        + " |",
        "|---|---:|---:|" + "---:|" * len(report["models"]),
    ]
    for kind, faces in counts.items():
        cells = [
            f"{percent(model['kinds'][kind]['accuracy'])} ({model['kinds'][kind]['errors']})"
            if kind in model["kinds"]
            else "-"
            for model in report["models"].values()
        ]
        lines.append(f"| {kind} | {faces:,} | {percent(faces / total)} | " + " | ".join(cells) + " |")
    cells = [f"{percent(model['accuracy'])} ({model['errors']})" for model in report["models"].values()]
    lines.append(f"| all | {total:,} | 100.0 | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Where the majority is another label ({counts[KINDS[1]]:,} faces), the model predicts",
        "",
        "| model | the label | the majority | neither |",
        "|---|---:|---:|---:|",
    ]
    for name, model in report["models"].items():
        lines.append(f"| `{name}` | " + " | ".join(f"{count:,}" for count in model["sides"].values()) + " |")
    if len(report["models"]) > 1:
        same = report["in_common"]
        lines += [
            "",
            f"All {len(report['models'])} models predict the same wrong label for {same['faces']:,} faces "
            f"({percent(same['faces'] / total)} %). The majority agrees with the models on "
            f"{same['taggers_see_what_the_models_see']:,} of these, with the label on "
            f"{same['taggers_see_the_label']:,}, with neither on {same['taggers_see_something_else']:,}; "
            f"{same['no_majority']:,} have no majority. At least one model is right on "
            f"{percent(same['some_model_is_right'] / total)} % of all faces.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", type=Path, required=True)
    parser.add_argument("--models", nargs="+", required=True, help="model files or embedded models")
    parser.add_argument("--out", type=Path, default=Path("results/errors"))
    args = parser.parse_args()
    test = load_data(args.data, votes=args.votes).of_split("PublicTest")
    if test.votes is None or not len(test):
        parser.error(f"{args.data} has no PublicTest faces with votes")
    labels = np.asarray(test.labels)
    kinds, seen = kinds_of_faces(labels, test.votes)
    faces = np.ascontiguousarray(test.images)
    predictions: dict[str, NDArray[np.int64]] = {}
    for model in args.models:
        classifier = FaceClassifier(model)
        probabilities = classifier.predict(faces, taxonomies=["fer2013"])["fer2013"]
        name = classifier.info.name
        predictions[model if name in predictions else name] = probabilities.argmax(axis=1)
    report = {
        "faces": len(labels),
        "counts": {name: int((kinds == k).sum()) for k, name in enumerate(KINDS)},
        "models": {name: figures(p, labels, kinds, seen) for name, p in predictions.items()},
        "in_common": in_common(predictions, labels, kinds, seen),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(args.out / "errors.json", report)
    files.write_text(args.out / "errors.md", as_markdown(report))
    print(as_markdown(report))


if __name__ == "__main__":
    main()
