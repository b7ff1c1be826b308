"""The Keras callbacks of a run: epochs, non-finite losses, validation, and the files of the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from scipy.special import log_softmax

from ferkit.core.errors import TrainingError
from ferkit.data import majority_targets
from ferkit.training import state
from ferkit.training.history import Row, draw_curves, write_history
from ferkit.training.inference import predict_logits
from ferkit.training.optimize import plateau_rate
from ferkit.training.recipe import Recipe
from ferkit.training.runs import CURVES, RunFolder, weights_meta
from ferkit.training.statistics import reestimate_batch_norm
from ferkit.training.targets import weighted_targets

if TYPE_CHECKING:
    from ferkit.training.trainer import Setup

TIMINGS = ("seconds", "images_per_second")
"""Columns of the history that differ between two runs of the same seed."""

_CURVES_EVERY = 30.0
"""Seconds between two drawings of the curves, which take longer than a small network's epoch."""


def is_finished(recipe: Recipe, history: Sequence[Row]) -> bool:
    """Tell whether a run with that history is over: all epochs done, or stopped early."""
    if len(history) >= recipe.epochs:
        return True
    accuracies = [row["val_accuracy"] for row in history]
    waited = len(accuracies) - 1 - int(np.argmax(accuracies)) if accuracies else 0
    return bool(recipe.early_stopping and waited >= recipe.early_stopping)


class EpochSetup(keras.callbacks.Callback):  # type: ignore[misc]
    """Set all randomness, the faces' side and a plateau's rate before an epoch; time it."""

    def __init__(self, setup: Setup, history: Sequence[Row]) -> None:
        super().__init__()
        self.setup, self.history = setup, history

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        setup, recipe = self.setup, self.setup.recipe
        setup.batches.set_epoch(epoch)
        setup.model.reseed(recipe.seed, epoch)
        setup.model.set_side(recipe.progressive.side(epoch, recipe.epochs, setup.training.size))
        if recipe.schedule.name == "plateau":
            losses = [row["val_objective"] for row in self.history]
            setup.model.optimizer.learning_rate = plateau_rate(recipe, losses)
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        setup, seconds = self.setup, time.perf_counter() - self.began
        rate = keras.ops.convert_to_tensor(setup.model.optimizer.learning_rate)
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(rate))
        if setup.recipe.progressive.sizes:
            logs["side"] = setup.model.side
        logs["seconds"] = round(seconds, 3)
        logs["images_per_second"] = round(len(setup.batches) * setup.batches.batch_size / seconds, 1)


class StopOnNonFinite(keras.callbacks.Callback):  # type: ignore[misc]
    """End training with an error when the objective is not finite; the last checkpoint stays.

    Keras' own ``TerminateOnNaN`` stops in silence, and the callbacks after it would save the weights.
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: D102
        loss = float(logs["objective"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {self.epoch + 1}, step {batch + 1}; the last good "
                f"checkpoint is that of epoch {self.epoch}. A lower learning rate, or optimizer.clip_norm, "
                "may help"
            )


class Validation(keras.callbacks.Callback):  # type: ignore[misc]
    """Add loss and accuracy on the validation split (single view) to the logs of every epoch.

    Where the recipe averages weights, the averages are validated.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.targets = weighted_targets(setup.validation, setup.heads)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002, D102
        network = self.setup.network
        averaged = bool(self.setup.recipe.optimizer.ema)
        raw = [np.array(weight) for weight in network.get_weights()] if averaged else None
        average_weights(self.setup)
        logs.update(self.measure())
        if raw is not None:
            network.set_weights(raw)

    def measure(self) -> Row:
        """Return the figures of the network as it is."""
        validation = self.setup.validation
        predicted = predict_logits(self.setup.network, np.asarray(validation.images))
        row: Row = {}
        objective = 0.0
        for head in self.setup.heads:
            name, prefix = head.taxonomy.id, f"val_{self.setup.model.prefixes[head.taxonomy.id]}"
            targets, logits = self.targets[name], predicted[name].astype(np.float64)
            log_p = log_softmax(logits, axis=1)
            row[f"{prefix}loss"] = float(-(targets * log_p).sum() / max(float(targets.sum()), 1e-12))
            objective += head.weight * row[f"{prefix}loss"]
            labels, keep = targets.argmax(axis=1), targets.sum(axis=1) > 0
            if name != validation.taxonomy.id and validation.votes is not None:
                labels, keep = majority_targets(validation.votes)
            right = logits.argmax(axis=1)[keep] == labels[keep]
            row[f"{prefix}accuracy"] = float(right.mean()) if len(right) else 0.0
        row["val_objective"] = objective
        return row


class RunWriter(keras.callbacks.Callback):  # type: ignore[misc]
    """Write history and checkpoint after every epoch, curves from time to time, the final weights at the end.

    Rows of epochs are appended to ``history``; ``facts`` is ``run.json``.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        validation: Validation,
        history: list[Row],
        facts: dict[str, Any],
    ) -> None:
        super().__init__()
        self.setup, self.folder, self.validation = setup, folder, validation
        self.history, self.facts = history, facts
        self._drawn = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        row: Row = {"epoch": epoch + 1, **logs}
        if not all(math.isfinite(value) for value in row.values()):
            raise TrainingError(f"epoch {epoch + 1} gave numbers that are not finite: {row}")
        self.history.append(row)
        setup = self.setup
        weights = state.network_arrays(setup.network, setup.head_ids)
        state.write_archive(
            self.folder.checkpoint,
            {**weights, **state.optimizer_arrays(setup.model.optimizer)},
            {
                **self.weights_meta(),
                "history": self.history,
                "fingerprint": self.facts["data"]["fingerprint"],
                "changed": self.facts.get("changed", []),
            },
        )
        self.write_history()
        if time.monotonic() - self._drawn >= _CURVES_EVERY:
            self.draw_curves()
        if is_finished(setup.recipe, self.history):
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002, D102
        self.finish()

    def finish(self) -> None:
        """Write the final weights: those of the last epoch or their average.

        A resumed run comes here too when its epochs are done but its files are not: it was killed after its
        last checkpoint, or is resumed with fewer epochs or with ``precise_batch_norm``.
        """
        setup = self.setup
        average_weights(setup)
        if setup.recipe.precise_batch_norm:
            faces = np.asarray(setup.training.images)
            reestimate_batch_norm(setup.network, faces, setup.recipe.precise_batch_norm, setup.recipe.seed)
            self.history[-1].update(self.validation.measure())
            self.write_history()
        state.write_archive(
            self.folder.weights, state.network_arrays(setup.network, setup.head_ids), self.weights_meta()
        )
        self.draw_curves()

    def weights_meta(self) -> dict[str, Any]:
        """Return the metadata of this run's weights."""
        taxonomies = tuple(head.taxonomy for head in self.setup.heads)
        return weights_meta(self.setup.recipe, taxonomies, self.setup.training.size)

    def write_history(self) -> None:
        """Write the history, and the seconds into the facts."""
        self.facts["seconds"] = round(sum(row["seconds"] for row in self.history), 1)
        write_history(self.folder.path, self.history)

    def draw_curves(self) -> None:
        """Draw the curves of the epochs that are done."""
        recipe = self.setup.recipe
        if self.history:
            draw_curves(self.folder.path / CURVES, self.history, f"{recipe.name}, seed {recipe.seed}")
        self._drawn = time.monotonic()


def average_weights(setup: Setup) -> None:
    """Put the averaged weights into the network, where the recipe averages them."""
    if setup.recipe.optimizer.ema:
        setup.model.optimizer.finalize_variable_values(setup.network.trainable_variables)
        # On JAX the network now holds the averages' own buffers, which the next step would donate.
        setup.network.set_weights([np.array(weight) for weight in setup.network.get_weights()])
