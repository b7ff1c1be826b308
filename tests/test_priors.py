"""Priors: Bayes' rule, expectation maximisation, and what is accepted as a prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferkit.core.errors import FerkitError, TaxonomyError
from ferkit.core.modelfile import HeadInfo, Join
from ferkit.core.priors import estimate_prior, read_prior, shift_prior

HEAD = HeadInfo(id="mood", labels=("good", "bad"), prior=(0.8, 0.2))


def gaussian_classes(counts: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of two classes around -1 and 1, and their exact posterior under equal priors."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], counts)
    x = rng.normal(np.where(labels == 0, -1.0, 1.0), 1.0)
    p = 1 / (1 + np.exp(-2 * x))  # the ratio of two normal densities of deviation 1
    return np.column_stack([1 - p, p]), labels


def test_a_shift_is_bayes_rule_and_is_undone_by_the_shift_back():
    p = np.array([[0.8, 0.2], [0.3, 0.7]])
    shifted = shift_prior(p, (0.5, 0.5), (0.9, 0.1))
    np.testing.assert_allclose(shifted[0], [0.72 / 0.74, 0.02 / 0.74])
    np.testing.assert_allclose(shift_prior(shifted, (0.9, 0.1), (0.5, 0.5)), p)


def test_an_estimate_finds_the_frequencies_and_improves_the_predictions():
    p, labels = gaussian_classes((4500, 500))
    estimated = estimate_prior(p, (0.5, 0.5), strength=0)
    assert estimated[1] == pytest.approx(0.1, abs=0.02)
    rows = np.arange(len(labels))

    def loss(predicted):
        return -np.log(predicted[rows, labels]).mean()

    assert loss(shift_prior(p, (0.5, 0.5), estimated)) < loss(p) - 0.05


def test_few_faces_change_the_prior_little_and_none_not_at_all():
    p, _ = gaussian_classes((5, 0))
    few = estimate_prior(p, (0.5, 0.5), strength=50)
    assert 0.5 < few[0] < 0.56
    np.testing.assert_allclose(estimate_prior(np.zeros((0, 2)), (0.8, 0.2)), (0.8, 0.2))


def test_names_files_and_mappings(tmp_path: Path):
    assert read_prior(None, HEAD) is None
    np.testing.assert_allclose(read_prior("uniform", HEAD), (0.5, 0.5))
    np.testing.assert_allclose(read_prior("training", HEAD), (0.8, 0.2))
    np.testing.assert_allclose(read_prior({"bad": 3, "good": 1}, HEAD), (0.25, 0.75))
    (tmp_path / "p.toml").write_text("good = 1\nbad = 3\n")
    np.testing.assert_allclose(read_prior(tmp_path / "p.toml", HEAD), (0.25, 0.75))


def test_the_training_prior_of_a_join_is_that_before_its_exponent():
    join = Join(weights={"a": 0.5, "b": 0.5}, offsets=(0, 0), votes=0.5, prior_exponent=0.5)
    head = HEAD.model_copy(update={"join": join, "prior": (2 / 3, 1 / 3)})
    np.testing.assert_allclose(read_prior("training", head), (0.8, 0.2))


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        ({"good": 1}, TaxonomyError, "bad missing"),
        ({"good": 1, "bad": 1, "ugly": 1}, TaxonomyError, "ugly unknown"),
        ({"good": 1, "bad": 0}, FerkitError, "positive.*bad = 0"),
        ({"good": 1, "bad": float("nan")}, FerkitError, "positive"),
        ({"good": 1, "bad": True}, FerkitError, "positive"),
        ("absent.toml", FerkitError, "cannot read the prior absent.toml.*training, uniform"),
    ],
)
def test_other_priors_are_refused(prior, error, message):
    with pytest.raises(error, match=message):
        read_prior(prior, HEAD)


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path):
    (tmp_path / "p.toml").write_text("good: 1")
    with pytest.raises(FerkitError, match="cannot read the prior"):
        read_prior(tmp_path / "p.toml", HEAD)


@pytest.mark.parametrize("prior", [(), (1.0, 0.0)])
def test_an_output_without_a_known_prior_keeps_its_own(prior):
    head = HEAD.model_copy(update={"prior": prior})
    assert read_prior(None, head) is None
    with pytest.raises(TaxonomyError, match="export the model again"):
        read_prior("uniform", head)
