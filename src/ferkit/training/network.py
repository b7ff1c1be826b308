"""The training step as a Keras model around a network: augmentation, losses and metrics in one graph."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import keras
import numpy as np
from keras import ops

from ferkit.augment import Augmenter
from ferkit.core.errors import TrainingError
from ferkit.training.distil import StepTeachers
from ferkit.training.recipe import Recipe


def teacher_key(head: str) -> str:
    """Return the name under which a batch holds the teacher's answers for a head."""
    return f"teacher_{head}"


class Resized:
    """The same layers, weights shared, over faces of another side.

    Not a Keras object, so that Keras does not count the weights twice.
    """

    def __init__(self, network: Any) -> None:
        self.networks = {int(network.input_shape[1]): network}
        self.own = network

    def at(self, side: int) -> Any:
        """Return the network for faces of that side.

        Raises:
            TrainingError: If its layers do not fit together there.
        """
        if side not in self.networks:
            face = keras.Input((side, side, 1), dtype="float32", name="pixels")
            try:
                self.networks[side] = keras.models.clone_model(
                    self.own, input_tensors=face, clone_function=_itself
                )
            except ValueError as error:
                raise TrainingError(
                    f"{self.own.name} cannot be trained on faces of {side} pixels: {error}"
                ) from error
        return self.networks[side]


def _itself(layer: Any) -> Any:
    return layer


class TrainingModel(keras.Model):  # type: ignore[misc]
    """A network with what surrounds it in training.

    ``fit`` gets dicts with ``face`` (uint8 ``[N, S, S]``) and, per head, target mass ``[N, K]`` (see
    :mod:`ferkit.training.targets`); both are augmented inside the compiled step. A teacher's answers are
    mass of their own, under :func:`teacher_key`.

    Args:
        network: From :func:`ferkit.models.build_model`.
        recipe: Augmentation, smoothing and weight decay are read from it.
        head_weights: Weight of the loss by taxonomy id.
        taught: The heads that a teacher answers for.
        teachers: Teachers that answer in every step; None where a batch holds their answers.
        weighed: The head whose mass tells the weight of a face, which counts for such an answer as well.
    """

    def __init__(
        self,
        network: Any,
        recipe: Recipe,
        head_weights: dict[str, float],
        taught: Collection[str] = (),
        teachers: StepTeachers | None = None,
        weighed: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.augmenter = Augmenter(recipe.augment, dtype="float32")
        self.head_weights = dict(head_weights)
        self.taught = frozenset(taught)
        self.teachers, self.weighed = teachers, weighed
        self.distil = recipe.distil
        self.smoothing = recipe.label_smoothing
        self.side = int(network.input_shape[1])
        self.resized = Resized(network)
        self.l2 = 0.0 if recipe.optimizer.name == "adamw" else recipe.optimizer.weight_decay
        self.trackers: dict[str, Any] = {"loss": keras.metrics.Mean(name="objective")}
        for head in head_weights:
            self.trackers[f"{head}_loss"] = keras.metrics.Mean(name=f"{head}_loss")
            self.trackers[f"{head}_accuracy"] = keras.metrics.Mean(name=f"{head}_accuracy")
        for head in sorted(self.taught):
            self.trackers[f"{head}_teacher_loss"] = keras.metrics.Mean(name=f"{head}_teacher_loss")

    def call(self, inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``logits_*`` and the mixed targets ``mass_*`` by head."""
        faces = ops.expand_dims(inputs["face"], -1)
        mass = {head: inputs[head] for head in self.head_weights}
        if self.teachers is None:
            mass |= {teacher_key(head): inputs[teacher_key(head)] for head in self.taught}
        if training:
            faces, mass = self.augmenter(faces, mass)
        faces = ops.cast(faces, "float32")
        if self.teachers is not None:
            for head, answer in self.teachers(faces, self.distil.temperature).items():
                own = head == self.weighed
                weight = ops.sum(ops.cast(mass[head], "float32"), axis=-1, keepdims=True) if own else 1.0
                mass[teacher_key(head)] = answer * weight
        network = self.network
        if training and self.side != faces.shape[1]:
            faces = ops.image.resize(
                faces, (self.side, self.side), antialias=True, data_format="channels_last"
            )
            network = self.resized.at(self.side)
        logits = network(faces, training=training)
        return {
            **{f"logits_{head}": logits[head] for head in self.head_weights},
            **{f"mass_{key}": mass[key] for key in mass},
        }

    def show_at(self, side: int) -> None:
        """Train on faces of another side from the next step on; the weights stay the network's.

        Raises:
            TrainingError: If the network cannot take faces of that side.
        """
        if side == self.side:
            return
        self.resized.at(side)
        self.side = side
        # A step of its own: JAX keeps its traces by the function, which does not know of the side.
        self.train_step: Any = functools.partial(keras.Model.train_step, self)
        self.make_train_function(force=True)

    def _cross_entropy(self, head: str, answers: dict[str, Any], smoothing: float) -> Any:
        """Sum over classes of mass times -log p, for each face."""
        mass = ops.cast(answers[f"mass_{head}"], "float32")
        if smoothing:
            total = ops.sum(mass, axis=-1, keepdims=True)
            mass = mass * (1 - smoothing) + total * (smoothing / mass.shape[-1])
        log_p = ops.log_softmax(ops.cast(answers[f"logits_{head}"], "float32"), axis=-1)
        return -ops.sum(mass * log_p, axis=-1)

    def compute_loss(  # noqa: D102
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        del x, y, sample_weight, training  # all is in what call() returned
        objective = 0.0
        for head, weight in self.head_weights.items():
            smoothed = ops.mean(self._cross_entropy(head, y_pred, self.smoothing))
            if head in self.taught:
                share, t = self.distil.weight, self.distil.temperature
                log_p = ops.log_softmax(ops.cast(y_pred[f"logits_{head}"], "float32") / t, axis=-1)
                answer = ops.cast(y_pred[f"mass_{teacher_key(head)}"], "float32")
                taught = -ops.sum(answer * log_p, axis=-1)
                weight_of_face = ops.sum(answer, axis=-1)
                self.trackers[f"{head}_teacher_loss"].update_state(
                    taught / ops.maximum(weight_of_face, 1e-12), sample_weight=weight_of_face
                )
                # Gradients shrink with the square of the temperature; the share stays what it says.
                smoothed = (1 - share) * smoothed + share * t**2 * ops.mean(taught)
            objective = objective + weight * smoothed
            # What is shown is comparable with the validation's: without smoothing, per unit of mass.
            mass = ops.sum(ops.cast(y_pred[f"mass_{head}"], "float32"), axis=-1)
            plain = self._cross_entropy(head, y_pred, 0.0) / ops.maximum(mass, 1e-12)
            self.trackers[f"{head}_loss"].update_state(plain, sample_weight=mass)
            asked, answered = y_pred[f"mass_{head}"], y_pred[f"logits_{head}"]
            right = ops.argmax(asked, axis=-1) == ops.argmax(answered, axis=-1)
            counted = ops.cast(mass > 0, "float32")
            self.trackers[f"{head}_accuracy"].update_state(right, sample_weight=counted)
        self.trackers["loss"].update_state(objective)
        if self.l2:
            kernels = [v for v in self.network.trainable_variables if v.path.endswith("kernel")]
            squares = sum(ops.sum(ops.square(ops.cast(v, "float32"))) for v in kernels)
            objective = objective + 0.5 * self.l2 * squares
        return objective

    def compute_metrics(  # noqa: D102
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        del x, y, y_pred, sample_weight  # compute_loss() has updated the trackers
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    @property
    def metrics(self) -> list[Any]:
        """The trackers, which Keras resets every epoch."""
        return list(self.trackers.values())

    def reseed(self, seed: int, epoch: int) -> None:
        """Set every generator (augmentation, dropout) from seed and epoch alone, so that a run can resume."""
        generators = [self.augmenter.generator]
        generators += [
            layer.seed_generator
            for layer in self.network._flatten_layers(include_self=False, recursive=True)
            if getattr(layer, "seed_generator", None) is not None
        ]
        states = np.random.SeedSequence([seed, epoch]).generate_state(2 * len(generators))
        for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
            generator.state.assign(state.astype(generator.state.dtype))
