"""Results: frozen values that can be pickled, compared, turned into plain types and put into a table."""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

import ferkit
import modelzoo
from faceresults import PHOTOS, frame
from ferkit import Face, Photo, Quality, Recognizer, Unreadable
from ferkit.core.errors import (
    FerkitError,
    ImageError,
    MissingDependencyError,
    OutputError,
    TaxonomyError,
)
from ferkit.core.images import load_image, write_image
from ferkit.core.taxonomy import FER2013
from ferkit.recognize.drawing import draw_faces
from ferkit.recognize.results import UNCERTAIN, ByLabel, expressions, photo_columns
from ferkit.recognize.sinks import CSVSink
from samples import sample

ASTRONAUT, CAMERAMAN, CAT = sample("astronaut.jpg"), sample("camera.png"), sample("chelsea.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return Recognizer(model)


def test_results_are_frozen_and_become_plain_types(recognizer: Recognizer) -> None:
    photo = recognizer.predict(ASTRONAUT)
    with pytest.raises(FrozenInstanceError):
        photo.faces[0].score = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        photo.faces[0].probabilities["happy"] = 1.0  # type: ignore[index]
    assert not hasattr(photo, "__dict__")
    again = json.loads(json.dumps(photo.to_dict()))
    assert again == photo.to_dict()
    (face,) = again["faces"]
    assert set(face) == {"box", "score", "landmarks", "quality", "label", "confidence", "probabilities"}
    assert set(face["quality"]) == {field.name for field in fields(Quality)}
    assert set(face["landmarks"]) == {"left_eye", "right_eye", "nose", "left_mouth", "right_mouth"}
    assert face["probabilities"] == dict(photo.faces[0].probabilities)


def photo_of_two_faces() -> Photo:
    rows = np.array([[0.5, 0.25, 0.25, 0, 0, 0, 0], [0, 0, 0, 0.125, 0, 0.875, 0]], np.float32)
    marks = tuple((float(k), 1.0) for k in range(5))
    quality = Quality(20.0, 0.75, 120.0, None, None, None, 0.0, ("small",))
    faces = tuple(
        Face((0.0, 0.0, 10.0, 20.0), 0.5, marks, expression, quality)
        for expression in expressions(rows, FER2013)
    )
    return Photo("a.jpg", 30, 40, "fer2013", faces)


@pytest.mark.parametrize(
    "again",
    [lambda photo: pickle.loads(pickle.dumps(photo)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_results_can_be_pickled_and_copied(again: Callable[[Photo], Photo]) -> None:
    photo = photo_of_two_faces()
    other = again(photo)
    assert other == photo
    assert other.to_dict() == photo.to_dict()
    assert tuple(other.faces[1].probabilities) == FER2013.labels
    with pytest.raises(TypeError):
        other.faces[0].probabilities["happy"] = 1.0  # type: ignore[index]


def test_results_are_hashable_and_become_dictionaries() -> None:
    photo = photo_of_two_faces()
    first, second = photo.faces
    assert {first, second, copy.deepcopy(first)} == {first, second}
    assert hash(photo) == hash(copy.deepcopy(photo))
    assert asdict(photo)["faces"][0]["expression"]["probabilities"] == first.probabilities


def test_numbers_by_label_are_an_immutable_mapping_in_order() -> None:
    plain = {"sad": 0.25, "happy": 0.75}
    numbers = ByLabel(plain)
    plain["sad"] = 1.0
    assert list(numbers.items()) == [("sad", 0.25), ("happy", 0.75)]
    assert numbers == {"happy": 0.75, "sad": 0.25}
    assert numbers == ByLabel({"happy": 0.75, "sad": 0.25})
    assert hash(numbers) == hash(ByLabel({"happy": 0.75, "sad": 0.25}))
    assert numbers != ByLabel({"happy": 0.75, "sad": 0.5})
    assert repr(numbers) == "ByLabel({'sad': 0.25, 'happy': 0.75})"
    with pytest.raises(KeyError):
        numbers["angry"]
    assert not hasattr(numbers, "__dict__")


def test_a_probability_equal_to_min_confidence_is_enough() -> None:
    row = np.array([[0.5, 0.25, 0.25, 0, 0, 0, 0]], np.float32)
    assert expressions(row, FER2013, min_confidence=0.5)[0].label == "angry"
    assert expressions(row, FER2013, min_confidence=0.51)[0].label == UNCERTAIN


def test_to_pandas_has_the_columns_and_rows_of_the_csv(recognizer: Recognizer) -> None:
    pd = pytest.importorskip("pandas")
    photos = recognizer.predict([ASTRONAUT, CAT, CAMERAMAN])
    stream = io.StringIO()
    with CSVSink(stream, photo_columns(FER2013.labels)) as sink:
        for photo in photos:
            sink.write(photo)
    table = ferkit.to_pandas(photos)
    read = pd.read_csv(io.StringIO(stream.getvalue()))
    assert list(table.columns) == list(read.columns)
    assert table["p_happy"].dropna().tolist() == read["p_happy"].dropna().tolist()
    assert table["p_happy"].isna().tolist() == [False, True, False]
    assert table["source"].tolist() == [str(ASTRONAUT), str(CAT), str(CAMERAMAN)]
    assert table["faces"].tolist() == read["faces"].tolist() == [1, 0, 1]
    assert ferkit.to_pandas(photos[0]).equals(photos[0].to_pandas())
    assert photos[0].to_pandas()["label"].tolist() == [photos[0].faces[0].label]
    (faceless,) = photos[1].to_pandas().to_dict("records")
    assert faceless.pop("source") == str(CAT)
    assert faceless.pop("faces") == 0
    assert pd.isna(list(faceless.values())).all()


def test_to_pandas_has_all_columns_if_no_photo_has_a_face(recognizer: Recognizer) -> None:
    pytest.importorskip("pandas")
    table = ferkit.to_pandas(recognizer.predict([CAT, CAT]))
    assert list(table.columns) == photo_columns(FER2013.labels)
    assert len(table) == 2


def test_to_pandas_has_no_row_for_an_unreadable_photo(recognizer: Recognizer, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    table = ferkit.to_pandas(recognizer.predict_each([tmp_path / "absent.jpg", CAT]))
    assert table["source"].tolist() == [str(CAT)]
    assert len(ferkit.to_pandas([Unreadable("absent.jpg", ImageError("it is absent"))])) == 0


@pytest.mark.parametrize("faces", [0, 1])
def test_to_pandas_refuses_several_label_sets(model: Path, faces: int) -> None:
    """A known fault: probabilities of two label sets were put into the same columns by position."""
    pytest.importorskip("pandas")
    photos = [
        Recognizer(model, detector="none", taxonomy=name).predict(np.zeros((48, 48, 3), np.uint8))
        for name in ("fer2013", "ferplus")
    ]
    photos[1] = replace(photos[1], faces=photos[1].faces[:faces])
    expected = r"fer2013 \(angry, .*\) and ferplus \(neutral, .*\)"
    with pytest.raises(TaxonomyError, match=f"one label set; make one table of each. Received: {expected}"):
        ferkit.to_pandas(photos)
    with pytest.raises(TaxonomyError, match=r"fer2013 \(angry, .*\) and fer2013 \(neutral, .*\)"):
        ferkit.to_pandas([photos[0], replace(photos[1], taxonomy="fer2013")])


def test_to_pandas_takes_results_without_labels() -> None:
    pytest.importorskip("pandas")
    table = ferkit.to_pandas(PHOTOS[1:])
    assert table["p_happy"].isna().tolist() == [True, False]


def test_to_pandas_refuses_photos_and_frames_together() -> None:
    pytest.importorskip("pandas")
    with pytest.raises(FerkitError, match="photos or frames"):
        ferkit.to_pandas([PHOTOS[1], frame(0)])


def test_without_pandas_the_error_names_the_package(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        recognizer.predict(CAT).to_pandas()


def test_a_photo_is_a_sequence_of_its_faces() -> None:
    photo = photo_of_two_faces()
    first, second = photo
    assert (len(photo), photo[0], photo[-1], photo[:1]) == (2, first, second, (first,))
    assert second in photo
    assert not replace(photo, faces=())
    with pytest.raises(IndexError):
        photo[2]


def test_the_repr_of_a_photo_is_one_readable_line() -> None:
    photo = photo_of_two_faces()
    assert repr(photo) == "<Photo 'a.jpg' 30 x 40: 2 faces (angry 50%, surprise 88%)>"
    assert repr(replace(photo, source=None, faces=())) == "<Photo 30 x 40: 0 faces>"
    crowd = replace(photo, faces=photo.faces * 50)
    assert len(repr(crowd)) < 120
    assert "100 faces (" in repr(crowd)
    assert repr(photo[0]) == "<Face angry 50% at 0,0 10x20>"


GRAY = np.full((40, 30, 3), 90, np.uint8)


def test_a_photo_draws_and_saves_itself(tmp_path: Path) -> None:
    photo = photo_of_two_faces()
    write_image(tmp_path / "a.png", GRAY)
    from_file = replace(photo, source=str(tmp_path / "a.png"))
    expected = draw_faces(GRAY, photo)
    for drawn in (photo.draw(GRAY), replace(photo, picture=GRAY).draw(), from_file.draw()):
        assert np.array_equal(drawn, expected)
    assert not np.array_equal(photo.draw(GRAY, landmarks=False), expected)
    from_file.save(tmp_path / "out.png")
    assert np.array_equal(load_image(tmp_path / "out.png"), expected)


def test_a_photo_without_its_picture_asks_for_it(tmp_path: Path) -> None:
    photo = replace(photo_of_two_faces(), source=None)
    with pytest.raises(ImageError, match="pass it as the argument picture"):
        photo.draw()
    with pytest.raises(ImageError, match=r"30 x 40 pixels\. Received: 40 x 30"):
        photo.draw(GRAY.transpose(1, 0, 2))
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        replace(photo, source="absent.jpg").draw()


def test_a_photo_is_not_saved_over_itself(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", GRAY)
    before = (tmp_path / "a.png").read_bytes()
    photo = replace(photo_of_two_faces(), source=str(tmp_path / "a.png"))
    with pytest.raises(OutputError, match="is the photo itself"):
        photo.save(tmp_path / ".." / tmp_path.name / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_notebook_shows_the_annotated_photo_or_its_text() -> None:
    photo = replace(photo_of_two_faces(), source="<a>.jpg", picture=np.full((3000, 2000, 3), 90, np.uint8))
    with_picture = replace(photo, width=2000, height=3000)._repr_html_()
    content = re.match(r'<img src="data:image/jpeg;base64,([^"]+)"><br>', with_picture)
    assert content is not None
    assert load_image(base64.b64decode(content[1])).shape == (720, 480, 3)
    assert with_picture.endswith(html.escape(repr(replace(photo, width=2000, height=3000))))
    assert replace(photo, picture=None)._repr_html_() == html.escape(repr(photo))
