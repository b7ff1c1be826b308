"""Temperatures are recovered, keep every prediction, and are judged on faces they were not fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from ferkit.core.errors import DataError
from ferkit.evaluation.calibration import (
    TEMPERATURE_RANGE,
    assign_folds,
    fit_temperature,
    log_probabilities,
    softmax,
    temper,
    temper_out_of_fold,
)
from ferkit.evaluation.metrics import expected_calibration_error, negative_log_likelihood


def _draw(seed: int, n: int, sharpness: float = 2.8):
    """Return logits [N, 7] and labels drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 7)) * sharpness
    labels = (softmax(logits).cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return logits, labels


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7, 4.0])
def test_the_temperature_that_blurred_the_logits_is_found_again(true):
    logits, labels = _draw(0, 20_000)
    # Standard error at n = 20,000 is about 1 %.
    assert fit_temperature(logits * true, labels) == pytest.approx(true, rel=0.04)


def test_no_other_temperature_has_a_lower_nll():
    logits, labels = _draw(1, 500)
    logits = logits * 1.6
    fitted = fit_temperature(logits, labels)
    reference = minimize(
        lambda t: negative_log_likelihood(softmax(logits / t[0]), labels), [1.0], method="Nelder-Mead"
    )
    assert fitted == pytest.approx(reference.x[0], rel=1e-3)


def test_a_constant_added_to_a_row_of_logits_changes_nothing():
    logits, labels = _draw(2, 300)
    shifted = logits + np.linspace(-50, 50, 300)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


def test_logits_regained_from_calibrated_probabilities_give_the_same_temperature():
    # The contract of the model file: logits are T * log p, up to a constant.
    logits, labels = _draw(3, 300)
    calibrated = softmax(logits / 2.5)
    regained = fit_temperature(2.5 * log_probabilities(calibrated), labels)
    assert regained == pytest.approx(fit_temperature(logits, labels), rel=1e-5)


def test_labels_that_say_nothing_about_a_temperature_end_at_the_edge_of_the_range():
    certain = np.eye(3) * 0.5
    assert fit_temperature(certain, [0, 1, 2]) == pytest.approx(TEMPERATURE_RANGE[0], rel=1e-3)
    assert fit_temperature(certain, [1, 2, 0]) == pytest.approx(TEMPERATURE_RANGE[1], rel=1e-3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_tempering_keeps_every_prediction_and_sums_to_one(temperature):
    probabilities = softmax(_draw(4, 200)[0])
    changed = temper(probabilities, temperature)
    np.testing.assert_array_equal(changed.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(changed.sum(axis=1), 1, atol=1e-12)


def test_tempering_survives_a_probability_of_zero():
    assert np.isfinite(temper([[1.0, 0.0, 0.0]], 0.5)).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(DataError, match="positive"):
        temper([[0.5, 0.5]], temperature)


def test_folds_are_of_equal_size_shuffled_and_the_same_every_time():
    folds = assign_folds(3589)
    assert sorted(np.bincount(folds)) == [717, 718, 718, 718, 718]
    assert not np.array_equal(folds[:5], np.arange(5))
    np.testing.assert_array_equal(folds, assign_folds(3589))


def test_folds_of_too_few_faces_are_refused():
    with pytest.raises(DataError, match="at least 10 faces"):
        assign_folds(9)


def test_a_face_is_tempered_by_the_other_folds_only():
    logits, labels = _draw(5, 100)
    probabilities = softmax(logits)
    before = temper_out_of_fold(probabilities, labels)
    part = assign_folds(100)
    changed = labels.copy()
    changed[part == 2] = (changed[part == 2] + 1) % 7
    after = temper_out_of_fold(probabilities, changed)
    np.testing.assert_array_equal(after[part == 2], before[part == 2])
    assert not np.allclose(after[part != 2], before[part != 2])


def test_ece_out_of_fold_repairs_a_wrong_temperature_down_to_the_floor_of_perfect_calibration():
    # 0.018 is what a perfectly calibrated model reads at this n (DESIGN.md); one draw scatters by 0.004.
    logits, labels = _draw(6, 3589)
    overconfident = softmax(logits * 2.5)
    assert expected_calibration_error(overconfident, labels) > 0.1
    held_out = temper_out_of_fold(overconfident, labels)
    assert expected_calibration_error(held_out, labels) == pytest.approx(0.018, abs=0.01)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, np.inf]], [0], "finite"),
        ([0.0, 1.0], [0, 1], r"\[N, K\]"),
        ([[0.0, 1.0]], [2], r"0\.\.1"),
    ],
)
def test_logits_that_cannot_be_fitted_are_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        fit_temperature(logits, labels)
