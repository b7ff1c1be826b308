"""The table of ``ferkit predict``: readable in 80 columns, in terminals, pipes and files."""

from __future__ import annotations

import io
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from faceresults import example_face
from ferkit import Expression, Face, Photo, Unreadable
from ferkit.cli.photo_table import PhotoTable
from ferkit.core.errors import ImageError
from ferkit.core.taxonomy import FER2013

LONG = "a-photo-with-a-name-that-is-much-too-long-for-any-column-0042.jpg"


def table(*photos: Photo, full: bool = False, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    with PhotoTable(stream, FER2013.labels, full=full) as sink:
        for photo in photos:
            sink.write(photo)
    stream.flush()
    return raw.getvalue().decode(encoding).splitlines()


def photo(name: str, *faces: Face) -> Photo:
    return Photo(name, 12_000, 12_000, "fer2013", faces, FER2013.labels)


LARGE = replace(example_face("surprise"), box=(10_000.0, 10_000.0, 12_000.0, 12_000.0))


def test_a_table_fits_into_80_columns_and_names_are_shortened_in_the_middle() -> None:
    lines = table(photo(LONG, LARGE, example_face()), photo("b.jpg"))
    assert max(map(len, lines)) <= 80
    header, _, first, _, second, *_, last = (line.rstrip() for line in lines)
    assert header.split() == ["photo", "#", "box", "expression"]
    name, number, *box, label, _, share = first.split()[:7]
    assert name.startswith("a-pho")
    assert name.endswith("2.jpg")
    assert "…" in name
    assert (number, box, label, share) == ("0", ["10000,10000", "2000x2000"], "surprise", "70%")
    assert second.split()[:1] == ["1"]
    assert last.split() == ["b.jpg", "no", "face"]


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_table_has_the_width_of_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = table(photo(LONG, example_face()))
    assert max(map(len, lines)) <= columns
    assert (LONG in "".join(lines)) == (columns == 200)


def test_flags_stand_below_the_labels() -> None:
    lines = [line.strip() for line in table(photo("a.jpg", example_face()))]
    assert lines[3] == "small, cut off"


def test_the_second_label_is_shown_from_5_percent_on() -> None:
    values = dict.fromkeys(FER2013.labels, 0.0)
    for share, shown in ((0.06, True), (0.04, False)):
        both = values | {"happy": 1 - share, "sad": share}
        face = replace(example_face(marks=None), expression=Expression("happy", 1 - share, both))
        (line,) = [line for line in table(photo("a.jpg", face)) if "a.jpg" in line]
        assert ("sad" in line) == shown


def test_the_leading_label_of_an_uncertain_face_is_shown() -> None:
    (line,) = [line for line in table(photo("a.jpg", example_face("uncertain"))) if "a.jpg" in line]
    assert "uncertain" in line
    assert "fear" in line
    assert line.count("%") == 1


def test_without_a_photo_there_is_no_table() -> None:
    assert table(Unreadable("a.jpg", ImageError("damaged"))) == []


def test_bars_are_ascii_where_the_encoding_has_no_blocks() -> None:
    *_, line, _ = table(photo(LONG, example_face()), encoding="latin-1")
    assert "####" in line
    assert ".." in line
    (line,) = [line for line in table(photo("a.jpg", example_face())) if "a.jpg" in line]
    assert "███▌ " in line  # 70 % of five cells


def test_all_columns_are_in_whole_lines_with_whole_names() -> None:
    header, _, first, *_ = table(photo(LONG, example_face()), photo("b.jpg"), full=True)
    assert first.startswith(LONG)
    for heading in ("score", *FER2013.labels, "size", "sharpness", "brightness", "yaw", "outside"):
        assert heading in header.split()
    assert first.count("%") >= 2 + len(FER2013.labels)


def test_no_picture_is_kept_until_the_table_is_printed() -> None:
    """A known fault: with annotated copies memory grew with the number of photos."""
    picture = np.zeros((8, 8, 3), np.uint8)
    kept = weakref.ref(picture)
    with PhotoTable(io.StringIO(), FER2013.labels) as sink:
        sink.write(replace(photo("a.jpg", example_face()), picture=picture))
        del picture
        assert kept() is None


def test_names_are_relative_to_the_common_folder(tmp_path: Path) -> None:
    names = [str(tmp_path / "x" / "a.jpg"), str(tmp_path / "x" / "y" / "b.jpg"), "-"]
    lines = table(*(photo(name) for name in names))
    assert [line.split()[0] for line in lines[2:]] == ["a.jpg", str(Path("y") / "b.jpg"), "-"]


def test_control_characters_in_names_are_escaped() -> None:
    lines = table(photo("a\x1b[31m\nb.jpg", example_face(marks=None)))
    assert len(lines) == 3
    assert lines[2].startswith("a\\x1b[31m\\nb.jpg ")
