"""A residual network with squeeze-and-excitation and global pooling; width and depth are parameters."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ferkit.models.blocks import conv_bn, squeeze_excite, stochastic_depth
from ferkit.models.build import ArchitectureParams


class Params(ArchitectureParams):
    """``filters[k]`` and ``blocks[k]`` of stage k; every stage but the first begins with a stride of 2."""

    stem: int = Field(32, ge=4, description="filters of the first convolution")
    stem_stride: int = Field(
        2, ge=1, le=2, description="of the stem; 2 halves the side before the first block"
    )
    stem_depth: int = Field(1, ge=1, le=3, description="convolutions; all but the last at the full side")
    filters: tuple[int, ...] = Field((48, 96, 192), min_length=1, max_length=5, description="of each stage")
    blocks: tuple[int, ...] = Field((1, 1, 1), min_length=1, max_length=5, description="of each stage")
    squeeze: int = Field(8, ge=0, description="ratio of squeeze-and-excitation; 0 leaves it out")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block")
    dropout: float = Field(0.2, ge=0, lt=1, description="before each head")


def features(x: Any, params: Params) -> Any:
    """Return ``[N, h, w, filters[-1]]``, h = s / (stem_stride * 2^(stages - 1))."""
    if len(params.filters) != len(params.blocks):
        raise ValueError("filters and blocks need one entry per stage")
    for _ in range(params.stem_depth - 1):  # half as wide, at four times as many places
        x = conv_bn(x, max(params.stem // 2, 4))
    x = conv_bn(x, params.stem, strides=params.stem_stride)
    total = sum(params.blocks)
    done = 0
    for stage, (filters, count) in enumerate(zip(params.filters, params.blocks, strict=True)):
        for block in range(count):
            done += 1
            strides = 2 if stage and not block else 1
            x = _block(x, filters, strides, params.squeeze, params.drop_path * done / total)
    return x


def _block(x: Any, filters: int, strides: int, squeeze: int, drop: float) -> Any:
    """Two 3x3 convolutions and a shortcut, which is pooled and projected where the shape changes."""
    from keras import layers

    shortcut = x
    y = conv_bn(x, filters, strides=strides)
    y = conv_bn(y, filters, activation=None)
    if squeeze:
        y = squeeze_excite(y, squeeze)
    y = stochastic_depth(y, drop)
    if strides != 1:
        shortcut = layers.AveragePooling2D(strides)(shortcut)
    if x.shape[-1] != filters:
        shortcut = conv_bn(shortcut, filters, 1, activation=None)
    return layers.Activation("relu")(layers.Add()([y, shortcut]))
