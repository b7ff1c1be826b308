"""mini-XCEPTION (Arriaga et al. 2017): separable convolutions with residuals, about 58 k parameters."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ferkit.models.build import ArchitectureParams


class Params(ArchitectureParams):
    """The parameters of mini-XCEPTION."""

    resize: int | None = Field(64, ge=16, le=256, description="side that faces are resized to in the graph")
    filters: tuple[int, ...] = Field(
        (16, 32, 64, 128), min_length=1, max_length=6, description="of each module"
    )


def features(x: Any, params: Params) -> Any:
    """Return ``[N, h, w, filters[-1]]``."""
    from keras import layers

    from ferkit.models.normalization import BatchNormalization

    if params.resize is not None and params.resize != x.shape[1]:
        x = layers.Resizing(params.resize, params.resize, interpolation="bilinear")(x)
    for _ in range(2):
        x = layers.Conv2D(8, 3, use_bias=False)(x)
        x = BatchNormalization()(x)
        x = layers.Activation("relu")(x)
    for filters in params.filters:
        # A 1x1 convolution of stride 2 in two steps, with the same result: in one step, the kernel's gradient
        # of TensorFlow 2.21 crashes on processors with AVX-512 (8 channels at 60 pixels).
        residual = layers.MaxPooling2D(1, strides=2, padding="same")(x)
        residual = layers.Conv2D(filters, 1, use_bias=False)(residual)
        residual = BatchNormalization()(residual)
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        x = BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        x = BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.Add()([x, residual])
    return x


def head(body: Any, classes: int, params: Params, name: str) -> Any:  # noqa: ARG001
    """A 3x3 convolution to one map per class, and its mean."""
    from keras import layers

    maps = layers.Conv2D(classes, 3, padding="same", name=name.replace("logits", "maps"))(body)
    return layers.GlobalAveragePooling2D(dtype="float32", name=name)(maps)
