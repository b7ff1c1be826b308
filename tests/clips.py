"""Clips made on the spot: each frame carries its number, so that a test can tell which ones came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

BITS = 10
CELL = 8
SIZE = (BITS * CELL, 48)


def numbered(index: int, size: tuple[int, int] = SIZE) -> Any:
    """A picture uint8 ``[H, W, 3]`` that shows ``index`` as black and white cells along its upper edge."""
    across, down = np.arange(size[0]) / size[0], np.arange(size[1]) / size[1]
    waves = np.sin(7 * across)[None, :] * np.cos(5 * down)[:, None]
    picture = np.repeat((120 + 100 * waves).astype(np.uint8)[:, :, None], 3, axis=2)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if index >> bit & 1 else 0
    return picture


def number_in(picture: NDArray[np.uint8]) -> int:
    """The number that a picture shows."""
    row = picture[CELL // 2, CELL // 2 : BITS * CELL : CELL].mean(axis=-1)
    return sum(1 << bit for bit, value in enumerate(row) if value > 128)


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    rotation: float | None = None,
    aspect: Fraction | None = None,
    sound: str | None = None,
    sound_seconds: float = 1.0,
    sound_rate: int = 44_100,
    container: str | None = None,
    index_in_front: bool = False,
) -> Path:
    """Write pictures as a clip; ``times`` counts in ``time_base``. ``sound`` is a codec: a tone of 440 Hz."""
    form = {"movflags": "faststart"} if index_in_front else {}
    with av.open(str(path), "w", format=container, options=form) as target:
        stream: Any = target.add_stream(codec, rate=30, options=options or {})
        stream.codec_context.time_base = time_base
        stream.pix_fmt = pixels
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        audio: Any = target.add_stream(sound, rate=sound_rate) if sound else None
        for index, picture in enumerate(frames):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
                if audio is not None:
                    audio.codec_context.layout = "mono"
                    _write_tone(target, audio, sound_seconds, sound_rate)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = time_base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def tone(seconds: float, rate: int = 44_100) -> NDArray[np.int16]:
    """A tone of 440 Hz at so many samples a second, louder and louder: int16 ``[N]``."""
    at = np.arange(round(seconds * rate)) / rate
    return (at / max(seconds, 1e-9) * 20_000 * np.sin(2 * np.pi * 440 * at)).astype(np.int16)


def _write_tone(target: Any, stream: Any, seconds: float, rate: int) -> None:
    samples = tone(seconds, rate)
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        target.mux(stream.encode(frame))
    target.mux(stream.encode(None))


def sound_of(path: Path) -> tuple[float, NDArray[np.float64]]:
    """When the sound of a clip begins, in seconds, and the samples of its first channel, -1..1."""
    with av.open(str(path)) as source:
        parts, begin = [], None
        for frame in source.decode(audio=0):
            if begin is None:
                begin = frame.time or 0.0
            samples = frame.to_ndarray()[0].astype(np.float64)
            parts.append(samples / 32768 if frame.format.name.startswith("s16") else samples)
    return begin or 0.0, np.concatenate(parts)
