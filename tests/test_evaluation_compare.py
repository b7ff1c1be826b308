"""Two models on the same faces: their differences, the intervals, and whether they are significant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ferkit.core.errors import DataError, TaxonomyError
from ferkit.core.taxonomy import FER2013, FERPLUS, Taxonomy
from ferkit.data import FaceDataset
from ferkit.evaluation.compare import (
    compare,
    difference,
    mcnemar,
    mean_interval,
    share_interval,
    shared_heads,
)
from ferkit.evaluation.model import EvaluatedModel, ModelFacts

HEADS = {"fer2013": FER2013}
PUBLIC = 1
FACTS = ModelFacts("m", "1", "onnx", "seed-cnn", 1, 1.0, 1, "ab", 1, (), None, None)


def _faces(labels):
    """A data set whose face i is of the one colour i."""
    n = len(labels)
    return FaceDataset(
        images=np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 4, 4)).copy(),
        labels=np.array(labels, np.int64),
        split=np.full(n, PUBLIC, np.uint8),
        taxonomy=FER2013,
        votes=None,
        source="faces.csv",
        fingerprint="0" * 64,
    )


def _right_on(right, sure=0.9, heads=HEADS):
    """A model that predicts label 0 for the faces in ``right``, and 1 for the others; uniform FER+ labels."""

    def predict(crops, tta):
        known = np.isin(crops[:, 0, 0], list(right))
        top = np.where(known, 0, 1)
        fer2013 = np.where(np.eye(7, dtype=bool)[top], sure, (1 - sure) / 6)
        return {"fer2013": fer2013, "ferplus": np.full((len(crops), 8), 1 / 8)}

    return EvaluatedModel(FACTS, heads, 4, predict)


def test_the_differences_of_two_known_models_are_those_counted_by_hand():
    # 20 faces: 10 are right with both, 5 with the first alone, 1 with the second alone, 4 with neither.
    first, second = _right_on(range(15)), _right_on([*range(10), 15])
    (found,) = compare(first, second, _faces([0] * 20)).differences
    assert (found.labels, found.n) == ("fer2013", 20)
    assert found.accuracy == (15 / 20, 11 / 20)
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.accuracy_difference == pytest.approx(-4 / 20)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # 0 or 1 of 6 coins, on either side
    assert not found.accuracy_differs
    right, wrong = -np.log(0.9), -np.log(0.1 / 6)
    assert found.nll == pytest.approx(((15 * right + 5 * wrong) / 20, (11 * right + 9 * wrong) / 20))
    assert found.nll_difference == pytest.approx(4 / 20 * (wrong - right))


def test_models_of_equal_accuracy_may_differ_significantly_in_likelihood():
    first, second = _right_on(range(19), sure=0.5), _right_on(range(19), sure=0.9)
    (found,) = compare(first, second, _faces([0] * 20)).differences
    assert (found.accuracy_difference, found.p_value, found.accuracy_differs) == (0, 1, False)
    assert found.nll_differs
    # 19 faces gain by 0.9 in place of 0.5, one loses: its label had a sixth of 0.5, and has one of 0.1.
    assert found.nll_difference == pytest.approx((19 * np.log(0.5 / 0.9) + np.log(0.5 / 0.1)) / 20)


def test_models_differ_significantly_where_one_alone_is_right():
    (found,) = compare(_right_on([0]), _right_on(range(20)), _faces([0] * 20)).differences
    assert (found.only_first, found.only_second) == (0, 19)
    assert found.accuracy_differs
    assert found.nll_differs
    low, high = found.accuracy_interval
    assert 0 < low < 19 / 20 < high <= 1


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (5, 1), (1, 5), (7, 7), (300, 240), (2000, 1500)])
def test_mcnemars_p_value_is_that_of_a_binomial_test(counts):
    expected = 1.0 if sum(counts) == 0 else stats.binomtest(counts[0], sum(counts)).pvalue
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_paired_shares_holds_the_difference_nineteen_times_in_twenty():
    random = np.random.default_rng(0)
    # Of 60 faces one in eight is right with the first alone, one in twenty with the second alone.
    drawn = random.multinomial(60, [1 / 8, 1 / 20, 1 - 1 / 8 - 1 / 20], 4000)
    intervals = np.array([share_interval(a, b, 60) for a, b, _ in drawn])
    truth = 1 / 20 - 1 / 8
    held = ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean()
    assert 0.94 < held < 0.97


def test_the_interval_of_paired_shares_turns_with_the_models():
    low, high = share_interval(5, 1, 20)
    assert share_interval(1, 5, 20) == pytest.approx((-high, -low))
    assert share_interval(0, 0, 20)[1] > 0


def test_the_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 500)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)


def test_probabilities_that_do_not_fit_the_labels_are_refused():
    with pytest.raises(DataError, match="Received: 3"):
        difference(np.eye(7)[:2], np.eye(7)[:3], np.array([0, 1]), "fer2013", "fer2013")


def test_a_label_set_with_a_single_face_is_left_out_with_a_warning(caplog):
    votes = np.zeros((20, 10), np.uint8)
    votes[:, 8] = 10  # "unknown", which both protocols leave out
    votes[3] = [10, *[0] * 9]
    faces = replace(_faces([0] * 20), votes=votes)

    model = _right_on(range(15), heads={**HEADS, "ferplus": FERPLUS})
    found = compare(model, model, faces).differences
    assert [(d.labels, d.n) for d in found] == [("fer2013", 20)]
    assert caplog.messages == [
        "faces.csv: left out, with too few faces of PublicTest: ferplus majority (1), ferplus argmax (1)"
    ]


def test_a_single_face_is_too_few():
    with pytest.raises(DataError, match=r"two faces or more.*Received, of PublicTest: fer2013 \(1\)"):
        compare(_right_on([0]), _right_on([]), _faces([0]))


def test_models_are_compared_in_the_taxonomies_of_both():
    both = {"fer2013": FER2013, "ferplus": FERPLUS}
    assert list(shared_heads(both, HEADS)) == ["fer2013"]
    assert list(shared_heads(both, both, "ferplus")) == ["ferplus"]
    with pytest.raises(TaxonomyError, match="'ferplus'; both have fer2013"):
        shared_heads(both, HEADS, "ferplus")
    swapped = {"fer2013": Taxonomy("fer2013", FER2013.labels[::-1])}
    with pytest.raises(TaxonomyError, match="cannot be compared"):
        shared_heads(HEADS, swapped)
