"""``ferkit data`` as one types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from facefiles import csv_text, drawn_csv, face_row, pack, write_faces, zip_folder
from ferkit.cli import run
from ferkit.core.images import load_image, write_image
from ferkit.core.taxonomy import FER2013
from ferkit.data import load_data


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FERKIT_CACHE", str(folder))
    return folder


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def test_info_says_what_a_source_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", "cartoon:70:1"]) == 0
    out = capsys.readouterr().out
    assert "70 faces of 48 x 48 pixels" in out
    assert "with FER+ votes" in out
    assert [line.split() for line in out.splitlines() if line.startswith("all")] == [["all", "56", "7", "7"]]


def test_info_as_json_names_the_fingerprint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", "cartoon:70:1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fingerprint"] == load_data("cartoon:70:1").fingerprint
    assert content["balance"]["Training"]["happy"] == 8
    assert content["taxonomy"]["labels"][0] == "angry"


def test_audit_reports_what_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = drawn_csv().splitlines()[1:]
    rows += [rows[0].replace("Training", "PublicTest"), face_row(6, "PublicTest")]
    path = pack(csv_text(rows).encode(), tmp_path / "f.csv")
    assert run(["data", "audit", str(path)]) == 0
    out = capsys.readouterr().out
    assert "constant images: 1\n  1 in PublicTest: rows 44\n" in out
    assert "groups of identical images: 1 (2 images)" in out
    assert "PublicTest images with a duplicate in Training: 1" in out
    assert "no FER+ votes" in out
    assert run(["data", "audit", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"]["all"][0]["rows"] == [1, 43]


def test_audit_names_unreadable_pictures_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_faces(tmp_path / "d", [f"val/{label}/{k}.png" for label in "ab" for k in range(3)])
    for name in ("val/a/1.png", "val/b/2.png"):
        (source / name).write_bytes(b"no picture")
    assert run(["data", "audit", str(source)]) == 0
    out = capsys.readouterr().out
    assert "4 faces of" in out
    assert "2 pictures cannot be read and are left out: val/a/1.png, val/b/2.png" in out
    assert run(["data", "audit", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreadable"] == ["val/a/1.png", "val/b/2.png"]
    for command in (["info"], ["convert", str(tmp_path / "o.npz")]):
        assert run(["data", command[0], str(source), *command[1:]]) == 1
        assert "2 of 6 pictures cannot be read; repair or remove val/a/1.png, val/b/2.png" in (
            capsys.readouterr().err
        )


def test_audit_compares_with_votes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "audit", "cartoon:140"]) == 0
    out = capsys.readouterr().out
    assert "labels that equal the leading FER+ vote:" in out
    assert "FER+ majority keeps" in out


def test_show_writes_a_sheet_with_a_row_per_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert run(["data", "show", "cartoon:70", "-o", str(out), "--per-label", "3", "--cell", "48"]) == 0
    sheet = load_image(out)
    # title, then seven rows of 48 pixels with gaps of 4, and three columns right of the names
    assert sheet.shape[0] == 34 + 7 * 52 + 4
    assert sheet.shape[1] > 3 * 52
    assert capsys.readouterr().err == f"wrote {out}\n"


def test_control_characters_in_labels_reach_neither_a_sheet_nor_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = write_faces(tmp_path / "d", ["two\nlines/1.png", "\x1b[2Jred/2.png"])
    assert run(["data", "show", str(source), "-o", str(tmp_path / "sheet.png")]) == 0
    (source / "x\x1b[0m").mkdir()
    assert run(["data", "info", str(source)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].isprintable()
    assert all(message.isprintable() for message in caplog.messages)


def test_show_shows_a_split_and_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pack(csv_text([*drawn_csv().splitlines()[1:], face_row(6)]).encode(), tmp_path / "f.csv")
    out = tmp_path / "flat.png"
    args = [
        "data",
        "show",
        str(path),
        "-o",
        str(out),
        "--pick",
        "flat",
        "--cell",
        "32",
        "--split",
        "Training",
    ]
    assert run(args) == 0
    assert load_image(out).shape[0] == 34 + 36 + 4
    assert run([*args[:-1], "PublicTest"]) == 1
    assert "no face in split PublicTest" in capsys.readouterr().err


def test_show_of_a_finding_that_is_empty_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "show", "cartoon:70", "-o", str(tmp_path / "x.png"), "--pick", "conflicts"]) == 1
    assert capsys.readouterr().err == "error: there is no face to show\n"
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_show_puts_augmented_faces_below_their_originals(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    args = ["data", "show", "cartoon:70", "-o", str(out), "--per-label", "2", "--cell", "48", "--augment"]
    assert run([*args, "none"]) == 0
    sheet = load_image(out)
    assert sheet.shape[0] == 34 + 14 * 52 + 4
    left = sheet.shape[1] - 4 - 52
    faces = [sheet[34 + k * 52 : 34 + k * 52 + 48, left : left + 48] for k in range(14)]
    for original, augmented in zip(faces[::2], faces[1::2], strict=True):
        np.testing.assert_array_equal(original, augmented)  # that preset changes nothing


def test_convert_writes_folders_npz_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("d", "f.npz", "f.csv.gz"):
        assert run(["data", "convert", "cartoon:70", str(tmp_path / name)]) == 0
        assert len(load_data(tmp_path / name)) == 70
    assert capsys.readouterr().err.count("wrote 70 faces to") == 3


def test_convert_takes_labels_from_votes_and_writes_the_votes(tmp_path: Path) -> None:
    out, votes = tmp_path / "f.csv", tmp_path / "v.csv"
    args = [
        "data",
        "convert",
        "cartoon:210",
        str(out),
        "--labels",
        "fer2013-majority",
        "--votes-out",
        str(votes),
    ]
    assert run(args) == 0
    again = load_data(out, votes=votes)
    assert 100 < len(again) < 210


def test_convert_leaves_out_leaks_and_flat_images(tmp_path: Path) -> None:
    rows = drawn_csv().splitlines()[1:]
    rows += [rows[0].replace("Training", "PublicTest"), face_row(6)]
    path = pack(csv_text(rows).encode(), tmp_path / "f.csv")
    assert run(["data", "convert", str(path), str(tmp_path / "o.csv"), "--drop-leaks", "--drop-flat"]) == 0
    assert len(load_data(tmp_path / "o.csv")) == len(rows) - 2


BAD_SOURCES = {
    "missing column": (
        "f.csv",
        csv_text(["3,Training"], "emotion,Usage"),
        "f.csv, line 1: no column 'pixels'",
    ),
    "pixel count": ("f.csv", csv_text([face_row(), face_row(count=9)]), "f.csv, row 2 (line 3): 9 pixels"),
    "over 255": ("f.csv.gz", csv_text([face_row(fill=256)]), "f.csv.gz, row 1 (line 2): pixel 1 is '256'"),
    "unknown label": (
        "f.zip",
        csv_text([face_row(8)]),
        "f.zip:fer2013.csv, row 1 (line 2): unknown label '8'",
    ),
    "unknown usage": (
        "f.tar.gz",
        csv_text([face_row(usage="?")]),
        "fer2013.csv, row 1 (line 2): unknown Usage",
    ),
}


@pytest.mark.parametrize("command", ["info", "audit", "show", "convert"])
@pytest.mark.parametrize(("name", "text", "words"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_bad_input_is_one_line_and_exit_status_1_and_nothing_is_written(
    tmp_path: Path, private_cache: Path, command: str, name: str, text: str, words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = pack(text.encode(), tmp_path / name)
    out = {"show": ["-o", str(tmp_path / "o.png")], "convert": [str(tmp_path / "o.csv")]}.get(command, [])
    assert run(["data", command, str(source), *out]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert names_in(tmp_path) == [name]
    assert names_in(private_cache) == []


def test_misaligned_votes_are_one_line_and_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pack(drawn_csv().encode(), tmp_path / "f.csv")
    votes = tmp_path / "v.csv"
    counts = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    votes.write_text(f"Usage,Image name,{counts}\nTraining,,0,0,0,0,0,0,0,0,0,10\n")
    assert run(["data", "convert", str(source), str(tmp_path / "o.csv"), "--votes", str(votes)]) == 1
    err = capsys.readouterr().err
    assert "v.csv does not match" in err
    assert not (tmp_path / "o.csv").exists()


def test_an_existing_target_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o.csv").write_text("kept")
    assert run(["data", "convert", "no such source", str(tmp_path / "o.csv")]) == 1
    assert "o.csv exists" in capsys.readouterr().err
    assert run(["data", "convert", "cartoon:21", str(tmp_path / "o.csv"), "--overwrite"]) == 0


def test_an_unwritable_cache_is_a_warning_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FERKIT_CACHE", str(tmp_path / "file"))
    assert run(["data", "info", "cartoon:21"]) == 0
    assert len(caplog.records) == 1


@pytest.mark.parametrize("votes", ["o.csv", "./x/../o.csv"])
def test_votes_do_not_replace_the_faces(
    tmp_path: Path, votes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["data", "convert", "cartoon:21", str(tmp_path / "o.csv"), "--votes-out", str(tmp_path / votes)]
    assert run([*args, "--overwrite"]) == 2
    assert "o.csv or inside it" in capsys.readouterr().err
    assert names_in(tmp_path) == []


def test_without_votes_to_write_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pack(drawn_csv().encode(), tmp_path / "f.csv")
    args = ["data", "convert", str(source), str(tmp_path / "o.csv"), "--votes-out", str(tmp_path / "v.csv")]
    assert run(args) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "has no votes to write" in err
    assert names_in(tmp_path) == ["f.csv"]


def test_votes_are_removed_if_the_faces_cannot_be_written(tmp_path: Path) -> None:
    write_own = ["data", "convert", "cartoon:21", str(tmp_path / "f.npz"), "--labels", "ferplus-argmax"]
    assert run(write_own) == 0
    # a csv holds FER2013's labels only
    args = ["data", "convert", str(tmp_path / "f.npz"), str(tmp_path / "o.csv"), "--votes-out"]
    assert run([*args, str(tmp_path / "v.csv")]) == 1
    assert names_in(tmp_path) == ["f.npz"]


def test_faces_are_removed_if_the_votes_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    args = ["data", "convert", "cartoon:21", str(tmp_path / "o.csv"), "--votes-out"]
    assert run([*args, str(tmp_path / "file" / "v.csv")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert names_in(tmp_path) == ["file"]


def test_votes_are_not_written_into_a_folders_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "votes").mkdir()
    args = ["data", "convert", "no such source", str(tmp_path / "o.csv"), "--votes-out"]
    assert run([*args, str(tmp_path / "votes")]) == 1
    assert "votes: it is a folder" in capsys.readouterr().err


def test_a_detector_without_photos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["data", "convert", "cartoon:21", str(tmp_path / "o.csv"), "--detector", "none"]
    assert run(args) == 2
    assert "needs --crop-faces" in capsys.readouterr().err
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("out", "kept"), [("o.csv", False), ("o.npz", True)])
def test_votes_that_the_layout_cannot_hold_are_reported(
    tmp_path: Path, out: str, kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    faces, votes = tmp_path / "f.csv", tmp_path / "v.csv"
    assert run(["data", "convert", "cartoon:70", str(faces), "--votes-out", str(votes)]) == 0
    capsys.readouterr()
    assert run(["data", "convert", str(faces), str(tmp_path / "voted.npz"), "--votes", str(votes)]) == 0
    capsys.readouterr()
    assert run(["data", "convert", str(tmp_path / "voted.npz"), str(tmp_path / "again.csv")]) == 0
    assert "does not hold the votes" in capsys.readouterr().err
    assert run(["data", "convert", str(faces), str(tmp_path / out), "--votes", str(votes)]) == 0
    assert ("does not hold the votes; --votes-out" in capsys.readouterr().err) is not kept
    assert (load_data(tmp_path / out).votes is not None) is kept


@pytest.mark.parametrize(("size", "said"), [("32", True), ("16", False)])
def test_a_size_that_the_source_ignores_is_reported(
    tmp_path: Path, size: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pack(drawn_csv().encode(), tmp_path / "f.csv")
    assert run(["data", "info", str(source), "--size", size]) == 0
    err = capsys.readouterr().err
    assert ("keep their 16 pixels" in err) is said


def write_photos(root: Path) -> Path:
    """Photos: each a small drawn face on a large ground, so that cropping is seen."""
    faces = load_data("cartoon:8:2", cache=False).images
    for k, face in enumerate(faces):
        photo = np.full((300, 400, 3), 90, np.uint8)
        photo[60:252, 100:292] = cv2.resize(face, (192, 192))[:, :, None]
        name = root / ("smile" if k % 2 else "frown") / f"{k}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        write_image(name, photo)
    return root


@pytest.mark.parametrize("crop", [[], ["--crop-faces", "--detector", "none"]])
@pytest.mark.parametrize("asked", [None, "own"])
def test_an_npz_keeps_the_requested_label_set(
    tmp_path: Path,
    asked: str | None,
    crop: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_faces(tmp_path / "in", [f"{label}/1.png" for label in FER2013.labels if label != "disgust"])
    out = tmp_path / "f.npz"
    args = ["data", "convert", str(tmp_path / "in"), str(out), *crop]
    assert run([*args, *([] if asked is None else ["--taxonomy", asked])]) == 0
    assert ("has no label disgust" in capsys.readouterr().err + caplog.text) is (asked is None)
    dataset = load_data(out)
    assert dataset.taxonomy.id == (asked or "fer2013")
    assert load_data(out, taxonomy="fer2013").taxonomy == FER2013


def test_without_a_detector_each_picture_is_the_crop(tmp_path: Path) -> None:
    """A known fault: the whole picture was cropped as the box of a detector, which cut its edges off."""
    write_photos(tmp_path / "photos")
    for out, more in (("a.npz", []), ("b.npz", ["--crop-faces", "--detector", "none"])):
        assert run(["data", "convert", str(tmp_path / "photos"), str(tmp_path / out), *more]) == 0
    assert np.array_equal(load_data(tmp_path / "a.npz").images, load_data(tmp_path / "b.npz").images)


@pytest.mark.parametrize(("out", "said"), [("o.npz", False), ("faces", True), ("named", False)])
def test_layouts_that_name_what_was_held_out_say_so(
    tmp_path: Path, out: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    split = "val" if out == "named" else "train"
    names = [f"{split if k > 7 else 'train'}/{label}/{k}.png" for label in "ab" for k in range(9)]
    write_faces(tmp_path / "in", names)
    assert run(["data", "convert", str(tmp_path / "in"), str(tmp_path / out)]) == 0
    line = f"{tmp_path / out} names the held-out faces PublicTest"
    assert (line in capsys.readouterr().err) is said


@pytest.mark.parametrize("packed", [None, "photos.zip", "photos.tar.gz"])
def test_photos_are_cropped_by_the_instruments_own_geometry(tmp_path: Path, packed: str | None) -> None:
    source = write_photos(tmp_path / "photos")
    if packed is not None:
        source = zip_folder(source, tmp_path / packed)
    args = ["data", "convert", str(source), str(tmp_path / "f.npz"), "--crop-faces", "--detector", "none"]
    assert run(args) == 0
    dataset = load_data(tmp_path / "f.npz")
    assert dataset.taxonomy.labels == ("frown", "smile")
    assert dataset.images.shape == (8, 48, 48)


def test_photos_that_are_no_pictures_and_the_tenth_held_out_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_photos(tmp_path / "photos")
    (source / "smile" / "9.heic").write_bytes(b"?")
    args = ["data", "convert", str(source), str(tmp_path / "f.npz"), "--crop-faces", "--detector", "none"]
    assert run(args) == 0
    assert "files that are no pictures are ignored: 1 .heic" in caplog.text
    assert "no PublicTest is named; 2 of 8 Training faces are held out as it" in caplog.text


@pytest.mark.parametrize(
    ("extra", "status", "words"),
    [
        (["--votes", __file__], 2, "photos have no FER+ votes"),
        (["--labels", "ferplus-majority"], 2, "photos have no FER+ votes"),
        (["--detector", "nobody"], 1, "unknown detector 'nobody'"),
    ],
)
def test_what_makes_no_sense_with_photos_is_refused(
    tmp_path: Path, extra: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_photos(tmp_path / "photos")
    args = ["data", "convert", str(source), str(tmp_path / "f.npz"), "--crop-faces", *extra]
    assert run(args) == status
    assert words in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [("cartoon:21", "photos come from a folder, a .zip or a tar"), ("nothing", "no such file or folder")],
)
def test_photos_come_from_a_folder_or_archive(
    tmp_path: Path, source: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "convert", source, str(tmp_path / "f.npz"), "--crop-faces"]) == 1
    assert words in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_photos(tmp_path / "photos")
    (source / "smile" / "1.png").write_bytes(b"no picture")
    assert run(["data", "convert", str(source), str(tmp_path / "d"), "--crop-faces"]) == 1
    assert "repair or remove smile/1.png" in capsys.readouterr().err
    assert names_in(tmp_path) == ["photos"]


@pytest.mark.realdata
def test_real_photos_are_cropped_and_those_without_a_face_named(
    tmp_path: Path, shared_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    media = {p.stem: p for p in (shared_dir / "media").rglob("*") if p.suffix in (".jpg", ".png")}
    for label, stem in (("happy", "0-f15-hao-ph"), ("surprise", "0-f1-su-ph"), ("angry", "15-f13-anc-ph")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        write_image(tmp_path / "photos" / label / f"{stem}.png", load_image(media[stem]))
    write_image(tmp_path / "photos" / "happy" / "wall.png", np.full((200, 300, 3), 128, np.uint8))
    assert run(["data", "convert", str(tmp_path / "photos"), str(tmp_path / "f.npz"), "--crop-faces"]) == 0
    assert "no face in 1 of 4 photos, left out: happy/wall.png" in caplog.text
    dataset = load_data(tmp_path / "f.npz")
    assert [dataset.taxonomy.labels[k] for k in dataset.labels] == ["angry", "happy", "surprise"]
    assert (dataset.images.std(axis=(1, 2)) > 20).all()


@pytest.mark.parametrize("option", ["--data", "--votes"])
@pytest.mark.parametrize("command", ["train", "search", "evaluate", "compare"])
def test_a_mistyped_source_is_refused_before_a_training_framework_is_imported(
    tmp_path: Path, command: str, option: str
) -> None:
    code = (
        "import sys, ferkit.cli; status = ferkit.cli.run(sys.argv[1:]);"
        "sys.exit(9 if {'keras', 'tensorflow', 'onnxruntime'} & set(sys.modules) else status)"
    )
    data = (
        ["--data", "cartoon:21", "--votes", "no such.csv"]
        if option == "--votes"
        else ["--data", "no such.csv"]
    )
    names = {"compare": ["fast", "best"], "evaluate": ["fast"], "search": []}.get(command, [])
    done = subprocess.run(
        [sys.executable, "-c", code, command, *names, *data],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "no such.csv: there is no such file or folder" in done.stderr
