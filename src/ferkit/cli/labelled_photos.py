"""Measuring the whole pipeline on labelled photos: the instrument's answers, the laboratory's metrics."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ferkit.batch.sources import find_photos
from ferkit.core import files
from ferkit.core.errors import DataError, ImageError
from ferkit.core.modelfile import ModelInfo
from ferkit.core.taxonomy import Taxonomy
from ferkit.evaluation.metrics import (
    ClassScores,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    negative_log_likelihood,
    per_class,
    wilson_interval,
)
from ferkit.evaluation.report import percent, table
from ferkit.recognize import Face, Photo, Recognizer, Unreadable
from ferkit.recognize.results import face_cells, face_columns


@dataclass(frozen=True, slots=True)
class Answer:
    """A labelled photo and what was read from it.

    Attributes:
        source: The file.
        label: The folder's label.
        photo: What was found, with the largest face alone, or none; None where the photo cannot be read.
        faces: Number of faces that were found.
        error: Why it cannot be read; empty where it can.
    """

    source: str
    label: str
    photo: Photo | None
    faces: int
    error: str = ""

    @property
    def face(self) -> Face | None:
        """The face that counts, or None where none was found."""
        return self.photo.faces[0] if self.photo is not None and self.photo.faces else None


@dataclass(frozen=True, slots=True)
class Share:
    """A share of right answers with its 95 % Wilson interval."""

    correct: int
    n: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PhotoReport:
    """What the whole pipeline makes of labelled photos.

    Attributes:
        model: Name and version of the model.
        detector: Name of the detector.
        tta: Test-time tta.
        source: The folder.
        taxonomy: Id of the label set.
        photos: Photos in the folder.
        unreadable: Photos that could not be read, each with the reason; they count nowhere else.
        missed: Photos in which no face was found.
        several: Photos in which several were found, of which the largest counts.
        of_faces: Accuracy over the photos in which a face was found; None if there is none.
        of_photos: Accuracy over all that could be read; a missed face counts as wrong.
        macro_f1: Over the faces found; None if there is none.
        nll: Mean negative log-likelihood in nats, likewise.
        ece: Expected calibration error of the top label, 15 bins, likewise.
        classes: Scores of every class, over the faces found.
        missed_of: Missed faces of every class.
        confusion: Rows: true class, columns: answered class.
    """

    model: str
    detector: str
    tta: str
    source: str
    taxonomy: str
    photos: int
    unreadable: Mapping[str, str]
    missed: int
    several: int
    of_faces: Share | None
    of_photos: Share
    macro_f1: float | None
    nll: float | None
    ece: float | None
    classes: tuple[ClassScores, ...]
    missed_of: Mapping[str, int]
    confusion: tuple[tuple[int, ...], ...]


def find_labelled(folder: Path) -> list[tuple[str, str]]:
    """Return each photo below the folders of ``folder`` with its label, the name of the outermost of them.

    Raises:
        DataError: If there is no such folder, it holds no folders, photos lie beside them, or a folder cannot
            be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; photos in folders named by label were expected")
    try:
        labels = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}") from error
    if not labels:
        raise DataError(f"{folder} holds no folders; photos in folders named by label were expected")
    found = []
    for name in find_photos([str(folder)]):
        if isinstance(name, ImageError):
            raise DataError(str(name)) from name  # accuracy over the rest would not be the folder's
        found.append((name, Path(os.path.relpath(name, folder)).parts[0]))
    for name, label in found:
        if label not in labels:
            raise DataError(f"{name} lies in no folder named by a label, so its label is unknown")
    for label in labels:
        if label not in {known for _, known in found}:
            raise DataError(f"{folder / label} holds no photo; remove it, or put that label's photos there")
    return found


def taxonomy_for(info: ModelInfo, labels: Iterable[str], taxonomy: str | None) -> Taxonomy:
    """Return the label set in which folders are named: the one that is asked for, or the first that fits.

    Raises:
        DataError: If folders are named otherwise.
        TaxonomyError: If the model does not have the label set that is asked for.
    """
    wanted = {label.lower() for label in labels}
    default_first = sorted(info.taxonomies, key=lambda head: head.id != info.default_taxonomy)
    heads = default_first if taxonomy is None else [info.head(taxonomy)]
    for head in heads:
        if wanted <= {label.lower() for label in head.labels}:
            return head.taxonomy
    known = "; ".join(f"{head.id}: {', '.join(head.labels)}" for head in heads)
    odd = sorted(wanted - {label.lower() for label in heads[0].labels})
    raise DataError(f"folders must be named by the model's labels ({known}). Received also: {', '.join(odd)}")


def read_labelled(recognizer: Recognizer, photos: Iterable[tuple[str, str]]) -> list[Answer]:
    """Read labelled photos; of several faces the largest counts."""
    labelled = list(photos)
    columns = {label.lower(): label for label in recognizer.taxonomy.labels}
    answers = []
    results = recognizer.predict_each(name for name, _ in labelled)
    for (name, folder), result in zip(labelled, results, strict=True):
        label = columns[folder.lower()]
        if isinstance(result, Unreadable):
            answers.append(Answer(name, label, None, 0, str(result.error)))
            continue
        largest = sorted(result.faces, key=_area, reverse=True)[:1]
        kept = replace(result, source=name, faces=tuple(largest))
        answers.append(Answer(name, label, kept, len(result.faces)))
    return answers


def judge(recognizer: Recognizer, answers: list[Answer], *, source: str, tta: str) -> PhotoReport:
    """Compare what was read with the folders' labels.

    Raises:
        DataError: If no photo could be read.
    """
    taxonomy = recognizer.taxonomy
    readable = [a for a in answers if a.photo is not None]
    if not readable:
        raise DataError(
            f"none of the {len(answers)} photos in {source} can be read; first: {answers[0].error}"
        )
    faces = [(a.label, a.face) for a in readable if a.face is not None]
    truth = np.array([taxonomy.index(label) for label, _ in faces], np.int64)
    probabilities = np.array([list(face.probabilities.values()) for _, face in faces], np.float64)
    # Not the labels: those below a least confidence are "uncertain", and the accuracy is that of the network.
    answered = probabilities.argmax(axis=1) if faces else np.empty(0, np.int64)
    correct = int((answered == truth).sum())
    k = len(taxonomy)
    confusion = confusion_matrix(truth, answered, k) if faces else np.zeros((k, k), np.int64)
    return PhotoReport(
        model=f"{recognizer.info.name} {recognizer.info.version}",
        detector=recognizer.detector.name,
        tta=tta,
        source=source,
        taxonomy=taxonomy.id,
        photos=len(answers),
        unreadable={a.source: a.error for a in answers if a.photo is None},
        missed=len(readable) - len(faces),
        several=sum(a.faces > 1 for a in readable),
        of_faces=_share(correct, len(faces)) if faces else None,
        of_photos=_share(correct, len(readable)),
        macro_f1=macro_f1(confusion) if faces else None,
        nll=negative_log_likelihood(probabilities, truth) if faces else None,
        ece=expected_calibration_error(probabilities, truth) if faces else None,
        classes=per_class(confusion, taxonomy.labels),
        missed_of={
            label: sum(a.label == label and a.face is None for a in readable) for label in taxonomy.labels
        },
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def format_photo_report(report: PhotoReport) -> str:
    """Return the report as text."""
    lines = [
        f"{report.model} on {report.source}",
        f"{report.taxonomy}, detector {report.detector}, {report.tta}",
        f"{report.photos:,} photos, {len(report.unreadable):,} of them unreadable",
        f"faces missed: {report.missed:,} of {report.of_photos.n:,} ("
        f"{percent(report.missed / report.of_photos.n)} %)",
    ]
    if report.several:
        lines.append(f"several faces: {report.several:,} photos, of which the largest counts")
    summary = [("accuracy", "n", "%", "95 %")]
    for name, share in (
        ("of faces found", report.of_faces),
        ("of photos, missed are wrong", report.of_photos),
    ):
        if share is not None:
            low, high = share.interval
            summary.append((name, f"{share.n:,}", percent(share.accuracy), f"{percent(low)}-{percent(high)}"))
    parts = ["\n".join(lines), table(summary)]
    if report.of_faces is not None:
        parts.append(
            f"of faces found: macro F1 {percent(report.macro_f1)} %, "
            f"NLL {report.nll:.4f}, ECE {report.ece:.4f}"
        )
    rows = [("class", "faces", "missed", "precision %", "recall %", "F1 %")]
    rows += [
        (
            c.label,
            f"{c.support:,}",
            f"{report.missed_of[c.label]:,}",
            percent(c.precision, 1),
            percent(c.recall, 1),
            percent(c.f1, 1),
        )
        for c in report.classes
    ]
    names = [c.label for c in report.classes]
    confusion = [("true \\ answered", *names)]
    confusion += [(name, *map(str, row)) for name, row in zip(names, report.confusion, strict=True)]
    return "\n\n".join([*parts, table(rows), table(confusion)]) + "\n"


def photo_report_as_json(report: PhotoReport) -> dict[str, Any]:
    """Return the report as plain dicts and lists: shares in 0..1, unrounded, NLL in nats."""
    return asdict(report)


def write_photo_report(report: PhotoReport, answers: list[Answer], taxonomy: Taxonomy, folder: Path) -> None:
    """Write ``report.txt``, ``report.json`` and ``photos.csv``, a row per photo, into a folder.

    Raises:
        OutputError: If a file cannot be written.
    """
    files.write_text(folder / "report.txt", format_photo_report(report))
    files.write_json(folder / "report.json", photo_report_as_json(report))
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    columns = face_columns(taxonomy.labels)
    rows.writerow(["source", "true", "faces", "error", *columns])
    for answer in answers:
        face = [None] * len(columns) if answer.face is None else face_cells(answer.face)
        rows.writerow([answer.source, answer.label, answer.faces, answer.error, *face])
    files.write_text(folder / "photos.csv", buffer.getvalue())


def _area(face: Face) -> float:
    left, top, right, bottom = face.box
    return (right - left) * (bottom - top)


def _share(correct: int, n: int) -> Share:
    return Share(correct, n, correct / n, wilson_interval(correct, n))
