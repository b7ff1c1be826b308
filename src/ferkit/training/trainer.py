"""One training run: from a recipe and faces to a folder with weights, history and curves."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import ValidationError

from ferkit import __version__
from ferkit.augment import balanced_rows
from ferkit.core.errors import FerkitError, OutputError, TrainingError
from ferkit.core.files import output_errors, write_json, write_text
from ferkit.core.runtime import usable_cores
from ferkit.data import FaceDataset, check_training_labels, faces_digest, majority_targets
from ferkit.data.duplicates import flat_rows, leaking_rows
from ferkit.models import build_model, count_macs
from ferkit.training import runs, state
from ferkit.training.distil import (
    Answers,
    StepTeachers,
    ask_teachers,
    forget_teachers,
    kept_teachers,
    read_answers,
    teacher_facts,
    write_answers,
)
from ferkit.training.feed import fed
from ferkit.training.history import Row, draw_curves, write_history
from ferkit.training.inference import predict_logits
from ferkit.training.memory import explaining_memory
from ferkit.training.network import Resized, TrainingModel, teacher_key
from ferkit.training.optimize import make_optimizer, plateau_rate
from ferkit.training.recipe import ModelPart, Recipe, dump_recipe, load_recipe, parse_recipe
from ferkit.training.statistics import reestimate_batch_norm
from ferkit.training.targets import Head, heads_of, target_mass

logger = logging.getLogger("ferkit.training")


class Watcher(Protocol):
    """What a run tells while it works; a progress bar, a table, or nothing."""

    def started(self, *, recipe: Recipe, faces: int, parameters: int, mmac: float, epoch: int) -> None:
        """Hear that training begins, or goes on, at ``epoch``."""

    def step(self, *, epoch: int, step: int, steps: int, images: int, loss: float, accuracy: float) -> None:
        """Hear the means over the epoch so far."""

    def epoch_done(self, row: Row) -> None:
        """Hear the epoch's row of the history."""

    def asking(self, *, teacher: str, done: int, faces: int) -> None:
        """Hear how many of the faces a teacher has answered."""


class Quiet:
    """A watcher that says nothing."""

    def started(self, *, recipe: Recipe, faces: int, parameters: int, mmac: float, epoch: int) -> None:
        """Say nothing."""

    def step(self, *, epoch: int, step: int, steps: int, images: int, loss: float, accuracy: float) -> None:
        """Say nothing."""

    def epoch_done(self, row: Row) -> None:
        """Say nothing."""

    def asking(self, *, teacher: str, done: int, faces: int) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run ended with."""

    folder: Path
    history: list[Row]
    finished: bool


class _Faces(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of one epoch; the order of the rows follows from seed and epoch alone."""

    def __init__(self, recipe: Recipe, dataset: FaceDataset, mass: dict[str, NDArray[np.float32]]) -> None:
        super().__init__(workers=1)
        self.recipe, self.dataset, self.mass = recipe, dataset, mass
        self.batch = min(recipe.batch_size, len(dataset))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        rng = np.random.default_rng([self.recipe.seed, epoch])
        self.rows = balanced_rows(self.dataset.labels, self.recipe.data.balance, rng)

    def __len__(self) -> int:
        return len(self.rows) // self.batch

    def __getitem__(self, at: int) -> tuple[dict[str, Any]]:
        rows = self.rows[at * self.batch : (at + 1) * self.batch]
        batch: dict[str, Any] = {head: mass[rows] for head, mass in self.mass.items()}
        batch["face"] = self.dataset.images[rows]
        return (batch,)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system says that has no locks."""


class _Loop(keras.callbacks.Callback):  # type: ignore[misc]
    """What happens around steps and epochs: randomness, validation, records, checkpoint."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        self.session.begin_epoch(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.session.end_step(batch, logs or {})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = self.session.end_epoch(epoch, logs or {})
        if logs is not None:  # callbacks after this one, TensorBoard's, get to see the validation
            logs.update({key: value for key, value in row.items() if key.startswith("val_")})


class Session:
    """Everything that one run holds while it works."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: FaceDataset,
        folder: Path,
        command: Sequence[str],
        watcher: Watcher,
        teach: Callable[[FaceDataset, tuple[Head, ...]], Answers | StepTeachers] | None = None,
    ) -> None:
        self.recipe, self.folder, self.watcher = recipe, folder, watcher
        data = recipe.data
        check_training_labels(dataset, data.train_split)
        training = dataset
        if data.drop_leaks:
            training = training.select(~leaking_rows(training, data.train_split))
        if data.drop_flat:
            training = training.select(~flat_rows(training))
        self.training = training.of_split(data.train_split)
        self.validation = dataset.of_split(data.validation_split)
        self.has_votes = dataset.votes is not None
        self.heads = heads_of(recipe, dataset.taxonomy, self.has_votes)
        self.names = tuple(head.taxonomy.id for head in self.heads)
        self.validation_mass = target_mass(self.validation, self.heads)
        too_large = [size for size in recipe.progressive.sizes if size >= dataset.size]
        if too_large or (recipe.progressive.sizes and recipe.model.params.get("view_size")):
            raise TrainingError(
                f"progressive.sizes {list(recipe.progressive.sizes)} must lie below the faces' "
                f"{dataset.size} pixels, and do not go with a view_size"
            )
        policy = "float32" if recipe.mixed_precision == "off" else f"mixed_{recipe.mixed_precision}"
        keras.utils.set_random_seed(recipe.seed)
        self.network = build_model(
            recipe.model.name,
            {head.taxonomy.id: len(head.taxonomy) for head in self.heads},
            input_size=dataset.size,
            dtype=policy,
            **recipe.model.params,
        )
        for size in recipe.progressive.sizes:
            Resized(self.network).at(size)
        mass = target_mass(self.training, self.heads, data.balance)
        # Asked last: it may take long, and all that can be refused was refused before.
        told = None if teach is None else teach(self.training, self.heads)
        self.answers = told if isinstance(told, Answers) else None
        self.teachers = told if isinstance(told, StepTeachers) else None
        self.taught: tuple[str, ...] = () if self.teachers is None else self.teachers.heads
        if self.answers is not None:
            self.taught = tuple(self.answers.probabilities)
            for head, target in self.answers.targets(recipe.distil.temperature).items():
                # The weight of a face counts for the teacher's answer as for the label. What FER+'s taggers
                # could not tell, the teacher may still answer.
                weight = mass[head].sum(axis=1, keepdims=True) if head == dataset.taxonomy.id else 1
                mass[teacher_key(head)] = np.asarray(target * weight, np.float32)
        self.faces = _Faces(recipe, self.training, mass)
        if not len(self.faces):
            raise TrainingError(f"{dataset.source}: no face to train on after the recipe's filters")
        self.model = TrainingModel(
            self.network,
            recipe,
            {h.taxonomy.id: h.weight for h in self.heads},
            self.taught,
            self.teachers,
            dataset.taxonomy.id,
            dtype=policy,
        )
        self.model.compile(optimizer=make_optimizer(recipe, len(self.faces)))
        # In float16 it is wrapped in one that scales the loss, whose state belongs to the checkpoint too.
        self.optimizer = self.model.optimizer
        self.optimizer.build(self.network.trainable_variables)
        self.history: list[Row] = []
        self.began = self.stepped = time.perf_counter()
        self.facts: dict[str, Any] = {
            "name": recipe.name,
            "state": "running",
            "command": list(command),
            "started": _now(),
            "seed": recipe.seed,
            "parameters": int(self.network.count_params()),
            "mmac": count_macs(self.network) / 1e6,
            "heads": {h.taxonomy.id: h.weight for h in self.heads},
            "data": {
                "source": Path(dataset.source).name,
                "fingerprint": dataset.fingerprint,
                "faces": faces_digest(dataset),
                "training": len(self.training),
                "validation": len(self.validation),
                "train_split": data.train_split,
                "validation_split": data.validation_split,
            },
            "versions": _versions(),
            "machine": {"processor": processor_name(), "cores": usable_cores()},
            "backend": keras.backend.backend(),
            "seconds": 0.0,
        }
        if told is not None:
            labels = np.asarray(self.training.labels)
            self.facts["teacher"] = {
                **(
                    told.facts()
                    if isinstance(told, StepTeachers)
                    else teacher_facts(told, self.training.taxonomy.id, labels)
                ),
                "weight": recipe.distil.weight,
                "temperature": recipe.distil.temperature,
            }

    def meta(self) -> dict[str, Any]:
        """Return what its weights files say about themselves."""
        return runs.weights_meta(self.recipe, tuple(h.taxonomy for h in self.heads), self.training.size)

    def begin_epoch(self, epoch: int) -> None:
        """Set all randomness, and a plateau's rate, from what is known before the epoch."""
        self.faces.set_epoch(epoch)
        self.model.reseed(self.recipe.seed, epoch)
        self.model.show_at(self.recipe.progressive.side(epoch, self.recipe.epochs, self.training.size))
        if self.recipe.schedule.name == "plateau":
            self.optimizer.learning_rate = plateau_rate(
                self.recipe, [row["val_objective"] for row in self.history]
            )
        self.began = time.perf_counter()

    def end_step(self, step: int, logs: dict[str, Any]) -> None:
        """Look at the loss and tell the watcher."""
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {len(self.history) + 1}, step {step + 1}; the last good "
                f"checkpoint stays at epoch {len(self.history)}. A lower learning rate, or "
                "optimizer.clip_norm, may help"
            )
        self.watcher.step(
            epoch=len(self.history) + 1,
            step=step + 1,
            steps=len(self.faces),
            images=self.faces.batch,
            loss=loss,
            accuracy=float(logs[f"{self.names[0]}_accuracy"]),
        )

    def end_epoch(self, epoch: int, logs: dict[str, Any]) -> Row:
        """Validate, record, save a checkpoint and after the last epoch the weights; return the row."""
        seconds = time.perf_counter() - self.began
        row: Row = {"epoch": epoch + 1}
        for k, name in enumerate(self.names):
            prefix = "" if k == 0 else f"{name}_"
            row[f"{prefix}loss"] = float(logs[f"{name}_loss"])
            row[f"{prefix}accuracy"] = float(logs[f"{name}_accuracy"])
            if name in self.taught:
                row[f"{prefix}teacher_loss"] = float(logs[f"{name}_teacher_loss"])
        replaced = self.recipe.optimizer.ema or self.recipe.precise_batch_norm
        raw = [np.array(weight) for weight in self.network.get_weights()] if replaced else None
        self.average_in()
        row.update(self.validate())
        done = self.finished([*self.history, row])
        if done and self.recipe.precise_batch_norm:
            self.make_precise()
            row.update(self.validate())
        weights = state.network_arrays(self.network, self.names)
        if raw is not None:
            self.network.set_weights(raw)
        row["learning_rate"] = float(
            np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(self.optimizer.learning_rate)))
        )
        if self.recipe.progressive.sizes:
            row["side"] = self.model.side
        row["seconds"] = round(seconds, 3)
        row["images_per_second"] = round(len(self.faces) * self.faces.batch / seconds, 1)
        if not all(math.isfinite(value) for value in row.values()):
            raise TrainingError(f"epoch {epoch + 1} gave numbers that are not finite: {row}")
        self.history.append(row)
        self.facts["seconds"] = round(sum(r["seconds"] for r in self.history), 1)
        state.write_archive(
            self.folder / runs.CHECKPOINT,
            {**state.network_arrays(self.network, self.names), **state.optimizer_arrays(self.optimizer)},
            {
                **self.meta(),
                "history": self.history,
                "fingerprint": self.facts["data"]["fingerprint"],
                "changed": self.facts.get("changed", []),
            },
        )
        if done:
            state.write_archive(self.folder / runs.WEIGHTS, weights, self.meta())
            self.model.stop_training = True
        write_history(self.folder, self.history)
        self.draw()
        self.watcher.epoch_done(row)
        return row

    def complete(self) -> None:
        """Write what a finished run has beside its checkpoint, where it is not there yet.

        A run may have been killed between its last checkpoint and its weights, or be over because it was
        resumed with fewer epochs; or its batch normalisation is to be made precise after the fact.
        """
        before = runs.read_json(self.folder / runs.RUN)
        written = (self.folder / runs.WEIGHTS).exists() and (self.folder / runs.HISTORY).exists()
        same = load_recipe(self.folder / runs.RECIPE) == self.recipe
        if before.get("state") == "finished" and written and same:
            # Its last row may be younger than the checkpoint's: statistics can be made precise afterwards.
            self.history = runs.load_run(self.folder).history
            return
        self.average_in()
        if self.recipe.precise_batch_norm:
            self.make_precise()
        self.history[-1].update(self.validate())
        weights = state.network_arrays(self.network, self.names)
        (self.folder / runs.TEMPERATURES).unlink(missing_ok=True)
        state.write_archive(self.folder / runs.WEIGHTS, weights, self.meta())
        write_text(self.folder / runs.RECIPE, dump_recipe(self.recipe))
        write_history(self.folder, self.history)
        self.draw()
        self.facts["seconds"] = round(sum(row["seconds"] for row in self.history), 1)
        self.record("finished")

    def draw(self) -> None:
        """Draw the curves anew."""
        draw_curves(self.folder / runs.CURVES, self.history, f"{self.recipe.name}, seed {self.recipe.seed}")

    def average_in(self) -> None:
        """Put the averaged weights into the network, where the recipe averages them."""
        if not self.recipe.optimizer.ema:
            return
        self.optimizer.finalize_variable_values(self.network.trainable_variables)
        # On JAX the averages' own buffers are now the network's, and the next step would give them away.
        self.network.set_weights([np.array(weight) for weight in self.network.get_weights()])

    def make_precise(self) -> None:
        """Give batch normalisation the statistics of unaugmented training faces."""
        reestimate_batch_norm(
            self.network,
            np.asarray(self.training.images),
            self.recipe.precise_batch_norm,
            self.recipe.seed,
        )

    def validate(self) -> Row:
        """Measure the network on the validation split, single view."""
        logits = predict_logits(self.network, np.asarray(self.validation.images))
        row: Row = {}
        objective = 0.0
        for k, head in enumerate(self.heads):
            name = head.taxonomy.id
            prefix = "val_" if k == 0 else f"val_{name}_"
            mass, answer = self.validation_mass[name], logits[name].astype(np.float64)
            top = answer.max(axis=1, keepdims=True)
            log_p = answer - top - np.log(np.exp(answer - top).sum(axis=1, keepdims=True))
            row[f"{prefix}loss"] = float(-(mass * log_p).sum() / max(float(mass.sum()), 1e-12))
            objective += head.weight * row[f"{prefix}loss"]
            wanted, keep = mass.argmax(axis=1), mass.sum(axis=1) > 0
            if name != self.validation.taxonomy.id and self.validation.votes is not None:
                wanted, keep = majority_targets(self.validation.votes)
            right = answer.argmax(axis=1)[keep] == wanted[keep]
            row[f"{prefix}accuracy"] = float(right.mean()) if len(right) else 0.0
        row["val_objective"] = objective
        return row

    def finished(self, history: Sequence[Row]) -> bool:
        """Whether a run is over with that history: all epochs, or early stopping."""
        if len(history) >= self.recipe.epochs:
            return True
        patience = self.recipe.early_stopping
        accuracies = [row["val_accuracy"] for row in history]
        return bool(patience and len(accuracies) - 1 - int(np.argmax(accuracies)) >= patience)

    def resume(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            TrainingError: If it is missing, damaged, or of another recipe or other data.
        """
        path = self.folder / runs.CHECKPOINT
        arrays, meta = state.read_archive(path)
        begun = parse_recipe(meta.get("recipe", {}), str(path))
        after = ("epochs", "precise_batch_norm")  # what does not touch the epochs that are done
        if begun.model_copy(update={key: getattr(self.recipe, key) for key in after}) != self.recipe:
            raise TrainingError(
                f"{path} is of another recipe; a run resumes with the recipe it began with, but for "
                f"{' and '.join(after)}"
            )
        if self.recipe.epochs < len(meta["history"]):
            raise TrainingError(
                f"{path} is {len(meta['history'])} epochs old already; "
                f"--epochs {self.recipe.epochs} cannot undo them"
            )
        if begun.epochs != self.recipe.epochs:
            # The schedule is another from here on, so this is not the run that either number alone gives.
            change = {"after": len(meta["history"]), "epochs": [begun.epochs, self.recipe.epochs]}
            self.facts["changed"] = [*meta.get("changed", []), change]
        before = runs.read_json(self.folder / runs.RUN)
        if meta.get("fingerprint") != self.facts["data"]["fingerprint"]:
            if before.get("data", {}).get("faces") == self.facts["data"]["faces"]:
                begun_with = "without" if self.has_votes else "with"
                raise TrainingError(f"{path} was begun {begun_with} FER+ votes; resume it so (--votes)")
            raise TrainingError(f"{path} was trained on other data: the fingerprints differ")
        faces = before.get("data", {}).get("training", len(self.training))
        if faces != len(self.training):
            # Which copies of faces in other splits drop_leaks leaves out was once told by Training alone.
            raise TrainingError(
                f"{path} was trained on {faces} faces, and {len(self.training)} are left by the recipe's "
                "filters now, as another version of ferkit takes them; go on with that version, or train anew"
            )
        if self.teachers is not None and before.get("teacher", {}).get("models") != self.teachers.models():
            raise TrainingError(
                f"the teachers' files in {self.folder} are not those that the run began with: "
                f"{runs.teacher_file(0)} and those after it must be what it wrote itself"
            )
        state.load_network_arrays(self.network, self.names, arrays, str(path))
        state.load_optimizer_arrays(self.optimizer, arrays, str(path))
        self.facts.setdefault("changed", meta.get("changed", []))
        again = {"at": self.facts["started"], "after": len(meta["history"]), "command": self.facts["command"]}
        self.facts.update({k: before[k] for k in ("started", "command", "init") if k in before})
        self.facts["resumed"] = [*before.get("resumed", []), again]
        self.history = list(meta["history"])

    def record(self, condition: str, **more: Any) -> None:
        """Write ``run.json`` with the run's state."""
        self.facts.update(state=condition, ended=_now(), epochs=len(self.history), **more)
        write_json(self.folder / runs.RUN, self.facts)


@explaining_memory()
def train(
    recipe: Recipe,
    dataset: FaceDataset,
    out: str | Path,
    *,
    init: str | Path | None = None,
    model_params: Mapping[str, Any] | None = None,
    teachers: Sequence[str | Path] = (),
    resume: bool = False,
    command: Sequence[str] = (),
    watcher: Watcher | None = None,
    tensorboard: bool = True,
) -> Result:
    """Train a network.

    Args:
        recipe: What to do.
        dataset: Faces with the recipe's training and validation splits.
        out: The run's folder; it must not hold a run unless ``resume``.
        init: Weights to start from: a run's folder or a ``.npz`` of training weights. The network's
            architecture and the faces' size are theirs; heads of other labels start fresh.
        model_params: With ``init``: the architecture's parameters that are to differ from the weights' own,
            where no shape depends on them (``dropout``).
        teachers: Model files, or names of embedded models, whose answers the recipe's ``distil`` part mixes
            into the targets; a run that goes on has them in its folder.
        resume: Go on from the folder's last checkpoint, to the same result as if it had not stopped. Only
            ``epochs`` may differ from the recipe that the run began with (``run.json`` then tells), and
            ``precise_batch_norm``, which comes after the last epoch. The weights of a finished run that goes
            on to more epochs stay beside the new ones, as ``weights-epoch100.npz``, which is said.
        command: The command line, for the record.
        watcher: Hears of the progress.
        tensorboard: Whether to write a TensorBoard log beside the history.

    Returns:
        The folder and the history. The final weights are those of the last epoch, or their average.

    Raises:
        TrainingError: If the run cannot start, resume, or meets a loss that is not finite or too little
            memory.
        OutputError: If the folder cannot be written; the last checkpoint stays.
        KeyboardInterrupt: On Ctrl-C, after the state was recorded.
    """
    folder = Path(out)
    watcher = watcher or Quiet()
    if not resume:
        _refuse_begun(folder)
    elif not (folder / runs.CHECKPOINT).exists():
        raise TrainingError(f"{folder} has no checkpoint to resume from")
    if recipe.data.balance == "weights" and not recipe.heads.label and not resume:
        raise TrainingError(
            "data.balance = 'weights' weighs the faces of the label head, which heads.label = 0 leaves out; "
            "choose copies or oversample"
        )
    if bool(recipe.distil.weight) != bool(teachers) and not resume:
        raise TrainingError(
            f"recipe {recipe.name!r} learns from a teacher; name one with: ferkit distil --teacher MODEL"
            if recipe.distil.weight
            else f"recipe {recipe.name!r} gives a teacher no share of the loss; set distil.weight above 0"
        )

    def teach(training: FaceDataset, heads: tuple[Head, ...]) -> Answers | StepTeachers:
        if recipe.distil.every_step:
            return StepTeachers(
                kept_teachers(folder) if resume else teachers,
                training.size,
                [head.taxonomy for head in heads],
                recipe.distil.tta,
                calibrated=recipe.distil.calibrated,
                dtype="float32" if recipe.mixed_precision == "off" else recipe.mixed_precision,
            )
        if resume:
            return read_answers(folder / runs.TEACHER, np.asarray(training.images))
        return ask_teachers(
            teachers,
            np.asarray(training.images),
            [head.taxonomy for head in heads],
            recipe.distil.tta,
            calibrated=recipe.distil.calibrated,
            told=watcher.asking,
        )

    start = None
    if init is not None:
        start = runs.load_start(init)
        if start.input_size != dataset.size:
            raise TrainingError(
                f"{init} takes faces of {start.input_size} pixels, and those of {dataset.source} have "
                f"{dataset.size}; load them at its size (--size {start.input_size}, for pictures)"
            )
        part = start.recipe.model.model_dump()
        part["params"] |= dict(model_params or {})
        recipe = recipe.model_copy(update={"model": _checked_part(part)})
    if recipe.deterministic:
        _use_deterministic_operations()
    session = Session(recipe, dataset, folder, command, watcher, teach if recipe.distil.weight else None)
    if start is not None and not resume:
        known = {t.id: t for t in start.taxonomies}
        same = tuple(h.taxonomy.id for h in session.heads if known.get(h.taxonomy.id) == h.taxonomy)
        taken = state.load_network_arrays(session.network, session.names, start.arrays, str(init), same)
        session.facts["init"] = {
            "from": Path(init or "").name,
            "sha256": state.digest_arrays(start.arrays),
            "heads": taken,
        }
    with _alone(folder):
        if not resume:
            _refuse_begun(folder)
        return _run(session, resume=resume, tensorboard=tensorboard)


def _refuse_begun(folder: Path) -> None:
    if (folder / runs.CHECKPOINT).exists() or (folder / runs.WEIGHTS).exists():
        raise TrainingError(f"{folder} holds a run already; --resume goes on with it, or name another --out")


def _checked_part(part: dict[str, Any]) -> ModelPart:
    try:
        return ModelPart.model_validate(part)
    except ValidationError as error:
        raise TrainingError(f"--init: {error.errors()[0]['msg']}") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training into the folder; the system ends that with the process.

    Raises:
        TrainingError: If another process does.
        OutputError: If the folder cannot be made or written.
    """
    lock = FileLock(folder / runs.LOCK, timeout=0, fallback_to_soft=False)
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock)
        except Timeout:
            raise TrainingError(
                f"another process trains in {folder}; wait for it to end, or name another --out"
            ) from None
        except (OSError, NotImplementedError) as error:
            # On a file system without locks: better unguarded than not at all.
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        yield


def _run(session: Session, *, resume: bool, tensorboard: bool) -> Result:
    """Train what is prepared, to its end."""
    folder, recipe = session.folder, session.recipe
    if resume:
        session.resume()
        if session.finished(session.history):
            session.complete()
            return Result(folder, session.history, True)
    write_text(folder / runs.RECIPE, dump_recipe(recipe))
    if not resume:
        forget_teachers(folder)
        if session.answers is not None:
            write_answers(folder / runs.TEACHER, session.answers)
        if session.teachers is not None:
            session.teachers.write(folder)
    _set_aside(folder, len(session.history))
    callbacks: list[Any] = [_Loop(session)]
    if tensorboard and _on_tensorflow("no TensorBoard log is written; history.csv has the same numbers"):
        callbacks.append(
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False, profile_batch=0)
        )
    session.record("running")
    session.watcher.started(
        recipe=recipe,
        faces=len(session.training),
        parameters=session.facts["parameters"],
        mmac=session.facts["mmac"],
        epoch=len(session.history) + 1,
    )
    try:
        with explaining_memory():
            session.model.fit(
                fed(session.faces),
                epochs=recipe.epochs,
                initial_epoch=len(session.history),
                callbacks=callbacks,
                verbose=0,
                shuffle=False,
            )
    except KeyboardInterrupt:
        session.record("interrupted")
        raise
    except FerkitError as error:
        # Where the disk is full the record cannot be written either; the error itself is what counts.
        with contextlib.suppress(OutputError):
            session.record("failed", error=str(error))
        raise
    session.record("finished")
    return Result(folder, session.history, True)


def _set_aside(folder: Path, epochs: int) -> None:
    """Keep the weights of a run that goes on, which are no longer its last, under the epochs that they saw.

    Its temperatures go: whoever exports a network fits them.

    Raises:
        OutputError: If the folder cannot be written.
    """
    last, kept = folder / runs.WEIGHTS, folder / runs.weights_after(epochs)
    with output_errors(folder):
        (folder / runs.TEMPERATURES).unlink(missing_ok=True)
        if last.exists():
            last.replace(kept)
            logger.warning("%s was finished; its weights are kept as %s", folder, kept.name)


def _use_deterministic_operations() -> None:
    if _on_tensorflow("deterministic operations cannot be asked for; sums may come in another order"):
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def _on_tensorflow(otherwise: str) -> bool:
    """Tell whether TensorFlow trains; where it does not, say what that means."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        logger.warning("on Keras' backend %s, %s", backend, otherwise)
    return bool(backend == "tensorflow")


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    names = ("keras", "tensorflow-cpu", "tensorflow", "jax", "numpy", "onnx")
    found = {"ferkit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
