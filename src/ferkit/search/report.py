"""The results of a search: leaderboard, the winner's recipe, summary, pictures and their numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkit.core.files import write_csv, write_json, write_text
from ferkit.evaluation.metrics import wilson_interval
from ferkit.search import pictures
from ferkit.search.space import format_value
from ferkit.search.study import ENDS, Search, Trial, read_search
from ferkit.training.recipe import Recipe, dump_recipe
from ferkit.training.runs import RUN

LEADERBOARD = "leaderboard.csv"
WINNER = "winner.toml"
SUMMARY = "summary.json"
PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`write_report` has written, and what is missing and why."""

    search: Search
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def write_report(folder: str | Path) -> Report:
    """Write leaderboard, winner, summary and pictures of a search, finished or not, into its folder.

    Raises:
        SearchError: If the folder holds no search.
        OutputError: If a file cannot be written.
    """
    search = read_search(folder)
    done, notes, drawn = search.finished(), shortfall(search), search.folder / PICTURES
    tables = {search.folder / LEADERBOARD: leaderboard(search)}
    files = []
    if done:
        files.append(search.folder / WINNER)
        write_text(files[0], dump_recipe(winner_recipe(search)))
        what = f"accuracy on {validation_of(search)[0]}"
        files += [*pictures.draw_study(search.study, drawn, what), drawn / "accuracy-mmac.png"]
        costs, shares = cost_and_accuracy(search), pictures.importance(search.study)
        pictures.draw_cost(costs, f"{search.space.name}, {method_of(search)}", what, files[-1])
        tables[drawn / "best-so-far.csv"] = best_so_far(search)
        tables[drawn / "accuracy-mmac.csv"] = costs
        if shares:
            rows = [{"parameter": name, "importance": round(share, 6)} for name, share in shares.items()]
            tables[drawn / "importance.csv"] = rows
        else:
            notes.append("no importance: it needs four finished trials that differ in accuracy")
    else:
        notes.append("no trial finished, so there is no winner and no picture")
    for path, rows in tables.items():
        write_csv(path, rows, list(rows[0]) if rows else ["trial"])
    write_json(search.folder / SUMMARY, summary(search))
    return Report(search, (*tables, *files, search.folder / SUMMARY), tuple(notes))


def method_of(search: Search) -> str:
    """Return the method as text: ``tpe with ASHA``."""
    return search.settings.method + (" with ASHA" if search.settings.asha else "")


def leaderboard(search: Search) -> list[dict[str, Any]]:
    """Return a row per trial: finished ones by accuracy, then those stopped, failed, and not yet done.

    Accuracies are those of the last epoch, without test-time augmentation; those of stopped trials are of
    an earlier epoch and cannot be compared with the others.
    """
    split, faces = validation_of(search)
    order = {state: place for place, state in enumerate(ENDS)}
    ranked = sorted(
        search.trials.values(),
        key=lambda t: (order.get(t.state, len(order)), -(t.accuracy or 0.0), t.mmac, t.number),
    )
    return [
        {
            "rank": place if trial.state == "finished" else "",
            "trial": trial.number,
            "state": trial.state,
            "split": split,
            **_with_interval(trial.accuracy, faces),
            "epochs": len(trial.history),
            "of": trial.epochs,
            "seconds": round(trial.seconds, 1),
            "parameters": trial.parameters,
            "mmac": round(trial.mmac, 3),
            "retries": len(trial.lost),
            "reason": trial.reason,
            **{
                p.name: format_value(trial.values[p.name]) if p.name in trial.values else ""
                for p in search.space.parameters
            },
        }
        for place, trial in enumerate(ranked, start=1)
    ]


def winner_recipe(search: Search) -> Recipe:
    """Return the recipe of the best finished trial for full training, with the space's ``[winner]`` keys."""
    best = search.finished()[0]
    return search.space.recipe(
        best.values,
        f"{search.space.name}-winner",
        f"Trial {best.number} of {len(search.trials)} of space {search.space.name} ({method_of(search)}, "
        f"seed {search.settings.seed}): {100 * (best.accuracy or 0):.2f} % on {validation_of(search)[0]}, "
        f"which chose it, after {len(best.history)} epochs; {best.mmac:.1f} MMAC.",
        winner=True,
    )


def best_so_far(search: Search) -> list[dict[str, Any]]:
    """Return a row per trial that ended, in the order of ending, with the best finished accuracy so far."""
    rows: list[dict[str, Any]] = []
    best, seconds, epochs = None, 0.0, 0
    for trial in sorted((t for t in search.trials.values() if t.ended), key=lambda t: (t.ended, t.number)):
        seconds += trial.seconds
        epochs += len(trial.history)
        if trial.state == "finished":
            best = max(best or 0.0, trial.accuracy or 0.0)
        rows.append(
            {
                "ended": len(rows) + 1,
                "trial": trial.number,
                "state": trial.state,
                "accuracy": _rounded(trial.accuracy),
                "best": _rounded(best),
                "epochs": epochs,
                "training_hours": round(seconds / 3600, 5),
            }
        )
    return rows


def cost_and_accuracy(search: Search) -> list[dict[str, Any]]:
    """Return a row per finished trial, cheapest first, and whether it is on the Pareto front."""
    _, faces = validation_of(search)
    rows: list[dict[str, Any]] = []
    best = -1.0
    for trial in sorted(search.finished(), key=lambda t: (t.mmac, -(t.accuracy or 0.0))):
        accuracy = trial.accuracy or 0.0
        rows.append(
            {
                "trial": trial.number,
                "mmac": round(trial.mmac, 4),
                "parameters": trial.parameters,
                **_with_interval(accuracy, faces),
                "pareto": accuracy > best,
            }
        )
        best = max(best, accuracy)
    return rows


def summary(search: Search) -> dict[str, Any]:
    """Return counts, times and the winner, for people and for comparisons between searches."""
    trials, done = list(search.trials.values()), search.finished()
    split, faces = validation_of(search)
    # Beside its training steps, a trial needs start-up, compilation, validation and checkpoints. If it was
    # interrupted, the time it was placed does not include all of its epochs.
    timed = uninterrupted(search)
    beside = round(sum(t.placed - t.seconds for t in timed) / len(timed), 2) if timed else None
    best: dict[str, Any] | None = None
    if done:
        found = _with_interval(done[0].accuracy, faces)
        best = {
            "trial": done[0].number,
            "accuracy": found["accuracy"],
            "interval": [found["low"], found["high"]],
            "protocol": "no test-time augmentation, last epoch, on the split that chose it",
            "epochs": len(done[0].history),
            "mmac": round(done[0].mmac, 3),
            "parameters": done[0].parameters,
            "values": done[0].values,
        }
    return {
        "space": search.space.name,
        "method": search.settings.method,
        "asha": search.settings.asha,
        "seed": search.settings.seed,
        "trials": {
            "sampled": len(trials),
            **{state: sum(t.state == state for t in trials) for state in ENDS},
            "retried": sum(len(t.lost) for t in trials),
        },
        "refused": {
            "all": len(search.refused),
            "sampled_before": sum(r["reason"] == "sampled before" for r in search.refused),
        },
        "epochs": search.epochs,
        "training_seconds": round(3600 * search.hours, 1),
        "seconds_beside_training_per_trial": beside,
        "trials_timed": len(timed),
        "split": split,
        "faces": faces,
        "best": best,
    }


def uninterrupted(search: Search) -> list[Trial]:
    """Return the ended trials that were trained in one go, so that their start-up time is known."""
    return [t for t in search.trials.values() if t.ended and t.attempts == 1 and not t.lost]


def shortfall(search: Search) -> list[str]:
    """Return why fewer trials were started than requested, a line for each reason."""
    settings = search.settings
    lines = [search.gave_up] if search.gave_up else []
    reached = [
        f"{option} {limit:g}"
        for option, limit, used in (
            ("--max-hours", settings.max_hours, search.hours),
            ("--max-epochs", settings.max_epochs, search.epochs),
        )
        if limit is not None and used >= limit
    ]
    started = sum(trial.attempts > 0 or trial.state in ENDS for trial in search.trials.values())
    if reached and started < settings.trials:
        lines.append(
            f"{settings.trials - started} of {settings.trials} trials were not started: "
            f"{' and '.join(reached)} reached; --resume accepts higher limits"
        )
    return lines


def validation_of(search: Search) -> tuple[str, int]:
    """Return the split of the accuracies and its number of faces (0 before any trial began)."""
    for trial in search.trials.values():
        path = search.trial_folder(trial.number) / RUN
        if path.is_file():
            data = json.loads(path.read_text("utf-8"))["data"]
            return str(data["validation_split"]), int(data["validation"])
    return search.space.base.data.validation_split, 0


def _with_interval(accuracy: float | None, faces: int) -> dict[str, float | str]:
    """Return an accuracy with its 95 % interval (Wilson), rounded; empty where unknown."""
    low = high = None
    if accuracy is not None and faces:
        low, high = wilson_interval(round(accuracy * faces), faces)
    return {"accuracy": _rounded(accuracy), "low": _rounded(low), "high": _rounded(high)}


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)
