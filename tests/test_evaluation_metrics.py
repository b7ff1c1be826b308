"""The metrics agree with scikit-learn, SciPy and sums done by hand, and refuse invalid input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from scipy.stats import binned_statistic, binomtest

from ferkit.core.errors import DataError
from ferkit.evaluation.metrics import (
    accuracy,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    mean_recall,
    negative_log_likelihood,
    per_class,
    reliability,
    wilson_interval,
)

NAMES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


def _random_predictions(seed: int, n: int = 400, classes: int = 7, sharpness: float = 2.0):
    """Return probabilities [N, K] and labels drawn from exactly these probabilities: perfect calibration."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * sharpness
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return probabilities, labels


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_confusion_are_those_of_scikit_learn(seed):
    probabilities, labels = _random_predictions(seed)
    predicted = probabilities.argmax(axis=1)
    assert accuracy(labels, predicted) == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predicted), abs=1e-15
    )
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(7))
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, 7), expected)


@pytest.mark.parametrize("seed", range(3))
def test_per_class_scores_and_macro_f1_are_those_of_scikit_learn(seed):
    probabilities, labels = _random_predictions(seed)
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, 7)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(7), zero_division=np.nan
    )
    scores = per_class(confusion, NAMES)
    np.testing.assert_allclose([s.precision for s in scores], precision, rtol=1e-12)
    np.testing.assert_allclose([s.recall for s in scores], recall, rtol=1e-12)
    np.testing.assert_allclose([s.f1 for s in scores], f1, rtol=1e-12)
    assert [s.support for s in scores] == list(support)
    assert macro_f1(confusion) == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


@pytest.mark.parametrize(
    ("labels", "predicted"),
    [([0, 0, 1, 2], [0, 0, 1, 1]), ([0, 0, 1, 1], [0, 2, 1, 1]), ([3, 3], [3, 3]), ([0], [1])],
    ids=["never predicted", "predicted but absent", "one class only", "all wrong"],
)
def test_macro_f1_treats_missing_classes_as_scikit_learn_does(labels, predicted):
    expected = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(confusion_matrix(labels, predicted, 7)) == pytest.approx(expected, abs=1e-15)


def test_a_class_without_faces_or_predictions_has_no_scores_rather_than_a_zero():
    scores = per_class(confusion_matrix([0, 0, 1], [0, 2, 0], 4), NAMES[:4])
    assert (scores[1].precision, scores[1].recall, scores[1].f1) == (None, 0.0, 0.0)
    assert (scores[2].precision, scores[2].recall, scores[2].f1) == (0.0, None, 0.0)
    assert (scores[3].precision, scores[3].recall, scores[3].f1) == (None, None, None)


def test_rows_of_the_confusion_matrix_are_the_truth():
    assert confusion_matrix([0, 0, 0], [1, 1, 0], 2).tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("correct", "total"), [(0, 10), (10, 10), (1, 3), (2387, 3589), (3589, 3589), (0, 1)]
)
def test_the_interval_is_the_wilson_interval_of_scipy(correct, total):
    reference = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    found = wilson_interval(correct, total)
    assert found == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= found[0] <= correct / total <= found[1] <= 1


@pytest.mark.parametrize("seed", range(3))
def test_mean_recall_is_the_balanced_accuracy_of_scikit_learn(seed):
    probabilities, labels = _random_predictions(seed)
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), 7)
    expected = sklearn.metrics.balanced_accuracy_score(labels, probabilities.argmax(axis=1))
    value, (low, high) = mean_recall(np.diag(confusion), confusion.sum(axis=1))
    assert value == pytest.approx(expected)
    assert low < value < high


def test_mean_recall_leaves_out_classes_without_faces_and_is_not_certain_of_a_perfect_class():
    value, (low, high) = mean_recall([5, 0, 0], [5, 0, 5])
    assert value == 0.5
    assert 0 < low < 0.5 < high < 1


def test_the_interval_of_mean_recall_holds_it_nineteen_times_in_twenty():
    random = np.random.default_rng(0)
    faces, recalls = [12, 104, 123, 126, 150, 150, 173], [0.1, 0.2, 0.5, 0.9, 0.6, 0.7, 0.8]
    found = [mean_recall(row, faces)[1] for row in random.binomial(faces, recalls, (2000, 7)).tolist()]
    held = np.mean([low <= np.mean(recalls) <= high for low, high in found])
    assert 0.94 < held < 0.98  # plain variances, without the two added faces, hold it in 0.927


@pytest.mark.parametrize("seed", range(3))
def test_nll_is_the_log_loss_of_scikit_learn(seed):
    probabilities, labels = _random_predictions(seed)
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=range(7))
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(expected, rel=1e-12)


def test_a_probability_of_zero_for_the_truth_costs_much_but_is_finite():
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-math.log(1e-12))


@pytest.mark.parametrize("seed", range(3))
def test_ece_agrees_with_bins_counted_by_scipy(seed):
    probabilities, labels = _random_predictions(seed)
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, 16)
    means = binned_statistic(top, [top, right], "mean", edges).statistic
    count = binned_statistic(top, top, "count", edges).statistic
    gaps = np.nan_to_num(np.abs(means[0] - means[1]))
    assert expected_calibration_error(probabilities, labels) == pytest.approx(
        float((gaps * count).sum() / len(top))
    )


def test_ece_by_hand():
    # Three faces at 0.9, two of them right: |2/3 - 0.9|; one at 0.6, right: |1 - 0.6|. Weighted 3 : 1.
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]]
    expected = 0.75 * (0.9 - 2 / 3) + 0.25 * 0.4
    assert expected_calibration_error(probabilities, [0, 1, 1, 0]) == pytest.approx(expected)


def test_a_perfectly_calibrated_model_has_an_ece_of_about_0_018_at_the_size_of_publictest():
    # The figure of DESIGN.md: ECE is biased upwards, so 0.018 at n = 3,589 means no miscalibration at all.
    measured = [
        expected_calibration_error(*_random_predictions(seed, n=3589, sharpness=2.8)) for seed in range(40)
    ]
    assert np.mean(measured) == pytest.approx(0.018, abs=0.002)


def test_the_bins_hold_every_face_once_and_their_edges_belong_to_the_bin_below():
    third = np.array([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
    bins = reliability(third, [0, 0], bins=3)
    assert [b.count for b in bins] == [1, 0, 1]
    assert sum(b.count for b in reliability(*_random_predictions(1))) == 400


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([], []), "not empty"),
        (lambda: accuracy([0, 1], [0]), "as many predictions"),
        (lambda: accuracy([0.0, 1.0], [0, 1]), "must be integers"),
        (lambda: confusion_matrix([0, 7], [0, 0], 7), r"0\.\.6"),
        (lambda: confusion_matrix([0, -1], [0, 0], 7), r"0\.\.6"),
        (lambda: wilson_interval(1, 0), "total > 0"),
        (lambda: wilson_interval(4, 3), "correct <= total"),
        (lambda: negative_log_likelihood([[0.5, 0.5]], [2]), r"0\.\.1"),
        (lambda: negative_log_likelihood([[0.5, 0.5]], [0, 1]), "as many rows"),
        (lambda: negative_log_likelihood([[2.0, -1.0]], [0]), "logits"),
        (lambda: negative_log_likelihood([[3.0, 1.0]], [0]), "logits"),
        (lambda: negative_log_likelihood([[np.nan, 1.0]], [0]), "finite"),
        (lambda: negative_log_likelihood([0.5, 0.5], [0, 1]), r"\[N, K\]"),
    ],
)
def test_invalid_input_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
