"""A model knows the data that it was trained, selected or fitted on, with votes or without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ferkit.core.modelfile import MemberInfo, ModelInfo, Provenance
from ferkit.data import SPLITS, FaceDataset, faces_digest, load_data, make_dataset
from ferkit.evaluation.evaluate import EVERYTHING
from ferkit.evaluation.model import facts_of, knows_data, weights_fitted_here
from modelzoo import metric, model_info


@pytest.fixture
def voted() -> FaceDataset:
    return load_data("cartoon:21", cache=False)


@pytest.fixture
def bare(voted: FaceDataset) -> FaceDataset:
    """The same faces without votes."""
    return make_dataset(voted.images, voted.labels, voted.split, voted.taxonomy, source="x")


def trained(**record: Any) -> ModelInfo:
    """A model with this record."""
    return model_info().model_copy(update={"training": Provenance(**record)})


def ensemble(*records: dict[str, Any], **own: Any) -> ModelInfo:
    """An ensemble with this record, and one member for each of the other records."""
    members = tuple(
        MemberInfo(name="m", architecture="vgg", sha256="", weights={}, training=Provenance(**record))
        for record in records
    )
    return trained(**own).model_copy(update={"members": members})


def test_data_are_known_whether_they_come_with_votes_or_without(
    voted: FaceDataset, bare: FaceDataset
) -> None:
    for seen in (voted, bare):
        facts = facts_of(trained(fingerprint=seen.fingerprint, faces=faces_digest(seen)))
        assert knows_data(facts, voted)
        assert knows_data(facts, bare)
        assert not knows_data(facts, load_data("cartoon:21:9", cache=False))


def test_more_faces_in_privatetest_do_not_make_data_unknown(voted: FaceDataset) -> None:
    """Models are trained without PrivateTest; Kaggle's own file holds it."""
    rest = voted.select(voted.split != SPLITS.index("PrivateTest"))
    assert 0 < len(rest) < len(voted)
    facts = facts_of(trained(faces=faces_digest(rest)))
    assert knows_data(facts, voted)
    assert not knows_data(facts, voted.select(voted.split != SPLITS.index("Training")))


def test_an_ensemble_knows_the_data_of_its_members(voted: FaceDataset) -> None:
    facts = facts_of(ensemble({"fingerprint": "other"}, {"faces": faces_digest(voted)}, {}))
    assert knows_data(facts, voted)


def test_the_splits_of_a_model_and_its_members_are_those_trained_selected_and_fitted_on() -> None:
    own = {"trained_on": "PrivateTest", "selected_on": "PublicTest"}
    facts = facts_of(trained(**own))
    assert (facts.trained_on, facts.fitted_on, facts.train_splits) == (
        ("PrivateTest",),
        ("PublicTest",),
        ("PrivateTest",),
    )
    several = facts_of(ensemble(own, {**own, "trained_on": "Training"}, {}, fitted_on="Training"))
    assert several.trained_on == ("PrivateTest", "Training")
    assert several.fitted_on == ("Training", "PublicTest")


def test_seeds_epochs_and_hours_of_an_ensemble_are_those_of_its_members() -> None:
    records = [{"seeds": (1,), "epochs": 20, "hours": 1.5}, {"seeds": (2,), "epochs": 30, "hours": 0.5}]
    facts = facts_of(ensemble(*records))
    assert (facts.members, facts.seeds, facts.epochs, facts.hours) == (2, (1, 2), 30, 2.0)
    assert facts_of(ensemble(*records, {})).hours is None, "a sum of some would be too small"


def test_leaks_of_a_model_without_a_record_are_counted_against_training() -> None:
    facts = facts_of(model_info())
    assert (facts.trained_on, facts.train_splits) == ((), ("Training",))


@pytest.mark.parametrize(
    ("fit", "fitted"), [("weights and temperature", True), ("temperature", False), ("nothing", False)]
)
def test_weights_are_in_sample_on_the_split_that_they_were_fitted_on(
    voted: FaceDataset, fit: str, fitted: bool
) -> None:
    record = {"faces": faces_digest(voted), "fitted_on": "PublicTest", "fitted": {"fer2013": fit}}
    info = ensemble({}, {}, **record).model_copy(update={"metrics": (metric(20, fit=fit),)})
    facts = facts_of(info)
    assert (facts.held_out == info.metrics) is fitted
    assert weights_fitted_here(facts, voted, "PublicTest") is fitted
    assert weights_fitted_here(facts, voted, EVERYTHING) is fitted
    assert not weights_fitted_here(facts, voted, "Training")
    assert not weights_fitted_here(facts, load_data("cartoon:21:9", cache=False), "PublicTest")


@pytest.mark.parametrize("named", [True, False])
def test_a_model_without_a_record_is_assumed_to_know_data_with_named_splits(
    voted: FaceDataset, named: bool
) -> None:
    assert knows_data(facts_of(model_info()), replace(voted, split_named=named)) is named
