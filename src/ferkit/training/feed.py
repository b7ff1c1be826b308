"""How batches reach Keras' training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


def fed(batches: keras.utils.PyDataset) -> Any:
    """Return what ``fit`` is given for these batches, in their order, an epoch at a time.

    On TensorFlow that is a ``tf.data.Dataset`` without its autotuning: the thread that tunes sleeps for up
    to a minute, and the end of an epoch now and then waits for it (seen in TensorFlow 2.21: 38 idle seconds
    every fifth epoch or so). Elsewhere it is the batches themselves.

    Args:
        batches: Not empty; every batch a tuple of dictionaries of arrays.
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
