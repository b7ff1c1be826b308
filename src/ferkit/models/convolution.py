"""A convolution that computes the kernel's gradient of narrow bfloat16 maps in wider rows."""

from __future__ import annotations

from typing import Any

import keras

ROW = 32
"""Places of a row that a matrix unit (AMX, bfloat16) processes at once; narrower rows use it in part."""


class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Keras' layer; on TensorFlow without a GPU, images of narrow bfloat16 maps are joined for one gradient.

    The gradient of a 3x3 kernel sums over all places of all images. oneDNN (3.7, in TensorFlow 2.21) sums
    row by row, and a row of 6 places takes as long as one of 32. The images are therefore joined to wider
    rows, separated by zeros, whose gradient is zero: the same terms are added in another order. Weights,
    names, results and the gradient of the input are Keras' own.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve."""
        if not self._joins_images(inputs):
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, kernel, self.strides[0], images_per_row(self._output_width(inputs)))

    def _output_width(self, inputs: Any) -> int:
        return int(inputs.shape[2]) // int(self.strides[0])

    def _joins_images(self, inputs: Any) -> bool:
        if keras.backend.backend() != "tensorflow" or self.compute_dtype != "bfloat16":
            return False
        import tensorflow as tf

        step = self.strides[0]
        return (
            self.kernel_size == (3, 3)
            and self.strides in ((1, 1), (2, 2))
            and self.padding == "same"
            and self.dilation_rate == (1, 1)
            and self.groups == 1
            and self.data_format == "channels_last"
            and None not in inputs.shape[1:3]
            and all(side % step == 0 for side in inputs.shape[1:3])
            and images_per_row(self._output_width(inputs)) > 1
            and not tf.config.list_physical_devices("GPU")
        )


def images_per_row(width: int) -> int:
    """Return how many images of that width fit into :data:`ROW`, each with a gap: a power of two."""
    count = 1
    while 2 * count * (width + 1) <= ROW:
        count *= 2
    return count


def _convolve(x: Any, kernel: Any, step: int, count: int) -> Any:
    import tensorflow as tf

    strides = [1, step, step, 1]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def convolve(x: Any, kernel: Any) -> tuple[Any, Any]:
        def gradient(dy: Any) -> tuple[Any, Any]:
            dx = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, strides=strides, padding="SAME"
            )
            dkernel = tf.raw_ops.Conv2DBackpropFilter(
                input=_join_images(x, count, step),
                filter_sizes=tf.shape(kernel),
                out_backprop=_join_images(dy, count, 1),
                strides=strides,
                padding="SAME",
            )
            return dx, dkernel

        return tf.nn.conv2d(x, kernel, strides, "SAME"), gradient

    return convolve(x, tf.cast(kernel, x.dtype))  # the gradient function does not accept a variable


def _join_images(x: Any, count: int, gap: int) -> Any:
    """Join ``count`` images of ``[N, h, w, C]`` side by side, each followed by zeros; N is padded."""
    import tensorflow as tf

    n = tf.shape(x)[0]
    x = tf.pad(x, [[0, -n % count], [0, 0], [0, 0], [0, 0]])
    parts = tf.split(x, count)
    zeros = tf.zeros_like(parts[0][:, :, :gap])
    return tf.concat([piece for part in parts for piece in (part, zeros)], axis=2)
