"""The options and the progress that ``ferkit train`` and ``ferkit distil`` share."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkit.cli.common import command_line, console, load_faces, load_keras, option, remark

RecipeOption = Annotated[
    str | None, option("--recipe -r", "A shipped recipe's name (see `ferkit recipes`) or a TOML file.")
]
OutOption = Annotated[Path | None, option("--out -o", "The run folder.", "runs/RECIPE")]
ResumeOption = Annotated[
    Path | None, option("--resume", "Continue the run in this folder, with its own recipe and data.")
]
InitOption = Annotated[
    str | None,
    option("--init", "Start from a run, training weights, or a name of `ferkit models`."),
]
EpochsOption = Annotated[int | None, option("--epochs", "Replaces the recipe's.")]
SeedOption = Annotated[int | None, option("--seed", "Replaces the recipe's.")]
SetOption = Annotated[
    list[str] | None,
    option("--set -s", "Any other key of the recipe: model.params.dropout=0.3", metavar="KEY=VALUE"),
]
TensorboardOption = Annotated[
    bool, option("--tensorboard/--no-tensorboard", "Write a TensorBoard log.", True)
]
QuietOption = Annotated[bool, option("--quiet -q", "No progress; only the last line.")]


def recipe_changes(overrides: Sequence[str] | None, options: Mapping[str, object]) -> list[str]:
    """Return the changes to a recipe: ``--set``, then the options by the recipe's keys, None being absent."""
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*(overrides or ()), *given]


def run_recipe(
    *,
    recipe: str | None,
    changes: Sequence[str],
    data: str | None,
    votes: Path | None,
    out: Path | None,
    resume: Path | None,
    init: str | None,
    tensorboard: bool,
    quiet: bool,
    teachers: Sequence[str] = (),
    size: int | None = None,
) -> None:
    """Train by a recipe, or resume a run, and print the last accuracy; the arguments are the options.

    Raises:
        FerkitError: If the run cannot start or resume.
        KeyboardInterrupt: On Ctrl-C.
    """
    from ferkit.core.errors import RecipeError
    from ferkit.training import runs
    from ferkit.training.recipe import is_of_model, load_recipe, model_params

    params: dict[str, Any] = {}
    if resume is not None:
        others = [c for c in changes if c.partition("=")[0].strip() not in runs.RESUMABLE]
        if recipe is not None or init is not None or out is not None or others or teachers or size:
            raise RecipeError(
                "--resume continues a run as it was started: it takes no recipe, no --init, --out, --size or "
                "--teacher, and no change to the recipe but --epochs and --set precise_batch_norm=FACES"
            )
        chosen, folder = load_recipe(resume / runs.RECIPE, changes), resume
        if data is None:
            data, recorded = runs.RunFolder(resume).data_source()
            votes = votes or recorded
    elif recipe is None:
        raise RecipeError("name a recipe with --recipe, or a run to continue with --resume")
    else:
        # With --init the architecture is that of the weights, and so are the parameters that it takes.
        params = {} if init is None else model_params(changes)
        chosen = load_recipe(recipe, changes if init is None else [c for c in changes if not is_of_model(c)])
        folder = out or Path("runs") / chosen.name
    if data is None:
        raise typer.BadParameter("name the faces to train on", param_hint="--data")
    needed, by, heads = runs.needed_faces(resume, init, teachers) if size is None else (size, "", ())
    dataset = load_faces(data, needed, votes=votes, needed_by=by, heads=heads)
    load_keras()
    from ferkit.cli.progress import TrainingProgress
    from ferkit.training.trainer import train

    progress = TrainingProgress(folder, console(stderr=True), quiet=quiet)
    try:
        history = train(
            chosen,
            dataset,
            folder,
            callbacks=[progress],
            votes=votes,
            init=init,
            model_params=params,
            teachers=teachers,
            resume=resume is not None,
            command=["ferkit", *sys.argv[1:]],
            tensorboard=tensorboard,
        ).history
    except KeyboardInterrupt:
        if progress.teacher is not None:
            remark(
                f"interrupted while {progress.teacher} predicted the training faces; the same command "
                "computes the rest"
            )
        elif (folder / runs.CHECKPOINT).exists():
            remark(
                f"interrupted; continue with: {command_line(['ferkit', 'train', '--resume', str(folder)])}"
            )
        else:
            remark("interrupted in the first epoch: there is no checkpoint to resume from")
        raise
    finally:
        progress.close()
    print(
        f"{folder}: {len(history)} epochs, {chosen.data.validation_split} "
        f"{100 * history[-1]['val_accuracy']:.2f} % (single view, last epoch)"
    )
