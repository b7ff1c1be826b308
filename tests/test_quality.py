"""The quality of a face: its numbers and the flags that follow from them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferkit.core.measures import brightness, sharpness
from ferkit.recognize.quality import _HEAD, FLAGS, head_pose, measure_quality

SHARP = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
RAMP = np.tile(np.linspace(5, 45, 48), (48, 1)).astype(np.uint8)  # dark and smooth
FRONTAL = [(40.0, 50.0), (60.0, 50.0), (50.0, 61.4), (41.8, 70.2), (58.2, 70.2)]


def turned(yaw: float, pitch: float, roll: float, scale: float = 40.0) -> NDArray[np.float64]:
    """The landmarks of the average head, turned by degrees, under orthographic projection."""
    y, p, r = np.radians([-yaw, -pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return scale * (_HEAD @ (about_z @ about_x @ about_y).T)[:, :2] + 300.0


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (-50, 0, 0), (0, 20, 0), (0, -25, 0), (0, 0, 40)]
)
def test_head_pose_of_a_turned_head(yaw: float, pitch: float, roll: float) -> None:
    assert head_pose(turned(yaw, pitch, roll)) == pytest.approx((yaw, pitch, roll), abs=1e-4)


@given(
    yaw=st.floats(-60, 60),
    pitch=st.floats(-40, 40),
    scale=st.floats(1, 1000),
)
@settings(deadline=None)
def test_yaw_and_pitch_are_separated_at_any_size(yaw: float, pitch: float, scale: float) -> None:
    found = head_pose(turned(yaw, pitch, 0, scale))
    assert found is not None
    # The order of the two rotations matters, so the direction of the nose is compared.
    y, p = np.radians(found[:2])
    assert np.sin(y) * np.cos(p) == pytest.approx(np.sin(np.radians(yaw)), abs=1e-3)


@pytest.mark.parametrize(
    "marks", [[(5.0, 5.0)] * 5, [(np.nan, 0.0)] * 5, [(1e300, 0.0)] * 5, [(k, 0.0) for k in range(5)]]
)
def test_landmarks_that_are_not_a_face_have_no_pose(marks: list[tuple[float, float]]) -> None:
    assert head_pose(marks) is None


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    values = [sharpness(np.asarray(cv2.GaussianBlur(SHARP, (0, 0), s), np.uint8)) for s in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert sharpness(SHARP // 2 + 60) == pytest.approx(sharpness(SHARP), rel=0.02)
    assert sharpness(np.zeros((48, 48), np.uint8)) == 0


def test_brightness_is_that_of_the_face_and_not_of_its_surroundings() -> None:
    crop = np.full((48, 48), 200, np.uint8)
    crop[8:40, 8:40] = 20
    assert brightness(crop) == 20
    assert brightness(crop[8:40, 8:40]) == 20
    assert brightness(np.full((1, 1), 7, np.uint8)) == 7


def blurred() -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(SHARP, (0, 0), 6), np.uint8)


@pytest.mark.parametrize(
    ("box", "marks", "crop", "flags"),
    [
        ((30, 30, 70, 80), FRONTAL, SHARP, ()),
        ((30, 30, 45, 50), FRONTAL, SHARP, ("small",)),
        ((30, 30, 70, 80), FRONTAL, blurred(), ("blurred",)),
        ((30, 30, 70, 80), FRONTAL, SHARP // 9, ("dark",)),
        ((30, 30, 70, 80), turned(50, 0, 0), SHARP, ("turned",)),
        ((30, 30, 70, 80), turned(0, -45, 0), SHARP, ("turned",)),
        ((30, 30, 70, 80), turned(0, 0, 35), SHARP, ("tilted",)),
        ((-10, 30, 30, 80), FRONTAL, SHARP, ("cut off",)),
        ((30, 180, 70, 230), FRONTAL, SHARP, ("cut off",)),
        ((0.5, 30, 40.5, 80), FRONTAL, SHARP, ("cut off",)),
        ((0, 0, 300, 200), None, SHARP, ()),
        ((30, 30, 70, 80), None, SHARP, ()),
        ((-9, 30, 6, 50), turned(50, 0, -50), RAMP, FLAGS),
    ],
)
def test_flags_follow_from_the_numbers(
    box: tuple[float, float, float, float],
    marks: list[tuple[float, float]] | None,
    crop: NDArray[np.uint8],
    flags: tuple[str, ...],
) -> None:
    quality = measure_quality(box, marks, crop, 300, 200)
    assert quality.flags == flags
    assert quality.size == box[3] - box[1]
    assert (quality.yaw is None) == (marks is None)


@pytest.mark.parametrize(
    ("box", "outside"),
    [
        ((0, 0, 40, 50), 0.0),
        ((-10, 0, 30, 50), 0.25),
        ((-100, -100, -50, -50), 1.0),
        ((280, 150, 320, 250), 0.75),
    ],
)
def test_outside_is_the_share_beyond_the_border(
    box: tuple[float, float, float, float], outside: float
) -> None:
    assert measure_quality(box, None, SHARP, 300, 200).outside == pytest.approx(outside)
