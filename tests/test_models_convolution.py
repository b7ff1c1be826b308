"""Joined images: the same convolution and the same gradients, for every number of images and side."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")
pytest.importorskip("tensorflow", reason="needs ferkit[train]")

import keras
import tensorflow as tf

from ferkit.models import build_model, convolution
from ferkit.models.convolution import Conv2D, images_per_row


@pytest.mark.parametrize(
    ("width", "count"), [(3, 8), (5, 4), (6, 4), (7, 4), (12, 2), (15, 2), (16, 1), (24, 1)]
)
def test_as_many_images_are_joined_as_fit_a_row(width, count):
    assert images_per_row(width) == count
    assert count * (width + 1) <= convolution.ROW


def gradients(layer, x, weights, upstream):
    """The output and the gradients of input and kernel, for a gradient ``upstream`` of the output."""
    layer.build(x.shape)
    layer.set_weights(weights)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * upstream)
    return [np.asarray(tf.cast(g, "float32")) for g in (y, *tape.gradient(loss, [x, layer.kernel.value]))]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("side", "step"), [(6, 1), (5, 1), (12, 1), (12, 2), (24, 2)])
def test_results_and_gradients_are_keras_own(count, side, step):
    """Whole numbers with sums below 256 are exact in bfloat16, so that the order of sums does not matter."""
    rng = np.random.default_rng(0)

    def ones(*shape):
        return rng.integers(-1, 2, shape).astype(np.float32)

    x = tf.cast(ones(count, side, side, 4), "bfloat16")
    upstream = tf.cast(ones(count, side // step, side // step, 5), "bfloat16")
    weights = [ones(3, 3, 4, 5)]
    options = {"strides": step, "padding": "same", "use_bias": False, "dtype": "mixed_bfloat16"}
    ours = Conv2D(5, 3, **options)
    got = gradients(ours, x, weights, upstream)
    assert ours._joins_images(x)
    for mine, keras_own in zip(
        got, gradients(keras.layers.Conv2D(5, 3, **options), x, weights, upstream), strict=True
    ):
        np.testing.assert_array_equal(mine, keras_own)
        assert np.abs(keras_own).max() < 256


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 6, 6, 4), {"dtype": "float32"}),
        ((2, 24, 24, 4), {}),
        ((2, 6, 6, 4), {"kernel_size": 1}),
        ((2, 7, 7, 4), {"strides": 2}),
        ((2, 6, 6, 4), {"padding": "valid"}),
        ((2, 6, 6, 4), {"dilation_rate": 2}),
        ((2, 6, 6, 4), {"groups": 2}),
        ((2, None, None, 4), {}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_to_keras(shape, options):
    layer = Conv2D(
        **{"filters": 4, "kernel_size": 3, "padding": "same", "dtype": "mixed_bfloat16", **options}
    )
    assert not layer._joins_images(keras.KerasTensor(shape))


def test_a_network_trains_to_gradients_as_exact_as_keras_own(monkeypatch):
    """Both against float32: how exact sums of bfloat16 are depends on the processor."""
    rng = np.random.default_rng(1)
    faces = rng.uniform(0, 255, (6, 48, 48, 1)).astype(np.float32)
    joins = []
    join = convolution._join_images
    monkeypatch.setattr(convolution, "_join_images", lambda *given: joins.append(given) or join(*given))

    def gradient(dtype, row):
        monkeypatch.setattr(convolution, "ROW", row)
        keras.utils.set_random_seed(3)
        network = build_model(
            "se-resnet", {"fer2013": 7}, dtype=dtype, stem=8, filters=(8, 8, 8), blocks=(1, 1, 1), dropout=0.0
        )

        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(network(x, training=True)["fer2013"][:, 0] ** 2)
            return tape.gradient(loss, [v.value for v in network.trainable_variables])

        return np.concatenate([np.asarray(g).ravel() for g in step(faces)])

    row = convolution.ROW
    exact, plain = gradient("float32", row), gradient("mixed_bfloat16", 1)
    assert not joins
    joined = gradient("mixed_bfloat16", row)
    assert len(joins) == 8, "the map and the gradient of each convolution with 12 or 6 places"
    ours, keras_own = (np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (joined, plain))
    assert ours < 1.5 * keras_own + 2**-8
