"""The fitted vote is the best, keeps to the rules of a vote, and is judged on faces that it had not seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from ferkit.core.errors import DataError
from ferkit.evaluation.calibration import assign_folds, fit_temperature, log_probabilities, softmax, temper
from ferkit.evaluation.ensemble_weights import (
    apply_vote,
    fit_vote,
    judge_vote,
    mean_probabilities,
    vote_out_of_fold,
)
from ferkit.evaluation.metrics import negative_log_likelihood


def _members(seed: int = 0, n: int = 600, noise: tuple[float, ...] = (1.0, 1.5, 3.0)):
    """Return [M, N, 5] of members that see the same truth through independent noise, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, n)
    signal = 2.0 * np.eye(5)[labels]
    members = [softmax(signal + random.normal(size=(n, 5)) * level) for level in noise]
    return np.stack(members), labels


def test_no_other_weights_have_a_lower_nll():
    members, labels = _members()
    best = negative_log_likelihood(apply_vote(members, fit_vote(members, labels)), labels)
    random = np.random.default_rng(1)
    for weights in [*random.dirichlet(np.ones(3), 60), *np.eye(3), np.full(3, 1 / 3)]:
        mean = mean_probabilities(members, weights)
        other = temper(mean, fit_temperature(log_probabilities(mean), labels))
        # Weights below 0.01 are cut, which may cost the fit a little.
        assert best <= negative_log_likelihood(other, labels) + 1e-4


def test_the_least_nll_is_a_stationary_point():
    members, labels = _members(noise=(1.0, 1.2, 1.4))
    vote = fit_vote(members, labels)
    assert min(vote.weights) > 0.05

    def loss(free):
        weights = np.append(free, 1 - free.sum())
        return negative_log_likelihood(temper(mean_probabilities(members, weights), vote.temperature), labels)

    gradient = approx_fprime(np.array(vote.weights[:2]), loss, 1e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-3)


def test_weights_are_a_vote_and_the_better_member_has_the_larger_one():
    members, labels = _members()
    vote = fit_vote(members, labels)
    assert sum(vote.weights) == pytest.approx(1)
    assert min(vote.weights) >= 0
    assert vote.weights[0] > vote.weights[1] > vote.weights[2]


def test_a_member_that_knows_nothing_gets_no_weight_at_all():
    members, labels = _members(noise=(1.0, 1.0))
    wrong = np.roll(members[:1], 1, axis=2)
    vote = fit_vote(np.concatenate([members, wrong]), labels)
    assert vote.weights[2] == 0.0


def test_more_than_a_hundred_equal_members_all_vote():
    members, labels = _members(n=80)
    vote = fit_vote(np.repeat(members[:1], 101, axis=0), labels)
    assert sum(vote.weights) == pytest.approx(1)
    assert min(vote.weights) > 0


def test_the_order_of_the_members_does_not_matter():
    members, labels = _members()
    forward, backward = fit_vote(members, labels), fit_vote(members[::-1], labels)
    assert backward.weights[::-1] == pytest.approx(forward.weights, abs=2e-3)


def test_one_member_votes_alone():
    members, labels = _members(noise=(1.0,))
    vote = fit_vote(members, labels)
    assert vote.weights == (1.0,)
    assert vote.temperature == pytest.approx(fit_temperature(log_probabilities(members[0]), labels))


def test_given_weights_stay_and_only_the_temperature_is_fitted():
    members, labels = _members()
    vote = fit_vote(members, labels, weights=[0.5, 0.25, 0.25])
    assert vote.weights == (0.5, 0.25, 0.25)
    mean = mean_probabilities(members, vote.weights)
    assert vote.temperature == pytest.approx(fit_temperature(log_probabilities(mean), labels))


def test_a_face_is_judged_by_a_vote_that_had_not_seen_it():
    members, labels = _members(n=200)
    before = vote_out_of_fold(members, labels)
    part = assign_folds(200)
    changed = labels.copy()
    changed[part == 1] = (changed[part == 1] + 1) % 5
    after = vote_out_of_fold(members, changed)
    np.testing.assert_array_equal(after[part == 1], before[part == 1])
    assert not np.allclose(after[part != 1], before[part != 1])


def test_figures_out_of_fold_are_less_flattering_than_in_sample():
    # Twelve members of pure noise: whatever fitting gains is memory, and the folds must show it.
    random = np.random.default_rng(3)
    members, labels = softmax(random.normal(size=(12, 120, 5))), random.integers(0, 5, 120)
    judged = judge_vote(members, labels)
    assert judged.in_sample.nll < judged.out_of_fold.nll
    assert judged.out_of_fold.nll > np.log(5) - 0.01


def test_the_vote_is_judged_beside_its_members_and_equal_weights():
    members, labels = _members()
    judged = judge_vote(members, labels)
    assert judged.n == 600
    assert [f.nll for f in judged.members] == [negative_log_likelihood(m, labels) for m in members]
    assert judged.out_of_fold.nll < min(f.nll for f in judged.members)
    assert judged.out_of_fold.nll < judged.equal.nll


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
        fit_vote(members, labels, weights)


def test_faces_that_are_all_told_apart_leave_the_temperature_at_one():
    # Two members that are right about 60 faces with p = 0.6: any sharper vote has a lower NLL.
    labels = np.arange(60) % 5
    members = np.where(np.eye(5)[labels] == 1, 0.6, 0.1)[None].repeat(2, axis=0)
    vote = fit_vote(members, labels)
    assert vote.temperature == 1.0
    np.testing.assert_allclose(apply_vote(members, vote).max(axis=1), 0.6)
    assert judge_vote(members, labels).out_of_fold.nll == pytest.approx(-np.log(0.6))


@pytest.mark.parametrize("weights", [None, [0.75, 0.25]])
def test_to_twelve_faces_nothing_is_fitted_and_nothing_out_of_fold_is_told(weights):
    members, labels = _members(n=12, noise=(1.0, 3.0))
    judged = judge_vote(members, labels, weights)
    assert judged.vote.weights == tuple(weights or (0.5, 0.5))
    assert judged.vote.temperature == 1.0
    assert (judged.out_of_fold, judged.equal, judged.held_out) == (None, None, None)
    plain = negative_log_likelihood(mean_probabilities(members, judged.vote.weights), labels)
    assert judged.in_sample.nll == pytest.approx(plain, rel=1e-12)


def test_thirteen_faces_are_enough_for_figures_out_of_fold_of_a_fitted_temperature():
    members, labels = _members(n=13, noise=(1.0, 3.0))
    assert judge_vote(members, labels).out_of_fold is not None
    outside = [int((assign_folds(n) != fold).sum()) for n in (13, 12) for fold in range(5)]
    assert min(outside[:5]) == 10  # as many as determine a temperature
    assert min(outside[5:]) < 10
