"""A held-out split for data that names no PublicTest: chosen by content, so it is the same everywhere."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from ferkit.data.dataset import PUBLIC_TEST, TRAINING

HOLD_OUT = 0.1
"""Share of the distinct Training images of each label that becomes PublicTest."""


def name_splits(
    images: NDArray[np.uint8], labels: NDArray[np.int64], split: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], bool]:
    """Return splits with a PublicTest, and whether the source named it.

    Where ``split`` has Training and no PublicTest, a part of Training becomes it.

    Images are uint8 ``[N, S, S]``, labels int64 ``[N]``, splits uint8 ``[N]``: positions in ``SPLITS``.
    """
    training = split == TRAINING
    if bool((split == PUBLIC_TEST).any()) or not bool(training.any()):
        return split, True
    split = split.copy()
    split[training] = hold_out(images[training], labels[training])
    return split, False


def hold_out(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Divide faces into Training and PublicTest, a tenth of each label for the latter.

    Of the distinct images of a label, those with the lowest SHA-256 of their pixels are held out: a tenth,
    rounded, and at least one of two or more. Names and order have no influence, and equal images are never
    divided (an image with two labels counts for the lower one).

    Args:
        images: uint8 ``[N, S, S]``.
        labels: int64 ``[N]``.

    Returns:
        uint8 ``[N]``: 0 Training, 1 PublicTest.
    """
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
    lowest_label: dict[bytes, int] = {}
    for digest, label in zip(digests, labels.tolist(), strict=True):
        lowest_label[digest] = min(label, lowest_label.get(digest, label))
    by_label: dict[int, list[bytes]] = defaultdict(list)
    for digest, label in lowest_label.items():
        by_label[label].append(digest)
    held: set[bytes] = set()
    for distinct in by_label.values():
        count = max(1, round(HOLD_OUT * len(distinct))) if len(distinct) > 1 else 0
        held.update(sorted(distinct)[:count])
    return np.array([digest in held for digest in digests], dtype=np.uint8)
