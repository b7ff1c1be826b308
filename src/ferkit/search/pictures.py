"""Pictures of a search: Optuna's own, and accuracy against cost."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.visualization import matplotlib as plots

from ferkit.core.files import replacing


@contextlib.contextmanager
def _offscreen() -> Iterator[None]:
    """Draw without a window, and leave Matplotlib's backend and style as they were."""
    from matplotlib import pyplot as plt

    before = plt.get_backend()
    plt.switch_backend("agg")
    try:
        with warnings.catch_warnings(), plt.rc_context():
            warnings.simplefilter("ignore")  # Optuna's plots warn of parameters with one value, among others.
            yield
    finally:
        plt.close("all")
        plt.switch_backend(before)


def _save(axes: Any, path: Path) -> None:
    with replacing(path) as temporary:
        axes.figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight")


def draw_study(study: optuna.Study, folder: Path, what: str) -> list[Path]:
    """Draw Optuna's pictures of a study with finished trials, and return their files.

    They are best so far and, if the trials allow it, parallel coordinates and importance. ``what`` is the
    objective, for axes: ``accuracy on PublicTest``.

    Raises:
        OutputError: If a picture cannot be written.
    """
    done = _finished(study)
    pictures = [folder / "best-so-far.png"]
    with _offscreen():
        _save(plots.plot_optimization_history(study, target_name=what), pictures[0])
        if len(done) > 1:
            axes = plots.plot_parallel_coordinate(study, target_name=what)
            figure: Any = axes.figure
            figure.set_size_inches(3 + 0.8 * len({name for t in done for name in t.params}), 5)
            pictures.append(folder / "parallel-coordinates.png")
            _save(axes, pictures[-1])
        if importance(study):
            axes = plots.plot_param_importances(study, evaluator=_evaluator(), target_name=what)
            axes.set_xlabel(
                f"share in the variance of {what} (fANOVA), {len(done)} finished trials;\n"
                "only parameters that are active in all of them"
            )
            pictures.append(folder / "importance.png")
            _save(axes, pictures[-1])
    return pictures


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    # Not PED-ANOVA, Optuna's default: with 30 trials or fewer it puts irrelevant parameters first.
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def importance(study: optuna.Study) -> dict[str, float]:
    """Return each parameter's share in the variance of accuracy, largest first (fANOVA, Hutter et al. 2014).

    Only finished trials count, and only parameters that are active in all of them. With fewer than four
    trials, or without differences between them, there are no shares.
    """
    done = _finished(study)
    if len(done) < 4 or len({t.value for t in done}) < 2:
        return {}
    shares = optuna.importance.get_param_importances(study, evaluator=_evaluator())
    return {name: float(share) for name, share in shares.items()}


def draw_cost(rows: Sequence[Mapping[str, Any]], title: str, what: str, path: Path) -> None:
    """Draw accuracy against MMAC, with the Pareto front (:func:`ferkit.search.report.cost_and_accuracy`).

    Raises:
        OutputError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.add_subplot()
    rest, front = ([r for r in rows if r["pareto"] is wanted] for wanted in (False, True))
    costs, accuracies = [r["mmac"] for r in front], [100 * r["accuracy"] for r in front]
    axes.scatter(
        [r["mmac"] for r in rest], [100 * r["accuracy"] for r in rest], color="grey", alpha=0.6,
        label="finished trial",
    )  # fmt: skip
    axes.step(costs, accuracies, where="post", color="C1", label="Pareto front, with 95 % intervals")
    known = [r for r in front if r["low"] != ""]
    axes.errorbar(
        [r["mmac"] for r in known],
        [100 * r["accuracy"] for r in known],
        yerr=[[100 * abs(r["accuracy"] - r[end]) for r in known] for end in ("low", "high")],
        fmt="o",
        color="C1",
        elinewidth=0.8,
        capsize=2,
    )
    for row, cost, accuracy in zip(front, costs, accuracies, strict=True):
        axes.annotate(str(row["trial"]), (cost, accuracy), xytext=(5, -11), textcoords="offset points")
    if max(r["mmac"] for r in rows) > 12 * min(r["mmac"] for r in rows):
        axes.set_xscale("log")
    axes.set(xlabel="million multiply-accumulates per face (MMAC)", ylabel=f"{what} in %", title=title)
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    _save(axes, path)
