"""Augmentation as a Keras layer of ``keras.ops``, for every backend and inside a compiled step."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops, random
from numpy.typing import NDArray

from ferkit.augment.config import PRESETS, AugmentConfig
from ferkit.core.errors import RecipeError


class Augmenter(keras.layers.Layer):  # type: ignore[misc]
    """Augment a batch of faces and, with mixup and cutmix, their targets.

    Example:
        ``images, targets = Augmenter(PRESETS["modern"])(images, {"fer2013": one_hot})``

    Mirror, flip, rotation, shift, zoom and stretch are one affine map, so that pixels are interpolated once;
    edges are replicated, as in ten-crop. Bilinear interpolation removes the finest detail of a face;
    ``cubic`` reads from a grid of twice the points and keeps most of it. Every image draws its own numbers.
    Mixup: Zhang et al. 2018; cutmix: Yun et al. 2019; erasing: Zhong et al. 2020, filled with one random gray
    value.

    Args:
        config: The parameters.
        seed: Seed of the generator.
    """

    def __init__(self, config: AugmentConfig, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.generator = random.SeedGenerator(seed)
        # XLA has no operation for TensorFlow's affine maps; Keras would choose XLA where there is a GPU.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        self.built = True

    def call(self, images: Any, targets: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return augmented images float32 ``[N, S, S, 1]`` in 0..255, and targets ``[N, K]`` by head."""
        c = self.config
        x = ops.cast(images, "float32")
        if c.moves:
            x = self._move(x)
        if c.brightness or c.contrast:
            x = self._light(x)
        if c.erasing:
            x = self._erase(x)
        if (c.mixup or c.cutmix) and c.mix_probability:
            x, targets = self._mix(x, targets)
        return x, targets

    def _uniform(self, n: Any, low: float = 0.0, high: float = 1.0) -> Any:
        return random.uniform((n,), low, high, seed=self.generator)

    def _move(self, x: Any) -> Any:
        c = self.config
        n, side = ops.shape(x)[0], x.shape[1]
        angle = self._uniform(n, -math.radians(c.rotation), math.radians(c.rotation))
        scale = ops.exp(self._uniform(n, math.log(c.zoom[0]), math.log(c.zoom[1])))
        stretch = ops.exp(self._uniform(n, -math.log1p(c.stretch), math.log1p(c.stretch)) / 2)
        mirror = ops.where(self._uniform(n) < c.mirror, -1.0, 1.0)
        flip = ops.where(self._uniform(n) < c.upside_down, -1.0, 1.0)
        # By whole pixels, so that faces that are only shifted or mirrored are not blurred.
        dx = ops.round(self._uniform(n, -c.shift, c.shift) * side)
        dy = ops.round(self._uniform(n, -c.shift, c.shift) * side)
        cos, sin = ops.cos(angle) / scale, ops.sin(angle) / scale
        # The rows of the affine map from a pixel of the result to a pixel of the source, about the middle.
        a, b = cos * stretch * mirror, -sin * mirror
        d, e = sin * flip, cos / stretch * flip
        middle = (side - 1) / 2
        zero = ops.zeros_like(a)
        # On the grid of twice the points every step is twice as long.
        finer = 2 if c.interpolation == "cubic" else 1
        if finer == 2:
            x = _halfway(_halfway(x, 1), 2)
        rows = [a, b, middle + dx - (a + b) * middle, d, e, middle + dy - (d + e) * middle, zero, zero]
        return _warp(x, finer * ops.stack(rows, axis=1), side)

    def _light(self, x: Any) -> Any:
        c = self.config
        n = ops.shape(x)[0]
        column = (-1, 1, 1, 1)
        mean = ops.mean(x, axis=(1, 2, 3), keepdims=True)
        contrast = ops.reshape(self._uniform(n, 1 - c.contrast, 1 + c.contrast), column)
        light = ops.reshape(self._uniform(n, -c.brightness, c.brightness), column) * 255
        return ops.clip((x - mean) * contrast + mean + light, 0, 255)

    def _box(self, n: Any, side: int, area: Any, aspect: Any) -> Any:
        """Return masks float32 ``[N, S, S, 1]``: 1 inside a box of that area, at a random place."""
        column = (-1, 1, 1, 1)
        grid = ops.arange(side, dtype="float32") + 0.5
        half_height = ops.sqrt(area * aspect) * side / 2
        half_width = ops.sqrt(area / aspect) * side / 2
        y = ops.reshape(self._uniform(n) * side, column)
        x = ops.reshape(self._uniform(n) * side, column)
        inside_y = ops.abs(ops.reshape(grid, (1, -1, 1, 1)) - y) < ops.reshape(half_height, column)
        inside_x = ops.abs(ops.reshape(grid, (1, 1, -1, 1)) - x) < ops.reshape(half_width, column)
        return ops.cast(ops.logical_and(inside_y, inside_x), "float32")

    def _erase(self, x: Any) -> Any:
        c = self.config
        n, side = ops.shape(x)[0], x.shape[1]
        aspect = ops.exp(self._uniform(n, -1.0, 1.0))
        mask = self._box(n, side, self._uniform(n, *c.erasing_area), aspect)
        on = ops.cast(self._uniform(n) < c.erasing, "float32")
        mask = mask * ops.reshape(on, (-1, 1, 1, 1))
        gray = ops.reshape(self._uniform(n, 0.0, 255.0), (-1, 1, 1, 1))
        return x * (1 - mask) + gray * mask

    def _mix(self, x: Any, targets: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Mix every image with its neighbour in the (shuffled) batch."""
        c = self.config
        n, side = ops.shape(x)[0], x.shape[1]
        on = self._uniform(n) < c.mix_probability
        cut = self._uniform(n) < (0.5 if c.mixup and c.cutmix else float(bool(c.cutmix)))
        drawn = random.beta((n,), c.mixup or 1.0, c.mixup or 1.0, seed=self.generator)
        own = ops.maximum(drawn, 1 - drawn)
        other = ops.roll(x, 1, axis=0)
        share = ops.where(ops.logical_and(on, ops.logical_not(cut)), own, 1.0)
        mixed = other + ops.reshape(share, (-1, 1, 1, 1)) * (x - other)
        if c.cutmix:
            drawn = random.beta((n,), c.cutmix, c.cutmix, seed=self.generator)
            mask = self._box(n, side, 1 - drawn, ops.ones_like(drawn))
            mask = mask * ops.reshape(ops.cast(ops.logical_and(on, cut), "float32"), (-1, 1, 1, 1))
            mixed = mixed * (1 - mask) + other * mask
            # A box at the border covers less than its area: the share is what was pasted.
            share = share * (1 - ops.mean(mask, axis=(1, 2, 3)))
        column = ops.reshape(share, (-1, 1))
        blend = {
            k: ops.roll(t, 1, axis=0) + column * (t - ops.roll(t, 1, axis=0)) for k, t in targets.items()
        }
        return mixed, blend


def _warp(x: Any, transform: Any, side: int) -> Any:
    """Sample ``[N, side, side, 1]`` by affine maps from images that may be larger; edges are replicated."""
    if keras.backend.backend() == "tensorflow" and x.shape[1] != side:
        import tensorflow as tf

        # Keras' operation would compute as many pixels as the larger image has.
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x,
            transforms=transform,
            output_shape=(side, side),
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )
    warped = ops.image.affine_transform(
        x, transform, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
    )
    return warped[:, :side, :side]


def _halfway(x: Any, axis: int) -> Any:
    """Insert a point between each two along an axis by cubic convolution (Keys 1981), edges replicated.

    Returns ``2 n`` points for ``n``; the given ones are unchanged, at even positions.
    """
    n = x.shape[axis]

    def cut(source: Any, begin: int, end: int) -> Any:
        return source[tuple(slice(begin, end) if k == axis else slice(None) for k in range(4))]

    last = cut(x, n - 1, n)
    wide = ops.concatenate([cut(x, 0, 1), x, last], axis=axis)
    inner = (9 * (cut(x, 0, n - 1) + cut(x, 1, n)) - cut(wide, 0, n - 1) - cut(wide, 3, n + 2)) / 16
    both = ops.stack([x, ops.concatenate([inner, last], axis=axis)], axis=axis + 1)
    return ops.reshape(both, (-1, *(2 * n if k == axis else x.shape[k] for k in range(1, 4))))


def augment_preview(
    images: NDArray[np.uint8], preset: str | AugmentConfig, seed: int = 0
) -> NDArray[np.uint8]:
    """Return augmented faces uint8 ``[N, S, S]``, for a preview.

    Args:
        images: uint8 ``[N, S, S]``.
        preset: Name in :data:`PRESETS`, or a configuration; an unknown name is a RecipeError.
        seed: Seed of the randomness.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise RecipeError(f"unknown augmentation {preset!r}; known are {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    batch = images[..., None].astype(np.float32)
    faces, _ = Augmenter(preset, seed)(batch, {})
    return np.asarray(ops.convert_to_numpy(faces)[..., 0].round().clip(0, 255), np.uint8)
