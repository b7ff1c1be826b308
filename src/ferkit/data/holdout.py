"""A split for data that has none: by the content of the images, the same everywhere and every time."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

HOLD_OUT = 0.1
"""Share of the distinct images of each label that becomes PublicTest."""


def image_digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Return the SHA-256 of each image ``[N, S, S]``'s pixels."""
    flat = np.ascontiguousarray(images).reshape(len(images), images[0].size if len(images) else 0)
    return [hashlib.sha256(row.data).digest() for row in flat]


def hold_out(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Split faces into Training and PublicTest, a tenth of each label for the latter.

    Of the distinct images of a label, those with the lowest SHA-256 of their pixels are held out: a tenth,
    rounded, and at least one where there are two or more. Nothing depends on names or order, and equal images
    always fall on the same side (an image that stands under two labels counts with the lower one).

    Args:
        images: uint8 ``[N, S, S]``.
        labels: int64 ``[N]``.

    Returns:
        uint8 ``[N]``: 0 Training, 1 PublicTest.
    """
    digests = image_digests(images)
    owner: dict[bytes, int] = {}
    for digest, label in zip(digests, labels.tolist(), strict=True):
        owner[digest] = min(label, owner.get(digest, label))
    by_label: dict[int, list[bytes]] = {}
    for digest, label in owner.items():
        by_label.setdefault(label, []).append(digest)
    held: set[bytes] = set()
    for distinct in by_label.values():
        count = max(1, round(HOLD_OUT * len(distinct))) if len(distinct) > 1 else 0
        held.update(sorted(distinct)[:count])
    return np.array([digest in held for digest in digests], dtype=np.uint8)
