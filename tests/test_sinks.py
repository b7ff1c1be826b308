"""Sinks: results of photos and frames as JSON, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest

from faceresults import PHOTOS, example_face, frame, tracked
from ferkit.core.errors import FerkitError, ImageError
from ferkit.core.taxonomy import FER2013
from ferkit.recognize.results import Photo, Unreadable, photo_columns
from ferkit.recognize.sinks import SINKS, CSVSink, JSONLinesSink, JSONSink, make_sink
from ferkit.video.recognition import frame_columns

COLUMNS = photo_columns(FER2013.labels)
UNREADABLE = Unreadable("absent.jpg", ImageError("no such file"))


def written(name: str, photos: list[Photo | Unreadable]) -> str:
    stream = io.StringIO()
    with make_sink(name, stream, COLUMNS) as sink:
        for photo in photos:
            sink.write(photo)
    return stream.getvalue()


def test_json_is_one_array_and_json_lines_are_one_object_per_photo() -> None:
    expected = [photo.to_dict() for photo in PHOTOS]
    assert json.loads(written("json", PHOTOS)) == expected
    assert [json.loads(line) for line in written("jsonl", PHOTOS).splitlines()] == expected
    assert json.loads(written("json", [])) == []
    assert written("jsonl", []) == ""


def test_only_json_lines_have_unreadable_photos() -> None:
    photos = [PHOTOS[1], UNREADABLE]
    _, line = written("jsonl", photos).splitlines()
    assert json.loads(line) == {"source": "absent.jpg", "error": "no such file"}
    assert len(json.loads(written("json", photos))) == 1
    assert len(written("csv", photos).splitlines()) == 2


@pytest.mark.parametrize("name", ["json", "jsonl"])
def test_json_objects_take_further_fields(name: str) -> None:
    stream = io.StringIO()
    with make_sink(name, stream, COLUMNS) as sink:
        sink.write(PHOTOS[1], annotated="out/empty-faces.jpg")
    (photo,) = json.loads(stream.getvalue()) if name == "json" else [json.loads(stream.getvalue())]
    assert photo == PHOTOS[1].to_dict() | {"annotated": "out/empty-faces.jpg"}


def test_a_json_array_is_closed_after_an_error() -> None:
    stream = io.StringIO()

    def interrupted() -> None:
        with JSONSink(stream) as sink:
            sink.write(PHOTOS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(json.loads(stream.getvalue())) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
def test_json_is_utf_8_for_streams_of_any_encoding(encoding: str) -> None:
    """A known fault: names were written in the stream's encoding, and JSON is UTF-8."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    with JSONLinesSink(stream) as sink:
        sink.write(Photo("é.jpg", 160, 120, "fer2013", ()))
    assert json.loads(raw.getvalue().decode("utf-8"))["source"] == "é.jpg"


def test_csv_has_a_row_per_face_and_one_row_for_a_photo_without_a_face() -> None:
    """A known fault: a photo without a face had no row, like an unreadable one."""
    rows = list(csv.DictReader(io.StringIO(written("csv", PHOTOS))))
    assert [(row["source"], row["faces"], row["face"]) for row in rows] == [
        ('a,"b".jpg', "2", "0"),
        ('a,"b".jpg', "2", "1"),
        ("empty.jpg", "0", ""),
        ("", "1", "0"),
    ]
    first, second, faceless, third = rows
    assert set(list(faceless.values())[2:]) == {""}
    assert [float(first[name]) for name in ("left", "top", "right", "bottom")] == [10.25, 20.5, 60, 80]
    assert (first["label"], float(first["confidence"]), float(first["score"])) == ("happy", 0.7, 0.875)
    assert [float(first[f"p_{name}"]) for name in FER2013.labels] == list(
        example_face().probabilities.values()
    )
    assert (first["nose_x"], first["nose_y"], second["nose_x"]) == ("22.0", "32.0", "")
    assert (first["yaw"], first["flags"], second["flags"]) == ("-4.5", "small;cut off", "")
    assert third["label"] == "uncertain"
    assert written("csv", []).startswith("source,faces,face,left")


def test_csv_of_frames_has_a_row_per_face_and_one_row_for_a_frame_without_a_face() -> None:
    stream = io.StringIO()
    with CSVSink(stream, frame_columns(FER2013.labels)) as sink:
        sink.write(frame(0, tracked(1), tracked(None, "fear", marks=None)))
        sink.write(frame(3))
        sink.write(frame(7, tracked(2)))
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert [(row["frame"], row["time"], row["faces"], row["track"]) for row in rows] == [
        ("0", "0.0", "2", "1"),
        ("0", "0.0", "2", ""),
        ("3", "0.3", "0", ""),
        ("7", "0.7", "1", "2"),
    ]
    assert (float(rows[0]["left"]), float(rows[0]["bottom"])) == (10.25, 80.0)
    assert [float(rows[0][f"p_{name}"]) for name in FER2013.labels] == list(
        example_face().probabilities.values()
    )
    assert (rows[0]["label"], rows[0]["raw_label"], rows[0]["detected"]) == ("happy", "sad", "1")
    assert (rows[0]["nose_x"], rows[1]["nose_x"], rows[2]["label"]) == ("22.0", "", "")
    assert (rows[0]["yaw"], rows[0]["flags"], rows[1]["flags"]) == ("-4.5", "small;cut off", "")


def test_json_lines_of_frames_hold_one_frame_each() -> None:
    stream = io.StringIO()
    frames = [frame(0, tracked()), frame(1)]
    with JSONLinesSink(stream) as sink:
        for each in frames:
            sink.write(each)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines == [json.loads(json.dumps(each.to_dict())) for each in frames]
    assert lines[0]["faces"][0]["probabilities"]["happy"] == 0.7


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(FerkitError, match="unknown format 'xml'"):
        make_sink("xml", io.StringIO(), COLUMNS)
    assert list(SINKS) == ["json", "jsonl", "csv"]
