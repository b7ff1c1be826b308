"""Small search spaces, and search folders as a driver would leave them, without training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from ferkit.search.sampling import Cost, CostFilter, propose
from ferkit.search.space import Space
from ferkit.search.study import Search, Settings, Trial, create_search, mark_run, read_search
from ferkit.training.recipe import Recipe, dump_recipe

TINY = """
name = "tiny"
description = "Networks of a few thousand parameters."
recipe = "seed"

[fixed]
epochs = 3
data.balance = "none"
model.params.filters = []
model.params.dense = []

[winner]
epochs = 4
augment.preset = "mirror"

[parameters.depth]
choice = [1, 2]

[parameters.filters1]
key = "model.params.filters.0"
choice = [2, 4, 8]

[parameters.filters2]
key = "model.params.filters.1"
choice = [4, 8]
when = { depth = 2 }

[parameters.dense]
key = "model.params.dense.0"
choice = [8, 16]

[parameters.rate]
key = "optimizer.learning_rate"
low = 0.0005
high = 0.02
log = true
"""


def cost_of(recipe: Recipe) -> Cost:
    """A cost that can be worked out in the head: ten parameters and one MMAC for each filter."""
    filters = sum(recipe.model.params.get("filters", [1]))
    return Cost(10 * filters, float(filters))


def write_search(
    folder: Path,
    space: Space,
    ends: Iterable[tuple[str, list[float]]],
    *,
    faces: int = 200,
    **settings: Any,
) -> Path:
    """Write a search's folder: for each trial its state and its accuracy after each epoch."""
    rows = list(ends)
    decided = Settings(**{"trials": max(len(rows), 1), "seed": 1, **settings})
    data = {"source": "s.csv", "faces": faces, "fingerprint": "f", "votes": False}
    create_search(folder, space, decided, {"data": data, "command": []})
    search = read_search(folder)
    cost_filter = CostFilter(space, decided, cost_of)
    for number, (state, accuracies) in enumerate(rows):
        trial = propose(number, cost_filter)
        search.add(trial)
        if state != "waiting":
            play(search, trial, state, accuracies, faces)
    return folder


def play(search: Search, trial: Trial, state: str, accuracies: list[float], faces: int = 200) -> None:
    """Record a trial, and its run folder, as if it had been trained to that state."""
    handle = search.study.ask()
    handle.set_user_attr("attempts", 1)
    run = search.trial_folder(trial.number)
    run.mkdir(parents=True)
    recipe = search.space.recipe(trial.values, f"{search.space.name}-{trial.number:04d}")
    (run / "recipe.toml").write_text(dump_recipe(recipe))
    history = [
        {"epoch": k, "loss": 2.0 / k, "accuracy": a, "val_loss": 2.0 / k, "val_accuracy": a, "seconds": 10.0}
        for k, a in enumerate(accuracies, start=1)
    ]
    (run / "history.json").write_text(json.dumps(history))
    data = {"validation_split": "PublicTest", "validation": faces}
    (run / "run.json").write_text(json.dumps({"state": "running", "data": data}))
    for row in history:
        handle.report(row["val_accuracy"], int(row["epoch"]))
        handle.should_prune()  # So that the pruner knows the value.
    if state == "running":
        return
    if state == "failed":
        handle.set_user_attr("reason", "the loss became nan")
    ends = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    search.study.tell(handle, accuracies[-1] if state == "finished" else None, state=ends[state])
    mark_run(run, state)
