"""Selective answers: coverage curves, and confidence on faces of poor quality."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from ferkit.core.errors import DataError, ModelFileError
from ferkit.core.measures import brightness, sharpness
from ferkit.core.modelfile import Coverage, HeadInfo, QualityCurve
from ferkit.data.cartoon import draw_faces
from ferkit.evaluation.calibration import fit_soft_temperature, log_probabilities, temper
from ferkit.evaluation.coverage import LEAST_FACES, measure_coverage
from ferkit.evaluation.degrade import KINDS, degraded
from ferkit.evaluation.quality import fit_quality
from ferkit.recognize.adjust import Adjustment
from ferkit.recognize.quality import measure_quality

CURVE = Coverage(
    split="PublicTest", labels="fer2013", n=100,
    thresholds=(0.0, 0.2, 0.4, 0.6), coverage=(1, 0.8, 0.5, 0.2), error=(0.3, 0.1, 0.2, 0.05),
)  # fmt: skip


def test_a_curve_holds_the_share_and_the_error_of_the_faces_that_reach_each_threshold():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 400)
    p = np.column_stack([confidence, 1 - confidence])
    labels = (rng.uniform(size=400) > confidence).astype(int)
    curve = measure_coverage(p, np.eye(2)[labels], split="PublicTest", labels="two")
    for threshold, coverage, error in zip(curve.thresholds, curve.coverage, curve.error, strict=True):
        reached = confidence >= threshold
        assert coverage == pytest.approx(reached.mean(), abs=1e-6)
        assert error == pytest.approx(labels[reached].mean(), abs=1e-6)
        assert reached.sum() >= LEAST_FACES


def test_with_distributions_the_error_is_the_share_who_disagree():
    p = np.tile([0.9, 0.1], (60, 1))
    curve = measure_coverage(p, np.tile([0.7, 0.3], (60, 1)), split="PublicTest", labels="two")
    assert set(curve.error) == {0.3}


def test_few_faces_have_no_curve_and_other_shapes_are_refused():
    assert measure_coverage(np.ones((9, 2)) / 2, np.eye(2)[[0] * 9], split="a", labels="b") is None
    with pytest.raises(DataError, match=r"\[N, K\]"):
        measure_coverage(np.ones((60, 2)) / 2, np.ones((60, 3)), split="a", labels="b")


@pytest.mark.parametrize(("wanted", "threshold"), [(0.3, 0.0), (0.2, 0.2), (0.1, 0.6), (0.05, 0.6)])
def test_the_threshold_is_the_smallest_from_which_on_the_error_stays_below(wanted, threshold):
    assert CURVE.threshold_for(wanted) == threshold


def test_an_error_that_no_confidence_has_is_said():
    with pytest.raises(ModelFileError, match=r"error of 0.01 or less on PublicTest; the smallest.*0\.050"):
        CURVE.threshold_for(0.01)


def test_curves_of_unequal_length_are_refused():
    with pytest.raises(ValidationError, match="same length"):
        Coverage(split="a", labels="b", n=5, thresholds=(0.1, 0.2), coverage=(1,), error=(0.1,))
    with pytest.raises(ValidationError, match="same length"):
        QualityCurve(measure="sharpness", values=(0.1, 0.2), temperatures=(2,))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_step_degrades_a_face_more(kind):
    faces = draw_faces(20, seed=1).images.astype(float)
    distances = [
        np.abs(degraded(faces.astype(np.uint8), kind, step).astype(float) - faces).mean()
        for step in kind.steps
    ]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_blur_lowers_sharpness_and_low_light_brightness():
    faces = draw_faces(10, seed=2).images
    blur, light = KINDS[:2]
    for kind, measure in ((blur, sharpness), (light, brightness)):
        medians = [np.median([measure(f) for f in degraded(faces, kind, step)]) for step in kind.steps]
        assert medians == sorted(medians, reverse=True)


def test_the_temperature_that_flattened_predictions_is_found():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(4), 500)
    assert fit_soft_temperature(log_probabilities(temper(p, 0.5)), p) == pytest.approx(2, rel=0.01)


def overconfident_in_the_dark(faces):
    """A model that stays at 95 % while only every second answer is right below a brightness of 60."""
    light = np.array([brightness(face) for face in faces])
    right = np.arange(len(faces)) % np.where(light < 60, 2, 20) > 0
    p = np.where(right[:, None], [0.95, 0.05], [0.05, 0.95])
    return {"mood": p}


def test_temperatures_rise_where_confidence_is_too_high_and_nowhere_else():
    faces = draw_faces(300, seed=4).images // 2 + 100  # none of them dark
    targets = {"mood": np.tile([1.0, 0.0], (300, 1))}
    (curve,) = fit_quality(overconfident_in_the_dark, faces, targets)["mood"]
    assert curve.measure == "brightness"
    assert list(curve.values) == sorted(curve.values)
    assert list(curve.temperatures) == sorted(curve.temperatures, reverse=True)
    assert curve.at(5) > 2
    assert curve.at(150) == 1


def quality(gray: int):
    face = np.full((48, 48), gray, np.uint8)
    face[::2] += 40
    return measure_quality((0, 0, 48, 48), None, face, 48, 48)


def test_dark_faces_lose_confidence_and_not_their_label_and_others_lose_nothing():
    curve = QualityCurve(measure="brightness", values=(20, 60), temperatures=(3, 1))
    head = HeadInfo(id="mood", labels=("good", "bad"), quality=(curve,))
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]], np.float32)
    soft = Adjustment(head).soften(p, [quality(150), quality(0), quality(0)])
    assert np.array_equal(soft[0], p[0])
    # A brightness of 20: T = 3, and 9 to 1 becomes its cube root.
    assert soft[1, 0] == pytest.approx(9 ** (1 / 3) / (1 + 9 ** (1 / 3)), abs=1e-5)
    assert soft[2, 1] > 0.5
    assert np.array_equal(Adjustment(head).soften(p, []), p)
    assert np.array_equal(Adjustment(HEAD_WITHOUT).soften(p, [quality(0)] * 3), p)


HEAD_WITHOUT = HeadInfo(id="mood", labels=("good", "bad"))
