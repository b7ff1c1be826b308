"""``ferkit train``: train a network by a recipe."""

from __future__ import annotations

from typing import Annotated

from ferkit.cli.common import DataChoice, SizeOption, VotesOption, new_app, option
from ferkit.cli.training import (
    EpochsOption,
    InitOption,
    OutOption,
    QuietOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
    TensorboardOption,
    recipe_changes,
    run_recipe,
)

app = new_app()


@app.command()
def train(
    data: DataChoice = None,
    recipe: RecipeOption = None,
    out: OutOption = None,
    votes: VotesOption = None,
    size: SizeOption = None,
    resume: ResumeOption = None,
    init: InitOption = None,
    epochs: EpochsOption = None,
    batch_size: Annotated[int | None, option("--batch-size", "Replaces the recipe's.")] = None,
    learning_rate: Annotated[float | None, option("--learning-rate", "Replaces the recipe's.")] = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    deterministic: Annotated[
        bool, option("--deterministic", "Use deterministic operations: slower, reproducible.")
    ] = False,
    drop_leaks: Annotated[
        bool, option("--drop-leaks", "Leave out training faces that are also in another split.")
    ] = False,
    drop_flat: Annotated[bool, option("--drop-flat", "Leave out images of one constant gray value.")] = False,
    tensorboard: TensorboardOption = True,
    quiet: QuietOption = False,
) -> None:
    """Train a network by a recipe.

    The run folder gets the recipe, run.json (what was used), history.csv and .json, curves.png, a checkpoint
    per epoch and, at the end, weights.npz. Ctrl-C stops the run, and --resume continues it.
    """
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "seed": seed,
        "deterministic": "true" if deterministic else None,
        "data.drop_leaks": "true" if drop_leaks else None,
        "data.drop_flat": "true" if drop_flat else None,
    }
    run_recipe(
        recipe=recipe,
        changes=recipe_changes(overrides, options),
        data=data,
        votes=votes,
        out=out,
        resume=resume,
        init=init,
        tensorboard=tensorboard,
        quiet=quiet,
        size=size,
    )
