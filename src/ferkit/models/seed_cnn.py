"""The student project's network: four convolutions 32-32-64-64, two dense layers of 1024 and 4096."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ferkit.models.build import ArchitectureParams


class Params(ArchitectureParams):
    """The parameters; the defaults are the student's network."""

    filters: tuple[int, ...] = Field(
        (32, 32, 64, 64), min_length=1, max_length=5, description="of each convolution"
    )
    kernel: int = Field(3, ge=1, le=7, description="side of the kernels")
    dense: tuple[int, ...] = Field((1024, 4096), max_length=4, description="units of each dense layer")
    dropout: float = Field(0.2, ge=0, lt=1, description="after each dense layer")


def features(x: Any, params: Params) -> Any:
    """Return ``[N, dense[-1]]``; 3x3 'same' convolutions with ReLU, max-pooling after each."""
    from keras import layers

    for filters in params.filters:
        x = layers.Conv2D(filters, params.kernel, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    for units in params.dense:
        x = layers.Dense(units, activation="relu")(x)
        x = layers.Dropout(params.dropout)(x)
    return x
