"""Drawn faces: any number, any seed, the same each time, and distinct expressions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013
from ferkit.data import SPLITS, load_data
from ferkit.data.cartoon import DEFAULT_COUNT, draw_faces, parse_cartoon
from ferkit.data.ferplus import label_agreement


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("cartoon", (DEFAULT_COUNT, 0)),
        ("cartoon:70", (70, 0)),
        ("cartoon:70:123456789", (70, 123456789)),
        ("cartoons", None),
        ("./cartoon", None),
        ("fer2013.csv", None),
    ],
)
def test_a_source_names_number_and_seed(source: str, parsed: tuple[int, int] | None) -> None:
    assert parse_cartoon(source) == parsed


@pytest.mark.parametrize(
    "source",
    [f"cartoon:{rest}" for rest in ("", "0", "-5", "x", "7:", "7:1:2", "1.5", "9999999")],
)
def test_a_malformed_source_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="cartoon, cartoon:N or cartoon:N:SEED"):
        load_data(source, cache=False)


def test_the_same_seed_draws_the_same_faces_and_another_seed_others() -> None:
    one, two, other = draw_faces(70, 5), draw_faces(70, 5), draw_faces(70, 6)
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.votes, two.votes)
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize("count", [1, 7, 20, 21, 350])
def test_labels_are_balanced_in_every_split(count: int) -> None:
    faces = draw_faces(count, 0, 16)
    assert len(faces.images) == len(faces.labels) == len(faces.split) == len(faces.votes) == count
    assert np.ptp(np.bincount(faces.labels, minlength=7)) <= 1
    if count >= 21:
        for k in range(len(SPLITS)):
            assert set(faces.labels[faces.split == k]) == set(range(7))
    assert all(a <= b for a, b in pairwise(faces.split)), "sorted by split, as FER2013 is"


def test_faces_differ_and_use_the_range_of_grays() -> None:
    faces = draw_faces(350, 0)
    assert faces.images.dtype == np.uint8
    assert len({image.tobytes() for image in faces.images}) == 350
    assert faces.images.min() < 10
    assert faces.images.max() > 245
    assert (faces.images.std(axis=(1, 2)) > 3).all(), "no face drowns in one tone"


@pytest.mark.parametrize("size", [16, 48, 64])
def test_faces_come_in_any_size(size: int) -> None:
    assert load_data("cartoon:7", cache=False, size=size).images.shape == (7, size, size)


def test_faces_that_are_too_small_are_refused() -> None:
    with pytest.raises(DataError, match=r"16 pixels or more\. Received: 8"):
        draw_faces(7, 0, 8)


def test_votes_lead_to_the_label_for_most_faces_and_leave_some_in_doubt() -> None:
    faces = draw_faces(1400, 0, 16)
    assert (faces.votes.sum(axis=1) == 10).all()
    assert 0.75 < label_agreement(faces.labels, faces.votes) < 0.99
    leading = np.argmax(faces.votes, axis=1)
    assert {8, 9} <= set(leading), "unknown and no-face occur, as in FER+"


def test_expressions_can_be_learnt_from_pixels() -> None:
    # Chance is 1/7. A linear map of pixels of few faces reads far above it; networks read far more.
    faces = draw_faces(2800, 0, 24)
    flat = faces.images.reshape(len(faces.images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= flat.std(axis=1, keepdims=True)
    train = faces.split == 0
    targets = np.eye(7)[faces.labels[train]]
    gram = flat[train].T @ flat[train] + 300 * np.eye(flat.shape[1])
    weights = np.linalg.solve(gram, flat[train].T @ targets)
    accuracy = np.mean(np.argmax(flat[~train] @ weights, axis=1) == faces.labels[~train])
    assert accuracy > 0.4


def test_the_data_set_says_what_it_is() -> None:
    dataset = load_data("cartoon:21:3", cache=False)
    assert (dataset.source, dataset.taxonomy, dataset.size) == ("cartoon:21:3", FER2013, 48)
    assert dataset.votes is not None
