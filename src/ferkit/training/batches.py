"""Batches of faces and soft targets, and how they reach Keras' training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ferkit.augment import balanced_rows
from ferkit.data import FaceDataset
from ferkit.training.recipe import Recipe


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """The batches of one epoch; seed and epoch alone decide the order of the faces.

    ``targets`` are sample-weighted soft targets float32 ``[N, K]`` by name.
    """

    def __init__(
        self, recipe: Recipe, dataset: FaceDataset, targets: Mapping[str, NDArray[np.float32]]
    ) -> None:
        super().__init__(workers=1)
        self.recipe, self.dataset, self.targets = recipe, dataset, dict(targets)
        self.batch_size = min(recipe.batch_size, len(dataset))
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw and shuffle the faces of an epoch."""
        rng = np.random.default_rng([self.recipe.seed, epoch])
        self.rows = balanced_rows(self.dataset.labels, self.recipe.data.balance, rng)

    def __len__(self) -> int:
        """Return the number of whole batches."""
        return len(self.rows) // self.batch_size

    def __getitem__(self, index: int) -> tuple[dict[str, Any]]:
        """Return the inputs of :class:`ferkit.training.network.TrainingModel`."""
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        batch: dict[str, Any] = {name: targets[rows] for name, targets in self.targets.items()}
        batch["face"] = self.dataset.images[rows]
        return (batch,)


def input_pipeline(batches: keras.utils.PyDataset) -> Any:
    """Return the batches in the form that ``fit`` takes, in their order, an epoch at a time.

    On TensorFlow this is a ``tf.data.Dataset`` without autotuning: the autotuning thread sleeps for up to a
    minute, and the end of an epoch sometimes waits for it (TensorFlow 2.21: 38 idle seconds in about every
    fifth epoch). On other backends the batches are returned as they are.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    def one_epoch() -> Iterator[Any]:
        return (batches[k] for k in range(len(batches)))

    signature = tf.nest.map_structure(
        lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), batches[0]
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_generator(one_epoch, output_signature=signature)
        .apply(tf.data.experimental.assert_cardinality(len(batches)))
        .prefetch(2)
        .with_options(options)
    )
