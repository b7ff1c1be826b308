"""Drawn faces with seven expressions, in any number and for any seed: data that is always available."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, FERPLUS, FERPLUS_TO_FER2013
from ferkit.data.dataset import VOTE_COLUMNS, FaceDataset

DEFAULT_COUNT = 2100
"""Faces of a plain ``cartoon``: 300 of each expression."""

MAX_COUNT = 1_000_000

TAGGERS = 10
"""Votes per face, as in FER+."""

_NO_EMOTION = [VOTE_COLUMNS.index("unknown"), VOTE_COLUMNS.index("NF")]
_UNCLEAR = 0.01
"""Share of faces that most taggers call unknown, and share that they call no face; FER+ has both."""

_OVERSAMPLING = 2
"""Factor by which faces are drawn larger, then averaged down."""

_FRACTION_BITS = 4
"""OpenCV's coordinates have fractions of 1/16 pixel."""

# Features of each expression, after the action units of Ekman and Friesen: height of the inner, middle and
# outer brow, opening of the eyes, half width of the mouth, height of its corners and its upper lip, smallest
# and largest opening of the mouth (all but the eyes in half heights of the face); then visibility of teeth,
# nose wrinkles, cheek folds, and lines on the forehead and between the brows.
_FEATURES = (
    "inner", "middle", "outer", "eyes", "width", "corners", "lip", "least", "greatest",
    "teeth", "wrinkles", "folds", "forehead", "frown",
)  # fmt: skip
_EXPRESSIONS = {
    "angry": (-0.15, -0.10, 0.07, 0.70, 0.27, -0.07, 0.00, 0.00, 0.14, 1.0, 0.0, 0.0, 0.0, 1.0),
    "disgust": (-0.09, -0.09, -0.05, 0.40, 0.25, -0.13, 0.11, 0.03, 0.10, 0.4, 1.0, 1.0, 0.0, 0.3),
    "fear": (0.19, 0.13, -0.01, 1.40, 0.37, -0.09, 0.00, 0.07, 0.16, 1.0, 0.0, 0.0, 0.7, 0.2),
    "happy": (0.03, 0.04, 0.02, 0.72, 0.41, 0.17, 0.02, 0.00, 0.20, 1.0, 0.0, 1.0, 0.0, 0.0),
    "sad": (0.15, 0.01, -0.10, 0.60, 0.25, -0.15, -0.02, 0.00, 0.00, 0.0, 0.0, 0.2, 0.2, 0.3),
    "surprise": (0.16, 0.21, 0.15, 1.55, 0.19, 0.00, 0.03, 0.26, 0.42, 0.0, 0.0, 0.0, 1.0, 0.0),
    "neutral": (0.00, 0.00, 0.00, 1.00, 0.28, 0.00, 0.00, 0.00, 0.00, 0.0, 0.0, 0.0, 0.0, 0.0),
}

# FER+ labels that taggers confuse with a weak expression, the most frequent first.
_LOOKS_LIKE = {
    "angry": ("disgust", "neutral", "contempt"),
    "disgust": ("anger", "contempt", "sadness"),
    "fear": ("surprise", "sadness", "neutral"),
    "happy": ("neutral", "contempt", "surprise"),
    "sad": ("neutral", "fear", "anger"),
    "surprise": ("fear", "happiness", "neutral"),
    "neutral": ("sadness", "anger", "contempt"),
}

# Other properties of a face: name and range of a uniform distribution.
_JITTER: dict[str, tuple[float, float]] = {
    "x": (-0.07, 0.07), "y": (-0.05, 0.06), "scale": (0.78, 1.02), "roll": (-0.26, 0.26), "yaw": (-1, 1),
    "pitch": (-1, 1), "aspect": (0.70, 0.86), "skin": (85, 225), "dark": (0.15, 0.45), "hair": (10, 150),
    "hairline": (0.45, 0.75), "style": (0, 1), "back": (0, 255), "light": (0, 0.45),
    "light_angle": (0, 6.283), "gain": (0.65, 1.15), "offset": (-25, 35),
    "noise": (0, 11), "blur": (0, 1), "gaze": (-1, 1), "gaze_y": (-0.6, 0.6), "apart": (0.32, 0.40),
    "eye_size": (0.85, 1.15), "brow_thick": (0.03, 0.085), "nose": (0.85, 1.2), "glasses": (0, 1),
    "moustache": (0, 1), "open": (0, 1), "skew": (-0.04, 0.04), "shoulders": (20, 230),
}  # fmt: skip


def parse_cartoon(source: str) -> tuple[int, int] | None:
    """Parse ``cartoon``, ``cartoon:N`` or ``cartoon:N:SEED`` into number and seed; None for other sources.

    Raises:
        DataError: If what follows ``cartoon:`` is invalid.
    """
    if source != "cartoon" and not source.startswith("cartoon:"):
        return None
    found = re.fullmatch(r"cartoon(?::(\d{1,9})(?::(\d{1,18}))?)?", source)
    count = int(found[1] or DEFAULT_COUNT) if found else 0
    if not found or not 1 <= count <= MAX_COUNT:
        raise DataError(
            f"drawn faces are named cartoon, cartoon:N or cartoon:N:SEED with N in 1..{MAX_COUNT}. "
            f"Received: {source!r}"
        )
    return count, int(found[2] or 0)


def draw_faces(count: int = DEFAULT_COUNT, seed: int = 0, size: int = 48) -> FaceDataset:
    """Draw labelled faces with FER+ votes; the same arguments give the same faces.

    The labels alternate. Of ten faces of a label, eight are Training, one PublicTest and one PrivateTest, so
    that 21 faces have every label in every split. Taggers disagree on weak expressions.

    Raises:
        DataError: If the size is smaller.
    """
    if size < 16:
        raise DataError(f"drawn faces must have 16 pixels or more. Received: {size}")
    rng = np.random.default_rng([seed, count, size])
    labels = np.arange(count) % len(FER2013)
    turn = (np.arange(count) // len(FER2013)) % 10
    split = np.where(turn == 1, 1, np.where(turn == 2, 2, 0)).astype(np.uint8)
    order = np.lexsort((rng.random(count), split))
    labels, split = labels[order], split[order]

    table = np.array([_EXPRESSIONS[label] for label in FER2013.labels])
    neutral = table[FER2013.index("neutral")]
    strength = rng.uniform(0.55, 1.0, count)
    features = neutral + strength[:, None] * (table[labels] - neutral)
    features[:, :9] += rng.normal(0, 1, (count, 9)) * np.array(
        [0.018, 0.018, 0.018, 0.06, 0.02, 0.015, 0.008, 0, 0]
    )
    jitter = {name: rng.uniform(low, high, count) for name, (low, high) in _JITTER.items()}
    images = np.empty((count, size, size), np.uint8)
    grid = np.linspace(-1, 1, size, dtype=np.float32)
    for k in range(count):
        face = SimpleNamespace(
            **dict(zip(_FEATURES, features[k].tolist(), strict=True)),
            **{name: float(values[k]) for name, values in jitter.items()},
        )
        images[k] = _finish(_draw(face, size), face, grid, rng)
    votes = _draw_votes(labels, strength, rng)
    return FaceDataset(images, labels.astype(np.int64), split, FER2013, votes)


def _draw_votes(
    labels: NDArray[np.int64], strength: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the votes of ten taggers per face, uint8 ``[N, 10]``; they disagree on weak expressions."""
    same = {fer: plus for plus, fer in FERPLUS_TO_FER2013.items() if fer is not None}
    shares = np.full((len(labels), len(VOTE_COLUMNS)), 0.0)
    sure = np.clip(0.45 + 1.1 * (strength - 0.55), 0, 0.94)
    for k, label in enumerate(FER2013.labels):
        rows = labels == k
        others = _LOOKS_LIKE[label]
        for weight, other in zip((0.6, 0.3, 0.1), others, strict=True):
            shares[rows, FERPLUS.index(other)] = weight * (1 - sure[rows]) * 0.9
        shares[rows, VOTE_COLUMNS.index("unknown")] = (1 - sure[rows]) * 0.1
        shares[rows, FERPLUS.index(same[label])] = sure[rows]
    for column in _NO_EMOTION:
        shares[rng.random(len(labels)) < _UNCLEAR, column] = 4
    return rng.multinomial(TAGGERS, shares / shares.sum(axis=1, keepdims=True)).astype(np.uint8)


class _Pen:
    """Draws in coordinates of the face: the origin is its centre, the unit half its height, y is down.

    Points are complex numbers: rotation and scaling are one product.
    """

    def __init__(self, canvas: NDArray[np.uint8], face: SimpleNamespace) -> None:
        import cv2

        self.cv2 = cv2
        self.canvas = canvas
        half = canvas.shape[0] / 2
        self.unit = half * face.scale
        self.turn = self.unit * (1 << _FRACTION_BITS) * complex(np.cos(face.roll), np.sin(face.roll))
        self.place = half * (1 << _FRACTION_BITS) * complex(1 + 2 * face.x, 1 + 2 * face.y)

    def move(self, step: complex) -> None:
        """Move the origin."""
        self.place += step * self.turn

    def _points(self, points: NDArray[np.complex128]) -> NDArray[np.int32]:
        """Convert face coordinates ``[K]`` to OpenCV's fixed point ``[K, 2]``."""
        placed = points * self.turn + self.place
        fixed: NDArray[np.int32] = np.rint(placed.view(np.float64)).astype(np.int32).reshape(-1, 2)
        return fixed

    def fill(self, points: NDArray[np.complex128], tone: float) -> None:
        """Fill a polygon."""
        self.cv2.fillPoly(self.canvas, [self._points(points)], _tone(tone), self.cv2.LINE_AA, _FRACTION_BITS)

    def line(self, points: NDArray[np.complex128], tone: float, width: float, closed: bool = False) -> None:
        """Draw a line through points."""
        pixels = max(1, round(width * self.unit))
        self.cv2.polylines(
            self.canvas, [self._points(points)], closed, _tone(tone), pixels, self.cv2.LINE_AA, _FRACTION_BITS
        )


def _tone(tone: float) -> tuple[int, int, int, int]:
    """Return a gray value as OpenCV's scalar."""
    value = int(min(255.0, max(0.0, tone)))
    return (value, value, value, 0)


_CIRCLE = np.exp(2j * np.pi * np.arange(24) / 24)
_ALONG = np.linspace(-1, 1, 9)
_BOW = 1 - _ALONG**2
_ROUND = _BOW**0.55
_ARCH = np.exp(1j * np.linspace(np.pi, 2 * np.pi, 13))
_FOREHEAD = [_ALONG * 0.3 + 1j * (level - 0.02 * _BOW) for level in (-0.72, -0.80)]


def _oval(x: float, y: float, wide: float, high: float) -> NDArray[np.complex128]:
    """Return the outline of an ellipse."""
    outline: NDArray[np.complex128] = _CIRCLE.real * wide + (1j * high) * _CIRCLE.imag + complex(x, y)
    return outline


def _path(*points: complex) -> NDArray[np.complex128]:
    """Return points as an array."""
    return np.array(points, dtype=np.complex128)


_SHOULDERS = _path(-1.3 + 2.2j, -1.1 + 1.12j, -0.35 + 0.95j, 0.35 + 0.95j, 1.1 + 1.12j, 1.3 + 2.2j)
_NECK = _path(-0.35 + 0.6j, 0.35 + 0.6j, 0.38 + 1.15j, -0.38 + 1.15j)
_MOUSTACHE = _path(-0.2 + 0.36j, 0.32j, 0.2 + 0.36j)


def _draw(face: SimpleNamespace, size: int) -> NDArray[np.uint8]:
    """Draw one face on a plain background, oversampled."""
    canvas = np.full((size * _OVERSAMPLING, size * _OVERSAMPLING), int(face.back), np.uint8)
    pen = _Pen(canvas, face)
    wide = face.aspect
    ink = face.skin * face.dark
    hairy = face.style > 0.15
    pen.fill(_SHOULDERS, face.shoulders)
    pen.fill(_NECK, face.skin * 0.75)
    if hairy:
        long = 0.75 if face.style > 0.7 else 0.0
        pen.fill(_oval(0, -0.15 + long / 2, wide + 0.14, 0.97 + long / 2), face.hair)
    for side in (-1, 1):
        pen.fill(_oval(side * wide, -0.03, 0.09, 0.17), face.skin * 0.9)
    pen.fill(_oval(0, 0, wide, 1.0), face.skin)
    if hairy:
        crown = _ARCH.real * (wide + 0.03) + 1.04j * _ARCH.imag
        fringe = _path(
            wide - 0.25j,
            wide * 0.6 - face.hairline * 1j,
            -wide * 0.4 - (face.hairline + 0.1) * 1j,
            -wide - 0.25j,
        )
        pen.fill(np.concatenate([crown, fringe]), face.hair)
    # Yaw and pitch move the features of the face.
    pen.move(complex(0.10 * face.yaw, 0.07 * face.pitch))
    _draw_eyes(pen, face, ink)
    _draw_nose(pen, face, ink)
    _draw_mouth(pen, face, ink)
    return canvas


def _draw_eyes(pen: _Pen, face: SimpleNamespace, ink: float) -> None:
    """Draw eyes, brows, the lines around them, and glasses."""
    y = -0.17
    wide, high = 0.145 * face.eye_size, 0.085 * face.eye_size * max(0.2, face.eyes)
    white = min(250.0, face.skin * 0.5 + 120)
    iris = min(0.075 * face.eye_size, high * 1.02)
    # Sad eyes slope down to the outside, as their brows do.
    droop = max(0.0, face.inner - face.outer - 0.1) * 0.25
    for side in (-1, 1):
        x = side * face.apart
        slope = (x + 1j * y) + _ALONG * complex(wide, droop * side)
        lid = slope - (1j * high) * _BOW
        lower = slope + (0.8j * high) * _BOW
        pen.fill(np.concatenate([lid, lower[::-1]]), white)
        pen.fill(_oval(x + face.gaze * 0.035, y + face.gaze_y * 0.2 * high, iris, iris), ink * 0.6)
        pen.line(lid, ink * 0.8, 0.035)
        pen.line(lower, (ink + face.skin) / 2, 0.015)
        brow = _path(
            complex(x - side * 0.20, -0.38 - face.inner),
            complex(x - side * 0.05, -0.42 - face.inner * 0.4 - face.middle * 0.6),
            complex(x + side * 0.08, -0.43 - face.middle * 0.7 - face.outer * 0.3),
            complex(x + side * 0.21, -0.38 - face.outer),
        )
        pen.line(brow, min(ink, face.hair), face.brow_thick)
        if face.frown > 0.5:
            pen.line(_path(side * 0.06 - 0.42j, side * 0.045 - 0.28j), face.skin * 0.6, 0.025)
        if face.glasses > 0.92:
            pen.line(_oval(x, y + 0.02, 0.23, 0.19), ink * 0.5, 0.03, closed=True)
            pen.line(_path(complex(0, y), complex(side * (face.apart - 0.22), y)), ink * 0.5, 0.03)
    if face.forehead > 0.4:
        for crease in _FOREHEAD:
            pen.line(crease, face.skin * 0.75, 0.018)


def _draw_nose(pen: _Pen, face: SimpleNamespace, ink: float) -> None:
    """Draw the nose and its wrinkles."""
    tone = (ink + face.skin) / 2
    tip = 1j * (0.18 * face.nose - face.lip * 0.4)
    bridge = 0.05 * face.yaw
    pen.line(_path(bridge + 0.04 - 0.12j, bridge + 0.07 + 0.05j, bridge + 0.11 + tip), tone, 0.02)
    pen.line(_path(tip - 0.11, tip - 0.05 + 0.05j, tip + 0.05 + 0.05j, tip + 0.11), tone * 0.8, 0.03)
    if face.wrinkles > 0.4:
        for side in (-1, 1):
            for level in (-0.16j, -0.07j, 0.02j):
                pen.line(_path(side * 0.02 + level, side * 0.13 + level - 0.06j), face.skin * 0.55, 0.022)


def _draw_mouth(pen: _Pen, face: SimpleNamespace, ink: float) -> None:
    """Draw the mouth, teeth, cheek folds and moustache."""
    opened = max(0.0, face.least + (face.greatest - face.least) * face.open)
    # A wide open mouth is round.
    bow = _ROUND if opened > 0.22 else _BOW
    # Raised corners leave the middle in place.
    line = 0.50 - face.lip * 0.5 - face.corners * (_ALONG**2 - 0.35) + face.skew * _ALONG
    upper = line - (opened * 0.30 + face.lip * 0.7) * bow
    lower = line + (opened * 0.90) * bow
    across = _ALONG * face.width
    top, bottom = across + 1j * upper, across + 1j * lower
    lips = ink * 0.9
    if opened > 0.03 or face.lip > 0.04:
        pen.fill(np.concatenate([top, bottom[::-1]]), ink * 0.35)
        if face.teeth > 0.3 and opened > 0.04:
            edge = across * 0.93 + 1j * (upper + 0.42 * (lower - upper))
            pen.fill(
                np.concatenate([across * 0.93 + 1j * upper, edge[::-1]]), min(245.0, face.skin * 0.4 + 140)
            )
        pen.line(top, lips, 0.045)
        pen.line(bottom, lips, 0.05)
    else:
        pen.line(top, lips, 0.05)
        pen.line((bottom + 0.09j)[2:-2], (ink + face.skin) / 2, 0.025)
    if face.folds > 0.4:
        for side in (-1, 1):
            fold = _path(
                side * 0.16 + 0.15j, side * (face.width + 0.06) + 0.33j, side * (face.width + 0.09) + 0.52j
            )
            pen.line(fold, face.skin * 0.68, 0.022)
    if face.moustache > 0.93:
        pen.line(_MOUSTACHE, face.hair, 0.08)


def _finish(
    canvas: NDArray[np.uint8], face: SimpleNamespace, grid: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Reduce to the final size and add light, blur and noise."""
    import cv2

    size = len(grid)
    small: NDArray[Any] = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    ramp = (
        face.light * np.cos(face.light_angle) * grid[None, :]
        + face.light * np.sin(face.light_angle) * grid[:, None]
    )
    small *= (1 + ramp) * face.gain
    small += face.offset
    if face.blur > 0.5:
        small = cv2.GaussianBlur(small, (3, 3), 0.4 + 0.8 * (face.blur - 0.5))
    noisy = small + face.noise * rng.standard_normal((size, size), dtype=np.float32)
    finished: NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return finished
