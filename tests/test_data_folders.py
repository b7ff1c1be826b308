"""Folders of pictures: labels, splits, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from facefiles import write_faces, zip_folder
from ferkit.cli import run
from ferkit.core.errors import DataError, FerkitError
from ferkit.core.images import write_image
from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy
from ferkit.data import SPLITS, load_data
from ferkit.data.folders import plan_layout
from ferkit.data.holdout import hold_out

KAGGLE = [
    *(f"train/{label}/Training_{k}.jpg" for label in FER2013.labels for k in (11, 22, 33)),
    *(f"test/{label}/PublicTest_{k}.jpg" for label in FER2013.labels for k in (44, 55)),
    *(f"test/{label}/PrivateTest_66.jpg" for label in FER2013.labels),
]


@pytest.mark.parametrize("kind", ["folder", "zip", "zip with a folder around it", "tar.gz"])
def test_kaggles_folders_keep_the_splits_of_their_file_names(tmp_path: Path, kind: str) -> None:
    source = write_faces(tmp_path / "fer", KAGGLE)
    if kind != "folder":
        prefix = "archive/fer2013/" if "around" in kind else ""
        source = zip_folder(source, tmp_path / f"fer.{kind.split(maxsplit=1)[0]}", prefix)
    dataset = load_data(source, cache=False)
    assert dataset.taxonomy == FER2013, "the taxonomy's own order, not that of the names"
    assert np.bincount(dataset.split).tolist() == [21, 14, 7]
    assert np.bincount(dataset.labels).tolist() == [6] * 7


def test_labels_are_those_of_the_folders_and_not_of_their_sorted_order(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", [f"{label}/1.png" for label in FER2013.labels])
    gray = np.full((16, 16), 200, np.uint8)
    write_image(tmp_path / "d" / "surprise" / "1.png", gray)
    dataset = load_data(tmp_path / "d", cache=False)
    row = int(np.flatnonzero((dataset.images == 200).all(axis=(1, 2)))[0])
    assert dataset.taxonomy.labels[dataset.labels[row]] == "surprise"


@pytest.mark.parametrize(
    ("labels", "taxonomy"),
    [
        (FER2013.labels, FER2013),
        ([label.upper() for label in FER2013.labels], FER2013),
        (["Happy", *(label for label in FER2013.labels if label != "happy")], FER2013),
        (FERPLUS.labels, FERPLUS),
    ],
)
def test_known_label_sets_are_recognised_whatever_their_case(labels: list[str], taxonomy: object) -> None:
    assert plan_layout("x", [f"{label}/1.png" for label in labels]).taxonomy == taxonomy


def test_other_labels_make_a_taxonomy_of_their_own_sorted_by_name() -> None:
    layout = plan_layout("x", ["yawn/1.png", "smile/1.jpg", "Grin/2.JPG"])
    assert (layout.taxonomy.id, layout.taxonomy.labels) == ("own", ("Grin", "smile", "yawn"))
    assert [layout.taxonomy.labels[place.label] for place in layout.places] == ["Grin", "smile", "yawn"]


@pytest.mark.parametrize(
    ("labels", "taxonomy", "lacking"),
    [
        ([label for label in FER2013.labels if label != "disgust"], FER2013, "disgust"),
        (["Angry", "Happy", "Sad", "Surprise", "Neutral"], FER2013, "disgust, fear"),
        ([label for label in FERPLUS.labels if label != "contempt"], FERPLUS, "contempt"),
    ],
)
def test_folders_that_lack_a_label_or_two_are_in_the_taxonomy_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: list[str], taxonomy: Taxonomy, lacking: str
) -> None:
    source = write_faces(
        tmp_path / "d", [f"{side}/{label}/1.png" for side in ("train", "val") for label in labels]
    )
    write_image(source / "train" / labels[-1] / "1.png", np.full((16, 16), 200, np.uint8))
    dataset = load_data(source, cache=False)
    assert dataset.taxonomy == taxonomy
    assert {taxonomy.labels[k] for k in dataset.labels} == {label.lower() for label in labels}
    row = int(np.flatnonzero((dataset.images == 200).all(axis=(1, 2)))[0])
    assert taxonomy.labels[dataset.labels[row]] == labels[-1].lower()
    assert caplog.messages[0].startswith(f"{source}: has no label {lacking} of {taxonomy.id!r}")


@pytest.mark.parametrize(
    "labels",
    [
        ["angry", "happy", "neutral", "sad"],
        [*(FER2013.labels[:6]), "bored"],
        ["happiness", *FER2013.labels[4:]],
    ],
)
def test_fewer_labels_of_a_known_set_or_one_more_are_a_set_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: list[str]
) -> None:
    source = write_faces(tmp_path / "d", [f"{side}/{x}/1.png" for side in ("train", "val") for x in labels])
    dataset = load_data(source, cache=False)
    assert (dataset.taxonomy.id, dataset.taxonomy.labels) == ("own", tuple(sorted(labels)))
    assert caplog.messages == []


def test_most_of_a_known_sets_labels_stay_a_networks_own_where_it_has_just_these(tmp_path: Path) -> None:
    seven = sorted(set(FERPLUS.labels) - {"contempt"})
    source = write_faces(tmp_path / "d", [f"{label}/{k}.png" for label in seven for k in range(2)])
    own = Taxonomy("own", tuple(seven))
    kept = load_data(source, cache=False, heads=(FER2013, own))
    assert kept.taxonomy == own
    assert kept.labels.tolist() == [k for k in range(7) for _ in range(2)]
    assert load_data(source, cache=False, heads=(Taxonomy("own", ("a", "b")),)).taxonomy == FERPLUS


def test_a_requested_taxonomy_is_used(tmp_path: Path) -> None:
    four = ["Angry", "happy", "neutral", "sad"]
    source = write_faces(tmp_path / "d", [f"{label}/{k}.png" for label in four for k in range(2)])
    wide = load_data(source, cache=False, taxonomy="fer2013")
    assert wide.taxonomy == FER2013
    assert np.bincount(wide.labels, minlength=7).tolist() == [2, 0, 0, 2, 2, 0, 2]
    seven = write_faces(tmp_path / "e", [f"{label}/1.png" for label in FER2013.labels])
    own = load_data(seven, cache=False, taxonomy="own")
    assert (own.taxonomy.id, own.taxonomy.labels) == ("own", tuple(sorted(FER2013.labels)))
    assert own.fingerprint != load_data(seven, cache=False).fingerprint


@pytest.mark.parametrize(
    ("source", "taxonomy", "message"),
    [
        ("d", "fer2013", "taxonomy 'fer2013' has no label 'yawn'; it has angry"),
        ("d", "fer", "unknown taxonomy 'fer'"),
        ("cartoon:21", "own", "a taxonomy without votes"),
    ],
)
def test_a_taxonomy_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, taxonomy: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_faces(tmp_path / "d", ["yawn/1.png", "sad/2.png"])
    with pytest.raises(FerkitError, match=message):
        load_data(source, cache=False, taxonomy=taxonomy)


def test_an_empty_folder_of_a_label_that_lacks_is_no_mistake(tmp_path: Path) -> None:
    source = write_faces(tmp_path / "d", [f"{label}/1.png" for label in FER2013.labels if label != "disgust"])
    (source / "disgust").mkdir()
    assert load_data(source, cache=False).taxonomy == FER2013
    (source / "sad" / "1.png").unlink()
    (source / "sad" / "more").mkdir()
    with pytest.raises(DataError, match="sad/more/ is empty"):
        load_data(source, cache=False)


def splits_of(names: list[str]) -> dict[str, str]:
    """The split of each file name."""
    return {p.name: SPLITS[p.split] for p in plan_layout("x", names).places}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a/1.png", "val/b/2.png", "test/a/3.png"], ["Training", "PublicTest", "PrivateTest"]),
        (["Training/a/1.png", "Validation/b/2.png"], ["Training", "PublicTest"]),
        (["Training/a/1.png", "PublicTest/b/2.png", "PrivateTest/b/3.png"], list(SPLITS)),
        (["train/a/1.png", "test/b/2.png"], ["Training", "PrivateTest"]),
        (["train/a/1.png", "train/b/2.png"], ["Training", "Training"]),
        (["a/1.png", "b/2.png"], ["Training", "Training"]),
        (["a/Training_1.png", "b/PublicTest_2.png"], ["Training", "PublicTest"]),
        (["train/a/1.png", "test/b/PublicTest_2.png", "test/b/PrivateTest_2.png"], list(SPLITS)),
        (["test/a/Training_1.png", "val/b/Training_2.png"], ["PrivateTest", "PublicTest"]),
        (["train/a/PublicTest_1.png", "val/b/PrivateTest_2.png"], ["Training", "PublicTest"]),
        (["val/a/Training_1.png", "privatetest/b/PublicTest_2.png"], ["PublicTest", "PrivateTest"]),
        (["all/x/train/a/1.png", "all/x/val/b/2.png"], ["Training", "PublicTest"]),
        (["train/1.png", "bus/2.png"], ["Training", "Training"]),
    ],
)
def test_folders_and_file_names_tell_the_splits(names: list[str], splits: list[str]) -> None:
    found = splits_of(names)
    assert [found[name] for name in names] == splits


def test_faces_that_were_moved_to_other_folders_are_held_out_there() -> None:
    names = [
        "train/happy/Training_1.jpg", "train/sad/Training_2.jpg", "val/happy/Training_3.jpg",
        "test/sad/Training_4.jpg", "test/happy/PublicTest_5.jpg", "test/happy/PrivateTest_6.jpg",
    ]  # fmt: skip
    found = splits_of(names)
    expected = ["Training", "Training", "PublicTest", "PrivateTest", "PublicTest", "PrivateTest"]
    assert [found[name] for name in names] == expected


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["train/smile/1.png", "val/Smile/2.png", "val/frown/3.png"], ("frown", "smile")),
        (["train/smile/1.png", "train/yawn/2.png", "test/SMILE/3.png"], ("smile", "yawn")),
        (["Smile/1.png", "smile/2.png", "yawn/3.png"], ("Smile", "yawn")),
        (["train/STRASSE/1.png", "val/straße/2.png", "val/weg/3.png"], ("STRASSE", "weg")),
    ],
)
def test_folders_that_differ_in_case_are_one_label_spelt_as_in_training(
    names: list[str], labels: tuple[str, ...]
) -> None:
    layout = plan_layout("x", names)
    assert layout.taxonomy.labels == labels
    found = {place.name: labels[place.label].casefold() for place in layout.places}
    assert found == {name: name.split("/")[-2].casefold() for name in names}


def test_held_out_is_a_tenth_of_each_label_by_content_alone(tmp_path: Path) -> None:
    names = [f"{label}/{k}.png" for label in ("smile", "frown") for k in range(30)]
    before = load_data(write_faces(tmp_path / "d", names), cache=False)
    for k, file in enumerate(sorted((tmp_path / "d").rglob("*.png"))):
        file.rename(file.with_name(f"{997 * k % 60:03d}.png"))
    after = load_data(tmp_path / "d", cache=False)
    assert [int(before.split[before.labels == k].sum()) for k in (0, 1)] == [3, 3]
    held = [{image.tobytes() for image in d.of_split("PublicTest").images} for d in (before, after)]
    assert held[0] == held[1]


def test_equal_images_fall_on_the_same_side_even_under_two_labels() -> None:
    rng = np.random.default_rng(1)
    distinct = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    images = np.concatenate([distinct, distinct])
    labels = np.repeat([0, 1], 40)
    split = hold_out(images, labels)
    np.testing.assert_array_equal(split[:40], split[40:])
    assert 0 < split.sum() < 80


def test_a_label_with_one_image_keeps_it_for_training() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    assert hold_out(images, np.array([0, 1, 1])).tolist() in ([0, 0, 1], [0, 1, 0])


def test_nothing_to_hold_out_of_is_no_error() -> None:
    assert hold_out(np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64)).tolist() == []


def test_faces_are_scaled_to_the_requested_size_without_distortion(tmp_path: Path) -> None:
    disc = np.zeros((120, 60), np.uint8)
    cv2.circle(disc, (30, 60), 20, 255, -1)
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    write_image(tmp_path / "d" / "a" / "1.png", disc)
    image = load_data(tmp_path / "d", cache=False, size=48).images[0]
    ys, xs = np.nonzero(image > 127)
    assert abs(int(np.ptp(xs)) - int(np.ptp(ys))) <= 1


def test_faces_of_another_size_than_the_models_are_refused_unless_they_can_be_scaled(
    tmp_path: Path,
) -> None:
    folder = write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    for source in (folder, "cartoon:7"):
        assert load_data(source, cache=False, size=64, needed_by="m64").size == 64
    assert run(["data", "convert", str(folder), str(tmp_path / "f.npz")]) == 0
    message = r"f\.npz: its faces are 48 pixels wide, and m64 takes 64\. .* FACES\.npz --size 64"
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "f.npz", cache=False, size=64, needed_by="m64")


def test_a_picture_of_the_right_size_comes_pixel_for_pixel(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    gray = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    write_image(tmp_path / "d" / "a" / "1.png", gray)
    np.testing.assert_array_equal(load_data(tmp_path / "d", cache=False).images[0], gray)


def test_colour_pictures_become_gray_by_the_usual_weights(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    write_image(tmp_path / "d" / "a" / "1.png", np.full((48, 48, 3), (200, 100, 50), np.uint8))
    # ITU-R BT.601: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    assert (load_data(tmp_path / "d", cache=False).images[0] == 124).all()


def test_hidden_files_and_files_that_are_no_pictures_are_ignored(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    for name in ("a/Thumbs.db", "a/.DS_Store", "notes.txt", "a/._1.png", ".cache/x.png"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"?")
    assert len(load_data(tmp_path / "d", cache=False)) == 2


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_number_of_ignored_files_is_reported_from_the_cache_too(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_faces(
        tmp_path / "d", [f"{split}/{label}/1.png" for split in ("train", "val") for label in "ab"]
    )
    for name in ("train/a/2.heic", "train/a/3.HEIC", "notes.txt", "train/b/.hidden"):
        (source / name).write_bytes(b"?")
    if kind == "zip":
        source = zip_folder(source, tmp_path / "d.zip")
    for _ in range(2):
        load_data(source, cache=tmp_path / "cache")
    words = f"{source}: files that are no pictures are ignored: 2 .heic, 1 .txt"
    assert caplog.messages == [words, words]


def test_a_label_that_later_holds_other_files_only_is_refused_despite_the_cache(
    tmp_path: Path,
) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    load_data(tmp_path / "d", cache=tmp_path / "cache")
    (tmp_path / "d" / "c").mkdir()
    (tmp_path / "d" / "c" / "1.heic").write_bytes(b"?")
    with pytest.raises(DataError, match=r"c/ holds no picture .* only files such as 'c/1\.heic'"):
        load_data(tmp_path / "d", cache=tmp_path / "cache")


def test_every_format_of_a_photo_is_one_of_a_face(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    face = Image.fromarray(np.full((48, 48), 77, np.uint8))
    face.save(tmp_path / "d" / "a" / "2.gif")
    face.save(tmp_path / "d" / "b" / "3.jpe", format="JPEG")
    face.save(tmp_path / "d" / "b" / "4.jfif")
    assert (load_data(tmp_path / "d", cache=False).images == 77).all(axis=(1, 2)).sum() == 3


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (["a/1.png", "b/2.png"], {}),
        (["a/1.png", "b/2.png", "LICENCE", "a/x.csv", "b/y.CSV"], {".csv": 2, "": 1}),
        (["train/a/1.png", "val/b/2.png", "docs/x.txt"], {".txt": 1}),
        (["d/a/1.png", "d/b/2.png", "e/x.txt"], {".txt": 1}),
        (["a/1.png", "b/2.png", "a/raw/3.nef"], {".nef": 1}),
    ],
)
def test_files_beside_the_pictures_are_counted_by_suffix(names: list[str], counts: dict[str, int]) -> None:
    assert plan_layout("x", names).ignored == counts


@pytest.mark.parametrize("split", ["", "train/", "all/val/"])
def test_a_held_out_publictest_is_described_with_its_size(
    tmp_path: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_faces(tmp_path / "d", [f"{split}{label}/{k}.png" for label in "ab" for k in range(20)])
    dataset = load_data(source, cache=False)
    assert dataset.split_named is (split == "all/val/")
    words = f"{source}: no PublicTest is named; 4 of 40 Training faces are held out as it"
    assert caplog.messages == ([] if dataset.split_named else [words])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no picture"),
        (["readme.txt"], "holds no picture .* such as 'readme.txt'"),
        (["1.png", "2.png"], "'1.png' is neither in LABEL/"),
        (["happy/1.png", "happy/2.png"], "two or more labels"),
        (
            ["anna/happy/1.png", "bert/sad/2.png"],
            "'anna/happy/1.png' is neither in LABEL/ nor in train/LABEL",
        ),
        (["train/happy/1.png", "sad/2.png"], "'sad/2.png' is in no split folder"),
        (["test/a/PublicTest_1.png", "test/b/2.png"], "'test/b/2.png' does not"),
        (["happy/1.png", "angry/2.heic"], "angry/ holds no picture .* only files such as 'angry/2.heic'"),
        (["x/a/1.png", "x/b/2.png", "x/c/3.raw"], "x/c/ holds no picture"),
        (["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.heic"], "test/b/ holds no picture"),
    ],
)
def test_a_layout_without_labels_is_refused(names: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        plan_layout("source", names)


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "a/2.png", "b/3.png"])
    bad = tmp_path / "d" / "a" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(
        DataError, match=r"1 of 3 pictures cannot be read; repair or remove a/2\.png .*damaged"
    ):
        load_data(tmp_path / "d", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_up_to_ten_unreadable_pictures_are_named_and_all_are_counted(tmp_path: Path) -> None:
    source = write_faces(tmp_path / "d", [f"val/{label}/{k:02d}.png" for label in "ab" for k in range(10)])
    for name in [f"val/{label}/{k:02d}.png" for label in "ab" for k in range(0, 10, 2)] + [
        "val/b/01.png"
    ] * 3:
        (source / name).write_bytes(b"no picture")
    (source / "val" / "b" / "03.png").write_bytes(b"")
    with pytest.raises(DataError, match="12 of 20 pictures cannot be read") as caught:
        load_data(source, cache=False)
    assert "val/a/00.png, val/a/02.png" in str(caught.value)
    assert " and 2 more" in str(caught.value)
    rest = load_data(source, cache=tmp_path / "cache", skip_unreadable=True)
    assert len(rest) == 8
    assert len(rest.unreadable) == 12
    assert not (tmp_path / "cache").exists(), "an incomplete dataset is not cached"


def test_an_empty_label_folder_is_refused(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    (tmp_path / "d" / "c").mkdir()
    with pytest.raises(DataError, match="c/ is empty"):
        load_data(tmp_path / "d", cache=False)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no picture"):
        load_data(tmp_path, cache=False)


def test_the_folder_around_a_table_is_refused_with_the_tables_name(tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").write_text("x")
    with pytest.raises(DataError, match=r"name the table, such as .*fer2013\.csv"):
        load_data(tmp_path, cache=False)


def test_votes_cannot_be_joined_to_a_folder(tmp_path: Path) -> None:
    write_faces(tmp_path / "d", ["a/1.png", "b/2.png"])
    with pytest.raises(DataError, match="votes are joined by row"):
        load_data(tmp_path / "d", votes=tmp_path / "v.csv", cache=False)
