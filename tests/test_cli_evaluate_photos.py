"""`ferkit evaluate --photos`: the whole pipeline against folders named by label."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ferkit import Recognizer
from ferkit.batch.sources import find_photos
from ferkit.core.errors import DataError
from ferkit.core.images import load_image, write_image
from ferkit.core.taxonomy import FER2013
from ferkit.evaluation.photos import PhotoPrediction, evaluate_photos, label_photos, read_label_map
from modelzoo import write_tiny_model
from samples import sample
from test_house_imports import BLOCK, python


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.fixture
def photos(tmp_path):
    """Four photos under two labels: two faces, a cat, and two people of which the astronaut is larger."""
    folder = tmp_path / "photos"
    for name, source in (
        ("Happy/a.png", "astronaut.jpg"),
        ("neutral/sub/b.png", "camera.png"),
        ("neutral/c.png", "chelsea.png"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(sample(source).read_bytes())
    pair = np.concatenate([load_image(sample("camera.png")), load_image(sample("astronaut.jpg"))], axis=1)
    write_image(folder / "Happy" / "d.png", pair)
    return folder


def truth_of(model, photos):
    """Which of the three photos with faces the recognizer gets right."""
    recognizer = Recognizer(model)
    first, pair = (recognizer.predict(photos / "Happy" / n).faces for n in ("a.png", "d.png"))
    (man,) = recognizer.predict(photos / "neutral" / "sub" / "b.png").faces
    largest = max(pair, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))
    return [first[0].label == "happy", largest.label == "happy", man.label == "neutral"]


def test_accuracy_is_measured_over_all_photos_and_over_the_faces_found(ask, model, photos, tmp_path):
    right = sum(truth_of(model, photos))
    done = ask("evaluate", model, "--photos", photos, "--json", tmp_path / "r.json")
    assert (done.status, done.err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["photos"], report["missed"], report["several"], report["unreadable"]) == (4, 1, 1, {})
    assert (report["of_faces"]["correct"], report["of_faces"]["n"]) == (right, 3)
    assert (report["of_photos"]["correct"], report["of_photos"]["n"]) == (right, 4)
    assert report["missed_of"]["neutral"] == 1
    assert np.array(report["of_faces"]["confusion"]).sum() == 3
    assert [c["support"] for c in report["of_faces"]["classes"]] == [0, 0, 0, 2, 0, 0, 1]
    assert "faces missed: 1 of 4 (25.00 %)" in done.out
    assert "a missed face counts as wrong" in done.out
    assert max(map(len, done.out.replace(str(photos), "photos").splitlines())) <= 80


def test_a_folder_gets_the_text_the_json_and_a_row_per_photo(ask, model, photos, tmp_path):
    done = ask("evaluate", model, "--photos", photos, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.txt").read_text() == done.out
    with (tmp_path / "out" / "photos.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(Path(r["source"]).name, r["true"], r["faces"]) for r in rows] == [
        ("a.png", "happy", "1"),
        ("d.png", "happy", "2"),
        ("c.png", "neutral", "0"),
        ("b.png", "neutral", "1"),
    ]
    assert [bool(r["label"]) for r in rows] == [True, True, False, True]


def test_the_label_set_is_the_one_of_the_folders_names(ask, model, photos, tmp_path):
    (photos / "Happy").rename(photos / "happiness")
    done = ask("evaluate", model, "--photos", photos, "--json", tmp_path / "r.json")
    assert done.status == 0
    assert json.loads((tmp_path / "r.json").read_text())["taxonomy"] == "ferplus"
    (photos / "happiness").rename(photos / "yawn")
    done = ask("evaluate", model, "--photos", photos, "--taxonomy", "fer2013")
    assert done.status == 1
    assert "Received also: yawn" in done.err


def test_an_unreadable_photo_is_named_and_is_in_no_score(ask, model, photos, tmp_path):
    (photos / "Happy" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = ask("evaluate", model, "--photos", photos, "--json", tmp_path / "r.json")
    assert done.status == 1
    assert "broken.png is damaged" in done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["photos"], report["of_photos"]["n"], len(report["unreadable"])) == (5, 4, 1)


def test_where_no_face_is_found_all_are_missed_and_nothing_else_is_measured(ask, model, photos, tmp_path):
    for name in ("Happy/a.png", "Happy/d.png", "neutral/sub/b.png"):
        (photos / name).write_bytes(sample("chelsea.png").read_bytes())
    done = ask("evaluate", model, "--photos", photos, "--json", tmp_path / "r.json")
    assert done.status == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["missed"], report["of_faces"], report["of_photos"]["correct"]) == (4, None, 0)
    assert (report["of_photos"]["n"], report["of_photos"]["mean_recall"]) == (4, 0)


def test_photos_can_be_face_crops(ask, model, photos, tmp_path):
    done = ask("evaluate", model, "--photos", photos, "--detector", "none", "--json", tmp_path / "r.json")
    assert done.status == 0
    assert json.loads((tmp_path / "r.json").read_text())["of_faces"]["n"] == 4


def test_the_smallest_face_and_the_provider_can_be_chosen(ask, model, photos, tmp_path):
    options = ["--min-face", "300", "--provider", "CPUExecutionProvider", "--json", tmp_path / "r.json"]
    assert ask("evaluate", model, "--photos", photos, *options).status == 0
    assert json.loads((tmp_path / "r.json").read_text())["missed"] == 4
    done = ask("evaluate", model, "--photos", photos, "--provider", "NoSuchExecutionProvider")
    assert done.status == 1
    assert "no NoSuchExecutionProvider" in done.err


def test_photos_of_only_cats_have_all_columns(ask, model, tmp_path):
    """A known fault: without a face, the table had no columns for the labels."""
    (tmp_path / "cats" / "neutral").mkdir(parents=True)
    (tmp_path / "cats" / "neutral" / "a.png").write_bytes(sample("chelsea.png").read_bytes())
    assert ask("evaluate", model, "--photos", tmp_path / "cats", "--out", tmp_path / "out").status == 0
    header, row = (tmp_path / "out" / "photos.csv").read_text().splitlines()
    assert header.endswith(",".join(f"p_{label}" for label in FER2013.labels))
    assert row.count(",") == header.count(",")


def test_published_names_of_an_emotion_are_taken_as_the_label(ask, model, photos, tmp_path, caplog):
    (photos / "Happy").rename(photos / "joy")
    options = ["--taxonomy", "fer2013", "--json", tmp_path / "r.json"]
    assert ask("evaluate", model, "--photos", photos, *options).status == 0
    assert "joy = happy" in caplog.text
    report = json.loads((tmp_path / "r.json").read_text())
    assert [c["support"] for c in report["of_faces"]["classes"]] == [0, 0, 0, 2, 0, 0, 1]


@pytest.mark.parametrize("as_file", [None, "m.toml", "m.csv"])
def test_folders_of_other_names_are_mapped_to_labels(ask, model, photos, tmp_path, as_file):
    (photos / "Happy").rename(photos / "Smiling People")
    (photos / "neutral").rename(photos / "calm")
    refused = ask("evaluate", model, "--photos", photos)
    assert refused.status == 1
    assert "--map" in refused.err
    options = ["--map", "smiling people=HAPPY", "--map", "calm=neutral"]
    if as_file == "m.toml":
        (tmp_path / "m.toml").write_text('"smiling people" = "happy"\nCalm = "neutral"\nother = "sad"\n')
        options = ["--map", tmp_path / "m.toml"]
    elif as_file == "m.csv":
        (tmp_path / "m.csv").write_text("\ufefffolder,label\nSmiling People,happy\ncalm,neutral\n", "utf-8")
        options = ["--map", tmp_path / "m.csv"]
    done = ask("evaluate", model, "--photos", photos, *options, "--json", tmp_path / "r.json")
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["taxonomy"], report["photos"], report["left_out"]) == ("fer2013", 4, 0)
    assert report["missed_of"]["neutral"] == 1


def test_a_folder_without_a_label_in_the_map_is_left_out(ask, model, photos, tmp_path):
    (photos / "Happy").rename(photos / "contempt")
    options = ["--map", "contempt=", "--taxonomy", "fer2013", "--json", tmp_path / "r.json"]
    done = ask("evaluate", model, "--photos", photos, *options)
    assert done.status == 0, done.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["photos"], report["left_out"], report["of_photos"]["n"]) == (2, 2, 2)
    assert "2 more left out by the label map" in done.out
    assert ask("evaluate", model, "--photos", photos, *options, "--map", "neutral=").status == 1


@pytest.mark.parametrize(
    ("entry", "content"),
    [("happy", None), ("m.toml", "a = 1"), ("m.toml", "a ="), ("m.csv", "a,b,c"), ("absent.csv", None)],
)
def test_a_label_map_that_is_none_is_refused_by_name(tmp_path, monkeypatch, entry, content):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(entry).write_text(content)
    with pytest.raises(DataError, match=entry):
        read_label_map([entry])


def test_scores_are_those_counted_by_hand():
    """Of four angry photos one face is missed and two are right; of two happy ones one is right."""
    sure = np.eye(7) * 0.93 + 0.01
    rows = [("angry", 0), ("angry", 0), ("angry", 4), ("angry", None), ("happy", 3), ("happy", 0)]
    predictions = [
        PhotoPrediction(f"{k}.jpg", label, 1, None if column is None else sure[column])
        for k, (label, column) in enumerate(rows)
    ]
    report = evaluate_photos(predictions, FER2013, model="m", detector="d", tta="none", source="x")
    assert (report.missed, report.missed_of["angry"]) == (1, 1)
    assert (report.of_photos.accuracy, report.of_faces.accuracy) == (3 / 6, 3 / 5)
    assert report.of_photos.mean_recall == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert report.of_faces.mean_recall == pytest.approx((2 / 3 + 1 / 2) / 2)
    low, high = report.of_photos.mean_recall_interval
    assert low < report.of_photos.mean_recall < high
    confusion = report.of_faces.confusion
    assert (confusion[0][0], confusion[0][4], confusion[3][0]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either --data or --photos"),
        (["--data", "cartoon:20"], "name either --data or --photos"),
        (["--votes", __file__], "--votes"),
        (["--drop-leaks"], "--drop-leaks"),
        (["--split", "PublicTest"], "--split"),
        (["--predictions", "a.csv"], "--predictions"),
        (["--tta", "all"], "none, flip, ten-crop"),
    ],
)
def test_options_that_contradict_are_status_2(ask, model, photos, arguments, message):
    given = ["--photos", photos] if arguments else []
    done = ask("evaluate", model, *given, *arguments)
    assert done.status == 2
    assert message in done.err


def test_folders_without_labels_are_explained(ask, model, photos, tmp_path):
    for folder, message in (
        (tmp_path / "absent", "is no folder"),
        (photos / "neutral" / "sub", "holds no folders"),
        (photos / "neutral", "lies in no folder named by a label"),
    ):
        done = ask("evaluate", model, "--photos", folder)
        assert done.status == 1
        assert message in done.err
    (photos / "sad").mkdir()
    with pytest.raises(DataError, match="sad holds no photo"):
        label_photos(photos, find_photos([str(photos)]))


def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(photos, monkeypatch):
    scan = os.scandir

    # Permissions of a folder do not bind root, as whom tests may run.
    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*sub: Permission denied"):
        label_photos(photos, find_photos([str(photos)]))


def test_labelled_photos_are_measured_where_no_extra_is_installed(model, photos):
    out = python(
        f"{BLOCK}\nfrom ferkit.cli import run\n"
        f"sys.exit(run(['evaluate', {model!r}, '--photos', {str(photos)!r}]))"
    )
    assert "faces missed: 1 of 4" in out
