"""Small search spaces, and search folders as an engine would leave them, without training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ferkit.search.propose import Cost
from ferkit.search.records import JOURNAL, Journal, Settings, create_search, trial_folder
from ferkit.search.space import Space
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
    filters = sum(recipe.model.params["filters"])
    return Cost(10 * filters, float(filters))


def write_search(
    folder: Path, space: Space, trials: Iterable[tuple[str, list[float]]], *, faces: int = 200, seed: int = 1
) -> Path:
    """Write a search's folder: for each trial its state and its accuracy after each epoch."""
    rows = list(trials)
    create_search(
        folder, space, Settings(trials=len(rows), seed=seed), {"data": {"fingerprint": "f"}, "command": []}
    )
    journal = Journal(folder / JOURNAL)
    for number, (state, accuracies) in enumerate(rows, start=1):
        values = space.draw(np.random.default_rng([seed, number]))
        recipe = space.recipe(values, f"{space.name}-{number:04d}")
        cost = cost_of(recipe)
        journal.write("drawn", trial=number, values=values, parameters=cost.parameters, mmac=cost.mmac)
        if state == "waiting":
            continue
        run = trial_folder(folder, number)
        run.mkdir(parents=True)
        (run / "recipe.toml").write_text(dump_recipe(recipe))
        history = [
            {
                "epoch": k,
                "loss": 2.0 / k,
                "accuracy": a,
                "val_loss": 2.0 / k,
                "val_accuracy": a,
                "seconds": 10.0,
            }
            for k, a in enumerate(accuracies, start=1)
        ]
        (run / "history.json").write_text(json.dumps(history))
        data = {"validation_split": "PublicTest", "validation": faces}
        (run / "run.json").write_text(json.dumps({"state": state, "data": data}))
        journal.write("started", trial=number, host="here", pid=1)
        if state != "running":
            reason = "the loss became nan" if state == "failed" else ""
            journal.write(state, trial=number, reason=reason, busy=10.0 * len(accuracies) + 2)
    journal.close()
    return folder
