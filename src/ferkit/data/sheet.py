"""Contact sheets: one row of faces per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ferkit.core.errors import DataError
from ferkit.data.dataset import FaceDataset

_GAP = 4
_TEXT = (30, 30, 30)
_TITLE_HEIGHT = 34


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of a sheet.

    Args:
        name: Text in front of it.
        images: uint8 ``[K, S, S]``.
    """

    name: str
    images: NDArray[np.uint8]


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

    Args:
        strips: The rows; all images of one size.
        title: Text above the rows.
        cell: Side of a shown face in pixels.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        DataError: If there is no face to show.
    """
    import cv2

    columns = max((len(strip.images) for strip in strips), default=0)
    if not columns:
        raise DataError("there is no face to show")
    margin = 16 + max(_text_width(strip.name) for strip in strips)
    step = cell + _GAP
    width = max(margin + columns * step + _GAP, _text_width(title) + 16)
    sheet = np.full((_TITLE_HEIGHT + len(strips) * step + _GAP, width, 3), 255, np.uint8)
    _write(sheet, title, 8, 22)
    for row, strip in enumerate(strips):
        top = _TITLE_HEIGHT + row * step
        _write(sheet, strip.name, 8, top + cell // 2 + 5)
        for column, image in enumerate(strip.images):
            enlarge = image.shape[0] <= cell
            shown = cv2.resize(
                image, (cell, cell), interpolation=cv2.INTER_CUBIC if enlarge else cv2.INTER_AREA
            )
            left = margin + column * step
            sheet[top : top + cell, left : left + cell] = shown[:, :, None]
    return sheet


def _text_width(text: str) -> int:
    """Return the width of a text in pixels."""
    import cv2

    return int(cv2.getTextSize(_plain(text), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0])


def _write(sheet: NDArray[np.uint8], text: str, left: int, baseline: int) -> None:
    """Write a line of text."""
    import cv2

    cv2.putText(sheet, _plain(text), (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _TEXT, 1, cv2.LINE_AA)


def _plain(text: str) -> str:
    """Replace characters that OpenCV's font lacks."""
    return text.encode("ascii", "replace").decode()
