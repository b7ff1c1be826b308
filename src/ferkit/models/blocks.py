"""Building blocks that several architectures share."""

from __future__ import annotations

from typing import Any


def conv_bn(
    x: Any, filters: int, kernel: int = 3, *, strides: int = 1, activation: str | None = "relu"
) -> Any:
    """Convolution ('same', no bias), batch normalisation and an activation."""
    from keras import layers

    from ferkit.models.convolution import Conv2D
    from ferkit.models.normalization import BatchNormalization

    x = Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    x = BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return x if activation is None else layers.Activation(activation)(x)


def squeeze_excite(x: Any, ratio: int) -> Any:
    """Weigh the channels by a small network over their means (Hu et al. 2018)."""
    from keras import layers

    channels = x.shape[-1]
    weights = layers.GlobalAveragePooling2D(keepdims=True)(x)
    weights = layers.Conv2D(max(channels // ratio, 4), 1, activation="relu")(weights)
    weights = layers.Conv2D(channels, 1, activation="sigmoid")(weights)
    return layers.Multiply()([x, weights])


def stochastic_depth(x: Any, rate: float) -> Any:
    """Drop the whole branch of an image with probability ``rate`` in training (Huang et al. 2016)."""
    from keras import layers

    return layers.Dropout(rate, noise_shape=(None, 1, 1, 1))(x) if rate else x
