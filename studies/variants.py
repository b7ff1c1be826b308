"""Variants of a recipe, each trained once: shared by the studies of training."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkit.cli.common import load_keras
from ferkit.core import files
from ferkit.core.errors import TrainingError
from ferkit.core.modelfile import resolve_model
from ferkit.training.recipe import Recipe, load_recipe
from ferkit.training.runs import load_training_weights
from ferkit.training.state import digest_arrays

History = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One change to a recipe.

    Args:
        name: Its folder's name.
        what: What differs, for the table.
        epochs: How many it is trained for.
        changes: ``key=value`` for the recipe.
        teachers: The shipped models that it distils from.
    """

    name: str
    what: str
    epochs: int
    changes: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()


def train_variant(
    variant: Variant,
    recipe: str,
    data: str,
    folder: Path,
    *,
    votes: Path | None = None,
    init: str | None = None,
    study: str,
) -> None:
    """Train or resume a variant, from the weights ``init``; another run in its folder is an error."""
    if is_finished(variant, recipe, folder):
        return
    load_keras()
    from ferkit.data import load_data
    from ferkit.training.trainer import train

    chosen = recipe_of(variant, recipe)
    resume = (folder / "checkpoint.npz").exists()
    print(f"{variant.name}: {variant.epochs} epochs in {folder}", flush=True)
    train(
        chosen,
        load_data(data, votes=votes),
        folder,
        resume=resume,
        teachers=() if resume else variant.teachers,
        init=None if resume else init,
        command=["python", study],
        tensorboard=False,
    )


def recipe_of(variant: Variant, recipe: str) -> Recipe:
    """Return the recipe of a variant."""
    return load_recipe(recipe, [*variant.changes, f"epochs={variant.epochs}"])


def digest_of_variant(variant: Variant, recipe: str) -> str:
    """Return 12 characters of the SHA-256 of a variant's recipe.

    Its name and keys at their defaults are left out, so that the digest survives a new key.
    """
    values = recipe_of(variant, recipe).model_dump(
        mode="json", exclude={"name", "description"}, exclude_defaults=True
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_teachers(variant: Variant) -> str:
    """Return 12 characters of each teacher's digest; empty if there are none."""
    return " ".join(digest[:12] for digest in _digests_of_teachers(variant))


def _digests_of_teachers(variant: Variant) -> list[str]:
    """Return the digests of a variant's teachers as ``run.json`` records them."""
    if "distil.online=true" in variant.changes:
        return [digest_arrays(load_training_weights(name).arrays) for name in variant.teachers]
    return [hashlib.sha256(resolve_model(name).read_bytes()).hexdigest() for name in variant.teachers]


def is_finished(variant: Variant, recipe: str, folder: Path) -> bool:
    """Return whether the folder holds the variant, trained to its end.

    Raises:
        TrainingError: If it holds a run of another recipe or of other teachers.
    """
    if not (folder / "recipe.toml").exists():
        return False
    held = load_recipe(folder / "recipe.toml")
    wanted = recipe_of(variant, recipe)
    names = {"name": wanted.name, "description": wanted.description}
    longer = held.model_copy(update={"epochs": wanted.epochs, **names})
    if longer != wanted or (held.schedule.name == "cosine" and held.epochs != wanted.epochs):
        raise TrainingError(
            f"{folder} was trained by another recipe than the study's; remove it or name other --runs"
        )
    models = json.loads((folder / "run.json").read_text("utf-8")).get("teacher", {}).get("models", [])
    if [model["sha256"] for model in models] != _digests_of_teachers(variant):
        raise TrainingError(f"{folder} has another teacher; remove it or name other --runs")
    return epochs_done(folder) >= variant.epochs


def epochs_done(folder: Path) -> int:
    """Return the number of epochs that a run has finished."""
    history = folder / "history.json"
    return len(json.loads(history.read_text("utf-8"))) if history.exists() else 0


def read_run(folder: Path) -> tuple[History, dict[str, Any]]:
    """Return a run's history and its ``run.json``."""
    history = json.loads((folder / "history.json").read_text("utf-8"))
    return history, json.loads((folder / "run.json").read_text("utf-8"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV, numbers as numbers; none if the file is absent."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(stream)]


def _value(key: str, text: str) -> Any:
    if key in ("variant", "what", "recipe", "faces", "teachers"):
        return text
    try:
        return int(text)
    except ValueError:
        return float(text) if text else ""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV."""
    files.write_csv(path, rows, list(rows[0]))


def draw_histories(path: Path, histories: Mapping[str, History]) -> None:
    """Draw accuracy and loss on PublicTest over the epochs, a line for each variant."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2)
    styles = [(f"C{k % 10}", "-" if k < 10 else "--") for k in range(len(histories))]
    for panel, key, label, factor in (
        (panels[0], "val_accuracy", "PublicTest accuracy in %", 100),
        (panels[1], "val_loss", "PublicTest cross-entropy", 1),
    ):
        for (name, history), (colour, line) in zip(histories.items(), styles, strict=True):
            panel.plot(
                [r["epoch"] for r in history],
                [factor * r[key] for r in history],
                color=colour,
                linestyle=line,
                marker="o",
                markersize=3,
                label=name,
            )
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
