"""Compares random search with TPE and ASHA at equal compute on `compact`, and samples `study-2021`.

    python studies/search_compact.py --data fer2013.csv.gz --work runs/search --out results/search

runs one stage after the other. A stage that was killed continues when the command is run again; `--stage`
selects stages:

random      30 configurations of `compact` up to 20 MMAC, 4 epochs each.
tpe         TPE with ASHA on the same space: as many trials as fit into the epochs that random search took.
study-2021  5 members of `study-2021` at a quarter of their filters and units, 2 epochs each.
winner      The best of the first two, fully trained by `ferkit train`, measured by `ferkit evaluate`.
study-best  The network that won the 2021 study, at an eighth of its width, for 12 epochs.
engine      The overhead of a search (benchmarks/bench_search.py).
report      Tables, pictures and README.md in --out, from the stages that were run. Trains nothing.

Runs stay in --work. PrivateTest is not read. `--data cartoon:700 --trials 4` tries the script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ferkit.core.files import replacing, write_csv, write_json, write_text
from ferkit.data import SPLITS, FaceDataset, load_data
from ferkit.search import driver, report
from ferkit.search.cluster import Machine
from ferkit.search.space import Parameter, Space, format_values, load_space
from ferkit.search.study import JOURNAL, Search, Settings, Trial, read_search
from ferkit.training.recipe import load_recipe

KEPT = (report.LEADERBOARD, report.WINNER, report.SUMMARY)
MAX_MMAC = 20.0
CLEAR = 0.05
"""Tendencies with a smaller p are named; of a dozen, one is that small by chance in every other search."""

ROOT = Path(__file__).resolve().parent.parent


class Progress(driver.Callback):
    """Prints a line per trial that ended, with the time left."""

    def __init__(self) -> None:
        self.search: Search | None = None
        self.slots = 1

    def on_search_begin(self, search: Search, slots: int) -> None:
        """Keep the search, which stays up to date."""
        self.search, self.slots = search, slots

    def on_trial_end(self, trial: Trial) -> None:
        """Print the trial."""
        assert self.search is not None
        accuracy = "" if trial.accuracy is None else f" {100 * trial.accuracy:.2f} %"
        left = self.left(self.search)
        print(f"  trial {trial.number} {trial.state}{accuracy} {trial.reason}; {left}", flush=True)

    def left(self, search: Search) -> str:
        """Return the progress of the search."""
        trials = list(search.trials.values())
        rows = [row for t in trials for row in t.history]
        each = sum(row["seconds"] for row in rows) / max(len(rows), 1)
        if search.settings.max_epochs is not None:
            wanted = search.settings.max_epochs
        else:
            wanted = search.settings.trials * max(t.epochs for t in trials)
        minutes = max(wanted - len(rows), 0) * each / self.slots / 60
        return f"{len(rows)} of {wanted} epochs, about {minutes:.0f} min of training left in this stage"


@dataclass(frozen=True, slots=True)
class Study:
    """The options of the command line."""

    data: str
    work: Path
    out: Path
    trials: int
    epochs: int
    share: float
    study_trials: int
    study_epochs: int
    winner_epochs: int | None
    best_epochs: int
    best_width: float
    note: str
    machine: Machine

    def folder(self, name: str) -> Path:
        """Return the folder of a search; a share of the data has its own folders."""
        return self.work / (name if self.share == 1 else f"{name}-{self.share:g}")

    def faces(self) -> FaceDataset:
        """Return the data: all of PublicTest, and the share of Training."""
        return thinned(load_data(self.data), self.share)


def thinned(data: FaceDataset, share: float, seed: int = 1) -> FaceDataset:
    """Keep a stratified share of Training, and all of the other splits."""
    if share == 1:
        return data
    keep = np.asarray(data.split) != SPLITS.index("Training")
    rng = np.random.default_rng(seed)
    for label in range(len(data.taxonomy)):
        rows = np.flatnonzero(~keep & (np.asarray(data.labels) == label))
        keep[rng.permutation(rows)[: round(share * len(rows))]] = True
    return data.select(keep)


def search_or_resume(study: Study, name: str, space: Space, settings: Settings) -> Search:
    """Run a search, or continue it."""
    folder = study.folder(name)
    print(f"{name}: {space.name}, {settings}", flush=True)
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    how: dict[str, Any] = {"machine": study.machine, "callbacks": [Progress()], "command": command}
    if (folder / JOURNAL).exists():
        begun = read_search(folder)
        if begun.settings != settings or begun.space.overrides != space.overrides:
            raise SystemExit(
                f"error: {folder} was begun with other settings ({begun.settings}, "
                f"{', '.join(begun.space.overrides)}); give those, or another --work"
            )
        driver.resume(folder, study.faces(), **how)
    else:
        driver.search(space, study.faces(), folder, settings, **how)
    report.write_report(folder)
    return read_search(folder)


def compact(study: Study) -> Space:
    """Return the space that both methods search."""
    return load_space("compact", [f"epochs={study.epochs}"])


def search_random(study: Study) -> None:
    """Search at random."""
    search_or_resume(
        study, "random", compact(study), Settings(trials=study.trials, seed=1, max_mmac=MAX_MMAC)
    )


def search_guided(study: Study) -> None:
    """Search by TPE and ASHA with the epochs that random search was given."""
    if not (study.folder("random") / JOURNAL).exists():
        raise SystemExit("error: TPE gets the epochs of random search; run the stage random first")
    settings = Settings(
        # With ASHA most trials end after one epoch, so max_epochs ends the search.
        trials=study.epochs * study.trials,
        method="tpe",
        asha=True,
        seed=2,
        max_mmac=MAX_MMAC,
        max_epochs=study.epochs * study.trials,
    )
    search_or_resume(study, "tpe-asha", compact(study), settings)


def search_study(study: Study) -> None:
    """Train a handful of the 2021 study's networks."""
    space = load_space("study-2021", ["model.params.width=0.25", f"epochs={study.study_epochs}"])
    search_or_resume(study, "study-2021", space, Settings(trials=study.study_trials, seed=1))


def best_search(study: Study) -> Search:
    """Return the search on `compact` that found the best network."""
    folders = [study.folder(name) for name in ("random", "tpe-asha")]
    found = [read_search(folder) for folder in folders if (folder / JOURNAL).exists()]
    if len(found) < 2 or not all(search.finished() for search in found):
        raise SystemExit("error: there is no winner yet; run the stages random and tpe first")
    return max(found, key=lambda search: search.finished()[0].accuracy or 0.0)


def train_winner(study: Study) -> None:
    """Train the winner fully and evaluate it."""
    best = best_search(study)
    recipe = study.work / report.WINNER
    if not (study.work / "winner" / "run.json").exists():  # A winner that is being trained stays the winner.
        shutil.copyfile(best.folder / report.WINNER, recipe)
    more = [] if study.winner_epochs is None else ["--epochs", str(study.winner_epochs)]
    train_and_measure(study, "winner", ["--recipe", str(recipe), *more])


def train_best_of_study(study: Study) -> None:
    """Train the 2021 study's best network at a share of its width."""
    width = f"model.params.width={study.best_width:g}"
    recipe = ["--recipe", "random-search-2021", "--set", width, "--epochs", str(study.best_epochs)]
    train_and_measure(study, "study-best", recipe)


def train_and_measure(study: Study, name: str, recipe: Sequence[str]) -> None:
    """Train with all cores by `ferkit train`, or continue the run, and evaluate it on PublicTest."""
    run = study.work / name
    facts = json.loads((run / "run.json").read_text("utf-8")) if (run / "run.json").exists() else {}
    if facts.get("state") != "finished":
        if (run / "checkpoint.npz").exists():
            ferkit("train", "--data", study.data, "--resume", str(run), "--quiet")
        else:
            shutil.rmtree(run, ignore_errors=True)
            ferkit("train", "--data", study.data, *recipe, "--out", str(run), "--quiet")
    ferkit(
        "evaluate", str(run), "--data", study.data, "--tta", "all", "--drop-leaks",
        "--out", str(study.out / name),
    )  # fmt: skip
    for file in ("recipe.toml", "history.csv", "curves.png"):
        shutil.copyfile(run / file, study.out / name / file)


def ferkit(*arguments: str) -> None:
    """Run a command of ferkit in another process, so that this one does not load Keras."""
    print("ferkit", " ".join(arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "ferkit", *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def measure_engine(study: Study) -> None:
    """Measure the overhead of a search."""
    study.work.mkdir(parents=True, exist_ok=True)
    found = []
    for parallel in (1, 2):
        command = [sys.executable, str(ROOT / "benchmarks" / "bench_search.py"), "--parallel", str(parallel)]
        print(f"benchmarks/bench_search.py --parallel {parallel}", flush=True)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    write_json(study.work / "engine.json", found)


def keep(search: Search, out: Path) -> None:
    """Copy the files that are committed."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (search.folder / name).is_file():
            shutil.copyfile(search.folder / name, out / name)
    for picture in sorted((search.folder / report.PICTURES).glob("*")):
        shutil.copyfile(picture, out / picture.name)


def training_faces(search: Search) -> int:
    """Return the number of training faces of a trial."""
    for trial in search.trials.values():
        path = search.trial_folder(trial.number) / "run.json"
        if path.is_file():
            return int(json.loads(path.read_text("utf-8"))["data"]["training"])
    return 0


def comparison(searches: Mapping[str, Search]) -> list[dict[str, Any]]:
    """Return compute and result of each search, a row each."""
    rows = []
    for name, search in searches.items():
        facts = report.summary(search)
        best = facts["best"] or {}
        trials = list(search.trials.values())
        whole = report.uninterrupted(search)
        done = [t.accuracy or 0.0 for t in search.finished()]
        faces = training_faces(search)
        rows.append(
            {
                "search": name,
                **{key: facts["trials"][key] for key in ("finished", "stopped", "failed", "retried")},
                "refused": facts["refused"]["all"],
                "epochs": facts["epochs"],
                "million_faces": round(facts["epochs"] * faces / 1e6, 3),
                "forward_tmac": round(sum(len(t.history) * t.mmac for t in trials) * faces / 1e6, 1),
                "training_hours": round(sum(t.seconds for t in trials) / 3600, 3),
                "trials_timed": facts["trials_timed"],
                "timed_place_hours": round(sum(t.placed for t in whole) / 3600, 3),
                "timed_training_hours": round(sum(t.seconds for t in whole) / 3600, 3),
                "beside_training_s": facts["seconds_beside_training_per_trial"],
                "median_finished": round(float(np.median(done)), 6) if done else "",
                "best_trial": best.get("trial", ""),
                "best_accuracy": best.get("accuracy", ""),
                "low": best.get("interval", ["", ""])[0],
                "high": best.get("interval", ["", ""])[1],
                "best_mmac": best.get("mmac", ""),
                "split": facts["split"],
            }
        )
    return rows


def stops(search: Search) -> str:
    """Return how many trials ASHA stopped after which epoch, as text."""
    count = Counter(len(t.history) for t in search.trials.values() if t.state == "stopped")
    after = [f"{count[epoch]} after epoch {epoch}" for epoch in sorted(count)]
    return f"ASHA stopped {sum(count.values())} of {len(search.trials)} trials" + (
        f": {', '.join(after)}" if after else ""
    )


def tendencies_text(slopes: Sequence[Mapping[str, Any]]) -> str:
    """Return the significant correlations as text."""
    clear = [row for row in slopes if row["p_value"] < CLEAR]
    words = [
        f"{word} {', '.join(some)}"
        for word, sign in (("rose with", 1), ("fell with", -1))
        if (some := [row["what"] for row in clear if sign * row["spearman"] > 0])
    ]
    rest = ", ".join(row["what"] for row in slopes if row not in clear)
    return (f"Accuracy {' and '.join(words)} (p < {CLEAR})." if words else "") + (
        f" Its correlation with the others ({rest}) is not significant." if rest else ""
    )


def both_leaderboards(searches: Mapping[str, Search]) -> list[dict[str, Any]]:
    """Return all trials of several searches over one space, ranked together."""
    rows = [{"search": name, **row} for name, s in searches.items() for row in report.leaderboard(s)]
    order = {"finished": 0, "stopped": 1, "failed": 2}
    rows.sort(key=lambda row: (order.get(row["state"], 3), -(row["accuracy"] or 0.0), row["mmac"]))
    for place, row in enumerate(rows, start=1):
        row["rank"] = place if row["state"] == "finished" else ""
    return rows


def agreement(search: Search) -> list[dict[str, Any]]:
    """Return the rank correlation of the accuracy after each epoch with that after the last (Spearman)."""
    from scipy.stats import spearmanr

    done = search.finished()
    if len(done) < 4:
        return []
    last = [t.accuracy or 0.0 for t in done]
    rows = []
    for epoch in range(1, len(done[0].history)):
        early = [t.history[epoch - 1]["val_accuracy"] for t in done]
        best = max(range(len(done)), key=early.__getitem__)
        rows.append(
            {
                "epoch": epoch,
                "spearman": round(float(spearmanr(early, last).statistic), 3),
                "trials": len(done),
                "final_rank_of_the_leader": 1 + sum(x > last[best] for x in last),
            }
        )
    return rows


def is_ordered(parameter: Parameter) -> bool:
    """Whether the values of a parameter are numbers in ascending order."""
    values = parameter.extremes()
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and all(a < b for a, b in itertools.pairwise(values))


def tendencies(search: Search) -> list[dict[str, Any]]:
    """Return the rank correlation (Spearman) of accuracy with ordered parameters, in finished trials."""
    from scipy.stats import spearmanr

    done = search.finished()
    if len(done) < 4:
        return []
    last = [t.accuracy or 0.0 for t in done]
    columns: dict[str, list[float]] = {
        "MMAC": [t.mmac for t in done],
        "weights": [float(t.parameters) for t in done],
    }
    for p in search.space.parameters:
        if is_ordered(p) and all(p.name in t.values for t in done):
            columns[p.name] = [float(t.values[p.name]) for t in done]
    rows = []
    for name, values in columns.items():
        if len(set(values)) > 1:
            found = spearmanr(values, last)
            rows.append(
                {
                    "what": name,
                    "spearman": round(float(found.statistic), 3),
                    "p_value": round(float(found.pvalue), 4),
                }
            )
    return sorted(rows, key=lambda row: -abs(row["spearman"]))


def draw_best_so_far(searches: Mapping[str, Sequence[Mapping[str, Any]]], split: str, path: Path) -> None:
    """Draw the best finished accuracy of several searches over trials and over hours of training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2, sharey=True)
    for colour, (name, rows) in enumerate(searches.items()):
        for panel, key in zip(panels, ("ended", "training_hours"), strict=True):
            for state, marker in (("finished", "o"), ("stopped", "x")):
                some = [row for row in rows if row["state"] == state and row["accuracy"] != ""]
                accuracies = [100 * row["accuracy"] for row in some]
                label = f"{name}: {state}" if some else None
                panel.plot(
                    [row[key] for row in some], accuracies, marker, color=f"C{colour}", alpha=0.4, label=label
                )
            known = [row for row in rows if row["best"] != ""]
            best = [100 * row["best"] for row in known]
            label = f"{name}: best so far"
            panel.step([row[key] for row in known], best, where="post", color=f"C{colour}", label=label)
            panel.grid(alpha=0.3)
    panels[0].set(xlabel="trials that ended", ylabel=f"accuracy on {split} in %")
    panels[1].set_xlabel("hours of training, all trials together")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def write_results(study: Study) -> None:
    """Write tables, pictures and the page that explains them."""
    out = study.out
    names = [n for n in ("random", "tpe-asha", "study-2021") if (study.folder(n) / JOURNAL).exists()]
    for name in names:
        report.write_report(study.folder(name))
    found = {name: read_search(study.folder(name)) for name in names}
    for name, search in found.items():
        keep(search, out / name)
    on_compact = {name: search for name, search in found.items() if name != "study-2021"}
    if not any(search.finished() for search in on_compact.values()):
        raise SystemExit("error: nothing to report; run the stages random and tpe first")
    rows = comparison(found)
    write_csv(out / "comparison.csv", rows, list(rows[0]))
    board = both_leaderboards(on_compact)
    write_csv(out / report.LEADERBOARD, board, list(board[0]))
    split, faces = report.validation_of(next(iter(found.values())))
    draw_best_so_far(
        {name: report.best_so_far(search) for name, search in on_compact.items()},
        split,
        out / "random-and-tpe.png",
    )
    curves = [{"search": n, **row} for n, s in on_compact.items() for row in report.best_so_far(s)]
    write_csv(out / "random-and-tpe.csv", curves, list(curves[0]))
    orders, slopes = agreement(on_compact["random"]), tendencies(on_compact["random"])
    if orders:
        write_csv(out / "short-trials.csv", orders, list(orders[0]))
        write_csv(out / "tendencies.csv", slopes, list(slopes[0]))
    engine_facts = []
    if (study.work / "engine.json").exists():
        engine_facts = json.loads((study.work / "engine.json").read_text("utf-8"))
        write_json(out / "engine.json", engine_facts)
    best = max(on_compact.values(), key=lambda s: s.finished()[0].accuracy or 0.0 if s.finished() else 0.0)
    if (best.folder / report.WINNER).exists():
        write_text(out / report.WINNER, (best.folder / report.WINNER).read_text("utf-8"))
    write_text(out / "README.md", page(study, found, rows, orders, slopes, engine_facts, (split, faces)))
    print(out / "README.md")


def page(
    study: Study,
    found: Mapping[str, Search],
    rows: Sequence[Mapping[str, Any]],
    orders: Sequence[Mapping[str, Any]],
    slopes: Sequence[Mapping[str, Any]],
    engine_facts: Sequence[Mapping[str, Any]],
    validation: tuple[str, int],
) -> str:
    """Return the page about the results."""
    on_compact = {name: search for name, search in found.items() if name != "study-2021"}
    folders = ", ".join(f"[{name}]({name}/)" for name in found)
    compact_rows = [row for row in rows if row["search"] in on_compact]
    judged = sum(row["finished"] for row in compact_rows)
    spent = " and ".join(f"{row['search']} {row['epochs']}" for row in compact_rows)
    by_asha = [f"{stops(s)}." for s in on_compact.values() if s.settings.asha]
    best = max(on_compact.values(), key=lambda s: s.finished()[0].accuracy or 0.0 if s.finished() else 0.0)
    to_the_end = study.winner_epochs or report.winner_recipe(best).epochs
    parts = [
        "# Random search and TPE + ASHA on `compact`\n",
        f"    {command_of(study)}\n",
        conditions(study, next(iter(on_compact.values())), judged, *validation),
        "## At equal compute\n",
        prose(f"""
            Equal compute means about the same number of epochs on the same faces: TPE starts trials until
            they have done as many epochs in total as random search, and finishes those it has started. Epochs
            done: {spent}. {" ".join(by_asha)} An epoch of a larger network costs more, so the table also
            lists multiply-accumulates (faces x MMAC, forward; training takes about three times as many) and
            hours. ASHA stops poor trials, so its median of the finished trials cannot be compared with that
            of random search.
        """),
        compute_table(compact_rows),
        "![best so far](random-and-tpe.png)\n",
        prose(f"""
            Refused: configurations above the limit of {MAX_MMAC:g} MMAC, or sampled before; they are counted
            and not trained.
        """),
    ]
    parts += [
        "## The best networks of `compact`\n",
        best_table(on_compact),
        prose(f"""
            All trials: [leaderboard.csv](leaderboard.csv). Each search has its leaderboard, summary and
            pictures with their data in a folder of its own: {folders}.
        """),
        *[f"![accuracy against cost, {name}]({name}/accuracy-mmac.png)\n" for name in on_compact],
        "## Bias of short trials\n",
        prose(f"""
            A trial here has {study.epochs} epochs. It ranks networks by how fast they learn, not by their
            final accuracy. This is expected to favour high learning rates, many steps (small batches) and
            weak augmentation; the space therefore trains with mirror images only, and the winner's full
            training adds stronger augmentation. ASHA compares trials after their first epochs, which is
            expected to increase the bias. Whether the ranking is the same after {to_the_end} epochs was not
            measured: only the winner was trained so long.
        """),
    ]
    if orders:
        parts += [
            prose(f"""
                Rank correlation of the accuracy after an early epoch with that after the last, over the
                {orders[0]["trials"]} finished trials of random search:
            """),
            table(
                ("after epoch", "Spearman with the last epoch", "final rank of the leader then"),
                [(r["epoch"], f"{r['spearman']:.2f}", r["final_rank_of_the_leader"]) for r in orders],
            ),
            prose(f"""
                Rank correlation of the accuracy with each ordered parameter, over the same trials (Spearman,
                one parameter at a time; of a dozen rows, one reaches p = {CLEAR} by chance in every other
                search). {tendencies_text(slopes)}
            """),
            table(
                ("what", "Spearman", "p"),
                [(r["what"], f"{r['spearman']:+.2f}", f"{r['p_value']:.3f}") for r in slopes],
            ),
        ]
    if "study-2021" in found:
        parts += [
            "## Members of `study-2021`\n",
            prose(f"""
                The 2021 study's space, at a quarter of its filters and units (model.params.width=0.25), with
                {study.study_epochs} epoch{"" if study.study_epochs == 1 else "s"} per trial. This shows the
                cost of such networks, not their final accuracy, which cannot be compared with the others.
            """),
            best_table({"study-2021": found["study-2021"]}),
        ]
    for name, title in (
        ("winner", "The winner, fully trained"),
        ("study-best", "The 2021 study's best network"),
    ):
        text = outcome(study, name)
        if text:
            parts += [f"## {title}\n", text]
    return "\n".join([*parts, "## Overhead of the search\n", engine_table(rows, engine_facts)])


def command_of(study: Study) -> str:
    """Return the command that gave these results; of the data, its name only."""
    options = f"--data {Path(study.data).name}"
    for name, given, usual in (
        ("trials", study.trials, 30),
        ("epochs", study.epochs, 4),
        ("share", study.share, 1.0),
        ("study-trials", study.study_trials, 5),
        ("study-epochs", study.study_epochs, 2),
        ("winner-epochs", study.winner_epochs, None),
        ("best-epochs", study.best_epochs, 12),
        ("best-width", study.best_width, 0.125),
    ):
        options += f" --{name} {given}" if given != usual else ""
    return f"python studies/search_compact.py {options}"


def conditions(study: Study, search: Search, judged: int, split: str, faces: int) -> str:
    """Return data, machine and uncertainty of the numbers."""
    part = "all" if study.share == 1 else f"a fixed, stratified {study.share:.0%} share,"
    versions = search.facts["versions"]
    error = 100 * (0.25 / max(faces, 1)) ** 0.5
    # The mean of the largest of so many independent normal numbers (Blom 1958).
    excess = NormalDist().inv_cdf((judged - 0.375) / (judged + 0.25))
    return prose(f"""
        Data: {search.facts["data"]["source"]}, {part} {training_faces(search):,} faces of Training; every
        accuracy is of {split} ({faces:,} faces), last epoch, no test-time augmentation, one seed. This split
            chose the winners, so their accuracy is optimistic: its standard error is up to {error:.1f}
            points, and the best of {judged} equal networks would exceed their true accuracy by at most about
            {excess:.1f} standard errors (by less, since all are evaluated on the same faces). PrivateTest was
            not opened.
        Machine: {search.facts["machine"]["cores"]} cores, one for each trial; ferkit {versions["ferkit"]},
        Ray {versions["ray"]}, Optuna {versions["optuna"]}, Keras {versions["keras"]}. {study.note}
    """)


def compute_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of compute and results."""
    head = (
        "search", "finished", "stopped early", "failed", "refused", "epochs", "million faces", "forward TMAC",
        "training h", "best %", "95 %", "its MMAC", "median of the finished %",
    )  # fmt: skip
    keys = ("search", "finished", "stopped", "failed", "refused", "epochs", "million_faces", "forward_tmac")
    return table(
        head,
        [
            (
                *(row[key] for key in (*keys, "training_hours")),
                percent(row["best_accuracy"]),
                f"{percent(row['low'])}-{percent(row['high'])}",
                row["best_mmac"],
                percent(row["median_finished"]),
            )
            for row in rows
        ],
    )


def best_table(searches: Mapping[str, Search]) -> str:
    """Return the ten best finished trials."""
    return table(
        ("rank", "search", "trial", "accuracy %", "95 %", "MMAC", "weights", "configuration"),
        [
            (
                row["rank"],
                row["search"],
                row["trial"],
                percent(row["accuracy"]),
                f"{percent(row['low'])}-{percent(row['high'])}",
                f"{row['mmac']:.1f}",
                f"{row['parameters']:,}",
                format_values(searches[row["search"]].trials[row["trial"]].values),
            )
            for row in both_leaderboards(searches)[:10]
            if row["rank"]
        ],
    )


def outcome(study: Study, name: str) -> str:
    """Return the section about a fully trained run, or an empty text."""
    run, measured = study.work / name, study.out / name / "report.txt"
    if not measured.exists():
        return ""
    facts = json.loads((run / "run.json").read_text("utf-8"))
    history = json.loads((run / "history.json").read_text("utf-8"))
    recipe = load_recipe(study.out / name / "recipe.toml")
    about = f"{recipe.description} [Recipe]({name}/recipe.toml)."
    if name == "study-best":
        about = f"""
            At full width it costs 3.86 GMAC per image, an estimated 45 minutes per epoch on two cores. It was
            trained at {study.best_width:g} of its filters and units (model.params.width) and for few epochs.
            This is a smaller network; its accuracy is not that of the study. [Recipe]({name}/recipe.toml).
        """
    last = history[-1]
    numbers = f"""
        {facts["parameters"]:,} weights, {facts["mmac"]:.1f} MMAC, {len(history)} epochs,
        {facts["seconds"] / 3600:.2f} h of training on {facts["machine"]["cores"]} cores; after the last epoch
        {100 * last["val_accuracy"]:.2f} % single view, {100 * last["accuracy"]:.2f} % in training.
    """
    text = measured.read_text("utf-8").strip()
    return "\n".join([prose(f"{about} {numbers}"), f"```\n{text}\n```\n", f"![curves]({name}/curves.png)\n"])


def engine_table(rows: Sequence[Mapping[str, Any]], engine_facts: Sequence[Mapping[str, Any]]) -> str:
    """Return the overhead of the searches and of the benchmark."""
    hours = ("timed_place_hours", "timed_training_hours")
    lines = [
        prose("""
            Time that a trial occupied its worker beside its training steps: start-up of the worker,
            compilation, validation, checkpoints, curves, and Ray. Trials that were interrupted or lost are
            excluded:
        """),
        table(
            ("search", "trials in one go", "seconds each beside training", "place hours", "training hours"),
            [(r["search"], *(r[key] for key in ("trials_timed", "beside_training_s", *hours))) for r in rows],
        ),
    ]
    if not engine_facts:
        return "\n".join([*lines, "`benchmarks/bench_search.py` was not run.\n"])
    times = (
        "seconds_until_the_first_trial_trains",
        "seconds_between_two_trials_of_a_worker",
        "seconds_beside_training_per_trial",
        "seconds_from_the_last_trial_to_the_end",
    )
    kinds = sorted({kind for facts in engine_facts for kind in facts["memory_mib"]})
    lines += [
        "With tiny networks (`benchmarks/bench_search.py`):\n",
        table(
            ("trials at a time", *(str(facts["parallel"]) for facts in engine_facts)),
            [
                *((what.replace("_", " "), *(facts[what] for facts in engine_facts)) for what in times),
                *(
                    (f"{kind}, MiB at most (processes)", *(memory(facts, kind) for facts in engine_facts))
                    for kind in kinds
                ),
            ],
        ),
        "Memory: proportional set size, summed over the processes of a role.\n",
    ]
    return "\n".join(lines)


def prose(text: str) -> str:
    """Return a paragraph in one line."""
    return " ".join(text.split()) + "\n"


def memory(facts: Mapping[str, Any], kind: str) -> str:
    """Return the peak of a kind of process."""
    found = facts["memory_mib"].get(kind)
    return "" if found is None else f"{found['at_most']} ({found['processes']})"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def percent(value: Any) -> str:
    """Return a share in per cent, or an empty text."""
    return "" if value in ("", None) else f"{100 * float(value):.2f}"


STAGES: dict[str, Callable[[Study], None]] = {
    "random": search_random,
    "tpe": search_guided,
    "study-2021": search_study,
    "winner": train_winner,
    "study-best": train_best_of_study,
    "engine": measure_engine,
    "report": write_results,
}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="FER2013, or cartoon:N to try the study itself")
    parser.add_argument("--work", type=Path, default=Path("runs/search"), help="folder of the searches")
    parser.add_argument("--out", type=Path, default=Path("results/search"), help="folder of the results")
    parser.add_argument(
        "--stage", choices=STAGES, action="append", help="run this stage only; may be repeated"
    )
    parser.add_argument("--trials", type=int, default=30, help="of random search")
    parser.add_argument("--epochs", type=int, default=4, help="of a trial on `compact`")
    parser.add_argument("--share", type=float, default=1.0, help="of Training, stratified")
    parser.add_argument("--study-trials", type=int, default=5)
    parser.add_argument("--study-epochs", type=int, default=2)
    parser.add_argument("--winner-epochs", type=int, default=None, help="in place of the space's 40")
    parser.add_argument("--best-epochs", type=int, default=12, help="of the 2021 study's best network")
    parser.add_argument("--best-width", type=float, default=0.125, help="of it, as a share of its filters")
    parser.add_argument("--note", default="", help="a sentence for the report")
    parser.add_argument("--parallel", type=int, default=None, help="trials at a time, with one core each")
    given = vars(parser.parse_args())
    stages = given.pop("stage") or list(STAGES)
    machine = Machine(parallel=given.pop("parallel"))
    study = Study(**given, machine=machine)
    if not 0 < study.share <= 1:
        parser.error(f"--share lies above 0 and is 1 at most. Received: {study.share}")
    for stage in stages:
        began = time.monotonic()
        print(f"== {stage}", flush=True)
        STAGES[stage](study)
        print(f"== {stage}: {(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
