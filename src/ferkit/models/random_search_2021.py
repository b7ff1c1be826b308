"""The best network of Vulpe-Grigorași & Grigore (ATEE 2021), found by random search."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ferkit.models.build import ArchitectureParams


class Params(ArchitectureParams):
    """Convolutions in order with the places of pooling; the defaults are the published network.

    ``width`` multiplies every count of filters and units, for machines that cannot afford 3.9 GMAC.
    """

    filters: tuple[int, ...] = Field((256, 512, 384, 192, 384), min_length=1, max_length=8)
    kernel: int = Field(3, ge=1, le=7)
    pool: tuple[bool, ...] = (False, True, True, True, True)
    conv_dropout: float = Field(0.4, ge=0, lt=1)
    dense: int = Field(256, ge=1)
    dense_dropout: float = Field(0.3, ge=0, lt=1)
    width: float = Field(1.0, gt=0, le=2)


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
