"""``ferkit train``: a network by a recipe, with a progress bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ferkit.cli.common import DataOption, VotesOption, console, load_keras, new_app, remark

app = new_app()


@app.command()
def train(
    data: DataOption,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A shipped recipe's name (see `ferkit models`) or a TOML file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder.  [default: runs/RECIPE]")
    ] = None,
    votes: VotesOption = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with this run, by the recipe in its folder.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", help="Start from a run, a weights file, or an embedded model's training weights."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="In place of the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="In place of the recipe's.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="In place of the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="In place of the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Any other key of the recipe: model.params.dropout=0.3"),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Deterministic operations: slower, but bit for bit.")
    ] = False,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Leave out Training copies of test images.")
    ] = False,
    drop_flat: Annotated[
        bool, typer.Option("--drop-flat", help="Leave out images of one single colour.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write a TensorBoard log.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the last line.")] = False,
) -> None:
    """Train a network by a recipe.

    The run's folder gets the recipe, what made it (run.json), history.csv and .json, curves.png, a checkpoint
    per epoch and, at the end, weights.npz. Ctrl-C stops cleanly and --resume goes on.
    """
    from ferkit.errors import RecipeError
    from ferkit.weights import training_weights

    load_keras()
    from ferkit.data import load_dataset
    from ferkit.training.recipe import load_recipe
    from ferkit.training.runs import CHECKPOINT, RECIPE
    from ferkit.training.trainer import Quiet
    from ferkit.training.trainer import train as run_training

    changes = list(overrides or [])
    for key, value in (
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("optimizer.learning_rate", learning_rate),
        ("seed", seed),
    ):
        if value is not None:
            changes.append(f"{key}={value}")
    for key, on in (
        ("deterministic", deterministic),
        ("data.drop_leaks", drop_leaks),
        ("data.drop_flat", drop_flat),
    ):
        if on:
            changes.append(f"{key}=true")
    if resume is not None:
        others = [change for change in changes if not change.startswith("epochs=")]
        if recipe is not None or init is not None or out is not None or others:
            raise RecipeError(
                "--resume goes on with the run as it was: it takes neither a recipe, nor --init or --out, "
                "and no change to the recipe but --epochs"
            )
        chosen, folder = load_recipe(resume / RECIPE, changes), resume
    elif recipe is None:
        raise RecipeError("name a recipe with --recipe, or a run to go on with by --resume")
    else:
        chosen = load_recipe(recipe, changes)
        folder = out or Path("runs") / chosen.name
    dataset = load_dataset(data, votes=votes)
    start = None if init is None else (training_weights(init) or init)
    progress = Quiet() if quiet else _Progress()
    try:
        result = run_training(
            chosen,
            dataset,
            folder,
            init=start,
            resume=resume is not None,
            command=["ferkit", *sys.argv[1:]],
            watcher=progress,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        if (folder / CHECKPOINT).exists():
            with_votes = "" if votes is None else f" --votes {votes}"
            remark(f"interrupted; go on with: ferkit train --resume {folder} --data {data}{with_votes}")
        else:
            remark("interrupted in the first epoch: there is no checkpoint to go on from")
        raise
    finally:
        if isinstance(progress, _Progress):
            progress.close()
    last = result.history[-1]
    print(
        f"{folder}: {len(result.history)} epochs, {chosen.data.validation_split} "
        f"{100 * last['val_accuracy']:.2f} % (single view, last epoch)"
    )


class _Progress:
    """A bar per epoch and a line for each epoch done; lines only where stderr is no terminal."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task: Any = None
        self.epochs = 0
        self.rate = 0.0
        self.shown = (0.0, 0)

    def started(self, *, recipe: Any, faces: int, parameters: int, mmac: float, epoch: int) -> None:
        """Say what is trained."""
        self.epochs = recipe.epochs
        self.console.print(
            f"{recipe.name}: {recipe.model.name}, {parameters:,} parameters, {mmac:.1f} MMAC; "
            f"{faces:,} faces; epochs {epoch} to {recipe.epochs}"
        )
        self.first = epoch
        self.bar.start()

    def step(self, *, epoch: int, step: int, steps: int, images: int, loss: float, accuracy: float) -> None:
        """Move the bar; it spans all epochs, so that the time left is the run's."""
        import time

        now = time.perf_counter()
        if self.task is None:
            self.task = self.bar.add_task(
                "", total=self.epochs * steps, completed=(self.first - 1) * steps, figures=""
            )
        at = (epoch - 1) * steps + step
        before, done = self.shown
        if now - before > 1:
            if before:
                self.rate = (at - done) * images / (now - before)
            self.shown = (now, at)
        self.bar.update(
            self.task,
            completed=at,
            description=f"epoch {epoch}/{self.epochs}",
            figures=f"loss {loss:.4f}  accuracy {100 * accuracy:.2f} %  {self.rate:,.0f} images/s",
        )

    def epoch_done(self, row: dict[str, float]) -> None:
        """Print the epoch's row."""
        extra = f"  FER+ {100 * row['val_ferplus_accuracy']:.2f} %" if "val_ferplus_accuracy" in row else ""
        left = (self.epochs - row["epoch"]) * row["seconds"]
        self.console.print(
            f"epoch {row['epoch']:.0f}/{self.epochs}  loss {row['loss']:.4f}  "
            f"accuracy {100 * row['accuracy']:.2f} %  validation loss {row['val_loss']:.4f}  "
            f"accuracy {100 * row['val_accuracy']:.2f} %{extra}  {row['images_per_second']:,.0f} images/s  "
            f"{row['seconds']:.0f} s  about {left / 60:.0f} min left",
            soft_wrap=True,
        )

    def close(self) -> None:
        """Take the bar down."""
        self.bar.stop()
