"""Augmentation as a Keras layer of ``keras.ops``, for every backend and inside a compiled step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, random
from numpy.typing import NDArray

from ferkit.augment.config import PRESETS, AugmentConfig
from ferkit.core.errors import RecipeError

_ROWS = np.arange(8)
_COSINES = np.sqrt(np.where(_ROWS == 0, 1, 2) / 8)[:, None] * np.cos(
    np.pi * (2 * _ROWS[None] + 1) * _ROWS[:, None] / 16
)
_COSINES = _COSINES.astype(np.float32)
"""The orthonormal discrete cosine transform of eight values."""

_QUANTISATION = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
"""The table of luminance in annex K of the JPEG standard."""


class Augmenter(keras.layers.Layer):  # type: ignore[misc]
    """Augment a batch of faces and, with mixup and cutmix, their targets.

    Example:
        ``images, targets = Augmenter(PRESETS["modern"])(images, {"fer2013": one_hot})``

    The order is that of a photo: what covers the face, pose, light, the lens, the sensor, the file.
    Mirror, flip, rotation, shift, zoom and stretch are one affine map, so that pixels are interpolated once;
    edges are replicated, as in ten-crop. Bilinear interpolation removes the finest detail of a face;
    ``cubic`` reads from a grid of twice the points and keeps most of it. Every image draws its own numbers.
    Mixup: Zhang et al. 2018; cutmix: Yun et al. 2019; erasing: Zhong et al. 2020, filled with one random gray
    value.
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
        if c.glasses:
            x = self._some(x, c.glasses, self._add_glasses)
        if c.mask:
            x = self._some(x, c.mask, self._add_mask)
        if c.yaw:
            x = self._turn(x)
        if c.moves:
            x = self._move(x)
        if c.brightness or c.contrast or c.gamma:
            x = self._light(x)
        if c.blur:
            x = self._some(x, c.blur, self._blur)
        if c.downscale:
            x = self._some(x, c.downscale, self._downscale)
        if c.low_light:
            x = self._some(x, c.low_light, self._darken)
        if c.jpeg:
            x = self._some(x, c.jpeg, self._compress)
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
        x = ops.clip((x - mean) * contrast + mean + light, 0, 255)
        if c.gamma:
            limit = math.log1p(c.gamma)
            exponent = ops.exp(ops.reshape(self._uniform(n, -limit, limit), column))
            x = 255 * ops.power(x / 255, exponent)
        return x

    def _some(self, x: Any, probability: float, change: Callable[[Any], Any]) -> Any:
        """Change the images that are drawn with a probability; of the others few are computed."""
        n, share = ops.shape(x)[0], min(1.0, 1.25 * probability)
        if isinstance(n, int):
            some = count = math.ceil(share * n)  # JAX needs a plain number
        else:  # TensorFlow may know n only when it runs
            count = ops.ceil(share * ops.cast(n, "float32"))
            some, n = ops.cast(count, "int32"), ops.cast(n, "float32")
        rows = random.shuffle(ops.arange(ops.shape(x)[0]), seed=self.generator)[:some]
        given = ops.take(x, rows, axis=0)
        taken = self._uniform(some) * count < probability * n
        changed = ops.where(ops.reshape(taken, (-1, 1, 1, 1)), change(given), given)
        return ops.scatter_update(x, rows[:, None], changed)

    def _ellipse(self, side: int, x0: Any, y0: Any, half_width: Any, half_height: Any) -> Any:
        """Return masks float32 ``[N, S, S, 1]``: 1 inside a rounded shape; arguments are shares of a side."""
        grid = (ops.arange(side, dtype="float32") + 0.5) / side
        x0, y0, half_width, half_height = (
            ops.reshape(one, (-1, 1, 1, 1)) for one in (x0, y0, half_width, half_height)
        )
        across = (ops.reshape(grid, (1, 1, -1, 1)) - x0) / half_width
        down = (ops.reshape(grid, (1, -1, 1, 1)) - y0) / half_height
        return ops.cast(across**4 + down**4 < 1, "float32")

    def _paint(self, x: Any, mask: Any, grays: tuple[float, float], opacities: tuple[float, float]) -> Any:
        n, column = ops.shape(x)[0], (-1, 1, 1, 1)
        gray = ops.reshape(self._uniform(n, *grays), column)
        return x + mask * ops.reshape(self._uniform(n, *opacities), column) * (gray - x)

    def _add_glasses(self, x: Any) -> Any:
        """Draw sunglasses where the eyes are in FER2013's crops, with some play."""
        n, side = ops.shape(x)[0], x.shape[1]
        middle, y = self._uniform(n, 0.47, 0.53), self._uniform(n, 0.37, 0.43)
        apart = self._uniform(n, 0.17, 0.21)
        width, height = self._uniform(n, 0.11, 0.16), self._uniform(n, 0.06, 0.12)
        bar = self._ellipse(side, middle, y - 0.3 * height, apart, 0.02 * ops.ones_like(y))
        left, right = (self._ellipse(side, x0, y, width, height) for x0 in (middle - apart, middle + apart))
        return self._paint(x, ops.minimum(left + right + bar, 1.0), (0, 70), (0.75, 1))

    def _add_mask(self, x: Any) -> Any:
        """Draw a mask where the mouth is in FER2013's crops, with some play."""
        n, side = ops.shape(x)[0], x.shape[1]
        top = self._uniform(n, 0.54, 0.66)
        height = (1.02 - top) / 2
        middle, width = self._uniform(n, 0.46, 0.54), self._uniform(n, 0.26, 0.36)
        return self._paint(x, self._ellipse(side, middle, top + height, width, height), (20, 240), (0.9, 1))

    def _turn(self, x: Any) -> Any:
        """Turn heads to a side: the picture lies on a cylinder, whose hidden part repeats its edge."""
        n, side = ops.shape(x)[0], x.shape[1]
        radius = 0.45 * side
        limit = math.radians(self.config.yaw)
        turned = ops.reshape(self._uniform(n, -limit, limit), (-1, 1))
        across = (np.arange(side) + 0.5 - side / 2) / radius
        inside = np.abs(across) < 1
        angle = ops.convert_to_tensor(np.arcsin(np.clip(across, -1, 1)), "float32") + turned
        seen = ops.sin(ops.clip(angle, -math.pi / 2, math.pi / 2))
        source = ops.where(inside, seen, ops.convert_to_tensor(across, "float32")) * radius + side / 2 - 0.5
        source = ops.clip(source, 0, side - 1)
        left = ops.floor(source)
        share = ops.reshape(source - left, (-1, 1, side, 1))
        columns = ops.reshape(ops.cast(left, "int32"), (-1, 1, side, 1)) * ops.ones((1, side, 1, 1), "int32")
        first = ops.take_along_axis(x, columns, axis=2)
        second = ops.take_along_axis(x, ops.minimum(columns + 1, side - 1), axis=2)
        return first + share * (second - first)

    def _blur(self, x: Any) -> Any:
        """Blur by a Gaussian, each image by one of its own."""
        c = self.config
        n, side = ops.shape(x)[0], x.shape[1]
        low, high = (sigma * side / 48 for sigma in c.blur_sigma)
        sigma = ops.reshape(self._uniform(n, low, high), (-1, 1))
        reach = max(1, math.ceil(3 * high))
        offsets = np.arange(-reach, reach + 1, dtype=np.float32)[None]
        weights = ops.exp(-(offsets**2) / (2 * sigma**2))
        weights = weights / ops.sum(weights, axis=1, keepdims=True)
        blurred = x
        for axis in (1, 2):
            padding = [(reach, reach) if k == axis else (0, 0) for k in range(4)]
            wide = ops.pad(blurred, padding, mode="symmetric")
            blurred = sum(
                ops.reshape(weights[:, k], (-1, 1, 1, 1))
                * (wide[:, k : k + side] if axis == 1 else wide[:, :, k : k + side])
                for k in range(2 * reach + 1)
            )
        return blurred

    def _downscale(self, x: Any) -> Any:
        """Shrink to one of a few sizes, and enlarge again."""
        c = self.config
        n, side = ops.shape(x)[0], x.shape[1]
        which = self._uniform(n, 0, len(c.downscale_to))
        result = x
        for k, share in enumerate(c.downscale_to):
            small = max(1, round(share * side))
            shrunk = ops.image.resize(x, (small, small), antialias=True, data_format="channels_last")
            enlarged = ops.image.resize(shrunk, (side, side), data_format="channels_last")
            taken = ops.reshape(ops.cast(ops.floor(which) == k, "float32"), (-1, 1, 1, 1))
            result = result + taken * (enlarged - x)
        return result

    def _darken(self, x: Any) -> Any:
        """Take light away, and add the noise of a sensor and of few photons."""
        n = ops.shape(x)[0]
        light = ops.exp(self._uniform(n, math.log(0.2), math.log(0.5)))
        lit = x * ops.reshape(light, (-1, 1, 1, 1))
        noise = random.normal(ops.shape(x), seed=self.generator) * ops.sqrt(4 + 0.1 * lit)
        return ops.clip(lit + noise, 0, 255)

    def _compress(self, x: Any) -> Any:
        """Compress as JPEG does: quantised cosine transforms of blocks of 8 x 8 pixels."""
        c = self.config
        n, side = ops.shape(x)[0], x.shape[1]
        quality = ops.reshape(self._uniform(n, *c.jpeg_quality), (-1, 1, 1, 1, 1))
        # libjpeg's scale of its table, in percent.
        scale = ops.where(quality < 50, 5000 / quality, 200 - 2 * quality)
        steps = ops.clip(ops.floor((_QUANTISATION[None, None, :, None] * scale + 50) / 100), 1, 255)
        rest = -side % 8
        wide = ops.pad(x[..., 0], [(0, 0), (0, rest), (0, rest)], mode="symmetric") if rest else x[..., 0]
        blocks = (side + rest) // 8
        tiles = ops.reshape(wide - 128, (-1, blocks, 8, blocks, 8))
        cosines = ops.einsum("ui,nbicj,vj->nbucv", _COSINES, tiles, _COSINES)
        kept = ops.round(cosines / steps) * steps
        back = ops.einsum("ui,nbucv,vj->nbicj", _COSINES, kept, _COSINES) + 128
        picture = ops.reshape(back, (-1, blocks * 8, blocks * 8))[:, :side, :side, None]
        return ops.clip(ops.round(picture), 0, 255)

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
