"""``ferkit distil``: train a student on the predictions of teachers and on the labels."""

from __future__ import annotations

from typing import Annotated

import typer

from ferkit.cli.common import DataChoice, VotesOption, new_app, option
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

DEFAULT_WEIGHT = 0.7
"""The teachers' share of the loss where neither the recipe nor the command line sets one."""

app = new_app()


@app.command()
def distil(
    data: DataChoice = None,
    teacher: Annotated[
        list[str] | None,
        option(
            "--teacher -t",
            "A model file or a name of `ferkit models`; for online distillation also a run or its training "
            "weights. Several teachers are averaged.",
            metavar="MODEL",
        ),
    ] = None,
    recipe: RecipeOption = None,
    out: OutOption = None,
    votes: VotesOption = None,
    weight: Annotated[
        float | None,
        option("--weight", "The teachers' share of the loss.", f"the recipe's, or {DEFAULT_WEIGHT}"),
    ] = None,
    temperature: Annotated[
        float | None, option("--temperature", "Of teacher and student; replaces the recipe's.")
    ] = None,
    resume: ResumeOption = None,
    init: InitOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    tensorboard: TensorboardOption = True,
    quiet: QuietOption = False,
) -> None:
    """Train a student on the predictions of teachers and on the labels.

    Any recipe will do. Offline (the default), the teachers predict every training face once; the predictions
    are kept in the user's cache and in the run folder. Online (--set distil.online=true), they predict in
    every step what the student sees, augmented and mixed.
    """
    from ferkit.training.recipe import is_of_model, load_recipe

    options = {"epochs": epochs, "seed": seed, "distil.weight": weight, "distil.temperature": temperature}
    changes = recipe_changes(overrides, options)
    if resume is None:
        if not teacher:
            raise typer.BadParameter("name at least one teacher", param_hint="--teacher")
        weighted = any(change.startswith("distil.weight=") for change in changes)
        # Changes to the network may be meant for that of --init, which the recipe's need not be.
        own = [change for change in changes if not is_of_model(change)]
        if recipe is not None and not weighted and not load_recipe(recipe, own).distil.weight:
            changes.append(f"distil.weight={DEFAULT_WEIGHT}")
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
        teachers=teacher or (),
    )
