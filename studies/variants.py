"""What the studies of training share: variants of a recipe, trained once and told in one table."""

from __future__ import annotations

import csv
import hashlib
import io
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

History = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One change to a recipe.

    Args:
        name: Its folder's name.
        what: What differs, for people.
        epochs: How many it is trained for.
        changes: ``key=value`` for the recipe.
        teachers: What it distils from.
    """

    name: str
    what: str
    epochs: int
    changes: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()


def train_variant(
    variant: Variant, recipe: str, data: str, folder: Path, *, votes: Path | None = None, study: str
) -> None:
    """Train a variant as far as it has to go, from where it stands; another run in its folder is an error."""
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
        command=["python", study],
        tensorboard=False,
    )


def recipe_of(variant: Variant, recipe: str) -> Recipe:
    """Return the recipe that a variant is trained by."""
    return load_recipe(recipe, [*variant.changes, f"epochs={variant.epochs}"])


def digest_of_variant(variant: Variant, recipe: str) -> str:
    """Return what a variant's figures hang on beside its teachers, as 12 characters: recipe and epochs.

    What a recipe is called, and keys that stand at their defaults, do not count: a row outlives a new key.
    """
    values = recipe_of(variant, recipe).model_dump(
        mode="json", exclude={"name", "description"}, exclude_defaults=True
    )
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_teachers(variant: Variant) -> str:
    """Return what a variant's teachers are, as 12 characters for each; nothing if it has none."""
    return " ".join(digest_of_model(name)[:12] for name in variant.teachers)


def is_finished(variant: Variant, recipe: str, folder: Path) -> bool:
    """Return whether the folder holds the variant, trained to its end.

    Raises:
        TrainingError: If what it holds was trained by another recipe or another teacher.
    """
    if not (folder / "recipe.toml").exists():
        return False
    held = load_recipe(folder / "recipe.toml")
    wanted = recipe_of(variant, recipe)
    # What a recipe is called does not touch what it trains.
    told = {"name": wanted.name, "description": wanted.description}
    longer = held.model_copy(update={"epochs": wanted.epochs, **told})
    if longer != wanted or (held.schedule.name == "cosine" and held.epochs != wanted.epochs):
        raise TrainingError(
            f"{folder} was trained by another recipe than the study's; remove it or name other --runs"
        )
    taught = json.loads((folder / "run.json").read_text("utf-8")).get("teacher", {}).get("models", [])
    if [model["sha256"] for model in taught] != [digest_of_model(name) for name in variant.teachers]:
        raise TrainingError(f"{folder} was taught by another teacher; remove it or name other --runs")
    return epochs_done(folder) >= variant.epochs


def digest_of_model(name: str) -> str:
    """Return the SHA-256 (hex) of a model file, as a run records its teacher's."""
    return hashlib.sha256(resolve_model(name).read_bytes()).hexdigest()


def epochs_done(folder: Path) -> int:
    """Return how many epochs a run has behind it."""
    history = folder / "history.json"
    return len(json.loads(history.read_text("utf-8"))) if history.exists() else 0


def read_run(folder: Path) -> tuple[History, dict[str, Any]]:
    """Return a run's history and its facts."""
    history = json.loads((folder / "history.json").read_text("utf-8"))
    return history, json.loads((folder / "run.json").read_text("utf-8"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV, numbers as numbers; none where there is no such file."""
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
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


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
