"""What a search found: leaderboard, the winner's recipe, summary, and the numbers behind every picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkit.core.files import write_json, write_text
from ferkit.evaluation.metrics import wilson_interval
from ferkit.search.propose import importance
from ferkit.search.records import ENDS, Search, Trial, read_search
from ferkit.search.space import spell_value
from ferkit.training.recipe import Recipe, dump_recipe
from ferkit.training.runs import RUN

LEADERBOARD = "leaderboard.csv"
WINNER = "winner.toml"
SUMMARY = "summary.json"
PICTURES = "pictures"


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`write_report` found.

    Args:
        search: The folder's content.
        best: The best finished trial, or None.
        split: The split that accuracies are of; they chose the winner, so they flatter it.
        faces: Faces in that split; 0: no trial has begun.
        files: What was written, beside the summary.
        remarks: What could not be drawn, begun or found, and why.
    """

    search: Search
    best: Trial | None
    split: str
    faces: int
    files: tuple[Path, ...]
    remarks: tuple[str, ...]


def write_report(folder: str | Path) -> Report:
    """Write leaderboard, winner, summary and pictures of a search, finished or not, into its folder.

    Raises:
        SearchError: If the folder holds no search.
        OutputError: If a file cannot be written.
    """
    from ferkit.search import plots

    search = read_search(folder)
    done = search.finished()
    split, faces = validation_of(search)
    files: list[Path] = [search.folder / LEADERBOARD]
    remarks = shortfall(search)
    write_table(files[0], leaderboard(search))
    if done:
        files.append(search.folder / WINNER)
        write_text(files[1], dump_recipe(winner_recipe(search)))
    pictures = search.folder / PICTURES
    what = f"{search.space.name}, {search.settings.method}{', ASHA' if search.settings.asha else ''}"

    def table(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        write_table(pictures / f"{name}.csv", rows)
        files.extend((pictures / f"{name}.csv", pictures / f"{name}.png"))
        return pictures / f"{name}.png"

    if done:
        progress, costs = best_so_far(search), cost_and_accuracy(search)
        plots.draw_best_so_far({what: progress}, split, table("best-so-far", progress))
        plots.draw_cost(costs, f"{what}: accuracy against cost", split, table("accuracy-mmac", costs))
    else:
        remarks.append("no trial finished, so there is no winner, no curve and no cost to draw")
    if len(done) > 1:
        path = table("parallel-coordinates", [_flat(t, search) for t in done])
        plots.draw_parallel_coordinates(search, done, f"{what}: {len(done)} finished trials", split, path)
    shares = importance(search.space, done)
    if shares:
        path = table("importance", [{"parameter": k, "importance": round(v, 6)} for k, v in shares.items()])
        plots.draw_importance(
            shares, notes_on_importance(search, shares), f"{what}: {len(done)} finished trials", path
        )
    else:
        remarks.append(
            "no importance: it needs four finished trials that differ in accuracy and in a shared parameter"
        )
    write_json(search.folder / SUMMARY, summary(search))
    return Report(search, done[0] if done else None, split, faces, tuple(files), tuple(remarks))


def notes_on_importance(search: Search, shares: Mapping[str, float]) -> list[str]:
    """Return which parameters and trials the shares leave out, and why, a line each."""
    done = search.finished()
    left_out = [p.name for p in search.space.parameters if p.name not in shares]
    absent = [name for name in left_out if any(name not in trial.values for trial in done)]
    constant = [name for name in left_out if name not in absent]
    notes = ["only parameters that all these trials share"]
    notes += [f"not active in all of them: {', '.join(absent)}"] if absent else []
    notes += [f"of one value in all of them: {', '.join(constant)}"] if constant else []
    stopped = sum(trial.state == "stopped" for trial in search.trials.values())
    if stopped:
        notes.append(f"only trials that finished; the {stopped} that ASHA stopped are not among them")
    return notes


def leaderboard(search: Search) -> list[dict[str, Any]]:
    """Return a row per trial: the finished by accuracy, then those stopped early, failed, and not yet done.

    Accuracies are single view, of the last epoch done; those of trials stopped early are not comparable.
    """
    split, faces = validation_of(search)
    order = {"finished": 0, "stopped": 1, "failed": 2, "running": 3, "waiting": 3}
    ranked = sorted(
        search.trials.values(), key=lambda t: (order[t.state], -(t.accuracy or 0.0), t.mmac, t.number)
    )
    rows: list[dict[str, Any]] = []
    for trial in ranked:
        low, high = interval(trial.accuracy, faces)
        rows.append(
            {
                "rank": len(rows) + 1 if trial.state == "finished" else "",
                "trial": trial.number,
                "state": trial.state,
                "split": split,
                "accuracy": _rounded(trial.accuracy),
                "low": _rounded(low),
                "high": _rounded(high),
                "epochs": len(trial.history),
                "of": trial.epochs,
                "seconds": round(trial.seconds, 1),
                "parameters": trial.parameters,
                "mmac": round(trial.mmac, 3),
                "retries": trial.retries,
                "reason": trial.reason,
                **{p.name: spell_value(trial.values[p.name]) if p.name in trial.values else ""
                   for p in search.space.parameters},
            }
        )  # fmt: skip
    return rows


def winner_recipe(search: Search) -> Recipe:
    """Return the best finished trial as a recipe for full training, with the space's ``[winner]`` keys."""
    best = search.finished()[0]
    split, _ = validation_of(search)
    settings = search.settings
    how = f"{settings.method}{' with ASHA' if settings.asha else ''}, seed {settings.seed}"
    return search.space.winning_recipe(
        best.values,
        f"{search.space.name}-winner",
        f"Trial {best.number} of {len(search.trials)} of space {search.space.name} ({how}): "
        f"{100 * (best.accuracy or 0):.2f} % on {split}, which chose it, after {len(best.history)} epochs; "
        f"{best.mmac:.1f} MMAC.",
    )


def best_so_far(search: Search) -> list[dict[str, Any]]:
    """Return a row per trial that ended, in the order of ending, with the best finished accuracy so far."""
    ended = sorted((t for t in search.trials.values() if t.ended), key=lambda t: (t.ended, t.number))
    rows: list[dict[str, Any]] = []
    best, seconds, epochs = None, 0.0, 0
    for trial in ended:
        seconds += trial.seconds
        epochs += len(trial.history)
        if trial.state == "finished" and trial.accuracy is not None:
            best = max(best or 0.0, trial.accuracy)
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
    """Return a row per finished trial, cheapest first, saying whether none is both cheaper and better."""
    _, faces = validation_of(search)
    rows: list[dict[str, Any]] = []
    best = -1.0
    for trial in sorted(search.finished(), key=lambda t: (t.mmac, -(t.accuracy or 0.0))):
        accuracy = trial.accuracy or 0.0
        low, high = interval(accuracy, faces)
        rows.append(
            {
                "trial": trial.number,
                "mmac": round(trial.mmac, 4),
                "parameters": trial.parameters,
                "accuracy": _rounded(accuracy),
                "low": _rounded(low),
                "high": _rounded(high),
                "pareto": accuracy > best,
            }
        )
        best = max(best, accuracy)
    return rows


def summary(search: Search) -> dict[str, Any]:
    """Return counts, times and the winner, for people and for comparisons between searches."""
    trials = list(search.trials.values())
    done = search.finished()
    seconds = sum(t.seconds for t in trials)
    whole = uninterrupted(search)
    split, faces = validation_of(search)
    best = done[0] if done else None
    low, high = interval(best.accuracy if best else None, faces)
    return {
        "space": search.space.name,
        "method": search.settings.method,
        "asha": search.settings.asha,
        "seed": search.settings.seed,
        "trials": {
            "drawn": len(trials),
            **{state: sum(t.state == state for t in trials) for state in ENDS},
            "retried": sum(t.retries for t in trials),
        },
        "refused": {
            "all": len(search.refused),
            "drawn_before": sum(r.reason == "drawn before" for r in search.refused),
        },
        "epochs": sum(len(t.history) for t in trials),
        "training_seconds": round(seconds, 1),
        # What a trial takes beside its training steps: start-up, compilation, validation, checkpoints, Tune.
        # Where it began more than once, its epochs outlast the time that it held its last place.
        "seconds_beside_training_per_trial": (
            round(sum(t.busy - t.seconds for t in whole) / len(whole), 2) if whole else None
        ),
        "trials_timed": len(whole),
        "split": split,
        "faces": faces,
        "best": None
        if best is None
        else {
            "trial": best.number,
            "accuracy": _rounded(best.accuracy),
            "interval": [_rounded(low), _rounded(high)],
            "tta": "single view, last epoch, on the split that chose it",
            "epochs": len(best.history),
            "mmac": round(best.mmac, 3),
            "parameters": best.parameters,
            "values": best.values,
        },
    }


def uninterrupted(search: Search) -> list[Trial]:
    """Return the trials that ended as they began, in one go: those whose time beside training is known."""
    return [trial for trial in search.trials.values() if trial.uninterrupted]


def shortfall(search: Search) -> list[str]:
    """Return why there are fewer trials than were asked for, a line for each reason."""
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
    begun = sum(trial.starts > 0 or trial.state in ENDS for trial in search.trials.values())
    if reached and begun < settings.trials:
        lines.append(
            f"{settings.trials - begun} of {settings.trials} trials never began: {' and '.join(reached)} "
            "reached; --resume takes higher ones"
        )
    return lines


def validation_of(search: Search) -> tuple[str, int]:
    """Return the split that accuracies are of, and its number of faces (0 before any trial began)."""
    for trial in search.trials.values():
        path = search.trial_folder(trial.number) / RUN
        if path.is_file():
            data = json.loads(path.read_text("utf-8"))["data"]
            return str(data["validation_split"]), int(data["validation"])
    return search.space.base.data.validation_split, 0


def interval(accuracy: float | None, faces: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval (Wilson) of an accuracy over so many faces."""
    if accuracy is None or not faces:
        return None, None
    return wilson_interval(round(accuracy * faces), faces)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV.

    Raises:
        OutputError: If it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _flat(trial: Trial, search: Search) -> dict[str, Any]:
    values = {
        p.name: spell_value(trial.values[p.name]) if p.name in trial.values else ""
        for p in search.space.parameters
    }
    accuracy = _rounded(trial.accuracy)
    return {"trial": trial.number, **values, "mmac": round(trial.mmac, 4), "accuracy": accuracy}


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)
