"""Rare classes: the logit-adjusted loss, and heads that are trained on a frozen body."""

from __future__ import annotations

import numpy as np
import pytest

from ferkit.core.errors import RecipeError, TrainingError

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.data import load_data
from ferkit.training.recipe import parse_recipe
from ferkit.training.targets import label_frequencies
from ferkit.training.trainer import set_up, train
from tinyruns import tiny

pytestmark = pytest.mark.slow

PLAIN = {"augment": {}, "label_smoothing": 0.0, "optimizer": {"name": "sgd", "learning_rate": 0.05}}


@pytest.fixture(scope="module")
def faces():
    return load_data("cartoon:60:2", cache=False)


def test_frequencies_are_those_of_the_targets_and_never_zero():
    found = label_frequencies(np.array([[2, 0, 0], [1, 1, 0]], np.float32))
    np.testing.assert_allclose(found, np.array([3 + 1 / 3, 1 + 1 / 3, 1 / 3]) / 5)


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_log_frequencies_are_added_to_the_logits_in_training_only(faces, tau):
    setup = set_up(tiny(**PLAIN, loss={"logit_adjustment": tau}, heads={"label": 1.0}), faces)
    labels = np.array([0, 3, 3, 6])
    logits = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32)
    given = {"logits_fer2013": logits, "targets_fer2013": np.eye(7, dtype=np.float32)[labels]}

    def loss(scores):
        return -(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))[np.arange(4), labels].mean()

    training_targets = np.eye(7, dtype=np.float32)[setup.training.labels]
    adjusted = logits + tau * np.log(label_frequencies(training_targets))
    assert float(setup.model.compute_loss(y_pred=given, training=True)) == pytest.approx(
        loss(adjusted), rel=1e-5
    )
    assert float(setup.model.compute_loss(y_pred=given, training=False)) == pytest.approx(
        loss(logits), rel=1e-5
    )


def test_balancing_twice_is_refused():
    with pytest.raises(RecipeError, match="both correct for the frequencies of labels"):
        tiny(loss={"logit_adjustment": 1.0}, data={"balance": "copies"})


def test_a_frozen_body_keeps_its_weights_and_statistics_and_the_heads_learn(faces, tmp_path):
    train(tiny(**PLAIN, epochs=1), faces, tmp_path / "body", tensorboard=False)
    recipe = tiny(**PLAIN, epochs=1, freeze_body=True, loss={"logit_adjustment": 1.0})
    train(recipe, faces, tmp_path / "heads", init=tmp_path / "body", tensorboard=False)
    before, after = (np.load(tmp_path / name / "weights.npz") for name in ("body", "heads"))
    arrays = [name for name in before.files if name != "meta"]
    changed = {name for name in arrays if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in arrays if name.startswith("head/")}


def test_a_frozen_body_needs_weights_and_no_precise_statistics(faces, tmp_path):
    with pytest.raises(TrainingError, match="--init"):
        train(tiny(freeze_body=True), faces, tmp_path / "run")
    with pytest.raises(RecipeError, match="leave one of them out"):
        parse_recipe(
            {"name": "x", "model": {"name": "seed-cnn"}, "freeze_body": True, "precise_batch_norm": 64}
        )
