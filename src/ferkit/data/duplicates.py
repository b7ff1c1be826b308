"""Images that equal each other pixel for pixel, and images that show nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ferkit.data.dataset import SPLITS, FaceDataset


def image_keys(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number distinct images in order of appearance.

    Args:
        images: uint8 ``[N, S, S]``.

    Returns:
        int64 ``[N]``, equal exactly where two images are equal in every pixel.
    """
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(image.tobytes(), len(seen)) for image in images], dtype=np.int64)


def flat_rows(dataset: FaceDataset) -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of one constant colour."""
    flat = dataset.images.reshape(len(dataset), dataset.size**2)
    return np.asarray((flat == flat[:, :1]).all(axis=1))


def rows_of_splits(dataset: FaceDataset, splits: Sequence[str]) -> NDArray[np.bool_]:
    """Mask ``[N]`` of the images of these splits; names that are no split's have none."""
    return np.isin(dataset.split, [SPLITS.index(name) for name in splits if name in SPLITS])


def leaked_rows(dataset: FaceDataset, train_splits: Sequence[str] = ("Training",)) -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of other splits that also stand in those trained on, pixel for pixel.

    Take it of the whole data set: of one split alone it is all False.
    """
    keys = image_keys(dataset.images)
    training = rows_of_splits(dataset, train_splits)
    return np.asarray(~training & np.isin(keys, keys[training]))


def leaking_rows(dataset: FaceDataset, train_split: str = "Training") -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of the split trained on that also stand in another split, pixel for pixel."""
    keys = image_keys(dataset.images)
    training = dataset.split == SPLITS.index(train_split)
    return np.asarray(training & np.isin(keys, keys[~training]))
