"""``ferkit distil``: a student that learns from a teacher's answers as well as from the labels."""

from __future__ import annotations

from typing import Annotated

import typer

from ferkit.cli.common import DataOption, VotesOption, new_app
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
"""The teacher's share of the loss where neither the recipe nor the command line says one."""

app = new_app()


@app.command()
def distil(
    data: DataOption,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            help="A model file (an ensemble's is one) or an embedded model; several are averaged.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeOption = None,
    out: OutOption = None,
    votes: VotesOption = None,
    weight: Annotated[
        float | None,
        typer.Option(
            "--weight", help=f"The teacher's share of the loss.  [default: the recipe's, or {DEFAULT_WEIGHT}]"
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of teacher and student, in place of the recipe's.")
    ] = None,
    resume: ResumeOption = None,
    init: InitOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    tensorboard: TensorboardOption = True,
    quiet: QuietOption = False,
) -> None:
    """Train a student on a teacher's answers and the labels.

    The teacher is asked once about every training face; its answers are kept in the user's cache and in the
    run's folder, which is that of any other run. With --set distil.every_step=true it is asked in every step
    about what the student sees. Any recipe will do.
    """
    from ferkit.training.recipe import is_of_model, load_recipe

    changes = recipe_changes(
        overrides,
        {"epochs": epochs, "seed": seed, "distil.weight": weight, "distil.temperature": temperature},
    )
    if resume is None:
        if not teacher:
            raise typer.BadParameter("a student needs one", param_hint="--teacher")
        said = weight is not None or any(change.startswith("distil.weight=") for change in changes)
        # What is said of the network may be meant for that of --init, which the recipe's need not be.
        own = [change for change in changes if not is_of_model(change)]
        if recipe is not None and not said and not load_recipe(recipe, own).distil.weight:
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
