"""Degraded faces: blur, low light, JPEG, downscaling, covered eyes or mouth, turned heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Face = NDArray[np.uint8]


def blur(face: Face, sigma: float, _: np.random.Generator) -> Face:
    """Return a face under a Gaussian blur of ``sigma`` pixels."""
    return np.asarray(cv2.GaussianBlur(face, (0, 0), sigma), np.uint8)


def darken(face: Face, light: float, rng: np.random.Generator) -> Face:
    """Return a face at a share of its light, with the noise of a sensor and of few photons."""
    lit = face * light
    noise = rng.normal(0, 1, face.shape) * np.sqrt(4 + 0.1 * lit)
    return np.asarray(np.clip(lit + noise, 0, 255), np.uint8)


def compress(face: Face, quality: float, _: np.random.Generator) -> Face:
    """Return a face as JPEG of that quality."""
    encoded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)


def shrink(face: Face, side: float, _: np.random.Generator) -> Face:
    """Return a face that was shrunk to ``side`` pixels and enlarged again."""
    small = cv2.resize(face, (int(side), int(side)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, face.shape[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def _cover(face: Face, left: float, top: float, right: float, bottom: float, gray: int) -> Face:
    side = len(face)
    box = [round(edge * side) for edge in (left, top, right, bottom)]
    covered = face.copy()
    covered[max(0, box[1]) : box[3], max(0, box[0]) : box[2]] = gray
    return covered


def cover_eyes(face: Face, size: float, _: np.random.Generator) -> Face:
    """Return a face with dark glasses over the eyes, ``size`` of the side high."""
    top, bottom = 0.40 - size / 2, 0.40 + size / 2
    glasses = _cover(face, 0.31 - 0.13, top, 0.31 + 0.13, bottom, 20)
    return _cover(glasses, 0.69 - 0.13, top, 0.69 + 0.13, bottom, 20)


def cover_mouth(face: Face, size: float, _: np.random.Generator) -> Face:
    """Return a face with a bright mask over the mouth, ``size`` of the side high."""
    return _cover(face, 0.18, 0.78 - size / 2, 0.82, 0.78 + size / 2, 210)


def turn(face: Face, degrees: float, rng: np.random.Generator) -> Face:
    """Return a face on a cylinder that is turned to a random side."""
    side = len(face)
    radius = 0.45 * side
    x = (np.arange(side) + 0.5 - side / 2) / radius
    angle = np.arcsin(np.clip(x, -1, 1)) + np.radians(degrees) * rng.choice((-1, 1))
    seen = np.where(np.abs(x) < 1, np.sin(np.clip(angle, -np.pi / 2, np.pi / 2)), x)
    source = seen * radius + side / 2 - 0.5
    columns = np.broadcast_to(source.astype(np.float32), (side, side))
    rows = np.broadcast_to(np.arange(side, dtype=np.float32)[:, None], (side, side))
    turned = cv2.remap(face, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8)


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to degrade a face, and its five steps."""

    name: str
    unit: str
    degrade: Callable[[Face, float, np.random.Generator], Face]
    steps: tuple[float, ...]


BLUR = Kind("blur", "sigma, pixels of 48", blur, (0.5, 0.8, 1.2, 1.8, 2.5))
LOW_LIGHT = Kind("low light", "share of the light", darken, (0.5, 0.3, 0.2, 0.12, 0.07))
KINDS = (
    BLUR,
    LOW_LIGHT,
    Kind("jpeg", "quality", compress, (40, 25, 15, 10, 5)),
    Kind("downscale", "side, pixels", shrink, (36, 28, 22, 16, 12)),
    Kind("covered eyes", "height, share of the side", cover_eyes, (0.06, 0.10, 0.14, 0.18, 0.24)),
    Kind("covered mouth", "height, share of the side", cover_mouth, (0.10, 0.16, 0.24, 0.32, 0.40)),
    Kind("turned", "degrees", turn, (10, 20, 30, 40, 50)),
)
"""The ways to degrade a face; sizes and positions are those of FER2013's crops."""


def degraded(faces: NDArray[np.uint8], kind: Kind, step: float) -> NDArray[np.uint8]:
    """Return faces uint8 ``[N, S, S]``, degraded."""
    rng = np.random.default_rng(0)
    return np.stack([kind.degrade(face, step, rng) for face in faces])
