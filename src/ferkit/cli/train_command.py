"""``ferkit train``: a network by a recipe, with a progress bar."""

from __future__ import annotations

from typing import Annotated

import typer

from ferkit.cli.common import DataOption, SizeOption, VotesOption, new_app
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
    data: DataOption,
    recipe: RecipeOption = None,
    out: OutOption = None,
    votes: VotesOption = None,
    size: SizeOption = None,
    resume: ResumeOption = None,
    init: InitOption = None,
    epochs: EpochsOption = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="In place of the recipe's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="In place of the recipe's.")
    ] = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Deterministic operations: slower, but bit for bit.")
    ] = False,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave out training faces that also stand in another split.")
    ] = False,
    drop_flat: Annotated[
        bool, typer.Option("--drop-flat", help="Leave out images of one single colour.")
    ] = False,
    tensorboard: TensorboardOption = True,
    quiet: QuietOption = False,
) -> None:
    """Train a network by a recipe.

    The run's folder gets the recipe, what made it (run.json), history.csv and .json, curves.png, a checkpoint
    per epoch and, at the end, weights.npz. Ctrl-C stops cleanly and --resume goes on.
    """
    changes = recipe_changes(
        overrides,
        {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer.learning_rate": learning_rate,
            "seed": seed,
        },
    )
    for key, on in (
        ("deterministic", deterministic),
        ("data.drop_leaks", drop_leaks),
        ("data.drop_flat", drop_flat),
    ):
        if on:
            changes.append(f"{key}=true")
    run_recipe(
        recipe=recipe,
        changes=changes,
        data=data,
        votes=votes,
        out=out,
        resume=resume,
        init=init,
        tensorboard=tensorboard,
        quiet=quiet,
        size=size,
    )
