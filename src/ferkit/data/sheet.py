"""Contact sheets: one row of faces per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ferkit.core.errors import DataError, escape_control
from ferkit.data.dataset import FaceDataset

_GAP = 4
_TEXT = (30, 30, 30)
_TITLE_HEIGHT = 34


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of a sheet."""

    name: str  # text in front of it
    images: NDArray[np.uint8]  # uint8 ``[K, S, S]``


def pick_faces(dataset: FaceDataset, per_label: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Pick faces of each label at random.

    Returns:
        For each label the positions of up to ``per_label`` faces, in ascending order.
    """
    rng = np.random.default_rng(seed)
    picked = []
    for k in range(len(dataset.taxonomy)):
        rows = np.flatnonzero(dataset.labels == k)
        picked.append(np.sort(rng.permutation(rows)[:per_label]))
    return picked


def contact_sheet(strips: Sequence[Strip], title: str, *, cell: int = 96) -> NDArray[np.uint8]:
    """Draw rows of faces with their names.

    ``cell`` is the side of a shown face in pixels.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        DataError: If there is no face to show.
    """
    columns = max((len(strip.images) for strip in strips), default=0)
    if not columns:
        raise DataError("there is no face to show")
    font = ImageFont.load_default(14)
    title, names = escape_control(title), [escape_control(strip.name) for strip in strips]
    margin = 16 + max(round(font.getlength(name)) for name in names)
    step = cell + _GAP
    width = max(margin + columns * step + _GAP, round(font.getlength(title)) + 16)
    sheet = Image.new("RGB", (width, _TITLE_HEIGHT + len(strips) * step + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, _TITLE_HEIGHT // 2), title, _TEXT, font, "lm")
    for row, (name, strip) in enumerate(zip(names, strips, strict=True)):
        top = _TITLE_HEIGHT + row * step
        draw.text((8, top + cell // 2), name, _TEXT, font, "lm")
        for column, image in enumerate(strip.images):
            shown = Image.fromarray(image).resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(shown, (margin + column * step, top))
    return np.asarray(sheet)
