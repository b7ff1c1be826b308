"""Is the output ``basic``, which joins two heads, better than either head?

    python studies/basic.py MODEL... --data fer2013.csv.gz --votes fer2013new.csv --photos labelled/
    python studies/basic.py MODEL... --data fer2013.csv.gz --votes fer2013new.csv --add

For each model with both heads: accuracy, mean recall and ECE of the heads (reduced to the seven labels) and
of ``basic``, on PublicTest against FER2013's labels and the taggers' majority, and on photos in folders named
by label, where the largest face counts and a missed face is wrong. ``basic`` is fitted on PublicTest: its
figures there are out of fold. Photos are only measured. ``--out`` writes basic.json and basic.md, and in
exponents.csv what the exponent of the prior does on PublicTest, out of fold.

``--add`` writes the output, with priors, coverage curves, quality curves and figures, into the model files
themselves, and their cards; the rest of the files stays as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ferkit.batch.sources import find_photos
from ferkit.core import files
from ferkit.core.classifier import FaceClassifier
from ferkit.core.crops import TtaMode
from ferkit.core.errors import FerkitError
from ferkit.core.images import load_image, to_gray
from ferkit.core.modelfile import ModelInfo, read_model, resolve_model, write_model
from ferkit.core.taxonomy import BASIC
from ferkit.data import FaceDataset, load_data
from ferkit.evaluation.evaluate import SELECTION_SPLIT, evaluate_split, targets_for
from ferkit.evaluation.join import (
    HEADS,
    columns_of,
    fit_join,
    joined,
    joined_out_of_fold,
    label_distributions,
)
from ferkit.evaluation.metrics import (
    confusion_matrix,
    expected_calibration_error,
    mean_recall,
    wilson_interval,
)
from ferkit.evaluation.model import metric_rows
from ferkit.evaluation.photos import label_photos
from ferkit.export.card import render_card
from ferkit.export.join import default_of, with_basic, with_coverage, with_priors, with_quality
from ferkit.recognize import Recognizer

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def scores(p: NDArray[Any], labels: NDArray[np.int64], missed: int = 0) -> dict[str, float]:
    """Return accuracy with its interval, mean recall and ECE.

    Args:
        p: Probabilities ``[N, 7]``; rows of zeros are missed faces, which are wrong and not in the ECE.
        labels: int64 ``[N]``.
        missed: Number of missed faces.
    """
    found = p.any(axis=1)
    assert (~found).sum() == missed
    confusion = confusion_matrix(labels[found], p[found].argmax(axis=1), len(BASIC))
    right = np.diag(confusion)
    low, high = wilson_interval(int(right.sum()), len(labels))
    faces = np.bincount(labels, minlength=len(BASIC)).tolist()
    return {
        "n": len(labels),
        "accuracy": float(right.sum() / len(labels)),
        "low": low,
        "high": high,
        "mean_recall": mean_recall(right.tolist(), faces)[0],
        "ece": expected_calibration_error(p[found], labels[found]),
    }


def as_basic(predictions: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Return each head's probabilities over the labels of ``basic``, without contempt."""
    reduced = {}
    for head in HEADS:
        p = predictions[head.id][:, columns_of(head)].astype(np.float64)
        reduced[head.id] = p / np.maximum(p.sum(axis=1, keepdims=True), 1e-12)
    return reduced


def photo_faces(folder: Path, model: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the crop of the largest face of each photo, its label, and whether a face was found."""
    recognizer = Recognizer(model)
    crops, labels, found = [], [], []
    for name, label in label_photos(folder, find_photos([str(folder)])):
        rgb = load_image(name)
        faces = recognizer.detector.detect(rgb)
        largest = sorted(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))[-1:]
        size = recognizer.info.input_size
        crop = recognizer.pipeline.crop(to_gray(rgb), largest) if largest else np.zeros((1, size, size))
        crops.append(np.asarray(crop[0], np.uint8))
        labels.append(BASIC.index(label))
        found.append(bool(largest))
    return np.stack(crops), np.array(labels), np.array(found)


def measure(
    content: bytes, faces: FaceDataset, photos: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the scores of a model's heads and of the join by set of labels, and its predictions."""
    classifier = FaceClassifier(content)
    wanted = [head.id for head in HEADS]
    predictions = classifier.predict(np.ascontiguousarray(faces.images), taxonomies=wanted)
    shares = label_distributions(faces)
    compared = as_basic(predictions) | {BASIC.id: joined_out_of_fold(predictions, shares)}
    report: dict[str, Any] = {}
    for target in targets_for(faces, {BASIC.id: BASIC}):
        report[target.name] = {
            name: scores(p[target.keep], target.labels[target.keep]) for name, p in compared.items()
        }
    if photos is not None:
        crops, labels, found = photos
        seen = classifier.predict(crops, taxonomies=wanted)
        every = as_basic(seen) | {BASIC.id: joined(fit_join(predictions, shares), seen)}
        report["photos"] = {
            name: scores(p * found[:, None], labels, int((~found).sum())) for name, p in every.items()
        }
    return report, predictions


def exponent_rows(
    name: str, predictions: dict[str, NDArray[np.float32]], faces: FaceDataset
) -> list[dict[str, str | float]]:
    """Return accuracy and mean recall in % of a model's joins by the exponent of the prior, by labels."""
    shares = label_distributions(faces)
    rows: list[dict[str, str | float]] = []
    for exponent in EXPONENTS:
        p = joined_out_of_fold(predictions, shares, prior_exponent=exponent)
        for target in targets_for(faces, {BASIC.id: BASIC}):
            found = scores(p[target.keep], target.labels[target.keep])
            row: dict[str, str | float] = {"model": name, "exponent": exponent, "labels": target.name}
            rows.append(row | {key: round(100 * found[key], 2) for key in ("accuracy", "mean_recall", "ece")})
    return rows


def add(model: str, data: FaceDataset, predictions: dict[str, NDArray[np.float32]]) -> ModelInfo:
    """Write the output ``basic`` and all that is recorded of outputs into a model file, and its card.

    Raises:
        FerkitError: If an output of the file changed.
    """
    path = resolve_model(model)
    content, info = read_model(path)
    if any(head.id == BASIC.id for head in info.taxonomies):
        raise FerkitError(f"{model} has the output {BASIC.id} already")
    faces = data.of_split(SELECTION_SPLIT)
    graph, info = with_basic(content, info, predictions, faces, SELECTION_SPLIT)
    info = with_coverage(info, predictions, faces, SELECTION_SPLIT)
    info = with_priors(info, data.of_split("Training"))
    info = info.model_copy(update={"default_taxonomy": default_of(info)})
    trial = path.with_suffix(".trial")
    try:
        write_model(graph, info, trial)
        classifier = FaceClassifier(trial)
        again = classifier.predict(np.ascontiguousarray(faces.images[:64]))
        for head in HEADS:
            if not np.array_equal(
                again[head.id], FaceClassifier(content).predict(faces.images[:64])[head.id]
            ):
                raise FerkitError(f"output {head.id} of {model} changed; nothing was written")
        info = with_quality(info, classifier.predict, faces)
        measured = evaluate_split(
            lambda crops, tta: classifier.predict(crops, tta=cast(TtaMode, tta), taxonomies=[BASIC.id]),
            data,
            heads={BASIC.id: BASIC},
            drop_leaks=True,
        )
        info = info.model_copy(update={"metrics": (*info.metrics, *metric_rows(measured))})
    finally:
        trial.unlink(missing_ok=True)
    write_model(graph, info, path)
    files.write_text(path.with_suffix(".md"), render_card(info, path.stat().st_size))
    return info


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as tables."""
    titles = {
        "basic": "PublicTest, FER2013's labels",
        "basic majority": "PublicTest, the taggers' majority without contempt",
        "photos": "Photos; a missed face is wrong",
    }
    lines = []
    for key, title in titles.items():
        rows = [(model, name, s[key][name]) for model, s in report.items() if key in s for name in s[key]]
        if not rows:
            continue
        lines += [
            f"## {title}, {rows[0][2]['n']:,} faces",
            "",
            "| model | output | accuracy % | 95 % interval | mean recall % | ECE |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for model, name, s in rows:
            interval = f"{100 * s['low']:.1f}-{100 * s['high']:.1f}"
            lines.append(
                f"| {model} | {name} | {100 * s['accuracy']:.1f} | {interval} | {100 * s['mean_recall']:.1f} "
                f"| {s['ece']:.3f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, and add the output if it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--votes", required=True)
    parser.add_argument("--photos", type=Path, help="labelled photos, to measure on")
    parser.add_argument("--out", type=Path, help="folder of basic.json and basic.md")
    parser.add_argument("--add", action="store_true", help="write the output into the models")
    given = parser.parse_args()
    data = load_data(given.data, votes=given.votes)
    faces = data.of_split(SELECTION_SPLIT)
    photos = None if given.photos is None else photo_faces(given.photos, given.models[0])
    report = {}
    exponents = []
    for model in given.models:
        content, info = read_model(resolve_model(model))
        report[info.name], predictions = measure(content, faces, photos)
        print(as_markdown({info.name: report[info.name]}), flush=True)
        exponents += exponent_rows(info.name, predictions, faces)
        if given.add:
            info = add(model, data, predictions)
            head = info.head(BASIC.id)
            print(f"{model}: {head.join}, temperature {head.temperature}, quality {head.quality}", flush=True)
    if given.out is not None:
        files.write_json(given.out / "basic.json", report)
        files.write_text(given.out / "basic.md", as_markdown(report))
        files.write_csv(given.out / "exponents.csv", exponents, list(exponents[0]))


if __name__ == "__main__":
    main()
