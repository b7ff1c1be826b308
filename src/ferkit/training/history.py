"""The history of a run: one row per epoch, as JSON and CSV, and the curves drawn from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ferkit.core.files import replacing, write_json, write_text

Row = dict[str, float]


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write ``history.json`` and ``history.csv``.

    Raises:
        OutputError: If a file cannot be written.
    """
    write_json(folder / "history.json", list(rows))
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / "history.csv", text.getvalue())


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw training and validation accuracy and loss over the epochs.

    Raises:
        OutputError: If the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels: Any = figure.subplots(1, 2)
    for panel, what, factor in zip(panels, ("accuracy", "loss"), (100.0, 1.0), strict=True):
        lines = [
            (key, label, style)
            for key, label, style in (
                (what, "training", "C0-"),
                (f"val_{what}", "validation", "C1-"),
                (f"ferplus_{what}", "training, FER+", "C0:"),
                (f"val_ferplus_{what}", "validation, FER+", "C1:"),
            )
            if rows and key in rows[0]
        ]
        for key, label, style in lines:
            panel.plot(
                epochs,
                [factor * row[key] for row in rows],
                style,
                label=label,
                marker="o" if len(rows) < 30 else None,
                markersize=3,
            )
        panel.set_xlabel("epoch")
        panel.set_ylabel("accuracy in %" if what == "accuracy" else "cross-entropy")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
