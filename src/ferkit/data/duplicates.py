"""Images that are equal pixel for pixel, within and across splits, and images of one constant colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ferkit.data.dataset import SPLITS, FaceDataset


def image_keys(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the distinct images ``[N, S, S]``, first come first: int64 ``[N]``, equal for duplicates."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(image.tobytes(), len(seen)) for image in images], dtype=np.int64)


def flat_rows(dataset: FaceDataset) -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of one constant colour."""
    flat = dataset.images.reshape(len(dataset), dataset.size**2)
    return np.asarray((flat == flat[:, :1]).all(axis=1))


def rows_of_splits(dataset: FaceDataset, splits: Sequence[str]) -> NDArray[np.bool_]:
    """Mask ``[N]`` of the images of the splits; unknown names have none."""
    return np.isin(dataset.split, [SPLITS.index(name) for name in splits if name in SPLITS])


def leaked_rows(dataset: FaceDataset, train_splits: Sequence[str] = ("Training",)) -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of other splits that have a duplicate in the training splits."""
    keys = image_keys(dataset.images)
    training = rows_of_splits(dataset, train_splits)
    return np.asarray(~training & np.isin(keys, keys[training]))


def leaking_rows(dataset: FaceDataset, train_split: str = "Training") -> NDArray[np.bool_]:
    """Mask ``[N]`` of images of the training split that have a duplicate in another split."""
    keys = image_keys(dataset.images)
    training = rows_of_splits(dataset, (train_split,))
    return np.asarray(training & np.isin(keys, keys[~training]))
