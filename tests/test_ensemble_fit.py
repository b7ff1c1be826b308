"""Fitted weights and temperature have the least NLL, are a weighting, and are evaluated out of fold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from ferkit.core.errors import DataError, ModelFileError
from ferkit.core.taxonomy import Taxonomy
from ferkit.evaluation.calibration import assign_folds, fit_temperature, log_probabilities, softmax, temper
from ferkit.evaluation.ensemble_weights import (
    fit_and_measure,
    fit_ensemble,
    fit_weighting,
    mean_probabilities,
    normalised,
    predict_out_of_fold,
    weights_of,
)
from ferkit.evaluation.evaluate import Target
from ferkit.evaluation.metrics import negative_log_likelihood


def _members(seed: int = 0, n: int = 600, noise: tuple[float, ...] = (1.0, 1.5, 3.0)):
    """Return [M, N, 5] of members with the same labels and independent noise, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, n)
    signal = 2.0 * np.eye(5)[labels]
    members = [softmax(signal + random.normal(size=(n, 5)) * level) for level in noise]
    return np.stack(members), labels


def _target(labels, name="five", keep=None):
    """Return the labels as those of a taxonomy with five classes."""
    keep = np.ones(len(labels), bool) if keep is None else keep
    return Target(name, Taxonomy(name.split()[0], tuple("abcde")), np.asarray(labels, np.int64), keep)


def test_no_other_weights_have_a_lower_nll():
    members, labels = _members()
    best = negative_log_likelihood(fit_weighting(members, labels).combine(members), labels)
    random = np.random.default_rng(1)
    for weights in [*random.dirichlet(np.ones(3), 60), *np.eye(3), np.full(3, 1 / 3)]:
        mean = mean_probabilities(members, weights)
        other = temper(mean, fit_temperature(log_probabilities(mean), labels))
        # Weights below 0.01 are cut, which may cost the fit a little.
        assert best <= negative_log_likelihood(other, labels) + 1e-4


def test_the_least_nll_is_a_stationary_point():
    members, labels = _members(noise=(1.0, 1.2, 1.4))
    fitted = fit_weighting(members, labels)
    assert min(fitted.weights) > 0.05

    def loss(free):
        weights = np.append(free, 1 - free.sum())
        return negative_log_likelihood(
            temper(mean_probabilities(members, weights), fitted.temperature), labels
        )

    gradient = approx_fprime(np.array(fitted.weights[:2]), loss, 1e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-3)


def test_weights_sum_to_one_and_the_better_member_has_the_larger_one():
    members, labels = _members()
    fitted = fit_weighting(members, labels)
    assert sum(fitted.weights) == pytest.approx(1)
    assert min(fitted.weights) >= 0
    assert fitted.weights[0] > fitted.weights[1] > fitted.weights[2]


def test_a_member_that_is_always_wrong_gets_no_weight():
    members, labels = _members(noise=(1.0, 1.0))
    wrong = np.roll(members[:1], 1, axis=2)
    fitted = fit_weighting(np.concatenate([members, wrong]), labels)
    assert fitted.weights[2] == 0.0


def test_more_than_a_hundred_equal_members_all_get_weight():
    members, labels = _members(n=80)
    fitted = fit_weighting(np.repeat(members[:1], 101, axis=0), labels)
    assert sum(fitted.weights) == pytest.approx(1)
    assert min(fitted.weights) > 0


def test_the_order_of_the_members_does_not_matter():
    members, labels = _members()
    forward, backward = fit_weighting(members, labels), fit_weighting(members[::-1], labels)
    assert backward.weights[::-1] == pytest.approx(forward.weights, abs=2e-3)


def test_one_member_gets_all_the_weight():
    members, labels = _members(noise=(1.0,))
    fitted = fit_weighting(members, labels)
    assert fitted.weights == (1.0,)
    assert fitted.temperature == pytest.approx(fit_temperature(log_probabilities(members[0]), labels))


def test_given_weights_stay_and_only_the_temperature_is_fitted():
    members, labels = _members()
    fitted = fit_weighting(members, labels, weights=[0.5, 0.25, 0.25])
    assert fitted.weights == (0.5, 0.25, 0.25)
    mean = mean_probabilities(members, fitted.weights)
    assert fitted.temperature == pytest.approx(fit_temperature(log_probabilities(mean), labels))


def test_a_face_is_predicted_by_a_fit_that_had_not_seen_it():
    members, labels = _members(n=200)
    before = predict_out_of_fold(members, labels)
    part = assign_folds(200)
    changed = labels.copy()
    changed[part == 1] = (changed[part == 1] + 1) % 5
    after = predict_out_of_fold(members, changed)
    np.testing.assert_array_equal(after[part == 1], before[part == 1])
    assert not np.allclose(after[part != 1], before[part != 1])


def test_figures_out_of_fold_are_less_flattering_than_in_sample():
    # Twelve members of pure noise: whatever fitting gains is memory, and the folds must show it.
    random = np.random.default_rng(3)
    members, labels = softmax(random.normal(size=(12, 120, 5))), random.integers(0, 5, 120)
    measured = fit_and_measure(members, _target(labels))
    assert measured.in_sample.nll < measured.out_of_fold.nll
    assert measured.out_of_fold.nll > np.log(5) - 0.01


def test_the_ensemble_is_measured_beside_its_members_and_equal_weights():
    members, labels = _members()
    measured = fit_and_measure(members, _target(labels))
    assert measured.in_sample.n == 600
    assert [f.nll for f in measured.alone] == [negative_log_likelihood(m, labels) for m in members]
    assert measured.out_of_fold.nll < min(f.nll for f in measured.alone)
    assert measured.out_of_fold.nll < measured.equal.nll


@pytest.mark.parametrize(
    ("members", "labels", "weights", "message"),
    [
        (np.full((2, 20, 2), 0.5), np.zeros(20, int), [1.0], "as many weights"),
        (np.full((20, 2), 0.5), np.zeros(20, int), None, r"\[M, N, K\]"),
        (np.full((2, 20, 2), 0.5), np.zeros(19, int), None, "as many rows"),
        (np.full((2, 20, 2), 0.5), np.full(20, 2), None, r"0\.\.1"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(members, labels, weights, message):
    with pytest.raises(DataError, match=message):
        fit_weighting(members, labels, weights)


def test_faces_that_are_all_predicted_right_leave_the_temperature_at_one():
    # Two members that are right about 60 faces with p = 0.6: any sharper mean has a lower NLL.
    labels = np.arange(60) % 5
    members = np.where(np.eye(5)[labels] == 1, 0.6, 0.1)[None].repeat(2, axis=0)
    fitted = fit_weighting(members, labels)
    assert fitted.temperature == 1.0
    np.testing.assert_allclose(fitted.combine(members).max(axis=1), 0.6)
    assert fit_and_measure(members, _target(labels)).out_of_fold.nll == pytest.approx(-np.log(0.6))


@pytest.mark.parametrize("weights", [None, [0.75, 0.25]])
def test_nothing_is_fitted_to_twelve_faces_and_there_are_no_figures_out_of_fold(weights):
    members, labels = _members(n=12, noise=(1.0, 3.0))
    measured = fit_and_measure(members, _target(labels), weights)
    assert measured.weighting.weights == tuple(weights or (0.5, 0.5))
    assert measured.weighting.temperature == 1.0
    assert (measured.fit, measured.out_of_fold, measured.equal) == ("nothing", None, None)
    plain = negative_log_likelihood(mean_probabilities(members, measured.weighting.weights), labels)
    assert measured.in_sample.nll == pytest.approx(plain, rel=1e-12)


def test_thirteen_faces_are_enough_for_figures_out_of_fold_of_a_fitted_temperature():
    members, labels = _members(n=13, noise=(1.0, 3.0))
    assert fit_and_measure(members, _target(labels)).out_of_fold is not None
    outside = [int((assign_folds(n) != fold).sum()) for n in (13, 12) for fold in range(5)]
    assert min(outside[:5]) == 10  # as many as determine a temperature
    assert min(outside[5:]) < 10


def test_each_taxonomy_is_fitted_on_its_own_to_the_first_of_its_label_sets():
    members, labels = _members(n=60, noise=(1.0, 3.0))
    targets = [_target(labels, "own"), _target(labels, "plus majority"), _target(labels, "plus argmax")]
    first, second = fit_ensemble(
        [{"own": members[0]}, {"own": members[1], "plus": members[1]}], targets, [1, 1], fit_weights=True
    )
    assert (first.labels, first.members, second.labels, second.members) == (
        "own",
        (0, 1),
        "plus majority",
        (1,),
    )
    assert second.weighting.weights == (1.0,)
    assert {first.fit, second.fit} == {"weights and temperature"}


def test_a_taxonomy_with_too_few_labels_takes_the_weights_of_the_first():
    members, labels = _members(n=60, noise=(1.0, 3.0))
    few = np.arange(60) < 5
    predictions = [{"own": p, "plus": p} for p in members]
    fits = fit_ensemble(
        predictions, [_target(labels, "own"), _target(labels, "plus", few)], [1, 1], fit_weights=True
    )
    first, second = fits
    assert (first.fit, second.fit, second.in_sample.n) == ("weights and temperature", "nothing", 5)
    assert second.weighting.weights == pytest.approx(first.weighting.weights)
    for taxonomy in ("own", "plus", "unlabelled"):
        assert weights_of(fits, [1, 1], [True, True], taxonomy) == pytest.approx(first.weighting.weights)


def test_without_fitted_weights_those_given_are_normalised():
    members, labels = _members(n=60, noise=(1.0, 3.0))
    fits = fit_ensemble([{"own": p} for p in members], [_target(labels, "own")], [3, 1])
    assert fits[0].fit == "temperature"
    assert fits[0].weighting.weights == (0.75, 0.25)
    assert weights_of(fits, [3, 1], [True, True], "other") == (0.75, 0.25)


def test_where_all_weight_lies_on_members_without_a_taxonomy_the_others_share_it():
    assert normalised([1, 0, 0], [False, True, True]) == (0.0, 0.5, 0.5)
    assert normalised([1, 2, 1], [True, True, False]) == pytest.approx((1 / 3, 2 / 3, 0.0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "3 members need as many weights. Received: 2"),
        ([1, -1, 1], "not negative"),
        ([1, float("nan"), 1], "finite"),
        ([0, 0, 0], "above 0"),
    ],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(ModelFileError, match=message):
        normalised(weights, [True, True, True])
