"""The public ``evaluate()``, and its report as text, as JSON and as files in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ferkit import __version__
from ferkit.core import files
from ferkit.core.crops import TTA_MODES
from ferkit.core.errors import DataError
from ferkit.data import FaceDataset, load_data, select_faces
from ferkit.evaluation.evaluate import (
    EVERYTHING,
    SELECTION_SPLIT,
    Evaluation,
    Scores,
    TtaScores,
    evaluate_split,
)
from ferkit.evaluation.model import (
    EvaluatedModel,
    ModelFacts,
    knows_data,
    open_model,
    weights_fitted_here,
    with_held_out,
)
from ferkit.evaluation.predictions import Predictions, measured_rows
from ferkit.evaluation.text import class_table, confusion_table, number, paragraph, percent, percents, table

MIB = 1 << 20

IN_SAMPLE = "The weights of the ensemble were fitted on these faces: its figures are in sample."
"""The caution about an ensemble on the faces that its weights were fitted on."""

LESSER_LABELS = "ferplus argmax"
"""Labels so close to ``ferplus majority`` that their classes and pictures are left out."""


@dataclass(frozen=True, slots=True)
class Report:
    """A model and its scores. ``print(report)`` shows them as text.

    Args:
        model: The model.
        evaluation: The scores.
        date: Day of the measurement, ISO 8601.
        ferkit_version: Version that measured.
        known_data: Whether the model was trained, selected or fitted on these data
            (:func:`ferkit.evaluation.model.knows_data`).
        split_named: Whether the data name the split; otherwise it was held out when they were loaded.
        in_sample: Whether weights of the ensemble were fitted on these faces
            (:func:`ferkit.evaluation.model.weights_fitted_here`).
        predictions: The probabilities behind the scores.
    """

    model: ModelFacts
    evaluation: Evaluation
    date: str
    ferkit_version: str
    known_data: bool = True
    split_named: bool = True
    in_sample: bool = False
    predictions: Predictions | None = field(default=None, repr=False, compare=False)

    @property
    def scores(self) -> tuple[Scores, ...]:
        """The scores under the first test-time augmentation, one entry per set of labels."""
        return self.evaluation.tta_modes[0].scores

    @property
    def selection_split(self) -> bool:
        """Whether the split is the one on which models are selected, as the data name it."""
        return is_selection_split(
            self.evaluation.split, known_data=self.known_data, split_named=self.split_named
        )

    @property
    def split(self) -> str:
        """Name of the split, marked if it is the selection split."""
        return split_label(self.evaluation.split) if self.selection_split else self.evaluation.split

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists: shares in 0..1, unrounded, NLL in nats."""
        modes = tuple(replace(entry, predictions={}) for entry in self.evaluation.tta_modes)
        data = asdict(replace(self.evaluation, tta_modes=modes))
        tta_modes = data.pop("tta_modes")
        for entry in tta_modes:
            del entry["predictions"]
        flags = {"selection_split": self.selection_split, "weights_in_sample": self.in_sample}
        return {
            "ferkit_version": self.ferkit_version,
            "date": self.date,
            "model": asdict(self.model),
            "data": data | flags,
            "tta_modes": tta_modes,
        }

    def __str__(self) -> str:
        """Return a line per tta and label set, then classes and confusions of the first tta.

        Classes and confusions of :data:`LESSER_LABELS` are left out; :meth:`to_dict` has them all.
        """
        evaluation = self.evaluation
        parts = [_head(self)]
        if evaluation.leaked is not None:
            trained = " and ".join(evaluation.train_splits)
            parts.append(
                paragraph(
                    f"no leaks: without the {evaluation.leaked:,} faces of this split that have a duplicate "
                    f"in {trained}"
                )
            )
        parts += [_accuracies(evaluation.tta_modes), _calibration(evaluation.tta_modes)]
        notes = [
            "95 % interval: Wilson; recall, F1: means over the classes",
            "ECE: top label, 15 bins; about 0.018 for perfect calibration on 3,589 faces",
            "oof: out of fold, "
            + (
                "from the model's file, for an ensemble fitted on the other 4/5 of the faces"
                if self.in_sample
                else "with a temperature fitted on the other 4/5 of the faces"
            ),
        ]
        parts.append("\n".join(map(paragraph, notes)))
        for scores in self.scores:
            if scores.labels != LESSER_LABELS:
                parts += [
                    f"{scores.labels}, {evaluation.tta_modes[0].tta}\n{class_table(scores.classes)}",
                    confusion_table([c.label for c in scores.classes], scores.confusion),
                ]
        return "\n\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Write ``report.txt``, ``report.json`` and pictures into a folder; return the files.

        The pictures are, per tta and label set (but :data:`LESSER_LABELS`), ``confusion-LABELS-TTA.png`` and
        ``reliability-LABELS-TTA.png``.

        Raises:
            OutputError: If a file cannot be written.
            MissingDependencyError: If Matplotlib is not installed.
        """
        from ferkit.evaluation.plots import draw_confusion, draw_reliability

        written = [folder / "report.txt", folder / "report.json"]
        files.write_text(written[0], f"{self}\n")
        files.write_json(written[1], self.to_dict())
        for entry in self.evaluation.tta_modes:
            for scores in entry.scores:
                if scores.labels == LESSER_LABELS:
                    continue
                title = f"{self.model.name}: {scores.labels}, {self.split}, {entry.tta}"
                for kind, draw in (("confusion", draw_confusion), ("reliability", draw_reliability)):
                    written.append(folder / f"{kind}-{scores.labels.replace(' ', '-')}-{entry.tta}.png")
                    draw(scores, title, written[-1])
        return written


def evaluate(
    model: str | os.PathLike[str] | EvaluatedModel | None,
    data: str | os.PathLike[str] | FaceDataset,
    *,
    votes: str | os.PathLike[str] | None = None,
    split: str = SELECTION_SPLIT,
    tta: str | Sequence[str] = "none",
    drop_leaks: bool = False,
    drop_flat: bool = False,
    name: str | None = None,
    threads: int | None = None,
) -> Report:
    """Measure a model on labelled faces.

    Args:
        model: A model file, the folder of a run, the name of a model, None for the default one, or
            an opened model.
        data: Labelled faces, as :func:`ferkit.data.load_data` takes them, or a data set.
        votes: FER+ votes (``fer2013new.csv``), for a csv; adds scores on the FER+ labels.
        split: Training, PublicTest, PrivateTest, or ``all``. A tenth of data without splits is PublicTest.
        tta: One test-time augmentation or several: ``none``, ``flip``, ``ten-crop``.
        drop_leaks: Measure also without the faces that have an exact duplicate in the model's training split.
        drop_flat: Leave out images of one constant colour.
        name: Name of the model in the report; by default its own.
        threads: Threads of ONNX Runtime; a run's network uses those of its backend.

    Returns:
        The report: ``print(report)``, ``report.scores``, ``report.to_dict()``, ``report.write(folder)``.

    Raises:
        DataError: If the data cannot be read, have no such split, or no labels of the model.
        FerkitError: If the model cannot be opened, or a library for it is not installed.

    Example:
        >>> report = evaluate(None, "cartoon:150")
        >>> report.scores[0].labels, report.scores[0].n
        ('fer2013', 17)
    """
    modes = (tta,) if isinstance(tta, str) else tuple(tta)
    if unknown := [mode for mode in modes if mode not in TTA_MODES]:
        raise DataError(f"unknown test-time augmentation {unknown[0]!r}; known are {', '.join(TTA_MODES)}")
    subject = model if isinstance(model, EvaluatedModel) else open_model(model, threads=threads)
    whole = data if isinstance(data, FaceDataset) else load_for(subject, data, votes=votes, split=split)
    facts = subject.facts
    evaluation = evaluate_split(
        subject.predict,
        select_faces(whole, drop_flat=drop_flat),
        heads=subject.heads,
        split=split,
        tta_modes=modes,
        drop_leaks=drop_leaks,
        train_splits=facts.train_splits,
    )
    predictions = Predictions(
        whole,
        measured_rows(whole, split, drop_flat=drop_flat),
        subject.heads,
        {entry.tta: entry.predictions for entry in evaluation.tta_modes},
    )
    in_sample = weights_fitted_here(facts, whole, split)
    return Report(
        model=facts if name is None else replace(facts, name=name),
        evaluation=with_held_out(evaluation, facts) if in_sample else evaluation,
        date=datetime.now(UTC).date().isoformat(),
        ferkit_version=__version__,
        known_data=knows_data(facts, whole),
        split_named=whole.split_named,
        in_sample=in_sample,
        predictions=predictions,
    )


def load_for(
    subject: EvaluatedModel,
    data: str | os.PathLike[str],
    *,
    votes: str | os.PathLike[str] | None,
    split: str,
) -> FaceDataset:
    """Load labelled faces at the size and with the labels of a model.

    Raises:
        DataError: If they cannot be read, or have another size than the model's.
    """
    return load_data(
        os.fspath(data),
        votes=None if votes is None else Path(votes),
        size=subject.input_size,
        needed_by=subject.facts.name,
        heads=tuple(subject.heads.values()),
        warn_hold_out=split != EVERYTHING,
    )


def split_label(split: str) -> str:
    """Name a split, and mark the one on which models are selected."""
    return f"{split} (selection split)" if split == SELECTION_SPLIT else split


def describe_model(model: ModelFacts) -> str:
    """Return name, architecture and size of a model in one line."""
    parts = [f"{model.name} {model.version}".strip(), model.architecture]
    if model.members > 1:
        parts.append(f"{model.members} members")
    parts += [f"{model.parameters:,} parameters", f"{model.mmac:.4g} MMAC"]
    if model.size_bytes is not None:
        parts.append(f"{model.size_bytes / MIB:.2f} MiB")
    return ", ".join(parts)


def is_selection_split(split: str, *, known_data: bool, split_named: bool) -> bool:
    """Tell whether a split is the one on which models are selected, and not held out of unknown data."""
    return split == SELECTION_SPLIT and (known_data or split_named)


def cautions(model: ModelFacts, split: str, *, known_data: bool, split_named: bool) -> list[str]:
    """Return, a line each, why a model's figures on this split are no test results."""
    why = ""
    if known_data and split in model.trained_on:
        why = "the model was trained on these faces"
    elif is_selection_split(split, known_data=known_data, split_named=split_named):
        why = "recipes are compared and temperatures fitted on this split"
    elif split == EVERYTHING and known_data and model.data:
        why = "the model was trained and selected on these data"
    elif known_data and split in model.fitted_on:
        why = "the model was selected or fitted on this split"
    lines = [f"Not a test result: {why}."] if why else []
    if not model.calibrated:
        lines.append("The run is not calibrated yet (temperature 1); `ferkit export` fits its temperatures.")
    return lines


def _head(report: Report) -> str:
    model, evaluation = report.model, report.evaluation
    lines = [
        describe_model(model),
        f"{evaluation.source}, {report.split}, {evaluation.faces:,} faces",
        *cautions(model, evaluation.split, known_data=report.known_data, split_named=report.split_named),
    ]
    if report.in_sample:
        lines.append(_in_sample(report))
    return "\n".join(map(paragraph, lines))


def _in_sample(report: Report) -> str:
    """Return the caution that weights were fitted on these faces, and the file's figures out of fold."""
    measured = {entry.tta for entry in report.evaluation.tta_modes}
    figures = [
        f"{row.labels} {percent(row.accuracy)} % ({percents(row.interval)}), {row.tta}"
        for row in report.model.held_out
        if row.split == report.evaluation.split and row.tta in measured and not row.without_leaks
    ]
    return f"{IN_SAMPLE} Out of fold, from its file: {'; '.join(figures)}." if figures else IN_SAMPLE


def _rows(tta_modes: Sequence[TtaScores]) -> list[tuple[str, str, Scores]]:
    """Return tta, name of the labels, and scores; scores without leaks follow those with them."""
    rows = []
    for entry in tta_modes:
        without = {s.labels: s for s in entry.without_leaks or ()}
        for scores in entry.scores:
            rows.append((entry.tta, scores.labels, scores))
            if scores.labels in without:
                rows.append(("", "  no leaks", without[scores.labels]))
    return rows


def _accuracies(tta_modes: Sequence[TtaScores]) -> str:
    rows: list[Sequence[str]] = [
        ("tta", "labels", "faces", "accuracy %", "95 % interval", "recall %", "F1 %")
    ]
    for tta, labels, s in _rows(tta_modes):
        shares = (percent(s.accuracy), percents(s.interval), percent(s.mean_recall), percent(s.macro_f1))
        rows.append((tta, labels, f"{s.n:,}", *shares))
    return table(rows, left=2)


def _calibration(tta_modes: Sequence[TtaScores]) -> str:
    rows: list[Sequence[str]] = [("tta", "labels", "NLL", "ECE", "NLL oof", "ECE oof")]
    for tta, labels, s in _rows(tta_modes):
        rows.append((tta, labels, *map(number, (s.nll, s.ece, s.nll_out_of_fold, s.ece_out_of_fold))))
    return table(rows, left=2)
