"""Plain text of reports: numbers, tables and paragraphs that fit a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from ferkit.core.errors import escape_control
from ferkit.evaluation.metrics import ClassScores

WIDTH = 80
"""Columns of the text, whatever the window: a report is the same in a terminal, a pipe and a file."""

LABEL_WIDTH = 24
"""Columns of a label at most."""

_GAP = 2


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share as percent, ``-`` for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def percents(interval: tuple[float, float]) -> str:
    """Return an interval of shares as percent.

    Example:
        >>> percents((0.6495, 0.6803))
        '64.95-68.03'
    """
    return "-".join(percent(share) for share in interval)


def number(value: float | None) -> str:
    """Return a number with four digits, ``-`` for None."""
    return "-" if value is None else f"{value:.4f}"


def paragraph(text: str) -> str:
    """Return one line of text wrapped at :data:`WIDTH`, its further lines indented; names are not split."""
    return textwrap.fill(
        escape_control(text), WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def cut(text: str, width: int, mark: str = "..") -> str:
    """Return ``text`` with at most ``width`` columns, with ``mark`` in place of what is cut off its end.

    Example:
        >>> cut("happiness", 6), cut("happiness", 5, "."), cut("fear", 5)
        ('happ..', 'happ.', 'fear')
    """
    return text if cell_len(text) <= width else set_cell_size(text, width - len(mark)).rstrip() + mark


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align columns of text: the first ``left`` columns to the left, the others to the right.

    Columns beyond :data:`WIDTH` continue in a block below, beside the same first ``left`` columns.
    """
    cells = [[escape_control(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    blocks = [list(range(left))]
    for column in range(left, len(widths)):
        taken = sum(widths[c] + _GAP for c in blocks[-1])
        if len(blocks[-1]) > left and taken + widths[column] > WIDTH:
            blocks.append(list(range(left)))
        blocks[-1].append(column)

    def pad(cell: str, column: int) -> str:
        space = " " * (widths[column] - cell_len(cell))
        return cell + space if column < left else space + cell

    lines = (
        "\n".join((" " * _GAP).join(pad(row[c], c) for c in block).rstrip() for row in cells)
        for block in blocks
    )
    return "\n\n".join(lines)


def class_table(classes: Sequence[ClassScores], no_face: Mapping[str, int] | None = None) -> str:
    """Return precision, recall and F1 of each class, with the photos without a face where they are given."""
    counts = ["faces"] if no_face is None else ["faces found", "no face"]
    rows: list[Sequence[str]] = [("class", *counts, "precision %", "recall %", "F1 %")]
    for c in classes:
        missed = [] if no_face is None else [f"{no_face[c.label]:,}"]
        scores = (percent(value, 1) for value in (c.precision, c.recall, c.f1))
        rows.append((cut(c.label, LABEL_WIDTH), f"{c.support:,}", *missed, *scores))
    return table(rows)


def confusion_table(
    labels: Sequence[str], confusion: Sequence[Sequence[int]], no_face: Mapping[str, int] | None = None
) -> str:
    """Return a confusion matrix; where the labels are too long for its columns, they are cut or numbered."""
    last = [] if no_face is None else ["no face"]
    names = [cut(escape_control(label), LABEL_WIDTH) for label in labels]
    first = max(len("true"), *map(cell_len, names))
    room = (WIDTH - first - sum(len(c) + _GAP for c in last)) // len(labels) - _GAP
    heads = [cut(name, max(room, len("dis.")), ".") for name in names]
    if room < len("dis.") or len(set(heads)) < len(heads):
        heads = [str(k) for k in range(1, len(labels) + 1)]
        names = [f"{k} {name}" for k, name in zip(heads, names, strict=True)]
    rows: list[Sequence[str]] = [("true", *heads, *last)]
    for label, name, counts in zip(labels, names, confusion, strict=True):
        missed = [] if no_face is None else [str(no_face[label])]
        rows.append((name, *map(str, counts), *missed))
    return "confusion matrix; rows: true class, columns: predicted class\n" + table(rows)
