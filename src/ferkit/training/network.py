"""The training step as a Keras model around a network: augmentation, losses and metrics in one graph."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from ferkit.augment import Augmenter
from ferkit.core.errors import TrainingError
from ferkit.training.distil import OnlineTeachers
from ferkit.training.recipe import Recipe


def teacher_key(head: str) -> str:
    """Return the name of the teachers' soft targets for a head."""
    return f"teacher_{head}"


def resize_network(network: Any, side: int) -> Any:
    """Return a network of the same layers, with shared weights, for faces of another side.

    Raises:
        TrainingError: If the layers do not fit together at that side.
    """
    if side == network.input_shape[1]:
        return network
    face = keras.Input((side, side, 1), dtype="float32", name="pixels")
    try:
        return keras.models.clone_model(network, input_tensors=face, clone_function=lambda layer: layer)
    except ValueError as error:
        raise TrainingError(
            f"this network cannot be trained on faces of {side} pixels, at which its layers do not fit "
            "together; sizes that are multiples of 16 fit most networks"
        ) from error


class TrainingModel(keras.Model):  # type: ignore[misc]
    """A network, compiled and fitted together with its augmentation and its losses.

    ``fit`` takes dicts with ``face`` (uint8 ``[N, S, S]``) and, per head, sample-weighted soft targets
    ``[N, K]`` (see :mod:`ferkit.training.targets`). In offline distillation a batch also holds the teachers'
    soft targets, under :func:`teacher_key`; in online distillation the step computes them. Faces and targets
    are augmented inside the compiled step.

    The metrics are ``objective`` (what is minimised, with smoothing, distillation and head weights) and per
    head ``loss`` and ``accuracy`` (without smoothing, so comparable with validation), and ``teacher_loss``
    where the head is distilled. Those of the first head have no prefix, others have the taxonomy's id.

    Args:
        network: From :func:`ferkit.models.build_model`.
        recipe: Augmentation, smoothing, distillation and weight decay are read from it.
        head_weights: Weight of the loss by taxonomy id.
        distilled: The heads that the teachers predict.
        teachers: The teachers of online distillation; None where a batch holds their soft targets.
        weighted: The head whose targets carry the weight of a face, which applies to the teachers' too.
        frequencies: Of the labels in the training targets, float ``[K]`` by head, for the recipe's logit
            adjustment (Menon et al. 2021): the network learns logits as if labels were equally frequent.
    """

    def __init__(
        self,
        network: Any,
        recipe: Recipe,
        head_weights: dict[str, float],
        distilled: Collection[str] = (),
        teachers: OnlineTeachers | None = None,
        weighted: str = "",
        frequencies: Mapping[str, NDArray[np.float64]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.augmenter = Augmenter(recipe.augment, dtype="float32")
        self.head_weights = dict(head_weights)
        self.prefixes = {head: f"{head}_" if k else "" for k, head in enumerate(head_weights)}
        self.distilled = frozenset(distilled)
        self.teachers, self.weighted = teachers, weighted
        self.distil = recipe.distil
        self.smoothing = recipe.label_smoothing
        self.adjustments = {
            head: (recipe.loss.logit_adjustment * np.log(shares)).astype(np.float32)
            for head, shares in (frequencies or {}).items()
            if recipe.loss.logit_adjustment
        }
        self.side = int(network.input_shape[1])
        # A function, so that Keras does not count the shared weights twice.
        self.network_at = functools.cache(functools.partial(resize_network, network))
        self.l2 = 0.0 if recipe.optimizer.name == "adamw" else recipe.optimizer.weight_decay
        names = ["objective"]
        for head, prefix in self.prefixes.items():
            names += [f"{prefix}loss", f"{prefix}accuracy"]
            names += [f"{prefix}teacher_loss"] if head in self.distilled else []
        self.means: dict[str, Any] = {name: keras.metrics.Mean(name=name) for name in names}

    def call(self, inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return ``logits_<head>`` and ``targets_<name>``, float32 ``[N, K]``; augmented in training."""
        faces = ops.expand_dims(inputs["face"], -1)
        targets = {name: given for name, given in inputs.items() if name != "face"}
        if training:
            faces, targets = self.augmenter(faces, targets)
        faces = ops.cast(faces, "float32")
        if self.teachers is not None:
            for head, predicted in self.teachers(faces, self.distil.temperature).items():
                own = head == self.weighted
                weight = ops.sum(ops.cast(targets[head], "float32"), axis=-1, keepdims=True) if own else 1.0
                targets[teacher_key(head)] = predicted * weight
        network = self.network
        if training and self.side != faces.shape[1]:
            faces = ops.image.resize(
                faces, (self.side, self.side), antialias=True, data_format="channels_last"
            )
            network = self.network_at(self.side)
        logits = network(faces, training=training)
        return {
            **{f"logits_{head}": logits[head] for head in self.head_weights},
            **{f"targets_{name}": given for name, given in targets.items()},
        }

    def set_side(self, side: int) -> None:
        """Train on faces of another side from the next step on; the weights stay the network's.

        Raises:
            TrainingError: If the network cannot take faces of that side.
        """
        if side == self.side:
            return
        self.network_at(side)
        self.side = side
        # A new function object: JAX caches its traces by the function, which does not know of the side.
        self.train_step: Any = functools.partial(keras.Model.train_step, self)
        self.make_train_function(force=True)

    def _cross_entropy(
        self, head: str, outputs: dict[str, Any], smoothing: float, adjustment: Any = 0.0
    ) -> Any:
        """Return the sum over classes of target times -log p, for each face, of adjusted logits."""
        targets = ops.cast(outputs[f"targets_{head}"], "float32")
        if smoothing:
            weight = ops.sum(targets, axis=-1, keepdims=True)
            targets = targets * (1 - smoothing) + weight * (smoothing / targets.shape[-1])
        log_p = ops.log_softmax(ops.cast(outputs[f"logits_{head}"], "float32") + adjustment, axis=-1)
        return -ops.sum(targets * log_p, axis=-1)

    def _distillation(self, head: str, outputs: dict[str, Any]) -> Any:
        """Return the mean cross-entropy with the teachers' targets, both at the recipe's temperature."""
        logits = ops.cast(outputs[f"logits_{head}"], "float32")
        targets = ops.cast(outputs[f"targets_{teacher_key(head)}"], "float32")
        log_p = ops.log_softmax(logits / self.distil.temperature, axis=-1)
        losses, weights = -ops.sum(targets * log_p, axis=-1), ops.sum(targets, axis=-1)
        mean = self.means[f"{self.prefixes[head]}teacher_loss"]
        mean.update_state(losses / ops.maximum(weights, 1e-12), sample_weight=weights)
        return ops.mean(losses)

    def compute_loss(  # noqa: D102
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        del x, y, sample_weight  # call() has returned the targets with the logits
        objective = 0.0
        for head, head_weight in self.head_weights.items():
            adjustment = self.adjustments.get(head, 0.0) if training else 0.0
            loss = ops.mean(self._cross_entropy(head, y_pred, self.smoothing, adjustment))
            if head in self.distilled:
                # Gradients shrink with the square of the temperature; the factor keeps the teachers' share.
                share, factor = self.distil.weight, self.distil.temperature**2
                loss = (1 - share) * loss + share * factor * self._distillation(head, y_pred)
            objective = objective + head_weight * loss
            targets, logits = y_pred[f"targets_{head}"], y_pred[f"logits_{head}"]
            weights = ops.sum(ops.cast(targets, "float32"), axis=-1)
            losses = self._cross_entropy(head, y_pred, 0.0) / ops.maximum(weights, 1e-12)
            self.means[f"{self.prefixes[head]}loss"].update_state(losses, sample_weight=weights)
            right = ops.argmax(targets, axis=-1) == ops.argmax(logits, axis=-1)
            counted = ops.cast(weights > 0, "float32")
            self.means[f"{self.prefixes[head]}accuracy"].update_state(right, sample_weight=counted)
        self.means["objective"].update_state(objective)
        if self.l2:
            kernels = [v for v in self.network.trainable_variables if v.path.endswith("kernel")]
            squares = sum(ops.sum(ops.square(ops.cast(v, "float32"))) for v in kernels)
            objective = objective + 0.5 * self.l2 * squares
        return objective

    def compute_metrics(  # noqa: D102
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        del x, y, y_pred, sample_weight  # compute_loss() has updated the means
        return {name: mean.result() for name, mean in self.means.items()}

    @property
    def metrics(self) -> list[Any]:
        """The means, which Keras resets every epoch."""
        return list(self.means.values())

    def reseed(self, seed: int, epoch: int) -> None:
        """Set every generator (augmentation, dropout) from seed and epoch alone, so that a run can resume."""
        layers = self.network._flatten_layers(include_self=False, recursive=True)
        own: list[Any] = [getattr(layer, "seed_generator", None) for layer in layers]
        generators = [self.augmenter.generator, *(one for one in own if one is not None)]
        states = np.random.SeedSequence([seed, epoch]).generate_state(2 * len(generators))
        for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
            generator.state.assign(state.astype(generator.state.dtype))
