"""The shape that every reader returns."""

from __future__ import annotations

import numpy as np
import pytest

import ferkit
from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013
from ferkit.data import FaceDataset, load_data


def make(**changes: object) -> FaceDataset:
    """Three good faces, with some of the fields replaced."""
    fields: dict[str, object] = {
        "images": np.zeros((3, 8, 8), np.uint8),
        "labels": np.array([0, 1, 6]),
        "split": np.array([0, 0, 1], np.uint8),
        "taxonomy": FER2013,
        "votes": np.zeros((3, 10), np.uint8),
        "source": "three faces",
        "fingerprint": "f",
    }
    return FaceDataset(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((3, 8), np.uint8)}, r"images must be \[N, S, S\]"),
        ({"images": np.zeros((3, 8, 9), np.uint8)}, r"images must be \[N, S, S\]"),
        ({"images": np.zeros((3, 8, 8), np.float32)}, "images must be uint8"),
        ({"labels": np.array([0, 1])}, "3 images need 3 labels and splits"),
        ({"split": np.zeros(4, np.uint8)}, "3 images need 3 labels and splits"),
        ({"labels": np.array([0, 1, 7])}, r"must be in 0\.\.6"),
        ({"labels": np.array([-1, 1, 6])}, r"must be in 0\.\.6"),
        ({"split": np.array([0, 0, 3], np.uint8)}, r"split codes must be in 0\.\.2"),
        ({"votes": np.zeros((3, 8), np.uint8)}, r"votes must be \[3, 10\]"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(**changes)


def test_a_split_holds_its_own_faces_with_their_votes() -> None:
    whole = load_data("cartoon:70", cache=False)
    part = whole.of_split("PublicTest")
    rows = whole.split == 1
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.labels, whole.labels[rows])
    assert whole.votes is not None
    np.testing.assert_array_equal(part.votes, whole.votes[rows])
    assert part.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("test", "unknown split 'test'; known are Training, PublicTest, PrivateTest"),
        ("PrivateTest", "three faces has no face in split PrivateTest; it has Training, PublicTest"),
    ],
)
def test_a_split_that_is_not_there_is_refused(split: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make().of_split(split)


def test_faces_are_selected_by_mask_or_position_in_that_order() -> None:
    dataset = make()
    assert dataset.select(np.array([2, 0])).labels.tolist() == [6, 0]
    assert dataset.select(np.array([True, False, True])).labels.tolist() == [0, 6]


def test_a_data_set_may_be_empty() -> None:
    empty = make().select(np.zeros(3, dtype=bool))
    assert len(empty) == 0
    with pytest.raises(DataError, match="it has none"):
        empty.of_split("Training")


def test_load_data_is_a_public_function() -> None:
    assert ferkit.load_data is load_data
