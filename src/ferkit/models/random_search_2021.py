"""The best network of Vulpe-Grigorași & Grigore (ATEE 2021), found by random search."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ferkit.models.build import ArchitectureParams


class Params(ArchitectureParams):
    """The parameters; the defaults are the published network, which takes 3.9 GMAC."""

    filters: tuple[int, ...] = Field(
        (256, 512, 384, 192, 384), min_length=1, max_length=8, description="of each convolution"
    )
    kernel: int = Field(3, ge=1, le=7, description="side of the kernels")
    pool: tuple[bool, ...] = Field(
        (False, True, True, True, True), description="whether each convolution is normalised and pooled"
    )
    conv_dropout: float = Field(0.4, ge=0, lt=1, description="after each pooling")
    dense: int = Field(256, ge=1, description="units of the dense layer")
    dense_dropout: float = Field(0.3, ge=0, lt=1, description="after the dense layer")
    width: float = Field(1.0, gt=0, le=2, description="factor of all filters and units")


def features(x: Any, params: Params) -> Any:
    """Return ``[N, dense]``; 'same' convolutions with ReLU, and after a pooled one BN, pool, dropout."""
    from keras import layers

    from ferkit.models.normalization import BatchNormalization

    if len(params.pool) != len(params.filters):
        raise ValueError(f"{len(params.filters)} convolutions need as many entries in pool")
    for filters, pooled in zip(params.filters, params.pool, strict=True):
        x = layers.Conv2D(
            max(round(filters * params.width), 1), params.kernel, padding="same", activation="relu"
        )(x)
        if pooled:
            x = BatchNormalization()(x)
            x = layers.MaxPooling2D(2)(x)
            x = layers.Dropout(params.conv_dropout)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(max(round(params.dense * params.width), 1), activation="relu")(x)
    x = BatchNormalization()(x)
    return layers.Dropout(params.dense_dropout)(x)
