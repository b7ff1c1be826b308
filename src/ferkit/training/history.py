"""The history of a run: one row per epoch, as JSON and CSV, and the curves drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferkit.core.files import replacing, write_csv, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write ``history.json`` and ``history.csv``."""
    write_json(folder / "history.json", list(rows))
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_csv(folder / "history.csv", rows, columns)


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw training and validation accuracy and loss over the epochs."""
    with replacing(path) as temporary:
        plot_curves(rows, title).savefig(temporary, dpi=110)


def plot_curves(rows: Sequence[Row], title: str) -> Figure:
    """Return the figure of :func:`draw_curves`; its legend lies outside of the panels."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    styles = {"": "C0-", "val_": "C1-", "ferplus_": "C0:", "val_ferplus_": "C1:"}
    labels = ("training", "validation", "training, FER+", "validation, FER+")
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    panels: Any = figure.subplots(1, 2)
    for panel, what, factor in zip(panels, ("accuracy", "loss"), (100.0, 1.0), strict=True):
        for (prefix, style), label in zip(styles.items(), labels, strict=True):
            if prefix + what in rows[0]:
                values = [factor * row[prefix + what] for row in rows]
                marker = "o" if len(rows) < 30 else None
                panel.plot(epochs, values, style, label=label, marker=marker, markersize=3)
        panel.set_xlabel("epoch")
        panel.set_ylabel("accuracy in %" if what == "accuracy" else "cross-entropy")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    figure.legend(handles=panels[0].get_lines(), loc="outside lower center", ncols=4, frameon=False)
    return figure
