"""Compares random search with TPE and ASHA at equal compute on `compact`, and looks into `study-2021`.

Three searches, each in its own folder, each resumed where it stopped if this is started again:

    python studies/search_compact.py --data fer2013.csv.gz --work runs/search --out results/search

1. random: 30 configurations of `compact` up to 20 MMAC, 5 epochs each.
2. tpe-asha: TPE with ASHA on the same space and budget, for as much training time as random search took.
3. study: 6 configurations of `study-2021` at a quarter of the width, 3 epochs each.

Small tables and pictures go to --out; runs stay in --work. The winner is trained to its end by
`ferkit train --recipe <out>/winner.toml`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ferkit.data import load_dataset
from ferkit.files import write_json, write_text
from ferkit.search import engine, plots, report
from ferkit.search.records import SETTINGS, Search, Settings, read_search
from ferkit.search.space import Space, load_space

KEPT = (report.LEADERBOARD, report.WINNER, report.SUMMARY)


class Printing(engine.Silent):
    """A line per trial that ended."""

    def changed(self, trial: Any, what: str) -> None:
        """Print it."""
        if what in ("finished", "stopped", "failed", "retried"):
            accuracy = "" if trial.accuracy is None else f" {100 * trial.accuracy:.2f} %"
            print(f"  trial {trial.number} {what}{accuracy} {trial.reason}", flush=True)


def search_or_resume(
    folder: Path, space: Space, settings: Settings, data: Any, machine: engine.Machine
) -> Search:
    """Run a search to its end, from wherever it is."""
    print(f"{folder}: {space.name}, {settings}", flush=True)
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if (folder / SETTINGS).exists():
        engine.resume(folder, data, machine=machine, watcher=Printing(), command=command)
    else:
        engine.search(space, data, folder, settings, machine=machine, watcher=Printing(), command=command)
    report.write_report(folder)
    return read_search(folder)


def training_hours(search: Search) -> float:
    """Return the hours that all trials of a search trained."""
    return sum(trial.seconds for trial in search.trials.values()) / 3600


def keep(search: Search, out: Path) -> None:
    """Copy what is worth committing."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (search.folder / name).is_file():
            shutil.copyfile(search.folder / name, out / name)
    for picture in sorted((search.folder / report.PICTURES).glob("*")):
        shutil.copyfile(picture, out / picture.name)


def comparison(random: Search, guided: Search) -> list[dict[str, Any]]:
    """Return what both spent and found, a row each."""
    rows = []
    for search in (random, guided):
        facts = report.summary(search)
        best = facts["best"] or {}
        rows.append(
            {
                "method": "tpe + ASHA" if facts["asha"] else facts["method"],
                **facts["trials"],
                "refused": facts["refused"]["all"],
                "epochs": facts["epochs"],
                "training_hours": round(training_hours(search), 3),
                "best_trial": best.get("trial", ""),
                "best_accuracy": best.get("accuracy", ""),
                "low": best.get("interval", ["", ""])[0],
                "high": best.get("interval", ["", ""])[1],
                "best_mmac": best.get("mmac", ""),
                "split": facts["split"],
            }
        )
    return rows


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="FER2013, or cartoon:N to try the study itself")
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="where the searches lie")
    parser.add_argument("--out", type=Path, default=Path("results/search"), help="where the results go")
    parser.add_argument(
        "--trials", type=int, default=30, help="of random search; TPE gets up to twice as many"
    )
    parser.add_argument("--study-trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=None)
    given = parser.parse_args()
    data = load_dataset(given.data)
    machine = engine.Machine(parallel=given.parallel)
    compact = load_space("compact", [f"epochs={given.epochs}"])

    random = search_or_resume(
        given.work / "random",
        compact,
        Settings(trials=given.trials, seed=1, max_mmac=20.0),
        data,
        machine,
    )
    guided = search_or_resume(
        given.work / "tpe-asha",
        compact,
        Settings(
            trials=2 * given.trials,
            method="tpe",
            asha=True,
            seed=2,
            max_mmac=20.0,
            max_hours=training_hours(random),
        ),
        data,
        machine,
    )
    study = search_or_resume(
        given.work / "study-2021",
        load_space("study-2021", ["model.params.width=0.25", "epochs=3"]),
        Settings(trials=given.study_trials, seed=1),
        data,
        machine,
    )

    for name, search in (("random", random), ("tpe-asha", guided), ("study-2021", study)):
        keep(search, given.out / name)
    both = {"random": random, "TPE + ASHA": guided}
    plots.draw_best_so_far(
        {name: report.best_so_far(search) for name, search in both.items()},
        report.validation_of(random)[0],
        given.out / "random-and-tpe.png",
    )
    rows = comparison(random, guided)
    report.write_table(given.out / "random-and-tpe.csv", rows)
    best = max((random, guided), key=lambda s: s.finished()[0].accuracy or 0.0)
    write_text(given.out / "winner.toml", (best.folder / report.WINNER).read_text("utf-8"))
    write_json(given.out / "machine.json", {**best.facts["machine"], "versions": best.facts["versions"]})
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
