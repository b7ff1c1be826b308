"""Drawing: faces, labels and activation maps in pictures of photos and clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import modelzoo
from faceresults import example_face, expression, frame, tracked
from ferkit import Explanation, Expression, Face, Quality, Recognizer
from ferkit.core.images import load_image
from ferkit.core.taxonomy import FER2013
from ferkit.recognize.drawing import colour, draw_faces, label_places
from ferkit.video.writers import draw_frame
from samples import sample

ASTRONAUT = sample("astronaut.jpg")
QUALITY = Quality(300.0, 0.8, 120.0, 50.0, 0.0, 0.0, 0.0, ())


def test_a_face_is_drawn_into_a_copy_of_the_picture(tmp_path: Path) -> None:
    recognizer = Recognizer(modelzoo.write_tiny_model(tmp_path / "tiny.onnx"))
    rgb = load_image(ASTRONAUT)
    before = rgb.copy()
    photo = recognizer.predict(rgb)
    drawn = draw_faces(rgb, photo)
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
def test_faces_beyond_the_border_are_drawn(
    shape: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    face = Face(box, 0.9, ((1e9, -1e9),) * 5, example_face().expression)
    rgb = np.zeros((*shape, 3), np.uint8)
    assert draw_faces(rgb, [face]).shape == rgb.shape


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
def test_labels_cover_neither_each_other_nor_faces(
    boxes: list[tuple[float, ...]], places: list[tuple[int, int]]
) -> None:
    """A picture of 100 x 100, labels of 50 x 10."""
    assert label_places(boxes, [(10, 50)] * len(boxes), (100, 100)) == places


def test_labels_without_a_free_position_are_inside_the_picture() -> None:
    boxes = [(40.0 + k, 40.0, 60.0 + k, 60.0) for k in range(20)]
    for left, top in label_places(boxes, [(10, 50)] * 20, (100, 100)):
        assert 0 <= left <= 50
        assert 0 <= top <= 90


def test_every_label_has_its_own_colour() -> None:
    faces = [example_face(label) for label in FER2013.labels]
    assert len({colour(face) for face in faces}) == 7
    assert colour(example_face("uncertain")) not in {colour(face) for face in faces}


def test_labels_in_other_scripts_are_drawn() -> None:
    values = {"colère": 0.75, "joie": 0.25}
    face = Face((10.0, 60.0, 90.0, 150.0), 0.9, None, Expression("colère", 0.75, values))
    drawn = draw_faces(np.zeros((200, 200, 3), np.uint8), [face])
    assert drawn.any()


def test_an_activation_map_changes_only_the_pixels_of_its_face() -> None:
    gray = np.full((200, 300, 3), 128, np.uint8)
    heat = np.zeros((6, 6), np.float32)
    heat[0, 5] = 1  # the upper right
    corners = ((50.0, 20.0), (170.0, 20.0), (170.0, 140.0), (50.0, 140.0))
    drawn = draw_faces(gray, [], explanations=[Explanation("happy", corners, heat)])
    changed = np.argwhere((drawn != gray).any(axis=2)[:180])  # the scale is below
    assert (changed.min(axis=0) >= (20, 110)).all()
    assert (changed.max(axis=0) <= (80, 170)).all()
    red, _, blue = (int(value) for value in drawn[28, 160])
    assert red > 150
    assert red > blue
    outside = tuple((x + 1000, y) for x, y in corners)
    untouched = draw_faces(gray, [], explanations=[Explanation("happy", outside, heat)])
    assert np.array_equal(untouched[:180], gray[:180])


def test_faces_of_a_frame_are_drawn_into_a_copy() -> None:
    rgb = np.zeros((120, 160, 3), np.uint8)
    drawn = draw_frame(rgb, frame(0, tracked(12), tracked(None)))
    assert not rgb.any()
    assert drawn.any()
    assert np.array_equal(draw_frame(rgb, frame(0)), rgb)


def test_the_track_number_is_part_of_the_label() -> None:
    rgb = np.zeros((120, 160, 3), np.uint8)
    one, two, none = (draw_frame(rgb, frame(0, tracked(number))) for number in (1, 2, None))
    assert (one != two).any()
    assert (one != none).any()


def label_height(box: tuple[float, ...], width: int, height: int) -> int:
    face = Face(box, 0.9, None, expression("happy"))
    drawn = draw_faces(np.zeros((height, width, 3), np.uint8), [face])
    return len(np.flatnonzero(drawn[: int(box[1])].any(axis=(1, 2))))


def test_labels_have_the_size_that_suits_the_picture() -> None:
    """A known fault: in photos of a camera the labels were too small to be read."""
    small, large = (
        label_height((0.3 * side, 0.3 * side, 0.6 * side, 0.6 * side), side, side) for side in (400, 4000)
    )
    assert 10 <= small <= 25
    assert large > 5 * small


def test_labels_of_small_faces_are_smaller() -> None:
    """In a crowd, labels of the size that suits a large face would cover the others."""
    heights = [label_height((400, 200, 400 + side, 200 + side), 1280, 720) for side in (40, 100, 300)]
    assert heights == sorted(set(heights))
    assert heights[0] <= 20


@pytest.mark.parametrize(("label", "flags"), [("uncertain", ()), ("happy", ("turned",))])
def test_the_box_of_an_uncertain_or_turned_face_is_dashed(label: str, flags: tuple[str, ...]) -> None:
    quality = replace(QUALITY, flags=flags)
    sure, doubtful = (
        Face((100.0, 100.0, 400.0, 400.0), 0.9, None, expression(name), found)
        for name, found in (("happy", None), (label, quality))
    )
    gray = np.full((500, 500, 3), 90, np.uint8)
    one, other = (draw_faces(gray, [face])[400, 110:390].tolist() for face in (sure, doubtful))
    assert {tuple(pixel) for pixel in one} == {colour(sure)}
    assert {tuple(pixel) for pixel in other} == {colour(doubtful), (255, 255, 255)}


def test_the_label_of_a_turned_face_is_longer() -> None:
    box = (100.0, 100.0, 400.0, 400.0)
    gray = np.full((500, 500, 3), 90, np.uint8)
    plain, turned = (
        draw_faces(
            gray,
            [Face(box, 0.9, None, expression("happy"), replace(QUALITY, flags=flags))],
        )
        for flags in ((), ("turned",))
    )
    lengths = [np.ptp(np.flatnonzero((drawn[95] != gray[95]).any(axis=1))) for drawn in (plain, turned)]
    assert lengths[1] > 1.3 * lengths[0]


def test_landmarks_can_be_switched_off() -> None:
    face = Face((100.0, 100.0, 400.0, 400.0), 0.9, ((200.0, 200.0),) * 5, expression("happy"))
    gray = np.full((500, 500, 3), 90, np.uint8)
    assert draw_faces(gray, [face])[200, 200].tolist() == list(colour(face))
    assert draw_faces(gray, [face], landmarks=False)[200, 200].tolist() == [90, 90, 90]


def test_activation_maps_have_a_scale_that_covers_no_face() -> None:
    face = Face((10.0, 300.0, 300.0, 599.0), 0.9, None, expression("happy"))  # at the lower left
    corners = ((10.0, 300.0), (300.0, 300.0), (300.0, 599.0), (10.0, 599.0))
    heat = Explanation("happy", corners, np.ones((3, 3), np.float32))
    gray = np.full((600, 800, 3), 90, np.uint8)
    assert (draw_faces(gray, [face], explanations=[heat])[590:, 600:] != 90).any()
    assert (draw_faces(gray, [face])[590:, 600:] == 90).all()
    tiny = np.full((20, 20, 3), 90, np.uint8)
    assert draw_faces(tiny, [], explanations=[heat]).shape == tiny.shape  # without room there is no scale
