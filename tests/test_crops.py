"""Cropping faces: the geometry is met, borders are replicated, and crops are independent."""

from __future__ import annotations

import random
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from ferkit.core.crops import TTA_MODES, CropGeometry, crop_corners, crop_faces, fit_crop, tta_views
from ferkit.core.errors import ImageError

UPRIGHT = CropGeometry()


def ramp(height: int = 400, width: int = 500) -> NDArray[np.uint8]:
    """A picture whose brightness grows with x by one per 2 pixels."""
    return np.broadcast_to((np.arange(width) // 2).astype(np.uint8), (height, width)).copy()


def spot(height: int, width: int, x: float, y: float, radius: int = 3) -> NDArray[np.uint8]:
    """A black picture with a white square around (x, y), in pixel edges."""
    picture = np.zeros((height, width), np.uint8)
    picture[round(y - radius) : round(y + radius), round(x - radius) : round(x + radius)] = 255
    return picture


def centre_of_light(crop: NDArray[np.uint8]) -> tuple[float, float]:
    """x, y of the centre of brightness as fractions of the side."""
    light = crop.astype(float)
    ys, xs = np.indices(crop.shape) + 0.5
    return float((xs * light).sum() / light.sum() / crop.shape[1]), float(
        (ys * light).sum() / light.sum() / crop.shape[0]
    )


def test_a_geometry_of_the_whole_crop_returns_the_box() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    whole = CropGeometry(box=(0, 0, 1, 1))
    assert np.array_equal(crop_faces(picture, [(0, 0, 48, 48)], geometry=whole)[0], picture)


def test_shrinking_by_a_whole_factor_is_the_mean_of_the_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (192, 192), dtype=np.uint8)
    crop = crop_faces(picture, [(0, 0, 192, 192)], geometry=CropGeometry(box=(0, 0, 1, 1)))[0]
    means = picture.reshape(48, 4, 48, 4).mean(axis=(1, 3))
    assert np.abs(crop - means).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("fraction", [(0.32, 0.39), (0.68, 0.39), (0.5, 0.75)])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.3])
def test_a_point_of_the_face_gets_its_position_in_the_crop(
    fraction: tuple[float, float], scale: float
) -> None:
    left, top, right, bottom = UPRIGHT.box
    side, x0, y0 = 100 * scale, 60.0, 40.0
    x, y = x0 + fraction[0] * side, y0 + fraction[1] * side
    box = (x0 + left * side, y0 + top * side, x0 + right * side, y0 + bottom * side)
    crop = crop_faces(spot(450, 500, x, y), [box], geometry=UPRIGHT)[0]
    # The spot is drawn on whole pixels, up to half a pixel beside its position.
    assert centre_of_light(crop) == pytest.approx(fraction, abs=0.6 / side + 0.003)


def test_eyes_get_their_positions_in_tilted_faces() -> None:
    geometry = CropGeometry(align="eyes")
    for left_eye, right_eye in (((200, 200), (260, 200)), ((180, 240), (240, 160)), ((250, 150), (210, 220))):
        marks = np.array([[left_eye, right_eye, (0, 0), (0, 0), (0, 0)]], float)
        for eye, place in ((left_eye, geometry.left_eye), (right_eye, geometry.right_eye)):
            crop = crop_faces(spot(450, 500, *eye), [(1, 1, 9, 9)], marks, geometry=geometry)[0]
            assert centre_of_light(crop) == pytest.approx(place, abs=0.01)


def test_the_border_is_replicated_outside_the_picture() -> None:
    picture = ramp()
    crop = crop_faces(picture, [(-60, 150, 40, 250)], geometry=CropGeometry(box=(0, 0, 1, 1)), size=50)[0]
    assert np.all(crop[:, :29] == picture[0, 0])  # x from -60 to -2
    crop = crop_faces(picture, [(480, 380, 580, 480)], geometry=CropGeometry(box=(0, 0, 1, 1)), size=50)[0]
    assert np.all(crop[:, 11:] == picture[0, -1])


def test_a_face_outside_the_picture_is_the_nearest_pixel() -> None:
    crop = crop_faces(ramp(), [(900, 900, 950, 950)], size=16)[0]
    assert np.all(crop == ramp()[-1, -1])


def test_earlier_faces_do_not_shift_later_faces() -> None:
    """A known fault of other tools: the picture is padded inside the loop over faces."""
    picture = np.random.default_rng(1).integers(0, 256, (300, 300), dtype=np.uint8)
    boxes = [(-20.0, -30.0, 60.0, 70.0), (250.0, 240.0, 330.0, 330.0), (100.0, 100.0, 170.0, 180.0)]
    together = crop_faces(picture, boxes)
    alone = [crop_faces(picture, [box])[0] for box in boxes]
    assert np.array_equal(together, np.stack(alone))


def test_the_picture_is_not_changed() -> None:
    picture = ramp()
    before = picture.copy()
    crop_faces(picture, [(-20, -20, 50, 60), (10, 10, 90, 100)])
    assert np.array_equal(picture, before)


def test_no_face_gives_no_crop() -> None:
    assert crop_faces(ramp(), np.empty((0, 4))).shape == (0, 48, 48)
    assert crop_faces(ramp(), [], size=32).shape == (0, 32, 32)


def test_very_wide_pictures_are_cropped() -> None:
    picture = np.zeros((60, 40_000), np.uint8)
    picture[:, 39_000:] = 200
    crop = crop_faces(picture, [(39_100, 5, 39_140, 50)])[0]
    assert np.all(crop == 200)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([(10, 10, 10, 20)], "left, top, right, bottom"),
        ([(30, 10, 20, 20)], "left, top, right, bottom"),
        ([(30, 30, 20, 20)], "left, top, right, bottom"),
        ([(0, 0, float("nan"), 20)], "left, top, right, bottom"),
        ([(0, 0, float("inf"), 20)], "left, top, right, bottom"),
        ([(0, 0, 1e6, 1e6)], "extent"),
    ],
)
def test_impossible_boxes_are_refused(boxes: list[tuple[float, ...]], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        crop_faces(ramp(), boxes)


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32), np.zeros((0, 8), np.uint8)]
)
def test_pictures_must_be_gray_uint8(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=r"uint8 \[H, W\]"):
        crop_faces(picture, [(0, 0, 4, 4)])


def test_aligning_by_the_eyes_needs_landmarks() -> None:
    geometry = CropGeometry(align="eyes")
    with pytest.raises(ImageError, match="no landmarks"):
        crop_faces(ramp(), [(0, 0, 9, 9)], geometry=geometry)
    with pytest.raises(ImageError, match="as many landmarks"):
        crop_faces(ramp(), [(0, 0, 9, 9)], np.zeros((2, 5, 2)), geometry=geometry)
    with pytest.raises(ImageError, match="extent"):
        crop_faces(ramp(), [(0, 0, 9, 9)], np.zeros((1, 5, 2)), geometry=geometry)


@pytest.mark.parametrize(
    "fields",
    [
        {"box": (0.5, 0, 0.5, 1)},
        {"box": (0, 0.9, 1, 0.1)},
        {"box": (0, 0, 1, float("nan"))},
        {"left_eye": (0.7, 0.4), "right_eye": (0.3, 0.4)},
        {"align": "nose"},
        {"bax": (0, 0, 1, 1)},
    ],
)
def test_impossible_geometries_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CropGeometry.model_validate(fields)


def test_geometry_survives_json() -> None:
    geometry = CropGeometry(align="eyes", box=(0.1, 0.2, 0.8, 0.9))
    assert CropGeometry.model_validate_json(geometry.model_dump_json()) == geometry


def test_a_crop_of_the_right_size_is_unchanged() -> None:
    crop = np.random.default_rng(2).integers(0, 256, (48, 48), dtype=np.uint8)
    assert np.array_equal(fit_crop(crop, 48), crop)


def test_a_crop_that_is_not_square_is_padded() -> None:
    crop = np.zeros((90, 60), np.uint8)
    crop[30:60, 15:45] = 255  # a square in the middle
    fitted = fit_crop(crop, 90)
    assert np.array_equal(fitted[:, 15:75], crop)
    assert np.all(fitted[:, :15] == crop[:, :1])


@pytest.mark.parametrize("crop", [np.zeros((0, 4), np.uint8), np.zeros((2, 40_000), np.uint8)])
def test_empty_and_very_long_crops_are_refused(crop: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError):
        fit_crop(crop, 48)


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flip", 2), ("ten-crop", 10)])
def test_tta_modes_have_their_number_of_views(tta: str, count: int) -> None:
    crops = np.random.default_rng(3).integers(0, 256, (4, 48, 48), dtype=np.uint8)
    shown = tta_views(crops, tta)  # type: ignore[arg-type]
    assert len(shown) == count
    assert all(view.shape == crops.shape and view.dtype == np.uint8 for view in shown)
    assert np.array_equal(shown[0], crops)


def test_ten_crop_is_five_shifts_with_replicated_edges_and_their_mirror_images() -> None:
    crops = np.arange(2 * 6 * 6, dtype=np.uint8).reshape(2, 6, 6)
    shown = tta_views(crops, "ten-crop", shift=2)
    # By the definition: pixel (y, x) of a shifted view is pixel (y + dy, x + dx), clamped to the crop.
    for view, (dy, dx) in zip(shown[:5], [(0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2)], strict=True):
        rows, columns = np.clip(np.arange(6) + dy, 0, 5), np.clip(np.arange(6) + dx, 0, 5)
        assert np.array_equal(view, crops[:, rows][:, :, columns])
    for view, mirrored in zip(shown[:5], shown[5:], strict=True):
        assert np.array_equal(mirrored, view[:, :, ::-1])


def test_a_shift_of_zero_is_the_crop_itself() -> None:
    crops = np.random.default_rng(4).random((2, 5, 5))
    assert all(np.array_equal(view, crops) for view in tta_views(crops, "ten-crop", shift=0)[:5])


def test_unknown_tta_negative_shifts_and_wrong_shapes_are_refused() -> None:
    crops = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(ImageError, match="unknown tta 'twelve'"):
        tta_views(crops, "twelve")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="shift"):
        tta_views(crops, "ten-crop", shift=-1)
    with pytest.raises(ImageError, match="N, S, S"):
        tta_views(crops[0], "flip")
    assert TTA_MODES == ("none", "flip", "ten-crop")


def test_corners_are_those_of_the_crop() -> None:
    left, top, right, bottom = UPRIGHT.box
    box = (100 + left * 80, 50 + top * 80, 100 + right * 80, 50 + bottom * 80)
    expected = [(100, 50), (180, 50), (180, 130), (100, 130)]
    assert np.allclose(crop_corners([box])[0], expected)
    assert crop_corners([]).shape == (0, 4, 2)
    # A quarter turn clockwise: the eyes stand one below the other, so the crop's top is the picture's right.
    marks = [[(200, 160), (200, 240), (0, 0), (0, 0), (0, 0)]]
    (turned,) = crop_corners([box], marks, geometry=CropGeometry(align="eyes"))
    side = 80 / 0.36  # the eyes are 0.36 of a side apart
    assert np.allclose(turned[1] - turned[0], (0, side))
    assert np.allclose(turned[3] - turned[0], (-side, 0))


def test_a_face_of_ten_thousand_pixels_is_sampled_on_a_small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture, 40 times as large, gives the same crop from at most 768 x 768 samples."""
    small = np.asarray(
        cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (250, 250), dtype=np.uint8), (0, 0), 3),
        np.uint8,
    )
    large = np.repeat(np.repeat(small, 40, axis=0), 40, axis=1)
    expected = crop_faces(small, [(10, 5, 240, 245)])[0]
    warp, grids = cv2.warpAffine, []
    monkeypatch.setattr(cv2, "warpAffine", lambda *args, **keys: grids.append(args[2]) or warp(*args, **keys))
    crop = crop_faces(large, [(400, 200, 9600, 9800)])[0]
    assert grids == [(16 * 48, 16 * 48)]
    assert np.abs(crop.astype(int) - expected).max() <= 2


COORDINATE = st.floats(-3e4, 3e4)
EXTENT = st.floats(1e-3, 1e4)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    left=COORDINATE,
    top=COORDINATE,
    across=EXTENT,
    down=EXTENT,
    size=st.sampled_from([1, 24, 48, 64]),
    align=st.sampled_from(["box", "eyes"]),
    seed=st.integers(0, 9),
)
def test_any_face_of_any_picture_is_cropped_within_its_range_of_grays(
    height: int,
    width: int,
    left: float,
    top: float,
    across: float,
    down: float,
    size: int,
    align: Literal["box", "eyes"],
    seed: int,
) -> None:
    """Also for faces far outside the picture."""
    picture = np.random.default_rng(seed).integers(60, 200, (height, width), dtype=np.uint8)
    box = (left, top, left + across, top + down)
    marks = [[(left, top), (left + across, top + down / 4), (left, top), (left, top), (left, top)]]
    crops = crop_faces(picture, [box], marks, geometry=CropGeometry(align=align), size=size)
    assert crops.shape == (1, size, size)
    assert crops.dtype == np.uint8
    assert picture.min() <= crops.min() <= crops.max() <= picture.max()


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(2, 200), st.floats(2, 200)), max_size=6
    ),
    order=st.randoms(use_true_random=False),
)
def test_crops_do_not_depend_on_other_faces(
    boxes: list[tuple[float, float, float, float]], order: random.Random
) -> None:
    """A known fault of other tools: padding inside the loop over faces shifts every later face."""
    picture = np.random.default_rng(0).integers(0, 256, (100, 120), dtype=np.uint8)
    places = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    alone = [crop_faces(picture, [place])[0] for place in places]
    rows = list(range(len(places)))
    order.shuffle(rows)
    together = crop_faces(picture, [places[k] for k in rows])
    assert all(np.array_equal(crop, alone[k]) for crop, k in zip(together, rows, strict=True))
