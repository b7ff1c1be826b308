"""Run folders: the files of a training run, who may write them, and how they are read back."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ferkit.core.errors import TrainingError
from ferkit.core.files import output_errors, write_json, write_text
from ferkit.core.locks import folder_lock
from ferkit.core.modelfile import read_model, resolve_model
from ferkit.core.taxonomy import Taxonomy
from ferkit.models import build_model
from ferkit.training.history import Row
from ferkit.training.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from ferkit.training.state import load_network_arrays, read_archive, write_archive
from ferkit.weights import find_model, training_weights

logger = logging.getLogger("ferkit.training")

RECIPE = "recipe.toml"
RUN = "run.json"
CHECKPOINT = "checkpoint.npz"
WEIGHTS = "weights.npz"
HISTORY = "history.json"
CURVES = "curves.png"
TEMPERATURES = "temperatures.json"
PREDICTIONS = "teacher.npz"

RESUMABLE = ("epochs", "precise_batch_norm")
"""Keys of the recipe that may change when a run is resumed: they do not affect the epochs that are done."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, or training weights outside a run, as read from disk.

    Args:
        folder: The run folder; None for training weights outside a run.
        recipe: The recipe that it was trained by.
        facts: ``run.json``: command, versions, machine, data, seed, state.
        history: One row per epoch.
        taxonomies: The heads in order.
        input_size: Side of a face in pixels.
        arrays: The final weights, by name.
        temperatures: Of each head, by taxonomy id; empty before the first export.
    """

    folder: Path | None
    recipe: Recipe
    facts: dict[str, Any]
    history: list[Row]
    taxonomies: tuple[Taxonomy, ...]
    input_size: int
    arrays: dict[str, Any]
    temperatures: dict[str, float] = field(default_factory=dict)

    def network(self, dtype: str = "float32") -> Any:
        """Build the Keras network with its weights.

        Args:
            dtype: Keras dtype policy, such as ``mixed_bfloat16``.

        Returns:
            A ``keras.Model``: float32 ``[N, S, S, 1]``, gray 0..255, to a dict of logits float32 ``[N, K]``
            by taxonomy id.
        """
        importlib.import_module("ferkit.training.backend")  # Keras with ferkit's settings
        network = build_model(
            self.recipe.model.name,
            {t.id: len(t) for t in self.taxonomies},
            input_size=self.input_size,
            dtype=dtype,
            **self.recipe.model.params,
        )
        load_network_arrays(network, tuple(t.id for t in self.taxonomies), self.arrays, str(self.folder))
        return network

    def meta(self) -> dict[str, Any]:
        """Return the metadata of a file of these weights."""
        return weights_meta(self.recipe, self.taxonomies, self.input_size, self.temperatures)


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe, self.checkpoint = self.path / RECIPE, self.path / CHECKPOINT
        self.weights, self.predictions = self.path / WEIGHTS, self.path / PREDICTIONS

    def check_new(self) -> None:
        """Raise TrainingError if the folder holds a run."""
        if self.checkpoint.exists() or self.weights.exists():
            raise TrainingError(
                f"{self.path} holds a run already; continue it with --resume, or name another --out"
            )

    @contextlib.contextmanager
    def run_lock(self) -> Iterator[None]:
        """Keep other processes from training into the folder; the lock ends with the process.

        Raises:
            TrainingError: If another process holds it.
            OutputError: If the folder cannot be written.
        """
        busy = f"another process trains in {self.path}; wait for it to end, or name another --out"
        with folder_lock(self.path, TrainingError(busy)):
            yield

    def read_facts(self) -> dict[str, Any]:
        """Return ``run.json``; raise TrainingError if it is missing or damaged."""
        facts: dict[str, Any] = read_json(self.path / RUN)
        return facts

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write ``run.json``."""
        write_json(self.path / RUN, facts)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write ``recipe.toml``."""
        write_text(self.recipe, dump_recipe(recipe))

    def data_source(self) -> tuple[str, Path | None]:
        """Return the data and the votes of the run; raise TrainingError if they are not recorded."""
        inputs = self.read_facts().get("inputs")
        if inputs is None:
            raise TrainingError(f"{self.path / RUN} does not record where the data is; name it with --data")
        return inputs["data"], None if inputs["votes"] is None else Path(inputs["votes"])

    def is_complete(self, recipe: Recipe) -> bool:
        """Tell whether the run is finished by that recipe, with all its files."""
        return (
            self.read_facts().get("state") == "finished"
            and self.weights.exists()
            and (self.path / HISTORY).exists()
            and load_recipe(self.recipe) == recipe
        )

    def check_resumable(
        self, meta: Mapping[str, Any], recipe: Recipe, data: Mapping[str, Any], *, has_votes: bool
    ) -> None:
        """Raise TrainingError if recipe or data differ from the run's, or more epochs are done already.

        ``meta`` is the metadata of the checkpoint, ``data`` the facts of the data to resume with.
        """
        begun = parse_recipe(meta.get("recipe", {}), str(self.checkpoint))
        if begun.model_copy(update={key: getattr(recipe, key) for key in RESUMABLE}) != recipe:
            raise TrainingError(
                f"{self.checkpoint} belongs to another recipe; when a run is resumed, only "
                f"{' and '.join(RESUMABLE)} may change"
            )
        done = len(meta["history"])
        if recipe.epochs < done:
            raise TrainingError(
                f"{self.checkpoint} has {done} epochs behind it; --epochs {recipe.epochs} cannot undo them"
            )
        before = self.read_facts().get("data", {})
        if meta.get("fingerprint") != data["fingerprint"]:
            if before.get("faces") == data["faces"]:
                raise TrainingError(
                    f"{self.path} was started {'without' if has_votes else 'with'} FER+ votes (--votes); "
                    "resume it the same way"
                )
            raise TrainingError(f"{self.path} was trained on other data: the fingerprints differ")
        if before.get("training", data["training"]) != data["training"]:
            raise TrainingError(
                f"{self.path} was trained on {before['training']} faces, and the recipe's filters leave "
                f"{data['training']} now; resume it with the version of ferkit that started it"
            )

    def set_aside_weights(self, epochs: int) -> None:
        """Rename the weights of a finished run that is resumed, to ``weights-epoch<epochs>.npz``.

        Its temperatures are removed: they belong to those weights, and the next export fits them again.
        """
        kept = self.weights.with_stem(f"{self.weights.stem}-epoch{epochs}")
        with output_errors(self.path):
            (self.path / TEMPERATURES).unlink(missing_ok=True)
            if self.weights.exists():
                self.weights.replace(kept)
                logger.warning("%s was finished; its weights are kept as %s", self.path, kept.name)

    def teacher_weights(self) -> list[Path]:
        """Return the copies of the teachers' training weights, in order; raise TrainingError if absent."""
        found = list(itertools.takewhile(Path.exists, map(self._teacher_file, itertools.count(1))))
        if not found:
            raise TrainingError(f"there is no {self._teacher_file(1)}, which the run needs to be resumed")
        return found

    def write_teacher_weights(self, teachers: Sequence[Run]) -> None:
        """Write a copy of the teachers' training weights, so that a resumed run needs no teacher."""
        for number, teacher in enumerate(teachers, 1):
            write_archive(self._teacher_file(number), teacher.arrays, teacher.meta())

    def remove_teachers(self) -> None:
        """Remove predictions and copies of teachers that an earlier start without a checkpoint left."""
        with output_errors(self.path):
            for path in (self.predictions, *self.path.glob(self._teacher_file("*").name)):
                path.unlink(missing_ok=True)

    def _teacher_file(self, number: int | str) -> Path:
        return self.path / f"teacher-{number}.weights.npz"


def weights_meta(
    recipe: Recipe,
    taxonomies: tuple[Taxonomy, ...],
    input_size: int,
    temperatures: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the metadata of a weights file: what is needed to build its network and to calibrate it."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "taxonomies": [{"id": t.id, "labels": list(t.labels)} for t in taxonomies],
        "input_size": input_size,
        "temperatures": dict(temperatures or {}),
    }


def load_weights(path: str | Path) -> Run:
    """Read a file of training weights: ``weights.npz`` of a run, or one of ``zoo/``.

    Raises:
        TrainingError: If the file is missing, damaged or of another kind.
    """
    arrays, meta = read_archive(path)
    try:
        taxonomies = tuple(Taxonomy(t["id"], tuple(t["labels"])) for t in meta["taxonomies"])
        recipe = parse_recipe(meta["recipe"], str(path))
        size, temperatures = int(meta["input_size"]), dict(meta.get("temperatures", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} holds no training weights of ferkit: {error!r}") from error
    return Run(None, recipe, {}, [], taxonomies, size, arrays, temperatures)


def read_json(path: Path) -> Any:
    """Return a JSON file of a run folder; raise TrainingError if it is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read {path}, so the run is damaged: {error}") from error


def read_temperatures(folder: Path) -> dict[str, float]:
    """Return the temperatures that the run's last export fitted, by taxonomy id; empty before the first."""
    path = folder / TEMPERATURES
    return dict(read_json(path)) if path.exists() else {}


def load_training_weights(source: str | Path) -> Run:
    """Read the weights that ``--init`` and online distillation start from.

    Args:
        source: A run folder, a file of training weights, or the name of a model whose training weights lie
            in ``zoo/``.

    Raises:
        TrainingError: If there are none.
    """
    path = Path(source)
    if not path.exists():
        if (found := training_weights(str(source))) is not None:
            return load_weights(found)
        _check_is_no_name(str(source))
    if path.suffix == ".onnx":
        raise TrainingError(
            f"{path} is a model file, whose graph is folded and cannot be trained; name a run folder or "
            "training weights (ferkit export --training-weights FILE.npz)"
        )
    return load_run(path) if path.is_dir() else load_weights(path)


def _check_is_no_name(source: str) -> None:
    """Raise TrainingError if a source, which does not exist, is or looks like a model's name."""
    file = find_model(source)
    if file is not None and (members := read_model(file)[1].members):
        raise TrainingError(
            f"{source} is an ensemble, which has no training weights; name one of its members: "
            f"{', '.join(member.name for member in members)}"
        )
    if Path(source).name == source and not Path(source).suffix:
        raise TrainingError(
            f"there is no {source}: neither a run folder nor training weights. Those of ferkit's models are "
            "NAME.weights.npz in the folder zoo/ of its repository: name that file"
        )


def needed_faces(
    resume: Path | None, init: str | Path | None, teachers: Sequence[str | Path]
) -> tuple[int | None, str, tuple[Taxonomy, ...]]:
    """Return the size of faces that a run needs, what needs it, and its label sets; None where any will do.

    Raises:
        FerkitError: If the run, the weights or the first teacher cannot be read.
    """
    if resume is not None and (resume / CHECKPOINT).exists():
        begun = load_weights(resume / CHECKPOINT)
        return begun.input_size, f"run {resume}", begun.taxonomies
    if init is not None:
        weights = load_training_weights(init)
        return weights.input_size, str(init), weights.taxonomies
    if teachers:
        teacher = Path(teachers[0])
        if teacher.is_dir() or teacher.suffix == ".npz":
            weights = load_training_weights(teacher)
            return weights.input_size, f"teacher {teacher}", weights.taxonomies
        info = read_model(resolve_model(teachers[0]))[1]
        return info.input_size, f"teacher {teacher}", tuple(head.taxonomy for head in info.taxonomies)
    return None, "", ()


def load_run(folder: str | Path) -> Run:
    """Read a finished run.

    Example:
        ``network = load_run("runs/small").network()``

    Raises:
        TrainingError: If the folder is no run, or the run has no final weights yet.
    """
    folder = Path(folder)
    if not (folder / RUN).is_file():
        raise TrainingError(f"{folder} is no run folder: it has no {RUN}")
    facts = RunFolder(folder).read_facts()
    if facts.get("state") != "finished" or not (folder / WEIGHTS).is_file():
        raise TrainingError(
            f"run {folder} is not finished (it is {facts.get('state')}); continue it with: "
            f"ferkit train --resume {folder}"
        )
    run, history = load_weights(folder / WEIGHTS), read_json(folder / HISTORY)
    recipe, temperatures = load_recipe(folder / RECIPE), read_temperatures(folder)
    return Run(folder, recipe, facts, history, run.taxonomies, run.input_size, run.arrays, temperatures)
