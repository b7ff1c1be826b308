"""One training run: from a recipe and faces to a folder with weights, history and curves."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from ferkit import __version__
from ferkit.core.errors import FerkitError, OutputError, TrainingError
from ferkit.core.runtime import usable_cores
from ferkit.data import FaceDataset, check_training_labels, faces_digest, load_data
from ferkit.data.duplicates import flat_rows, image_keys, leaking_rows
from ferkit.models import build_model, count_macs
from ferkit.training import runs, state
from ferkit.training.backend import choose_precision_here, keras
from ferkit.training.batches import Batches, input_pipeline
from ferkit.training.callbacks import EpochSetup, RunWriter, StopOnNonFinite, Validation, is_finished
from ferkit.training.distil import OnlineTeachers, TeacherPredictions, predict_offline
from ferkit.training.history import Row
from ferkit.training.memory import explaining_memory
from ferkit.training.network import TrainingModel, resize_network, teacher_key
from ferkit.training.optimize import make_optimizer
from ferkit.training.precision import onednn_setting, processor_name
from ferkit.training.recipe import ModelPart, Recipe, load_recipe
from ferkit.training.runs import Run, RunFolder
from ferkit.training.targets import Head, group_means, heads_of, label_frequencies, weighted_targets

if TYPE_CHECKING:
    from keras.callbacks import Callback

logger = logging.getLogger("ferkit.training")

Teachers = OnlineTeachers | TeacherPredictions


@dataclass(frozen=True, slots=True)
class Result:
    """What a run ended with: its folder, and one row per epoch."""

    folder: Path
    history: list[Row]


@dataclass(frozen=True, slots=True)
class Setup:
    """A network compiled with its training step, and the faces that it is trained and validated on."""

    recipe: Recipe
    training: FaceDataset
    validation: FaceDataset
    heads: tuple[Head, ...]
    network: Any
    model: TrainingModel
    batches: Batches
    teachers: Teachers | None

    @property
    def head_ids(self) -> tuple[str, ...]:
        """The taxonomy ids of the heads."""
        return tuple(head.taxonomy.id for head in self.heads)


def set_up(
    recipe: Recipe,
    dataset: FaceDataset,
    get_teachers: Callable[[FaceDataset, tuple[Head, ...]], Teachers] | None = None,
    precision: str | None = None,
) -> Setup:
    """Build the network and everything around it.

    ``get_teachers`` returns the teachers for the training faces and the heads. It is called last, since
    predictions may take hours, and everything that can be refused is refused before.

    Raises:
        TrainingError: If recipe and data do not go together.
    """
    data = recipe.data
    check_training_labels(dataset, data.train_split)
    training = dataset
    if data.drop_leaks:
        training = training.select(~leaking_rows(training, data.train_split))
    if data.drop_flat:
        training = training.select(~flat_rows(training))
    training = training.of_split(data.train_split)
    validation = dataset.of_split(data.validation_split)
    heads = heads_of(recipe, dataset.taxonomy, dataset.votes is not None)
    sizes = recipe.progressive.sizes
    if any(size >= dataset.size for size in sizes) or (sizes and recipe.model.params.get("view_size")):
        raise TrainingError(
            f"progressive.sizes {list(sizes)} must lie below the faces' {dataset.size} pixels, and cannot be "
            "combined with a view_size"
        )
    policy = _dtype_policy(precision or choose_precision_here(recipe.mixed_precision)[0])
    keras.utils.set_random_seed(recipe.seed)
    network = build_model(
        recipe.model.name,
        {head.taxonomy.id: len(head.taxonomy) for head in heads},
        input_size=dataset.size,
        dtype=policy,
        **recipe.model.params,
    )
    for size in sizes:
        resize_network(network, size)
    if recipe.freeze_body:
        for layer in network.layers:
            layer.trainable = layer.name.startswith("logits_")
    targets = weighted_targets(training, heads, data.balance)
    if data.average_duplicates:
        keys = image_keys(training.images)
        targets = {head: group_means(rows, keys) for head, rows in targets.items()}
    frequencies = {head: label_frequencies(rows) for head, rows in targets.items()}
    teachers = None if get_teachers is None else get_teachers(training, heads)
    if isinstance(teachers, TeacherPredictions):
        for head, predicted in teachers.targets(recipe.distil.temperature).items():
            # The weight of a face applies to its label and to the teachers' prediction of it. A face without
            # FER+ votes still has a prediction.
            weight = targets[head].sum(axis=1, keepdims=True) if head == dataset.taxonomy.id else 1
            targets[teacher_key(head)] = np.asarray(predicted * weight, np.float32)
    batches = Batches(recipe, training, targets)
    if not len(batches):
        raise TrainingError(f"{dataset.source}: no face to train on after the recipe's filters")
    model = TrainingModel(
        network,
        recipe,
        {head.taxonomy.id: head.weight for head in heads},
        () if teachers is None else teachers.heads,
        teachers if isinstance(teachers, OnlineTeachers) else None,
        dataset.taxonomy.id,
        frequencies,
        dtype=policy,
    )
    model.compile(optimizer=make_optimizer(recipe, len(batches)))
    # In float16 this is Keras' wrapper that scales the loss, whose state belongs to the checkpoint too.
    model.optimizer.build(network.trainable_variables)
    return Setup(recipe, training, validation, heads, network, model, batches, teachers)


@explaining_memory()
def train(
    recipe: Recipe | str | Path,
    data: FaceDataset | str | Path,
    out: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    votes: str | Path | None = None,
    init: str | Path | None = None,
    model_params: Mapping[str, Any] | None = None,
    teachers: Sequence[str | Path] = (),
    resume: bool = False,
    command: Sequence[str] = (),
    tensorboard: bool = True,
) -> Result:
    """Train a network.

    Example:
        ``history = train("small", "fer2013.csv.gz", "runs/small", votes="fer2013new.csv").history``

    Args:
        recipe: A recipe, the name of a shipped one, or a TOML file.
        data: Faces with the recipe's training and validation splits, or where to load them from.
        out: The run folder; it must not hold a run unless ``resume``.
        callbacks: Keras callbacks, called after those of the run. ``on_epoch_end(epoch, logs)`` sees the row
            of the history: ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``, the same with the prefix
            ``ferplus_`` (``val_ferplus_``) where there is a FER+ head, ``learning_rate``, ``seconds``.
            ``on_train_batch_end`` sees the means over the epoch so far. ``self.model.network`` is the
            network. A callback may end the run with ``self.model.stop_training = True``. A method
            ``on_teacher_batch_end(teacher, done, faces)``, where there is one, is called while a teacher
            predicts the training faces (offline distillation).
        votes: FER+ votes, where ``data`` is to be loaded. With a data set it is only recorded.
        init: Weights to start from: a run folder, a ``.npz`` of training weights, or the name of a
            model. Architecture and size of the faces are theirs; heads with other labels start untrained.
        model_params: With ``init``: parameters of the architecture to change, where no shape depends on
            them (``dropout``).
        teachers: Teachers of the recipe's ``distil`` part. Offline: model files or names of models.
            Online: run folders, training weights or names of models. A resumed run has its own copy.
        resume: Continue from the last checkpoint of ``out``, to the same result as without the interruption.
            Only ``epochs`` may differ from the recipe that the run was started with (``run.json`` records
            it), and ``precise_batch_norm``, which comes after the last epoch. The weights of a finished run
            that is resumed with more epochs are kept beside the new ones, as ``weights-epoch100.npz``.
        command: The command line, for the record.
        tensorboard: Whether to write a TensorBoard log.

    Returns:
        The folder and the history. The final weights are those of the last epoch, or their average.

    Raises:
        TrainingError: If the run cannot start or resume, meets a loss that is not finite, or runs out of
            memory.
        OutputError: If the folder cannot be written; the last checkpoint stays.
        KeyboardInterrupt: On Ctrl-C, after the state was recorded.
    """
    folder = RunFolder(out)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if resume and not folder.checkpoint.exists():
        raise TrainingError(f"{folder.path} has no checkpoint to resume from")
    if not resume:
        folder.check_new()
        _check_request(recipe, teachers)
    if recipe.freeze_body and init is None and not resume:
        raise TrainingError(
            "freeze_body trains the heads on a body that has been trained; name one with --init"
        )
    start = None if init is None else runs.load_training_weights(init)
    if isinstance(data, FaceDataset):
        dataset = data
    else:
        size, needed_by, labels = runs.needed_faces(folder.path if resume else None, init, teachers)
        dataset = load_data(data, votes=votes, size=size or 48, needed_by=needed_by, heads=labels)
    if start is not None:
        recipe = _with_network_of(start, recipe, dataset, str(init), model_params or {})
    if recipe.deterministic and _on_tensorflow("operations are not deterministic; sums may differ in order"):
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()

    precision, reason = choose_precision_here(recipe.mixed_precision)
    if resume and (before := folder.read_facts().get("precision")):
        precision, reason = before["mixed_precision"], "as the run was started"

    def get_teachers(training: FaceDataset, heads: tuple[Head, ...]) -> Teachers:
        resumed, dtype = folder if resume else None, _dtype_policy(precision)
        return _get_teachers(recipe, training, heads, teachers, dtype, resumed, callbacks)

    setup = set_up(recipe, dataset, get_teachers if recipe.distil.weight else None, precision)
    facts = _facts(setup, dataset, command)
    facts["precision"] = {"mixed_precision": precision, "reason": reason, "onednn": onednn_setting()}
    facts["inputs"] = {"data": _absolute(dataset.source), "votes": votes and _absolute(votes)}
    if start is not None and not resume:
        facts["init"] = _load_start(setup, start, str(init))
    with folder.run_lock():
        if not resume:
            folder.check_new()
        return _run(setup, folder, facts, dataset, list(callbacks), resume=resume, tensorboard=tensorboard)


def _check_request(recipe: Recipe, teachers: Sequence[str | Path]) -> None:
    """Refuse a new run whose recipe contradicts itself or its teachers."""
    if recipe.data.balance == "weights" and not recipe.heads.label:
        raise TrainingError(
            "data.balance = 'weights' weighs faces in the label head, which heads.label = 0 leaves out; "
            "choose copies or oversample"
        )
    if recipe.distil.weight and not teachers:
        raise TrainingError(
            f"recipe {recipe.name!r} distils from a teacher; name one with: ferkit distil --teacher MODEL"
        )
    if teachers and not recipe.distil.weight:
        raise TrainingError(
            f"recipe {recipe.name!r} gives its teachers no share of the loss; set distil.weight above 0"
        )


def _with_network_of(
    start: Run, recipe: Recipe, dataset: FaceDataset, init: str, params: Mapping[str, Any]
) -> Recipe:
    """Return the recipe with the network of the weights that it starts from."""
    if start.input_size != dataset.size:
        raise TrainingError(
            f"{init} takes faces of {start.input_size} pixels, and those of {dataset.source} have "
            f"{dataset.size}; load them at its size (--size {start.input_size}, for pictures)"
        )
    part = start.recipe.model.model_dump()
    part["params"] |= dict(params)
    try:
        return recipe.model_copy(update={"model": ModelPart.model_validate(part)})
    except ValidationError as error:
        raise TrainingError(f"--init: {error.errors()[0]['msg']}") from error


def _load_start(setup: Setup, start: Run, init: str) -> dict[str, Any]:
    """Load the weights to start from, and return what ``run.json`` records of them."""
    known = {taxonomy.id: taxonomy for taxonomy in start.taxonomies}
    same = tuple(h.taxonomy.id for h in setup.heads if known.get(h.taxonomy.id) == h.taxonomy)
    taken = state.load_network_arrays(setup.network, setup.head_ids, start.arrays, init, same)
    if fresh := [head for head in setup.head_ids if head not in taken]:
        logger.warning(
            "%s: the head %s starts untrained, since the labels differ; the weights have %s",
            init,
            " and ".join(fresh),
            "; ".join(f"{t.id} ({', '.join(t.labels)})" for t in start.taxonomies),
        )
    name = Path(init).name
    return {"from": name, "sha256": state.digest_arrays(start.arrays), "heads": taken}


def _get_teachers(
    recipe: Recipe,
    training: FaceDataset,
    heads: tuple[Head, ...],
    teachers: Sequence[str | Path],
    dtype: str,
    resumed: RunFolder | None,
    callbacks: Sequence[Any],
) -> Teachers:
    """Return the teachers of a new run, or those that a resumed run keeps in its folder."""
    part, taxonomies = recipe.distil, [head.taxonomy for head in heads]
    if part.online:
        return OnlineTeachers(
            teachers if resumed is None else resumed.teacher_weights(),
            training.size,
            taxonomies,
            part.tta,
            calibrated=part.calibrated,
            dtype=dtype,
        )
    images = np.asarray(training.images)
    if resumed is not None:
        return TeacherPredictions.load(resumed.predictions, images)
    hooks = [hook for one in callbacks if (hook := getattr(one, "on_teacher_batch_end", None))]

    def on_batch(teacher: str, done: int, faces: int) -> None:
        for hook in hooks:
            hook(teacher, done, faces)

    return predict_offline(
        teachers, images, taxonomies, part.tta, calibrated=part.calibrated, on_batch=on_batch
    )


def _facts(setup: Setup, dataset: FaceDataset, command: Sequence[str]) -> dict[str, Any]:
    """Return what ``run.json`` records of a run before its first step."""
    recipe, data = setup.recipe, setup.recipe.data
    facts: dict[str, Any] = {
        "name": recipe.name,
        "state": "running",
        "command": list(command),
        "started": _now(),
        "seed": recipe.seed,
        "parameters": int(setup.network.count_params()),
        "mmac": count_macs(setup.network) / 1e6,
        "heads": {head.taxonomy.id: head.weight for head in setup.heads},
        "data": {
            "source": Path(dataset.source).name,
            "fingerprint": dataset.fingerprint,
            "faces": faces_digest(dataset),
            "training": len(setup.training),
            "validation": len(setup.validation),
            "train_split": data.train_split,
            "validation_split": data.validation_split,
        },
        "versions": _versions(),
        "machine": {"processor": processor_name(), "cores": usable_cores()},
        "backend": keras.backend.backend(),
        "seconds": 0.0,
    }
    if setup.teachers is not None:
        labels = np.asarray(setup.training.labels)
        facts["teacher"] = {
            **setup.teachers.facts(setup.training.taxonomy.id, labels),
            "weight": recipe.distil.weight,
            "temperature": recipe.distil.temperature,
        }
    return facts


def _run(
    setup: Setup,
    folder: RunFolder,
    facts: dict[str, Any],
    dataset: FaceDataset,
    callbacks: list[Any],
    *,
    resume: bool,
    tensorboard: bool,
) -> Result:
    """Train what is set up, to its end."""
    recipe = setup.recipe
    history = _resume(setup, folder, facts, has_votes=dataset.votes is not None) if resume else []
    validation = Validation(setup)
    writer = RunWriter(setup, folder, validation, history, facts)

    def record(condition: str, **more: Any) -> None:
        facts.update(state=condition, ended=_now(), epochs=len(history), **more)
        folder.write_facts(facts)

    if resume and is_finished(recipe, history):
        if folder.is_complete(recipe):
            # The last row may differ from the checkpoint's: it is measured again with precise statistics.
            return Result(folder.path, runs.load_run(folder.path).history)
        (folder.path / runs.TEMPERATURES).unlink(missing_ok=True)
        writer.finish()
        folder.write_recipe(recipe)
        writer.write_history()
        record("finished")
        return Result(folder.path, history)
    folder.write_recipe(recipe)
    if not resume:
        folder.remove_teachers()
        if isinstance(setup.teachers, TeacherPredictions):
            setup.teachers.save(folder.predictions)
        if isinstance(setup.teachers, OnlineTeachers):
            folder.write_teacher_weights(setup.teachers.weights)
    folder.set_aside_weights(len(history))
    own = [EpochSetup(setup, history), StopOnNonFinite(), validation, writer]
    if tensorboard and _on_tensorflow("no TensorBoard log is written; history.csv has the same numbers"):
        log = folder.path / "tensorboard"
        own.append(keras.callbacks.TensorBoard(log, write_graph=False, profile_batch=0))
    record("running")
    try:
        with explaining_memory():
            setup.model.fit(
                input_pipeline(setup.batches),
                epochs=recipe.epochs,
                initial_epoch=len(history),
                callbacks=[*own, *callbacks],
                verbose=0,
                shuffle=False,
            )
    except KeyboardInterrupt:
        writer.draw_curves()
        record("interrupted")
        raise
    except FerkitError as error:
        # Where the disk is full this cannot be written either; the error itself is what counts.
        with contextlib.suppress(OutputError):
            record("failed", error=str(error))
            writer.draw_curves()
        raise
    record("finished")
    return Result(folder.path, history)


def _resume(setup: Setup, folder: RunFolder, facts: dict[str, Any], *, has_votes: bool) -> list[Row]:
    """Go back to the last checkpoint; return its history and complete ``facts`` from the run's own.

    Raises:
        TrainingError: If the checkpoint is damaged, or belongs to another recipe or to other data.
    """
    path, before = str(folder.checkpoint), folder.read_facts()
    arrays, meta = state.read_archive(folder.checkpoint)
    folder.check_resumable(meta, setup.recipe, facts["data"], has_votes=has_votes)
    history: list[Row] = list(meta["history"])
    if isinstance(setup.teachers, OnlineTeachers):
        digests = [model["sha256"] for model in setup.teachers.models]
        if [model["sha256"] for model in before.get("teacher", {}).get("models", [])] != digests:
            raise TrainingError(
                f"the training weights of the teachers in {folder.path} are not those that the run was "
                "started with"
            )
    state.load_network_arrays(setup.network, setup.head_ids, arrays, path)
    state.load_optimizer_arrays(setup.model.optimizer, arrays, path)
    changed = list(meta.get("changed", []))
    if meta["recipe"]["epochs"] != setup.recipe.epochs:
        # The schedule is another from here on, so neither number alone describes the run.
        epochs = [meta["recipe"]["epochs"], setup.recipe.epochs]
        changed.append({"after": len(history), "epochs": epochs})
    again = {"at": facts["started"], "after": len(history), "command": facts["command"]}
    facts.update({key: before[key] for key in ("started", "command", "init", "teacher") if key in before})
    facts.update(changed=changed, resumed=[*before.get("resumed", []), again])
    return history


def _dtype_policy(precision: str) -> str:
    """Return Keras' name of a value of ``mixed_precision``."""
    return "float32" if precision == "off" else f"mixed_{precision}"


def _absolute(source: str | Path) -> str:
    """Return the absolute path of a file or folder; other sources (``cartoon:300``) as they are."""
    return str(Path(source).absolute()) if Path(source).exists() else str(source)


def _on_tensorflow(otherwise: str) -> bool:
    """Tell whether TensorFlow trains; where it does not, warn of the consequence."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        logger.warning("on Keras' backend %s, %s", backend, otherwise)
    return bool(backend == "tensorflow")


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"ferkit": __version__, "python": platform.python_version()}
    for name in ("keras", "tensorflow-cpu", "tensorflow", "jax", "numpy", "onnx"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
