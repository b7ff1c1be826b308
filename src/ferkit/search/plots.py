"""Pictures of a search: progress, parallel coordinates, importance, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ferkit.core.extras import require
from ferkit.core.files import replacing
from ferkit.search.records import Search, Trial
from ferkit.search.space import Parameter, same, spell_value

_ABSENT = -0.12
"""Height at which a parallel coordinate shows that the parameter is not active."""


def _new_figure(width: float, height: float) -> Any:
    figure = require("matplotlib.figure", "train").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg", "train").FigureCanvasAgg(figure)
    return figure


def _legend_below(figure: Any, axes: Any) -> None:
    """Set the legend under the panels, where it hides no trial."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def draw_best_so_far(searches: Mapping[str, Sequence[Mapping[str, Any]]], split: str, path: Path) -> None:
    """Draw the best finished accuracy over trials and over training time.

    Args:
        searches: Rows of :func:`ferkit.search.report.best_so_far` by name; several are compared.
        split: The split of the accuracies.
        path: The picture.

    Raises:
        OutputError: If the picture cannot be written.
    """
    figure = _new_figure(11, 4.6)
    panels: Any = figure.subplots(1, 2, sharey=True)
    for place, (name, rows) in enumerate(searches.items()):
        colour = f"C{place}"
        for panel, key in zip(panels, ("ended", "training_hours"), strict=True):
            for state, marker, label in (("finished", "o", "finished"), ("stopped", "x", "stopped early")):
                some = [r for r in rows if r["state"] == state and r["accuracy"] != ""]
                panel.plot(
                    [r[key] for r in some],
                    [100 * r["accuracy"] for r in some],
                    marker,
                    color=colour,
                    alpha=0.4,
                    markersize=5,
                    label=f"{name}: {label}" if some else None,
                )
            known = [r for r in rows if r["best"] != ""]
            panel.step(
                [r[key] for r in known],
                [100 * r["best"] for r in known],
                where="post",
                color=colour,
                linewidth=2,
                label=f"{name}: best so far",
            )
    panels[0].set(xlabel="trials that ended", ylabel=f"accuracy on {split} in %")
    panels[1].set_xlabel("hours of training, all trials together")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.margins(x=0.03)
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    _legend_below(figure, panels[0])
    figure.suptitle("Best accuracy so far (single view; the split that chooses, so it flatters)", fontsize=11)
    _save(figure, path)


def draw_cost(rows: Sequence[Mapping[str, Any]], title: str, split: str, path: Path) -> None:
    """Draw accuracy against multiplications, with the Pareto front.

    Args:
        rows: From :func:`ferkit.search.report.cost_and_accuracy`.
        title: Above the picture.
        split: The split of the accuracies.
        path: The picture.

    Raises:
        OutputError: If the picture cannot be written.
    """
    figure = _new_figure(8, 5.4)
    axes = figure.add_subplot()
    rest, front = ([r for r in rows if r["pareto"] is wanted] for wanted in (False, True))
    axes.plot(
        [r["mmac"] for r in rest], [100 * r["accuracy"] for r in rest], "o", color="grey", alpha=0.6,
        label="finished trial",
    )  # fmt: skip
    axes.step(
        [r["mmac"] for r in front], [100 * r["accuracy"] for r in front], where="post", color="C1",
        label="Pareto front: none is cheaper and better",
    )  # fmt: skip
    known = [r for r in front if r["low"] != ""]
    axes.errorbar(
        [r["mmac"] for r in known],
        [100 * r["accuracy"] for r in known],
        yerr=[
            [100 * (r["accuracy"] - r["low"]) for r in known],
            [100 * (r["high"] - r["accuracy"]) for r in known],
        ],
        fmt="o",
        color="C1",
        elinewidth=0.8,
        capsize=2,
        label="on the front, with 95 % interval",
    )
    for row in front:
        axes.annotate(
            str(row["trial"]), (row["mmac"], 100 * row["accuracy"]), xytext=(5, -11),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    costs = [r["mmac"] for r in rows]
    if max(costs) > 12 * min(costs):
        axes.set_xscale("log")
    axes.set(xlabel="millions of multiplications a face (MMAC)", ylabel=f"accuracy on {split} in %")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3, which="both")
    _legend_below(figure, axes)
    _save(figure, path)


def draw_importance(shares: Mapping[str, float], notes: Sequence[str], title: str, path: Path) -> None:
    """Draw each parameter's share in the variance of accuracy.

    Args:
        shares: From :func:`ferkit.search.propose.importance`.
        notes: What to know about the shares; said below the picture.
        title: Above the picture.
        path: The picture.

    Raises:
        OutputError: If the picture cannot be written.
    """
    figure = _new_figure(8, 1.8 + 0.32 * len(shares))
    axes = figure.add_subplot()
    names = list(shares)[::-1]
    bars = axes.barh(names, [100 * shares[n] for n in names], color="C0")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.margins(x=0.1)
    below = "\n".join(_wrapped(note, 90) for note in notes)
    axes.set_xlabel(f"share in the variance of accuracy in % (fANOVA)\n{below}", fontsize=9)
    axes.set_title(title, fontsize=11)
    _save(figure, path)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def draw_parallel_coordinates(
    search: Search, trials: Sequence[Trial], title: str, split: str, path: Path
) -> None:
    """Draw every trial as a line over the parameters, coloured by accuracy, the best in front.

    Args:
        search: Holds the space.
        trials: Finished ones, best first.
        title: Above the picture.
        split: The split of the accuracies.
        path: The picture.

    Raises:
        OutputError: If the picture cannot be written.
    """
    colour_map = require("matplotlib", "train").colormaps["viridis_r"]
    cm = require("matplotlib.cm", "train")
    colors = require("matplotlib.colors", "train")

    shown = [p for p in search.space.parameters if len(p.choices) != 1]
    accuracies = [100 * (t.accuracy or 0.0) for t in trials]
    low, high = min(accuracies), max(accuracies)
    norm = colors.Normalize(low, high if high > low else low + 1)
    costs = [t.mmac for t in trials]
    columns = len(shown) + 2
    figure = _new_figure(2.2 + 0.95 * columns, 5.8)
    axes = figure.add_subplot()
    for place, trial in reversed(list(enumerate(trials))):
        # Lines through the same value are spread a little, so that one can see how many there are.
        spread = 0.03 * (place / len(trials) - 0.5)
        heights = [
            (_height(p, trial.values[p.name]) if p.name in trial.values else _ABSENT)
            + (0.0 if p.continuous else spread)
            for p in shown
        ]
        heights += [_share(trial.mmac, min(costs), max(costs)), _share(accuracies[place], low, high)]
        axes.plot(
            range(columns),
            heights,
            color=colour_map(norm(accuracies[place])),
            linewidth=2.6 if place == 0 else 1.2,
            alpha=1.0 if place == 0 else 0.65,
        )
    for place, parameter in enumerate(shown):
        _scale(axes, place, _ticks(parameter))
    _scale(axes, columns - 2, [(0.0, f"{min(costs):.3g}"), (1.0, f"{max(costs):.3g}")])
    _scale(axes, columns - 1, [(0.0, f"{low:.1f}"), (1.0, f"{high:.1f}")])
    if any(p.name not in t.values for p in shown for t in trials):
        axes.axhline(_ABSENT, color="black", linewidth=0.6, linestyle=":")
        axes.text(-0.25, _ABSENT, "not active", ha="right", va="center", fontsize=8)
    names = [p.name + ("\n(log)" if p.log else "") for p in shown] + ["MMAC", "accuracy\nin %"]
    axes.set_xticks(range(columns), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.3, columns - 0.4)
    axes.set_ylim(-0.2, 1.06)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{title}; the best one drawn thick", fontsize=11)
    figure.colorbar(
        cm.ScalarMappable(norm=norm, cmap=colour_map), ax=axes, label=f"accuracy on {split} in %", pad=0.01
    )
    _save(figure, path)


def _scale(axes: Any, place: int, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw one of the parallel axes with its labels."""
    axes.plot([place, place], [0, 1], color="black", linewidth=0.8, zorder=3)
    for height, label in ticks:
        axes.text(
            place + 0.04,
            height,
            label,
            fontsize=7,
            va="center",
            zorder=4,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Return the labels of a parameter's axis: all choices, or a range's ends and middle."""
    if parameter.choices:
        return [(_height(parameter, v), spell_value(v)[:14]) for v in parameter.choices]
    middle = (
        (parameter.low * parameter.high) ** 0.5 if parameter.log else (parameter.low + parameter.high) / 2
    )
    values = [parameter.low, parameter.tidy(middle), parameter.high]
    return [(_height(parameter, v), f"{v:.2g}" if not parameter.integer else str(v)) for v in values]


def _height(parameter: Parameter, value: Any) -> float:
    """Return the place of a value on its parameter's axis, 0..1."""
    if parameter.choices:
        place = next(k for k, choice in enumerate(parameter.choices) if same(choice, value))
        return place / max(len(parameter.choices) - 1, 1)
    if parameter.log:
        return float(np.log(value / parameter.low) / np.log(parameter.high / parameter.low))
    return _share(value, parameter.low, parameter.high)


def _share(value: float, low: float, high: float) -> float:
    return float((value - low) / (high - low)) if high > low else 0.5
