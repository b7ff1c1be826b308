"""The audit, on a small set with known faults and on the real one; and what can be left out on loading."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, Taxonomy
from ferkit.data import FaceDataset, leaked_rows, leaking_rows, make_dataset, select_faces
from ferkit.data.audit import AuditReport, audit_dataset, picked_rows


@pytest.fixture
def faulty() -> FaceDataset:
    """Ten images; rows (from 1): 1 = 8 (leak, conflict), 2 = 3 (repeat), 4 flat, 5 = 9 = 10 (leak)."""
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), dtype=np.uint8)
    images[2] = images[1]
    images[3] = 77
    images[7] = images[0]
    images[8] = images[9] = images[4]
    labels = np.array([0, 1, 1, 6, 3, 2, 4, 5, 3, 3])
    split = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2], np.uint8)
    return make_dataset(images, labels, split, FER2013, source="faulty")


def test_the_audit_finds_each_fault(faulty: FaceDataset) -> None:
    report = audit_dataset(faulty)
    assert report.flat == {"Training": (4,), "PublicTest": (), "PrivateTest": ()}
    assert [group.rows for group in report.groups] == [(1, 8), (2, 3), (5, 9, 10)]
    assert report.repeated == 7
    assert [group.rows for group in report.conflicting] == [(1, 8)]
    assert [group.rows for group in report.crossing] == [(1, 8), (5, 9, 10)]
    assert report.groups[0].labels == ("angry", "surprise")
    assert report.groups[0].splits == ("Training", "PublicTest")
    assert report.leaked == {"PublicTest": 2, "PrivateTest": 1}
    assert report.leaking == 2
    assert report.balance["PublicTest"]["surprise"] == 1
    assert report.votes is None


def test_dropping_leaks_removes_the_training_copies_alone(faulty: FaceDataset) -> None:
    kept = select_faces(faulty, drop_leaks=True)
    assert np.bincount(kept.split).tolist() == [4, 3, 1]
    assert not leaked_rows(kept).any()
    assert not leaking_rows(kept).any()


def test_dropping_flat_images_removes_them_in_every_split(faulty: FaceDataset) -> None:
    kept = select_faces(faulty, drop_flat=True)
    assert len(kept) == 9
    assert audit_dataset(kept).flat["Training"] == ()


def test_dropping_nothing_gives_the_same_data_set(faulty: FaceDataset) -> None:
    assert select_faces(faulty) is faulty


@pytest.mark.parametrize(
    ("pick", "rows"),
    [
        ("all", list(range(1, 11))),
        ("flat", [4]),
        ("leaks", [1, 5, 8, 9, 10]),
        ("repeats", [1, 2, 3, 5, 8, 9, 10]),
        ("conflicts", [1, 8]),
    ],
)
def test_the_images_of_a_finding_can_be_picked(faulty: FaceDataset, pick: str, rows: list[int]) -> None:
    assert (np.flatnonzero(picked_rows(faulty, pick)) + 1).tolist() == rows


def test_an_unknown_finding_is_refused(faulty: FaceDataset) -> None:
    with pytest.raises(DataError, match="must be all, flat"):
        picked_rows(faulty, "odd")


def test_a_report_is_plain_json(faulty: FaceDataset) -> None:
    content = json.loads(json.dumps(audit_dataset(faulty).to_json(), allow_nan=False))
    assert content["identical"]["groups"] == 3
    assert content["identical"]["all"][0]["rows"] == [1, 8]


def test_votes_are_not_compared_with_labels_of_another_taxonomy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    two = make_dataset(
        images,
        np.array([0, 1]),
        np.zeros(2, np.uint8),
        Taxonomy("own", ("a", "b")),
        np.ones((2, 10), np.uint8),
        source="two",
    )
    assert audit_dataset(two).votes is None


@pytest.fixture(scope="module")
def real_report(fer2013: FaceDataset) -> AuditReport:
    return audit_dataset(fer2013)


# All figures of the real set are those of ../shared/data/README.md and of the issue that asked for the audit.


@pytest.mark.realdata
def test_the_real_set_has_twelve_constant_images(real_report: AuditReport) -> None:
    assert {split: len(rows) for split, rows in real_report.flat.items()} == {"Training": 11, "PublicTest": 1}


@pytest.mark.realdata
def test_the_real_set_has_1271_groups_of_identical_images(real_report: AuditReport) -> None:
    assert len(real_report.groups) == 1271
    assert real_report.repeated == 2801
    assert len(real_report.conflicting) == 47
    assert len(real_report.crossing) == 270


@pytest.mark.realdata
def test_280_public_test_images_also_stand_in_training(
    real_report: AuditReport, fer2013: FaceDataset
) -> None:
    assert real_report.leaked == {"PublicTest": 280}
    kept = select_faces(fer2013, drop_leaks=True)
    assert len(kept.of_split("PublicTest")) == 3589
    assert len(kept) == len(fer2013) - real_report.leaking
    assert not leaked_rows(kept).any()


@pytest.mark.realdata
def test_the_real_labels_agree_with_ferplus_as_is_known(real_report: AuditReport) -> None:
    votes = real_report.votes
    assert votes is not None
    assert votes.agreement == pytest.approx(0.63, abs=0.005)
    known = {
        "happy": 92,
        "neutral": 87,
        "surprise": 80,
        "angry": 47,
        "sad": 41,
        "disgust": 30,
        "fear": 13,
    }
    for label, percent in known.items():
        share = votes.by_label[label]
        assert share is not None
        assert 100 * share == pytest.approx(percent, abs=1)
    assert votes.majority == {"Training": 25060, "PublicTest": 3199}
    assert votes.argmax == {"Training": 28389, "PublicTest": 3553}


@pytest.mark.realdata
def test_the_real_set_has_the_published_class_counts(real_report: AuditReport) -> None:
    # Goodfellow et al. 2013, by emotion 0..6
    assert list(real_report.balance["Training"].values()) == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    assert list(real_report.balance["PublicTest"].values()) == [467, 56, 496, 895, 653, 415, 607]
