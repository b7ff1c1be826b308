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
from ferkit.cli.labelled_photos import find_labelled, judge, read_labelled
from ferkit.core.errors import DataError
from ferkit.core.images import load_image, write_image
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
        ("Happy/a.png", "astronaut.png"),
        ("neutral/sub/b.png", "camera.png"),
        ("neutral/c.png", "chelsea.png"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(sample(source).read_bytes())
    pair = np.concatenate([load_image(sample("camera.png")), load_image(sample("astronaut.png"))], axis=1)
    write_image(folder / "Happy" / "d.png", pair)
    return folder


def truth_of(model, photos):
    """What the recognizer says of the four photos, worked out by hand."""
    recognizer = Recognizer(model)
    first, pair = (recognizer.predict(photos / "Happy" / n).faces for n in ("a.png", "d.png"))
    (man,) = recognizer.predict(photos / "neutral" / "sub" / "b.png").faces
    largest = max(pair, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))
    return [first[0].label == "happy", largest.label == "happy", man.label == "neutral"]


def test_accuracy_counts_faces_found_and_photos_alike(ask, model, photos, tmp_path):
    right = sum(truth_of(model, photos))
    done = ask("evaluate", model, "--photos", photos, "--json", tmp_path / "r.json")
    assert (done.status, done.err) == (0, "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["photos"], report["missed"], report["several"], report["unreadable"]) == (4, 1, 1, {})
    assert (report["of_faces"]["correct"], report["of_faces"]["n"]) == (right, 3)
    assert (report["of_photos"]["correct"], report["of_photos"]["n"]) == (right, 4)
    assert report["missed_of"]["neutral"] == 1
    assert np.array(report["confusion"]).sum() == 3
    assert [c["support"] for c in report["classes"]] == [0, 0, 0, 2, 0, 0, 1]
    assert "faces missed: 1 of 4 (25.00 %)" in done.out
    assert "missed are wrong" in done.out


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


def test_the_label_set_is_the_one_that_folders_are_named_in(ask, model, photos, tmp_path):
    (photos / "Happy").rename(photos / "happiness")
    done = ask("evaluate", model, "--photos", photos, "--json", tmp_path / "r.json")
    assert done.status == 0
    assert json.loads((tmp_path / "r.json").read_text())["taxonomy"] == "ferplus"
    done = ask("evaluate", model, "--photos", photos, "--taxonomy", "fer2013")
    assert done.status == 1
    assert "Received also: happiness" in done.err


def test_an_unreadable_photo_is_named_and_counts_nowhere(ask, model, photos, tmp_path):
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
    assert (report["missed"], report["of_faces"], report["ece"], report["of_photos"]["correct"]) == (
        4,
        None,
        None,
        0,
    )


def test_photos_that_are_faces_already_are_read_as_they_are(ask, model, photos, tmp_path):
    done = ask("evaluate", model, "--photos", photos, "--detector", "none", "--json", tmp_path / "r.json")
    assert done.status == 0
    assert json.loads((tmp_path / "r.json").read_text())["of_faces"]["n"] == 4


def test_the_smallest_face_and_the_provider_can_be_chosen(ask, model, photos, tmp_path):
    options = ["--min-face", "300", "--provider", "CPUExecutionProvider", "--json", tmp_path / "r.json"]
    assert ask("evaluate", model, "--photos", photos, *options).status == 0
    assert json.loads((tmp_path / "r.json").read_text())["missed"] == 4
    done = ask("evaluate", model, "--photos", photos, "--provider", "NoSuchExecutionProvider")
    assert done.status == 1
    assert "offers no NoSuchExecutionProvider" in done.err


def test_what_was_read_keeps_its_labels_also_where_no_face_was(model, photos):
    """A known fault: the photo was put together anew, and its table had no columns of the labels."""
    recognizer = Recognizer(model)
    answers = read_labelled(recognizer, find_labelled(photos))
    assert [answer.photo.labels for answer in answers] == [recognizer.taxonomy.labels] * 4


def test_least_confidence_does_not_change_the_accuracy(model, photos):
    reports = [
        judge(r, read_labelled(r, find_labelled(photos)), source="x", tta="none")
        for r in (Recognizer(model), Recognizer(model, min_confidence=1.0))
    ]
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either --data or --photos"),
        (["--data", "cartoon:20"], "name either --data or --photos"),
        (["--votes", "votes.csv"], "--votes"),
        (["--drop-leaks"], "--drop-leaks"),
        (["--split", "PublicTest"], "--split"),
        (["--tta", "all"], "single, flip, ten-crop"),
    ],
)
def test_options_that_contradict_are_status_2(ask, model, photos, arguments, message):
    given = ["--photos", photos] if arguments else []
    done = ask("evaluate", model, *given, *arguments)
    assert done.status == 2
    assert message in done.err


def test_folders_that_tell_no_labels_are_explained(ask, model, photos, tmp_path):
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
        find_labelled(photos)


def test_photos_that_cannot_be_reached_are_not_left_out_of_the_accuracy(photos, monkeypatch):
    scan = os.scandir

    # The rights of a folder do not bind root, as whom tests may run.
    def refuse(path):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*sub: Permission denied"):
        find_labelled(photos)


def test_labelled_photos_are_measured_where_no_extra_is_installed(model, photos):
    out = python(
        f"{BLOCK}\nfrom ferkit.cli import run\n"
        f"sys.exit(run(['evaluate', {model!r}, '--photos', {str(photos)!r}]))"
    )
    assert "faces missed: 1 of 4" in out
