"""FER2013's csv: what is read, how it is packed, and what is refused with which words."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facefiles import HEADER, SIDE, csv_text, drawn_csv, drawn_images, face_row, pack
from ferkit.core.errors import DataError
from ferkit.core.taxonomy import FER2013
from ferkit.data import load_data
from ferkit.data.tables import parse_pixels, read_face_table


@pytest.mark.parametrize(
    "name", ["f.csv", "f.csv.gz", "f.csv.xz", "f.zip", "f.tar.gz", "f.tgz", "f.tar", "f.tar.xz"]
)
def test_a_table_reads_the_same_however_it_is_packed(tmp_path: Path, name: str) -> None:
    path = pack(drawn_csv().encode(), tmp_path / name, "fer2013/fer2013.csv")
    dataset = load_data(path, cache=False)
    np.testing.assert_array_equal(dataset.images, drawn_images())
    assert dataset.taxonomy == FER2013
    assert np.bincount(dataset.split).tolist() == [28, 7, 7]


@pytest.mark.parametrize(
    "header",
    [
        "emotion,pixels,Usage",
        "emotion, Usage, pixels",  # icml_face_data.csv
        "Usage,pixels,emotion",
        " pixels , EMOTION ,usage",
    ],
)
def test_columns_stand_in_any_order_with_blanks_around_their_names(tmp_path: Path, header: str) -> None:
    path = pack(drawn_csv(header=header).encode(), tmp_path / "f.csv")
    np.testing.assert_array_equal(read_face_table(path).images, drawn_images())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (drawn_csv().replace("\n", "\r\n"), "Windows line ends"),
        ("\ufeff" + drawn_csv(), "a byte order mark"),
        (drawn_csv() + "\n\n", "blank lines at the end"),
        (re.sub(r"(\d+ [\d ]+)", r'"\1"', drawn_csv()), "quoted pixels"),
        (drawn_csv().replace(" ", "  "), "two blanks between pixels"),
        (re.sub(r"(Test|Training)\n", r"\1,x\n", drawn_csv()).replace("Usage", "Usage,note"),
         "a further column"),
        (drawn_csv().removesuffix("\n"), "no line end at the end"),
    ],
    ids=lambda value: value.replace(" ", "-") if len(value) < 40 else "",
)  # fmt: skip
def test_harmless_differences_of_the_file_do_not_matter(tmp_path: Path, text: str, why: str) -> None:
    table = read_face_table(pack(text.encode(), tmp_path / "f.csv"))
    np.testing.assert_array_equal(table.images, drawn_images())


def test_labels_may_be_names(tmp_path: Path) -> None:
    path = pack(csv_text([face_row("Happy"), face_row("neutral")]).encode(), tmp_path / "f.csv")
    assert read_face_table(path).labels.tolist() == [3, 6]


def test_without_usage_a_tenth_of_each_label_is_held_out(tmp_path: Path) -> None:
    path = pack(drawn_csv(140, header="emotion,pixels").encode(), tmp_path / "train.csv")
    dataset = load_data(path, cache=False)
    held = dataset.of_split("PublicTest")
    assert np.bincount(held.labels, minlength=7).tolist() == [2] * 7


def test_a_table_with_training_rows_alone_gets_a_hold_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for row in drawn_csv(140).splitlines()[1:] if row.endswith("Training")]
    path = pack(csv_text(rows).encode(), tmp_path / "train.csv")
    dataset = load_data(path, cache=False)
    assert dataset.split_named is False
    held = dataset.of_split("PublicTest")
    assert np.bincount(held.labels, minlength=7).tolist() == [2] * 7
    assert caplog.messages == [
        f"{path}: no PublicTest is named; 14 of {len(rows)} Training faces are held out as it"
    ]


def first(rows: list[str], header: str = HEADER) -> str:
    """A csv that begins with a good row."""
    return csv_text([face_row(), *rows], header)


BAD_TABLES = {
    "missing column": (csv_text(["3,Training"], "emotion,Usage"), "line 1: no column 'pixels'"),
    "no header": (csv_text([face_row()], face_row()), "line 1: no column 'emotion'"),
    "column twice": (csv_text(["3,3,1 2"], "emotion,emotion,pixels"), "'emotion' appears 2 times"),
    "empty file": ("", "is empty"),
    "header alone": (HEADER + "\n", "has a header and no row"),
    "pixels not square": (csv_text([face_row(count=250)]), "row 1 (line 2): 250 pixels; a square face"),
    "pixels far too few": (csv_text([face_row(count=4)]), "row 1 (line 2): 4 pixels"),
    "one pixel short": (first([face_row(count=255)]), "row 2 (line 3): 255 pixels; 256 (16x16) were"),
    "one pixel more": (first([face_row(count=257)]), "row 2 (line 3): 257 pixels; 256"),
    "value over 255": (first([face_row(fill=256)]), "row 2 (line 3): pixel 1 is '256'"),
    "value of many digits": (first([face_row(fill="9" * 30)]), "row 2 (line 3): pixel 1 is '999"),
    "negative value": (first([face_row(fill=-1)]), "row 2 (line 3): pixel 1 is '-1'"),
    "fraction": (first([face_row(fill=0.5)]), "row 2 (line 3): pixel 1 is '0.5'"),
    "word": (first([face_row(fill="x")]), "row 2 (line 3): pixel 1 is 'x'"),
    "unknown label": (first([face_row(7)]), "row 2 (line 3): unknown label '7'; labels of fer2013 are 0"),
    "negative label": (first([face_row(-1)]), "unknown label '-1'"),
    "no label": (first([face_row("")]), "row 2 (line 3): unknown label ''"),
    "unknown usage": (first([face_row(usage="Test")]), "row 2 (line 3): unknown Usage 'Test'; known are"),
    "row cut off": (first(["3,7 7 7"]), "row 2 (line 3): 2 fields where the header has 3"),
    "row counted after blank lines": (first(["", "", face_row(9)]), "row 2 (line 5): unknown label '9'"),
    "quote left open": (first(['3,"7 7']), "line 3: "),
}  # fmt: skip


def test_control_characters_in_a_table_and_in_its_name_are_escaped_in_messages(tmp_path: Path) -> None:
    path = pack(csv_text(["3,7"], "emo\x1b[2Jtion,pixels").encode(), tmp_path / "a\x1b]0;title\x07.csv")
    with pytest.raises(DataError, match=r"no column 'emotion'") as caught:
        load_data(path, cache=False)
    assert r"a\x1b]0;title\x07.csv" in str(caught.value)
    assert r"emo\x1b[2jtion" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("text", "words"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_bad_table_is_refused_with_file_and_row(tmp_path: Path, text: str, words: str) -> None:
    path = pack(text.encode(), tmp_path / "faces.csv.gz")
    with pytest.raises(DataError) as caught:
        load_data(path, cache=tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert not (tmp_path / "cache").exists(), "nothing is kept of what cannot be read"


def test_a_bad_row_deep_in_the_table_is_named_by_its_own_number(tmp_path: Path) -> None:
    rows = [face_row() for _ in range(1200)]
    rows[1100] = face_row(fill=300)
    path = pack(csv_text(rows).encode(), tmp_path / "f.csv")
    with pytest.raises(DataError, match=r"row 1101 \(line 1102\): pixel 1 is '300'"):
        read_face_table(path)


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"emotion,pixels,Usage\n" + b"7" * (6 << 20)))
    with pytest.raises(DataError, match="line 2: is longer than 4 MiB"):
        read_face_table(path)


def test_a_table_that_unpacks_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ferkit.data.tables.MAX_TABLE_BYTES", 2000)
    with pytest.raises(DataError, match="unpacks to more than"):
        read_face_table(pack(drawn_csv().encode(), tmp_path / "f.csv.gz"))


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_data(tmp_path / "nothing.csv")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 255), min_size=9, max_size=9), min_size=1, max_size=5))
def test_pixels_are_parsed_as_written(rows: list[list[int]]) -> None:
    for row in rows:
        parsed = parse_pixels(" ".join(map(str, row)).encode(), 9)
        assert parsed is not None
        assert parsed.tolist() == row


@settings(max_examples=200, deadline=None)
@given(st.text("0129 -x.\t", min_size=0, max_size=24))
def test_only_numbers_up_to_255_are_pixels(text: str) -> None:
    words = text.split()
    good = len(words) == 4 and all(re.fullmatch(r"\d+|-0+", w) and int(w) <= 255 for w in words)
    parsed = parse_pixels(text.encode(), 4)
    assert (parsed is not None) == good


def test_size_is_that_of_the_table(tmp_path: Path) -> None:
    assert load_data(pack(drawn_csv().encode(), tmp_path / "f.csv"), cache=False).size == SIDE
