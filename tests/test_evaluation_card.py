"""A model card says what its model file says, and of FER2013 only where the faces are FER2013's."""

from __future__ import annotations

import pytest

from ferkit.core.modelfile import ModelInfo
from ferkit.export.card import render_card
from modelzoo import model_info

FER2013_DATA = {
    # As in the embedded models: FER2013 without PrivateTest and without its 11 constant training images.
    "faces": "5bd56e0a6264bfe012aa49b46b2b87bd1f8b631a31cd0489385489abb3911129",
    "training": 28_698,
    "validation": 3_589,
    "train_split": "Training",
    "validation_split": "PublicTest",
}


def row(n: int, *, labels: str = "fer2013", without_leaks: bool = False) -> dict[str, object]:
    """What a model file tells of one measurement."""
    return {
        "split": "PublicTest",
        "selection_split": True,
        "tta": "none",
        "labels": labels,
        "without_leaks": without_leaks,
        "n": n,
        "accuracy": 0.5,
        "interval": [0.4, 0.6],
        "macro_f1": 0.5,
        "ece": 0.1,
        "ece_out_of_fold": None,
        "recall": {"happy": 0.5},
    }


def info_with(**changes: object) -> ModelInfo:
    return model_info().model_copy(update={"metrics": [row(100)], **changes})


def recipe(schedule: str, epochs: int, **more: object) -> dict[str, object]:
    """As much of a recipe as a card tells of."""
    return {
        "name": "r",
        "epochs": epochs,
        "batch_size": 8,
        "seed": 0,
        "optimizer": {"name": "sgd"},
        "schedule": {"name": schedule},
        **more,
    }


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (FER2013_DATA, True),
        ({**FER2013_DATA, "faces": "with PrivateTest, another digest", "training": 28_709}, True),
        ({"fingerprint": FER2013_DATA["faces"]}, True),
        ({**FER2013_DATA, "faces": "other faces", "training": 300, "validation": 30}, False),
        ({**FER2013_DATA, "faces": "other faces", "validation": 3_590}, False),
        ({}, False),
    ],
)
def test_what_is_known_of_fer2013_is_said_of_its_faces_alone(data: dict[str, object], told: bool) -> None:
    # The labels are called fer2013 and ferplus in all of them.
    card = render_card(info_with(data=data), 1000)
    assert ("FER2013's label is a search query" in card) is told
    assert ("celebrities" in card) is told
    assert "280" not in card
    assert "What it tells, and what it must not decide" in card


@pytest.mark.parametrize("data", [FER2013_DATA, {}])
def test_leaks_are_counted_by_the_figures_with_and_without_them(data: dict[str, object]) -> None:
    # FER+ majority labels only a part of the faces, and so of the leaks.
    labels = [("ferplus majority", 90, 85), ("fer2013", 100, 88)]
    metrics = [
        row(n, labels=name, without_leaks=without)
        for name, whole, kept in labels
        for without, n in ((False, whole), (True, kept))
    ]
    card = render_card(info_with(data=data, metrics=metrics), 1000)
    assert "**12 PublicTest images also stand in Training**" in card


def test_no_leaks_are_not_mentioned() -> None:
    assert "also stand in Training" not in render_card(
        info_with(metrics=[row(100), row(100, without_leaks=True)]), 1000
    )


@pytest.mark.parametrize(
    ("schedule", "begun", "epochs", "words"),
    [
        ("cosine", 64, 40, "after epoch 17, so its learning rate first fell more slowly than the recipe's"),
        ("cosine", 20, 40, "after epoch 17, so its learning rate first fell faster than the recipe's"),
        ("step", 64, 40, "after epoch 17\n"),
        ("constant", 20, 40, "after epoch 17\n"),
    ],
)
def test_a_changed_number_of_epochs_tells_what_it_did_to_the_learning_rate(
    schedule: str, begun: int, epochs: int, words: str
) -> None:
    changed = [{"after": 17, "epochs": [begun, epochs]}]
    card = render_card(info_with(data={"changed": changed}, recipe=recipe(schedule, epochs)), 1000)
    assert f"- The run began with {begun} epochs and was set to {epochs} {words}" in card


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_votes_are_named_where_the_recipe_learns_from_them_and_not_by_the_labels_name(weight: float) -> None:
    heads = {"label": 1.0, "ferplus": weight}
    card = render_card(info_with(recipe=recipe("cosine", 3, heads=heads)), 1000)
    assert ("FER+ votes as soft labels of the second head" in card) is (weight > 0)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"calibrated": False}, "ten-crop answers before calibration about the training faces in fer2013,"),
        ({"calibrated": True}, "ten-crop calibrated answers about the training faces in fer2013,"),
        # Files of version 0.1 do not say; their teachers' answers were taken as the files give them.
        ({}, "ten-crop calibrated answers about the training faces in fer2013,"),
    ],
)
def test_a_students_card_tells_which_answers_it_learnt_from(told: dict[str, object], words: str) -> None:
    teacher = {"models": [{"name": "wise"}], "heads": ["fer2013"], "tta": "ten-crop", **told}
    assert f"- Distilled from `wise`: {words}" in render_card(info_with(data={"teacher": teacher}), 1000)


def member(**changes: object) -> dict[str, object]:
    """What an ensemble's file tells of one of its members."""
    told = {
        "name": "small",
        "version": "2",
        "sha256": "ab" * 32,
        "weights": {"fer2013": 0.25, "ferplus": 0.75},
        "architecture": "vgg",
        "parameters": 1234,
        "recipe": recipe("cosine", 3),
        "data": FER2013_DATA,
    }
    return {**told, **changes}


def test_an_ensembles_card_tells_of_each_member_what_made_it() -> None:
    taught = {
        **FER2013_DATA,
        "teacher": {"models": [{"name": "wise"}], "heads": ["fer2013"], "tta": "flip"},
    }
    members = [
        member(),
        member(name="pupil", data=taught),
        member(name="pair", recipe={"ensemble": {}}, data={}),
    ]
    card = render_card(info_with(architecture="ensemble", members=members), 1000)
    assert "ensemble of 3 members, 0 parameters" in card
    assert "| 1 | small 2 | vgg | 1,234 | 0.250 | 0.750 | `abababababababab` |" in card
    first, second, third = card[card.index("### Member 1") : card.index("## Figures")].split("### Member")[1:]
    assert "28,698 faces of Training; no other images and no pretrained weights" in first
    assert "- Recipe `r`: 3 epochs" in first
    assert "- Distilled from `wise`: flip calibrated answers" in second
    assert third.strip() == "3, pair\n\n- An ensemble itself, which votes as one"
    assert "FER2013's label is a search query" in card, "that is what its members learnt from"


def test_a_vote_of_which_nothing_was_measured_has_a_card() -> None:
    card = render_card(info_with(members=[member()], recipe={"ensemble": {"weights": {}}}, metrics=[]), 1000)
    assert "Nothing was measured." in card
    assert "- fer2013, ferplus: nothing was fitted to labels of it" in card
