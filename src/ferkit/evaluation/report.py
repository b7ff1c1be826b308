"""An evaluation as text for people, as JSON for programs, and as files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ferkit.core import files
from ferkit.evaluation.evaluate import EVERYTHING, SELECTION_SPLIT, Evaluation, Scores, TtaScores
from ferkit.evaluation.model import ModelFacts

MIB = 1 << 20

IN_SAMPLE = "The vote has weights fitted on these faces: in sample."
"""What is said of a vote where its weights were fitted."""

LESSER_LABELS = "ferplus argmax"
"""Labels so near to ``ferplus majority`` that their classes and pictures would only repeat it."""


@dataclass(frozen=True, slots=True)
class Report:
    """A model and what was measured of it.

    Args:
        model: The model.
        evaluation: What was measured.
        date: Day of the measurement, ISO 8601.
        ferkit_version: Version that measured.
        known_data: Whether the data are those that the model was trained and selected on
            (:func:`ferkit.evaluation.model.knows_data`).
        split_named: Whether the data name the split; otherwise it was held out when they were loaded.
        in_sample: Whether weights of the vote were fitted on these faces
            (:func:`ferkit.evaluation.model.weights_fitted_here`).
    """

    model: ModelFacts
    evaluation: Evaluation
    date: str
    ferkit_version: str
    known_data: bool = True
    split_named: bool = True
    in_sample: bool = False

    @property
    def selection_split(self) -> bool:
        """Whether the split is the one on which models are selected, unless it was made up just now."""
        return is_selection_split(
            self.evaluation.split, known_data=self.known_data, split_named=self.split_named
        )

    @property
    def split(self) -> str:
        """The split's name, with the warning that belongs to the one on which things are chosen."""
        return split_label(self.evaluation.split) if self.selection_split else self.evaluation.split


def report_as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain dicts and lists: shares in 0..1, unrounded, NLL in nats."""
    evaluation = asdict(report.evaluation)
    tta_modes = evaluation.pop("tta_modes")
    return {
        "ferkit_version": report.ferkit_version,
        "date": report.date,
        "model": asdict(report.model),
        "data": {
            **evaluation,
            "selection_split": report.selection_split,
            "weights_in_sample": report.in_sample,
        },
        "tta_modes": tta_modes,
    }


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align columns of text: the first ``left`` columns to the left, the others to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share as percent, ``-`` for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def split_label(split: str) -> str:
    """Name a split, with the warning that belongs to the one on which things are chosen."""
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
    """Tell whether a split is the one on which models are selected, unless it was made up just now."""
    return split == SELECTION_SPLIT and (known_data or split_named)


def cautions(model: ModelFacts, split: str, *, known_data: bool, split_named: bool) -> list[str]:
    """Return, a line each, why a model's figures on this split are no test result, or not its last.

    Args:
        model: The model.
        split: Name of the split, or :data:`ferkit.evaluation.evaluate.EVERYTHING`.
        known_data: As :attr:`Report.known_data`.
        split_named: As :attr:`Report.split_named`.
    """
    lines = []
    if known_data and split in model.trained_on:
        lines.append("This very model was trained on these faces: its figures are no test result.")
    elif is_selection_split(split, known_data=known_data, split_named=split_named):
        lines.append(
            "Recipes are compared and temperatures fitted on this split: its figures are no test result."
        )
    elif split == EVERYTHING and known_data and model.data:
        lines.append(
            "This very model was trained and selected on these data: its figures are no test result."
        )
    elif known_data and split in model.fitted_on:
        lines.append("This very model was selected or fitted on this split: its figures are no test result.")
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
    return "\n".join(lines)


def _in_sample(report: Report) -> str:
    """Say that weights were fitted on these faces, and what the file tells of the vote out of fold."""
    measured = {entry.tta for entry in report.evaluation.tta_modes}
    told = [
        f"{row.labels} {percent(row.accuracy)} % ({percent(row.interval[0])}-{percent(row.interval[1])})"
        f" {row.tta}"
        for row in report.model.held_out
        if row.split == report.evaluation.split and row.tta in measured and not row.without_leaks
    ]
    unseen = f" Its file tells of faces that the fit had not seen: {', '.join(told)}."
    return IN_SAMPLE + unseen if told else IN_SAMPLE


def _summary(tta_modes: Sequence[TtaScores]) -> str:
    header = (
        "tta", "labels", "faces", "accuracy %", "95 % interval", "macro F1 %", "NLL", "ECE", "NLL oof",
        "ECE oof",
    )  # fmt: skip
    rows: list[Sequence[str]] = [header]
    for entry in tta_modes:
        for scores, note in [(entry.scores, ""), (entry.without_leaks or (), ", no leaks")]:
            rows += [
                (
                    entry.tta,
                    s.labels + note,
                    f"{s.n:,}",
                    percent(s.accuracy),
                    f"{percent(s.interval[0])}-{percent(s.interval[1])}",
                    percent(s.macro_f1),
                    _number(s.nll),
                    _number(s.ece),
                    _number(s.nll_out_of_fold),
                    _number(s.ece_out_of_fold),
                )
                for s in scores
            ]
    return table(rows, left=2)


def _classes(scores: Scores) -> str:
    rows = [("class", "faces", "precision %", "recall %", "F1 %")]
    rows += [
        (c.label, f"{c.support:,}", percent(c.precision, 1), percent(c.recall, 1), percent(c.f1, 1))
        for c in scores.classes
    ]
    return table(rows)


def _confusion(scores: Scores) -> str:
    names = [c.label for c in scores.classes]
    rows: list[Sequence[str]] = [("true \\ answered", *names)]
    rows += [(name, *(str(c) for c in row)) for name, row in zip(names, scores.confusion, strict=True)]
    return table(rows)


def format_report(report: Report) -> str:
    """Return the report as text: a line per tta and label set, then classes and confusions.

    Classes and the confusion matrix are those of the first tta, for each label set but
    :data:`LESSER_LABELS`; the JSON holds them all.
    """
    evaluation = report.evaluation
    parts = [_head(report)]
    if evaluation.leaked is not None:
        parts.append(
            f"no leaks: without the {evaluation.leaked:,} faces of this split that also stand in "
            f"{' and '.join(evaluation.train_splits)}."
        )
    parts.append(_summary(evaluation.tta_modes))
    fitted = (
        "a vote fitted to the other four fifths of the faces, as the model's file tells; - where it does not"
        if report.in_sample
        else "a temperature fitted to the other four fifths of the faces"
    )
    parts.append(
        "interval: Wilson. ECE: top label, 15 bins; a perfectly calibrated model reads about 0.018 at 3,589 "
        f"faces.\noof: out of fold, under {fitted}."
    )
    first = evaluation.tta_modes[0]
    for scores in first.scores:
        if scores.labels != LESSER_LABELS:
            parts.append(f"{scores.labels}, {first.tta}\n{_classes(scores)}\n\n{_confusion(scores)}")
    return "\n\n".join(parts) + "\n"


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write ``report.txt``, ``report.json`` and the pictures into ``folder``; return what was written.

    Per label set (but :data:`LESSER_LABELS`) and tta: ``confusion-LABELS-PROTOCOL.png`` and
    ``reliability-LABELS-PROTOCOL.png``.

    Raises:
        OutputError: If a file cannot be written.
        MissingDependencyError: If Matplotlib is not installed.
    """
    from ferkit.evaluation.plots import draw_confusion, draw_reliability

    written = [folder / "report.txt", folder / "report.json"]
    files.write_text(written[0], format_report(report))
    files.write_json(written[1], report_as_json(report))
    for entry in report.evaluation.tta_modes:
        for scores in entry.scores:
            if scores.labels == LESSER_LABELS:
                continue
            name = f"{scores.labels.replace(' ', '-')}-{entry.tta}.png"
            title = f"{report.model.name}: {scores.labels}, {report.split}, {entry.tta}"
            draw_confusion(scores, title, folder / f"confusion-{name}")
            draw_reliability(scores, title, folder / f"reliability-{name}")
            written += [folder / f"confusion-{name}", folder / f"reliability-{name}"]
    return written
