"""Names and numbers of emotions in published datasets, and labels that a network could never predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facefiles import SIDE, csv_text, face_row, pack, write_faces
from ferkit.cli import run
from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy
from ferkit.data import check_training_labels, load_data
from ferkit.data.labels import emotion_of

# The emotions of the names below, as FER+ calls them.
PLAIN = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]

NAMED = {
    "DeepFace, adjectives": ("angry disgusted fearful happy sad surprised neutral", FER2013),
    "KDEF": ("Angry Disgusted Afraid Happy Sad Surprised Neutral", FER2013),
    "numbered names": ("0_anger 1_disgust 2_fear 3_happy 4_sad 5_surprise 6_neutral", FER2013),
    "German": ("Wut Ekel Angst Freude Trauer Überraschung Neutral", FER2013),
    "German without umlauts": (
        "wuetend angeekelt aengstlich gluecklich traurig ueberrascht neutral",
        FER2013,
    ),
    "French": ("colère dégoût peur joie tristesse surprise neutre", FER2013),
    "Spanish": ("enojo asco miedo alegría tristeza sorpresa neutral", FER2013),
    "Portuguese": ("raiva nojo medo felicidade tristeza surpresa neutro", FER2013),
    "Italian": ("rabbia disgusto paura felicità tristezza sorpresa neutrale", FER2013),
}


@pytest.mark.parametrize(("names", "taxonomy"), NAMED.values(), ids=NAMED.keys())
def test_published_names_and_languages_are_converted_to_known_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, taxonomy: Taxonomy
) -> None:
    labels = names.split()
    assert [emotion_of(label) for label in labels] == PLAIN
    source = write_faces(tmp_path / "d", [f"{part}/{x}/1.png" for part in ("train", "val") for x in labels])
    dataset = load_data(source, cache=False)
    assert dataset.taxonomy == taxonomy
    assert np.bincount(dataset.labels).tolist() == [2] * 7
    (said,) = caplog.messages
    assert said.startswith(f"{source}: labels are read as those of 'fer2013': ")
    for label, plain in zip(labels, FER2013.labels, strict=True):
        assert (f"{label} as {plain}" in said) is (label.lower() != plain)


def test_ck_plus_has_contempt_and_becomes_ferplus_without_neutral(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise"]
    source = write_faces(tmp_path / "d", [f"val/{x}/1.png" for x in labels])
    dataset = load_data(source, cache=False)
    assert dataset.taxonomy == FERPLUS
    assert [FERPLUS.labels[k] for k in dataset.labels[np.argsort(dataset.labels)]] == [
        label for label in FERPLUS.labels if label != "neutral"
    ]
    assert caplog.messages == [
        f"{source}: labels are read as those of 'ferplus': happy as happiness "
        "(ferkit data convert --taxonomy own keeps its labels)",
        f"{source}: has no label neutral of 'ferplus' (ferkit data convert --taxonomy own keeps its labels)",
    ]


@pytest.mark.parametrize(
    "labels",
    [
        ["angry", "anger", "disgust", "fear", "happy", "sad", "surprise"],  # two names of one emotion
        ["angry", "disgusted", "fearful", "happy", "sad", "yawning"],
    ],
)
def test_names_that_are_not_all_emotions_stay_labels_of_their_own(tmp_path: Path, labels: list[str]) -> None:
    source = write_faces(tmp_path / "d", [f"val/{label}/1.png" for label in labels])
    assert load_data(source, cache=False).taxonomy == Taxonomy("own", tuple(sorted(labels)))


# Row k shows number k (RAF-DB from 1): Li et al. 2017, Mollahosseini et al. 2017.
RAF_DB = ["surprise", "fear", "disgust", "happy", "sad", "angry", "neutral"]
AFFECTNET = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]


@pytest.mark.parametrize(
    ("layout", "first", "emotions"),
    [
        ("RAF-DB/DATASET/val/{}/1.png", 1, RAF_DB),
        ("DATASET/val/{}/test_0001_aligned.jpg", 1, RAF_DB),
        ("archive/AffectNet/val/{}/1.png", 0, AFFECTNET),
    ],
)
def test_numbers_are_those_of_the_dataset_that_a_path_or_file_name_contains(
    tmp_path: Path, layout: str, first: int, emotions: list[str]
) -> None:
    names = [layout.format(number) for number in range(first, first + len(emotions))]
    source = write_faces(tmp_path / "d", names)
    dataset = load_data(source, cache=False)
    assert [dataset.taxonomy.labels[k] for k in dataset.labels] == emotions
    assert dataset.taxonomy == (FERPLUS if "contempt" in emotions else FER2013)


def test_numbers_of_an_unknown_dataset_stay_numbers_until_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_faces(tmp_path / "d", [f"val/{k}/1.png" for k in range(1, 8)])
    own = load_data(source, cache=False)
    assert own.taxonomy == Taxonomy("own", tuple("1234567"))
    assert "labels are numbers" in caplog.text
    assert "--taxonomy raf-db" in caplog.text
    named = load_data(source, cache=False, taxonomy="raf-db")
    assert [named.taxonomy.labels[k] for k in named.labels] == RAF_DB
    plus = load_data(source, cache=False, taxonomy="ferplus")  # FER+ has the numbers 0..7
    assert [plus.taxonomy.labels[k] for k in plus.labels] == list(FERPLUS.labels[1:])
    with pytest.raises(DataError, match="'fer2013' has no label '7'"):
        load_data(source, cache=False, taxonomy="fer2013")


def test_labels_that_a_network_consists_of_are_not_converted(tmp_path: Path) -> None:
    labels = sorted(NAMED["KDEF"][0].split())
    source = write_faces(tmp_path / "d", [f"val/{label}/1.png" for label in labels])
    own = Taxonomy("own", tuple(labels))
    assert load_data(source, cache=False, heads=(own,)).taxonomy == own
    assert load_data(source, cache=False, taxonomy="own").taxonomy == own


def test_label_names_in_a_csv_are_read_by_meaning(tmp_path: Path) -> None:
    rows = [face_row(name) for name in ("Fearful", "triste", "Neutral")]
    dataset = load_data(pack(csv_text(rows).encode(), tmp_path / "f.csv"), cache=False)
    assert dataset.labels.tolist() == [2, 4, 6]


MISSPELLED = ["train/suprise/1.png", "test/surprise/2.png"] + [
    f"{part}/{label}/3.png" for part in ("train", "test") for label in ("happy", "sad")
]


def test_a_label_without_training_faces_is_refused_with_the_similar_one(tmp_path: Path) -> None:
    dataset = load_data(write_faces(tmp_path / "d", MISSPELLED), cache=False)
    with pytest.raises(DataError, match=r"no Training face has the label 'surprise' \(.*'suprise'\?\)"):
        check_training_labels(dataset)
    check_training_labels(dataset.of_split("PrivateTest"))  # nothing is trained on it
    check_training_labels(load_data("cartoon:21", cache=False, size=SIDE))


def test_training_faces_with_one_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two or more labels were expected .*'cat'"):
        load_data(write_faces(tmp_path / "one", ["cat/1.png", "cat/2.png"]), cache=False)
    table = pack(csv_text([face_row("happy"), face_row("happy")]).encode(), tmp_path / "f.csv")
    with pytest.raises(DataError, match="every Training face has the label 'happy'"):
        check_training_labels(load_data(table, cache=False))


@pytest.mark.parametrize("command", ["info", "audit"])
def test_info_and_audit_warn_of_a_label_without_training_faces(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    source = write_faces(tmp_path / "d", MISSPELLED)
    assert run(["data", command, str(source)]) == 0
    out = capsys.readouterr().out
    assert "warning: no Training face has the label 'surprise'" in out
    assert "'suprise'" in out
    assert run(["data", command, str(source), "--json"]) == 0
    assert '"surprise"' in capsys.readouterr().out


@pytest.mark.slow
def test_training_refuses_a_label_without_training_faces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "cache"))
    source = write_faces(tmp_path / "d", MISSPELLED)
    args = ["train", "--recipe", "mini-xception", "--data", str(source), "--out", str(tmp_path / "run")]
    assert run(args) == 1
    assert "no Training face has the label 'surprise'" in capsys.readouterr().err
