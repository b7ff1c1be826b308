"""What the commands that train share: their options, the run itself, and the progress that it shows."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferkit.cli.common import command_line, console, data_options, load_faces, load_keras, remark

if TYPE_CHECKING:
    from ferkit.core.taxonomy import Taxonomy

RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="A shipped recipe's name (see `ferkit models`) or a TOML file."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="The run's folder.  [default: runs/RECIPE]")
]
ResumeOption = Annotated[
    Path | None, typer.Option("--resume", help="Go on with this run, by the recipe in its folder.")
]
InitOption = Annotated[
    str | None,
    typer.Option("--init", help="Start from a run, a weights file, or an embedded model's training weights."),
]
EpochsOption = Annotated[int | None, typer.Option("--epochs", help="In place of the recipe's.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="In place of the recipe's.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Any other key of the recipe: model.params.dropout=0.3"),
]
TensorboardOption = Annotated[bool, typer.Option(help="Write a TensorBoard log.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the last line.")]


def recipe_changes(overrides: Sequence[str] | None, replaced: Mapping[str, object]) -> list[str]:
    """Return the changes to a recipe: those of ``--set``, then the options that name a key and were given."""
    given = [f"{key}={value}" for key, value in replaced.items() if value is not None]
    return [*(overrides or ()), *given]


def run_recipe(
    *,
    recipe: str | None,
    changes: Sequence[str],
    data: str,
    votes: Path | None,
    out: Path | None,
    resume: Path | None,
    init: str | None,
    tensorboard: bool,
    quiet: bool,
    teachers: Sequence[str] = (),
    size: int | None = None,
) -> None:
    """Train by a recipe, or go on with a run, and print the last accuracy.

    Args:
        recipe: A name or a file; None only with ``resume``.
        changes: ``key=value`` for the recipe.
        data: As ``--data``.
        votes: As ``--votes``.
        out: The run's folder, or None for ``runs/`` and the recipe's name.
        resume: The run to go on with.
        init: Weights to start from.
        tensorboard: Whether to write a TensorBoard log.
        quiet: Whether to show no progress.
        teachers: What the recipe distils from.
        size: As ``--size``; None takes that of the run, of the weights to start from, or of the teacher.

    Raises:
        FerkitError: If the run cannot start or go on.
        KeyboardInterrupt: On Ctrl-C.
    """
    from ferkit.core.errors import RecipeError

    load_keras()
    from ferkit.training.recipe import is_of_model, load_recipe, model_params
    from ferkit.training.runs import CHECKPOINT, RECIPE
    from ferkit.training.trainer import train

    if resume is not None:
        allowed = ("epochs", "precise_batch_norm")
        others = [change for change in changes if change.partition("=")[0].strip() not in allowed]
        if recipe is not None or init is not None or out is not None or others or teachers or size:
            raise RecipeError(
                "--resume goes on with the run as it was: it takes neither a recipe, nor --init, --out, "
                "--size or --teacher, and no change to the recipe but --epochs and --set "
                "precise_batch_norm=FACES"
            )
        chosen, folder = load_recipe(resume / RECIPE, changes), resume
        given = {}
    elif recipe is None:
        raise RecipeError("name a recipe with --recipe, or a run to go on with by --resume")
    else:
        # The network of given weights is not the recipe's, and takes other parameters.
        given = {} if init is None else model_params(changes)
        own = changes if init is None else [c for c in changes if not is_of_model(c)]
        chosen = load_recipe(recipe, own)
        folder = out or Path("runs") / chosen.name
    start = None if init is None else _start(init)
    needed, by, heads = _needed(resume, init, start, teachers)
    if size is not None:
        needed, by = size, ""
    dataset = load_faces(data, needed, votes=votes, needed_by=by, heads=heads)
    progress = Silent() if quiet else Progress()
    try:
        result = train(
            chosen,
            dataset,
            folder,
            init=start,
            model_params=given,
            teachers=teachers,
            resume=resume is not None,
            command=["ferkit", *sys.argv[1:]],
            watcher=progress,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        if progress.asked is not None:
            remark(
                f"interrupted while {progress.asked} answered; its answers so far are kept, and the same "
                "command asks the rest"
            )
        elif (folder / CHECKPOINT).exists():
            again = ["ferkit", "train", "--resume", str(folder), *data_options(data, votes)]
            remark(f"interrupted; go on with: {command_line(again)}")
        else:
            remark("interrupted in the first epoch: there is no checkpoint to go on from")
        raise
    finally:
        if isinstance(progress, Progress):
            progress.close()
    last = result.history[-1]
    print(
        f"{folder}: {len(result.history)} epochs, {chosen.data.validation_split} "
        f"{100 * last['val_accuracy']:.2f} % (single view, last epoch)"
    )


class Silent:
    """Says nothing, and knows which teacher is being asked."""

    def __init__(self) -> None:
        self.asked: str | None = None

    def started(self, **_: Any) -> None:
        """Say nothing."""

    def step(self, **_: Any) -> None:
        """Say nothing."""

    def epoch_done(self, row: dict[str, float]) -> None:
        """Say nothing."""

    def asking(self, *, teacher: str, done: int, faces: int) -> None:
        """Remember the teacher until it has answered."""
        self.asked = teacher if done < faces else None


class Progress:
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
        self.asked: str | None = None
        self.answers: Any = None
        self.tenth = 0
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

    def asking(self, *, teacher: str, done: int, faces: int) -> None:
        """Show how far a teacher has come; a line at each tenth where stderr is no terminal."""
        if self.asked != teacher:
            self.asked, self.tenth = teacher, 0
            self.answers = self.bar.add_task("", total=faces, figures="")
            self.bar.start()
        self.bar.update(self.answers, completed=done, description=f"asking {teacher}")
        if done == faces:
            self.bar.remove_task(self.answers)
            self.asked = None
            self.console.print(f"{teacher} has answered for {faces:,} faces")
        elif not self.console.is_terminal and 10 * done // faces > self.tenth:
            self.tenth = 10 * done // faces
            self.console.print(f"{teacher} has answered for {done:,} of {faces:,} faces")

    def close(self) -> None:
        """Take the bar down."""
        self.bar.stop()


def _needed(
    resume: Path | None, init: str | None, start: str | Path | None, teachers: Sequence[str]
) -> tuple[int | None, str, tuple[Taxonomy, ...]]:
    """Return which size of faces is needed, what needs it, and its heads; nothing where any faces will do."""
    from ferkit.core.modelfile import read_model, resolve_model
    from ferkit.training.runs import CHECKPOINT, load_start, load_weights

    if resume is not None and (resume / CHECKPOINT).exists():
        begun = load_weights(resume / CHECKPOINT)
        return begun.input_size, f"run {resume}", begun.taxonomies
    if start is not None:
        weights = load_start(start)
        return weights.input_size, str(init), weights.taxonomies
    if teachers:
        info = read_model(resolve_model(teachers[0]))[1]
        return info.input_size, f"teacher {teachers[0]}", tuple(head.taxonomy for head in info.taxonomies)
    return None, "", ()


def _start(init: str) -> str | Path:
    """Return where the weights lie that ``--init`` names."""
    from ferkit.core.errors import TrainingError
    from ferkit.weights import embedded_models, training_weights

    found = training_weights(init)
    if found is None and init in embedded_models() and not Path(init).exists():
        have = [name for name in embedded_models() if training_weights(name) is not None]
        raise TrainingError(
            f"{init} comes without training weights; --init takes {', '.join(have) or 'no embedded model'}, "
            "a run's folder, or a file of training weights"
        )
    return found or init
