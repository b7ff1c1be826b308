"""A VGG with batch normalisation and global average pooling; width and depth are parameters."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ferkit.models.blocks import conv_bn
from ferkit.models.build import ArchitectureParams


class Params(ArchitectureParams):
    """``filters[k]`` and ``convolutions[k]`` of stage k; every stage but the last ends with pooling."""

    filters: tuple[int, ...] = Field(
        (32, 64, 128, 256), min_length=1, max_length=5, description="of each stage"
    )
    convolutions: tuple[int, ...] = Field(
        (1, 2, 2, 2), min_length=1, max_length=5, description="of each stage"
    )
    stage_dropout: float = Field(0.0, ge=0, lt=1, description="after each pooling")
    dropout: float = Field(0.3, ge=0, lt=1, description="before each head")


def features(x: Any, params: Params) -> Any:
    """Return ``[N, h, w, filters[-1]]``, h = s / 2^(stages - 1)."""
    from keras import layers

    if len(params.filters) != len(params.convolutions):
        raise ValueError("filters and convolutions need one entry per stage")
    for stage, (filters, count) in enumerate(zip(params.filters, params.convolutions, strict=True)):
        if stage:
            x = layers.MaxPooling2D(2)(x)
            if params.stage_dropout:
                x = layers.Dropout(params.stage_dropout)(x)
        for _ in range(count):
            x = conv_bn(x, filters)
    return x
