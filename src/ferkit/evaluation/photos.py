"""Measure predictions for photos in folders named by label: faces that were missed count as wrong."""

from __future__ import annotations

import csv
import io
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core import files
from ferkit.core.errors import DataError, FerkitError
from ferkit.core.modelfile import ModelInfo
from ferkit.core.taxonomy import Taxonomy
from ferkit.evaluation.evaluate import Scores, label_in_head, match_labels, measure
from ferkit.evaluation.metrics import mean_recall, wilson_interval
from ferkit.evaluation.text import class_table, confusion_table, number, paragraph, percent, percents, table


@dataclass(frozen=True, slots=True, eq=False)
class PhotoPrediction:
    """A labelled photo and the prediction for its largest face."""

    source: str  # the file
    label: str  # the true label, one of the taxonomy
    faces: int = 0  # number of faces that were found
    probabilities: NDArray[Any] | None = None  # of the largest face, float ``[K]``; None if no face was found
    error: str = ""  # why the photo cannot be read; empty if it can
    # Further columns for ``photos.csv``, the same for every photo.
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PhotoScores:
    """Scores over photos."""

    n: int  # number of photos
    correct: int  # number of right predictions
    accuracy: float  # their share, 0..1
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    mean_recall: float  # plain mean of the recalls of the classes that have photos, 0..1
    # Its 95 % interval (:func:`ferkit.evaluation.metrics.mean_recall`).
    mean_recall_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PhotoReport:
    """Scores of detector and network together. ``print(report)`` shows them as text."""

    model: str  # name and version of the model
    detector: str  # name of the detector
    tta: str  # name of the test-time augmentation
    source: str  # the folder
    taxonomy: str  # id of the label set
    photos: int  # number of photos
    left_out: int  # photos in folders that the label map leaves out; they are not among ``photos``
    unreadable: Mapping[str, str]  # the reason for each photo that cannot be read; these are in no score
    missed: int  # photos in which no face was found
    several: int  # photos in which several faces were found; the largest counts
    missed_of: Mapping[str, int]  # photos without a face by class
    of_photos: PhotoScores  # scores over all readable photos; a missed face counts as wrong
    of_faces: Scores | None  # scores over the photos in which a face was found; None if there is none

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists: shares in 0..1, unrounded, NLL in nats."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the report as text."""
        n = self.of_photos.n
        head = [
            f"{self.model} on {self.source}",
            f"{self.taxonomy}, detector {self.detector}, tta {self.tta}",
            f"{self.photos:,} photos, {len(self.unreadable):,} of them unreadable"
            + (f"; {self.left_out:,} more left out by the label map" if self.left_out else ""),
            f"faces missed: {self.missed:,} of {n:,} ({percent(self.missed / n)} %)",
        ]
        if self.several:
            head.append(f"several faces: {self.several:,} photos, of which the largest face counts")
        rows = [("", "n", "accuracy %", "95 % interval", "mean recall %", "95 % interval")]
        for name, s in (("all photos", self.of_photos), ("faces found", self.of_faces)):
            if s is not None:
                shares = (percent(s.accuracy), percents(s.interval))
                recall = (percent(s.mean_recall), percents(s.mean_recall_interval))
                rows.append((name, f"{s.n:,}", *shares, *recall))
        notes = [
            "all photos: a missed face counts as wrong",
            "95 % interval: Wilson (accuracy), normal approximation (mean recall)",
        ]
        parts = ["\n".join(map(paragraph, head)), table(rows), "\n".join(notes)]
        if (s := self.of_faces) is not None:
            labels = [c.label for c in s.classes]
            parts += [
                f"faces found: macro F1 {percent(s.macro_f1)} %, NLL {number(s.nll)}, ECE {number(s.ece)}",
                class_table(s.classes, self.missed_of),
                confusion_table(labels, s.confusion, self.missed_of),
            ]
        return "\n\n".join(parts)


def read_label_map(entries: Sequence[str]) -> dict[str, str]:
    """Return the label of each folder, in lower case, from ``FOLDER=LABEL`` entries and map files.

    A map file is TOML (``FOLDER = "LABEL"``) or csv (``FOLDER,LABEL`` rows). An empty label leaves the photos
    of that folder out.

    Raises:
        DataError: If an entry is neither, or a file cannot be read.
    """
    labels: dict[str, str] = {}
    for entry in entries:
        path = Path(entry)
        try:
            if path.suffix == ".toml":
                pairs: Iterable[tuple[Any, ...]] = tomllib.loads(path.read_text("utf-8")).items()
            elif path.suffix == ".csv":
                pairs = [tuple(row) for row in csv.reader(io.StringIO(path.read_text("utf-8-sig"))) if row]
            else:
                pairs = [tuple(entry.rsplit("=", 1))]
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the label map {entry}: {error}") from error
        for pair in pairs:
            if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
                raise DataError(
                    'a label map consists of FOLDER=LABEL entries, TOML files with FOLDER = "LABEL" and csv '
                    f"files with FOLDER,LABEL rows. Received: {'='.join(map(str, pair))!r} in {entry!r}"
                )
            labels[pair[0].strip().casefold()] = pair[1].strip()
    return labels


def label_photos(folder: Path, photos: Iterable[str | FerkitError]) -> list[tuple[str, str]]:
    """Return each photo with its label: the name of the outermost folder in ``folder`` that it lies in.

    ``photos`` are all photos below the folder, or the error of a folder that cannot be read.

    Raises:
        DataError: If there is no such folder, it holds no folders, photos lie beside them, one of them holds
            no photo, or one cannot be read.
    """
    expected = "photos in folders named by label were expected"
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; {expected}")
    try:
        labels = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error
    if not labels:
        raise DataError(f"{folder} holds no folders; {expected}")
    found = []
    for photo in photos:
        if isinstance(photo, FerkitError):
            raise DataError(str(photo)) from photo  # accuracy over the rest would not be the folder's
        label = Path(os.path.relpath(photo, folder)).parts[0]
        if label not in labels:
            raise DataError(f"{photo} lies in no folder named by a label, so its label is unknown")
        found.append((photo, label))
    if empty := labels - {label for _, label in found}:
        name = folder / min(empty)
        raise DataError(f"{name} holds no photo; remove it, or put that label's photos there")
    return found


def fit_taxonomy(
    info: ModelInfo, folders: Iterable[str], taxonomy: str | None, label_map: Mapping[str, str]
) -> tuple[Taxonomy, dict[str, str]]:
    """Return the taxonomy that folders are named in, and the label of each folder.

    Args:
        info: The model.
        folders: Names of the folders.
        taxonomy: Id of the taxonomy; None for the model's first one that has all labels, its default before
            the others.
        label_map: Labels by folder name in lower case (:func:`read_label_map`), for folders with other
            names than labels. An empty label leaves the folder out of the result.

    Raises:
        DataError: If folders are named otherwise, or all are left out.
        TaxonomyError: If the model does not have the taxonomy.
    """
    wanted = {folder: label_map.get(folder.casefold(), folder) for folder in sorted(folders)}
    wanted = {folder: label for folder, label in wanted.items() if label}
    if not wanted:
        raise DataError("the label map leaves out every folder; map at least one of them to a label")
    default_first = sorted(info.taxonomies, key=lambda head: head.id != info.default_taxonomy)
    heads = [head.taxonomy for head in (default_first if taxonomy is None else [info.head(taxonomy)])]
    if (match := match_labels(dict.fromkeys(wanted.values()), heads)) is not None:
        head, label_of = match
        return head, {folder: label_of[name] for folder, name in wanted.items()}
    known = "; ".join(f"{head.id}: {', '.join(head.labels)}" for head in heads)
    odd = [name for name in wanted.values() if label_in_head(name, heads[0]) is None]
    raise DataError(
        f"folders must be named by the labels of the model ({known}), or mapped to them (--map "
        f"{odd[0]}=LABEL). Received also: {', '.join(odd)}"
    )


def evaluate_photos(
    predictions: Sequence[PhotoPrediction],
    taxonomy: Taxonomy,
    *,
    model: str,
    detector: str,
    tta: str,
    source: str,
    left_out: int = 0,
) -> PhotoReport:
    """Compare predictions for photos with their labels.

    Raises:
        DataError: If no photo could be read.
    """
    readable = [p for p in predictions if not p.error]
    if not readable:
        raise DataError(
            f"none of the {len(predictions)} photos in {source} can be read; first: {predictions[0].error}"
        )
    labels = taxonomy.labels
    found = [(taxonomy.index(p.label), p.probabilities) for p in readable if p.probabilities is not None]
    scores = None
    if found:
        truth, probabilities = (np.array(column) for column in zip(*found, strict=True))
        scores = measure(probabilities, truth, taxonomy, taxonomy.id, out_of_fold=False)
    right = [row[k] for k, row in enumerate(scores.confusion)] if scores else [0] * len(labels)
    photos = Counter(p.label for p in readable)
    missed = Counter(p.label for p in readable if p.probabilities is None)
    recall, recall_interval = mean_recall(right, [photos[label] for label in labels])
    return PhotoReport(
        model=model,
        detector=detector,
        tta=tta,
        source=source,
        taxonomy=taxonomy.id,
        photos=len(predictions),
        left_out=left_out,
        unreadable={p.source: p.error for p in predictions if p.error},
        missed=missed.total(),
        several=sum(p.faces > 1 for p in readable),
        missed_of={label: missed[label] for label in labels},
        of_photos=PhotoScores(
            n=len(readable),
            correct=sum(right),
            accuracy=sum(right) / len(readable),
            interval=wilson_interval(sum(right), len(readable)),
            mean_recall=recall,
            mean_recall_interval=recall_interval,
        ),
        of_faces=scores,
    )


def write_photo_report(
    report: PhotoReport, predictions: Sequence[PhotoPrediction], folder: Path
) -> list[Path]:
    """Write ``report.txt``, ``report.json`` and ``photos.csv``, a row per photo; return the files.

    Raises:
        OutputError: If a file cannot be written.
    """
    written = [folder / name for name in ("report.txt", "report.json", "photos.csv")]
    files.write_text(written[0], f"{report}\n")
    files.write_json(written[1], report.to_dict())
    files.write_csv(
        written[2],
        ([p.source, p.label, p.faces, p.error, *p.details.values()] for p in predictions),
        ["source", "true", "faces", "error", *predictions[0].details],
    )
    return written
