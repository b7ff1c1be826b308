"""The recognizer: photos in, exact results out, in order, whatever stands beside them."""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ferkit
import modelzoo
from ferkit import (
    Explanation,
    Expression,
    Face,
    FaceClassifier,
    Photo,
    Quality,
    Recognizer,
    Unreadable,
    load_image,
)
from ferkit.core.crops import CropGeometry, crop_corners, crop_faces
from ferkit.core.errors import (
    DetectorError,
    FerkitError,
    ImageError,
    MissingDependencyError,
    ModelFileError,
    TaxonomyError,
)
from ferkit.core.images import to_gray, write_image
from ferkit.core.modelfile import write_model
from ferkit.core.taxonomy import FER2013, FERPLUS
from ferkit.detect import Detection, Detector, make_detector
from ferkit.detect.whole import WholePicture
from ferkit.recognize.drawing import AnnotatedNames, colour, draw, label_places
from ferkit.recognize.results import UNCERTAIN, ByLabel, expressions
from ferkit.recognize.sinks import FORMATS, make_writer
from samples import sample

ASTRONAUT, CAMERAMAN, CAT = sample("astronaut.png"), sample("camera.png"), sample("chelsea.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def centerface() -> Detector:
    """One detector for all: to open its network takes longer than to use it."""
    return make_detector("centerface")


@pytest.fixture(scope="module")
def recognizer(model: Path) -> Recognizer:
    return Recognizer(model)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The astronaut and the cameraman in one photo."""
    left = load_image(ASTRONAUT)
    path = tmp_path_factory.mktemp("pair") / "pair.png"
    write_image(path, np.concatenate([left, load_image(CAMERAMAN)], axis=1))
    return path


def test_a_face_comes_with_box_score_landmarks_label_and_all_probabilities(recognizer: Recognizer) -> None:
    photo = recognizer.predict(ASTRONAUT)
    assert (photo.source, photo.width, photo.height, photo.taxonomy) == (str(ASTRONAUT), 512, 512, "fer2013")
    (face,) = photo.faces
    assert face.score > 0.8
    assert face.landmarks is not None
    assert len(face.landmarks) == 5
    assert tuple(face.probabilities) == FER2013.labels
    assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert face.label == max(face.probabilities, key=lambda name: face.probabilities[name])
    assert face.confidence == face.probabilities[face.label]


def test_the_result_is_detection_crop_and_model_put_together_and_nothing_is_rounded(
    recognizer: Recognizer, model: Path
) -> None:
    """A known fault: scores rounded inside the library."""
    (face,) = recognizer.predict(ASTRONAUT).faces
    crops = crop_faces(to_gray(load_image(ASTRONAUT)), [face.box])
    expected = FaceClassifier(model).predict(crops)["fer2013"][0]
    assert list(face.probabilities.values()) == expected.tolist()


def test_no_face_is_an_empty_list_and_no_error(recognizer: Recognizer) -> None:
    """Known faults: an exception on no face; the whole frame scored as one."""
    assert recognizer.predict(CAT).faces == ()
    assert recognizer.predict(np.zeros((64, 64, 3), np.uint8)).faces == ()
    assert recognizer.crops(CAT).shape == (0, 48, 48)


def test_a_list_gives_a_list_in_order(recognizer: Recognizer, pair: Path) -> None:
    photos = recognizer.predict([CAT, pair, ASTRONAUT])
    assert [photo.source for photo in photos] == [str(CAT), str(pair), str(ASTRONAUT)]
    assert [len(photo.faces) for photo in photos] == [0, 2, 1]
    assert recognizer.predict([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_results_do_not_depend_on_batches_or_neighbours(
    model: Path, recognizer: Recognizer, centerface: Detector, pair: Path, batch_size: int
) -> None:
    files = [pair, CAT, ASTRONAUT, pair]
    together = Recognizer(model, detector=centerface, batch_size=batch_size).predict(list(files))
    alone = {path: recognizer.predict(path) for path in files}
    for path, photo in zip(files, together, strict=True):
        assert [f.box for f in photo.faces] == [f.box for f in alone[path].faces]
        for a, b in zip(photo.faces, alone[path].faces, strict=True):
            assert list(a.probabilities.values()) == pytest.approx(list(b.probabilities.values()), abs=1e-6)


def test_paths_bytes_arrays_and_pillow_images_give_the_same_faces(recognizer: Recognizer) -> None:
    expected = recognizer.predict(ASTRONAUT).faces
    for source in (str(ASTRONAUT), ASTRONAUT.read_bytes(), load_image(ASTRONAUT), Image.open(ASTRONAUT)):
        photo = recognizer.predict(source)
        assert photo.faces == expected
        assert photo.source == (str(ASTRONAUT) if isinstance(source, str) else None)


def test_an_unreadable_photo_stops_predict_but_not_predict_each(
    recognizer: Recognizer, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.jpg"
    with pytest.raises(ImageError, match="absent"):
        recognizer.predict([ASTRONAUT, absent])
    first, second, third = recognizer.predict_each(iter([ASTRONAUT, absent, CAT]))
    assert isinstance(first, Photo)
    assert isinstance(second, Unreadable)
    assert second.source == str(absent)
    assert isinstance(third, Photo)
    with pytest.raises(ImageError, match="absent"):
        recognizer.crops(absent)


def test_a_picture_too_long_for_a_face_crop_does_not_stop_the_others(model: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.png"
    write_image(long, np.zeros((1, 30_001, 3), np.uint8))
    recognizer = Recognizer(model, detector="none")
    crop = np.zeros((48, 48, 3), np.uint8)
    first, second, third = recognizer.predict_each([crop, long, crop])
    assert isinstance(first, Photo)
    assert isinstance(second, Unreadable)
    assert second.source == str(long)
    assert str(second.error).startswith(f"{long}: a face crop has at most")
    assert third == first
    with pytest.raises(ImageError, match=r"long\.png: a face crop has at most"):
        recognizer.predict(long)


def test_an_empty_box_of_ones_own_detector_does_not_stop_the_other_photos(model: Path) -> None:
    class SometimesEmpty:
        name = "sometimes-empty"

        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            return (Detection((5.0, 5.0, float(image[0, 0, 0]), 20.0), 0.5),)

    photos = [np.full((32, 32, 3), right, np.uint8) for right in (20, 5)]
    good, bad, after = Recognizer(model, detector=SometimesEmpty()).predict_each([*photos, photos[0]])
    assert isinstance(good, Photo)
    assert isinstance(bad, Unreadable)
    assert str(bad.error).startswith("the picture: boxes are left, top, right, bottom")
    assert after == good


def test_the_boxes_of_ones_own_detector_count_whatever_its_name(model: Path) -> None:
    """A known fault: of a detector that happens to be called "none" the boxes were ignored without a word."""

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            boxes = np.array([(180, 60, 270, 180), (60, 200, 200, 400)], np.float32)
            return tuple(Detection(box, score) for box, score in zip(boxes, (0.75, 0.5), strict=True))

    mine, other = (Recognizer(model, detector=Named(name)) for name in ("none", "mine"))
    photo = other.predict(ASTRONAUT)
    assert len(photo.faces) == 2
    assert json.loads(json.dumps(photo.faces[0].to_dict()))["box"] == [180, 60, 270, 180]
    assert mine.predict(ASTRONAUT) == photo
    assert mine.explain(ASTRONAUT, photo)[1].corners == other.explain(ASTRONAUT, photo)[1].corners


class FailsAt:
    """A detector that takes the picture for one face, and raises an error at a picture of that gray."""

    name = "fails-at"

    def __init__(self, gray: int, error: Exception) -> None:
        self._gray = gray
        self._error = error

    def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
        if image[0, 0, 0] == self._gray:
            raise self._error
        return (Detection((0.0, 0.0, float(image.shape[1]), float(image.shape[0])), 0.5),)


def grays(*values: int) -> list[NDArray[np.uint8]]:
    return [np.full((32, 32, 3), value, np.uint8) for value in values]


def test_a_photo_at_which_the_detector_fails_does_not_stop_the_others(model: Path, tmp_path: Path) -> None:
    failure = DetectorError("CenterFace fails: no memory")
    recognizer = Recognizer(model, detector=FailsAt(9, failure))
    good, bad = grays(5, 9)
    write_image(tmp_path / "bad.png", bad)
    first, second, third = recognizer.predict_each([good, tmp_path / "bad.png", good])
    assert isinstance(first, Photo)
    assert isinstance(second, Unreadable)
    assert second.source == str(tmp_path / "bad.png")
    assert str(second.error) == f"{tmp_path / 'bad.png'}: CenterFace fails: no memory"
    assert second.error.__cause__ is failure
    assert third == first
    with pytest.raises(ImageError, match=r"bad\.png: CenterFace fails"):
        recognizer.predict(tmp_path / "bad.png")


@pytest.mark.parametrize("error", [MemoryError("out of memory"), ZeroDivisionError("of one's own")])
def test_before_an_error_of_ones_own_detector_come_the_photos_that_are_finished(
    model: Path, error: Exception
) -> None:
    """A known fault: up to 256 photos, with their faces cut out already, went with it."""
    recognizer = Recognizer(model, detector=FailsAt(9, error))
    results = recognizer.predict_each(grays(5, 6, 9, 7))
    assert [next(results), next(results)] == recognizer.predict(grays(5, 6))
    with pytest.raises(type(error), match=str(error)) as caught:
        next(results)
    assert caught.value.__notes__ == ["ferkit had taken 2 photos before this"]


def test_before_an_error_of_the_source_come_the_photos_that_are_finished(model: Path) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield from grays(5, 6)
        raise OSError("the camera is gone")

    results = Recognizer(model, detector="none").predict_each(broken())
    assert [isinstance(next(results), Photo) for _ in range(2)] == [True, True]
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)


@pytest.mark.parametrize(("pending", "taken"), [(1, [1, 2, 3, 4, 5]), (2, [2, 2, 4, 4, 5]), (9, [5] * 5)])
def test_the_caller_says_how_many_photos_of_a_slow_source_may_wait(
    model: Path, pending: int, taken: list[int]
) -> None:
    """A known fault: of a camera nothing was to be had until 64 faces or 256 photos were there."""
    seen: list[int] = []

    def camera() -> Iterator[NDArray[np.uint8]]:
        for photo in grays(1, 2, 3, 4, 5):
            seen.append(len(seen))
            yield photo

    recognizer = Recognizer(model, detector="none")
    assert [len(seen) for _ in recognizer.predict_each(camera(), pending=pending)] == taken


@pytest.mark.parametrize("pending", [0, 1.5, None])
def test_how_many_photos_may_wait_is_checked_before_the_first_is_taken(
    recognizer: Recognizer, pending: Any
) -> None:
    with pytest.raises(FerkitError, match="pending must be"):
        recognizer.predict_each([], pending=pending)


@pytest.mark.parametrize("faces", [0, 1])
def test_photos_are_taken_one_by_one_and_let_go(model: Path, faces: int) -> None:
    """Memory does not grow with the number of photos: results come while photos are still to come."""
    taken = 0

    class Simple:
        name = "simple"

        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            return (Detection((0.0, 0.0, float(image.shape[1]), float(image.shape[0])), 0.5),) * faces

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((16, 16, 3), np.uint8)

    results = Recognizer(model, detector=Simple()).predict_each(endless())
    for _ in range(300):
        next(results)
    assert taken <= 600


def test_the_taxonomy_can_be_chosen(model: Path, centerface: Detector) -> None:
    recognizer = Recognizer(model, detector=centerface, taxonomy="ferplus")
    photo = recognizer.predict(ASTRONAUT)
    assert photo.taxonomy == "ferplus"
    assert tuple(photo.faces[0].probabilities) == FERPLUS.labels
    assert recognizer.taxonomy == FERPLUS


def test_below_the_confidence_asked_for_the_label_is_uncertain(model: Path, centerface: Detector) -> None:
    (face,) = Recognizer(model, detector=centerface, min_confidence=1.0).predict(ASTRONAUT).faces
    (sure,) = Recognizer(model, detector=centerface).predict(ASTRONAUT).faces
    assert face.label == UNCERTAIN
    assert face.probabilities == sure.probabilities
    assert face.confidence == sure.confidence


def test_confidence_equal_to_the_least_is_enough() -> None:
    row = np.array([[0.5, 0.25, 0.25, 0, 0, 0, 0]], np.float32)
    assert expressions(row, FER2013, min_confidence=0.5)[0].label == "angry"
    assert expressions(row, FER2013, min_confidence=0.51)[0].label == UNCERTAIN


def test_a_protocol_of_more_views_changes_the_numbers_a_little(model: Path, centerface: Detector) -> None:
    single = Recognizer(model, detector=centerface).predict(ASTRONAUT).faces[0]
    ten = Recognizer(model, detector=centerface, tta="ten-crop").predict(ASTRONAUT).faces[0]
    assert ten.box == single.box
    assert ten.probabilities != single.probabilities


def test_crops_can_be_read_without_looking_for_faces(recognizer: Recognizer, model: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 48, 48), dtype=np.uint8)
    read = recognizer.predict_crops(crops)
    expected = FaceClassifier(model).predict(crops)["fer2013"]
    assert [list(e.probabilities.values()) for e in read] == expected.tolist()
    assert len(recognizer.predict_crops(np.zeros((3, 90, 70), np.uint8))) == 3
    assert recognizer.predict_crops(np.zeros((0, 48, 48), np.uint8)) == ()


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((48, 48), np.uint8),
        np.zeros((1, 48, 48), np.float32),
        [[1]],
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_crops_of_the_wrong_kind_are_refused(recognizer: Recognizer, crops: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=r"\[N, H, W\]"):
        recognizer.predict_crops(crops)


def test_without_a_detector_the_photo_goes_to_the_network_as_it_is(model: Path) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    recognizer = Recognizer(model, detector="none")
    (face,) = recognizer.predict(crop).faces
    assert (face.box, face.landmarks) == ((0.0, 0.0, 48.0, 48.0), None)
    assert np.array_equal(recognizer.crops(crop)[0], crop)
    assert face.expression == recognizer.predict_crops(crop[None])[0]


def test_the_models_geometry_decides_how_faces_are_cut(tmp_path: Path, recognizer: Recognizer) -> None:
    wide = CropGeometry(box=(0.3, 0.3, 0.7, 0.7))
    other = Recognizer(modelzoo.write_tiny_model(tmp_path / "wide.onnx", crop=wide))
    (face,) = recognizer.predict(ASTRONAUT).faces
    gray = to_gray(load_image(ASTRONAUT))
    assert np.array_equal(other.crops(ASTRONAUT), crop_faces(gray, [face.box], geometry=wide))
    eyes = CropGeometry(align="eyes")
    aligned = Recognizer(modelzoo.write_tiny_model(tmp_path / "eyes.onnx", crop=eyes))
    expected = crop_faces(gray, [face.box], [face.landmarks], geometry=eyes)
    assert np.array_equal(aligned.crops(ASTRONAUT), expected)


def test_the_crop_puts_the_eyes_where_fer2013_has_them(recognizer: Recognizer) -> None:
    """The eyes of the astronaut, by the detector's box alone, against FER2013's medians."""
    (face,) = recognizer.predict(ASTRONAUT).faces
    assert face.landmarks is not None
    left, top, right, bottom = CropGeometry().box
    side = (
        (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]) / ((right - left) * (bottom - top))
    ) ** 0.5
    x0 = (face.box[0] + face.box[2]) / 2 - (left + right) / 2 * side
    y0 = (face.box[1] + face.box[3]) / 2 - (top + bottom) / 2 * side
    eyes = [((x - x0) / side, (y - y0) / side) for x, y in face.landmarks[:2]]
    assert eyes[0] == pytest.approx((0.31, 0.40), abs=0.1)
    assert eyes[1] == pytest.approx((0.69, 0.40), abs=0.1)


def test_a_detector_object_of_ones_own_works(model: Path) -> None:
    class Corner:
        name = "corner"

        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            assert image.shape == (512, 512, 3)
            return (Detection((0.0, 0.0, 20.0, 20.0), 0.5), Detection((-9.0, -9.0, 9.0, 9.0), 0.25))

    photo = Recognizer(model, detector=Corner()).predict(ASTRONAUT)
    assert [(face.box, face.score) for face in photo.faces] == [
        ((0.0, 0.0, 20.0, 20.0), 0.5),
        ((-9.0, -9.0, 9.0, 9.0), 0.25),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"taxonomy": "mood"}, TaxonomyError, "'mood'"),
        ({"detector": "haar"}, DetectorError, "'haar'"),
        ({"min_confidence": 1.5}, FerkitError, r"between 0 and 1. Received: 1\.5"),
        ({"min_face": 2}, DetectorError, "2"),
        ({"detector": None}, DetectorError, "with a name and a method detect. Received: None"),
        ({"detector": WholePicture}, DetectorError, "Received: <class"),
        ({"providers": "CPUExecutionProvider"}, FerkitError, "Received the text: 'CPUExecutionProvider'"),
        ({"model": "no-such-model"}, ModelFileError, "'no-such-model'"),
        ({"providers": ["NoSuchProvider"]}, MissingDependencyError, "NoSuchProvider"),
        ({"tta": "tencrop"}, FerkitError, "single, flip, ten-crop. Received: 'tencrop'"),
        ({"batch_size": 0}, FerkitError, "batch_size must be at least 1. Received: 0"),
        ({"threads": 0}, FerkitError, "threads must be at least 1. Received: 0"),
        ({"threads": -2}, FerkitError, "threads must be at least 1. Received: -2"),
        ({"max_pixels": 0}, FerkitError, "max_pixels must be at least 1. Received: 0"),
        ({"batch_size": 64.0}, FerkitError, r"batch_size must be a whole number. Received: 64\.0"),
        ({"batch_size": True}, FerkitError, "batch_size must be a whole number. Received: True"),
        ({"threads": "2"}, FerkitError, "threads must be a whole number. Received: '2'"),
        ({"max_pixels": float("nan")}, FerkitError, "max_pixels must be a whole number. Received: nan"),
        ({"min_confidence": "0.5"}, FerkitError, "between 0 and 1. Received: '0.5'"),
        ({"min_confidence": None}, FerkitError, "between 0 and 1. Received: None"),
    ],
)
def test_what_is_not_there_is_an_error_at_once(
    model: Path, arguments: dict[str, object], error: type[FerkitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Recognizer(**({"model": model} | arguments))  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(model: Path) -> None:
    options: dict[str, Any] = {"batch_size": np.int64(3), "threads": np.int32(1)}
    recognizer = Recognizer(model, detector="none", min_confidence=np.float32(0.5), **options)
    assert recognizer.predict(np.zeros((48, 48, 3), np.uint8)).faces


def test_min_face_belongs_to_detectors_by_name(model: Path) -> None:
    with pytest.raises(FerkitError, match="min_face"):
        Recognizer(model, detector=WholePicture(), min_face=30)


def test_photos_beyond_the_limit_of_pixels_are_refused(model: Path) -> None:
    with pytest.raises(ImageError, match="more than the limit"):
        Recognizer(model, max_pixels=1000).predict(ASTRONAUT)


def test_many_threads_may_use_one_recognizer(recognizer: Recognizer, pair: Path) -> None:
    expected = {path: recognizer.predict(path) for path in (ASTRONAUT, CAT, pair)}
    wrong: list[Path] = []

    def work() -> None:
        for path, result in expected.items():
            if recognizer.predict(path) != result:
                wrong.append(path)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


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
    assert set(face["quality"]) == {*("size", "sharpness", "yaw", "pitch", "roll", "outside", "flags")}
    assert set(face["landmarks"]) == {"left_eye", "right_eye", "nose", "left_mouth", "right_mouth"}
    assert face["probabilities"] == dict(photo.faces[0].probabilities)


def photo_of_two_faces() -> Photo:
    rows = np.array([[0.5, 0.25, 0.25, 0, 0, 0, 0], [0, 0, 0, 0.125, 0, 0.875, 0]], np.float32)
    marks = tuple((float(k), 1.0) for k in range(5))
    quality = Quality(20.0, 0.75, None, None, None, 0.0, ("small",))
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
def test_results_travel_between_processes_and_can_be_copied(again: Callable[[Photo], Photo]) -> None:
    photo = photo_of_two_faces()
    other = again(photo)
    assert other == photo
    assert other.to_dict() == photo.to_dict()
    assert tuple(other.faces[1].probabilities) == FER2013.labels
    with pytest.raises(TypeError):
        other.faces[0].probabilities["happy"] = 1.0  # type: ignore[index]


def test_results_can_be_put_into_a_set_and_taken_apart() -> None:
    photo = photo_of_two_faces()
    first, second = photo.faces
    assert {first, second, copy.deepcopy(first)} == {first, second}
    assert hash(photo) == hash(copy.deepcopy(photo))
    assert asdict(photo)["faces"][0]["expression"]["probabilities"] == first.probabilities


def test_numbers_by_label_are_a_mapping_in_order_that_equals_a_dict_and_cannot_be_changed() -> None:
    plain = {"sad": 0.25, "happy": 0.75}
    numbers = ByLabel(plain)
    plain["sad"] = 1.0  # what it was made from is another thing
    assert list(numbers.items()) == [("sad", 0.25), ("happy", 0.75)]
    assert numbers == {"happy": 0.75, "sad": 0.25}
    assert numbers == ByLabel({"happy": 0.75, "sad": 0.25})
    assert hash(numbers) == hash(ByLabel({"happy": 0.75, "sad": 0.25}))
    assert numbers != ByLabel({"happy": 0.75, "sad": 0.5})
    assert repr(numbers) == "ByLabel({'sad': 0.25, 'happy': 0.75})"
    with pytest.raises(KeyError):
        numbers["angry"]
    assert not hasattr(numbers, "__dict__")


def test_every_face_is_judged(recognizer: Recognizer) -> None:
    (face,) = recognizer.predict(ASTRONAUT).faces
    assert face.quality is not None
    assert face.quality.size == face.box[3] - face.box[1]
    assert face.quality.flags == ()
    assert face.quality.yaw is not None
    assert abs(face.quality.yaw) < 25
    (cut,) = recognizer.predict(load_image(ASTRONAUT)[:, 200:]).faces  # the border runs through an eye
    assert cut.quality is not None
    assert "cut off" in cut.quality.flags


def test_a_table_for_pandas_has_the_columns_and_rows_of_the_csv(recognizer: Recognizer) -> None:
    pd = pytest.importorskip("pandas")
    photos = recognizer.predict([ASTRONAUT, CAT, CAMERAMAN])
    stream = io.StringIO()
    with make_writer("csv", stream, FER2013) as writer:
        for photo in photos:
            writer.write(photo)
    frame = ferkit.to_pandas(photos)
    read = pd.read_csv(io.StringIO(stream.getvalue()))
    assert list(frame.columns) == list(read.columns)
    assert frame["p_happy"].dropna().tolist() == read["p_happy"].dropna().tolist()
    assert frame["p_happy"].isna().tolist() == [False, True, False]
    assert frame["source"].tolist() == [str(ASTRONAUT), str(CAT), str(CAMERAMAN)]
    assert frame["faces"].tolist() == read["faces"].tolist() == [1, 0, 1]
    assert photos[0].to_pandas()["label"].tolist() == [photos[0].faces[0].label]
    (faceless,) = photos[1].to_pandas().to_dict("records")
    assert faceless.pop("source") == str(CAT)
    assert faceless.pop("faces") == 0
    assert pd.isna(list(faceless.values())).all()


def test_a_table_for_pandas_has_all_columns_also_where_no_photo_shows_a_face(recognizer: Recognizer) -> None:
    pytest.importorskip("pandas")
    table = ferkit.to_pandas(recognizer.predict([CAT, CAT]))
    assert list(table.columns) == written("csv", []).strip().split(",")
    assert len(table) == 2


def test_a_table_for_pandas_has_no_row_of_a_photo_that_cannot_be_read(
    recognizer: Recognizer, tmp_path: Path
) -> None:
    """As the CSV."""
    pytest.importorskip("pandas")
    table = ferkit.to_pandas(recognizer.predict_each([tmp_path / "absent.jpg", CAT]))
    assert table["source"].tolist() == [str(CAT)]
    assert len(ferkit.to_pandas([Unreadable("absent.jpg", ImageError("it is absent"))])) == 0


@pytest.mark.parametrize("faces", [0, 1])
def test_a_table_for_pandas_is_of_one_label_set(model: Path, faces: int) -> None:
    """A known fault: the probabilities stood below each other by their place, under the labels of one set."""
    pytest.importorskip("pandas")
    photos = [
        Recognizer(model, detector="none", taxonomy=name).predict(np.zeros((48, 48, 3), np.uint8))
        for name in ("fer2013", "ferplus")
    ]
    photos[1] = replace(photos[1], faces=photos[1].faces[:faces])
    expected = r"fer2013 \(angry, .*\) and ferplus \(neutral, .*\)"
    with pytest.raises(TaxonomyError, match=f"one label set; make one of each. Received: {expected}"):
        ferkit.to_pandas(photos)
    with pytest.raises(TaxonomyError, match=r"fer2013 \(angry, .*\) and fer2013 \(neutral, .*\)"):
        ferkit.to_pandas([photos[0], replace(photos[1], taxonomy="fer2013")])


def test_a_table_for_pandas_takes_results_that_were_put_together_without_labels() -> None:
    pytest.importorskip("pandas")
    table = ferkit.to_pandas(PHOTOS[1:])
    assert table["p_happy"].isna().tolist() == [True, False]


def test_a_table_for_pandas_is_of_photos_or_of_frames() -> None:
    pytest.importorskip("pandas")
    with pytest.raises(FerkitError, match="of photos or of frames"):
        ferkit.to_pandas([PHOTOS[1], ferkit.FrameResult(0, 0.0, 1.0, 64, 48, "fer2013", ())])


def test_without_pandas_the_error_says_how_to_get_it(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        recognizer.predict(CAT).to_pandas()


@pytest.mark.parametrize("name", ["centerface", "none"])
def test_an_explanation_covers_what_the_network_sees(model: Path, name: str) -> None:
    recognizer = Recognizer(model, detector=name)
    photo = recognizer.predict(ASTRONAUT)
    (explanation,) = recognizer.explain(ASTRONAUT, photo)
    (face,) = photo.faces
    assert explanation.label == face.label
    assert explanation.heat.dtype == np.float32
    assert explanation.heat.min() >= 0
    assert explanation.heat.max() in (0, 1)
    corners = np.array(explanation.corners)
    if name == "none":
        assert corners.tolist() == [[0, 0], [512, 0], [512, 512], [0, 512]]
    else:
        assert np.array_equal(corners, crop_corners([face.box])[0])
    crops = recognizer.crops(ASTRONAUT)
    straight, mirrored = FaceClassifier(model).cams(np.concatenate([crops, crops[:, :, ::-1]]))
    maps = (straight + mirrored[:, :, ::-1]) / 2
    of_label = np.maximum(maps[list(face.probabilities).index(face.label)], 0)
    assert np.allclose(explanation.heat, of_label / max(of_label.max(), 1e-30), atol=1e-6)


def test_a_network_that_sees_the_middle_of_the_crop_is_explained_there(tmp_path: Path) -> None:
    info = modelzoo.model_info().model_copy(update={"view_size": 24})
    write_model(modelzoo.graph_bytes(), info, tmp_path / "middle.onnx")
    recognizer = Recognizer(tmp_path / "middle.onnx", detector="none")
    (explanation,) = recognizer.explain(ASTRONAUT, recognizer.predict(ASTRONAUT))
    assert explanation.corners == ((128, 128), (384, 128), (384, 384), (128, 384))


def test_explanations_speak_of_the_same_photo_and_need_maps(recognizer: Recognizer, tmp_path: Path) -> None:
    photo = recognizer.predict(ASTRONAUT)
    with pytest.raises(ImageError, match="512 x 512"):
        recognizer.explain(CAT, photo)
    without = Recognizer(modelzoo.write_tiny_model(tmp_path / "m.onnx", cam=False))
    with pytest.raises(ModelFileError, match="no class activation maps"):
        without.explain(ASTRONAUT, without.predict(ASTRONAUT))
    assert recognizer.explain(CAT, recognizer.predict(CAT)) == ()


def test_the_result_of_a_recognizer_with_other_labels_is_not_explained(model: Path) -> None:
    """A known fault: the map was that of whatever label stands at that place in the other set."""
    crop = np.zeros((48, 48, 3), np.uint8)
    fer2013, ferplus = (Recognizer(model, detector="none", taxonomy=name) for name in ("fer2013", "ferplus"))
    photo = fer2013.predict(crop)
    with pytest.raises(TaxonomyError, match=r"answers in ferplus \(neutral.*Received: a result in fer2013"):
        ferplus.explain(crop, photo)
    with pytest.raises(TaxonomyError, match="Received: a result in fer2013;"):
        ferplus.explain(crop, replace(photo, faces=()))
    with pytest.raises(TaxonomyError, match=r"Received: a result in fer2013 \(neutral, "):
        fer2013.explain(crop, replace(ferplus.predict(crop), taxonomy="fer2013"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_without_a_detector_only_whole_pictures_are_explained(
    model: Path, recognizer: Recognizer, pair: Path, number: int
) -> None:
    photo = recognizer.predict(pair)
    with pytest.raises(ImageError, match=rf"takes each picture as one face crop.* {number} found"):
        Recognizer(model, detector="none").explain(pair, replace(photo, faces=photo.faces[:number]))


def test_heat_is_laid_where_it_belongs_and_nowhere_else() -> None:
    gray = np.full((200, 300, 3), 128, np.uint8)
    heat = np.zeros((6, 6), np.float32)
    heat[0, 5] = 1  # the upper right
    corners = ((50.0, 20.0), (170.0, 20.0), (170.0, 140.0), (50.0, 140.0))
    drawn = draw(gray, Photo(None, 300, 200, "fer2013", ()), [Explanation("happy", corners, heat)])
    changed = np.argwhere((drawn != gray).any(axis=2))
    assert (changed.min(axis=0) >= (20, 110)).all()
    assert (changed.max(axis=0) <= (80, 170)).all()
    red, _, blue = (int(value) for value in drawn[28, 160])
    assert red > 150
    assert red > blue
    outside = tuple((x + 1000, y) for x, y in corners)
    untouched = draw(gray, Photo(None, 300, 200, "fer2013", ()), [Explanation("happy", outside, heat)])
    assert np.array_equal(untouched, gray)


def example_face(label: str = "happy", landmarks: bool = True) -> Face:
    values = dict.fromkeys(FER2013.labels, 0.0) | {"happy": 0.75, "sad": 0.25}
    marks = tuple((10.0 + k, 20.0 + k) for k in range(5)) if landmarks else None
    return Face((1.5, 2.25, 30.0, 40.0), 0.875, marks, Expression(label, 0.75, values))


def written(kind: str, photos: list[Photo]) -> str:
    stream = io.StringIO()
    with make_writer(kind, stream, FER2013) as writer:
        for photo in photos:
            writer.write(photo)
    return stream.getvalue()


PHOTOS = [
    Photo('a,"b".jpg', 64, 48, "fer2013", (example_face(), example_face(landmarks=False))),
    Photo("empty.jpg", 64, 48, "fer2013", ()),
    Photo(None, 64, 48, "fer2013", (example_face("uncertain"),)),
]


def test_json_is_one_array_and_json_lines_one_object_per_photo() -> None:
    expected = [photo.to_dict() for photo in PHOTOS]
    assert json.loads(written("json", PHOTOS)) == expected
    assert [json.loads(line) for line in written("jsonl", PHOTOS).splitlines()] == expected
    assert json.loads(written("json", [])) == []
    assert written("jsonl", []) == ""


def test_json_is_closed_also_after_an_error() -> None:
    stream = io.StringIO()

    def interrupted() -> None:
        with make_writer("json", stream, FER2013) as writer:
            writer.write(PHOTOS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(json.loads(stream.getvalue())) == 1


def test_csv_has_a_row_per_face_with_exact_numbers_and_one_for_a_photo_without() -> None:
    """A known fault: a photo without a face had no row, and looked like one that was not read."""
    rows = list(csv.DictReader(io.StringIO(written("csv", PHOTOS))))
    assert [(row["source"], row["faces"], row["face"]) for row in rows] == [
        ('a,"b".jpg', "2", "0"),
        ('a,"b".jpg', "2", "1"),
        ("empty.jpg", "0", ""),
        ("", "1", "0"),
    ]
    first, second, faceless, third = rows
    assert set(list(faceless.values())[2:]) == {""}
    assert [float(first[name]) for name in ("left", "top", "right", "bottom")] == [1.5, 2.25, 30, 40]
    assert (first["label"], float(first["confidence"]), float(first["score"])) == ("happy", 0.75, 0.875)
    assert [float(first[f"p_{name}"]) for name in FER2013.labels] == [0, 0, 0, 0.75, 0.25, 0, 0]
    assert (first["nose_x"], first["nose_y"], second["nose_x"]) == ("12.0", "22.0", "")
    assert third["label"] == "uncertain"
    assert written("csv", []).startswith("source,faces,face,left")


def test_an_unknown_format_is_said() -> None:
    with pytest.raises(FerkitError, match="unknown format 'xml'"):
        make_writer("xml", io.StringIO(), FER2013)
    assert FORMATS == ("json", "jsonl", "csv")


def test_drawing_marks_the_face_in_a_copy(recognizer: Recognizer) -> None:
    rgb = load_image(ASTRONAUT)
    before = rgb.copy()
    photo = recognizer.predict(rgb)
    drawn = draw(rgb, photo)
    assert np.array_equal(rgb, before)
    left, top, right, bottom = (round(v) for v in photo.faces[0].box)
    edge = drawn[(top + bottom) // 2, left].astype(int)
    assert np.abs(edge - colour(photo.faces[0])).max() < 40
    assert np.array_equal(drawn[:, : left - 5], before[:, : left - 5])
    assert np.array_equal(drawn[bottom + 5 :], before[bottom + 5 :])
    assert right > left


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (40, 12), (500, 500)])
@pytest.mark.parametrize(
    "box", [(-50.0, -50.0, 20.0, 20.0), (390.0, 2.0, 500.0, 90.0), (1e7, 1e7, 1e8, 1e8), (0.0, 0.0, 0.4, 0.4)]
)
def test_faces_beyond_the_border_are_drawn_without_harm(
    shape: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    face = Face(box, 0.9, ((1e9, -1e9),) * 5, example_face().expression)
    rgb = np.zeros((*shape, 3), np.uint8)
    assert draw(rgb, Photo(None, shape[1], shape[0], "fer2013", (face,))).shape == rgb.shape


@pytest.mark.parametrize(
    ("boxes", "places"),
    [
        ([(20, 30, 60, 70)], [(20, 20)]),  # above
        ([(20, 5, 60, 45)], [(20, 45)]),  # no room above
        ([(90, 30, 130, 99)], [(50, 20)]),  # beyond the right border
        ([(-9, -9, 120, 120)], [(0, 90)]),  # no room anywhere
        ([(10, 30, 30, 60), (34, 30, 54, 60)], [(10, 20), (34, 60)]),  # the second goes below
        ([(0, 30, 20, 60), (20, 30, 40, 60), (50, 30, 70, 60)], [(0, 20), (20, 60), (50, 20)]),
        ([(10, 42, 40, 72), (10, 10, 40, 40)], [(10, 72), (10, 0)]),  # it would cover the other face
    ],
)
def test_labels_stand_where_they_cover_neither_each_other_nor_faces(
    boxes: list[tuple[float, ...]], places: list[tuple[int, int]]
) -> None:
    """A picture of 100 x 100, labels of 50 x 10."""
    assert label_places(boxes, [(10, 50)] * len(boxes), (100, 100)) == places


def test_where_there_is_no_free_place_a_label_still_lies_in_the_picture() -> None:
    boxes = [(40.0 + k, 40.0, 60.0 + k, 60.0) for k in range(20)]
    for left, top in label_places(boxes, [(10, 50)] * 20, (100, 100)):
        assert 0 <= left <= 50
        assert 0 <= top <= 90


def test_every_label_has_a_colour_of_its_own() -> None:
    faces = [example_face(label) for label in FER2013.labels]
    assert len({colour(face) for face in faces}) == 7
    assert colour(example_face("uncertain")) not in {colour(face) for face in faces}


def test_labels_in_other_scripts_are_drawn(tmp_path: Path) -> None:
    values = {"colère": 0.75, "joie": 0.25}
    face = Face((10.0, 60.0, 90.0, 150.0), 0.9, None, Expression("colère", 0.75, values))
    drawn = draw(np.zeros((200, 200, 3), np.uint8), Photo(None, 200, 200, "humeur", (face,)))
    assert drawn.any()


def test_annotated_pictures_never_take_the_name_of_an_input_or_of_each_other(tmp_path: Path) -> None:
    inputs = [tmp_path / "a.jpg", tmp_path / "sub" / "a.jpg", tmp_path / "A.jpg", tmp_path / "a-faces.jpg"]
    names = AnnotatedNames(tmp_path, inputs)
    targets = [names.name(path) for path in inputs]
    assert len({str(t).casefold() for t in targets}) == 4
    assert not {str(t).casefold() for t in targets} & {str(i).casefold() for i in inputs}
    assert [t.name for t in targets] == [
        "a-faces-2.jpg",
        "a-faces-3.jpg",
        "A-faces-4.jpg",
        "a-faces-faces.jpg",
    ]


@pytest.mark.parametrize(
    ("source", "name"), [("x.gif", "x-faces.png"), ("y", "y-faces.png"), ("z.PNG", "z-faces.PNG")]
)
def test_annotated_pictures_keep_their_format_where_it_can_be_written(
    tmp_path: Path, source: str, name: str
) -> None:
    assert AnnotatedNames(tmp_path).name(source) == tmp_path / name


def test_the_package_offers_its_names_lazily() -> None:
    assert ferkit.Recognizer is Recognizer
    assert ferkit.Smoothing(seconds=0.2).seconds == 0.2
    assert {ferkit.FrameResult.__name__, ferkit.TrackedFace.__name__} <= set(ferkit.__all__)
    assert set(ferkit.__all__) <= set(dir(ferkit))
    for name in ferkit.__all__:
        assert getattr(ferkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        ferkit.Recogniser  # noqa: B018
