"""Images side by side: the same convolution and the same gradients, for every number of images and side."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras", reason="needs ferkit[train]")
pytest.importorskip("tensorflow", reason="needs ferkit[train]")

import keras
import tensorflow as tf

from ferkit.models import build_model, convolution
from ferkit.models.convolution import Conv2D, joined


@pytest.mark.parametrize(
    ("width", "count"), [(3, 8), (5, 4), (6, 4), (7, 4), (12, 2), (15, 2), (16, 1), (24, 1)]
)
def test_as_many_stand_side_by_side_as_fit_a_row(width, count):
    assert joined(width) == count
    assert count * (width + 1) <= convolution.ROW


def gradients(layer, x, weights):
    layer.build(x.shape)
    layer.set_weights(weights)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        # Every place counts differently, so that an image that goes to another's place shows.
        places = tf.reshape(
            tf.range(tf.size(y), dtype="float32") / tf.cast(tf.size(y), "float32"), tf.shape(y)
        )
        loss = tf.reduce_sum(tf.cast(y, "float32") * tf.cast(places, "float32"))
    return [np.asarray(tf.cast(g, "float32")) for g in (y, *tape.gradient(loss, [x, layer.kernel.value]))]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("side", "step"), [(6, 1), (5, 1), (12, 1), (12, 2), (24, 2)])
def test_results_and_gradients_are_keras_own(count, side, step):
    rng = np.random.default_rng(0)
    x = tf.cast(rng.normal(size=(count, side, side, 4)), "bfloat16")
    weights = [rng.normal(size=(3, 3, 4, 5)).astype(np.float32)]
    options = {"strides": step, "padding": "same", "use_bias": False, "dtype": "mixed_bfloat16"}
    ours = Conv2D(5, 3, **options)
    got = gradients(ours, x, weights)
    expected = gradients(keras.layers.Conv2D(5, 3, **options), x, weights)
    assert ours._joins(x)
    for mine, keras_own in zip(got[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(mine, keras_own)
    # bfloat16 has 8 bits, and the sums come in another order.
    np.testing.assert_allclose(got[2], expected[2], rtol=2**-7, atol=2**-7 * np.abs(expected[2]).max())


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
    assert not layer._joins(keras.KerasTensor(shape))


def test_a_network_trains_to_the_same_gradients_with_and_without(monkeypatch):
    rng = np.random.default_rng(1)
    faces = rng.uniform(0, 255, (6, 48, 48, 1)).astype(np.float32)
    seen, ways = [], []
    beside = convolution._beside
    monkeypatch.setattr(convolution, "_beside", lambda *given: ways.append(given) or beside(*given))
    for row in (1, convolution.ROW):
        assert not ways
        monkeypatch.setattr(convolution, "ROW", row)
        keras.utils.set_random_seed(3)
        network = build_model(
            "se-resnet", {"fer2013": 7}, dtype="mixed_bfloat16", stem=8, filters=(8, 8, 8), blocks=(1, 1, 1),
            dropout=0.0,
        )  # fmt: skip

        @tf.function
        def step(x, network=network):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(network(x, training=True)["fer2013"][:, 0] ** 2)
            return tape.gradient(loss, [v.value for v in network.trainable_variables])

        seen.append(np.concatenate([np.asarray(g).ravel() for g in step(faces)]))
    assert len(ways) == 8, "the map and the gradient of each convolution that ends in 12 or 6 places"
    plain, side_by_side = seen
    np.testing.assert_allclose(side_by_side, plain, atol=0.01 * np.abs(plain).max())
