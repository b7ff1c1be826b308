"""The table of results: a csv row per model, data, split and tta, written by a command, not by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ferkit.core import files
from ferkit.core.errors import DataError
from ferkit.evaluation.evaluate import Scores
from ferkit.evaluation.report import MIB, Report

KEY = ("model", "faces", "split", "tta")
"""A row with these values equal is replaced; one without ``faces``, where labels and number are the same."""

DIGITS = 16
"""Leading hexadecimal digits of a digest that stand in the table."""


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One row; every value is the text that stands in the file. Percentages are of 100, ECE is of 1.

    Args:
        model: Name of the model.
        parameters: Trained numbers.
        mmac: Multiply-accumulates for one face and one view, in millions.
        size_mib: Size of the file; empty for a run that is not exported.
        data: Name of the data, for people.
        faces: Beginning of the digest of the measured faces with their labels, whatever file they came from
            and whether with votes or without; empty in rows from before it was kept.
        split: Name of the split.
        tta: Name of the test-time augmentation.
        labels: The label set that accuracy, F1 and ECE speak of.
        n: Number of faces.
        accuracy: Percent.
        low: Lower end of the 95 % Wilson interval, percent.
        high: Upper end.
        macro_f1: Percent.
        ece: As the model answers, 0..1; empty in rows from before it was kept.
        ece_out_of_fold: Under one temperature that was fitted again, to four fifths of these very faces, for
            the last fifth: what calibration on this split could reach, which the model as it is may not.
        accuracy_no_leaks: Percent, without faces that also stand in the model's training split; empty if not
            measured.
        ferplus_majority: Percent; empty if not measured.
        ferplus_argmax: Percent; empty if not measured.
        seeds: Seeds behind the model, separated by blanks.
        epochs: Epochs of the longest run behind it.
        hours: Hours of training, all runs together; a teacher's are not in it.
        sha256: Beginning of the digest of the model file, or of a run's weights; empty in rows from before it
            was kept.
        date: Day of the measurement.
    """

    model: str
    parameters: str
    mmac: str
    size_mib: str
    data: str
    faces: str
    split: str
    tta: str
    labels: str
    n: str
    accuracy: str
    low: str
    high: str
    macro_f1: str
    ece: str
    ece_out_of_fold: str
    accuracy_no_leaks: str
    ferplus_majority: str
    ferplus_argmax: str
    seeds: str
    epochs: str
    hours: str
    sha256: str
    date: str


COLUMNS = tuple(ResultRow.__dataclass_fields__)
"""The header of the file."""

_FORMER = tuple(c for c in COLUMNS if c not in ("data", "faces", "ece_out_of_fold", "sha256"))
"""The header before these were told; its ``ece`` is the one out of fold."""


def _text(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def _accuracy_of(scores: tuple[Scores, ...] | None, labels: str) -> str:
    return next((_text(s.accuracy, 2, 100) for s in scores or () if s.labels == labels), "")


def rows_of(report: Report) -> list[ResultRow]:
    """Return one row per tta of a report."""
    model, evaluation = report.model, report.evaluation
    rows = []
    for entry in evaluation.tta_modes:
        main = entry.scores[0]
        rows.append(
            ResultRow(
                model=model.name,
                parameters=str(model.parameters),
                mmac=f"{model.mmac:.1f}",
                size_mib="" if model.size_bytes is None else f"{model.size_bytes / MIB:.2f}",
                data=evaluation.source,
                faces=evaluation.faces_digest[:DIGITS],
                split=evaluation.split,
                tta=entry.tta,
                labels=main.labels,
                n=str(main.n),
                accuracy=_text(main.accuracy, 2, 100),
                low=_text(main.interval[0], 2, 100),
                high=_text(main.interval[1], 2, 100),
                macro_f1=_text(main.macro_f1, 2, 100),
                ece=_text(main.ece, 4),
                ece_out_of_fold=_text(main.ece_out_of_fold, 4),
                accuracy_no_leaks=_accuracy_of(entry.without_leaks, main.labels),
                ferplus_majority=_accuracy_of(entry.scores, "ferplus majority"),
                ferplus_argmax=_accuracy_of(entry.scores, "ferplus argmax"),
                seeds=" ".join(str(seed) for seed in model.seeds),
                epochs="" if model.epochs is None else str(model.epochs),
                hours=_text(model.hours, 2),
                sha256=(model.sha256 or "")[:DIGITS],
                date=report.date,
            )
        )
    return rows


def read_results(path: Path) -> list[ResultRow]:
    """Return the rows of a results file; none if there is no such file.

    Tables with the header of an earlier version are read too: what they do not say is empty.

    Raises:
        DataError: If it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the results {path}: {error}") from error
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        return []
    header = tuple(lines[0])
    if header not in (COLUMNS, _FORMER):
        raise DataError(
            f"{path} is no table of results: its header is {','.join(lines[0])[:120]!r}; expected "
            f"{','.join(COLUMNS)!r}. Name another file"
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise DataError(f"{path}, line {number}: {len(line)} fields where the header has {len(header)}")
    rows = [dict.fromkeys(COLUMNS, "") | dict(zip(header, line, strict=True)) for line in lines[1:]]
    if header == _FORMER:
        for row in rows:
            row["ece"], row["ece_out_of_fold"] = "", row["ece"]
    return [ResultRow(**row) for row in rows]


def _key(row: ResultRow) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in KEY)


def _may_be_of(old: ResultRow | None, new: ResultRow) -> bool:
    """Tell whether a row that does not tell its faces can speak of the new row's."""
    return old is not None and (old.labels, old.n) == (new.labels, new.n)


def _check_replaces(path: Path, old: ResultRow, new: ResultRow) -> None:
    """Refuse to replace a row by one that speaks of something else, or says less."""
    what = f"{path} has a row of {old.model}, {old.split}, {old.tta}"
    other = [c for c in ("labels", "n", "seeds") if getattr(old, c) != getattr(new, c)]
    if old.sha256 and old.sha256 != new.sha256:
        other.append("sha256")
    if other:
        differ = "; ".join(f"{c} {getattr(old, c)!r}, now {getattr(new, c)!r}" for c in other)
        raise DataError(
            f"{what} that is about something else: {differ}. Give this model a --name of its own, or replace "
            "the row (--overwrite)"
        )
    # What calibration could reach is not left out by who measures, but where it would say nothing.
    lost = [c for c in COLUMNS if getattr(old, c) and not getattr(new, c) and c != "ece_out_of_fold"]
    if lost:
        raise DataError(
            f"{what} in which {', '.join(lost)} was measured too; measure it again as well (--votes, "
            "--drop-leaks), name another file, or replace the row (--overwrite)"
        )


def update_results(path: Path, rows: list[ResultRow], *, overwrite: bool = False) -> None:
    """Put rows into a results file in one step: a row of equal :data:`KEY` is replaced.

    A row that does not tell its faces is replaced by one of as many faces with the same label set; whatever
    else has its name stands beside it. A replaced row keeps its place, a new one comes last.

    Args:
        path: The file.
        rows: What was measured.
        overwrite: Replace rows whatever they say.

    Raises:
        DataError: If the file exists and is no table of results, or a row would be replaced by one of another
            model file, of other labels, seeds or number of faces, or by one in which less was measured.
        OutputError: If it cannot be written.
    """
    table = {_key(row): row for row in read_results(path)}
    for row in rows:
        place, untold = _key(row), _key(replace(row, faces=""))
        if place not in table and _may_be_of(table.get(untold), row):
            place = untold
        if (old := table.get(place)) is not None and not overwrite:
            _check_replaces(path, old, row)
        table[place] = row
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(asdict(row).values() for row in table.values())
    files.write_text(path, buffer.getvalue())
