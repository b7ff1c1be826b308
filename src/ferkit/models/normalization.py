"""Batch normalisation with TensorFlow's fused operation."""

from __future__ import annotations

from typing import Any

import keras


class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Keras' layer; on TensorFlow, training on maps uses the fused operation.

    Keras composes the normalisation of many small operations, which on a CPU take longer than the convolution
    before them. The fused operation computes the same numbers in one pass, in float32 where the maps are
    bfloat16. Weights, names and everything outside training are Keras' own.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise by the batch's statistics in training, otherwise by the moving averages."""
        fused = (
            training
            and self.trainable
            and keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.center
            and self.scale
            and mask is None
        )
        return self._fused(inputs) if fused else super().call(inputs, training=training, mask=mask)

    def _fused(self, x: Any) -> Any:
        import tensorflow as tf

        unused = tf.zeros((0,))
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.cast(self.gamma, "float32"),
            offset=tf.cast(self.beta, "float32"),
            mean=unused,
            variance=unused,
            epsilon=self.epsilon,
            is_training=True,
        )
        # The operation returns the unbiased variance; Keras averages the biased one.
        samples = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), "float32")
        variance = variance * ((samples - 1) / samples)
        for average, seen in ((self.moving_mean, mean), (self.moving_variance, variance)):
            new = tf.stop_gradient(tf.cast(seen, average.dtype))
            average.assign(average * self.momentum + new * (1 - self.momentum))
        return y
