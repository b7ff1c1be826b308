"""A split is measured against every label set that the model has, with and without leaked images."""

from __future__ import annotations

import numpy as np
import pytest

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy
from ferkit.data import FaceDataset
from ferkit.evaluation.evaluate import evaluate_split, measure

TRAINING, PUBLIC, PRIVATE = 0, 1, 2
HEADS = {"fer2013": FER2013}
BOTH = {"fer2013": FER2013, "ferplus": FERPLUS}


def _dataset(labels, split, *, images=None, votes=None, taxonomy=FER2013):
    """Return a data set whose image i is of the one colour i, unless images are given."""
    n = len(labels)
    if images is None:
        images = np.arange(n)
    return FaceDataset(
        images=np.broadcast_to(np.asarray(images, np.uint8)[:, None, None], (n, 4, 4)).copy(),
        labels=np.array(labels, np.int64),
        split=np.full(n, split, np.uint8) if np.isscalar(split) else np.array(split, np.uint8),
        taxonomy=taxonomy,
        votes=None if votes is None else np.array(votes, np.uint8),
        source="some/where/faces.csv",
        fingerprint="0" * 64,
    )


def _probabilities(columns, classes, sure=0.9):
    """Return probabilities whose top label is ``columns``."""
    rest = (1 - sure) / (classes - 1)
    return np.where(np.eye(classes, dtype=bool)[columns], sure, rest)


def _predicts(columns_by_image, taxonomy=FER2013):
    """Return a prediction function whose label is ``columns_by_image[colour of the image]``."""
    table = np.asarray(columns_by_image)

    def predict(crops, tta):
        return {taxonomy.id: _probabilities(table[crops[:, 0, 0]], len(taxonomy))}

    return predict


def test_predictions_are_counted_on_the_split_only():
    dataset = _dataset([0, 1, 2, 3, 4, 5], [TRAINING, TRAINING, PUBLIC, PUBLIC, PUBLIC, PRIVATE])
    found = evaluate_split(_predicts([9, 9, 2, 3, 0, 9]), dataset, heads=HEADS)
    (scores,) = found.tta_modes[0].scores
    assert (scores.n, scores.correct, scores.accuracy) == (3, 2, pytest.approx(2 / 3))
    assert scores.confusion[4][0] == 1
    assert (found.split, found.faces, found.source) == ("PublicTest", 3, "faces.csv")


def test_every_tta_is_measured_in_order_and_reported_under_its_name():
    called = []

    def predict(crops, tta):
        called.append(tta)
        return {"fer2013": _probabilities([0 if tta == "flip" else 1] * len(crops), 7)}

    found = evaluate_split(predict, _dataset([0, 0], PUBLIC), heads=HEADS, tta_modes=("none", "flip"))
    assert called == ["none", "flip"]
    assert [(p.tta, p.scores[0].accuracy) for p in found.tta_modes] == [("none", 0.0), ("flip", 1.0)]


def test_without_leaks_duplicates_of_training_images_do_not_count():
    # Images 7 and 8 are in Training and in PublicTest; the model is right on these two only.
    dataset = _dataset(
        [0, 1, 0, 1, 2, 3], [TRAINING, TRAINING, PUBLIC, PUBLIC, PUBLIC, PUBLIC], images=[7, 8, 7, 8, 20, 21]
    )
    columns = np.full(30, 6)
    columns[[7, 8]] = 0, 1
    found = evaluate_split(_predicts(columns), dataset, heads=HEADS, drop_leaks=True)
    (entry,) = found.tta_modes
    assert found.leaked == 2
    assert (entry.scores[0].correct, entry.scores[0].n) == (2, 4)
    assert (entry.without_leaks[0].correct, entry.without_leaks[0].n) == (0, 2)


def test_leaks_are_those_of_the_split_that_the_model_was_trained_on():
    # Image 7 is in PrivateTest, on which this model was trained; image 8 is in Training only.
    dataset = _dataset([0, 1, 0, 1], [PRIVATE, TRAINING, PUBLIC, PUBLIC], images=[7, 8, 7, 8])
    found = evaluate_split(
        _predicts([0] * 9), dataset, heads=HEADS, drop_leaks=True, train_splits=["PrivateTest"]
    )
    assert (found.leaked, found.train_splits) == (1, ("PrivateTest",))
    (left,) = found.tta_modes[0].without_leaks
    assert (left.correct, left.n) == (0, 1)
    back = evaluate_split(
        _predicts([0] * 9),
        dataset,
        heads=HEADS,
        split="Training",
        drop_leaks=True,
        train_splits=["PublicTest"],
    )
    assert back.leaked == 1


def test_leaks_are_measured_on_request_only():
    found = evaluate_split(_predicts([0]), _dataset([0], PUBLIC), heads=HEADS)
    assert (found.leaked, found.tta_modes[0].without_leaks) == (None, None)


@pytest.mark.parametrize(
    ("splits", "measured"),
    [
        ([PUBLIC, PUBLIC, PRIVATE], "PublicTest"),
        ([TRAINING, PUBLIC, PRIVATE], "Training"),
        ([TRAINING, PUBLIC, PRIVATE], "all"),
    ],
)
def test_leaks_that_cannot_be_found_are_an_error(splits, measured):
    dataset = _dataset([0, 0, 0], splits, images=[7, 7, 7])
    with pytest.raises(DataError, match="duplicate in Training"):
        evaluate_split(_predicts([0] * 8), dataset, heads=HEADS, split=measured, drop_leaks=True)


def test_all_splits_are_measured_as_one():
    dataset = _dataset([0, 1, 2], [TRAINING, PUBLIC, PRIVATE])
    found = evaluate_split(_predicts([0, 1, 3]), dataset, heads=HEADS, split="all")
    (scores,) = found.tta_modes[0].scores
    assert (found.split, found.faces, scores.n, scores.correct) == ("all", 3, 3, 2)
    with pytest.raises(DataError, match="no face to measure on"):
        evaluate_split(_predicts([0]), dataset.select(np.arange(0)), heads=HEADS, split="all")


def test_votes_are_measured_under_both_protocols():
    # Columns: neutral happiness surprise sadness anger disgust fear contempt unknown NF.
    votes = [
        [0, 10, 0, 0, 0, 0, 0, 0, 0, 0],  # happiness under both protocols
        [4, 0, 0, 3, 3, 0, 0, 0, 0, 0],  # neutral leads, without a majority: argmax only
        [1, 5, 1, 1, 1, 1, 0, 0, 0, 0],  # single votes are struck out, then happiness has all
        [0, 0, 0, 0, 0, 0, 0, 0, 9, 1],  # unknown: kept by neither
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 10],  # no face: kept by neither
    ]
    dataset = _dataset([3, 6, 3, 0, 0], PUBLIC, votes=votes)

    def predict(crops, tta):
        return {
            "fer2013": _probabilities([3, 6, 3, 0, 1], 7),
            "ferplus": _probabilities([1, 1, 1, 0, 0], 8),
        }

    scores = evaluate_split(predict, dataset, heads=BOTH).tta_modes[0].scores
    assert [(s.labels, s.correct, s.n) for s in scores] == [
        ("fer2013", 4, 5),
        ("ferplus majority", 2, 2),
        ("ferplus argmax", 2, 3),
    ]


def test_votes_do_not_matter_to_a_model_without_the_head():
    dataset = _dataset([0], PUBLIC, votes=[[0, 10, 0, 0, 0, 0, 0, 0, 0, 0]])
    scores = evaluate_split(_predicts([0]), dataset, heads=HEADS).tta_modes[0].scores
    assert [s.labels for s in scores] == ["fer2013"]


def test_a_model_of_ferplus_alone_is_measured_on_the_votes_of_a_fer2013_file():
    dataset = _dataset([0], PUBLIC, votes=[[0, 10, 0, 0, 0, 0, 0, 0, 0, 0]])
    scores = evaluate_split(_predicts([1], FERPLUS), dataset, heads={"ferplus": FERPLUS}).tta_modes[0].scores
    assert [s.labels for s in scores] == ["ferplus majority", "ferplus argmax"]


def test_a_users_own_taxonomy_is_measured_like_any_other():
    own = Taxonomy("pain", ("none", "some"))
    found = evaluate_split(
        _predicts([0, 1], own), _dataset([0, 1], PUBLIC, taxonomy=own), heads={"pain": own}
    )
    assert found.tta_modes[0].scores[0].accuracy == 1
    assert [c.label for c in found.tta_modes[0].scores[0].classes] == ["none", "some"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("happy", "sad"), ("happy", "sad")),
        (("Angry", "SURPRISE"), ("angry", "surprise")),
        (("wütend", "Joy"), ("angry", "happy")),
    ],
)
def test_folders_with_some_of_the_labels_are_measured_on_the_head_that_has_them(names, labels):
    """A known fault: four of FER2013's seven folders were refused."""
    own = Taxonomy("own", names)
    columns = [FER2013.index(label) for label in labels]
    dataset = _dataset([0, 1, 1], PUBLIC, taxonomy=own)
    found = evaluate_split(_predicts([columns[0], columns[1], 2]), dataset, heads=HEADS)
    (scores,) = found.tta_modes[0].scores
    assert (scores.labels, scores.correct, scores.n) == ("fer2013", 2, 3)
    assert {c.label: c.support for c in scores.classes if c.support} == {
        FER2013.labels[columns[0]]: 1,
        FER2013.labels[columns[1]]: 2,
    }


def test_a_head_with_just_the_folders_labels_is_preferred():
    own = Taxonomy("own", ("happy", "sad"))
    found = evaluate_split(
        lambda *_: {"own": _probabilities([0], 2)},
        _dataset([0], PUBLIC, taxonomy=own),
        heads={**HEADS, "own": own},
    )
    assert [s.labels for s in found.tta_modes[0].scores] == ["own"]


def test_labels_that_no_head_has_are_refused_with_both_label_sets():
    own = Taxonomy("pain", ("none", "some"))
    with pytest.raises(DataError, match=r"pain \(none, some\).*fer2013 \(angry, disgust"):
        evaluate_split(_predicts([0]), _dataset([0], PUBLIC, taxonomy=own), heads=HEADS)


def test_one_taxonomy_id_with_different_labels_is_refused():
    other = Taxonomy("fer2013", FER2013.labels[::-1])
    with pytest.raises(DataError, match=r"different labels.*Data: neutral, .*Model: angry"):
        evaluate_split(_predicts([0]), _dataset([0], PUBLIC, taxonomy=other), heads=HEADS)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="no face in split PrivateTest"):
        evaluate_split(_predicts([0]), _dataset([0], PUBLIC), heads=HEADS, split="PrivateTest")


def test_figures_out_of_fold_need_ten_faces():
    few = measure(_probabilities([0] * 9, 7), np.zeros(9, np.int64), FER2013, "fer2013")
    enough = measure(_probabilities([0] * 10, 7), np.zeros(10, np.int64), FER2013, "fer2013")
    assert (few.ece_out_of_fold, few.nll_out_of_fold) == (None, None)
    assert enough.ece_out_of_fold is not None
    assert enough.nll_out_of_fold is not None


def test_probabilities_with_the_wrong_number_of_columns_are_refused():
    with pytest.raises(DataError, match="needs 7 columns"):
        measure(_probabilities([0], 8), np.zeros(1, np.int64), FER2013, "fer2013")
