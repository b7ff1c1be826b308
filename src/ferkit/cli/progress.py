"""The progress of training as a Keras callback: a bar over all epochs, and a line for each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ferkit.cli.common import in_words, time_left
from ferkit.training.recipe import load_recipe
from ferkit.training.runs import RunFolder


class TrainingProgress(keras.callbacks.Callback):  # type: ignore[misc]
    """Show a run; where the console is no terminal, lines only.

    Attributes:
        teacher: The teacher that predicts the training faces at the moment, or None.
    """

    def __init__(self, folder: Path, console: Console, *, quiet: bool = False) -> None:
        super().__init__()
        self.folder, self.console, self.quiet = folder, console, quiet
        self.teacher: str | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            time_left(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=None, figures="")
        self.tenths = 0

    def print(self, text: str) -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True)

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002, D102
        folder = RunFolder(self.folder)
        facts, recipe = folder.read_facts(), load_recipe(folder.recipe)
        faces = facts["data"]["training"]
        self.batch_size = min(recipe.batch_size, faces)
        self.print(
            f"{recipe.name}: {recipe.model.name}, {facts['parameters']:,} parameters, {facts['mmac']:.1f} "
            f"MMAC; {faces:,} faces; epochs {facts['epochs'] + 1} to {recipe.epochs}"
        )
        precision = facts["precision"]
        self.print(
            f"mixed precision: {precision['mixed_precision']} ({precision['reason']}); "
            f"oneDNN: {precision['onednn']}"
        )
        steps = self.params["steps"]
        self.bar.reset(self.task, total=recipe.epochs * steps, completed=facts["epochs"] * steps)
        self.bar.start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        # The bar spans all epochs, so that the time left is the run's.
        task = self.bar.tasks[0]
        self.bar.update(
            self.task,
            advance=1,
            description=f"epoch {int(task.completed) // self.params['steps'] + 1}/{self.params['epochs']}",
            figures=f"loss {logs['loss']:.4f}  accuracy {100 * logs['accuracy']:.2f} %  "
            f"{self.batch_size * (task.speed or 0):,.0f} images/s",
        )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        ferplus = (
            f"  FER+ {100 * logs['val_ferplus_accuracy']:.2f} %" if "val_ferplus_accuracy" in logs else ""
        )
        left = (self.params["epochs"] - epoch - 1) * logs["seconds"]
        self.print(
            f"epoch {epoch + 1}/{self.params['epochs']}  loss {logs['loss']:.4f}  "
            f"accuracy {100 * logs['accuracy']:.2f} %  validation loss {logs['val_loss']:.4f}  "
            f"accuracy {100 * logs['val_accuracy']:.2f} %{ferplus}  "
            f"{logs['images_per_second']:,.0f} images/s  {logs['seconds']:.0f} s  "
            f"about {in_words(left)} left"
        )

    def on_teacher_batch_end(self, teacher: str, done: int, faces: int) -> None:
        """Show how many faces a teacher has predicted; a line at each tenth where there is no bar."""
        if self.teacher != teacher:
            self.teacher, self.tenths = teacher, 0
            self.bar.reset(self.task, total=faces)
            self.bar.start()
        self.bar.update(self.task, completed=done, description=f"predicting with {teacher}")
        if done == faces:
            self.teacher = None
            self.print(f"{teacher} has predicted {faces:,} faces")
        elif not self.console.is_terminal and 10 * done // faces > self.tenths:
            self.tenths = 10 * done // faces
            self.print(f"{teacher} has predicted {done:,} of {faces:,} faces")

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()
