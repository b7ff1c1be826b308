"""FER+ votes: reading, joining by row, and the targets made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facefiles import SIDE, csv_text, drawn_csv, pack
from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.data import (
    VOTE_COLUMNS,
    FaceDataset,
    argmax_targets,
    load_data,
    majority_targets,
    relabel,
    soft_targets,
)
from ferkit.data.cartoon import draw_faces
from ferkit.data.ferplus import align_votes, read_votes, to_fer2013

HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
USAGES = ("Training", "PublicTest", "PrivateTest")


def votes_csv(count: int = 42, seed: int = 0, header: str = HEADER) -> str:
    """The votes that belong to ``drawn_csv(count, seed)``."""
    faces = draw_faces(count, seed, SIDE)
    rows = []
    for k, (split, votes) in enumerate(zip(faces.split, faces.votes.tolist(), strict=True)):
        # FER+ leaves the name empty for images that it removed
        name = "" if k % 5 == 0 else f"fer{k:07d}.png"
        cells = {"usage": USAGES[split], "image name": name}
        cells |= {c.lower(): str(n) for c, n in zip(VOTE_COLUMNS, votes, strict=True)}
        rows.append(",".join(cells[c.strip().lower()] for c in header.split(",")))
    return csv_text(rows, header)


def join(tmp_path: Path, faces: str, votes: str) -> FaceDataset:
    return load_data(
        pack(faces.encode(), tmp_path / "f.csv"), votes=pack(votes.encode(), tmp_path / "v.csv"), cache=False
    )


def test_votes_are_joined_by_row(tmp_path: Path) -> None:
    dataset = join(tmp_path, drawn_csv(), votes_csv())
    np.testing.assert_array_equal(dataset.votes, draw_faces(42, 0, SIDE).votes)


@pytest.mark.parametrize("name", ["v.csv.gz", "v.zip", "v.tar.gz"])
def test_votes_may_be_packed_too(tmp_path: Path, name: str) -> None:
    table = read_votes(pack(votes_csv().encode(), tmp_path / name, "fer2013new.csv"))
    assert table.votes.shape == (42, 10)


def test_vote_columns_are_found_by_name(tmp_path: Path) -> None:
    header = ",".join(reversed(HEADER.split(",")))
    table = read_votes(pack(votes_csv(header=header).encode(), tmp_path / "v.csv"))
    np.testing.assert_array_equal(table.votes, draw_faces(42, 0, SIDE).votes)


def without(text: str, usage: str) -> str:
    """A csv without the rows of one split."""
    return "\n".join(line for line in text.splitlines() if usage not in line.split(",")) + "\n"


def test_votes_of_a_split_that_the_faces_lack_are_left_out(tmp_path: Path) -> None:
    # the whole FER+ file beside a csv without PrivateTest
    dataset = join(tmp_path, without(drawn_csv(), "PrivateTest"), votes_csv())
    np.testing.assert_array_equal(dataset.votes, draw_faces(42, 0, SIDE).votes[:35])


def test_faces_without_usage_take_their_splits_from_the_votes(tmp_path: Path) -> None:
    dataset = join(tmp_path, drawn_csv(header="emotion,pixels"), votes_csv())
    np.testing.assert_array_equal(dataset.split, draw_faces(42, 0, SIDE).split)


def test_training_rows_alone_keep_their_votes_and_get_a_hold_out(tmp_path: Path) -> None:
    # the whole FER+ file with Kaggle's train.csv, with and without Usage
    for header in ("emotion,pixels,Usage", "emotion,pixels"):
        rows = drawn_csv(header=header).splitlines()[1:29]  # drawn faces are sorted by split
        dataset = join(tmp_path, csv_text(rows, header), votes_csv())
        np.testing.assert_array_equal(dataset.votes, draw_faces(42, 0, SIDE).votes[:28])
        assert dataset.split_named is False
        assert np.bincount(dataset.split).tolist() == [21, 7]


def cut(text: str, *, last: int = 0) -> str:
    """A csv without its last rows."""
    return "\n".join(text.splitlines()[: -last or None]) + "\n"


MISALIGNED = {
    "a row of votes is missing": (
        drawn_csv(),
        cut(votes_csv(), last=1),
        "28 Training + 7 PublicTest + 6 Private",
    ),
    "a row of faces is missing": (
        cut(drawn_csv(), last=1),
        votes_csv(),
        "against 28 Training + 7 PublicTest + 6",
    ),
    "faces have a split that votes lack": (
        drawn_csv(),
        without(votes_csv(), "PrivateTest"),
        "28 Training + 7 PublicTest rows against",
    ),
    "splits in another order": (
        drawn_csv(),
        csv_text(list(reversed(votes_csv().splitlines()[1:])), HEADER),
        "row 1 is PrivateTest in the votes and Training in the faces",
    ),
    "no usage and another count": (
        drawn_csv(header="emotion,pixels"),
        cut(votes_csv(), last=1),
        "against 42 Training",
    ),
    "rows shuffled within a split": (
        drawn_csv(1400),
        votes_csv(1400, seed=1),
        "rows are in another order",
    ),
}


@pytest.mark.parametrize(("faces", "votes", "words"), MISALIGNED.values(), ids=MISALIGNED.keys())
def test_votes_that_do_not_line_up_are_refused(tmp_path: Path, faces: str, votes: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        join(tmp_path, faces, votes)
    assert words in str(caught.value)
    assert "v.csv" in str(caught.value)
    assert "f.csv" in str(caught.value)


ROW = "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0"
BAD_VOTES = {
    "missing column": (
        csv_text([ROW], HEADER.replace("contempt", "boredom")),
        "line 1: no column 'contempt'",
    ),
    "a table of faces": (drawn_csv(), "line 1: no column 'neutral'"),
    "negative": (csv_text([ROW, ROW.replace(",4,", ",-4,")], HEADER), "row 2 (line 3): neutral is '-4'"),
    "over 255": (csv_text([ROW, ROW.replace(",4,", ",256,")], HEADER), "row 2 (line 3): neutral is '256'"),
    "word": (csv_text([ROW, ROW.replace(",4,", ",four,")], HEADER), "row 2 (line 3): neutral is 'four'"),
    "unknown usage": (
        csv_text([ROW.replace("Training", "Dev")], HEADER),
        "row 1 (line 2): unknown Usage 'Dev'",
    ),
    "short row": (
        csv_text([ROW, "Training,x,1"], HEADER),
        "row 2 (line 3): 3 fields where the header has 12",
    ),
    "empty": ("", "is empty"),
    "header alone": (HEADER, "has a header and no row"),
}


@pytest.mark.parametrize(("text", "words"), BAD_VOTES.values(), ids=BAD_VOTES.keys())
def test_bad_votes_are_refused_with_file_and_row(tmp_path: Path, text: str, words: str) -> None:
    path = pack(text.encode(), tmp_path / "v.csv")
    with pytest.raises(DataError) as caught:
        read_votes(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


# neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, NF
TARGETS = [
    ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], None, "neutral", "4 of the 9 votes that stay are no majority"),
    ([5, 0, 0, 1, 3, 1, 0, 0, 0, 0], "neutral", "neutral", "single votes are set to zero: 5 of 8"),
    ([0, 5, 5, 0, 0, 0, 0, 0, 0, 0], None, "happiness", "half is not more than half; ties: first column"),
    ([2, 0, 0, 0, 0, 0, 0, 0, 8, 0], None, None, "led by unknown"),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], None, None, "no face"),
    ([0, 0, 0, 0, 0, 0, 0, 10, 0, 0], "contempt", "contempt", "contempt is an emotion of FER+"),
    ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None, "neutral", "nothing is left of single votes"),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, None, "no votes at all"),
    ([0, 200, 0, 199, 0, 0, 0, 0, 0, 0], "happiness", "happiness", "counts beyond 127 do not overflow"),
    ([4, 0, 0, 0, 0, 0, 0, 0, 4, 0], None, "neutral", "a tie with unknown: the emotion comes first"),
]


@pytest.mark.parametrize(("votes", "majority", "argmax", "why"), TARGETS, ids=[t[3] for t in TARGETS])
def test_both_protocols_choose_and_drop_as_designed(
    votes: list[int], majority: str | None, argmax: str | None, why: str
) -> None:
    counts = np.array([votes], np.uint8)
    for targets, expected in ((majority_targets, majority), (argmax_targets, argmax)):
        labels, keep = targets(counts)
        assert (FERPLUS.labels[labels[0]] if keep[0] else None) == expected
        assert labels.dtype == np.int64
        assert keep.dtype == bool


def test_targets_of_no_images_are_empty() -> None:
    none = np.zeros((0, 10), np.uint8)
    assert [len(a) for f in (majority_targets, argmax_targets, soft_targets) for a in f(none)] == [0] * 6


def test_soft_targets_are_shares_of_the_emotions_weighted_by_how_many_saw_one() -> None:
    votes = np.array([[3, 1, 0, 0, 0, 0, 0, 0, 4, 0], [0] * 9 + [10]], np.uint8)
    soft, weights = soft_targets(votes)
    np.testing.assert_allclose(soft[0], [0.75, 0.25, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(weights, [0.5, 0.0])
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    assert (soft.dtype, weights.dtype) == (np.float32, np.float32)


def test_ferplus_maps_to_fer2013_without_contempt() -> None:
    mapped = to_fer2013(np.arange(10))
    names = [FER2013.labels[k] if k >= 0 else None for k in mapped]
    assert names == ["neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", None, None, None]


@pytest.mark.parametrize(
    ("labels", "taxonomy"),
    [
        ("ferplus-majority", FERPLUS),
        ("ferplus-argmax", FERPLUS),
        ("fer2013-majority", FER2013),
        ("fer2013-argmax", FER2013),
    ],
)
def test_labels_can_be_taken_from_the_votes(labels: str, taxonomy: object) -> None:
    given = load_data("cartoon:700:1", cache=False)
    dataset = load_data("cartoon:700:1", cache=False, labels=labels)  # type: ignore[arg-type]
    assert dataset.taxonomy == taxonomy
    assert 0 < len(dataset) < len(given)
    assert dataset.fingerprint != given.fingerprint
    names = [dataset.taxonomy.labels[k] for k in dataset.labels]
    assert dataset.votes is not None
    leading = [VOTE_COLUMNS[k] for k in np.argmax(dataset.votes, axis=1)]
    if taxonomy == FERPLUS:
        assert names == leading
    else:
        assert "contempt" not in leading


@pytest.mark.parametrize(
    ("labels", "words"),
    [("ferplus-majority", "has no FER"), ("majority", "labels must be given, ferplus-majority")],
)
def test_labels_that_cannot_be_taken_are_refused(tmp_path: Path, labels: str, words: str) -> None:
    dataset = load_data(pack(drawn_csv().encode(), tmp_path / "f.csv"), cache=False)
    with pytest.raises(DataError, match=words):
        relabel(dataset, labels)  # type: ignore[arg-type]


@pytest.mark.realdata
def test_the_real_votes_give_the_published_counts(fer2013: FaceDataset) -> None:
    # ../shared/data/README.md: majority keeps 25,060 and 3,199, argmax 28,389 and 3,553
    assert fer2013.votes is not None
    for targets, counts in ((majority_targets, [25060, 3199]), (argmax_targets, [28389, 3553])):
        keep = targets(fer2013.votes)[1]
        assert np.bincount(fer2013.split[keep]).tolist() == counts


@pytest.mark.realdata
def test_real_votes_shifted_by_one_row_are_refused(fer2013: FaceDataset, shared_dir: Path) -> None:
    table = read_votes(shared_dir / "data" / "fer2013new.csv")
    # the same splits in the same order, but each row belongs to its neighbour
    labels = np.roll(fer2013.labels, 1)
    with pytest.raises(DataError, match="rows are in another order"):
        align_votes(table, labels, fer2013.split, "fer2013.csv")
