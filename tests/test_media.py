"""Real photographs and clips: every face found, none invented. The numbers come from looking at them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import modelzoo
from ferkit import Recognizer, weights
from ferkit.core.images import load_image
from ferkit.detect import make_detector

pytestmark = pytest.mark.realdata

# For each picture the boxes of its faces (hairline to chin, ear to ear), read off it by eye.
PICTURES = {
    "0-f1-su-ph.jpg": [(120, 110, 400, 455)],
    "0-f15-hao-ph.jpg": [(115, 105, 390, 480)],
    "15-f13-anc-ph.jpg": [(100, 120, 385, 470)],
    "45-m7-di-ph.jpg": [(55, 150, 310, 485)],
    "BWPictureHuman.jpg": [(840, 330, 1020, 650)],  # the other soldiers' faces are in the dark of helmets
    "Image_with_alpha.png": [(600, 240, 920, 640)],
    "free-mountain-vector-01.jpg": [],
    "multi_face.jpg": [
        (215, 70, 310, 178),
        (312, 230, 415, 365),
        (437, 210, 520, 315),
        (530, 305, 635, 440),
        (682, 288, 795, 425),
    ],
    "single_face.jpg": [(187, 140, 377, 400)],
}


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return Recognizer(modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx"))


@pytest.mark.parametrize("name", PICTURES)
def test_every_face_is_found_where_it_is_and_none_invented(
    recognizer: Recognizer, shared_dir: Path, name: str
) -> None:
    faces = recognizer.predict(shared_dir / "media" / name).faces
    assert len(faces) == len(PICTURES[name])
    for box in PICTURES[name]:
        assert max(overlap(box, face.box) for face in faces) > 0.6


@pytest.mark.parametrize("name", ["multi_face.jpg", "single_face.jpg", "free-mountain-vector-01.jpg"])
def test_searching_for_small_faces_invents_none(shared_dir: Path, name: str) -> None:
    found = make_detector(min_face=30).detect(load_image(shared_dir / "media" / name))
    assert len(found) == len(PICTURES[name])


@pytest.mark.parametrize(
    ("name", "faces"),
    [
        ("no_face.mp4", {0: 0, 15: 0, 30: 0}),
        ("single_face.mp4", {0: 1, 15: 1, 30: 1}),
        ("face_noface.mov", {0: 1, 40: 1, 90: 0}),  # he leaves at about frame 70
    ],
)
def test_frames_of_clips_show_the_faces_they_show(shared_dir: Path, name: str, faces: dict[int, int]) -> None:
    clip = cv2.VideoCapture(str(shared_dir / "media" / name))
    detector = make_detector()
    found = {}
    for index in range(max(faces) + 1):
        good, frame = clip.read()
        assert good
        if index in faces:
            found[index] = len(detector.detect(np.ascontiguousarray(frame[:, :, ::-1])))
    assert found == faces


@pytest.fixture(scope="module")
def embedded() -> Recognizer:
    if weights.DEFAULT not in weights.embedded_models():
        pytest.skip("NO EMBEDDED MODEL in this checkout")
    return Recognizer()


@pytest.mark.parametrize(
    ("name", "label"),
    [("0-f15-hao-ph.jpg", "happy"), ("single_face.jpg", "happy"), ("0-f1-su-ph.jpg", "surprise")],
)
def test_the_embedded_model_reads_what_one_sees(
    embedded: Recognizer, shared_dir: Path, name: str, label: str
) -> None:
    (face,) = embedded.predict(shared_dir / "media" / name).faces
    assert face.label == label


@pytest.mark.parametrize(
    ("name", "label"),
    [("15-f13-anc-ph.jpg", "angry"), ("45-m7-di-ph.jpg", "disgust"), ("BWPictureHuman.jpg", "angry")],
)
def test_hard_photos_are_right_or_uncertain_for_a_wanted_error(
    shared_dir: Path, name: str, label: str
) -> None:
    """Posed anger at 15 degrees, posed disgust at 45, and a shouting soldier."""
    recognizer = Recognizer(max_error=0.2)
    assert {face.label for face in recognizer.predict(shared_dir / "media" / name)} <= {label, "uncertain"}
    (smiling,) = recognizer.predict(shared_dir / "media" / "single_face.jpg").faces
    assert smiling.label == "happy"


def test_the_embedded_model_sees_the_smiling_people_smile(embedded: Recognizer, shared_dir: Path) -> None:
    """Four of the five smile; the boy in the middle (x about 480) does so hardly."""
    faces = embedded.predict(shared_dir / "media" / "multi_face.jpg").faces
    smiling = [face for face in faces if not 430 < (face.box[0] + face.box[2]) / 2 < 525]
    assert [face.label for face in smiling] == ["happy"] * 4
