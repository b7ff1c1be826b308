"""The table of results: one csv row per model, data, split and tta, kept by ``ferkit evaluate --results``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ferkit.core import files
from ferkit.core.errors import DataError
from ferkit.evaluation.evaluate import Scores
from ferkit.evaluation.report import MIB, Report

COLUMNS = (
    *("model", "parameters", "mmac", "size_mib", "data", "faces", "split", "tta", "labels", "n"),
    *("accuracy", "low", "high", "macro_f1", "ece", "ece_out_of_fold", "accuracy_no_leaks"),
    *("ferplus_majority", "ferplus_argmax", "seeds", "epochs", "hours", "sha256", "date"),
)
"""The header of the file; ``docs/evaluation.md`` says what each column holds. Shares are percent."""

KEY = ("model", "faces", "split", "tta")
"""A row with these values equal is replaced; one without ``faces``, where labels and number are the same."""

DIGITS = 16
"""Leading hexadecimal digits of the digests in the table."""

ResultRow = dict[str, str]
"""One row: the text of every column in :data:`COLUMNS`, empty where nothing was measured or is known."""


def _text(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def _accuracy_of(scores: Sequence[Scores] | None, labels: str) -> str:
    return next((_text(s.accuracy, 2, 100) for s in scores or () if s.labels == labels), "")


def rows_of(report: Report) -> list[ResultRow]:
    """Return one row per tta of a report."""
    model, evaluation = report.model, report.evaluation
    shared = {
        "model": model.name,
        "parameters": str(model.parameters),
        "mmac": f"{model.mmac:.1f}",
        "size_mib": "" if model.size_bytes is None else f"{model.size_bytes / MIB:.2f}",
        "data": evaluation.source,
        "faces": evaluation.faces_digest[:DIGITS],
        "split": evaluation.split,
        "seeds": " ".join(map(str, model.seeds)),
        "epochs": "" if model.epochs is None else str(model.epochs),
        "hours": _text(model.hours, 2),
        "sha256": (model.sha256 or "")[:DIGITS],
        "date": report.date,
    }
    rows = []
    for entry in evaluation.tta_modes:
        main = entry.scores[0]
        measured = {
            "tta": entry.tta,
            "labels": main.labels,
            "n": str(main.n),
            "accuracy": _text(main.accuracy, 2, 100),
            "low": _text(main.interval[0], 2, 100),
            "high": _text(main.interval[1], 2, 100),
            "macro_f1": _text(main.macro_f1, 2, 100),
            "ece": _text(main.ece, 4),
            "ece_out_of_fold": _text(main.ece_out_of_fold, 4),
            "accuracy_no_leaks": _accuracy_of(entry.without_leaks, main.labels),
            "ferplus_majority": _accuracy_of(entry.scores, "ferplus majority"),
            "ferplus_argmax": _accuracy_of(entry.scores, "ferplus argmax"),
        }
        row = shared | measured
        rows.append({column: row[column] for column in COLUMNS})
    return rows


def read_results(path: Path) -> list[ResultRow]:
    """Return the rows of a results file; none if there is no such file.

    Raises:
        DataError: If it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the results {path}: {error}") from error
    header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [list(COLUMNS)]
    if tuple(header) != COLUMNS:
        raise DataError(
            f"{path} is no table of results: its header is {','.join(header)[:120]!r}; expected "
            f"{','.join(COLUMNS)!r}. Name another file"
        )
    for number, line in enumerate(lines, 2):
        if len(line) != len(COLUMNS):
            raise DataError(f"{path}, line {number}: {len(line)} fields where the header has {len(COLUMNS)}")
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines]


def _key(row: ResultRow) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def _check_replaces(path: Path, old: ResultRow, new: ResultRow) -> None:
    """Refuse to replace a row by one of something else, or by one with fewer figures."""
    what = f"{path} has a row of {old['model']}, {old['split']}, {old['tta']}"
    other = [c for c in ("labels", "n", "seeds") if old[c] != new[c]]
    if old["sha256"] and old["sha256"] != new["sha256"]:
        other.append("sha256")
    if other:
        differ = "; ".join(f"{c} {old[c]!r}, now {new[c]!r}" for c in other)
        raise DataError(
            f"{what} that is of something else: {differ}. Give this model a --name of its own, or replace "
            "the row (--overwrite)"
        )
    # Nobody leaves out ece_out_of_fold by choice: it is empty for an ensemble fitted on these faces.
    lost = [c for c in COLUMNS if old[c] and not new[c] and c != "ece_out_of_fold"]
    if lost:
        raise DataError(
            f"{what} with figures for {', '.join(lost)}; measure them again as well (--votes, --drop-leaks), "
            "name another file, or replace the row (--overwrite)"
        )


def update_results(path: Path, rows: list[ResultRow], *, overwrite: bool = False) -> None:
    """Put rows into a results file in one step: a row of equal :data:`KEY` is replaced.

    A row with empty ``faces`` is replaced by one with the same number of faces and label set. A replaced row
    keeps its place, a new one comes last.

    ``overwrite`` replaces rows without the checks.

    Raises:
        DataError: If the file exists and is no table of results, or a row would be replaced by one of another
            model file, of other labels, seeds or number of faces, or by one with fewer figures.
        OutputError: If it cannot be written.
    """
    table = {_key(row): row for row in read_results(path)}
    for row in rows:
        place, without_faces = _key(row), _key(row | {"faces": ""})
        old = table.get(without_faces)
        if place not in table and old and (old["labels"], old["n"]) == (row["labels"], row["n"]):
            place = without_faces
        if place in table and not overwrite:
            _check_replaces(path, table[place], row)
        table[place] = row
    files.write_csv(path, table.values(), COLUMNS)
