"""Pictures of scores: confusion matrices and reliability diagrams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ferkit.core.extras import require
from ferkit.core.files import replacing
from ferkit.evaluation.evaluate import Scores


def _new_figure(width: float, height: float) -> Any:
    """Return a Matplotlib figure that draws without a screen and is kept in no global list."""
    return require("matplotlib.figure", "train").Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def draw_confusion(scores: Scores, title: str, path: Path) -> None:
    """Draw a confusion matrix: colour and large number are the share of the row, small number the count.

    Raises:
        OutputError: If the picture cannot be written.
    """
    counts = np.array(scores.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [c.label for c in scores.classes]
    size = len(names)
    figure = _new_figure(2.6 + 0.85 * size, 1.9 + 0.75 * size)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        style = {"ha": "center", "va": "center", "color": "white" if share > 0.55 else "black"}
        axes.text(column, row - 0.12, f"{100 * share:.0f} %", fontsize=11, **style)
        axes.text(column, row + 0.24, str(counts[row, column]), fontsize=7.5, **style)
    axes.set_xticks(range(size), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), [f"{c.label}\n{c.support:,}" for c in scores.classes])
    axes.set(xlabel="predicted", ylabel="true, with number of faces")
    low, high = scores.interval
    axes.set_title(
        f"{title}\naccuracy {100 * scores.accuracy:.2f} % ({100 * low:.2f}-{100 * high:.2f}), "
        f"macro F1 {100 * scores.macro_f1:.2f} %, n = {scores.n:,}",
        fontsize=10,
    )
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    _save(figure, path)


def draw_reliability(scores: Scores, title: str, path: Path) -> None:
    """Draw accuracy against the probability of the top label, with the number of faces per bin.

    Raises:
        OutputError: If the picture cannot be written.
    """
    _save(plot_reliability(scores, title), path)


def plot_reliability(scores: Scores, title: str) -> Any:
    """Return the figure of :func:`draw_reliability`; its legend lies outside of the panels."""
    bins = [b for b in scores.reliability if b.count]
    middles, widths = [(b.low + b.high) / 2 for b in bins], [b.high - b.low for b in bins]
    accuracies, confidences = [b.accuracy for b in bins], [b.confidence for b in bins]
    figure = _new_figure(5.2, 5.8)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfectly calibrated")
    blue = {"color": "tab:blue", "alpha": 0.35, "edgecolor": "tab:blue"}
    upper.bar(middles, accuracies, width=widths, label="accuracy", **blue)
    upper.plot(
        confidences, accuracies, "o", color="tab:blue", markersize=4, label="at the bin's mean probability"
    )
    out_of_fold = "" if scores.ece_out_of_fold is None else f", {scores.ece_out_of_fold:.3f} out of fold"
    upper.set_title(f"{title}\nECE {scores.ece:.3f}{out_of_fold}, n = {scores.n:,}", fontsize=10)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    lower.bar(middles, [b.count for b in bins], width=widths, color="grey", edgecolor="white")
    lower.set(xlabel="probability of the top label", ylabel="faces")
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
