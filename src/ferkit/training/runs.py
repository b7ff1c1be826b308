"""A run's folder: what lies in it, and how it is read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkit.core.errors import TrainingError
from ferkit.core.taxonomy import Taxonomy
from ferkit.models import build_model
from ferkit.training.history import Row
from ferkit.training.recipe import Recipe, load_recipe, parse_recipe
from ferkit.training.state import load_network_arrays, read_archive

RECIPE = "recipe.toml"
RUN = "run.json"
CHECKPOINT = "checkpoint.npz"
WEIGHTS = "weights.npz"
LOCK = ".lock"
HISTORY = "history.json"
CURVES = "curves.png"
TEMPERATURES = "temperatures.json"
TEACHER = "teacher.npz"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was read back.

    Args:
        folder: Where it lies; None for training weights outside a run.
        recipe: What it was trained by.
        facts: ``run.json``: command, versions, machine, data, seed, state.
        history: One row per epoch.
        taxonomies: The heads in order.
        input_size: Side of a face in pixels.
        arrays: The last weights, by name.
    """

    folder: Path | None
    recipe: Recipe
    facts: dict[str, Any]
    history: list[Row]
    taxonomies: tuple[Taxonomy, ...]
    input_size: int
    arrays: dict[str, Any]

    def network(self) -> Any:
        """Build the network and give it the weights."""
        network = build_model(
            self.recipe.model.name,
            {t.id: len(t) for t in self.taxonomies},
            input_size=self.input_size,
            **self.recipe.model.params,
        )
        load_network_arrays(network, tuple(t.id for t in self.taxonomies), self.arrays, str(self.folder))
        return network


def weights_after(epochs: int) -> str:
    """Return the name under which a finished run's weights stay when it goes on to more epochs."""
    weights = Path(WEIGHTS)
    return f"{weights.stem}-epoch{epochs}{weights.suffix}"


def teacher_file(number: int) -> str:
    """Return the name of the copy of a teacher's model file, from 0, where it is asked in every step."""
    return f"teacher-{number + 1}.onnx"


def weights_meta(recipe: Recipe, taxonomies: tuple[Taxonomy, ...], input_size: int) -> dict[str, Any]:
    """Return what a weights file says about itself, enough to build its network."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "taxonomies": [{"id": t.id, "labels": list(t.labels)} for t in taxonomies],
        "input_size": input_size,
    }


def load_weights(path: str | Path) -> Run:
    """Read training weights (``weights.npz`` of a run, or the ones beside an embedded model).

    Raises:
        TrainingError: If the file is missing, damaged or of another kind.
    """
    arrays, meta = read_archive(path)
    try:
        taxonomies = tuple(Taxonomy(t["id"], tuple(t["labels"])) for t in meta["taxonomies"])
        recipe = parse_recipe(meta["recipe"], str(path))
        size = int(meta["input_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} holds no training weights of ferkit: {error!r}") from error
    return Run(None, recipe, {}, [], taxonomies, size, arrays)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run's folder.

    Raises:
        TrainingError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read {path}, so the run is damaged: {error}") from error


def load_start(init: str | Path) -> Run:
    """Read weights to start from: a run's folder, or a file of training weights.

    Raises:
        TrainingError: If there are none.
    """
    if Path(init).suffix == ".onnx":
        raise TrainingError(
            f"{init} is a model file, whose graph is folded and cannot be trained on; --init takes a "
            "run's folder or its training weights (ferkit export --training-weights FILE.npz)"
        )
    return load_run(init) if Path(init).is_dir() else load_weights(init)


def load_run(folder: str | Path) -> Run:
    """Read a finished run.

    Raises:
        TrainingError: If the folder is no run, or the run has no final weights yet.
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise TrainingError(f"{folder} is no run folder: it has no {RUN}")
    facts = read_json(folder / RUN)
    if facts.get("state") != "finished" or not (folder / WEIGHTS).is_file():
        raise TrainingError(
            f"run {folder} is not finished (it is {facts.get('state')}); go on with: "
            f"ferkit train --resume {folder} and the --data and --votes that it began with"
        )
    run = load_weights(folder / WEIGHTS)
    history = read_json(folder / HISTORY)
    return Run(
        folder, load_recipe(folder / RECIPE), facts, history, run.taxonomies, run.input_size, run.arrays
    )
