"""The recognizer: photos in, exact results out, in order, independent of batches."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ferkit
import modelzoo
from ferkit import (
    FaceClassifier,
    Photo,
    Recognizer,
    Unreadable,
    load_image,
)
from ferkit.core.crops import FER2013_CROPS, CropGeometry, crop_corners, crop_faces
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
from ferkit.recognize.results import UNCERTAIN
from samples import sample

ASTRONAUT, CAMERAMAN, CAT = sample("astronaut.jpg"), sample("camera.png"), sample("chelsea.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def yunet() -> Detector:
    """Shared: opening the network takes longer than using it."""
    return make_detector("yunet")


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


def test_the_result_is_detection_crop_and_classification_without_rounding(
    recognizer: Recognizer, model: Path
) -> None:
    """A known fault: scores rounded inside the library."""
    (face,) = recognizer.predict(ASTRONAUT).faces
    crops = crop_faces(to_gray(load_image(ASTRONAUT)), [face.box])
    expected = FaceClassifier(model).predict(crops)["fer2013"][0]
    assert list(face.probabilities.values()) == expected.tolist()


def test_no_face_is_an_empty_list_and_no_error(recognizer: Recognizer) -> None:
    """Known faults: an exception without a face; the whole picture scored as a face."""
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
    model: Path, recognizer: Recognizer, yunet: Detector, pair: Path, batch_size: int
) -> None:
    files = [pair, CAT, ASTRONAUT, pair]
    together = Recognizer(model, detector=yunet, batch_size=batch_size).predict(list(files))
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


@pytest.mark.parametrize("photo", ["a.jpg", Path("a.jpg"), b"abc"], ids=["str", "Path", "bytes"])
def test_predict_each_refuses_a_single_photo(recognizer: Recognizer, photo: Any) -> None:
    with pytest.raises(ImageError, match=f"takes photos, not one.* Received: {type(photo).__name__}"):
        recognizer.predict_each(photo)


def test_an_unreadable_photo_ends_predict_but_not_predict_each(
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


def test_a_picture_too_long_for_a_face_crop_is_unreadable(model: Path, tmp_path: Path) -> None:
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


def test_an_empty_box_of_a_custom_detector_makes_its_photo_unreadable(model: Path) -> None:
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


def test_a_custom_detector_may_have_any_name(model: Path) -> None:
    """A known fault: the boxes of a custom detector named "none" were ignored."""

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
    """A detector that takes each picture as one face, and raises an error for pictures of that gray."""

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


def test_a_photo_in_which_the_detector_fails_is_unreadable(model: Path, tmp_path: Path) -> None:
    failure = DetectorError("YuNet fails: no memory")
    recognizer = Recognizer(model, detector=FailsAt(9, failure))
    good, bad = grays(5, 9)
    write_image(tmp_path / "bad.png", bad)
    first, second, third = recognizer.predict_each([good, tmp_path / "bad.png", good])
    assert isinstance(first, Photo)
    assert isinstance(second, Unreadable)
    assert second.source == str(tmp_path / "bad.png")
    assert str(second.error) == f"{tmp_path / 'bad.png'}: YuNet fails: no memory"
    assert second.error.__cause__ is failure
    assert third == first
    with pytest.raises(ImageError, match=r"bad\.png: YuNet fails"):
        recognizer.predict(tmp_path / "bad.png")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError])
def test_an_error_of_a_custom_detector_is_raised_after_the_photos_before_it(
    model: Path, error: type[Exception], workers: int
) -> None:
    """A known fault: up to 256 finished photos were lost."""
    recognizer = Recognizer(model, detector=FailsAt(9, error("in the detector")))
    results = recognizer.predict_each(grays(5, 6, 9, 7), workers=workers)
    assert [next(results), next(results)] == recognizer.predict(grays(5, 6))
    with pytest.raises(error, match="in the detector") as caught:
        next(results)
    assert caught.value.__notes__ == ["ferkit had taken 2 photos before this"]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_source_is_raised_after_the_photos_before_it(model: Path, workers: int) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield from grays(5, 6)
        raise OSError("the camera is gone")

    results = Recognizer(model, detector="none").predict_each(broken(), workers=workers)
    assert [isinstance(next(results), Photo) for _ in range(2)] == [True, True]
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)


@pytest.mark.parametrize(("pending", "taken"), [(1, [1, 2, 3, 4, 5]), (2, [2, 2, 4, 4, 5]), (9, [5] * 5)])
def test_pending_limits_the_photos_of_a_slow_source_that_wait(
    model: Path, pending: int, taken: list[int]
) -> None:
    """A known fault: a camera gave no result before 64 faces or 256 photos."""
    seen: list[int] = []

    def camera() -> Iterator[NDArray[np.uint8]]:
        for photo in grays(1, 2, 3, 4, 5):
            seen.append(len(seen))
            yield photo

    recognizer = Recognizer(model, detector="none")
    assert [len(seen) for _ in recognizer.predict_each(camera(), pending=pending)] == taken


@pytest.mark.parametrize("name", ["pending", "workers"])
@pytest.mark.parametrize("value", [0, 1.5, None])
def test_counts_are_checked_immediately(recognizer: Recognizer, name: str, value: Any) -> None:
    with pytest.raises(FerkitError, match=f"{name} must be"):
        recognizer.predict_each([], **{name: value})


def test_several_workers_give_the_same_results_in_the_same_order(
    recognizer: Recognizer, tmp_path: Path
) -> None:
    photos = [ASTRONAUT, tmp_path / "absent.jpg", CAT, *grays(40, 90), CAMERAMAN, ASTRONAUT] * 2
    one, three = (list(recognizer.predict_each(photos, workers=n)) for n in (1, 3))
    assert [(r.source, getattr(r, "faces", None)) for r in three] == [
        (r.source, getattr(r, "faces", None)) for r in one
    ]


def test_workers_search_photos_at_the_same_time(model: Path) -> None:
    class Meeting:
        name = "meeting"
        both = threading.Barrier(2, timeout=60)

        def detect(self, image: NDArray[np.uint8]) -> tuple[Detection, ...]:
            self.both.wait()  # an error unless another photo is searched as well
            return ()

    results = Recognizer(model, detector=Meeting()).predict_each(grays(1, 2, 3, 4), workers=2)
    assert [len(photo) for photo in results if isinstance(photo, Photo)] == [0] * 4


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("faces", [0, 1])
def test_results_come_while_photos_are_still_taken(model: Path, faces: int, workers: int) -> None:
    """So memory does not grow with the number of photos."""
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

    results = Recognizer(model, detector=Simple()).predict_each(endless(), workers=workers)
    for _ in range(300):
        next(results)
    assert taken <= 600


def test_the_taxonomy_can_be_chosen(model: Path, yunet: Detector) -> None:
    recognizer = Recognizer(model, detector=yunet, taxonomy="ferplus")
    photo = recognizer.predict(ASTRONAUT)
    assert photo.taxonomy == "ferplus"
    assert tuple(photo.faces[0].probabilities) == FERPLUS.labels
    assert recognizer.taxonomy == FERPLUS


def test_a_label_below_min_confidence_is_uncertain(model: Path, yunet: Detector) -> None:
    (face,) = Recognizer(model, detector=yunet, min_confidence=1.0).predict(ASTRONAUT).faces
    (sure,) = Recognizer(model, detector=yunet).predict(ASTRONAUT).faces
    assert face.label == UNCERTAIN
    assert face.probabilities == sure.probabilities
    assert face.confidence == sure.confidence


def test_tta_changes_the_probabilities_and_not_the_box(model: Path, yunet: Detector) -> None:
    single = Recognizer(model, detector=yunet).predict(ASTRONAUT).faces[0]
    ten = Recognizer(model, detector=yunet, tta="ten-crop").predict(ASTRONAUT).faces[0]
    assert ten.box == single.box
    assert ten.probabilities != single.probabilities


def test_predict_crops_classifies_without_detection(recognizer: Recognizer, model: Path) -> None:
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
def test_crops_of_wrong_shape_or_dtype_are_refused(recognizer: Recognizer, crops: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=r"\[N, H, W\]"):
        recognizer.predict_crops(crops)


def test_without_a_detector_the_photo_is_the_crop(model: Path) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    recognizer = Recognizer(model, detector="none")
    (face,) = recognizer.predict(crop).faces
    assert (face.box, face.landmarks) == ((0.0, 0.0, 48.0, 48.0), None)
    assert np.array_equal(recognizer.crops(crop)[0], crop)
    assert face.expression == recognizer.predict_crops(crop[None])[0]


def test_faces_are_cropped_by_the_geometry_of_the_model(tmp_path: Path, recognizer: Recognizer) -> None:
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
    assert eyes[0] == pytest.approx((0.32, 0.39), abs=0.1)
    assert eyes[1] == pytest.approx((0.68, 0.39), abs=0.1)


def test_a_custom_detector_is_used(model: Path) -> None:
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
        ({"tta": "tencrop"}, FerkitError, "none, flip, ten-crop. Received: 'tencrop'"),
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
def test_wrong_settings_are_an_error_at_once(
    model: Path, arguments: dict[str, object], error: type[FerkitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Recognizer(**({"model": model} | arguments))  # type: ignore[arg-type]


def test_settings_may_be_numbers_of_numpy(model: Path) -> None:
    options: dict[str, Any] = {"batch_size": np.int64(3), "threads": np.int32(1)}
    recognizer = Recognizer(model, detector="none", min_confidence=np.float32(0.5), **options)
    assert recognizer.predict(np.zeros((48, 48, 3), np.uint8)).faces


def test_min_face_is_refused_with_a_detector_object(model: Path) -> None:
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


def test_every_face_has_its_quality(recognizer: Recognizer) -> None:
    (face,) = recognizer.predict(ASTRONAUT).faces
    assert face.quality is not None
    assert face.quality.size == face.box[3] - face.box[1]
    assert face.quality.flags == ()
    assert face.quality.yaw is not None
    assert abs(face.quality.yaw) < 25
    (cut,) = recognizer.predict(load_image(ASTRONAUT)[:, 200:]).faces  # the border runs through an eye
    assert cut.quality is not None
    assert "cut off" in cut.quality.flags


@pytest.mark.parametrize("name", ["yunet", "centerface", "none"])
def test_a_map_covers_the_crop_and_is_the_mean_with_the_mirror_image(model: Path, name: str) -> None:
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
        assert np.array_equal(corners, crop_corners([face.box], geometry=FER2013_CROPS[name])[0])
    crops = recognizer.crops(ASTRONAUT)
    straight, mirrored = FaceClassifier(model).cams(np.concatenate([crops, crops[:, :, ::-1]]))
    maps = (straight + mirrored[:, :, ::-1]) / 2
    of_label = np.maximum(maps[list(face.probabilities).index(face.label)], 0)
    assert np.allclose(explanation.heat, of_label / max(of_label.max(), 1e-30), atol=1e-6)


def test_the_map_of_a_network_that_sees_the_middle_of_the_crop_lies_there(tmp_path: Path) -> None:
    info = modelzoo.model_info().model_copy(update={"view_size": 24})
    write_model(modelzoo.graph_bytes(), info, tmp_path / "middle.onnx")
    recognizer = Recognizer(tmp_path / "middle.onnx", detector="none")
    (explanation,) = recognizer.explain(ASTRONAUT, recognizer.predict(ASTRONAUT))
    assert explanation.corners == ((128, 128), (384, 128), (384, 384), (128, 384))


def test_explain_refuses_other_photos_and_models_without_maps(recognizer: Recognizer, tmp_path: Path) -> None:
    photo = recognizer.predict(ASTRONAUT)
    with pytest.raises(ImageError, match="512 x 512"):
        recognizer.explain(CAT, photo)
    without = Recognizer(modelzoo.write_tiny_model(tmp_path / "m.onnx", cam=False))
    with pytest.raises(ModelFileError, match="no class activation maps"):
        without.explain(ASTRONAUT, without.predict(ASTRONAUT))
    assert recognizer.explain(CAT, recognizer.predict(CAT)) == ()


def test_explain_refuses_a_result_with_another_label_set(model: Path) -> None:
    """A known fault: the map was that of the label at the same position in the other label set."""
    crop = np.zeros((48, 48, 3), np.uint8)
    fer2013, ferplus = (Recognizer(model, detector="none", taxonomy=name) for name in ("fer2013", "ferplus"))
    photo = fer2013.predict(crop)
    with pytest.raises(TaxonomyError, match=r"label set ferplus \(neutral.*Received: a result in fer2013"):
        ferplus.explain(crop, photo)
    with pytest.raises(TaxonomyError, match="Received: a result in fer2013;"):
        ferplus.explain(crop, replace(photo, faces=()))
    with pytest.raises(TaxonomyError, match=r"Received: a result in fer2013 \(neutral, "):
        fer2013.explain(crop, replace(ferplus.predict(crop), taxonomy="fer2013"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_explain_without_a_detector_refuses_detected_faces(
    model: Path, recognizer: Recognizer, pair: Path, number: int
) -> None:
    photo = recognizer.predict(pair)
    with pytest.raises(ImageError, match=rf"each picture is one face crop.* {number} detected"):
        Recognizer(model, detector="none").explain(pair, replace(photo, faces=photo.faces[:number]))


@pytest.mark.parametrize("relative", [False, True])
def test_a_recognizer_is_pickled_by_its_settings(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, relative: bool
) -> None:
    if relative:
        monkeypatch.chdir(model.parent)
    name = model.name if relative else model
    recognizer = Recognizer(name, detector="none", taxonomy="ferplus", min_confidence=0.3, tta="flip")
    content = pickle.dumps(recognizer)
    assert len(content) < 2000  # no networks
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(content)
    assert again.taxonomy == FERPLUS
    assert again.predict(grays(9)) == recognizer.predict(grays(9))


def test_a_recognizer_with_a_custom_detector_is_pickled_with_it(model: Path) -> None:
    recognizer = Recognizer(model.read_bytes(), detector=FailsAt(9, DetectorError("no")))
    again = pickle.loads(pickle.dumps(recognizer))
    assert again.predict(grays(5)) == recognizer.predict(grays(5))


def test_photos_may_have_names_and_errors_may_take_their_place(recognizer: Recognizer) -> None:
    error = ImageError("the camera is off")
    items = [("first", grays(5)[0]), error, ("third", error), (None, str(CAT)), str(CAT)]
    results = list(recognizer.predict_each(items))
    assert [result.source for result in results] == ["first", None, "third", None, str(CAT)]
    assert [isinstance(result, Photo) for result in results] == [True, False, False, True, True]
    assert results[1].error is results[2].error is error


def test_pictures_are_kept_if_wanted_and_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferkit.recognize.recognizer.PENDING_BYTES", 3 * grays(0)[0].nbytes)
    taken = 0

    def photos() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for photo in grays(*range(10)):
            taken += 1
            yield photo

    recognizer = Recognizer(model, detector="none")
    waiting = []
    for number, photo in enumerate(recognizer.predict_each(photos(), keep_pictures=True)):
        assert isinstance(photo, Photo)
        assert np.array_equal(photo.picture, grays(number)[0])
        waiting.append(taken - number)
    assert max(waiting) == 3
    assert all(photo.picture is None for photo in recognizer.predict(grays(1, 2)))


def test_the_package_offers_its_names_lazily() -> None:
    assert ferkit.Recognizer is Recognizer
    assert ferkit.Smoothing(seconds=0.2).seconds == 0.2
    assert {ferkit.FrameResult.__name__, ferkit.TrackedFace.__name__} <= set(ferkit.__all__)
    assert set(ferkit.__all__) <= set(dir(ferkit))
    for name in ferkit.__all__:
        assert getattr(ferkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        ferkit.Recogniser  # noqa: B018


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 16 megapixels: the astronaut with a face of 880 pixels, and one of 100 pixels."""
    picture = Image.new("RGB", (4800, 3400), (90, 110, 90))
    astronaut = Image.open(ASTRONAUT)
    picture.paste(astronaut.resize((4000, 4000)), (0, -200))
    picture.paste(astronaut, (4200, 2600))
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    picture.save(path, quality=92)
    return path


@pytest.mark.parametrize("part", [(0, 0, 4000, 3400), (0, 0, 4800, 3400)])
def test_a_large_jpeg_gives_the_result_of_all_its_pixels(
    large: Path, part: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """It is read at half its size, and faces that are then too small are cropped from the whole."""
    path = tmp_path / "part.jpg"
    Image.open(large).crop(part).save(path, quality=92)
    recognizer = Recognizer()
    found, expected = recognizer.predict(path), recognizer.predict(load_image(path))
    assert (found.width, found.height) == (expected.width, expected.height) == part[2:]
    assert len(found) == len(expected) == (2 if part[2] == 4800 else 1)
    for face, other in zip(found, expected, strict=True):
        height = other.box[3] - other.box[1]
        assert np.allclose(face.box, other.box, atol=0.05 * height)
        assert np.allclose(face.landmarks or 0, other.landmarks or 1, atol=0.05 * height)
        assert face.quality.size == pytest.approx(other.quality.size, rel=0.05)
        assert face.label == other.label
        assert face.confidence == pytest.approx(other.confidence, abs=0.1)


def test_a_kept_picture_of_a_large_jpeg_has_all_its_pixels(large: Path) -> None:
    (kept,) = Recognizer().predict_each([large], keep_pictures=True)
    (dropped,) = Recognizer().predict_each([large])
    assert isinstance(kept, Photo)
    assert kept.picture is not None
    assert np.array_equal(kept.picture, load_image(large))
    assert isinstance(dropped, Photo)
    assert dropped.faces == kept.faces


def test_faces_that_are_small_in_a_reduced_photo_are_cropped_from_the_whole(large: Path) -> None:
    recognizer = Recognizer()
    crops = recognizer.crops(large)
    photo = recognizer.predict(large)
    exact = recognizer.pipeline.crop(to_gray(load_image(large)), photo.faces)
    assert min(face.quality.size for face in photo.faces) < 128
    assert np.array_equal(crops, exact)


def test_the_service_gives_the_faces_of_a_large_jpeg_that_the_recognizer_gives(large: Path) -> None:
    """A known fault: it read the whole picture, in three times the time, and gave other boxes."""
    pytest.importorskip("pydantic_settings", reason="the service needs ferkit[serve]")
    from ferkit.service.engine import Engine, Options, Upload
    from ferkit.service.settings import Settings

    (document,) = Engine(Settings()).predict([Upload("large.jpg", large.read_bytes())], Options())
    found = [tuple(face["box"]) for face in document["faces"]]
    assert found == [face.box for face in Recognizer(threads=1).predict(large)]


def test_a_detector_that_is_asked_for_small_faces_gets_all_pixels(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = Recognizer(min_face=60)
    seen = []
    detect = recognizer.detector.detect
    monkeypatch.setattr(
        type(recognizer.detector),
        "detect",
        lambda _, rgb, *more: (seen.append(rgb.shape), detect(rgb, *more))[1],
    )
    recognizer.predict(large)
    assert seen == [(3400, 4800, 3)]
