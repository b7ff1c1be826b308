"""A model knows the data that it was trained, selected or fitted on, with votes or without them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ferkit.data import SPLITS, FaceDataset, faces_digest, load_data, make_dataset
from ferkit.evaluation.subject import facts_of, knows_data
from modelzoo import model_info


@pytest.fixture
def voted() -> FaceDataset:
    return load_data("cartoon:21", cache=False)


@pytest.fixture
def bare(voted: FaceDataset) -> FaceDataset:
    """The same faces without votes."""
    return make_dataset(voted.images, voted.labels, voted.split, voted.taxonomy, source="x")


def test_data_are_known_whether_they_come_with_votes_or_without(
    voted: FaceDataset, bare: FaceDataset
) -> None:
    for seen in (voted, bare):
        data = {"fingerprint": seen.fingerprint, "faces": faces_digest(seen)}
        facts = facts_of(model_info().model_copy(update={"data": data}), 1, None)
        assert knows_data(facts, voted)
        assert knows_data(facts, bare)
        assert not knows_data(facts, load_data("cartoon:21:9", cache=False))


def test_more_faces_in_privatetest_do_not_make_data_unknown(voted: FaceDataset) -> None:
    """Models are trained without PrivateTest; Kaggle's own file holds it."""
    rest = voted.select(voted.split != SPLITS.index("PrivateTest"))
    assert 0 < len(rest) < len(voted)
    facts = facts_of(model_info().model_copy(update={"data": {"faces": faces_digest(rest)}}), 1, None)
    assert knows_data(facts, voted)
    assert not knows_data(facts, voted.select(voted.split != SPLITS.index("Training")))


def test_an_ensemble_knows_what_its_members_know(voted: FaceDataset) -> None:
    members = [{"data": {"fingerprint": "something else"}}, {"data": {"faces": faces_digest(voted)}}, {}]
    facts = facts_of(model_info().model_copy(update={"members": members}), 1, None)
    assert knows_data(facts, voted)


def test_a_model_tells_the_splits_that_it_and_its_members_were_trained_and_chosen_on() -> None:
    own = {"train_split": "PrivateTest", "validation_split": "PublicTest"}
    facts = facts_of(model_info().model_copy(update={"data": own}), 1, None)
    assert (facts.trained_on, facts.fitted_on, facts.train_splits) == (
        ("PrivateTest",),
        ("PublicTest",),
        ("PrivateTest",),
    )
    members = [{"data": own}, {"data": {**own, "train_split": "Training"}}, {}]
    vote = facts_of(model_info().model_copy(update={"members": members}), 1, None)
    assert (vote.trained_on, vote.fitted_on) == (("PrivateTest", "Training"), ("PublicTest",))


def test_leaks_into_what_a_model_that_does_not_tell_is_measured_on_come_from_training() -> None:
    facts = facts_of(model_info(), 1, None)
    assert (facts.trained_on, facts.train_splits) == ((), ("Training",))


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"nll": 0.9, "ece": 0.03}, (0.9, 0.03)),  # files of before told only what is out of fold
        ({"nll": 0.8, "ece": 0.02, "nll_out_of_fold": 0.9, "ece_out_of_fold": 0.03}, (0.9, 0.03)),
    ],
)
def test_a_vote_tells_what_it_is_worth_out_of_fold(
    figures: dict[str, float], told: tuple[float, float]
) -> None:
    row = {
        "split": "PublicTest", "tta": "none", "labels": "fer2013", "n": 20, "accuracy": 0.5,
        "interval": [0.3, 0.7], "fit": "weights and temperature, out of fold", **figures,
    }  # fmt: skip
    others = [{**row, "fit": "temperature, out of fold"}, {"accuracy": 1}]
    info = model_info().model_copy(update={"metrics": [row, *others]})
    (held_out,) = facts_of(info, 1, None).held_out
    assert (held_out.nll, held_out.ece, held_out.interval) == (*told, (0.3, 0.7))


@pytest.mark.parametrize("named", [True, False])
def test_a_model_that_does_not_tell_is_taken_to_know_data_with_named_splits(
    voted: FaceDataset, named: bool
) -> None:
    assert knows_data(facts_of(model_info(), 1, None), replace(voted, split_named=named)) is named
