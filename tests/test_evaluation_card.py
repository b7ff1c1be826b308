"""A model card holds the metadata of its file, and describes FER2013 only where the faces are FER2013's."""

from __future__ import annotations

from typing import Any

import pytest

from ferkit.core.modelfile import MemberInfo, ModelInfo, Parity, Provenance, Teachers
from ferkit.export.card import render_card
from modelzoo import metric, model_info

FER2013_DATA: dict[str, Any] = {
    # As in the embedded models: FER2013 without PrivateTest and without its 11 constant training images.
    "faces": "5bd56e0a6264bfe012aa49b46b2b87bd1f8b631a31cd0489385489abb3911129",
    "training": 28_698,
    "validation": 3_589,
    "trained_on": "Training",
    "selected_on": "PublicTest",
}


def info_with(training: dict[str, Any] | None = None, **changes: Any) -> ModelInfo:
    record = Provenance(**training or {})
    return model_info().model_copy(update={"metrics": (metric(100),), "training": record, **changes})


def recipe(schedule: str, epochs: int, **more: object) -> dict[str, object]:
    """The keys of a recipe that a card shows."""
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
    ("data", "described"),
    [
        (FER2013_DATA, True),
        ({**FER2013_DATA, "faces": "with PrivateTest, another digest", "training": 28_709}, True),
        ({"fingerprint": FER2013_DATA["faces"]}, True),
        ({**FER2013_DATA, "faces": "other faces", "training": 300, "validation": 30}, False),
        ({**FER2013_DATA, "faces": "other faces", "validation": 3_590}, False),
        ({}, False),
    ],
)
def test_fer2013_is_described_for_its_faces_alone(data: dict[str, Any], described: bool) -> None:
    # The labels are called fer2013 and ferplus in all of them.
    card = render_card(info_with(data), 1000)
    assert ("FER2013's label is a search query" in card) is described
    assert ("celebrities" in card) is described
    assert "280" not in card
    assert "Do not use it to decide about people" in card


@pytest.mark.parametrize("data", [FER2013_DATA, {}])
def test_leaks_are_counted_by_the_figures_with_and_without_them(data: dict[str, Any]) -> None:
    # FER+ majority labels only a part of the faces, and so of the leaks.
    labels = [("ferplus majority", 90, 85), ("fer2013", 100, 88)]
    metrics = tuple(
        metric(n, labels=name, without_leaks=without)
        for name, whole, kept in labels
        for without, n in ((False, whole), (True, kept))
    )
    card = render_card(info_with(data, metrics=metrics), 1000)
    assert "**12 PublicTest images are duplicates of training images**" in card


def test_no_leaks_are_not_mentioned() -> None:
    metrics = (metric(100), metric(100, without_leaks=True))
    assert "duplicates" not in render_card(info_with(metrics=metrics), 1000)


@pytest.mark.parametrize(
    ("data", "warned"),
    [
        ({"selected_on": "PublicTest"}, True),
        ({"fitted_on": "PublicTest"}, True),
        ({"selected_on": "Training"}, False),
    ],
)
def test_figures_of_a_split_that_was_selected_or_fitted_on_are_no_test_results(
    data: dict[str, Any], warned: bool
) -> None:
    card = render_card(info_with(data), 1000)
    assert ("Measured on PublicTest, the *selection split*" in card) is warned
    assert ("no test results" in card) is warned


@pytest.mark.parametrize(
    ("schedule", "begun", "epochs", "words"),
    [
        (
            "cosine",
            64,
            40,
            "after epoch 17; until then the learning rate fell more slowly than in the recipe",
        ),
        ("cosine", 20, 40, "after epoch 17; until then the learning rate fell faster than in the recipe"),
        ("step", 64, 40, "after epoch 17\n"),
        ("constant", 20, 40, "after epoch 17\n"),
    ],
)
def test_a_changed_number_of_epochs_is_stated_with_its_effect_on_the_learning_rate(
    schedule: str, begun: int, epochs: int, words: str
) -> None:
    data = {"changed": [{"after": 17, "epochs": [begun, epochs]}]}
    card = render_card(info_with(data, recipe=recipe(schedule, epochs)), 1000)
    assert f"changed from {begun} to {epochs} {words}" in card


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_votes_are_named_where_the_recipe_uses_them_and_not_by_the_labels_name(weight: float) -> None:
    heads = {"label": 1.0, "ferplus": weight}
    card = render_card(info_with(recipe=recipe("cosine", 3, heads=heads)), 1000)
    assert ("FER+ votes as soft targets of the second head" in card) is (weight > 0)


def taught(**options: Any) -> Teachers:
    return Teachers(models=({"name": "wise"},), heads=("fer2013",), weight=0.9, temperature=2.0, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"calibrated": False, "online": True},
            "Online distillation from `wise`: their uncalibrated predictions for each augmented batch",
        ),
        (
            {"tta": "ten-crop"},
            "Offline distillation from `wise`: their calibrated predictions for the training faces, tta ten",
        ),
    ],
)
def test_a_students_card_states_how_it_was_distilled(options: dict[str, Any], words: str) -> None:
    card = render_card(info_with({"teachers": taught(**options)}), 1000)
    assert words in card
    assert "in fer2013; temperature 2, 90 % of these heads' loss" in card
    assert "no pretrained weights" not in card


def test_the_cards_of_a_network_state_initial_weights_machine_and_parity() -> None:
    data = {"init": {"name": "small"}, "hours": 1.25, "processor": "CPU X", "cores": 2}
    parity = Parity(largest_difference=0.003, same_label=0.9995, faces=100)
    card = render_card(info_with(data, parity=parity), 1000)
    assert "initial weights: `small`" in card
    assert "- 1.2 hours on CPU X, 2 core(s)" in card
    assert "largest difference of a probability 3.0e-03, same label on 99.95 % of the faces" in card


def member(**changes: Any) -> MemberInfo:
    known = {
        "name": "small",
        "version": "2",
        "sha256": "ab" * 32,
        "weights": {"fer2013": 0.25, "ferplus": 0.75},
        "architecture": "vgg",
        "parameters": 1234,
        "recipe": recipe("cosine", 3),
        "training": Provenance(**FER2013_DATA),
    }
    return MemberInfo(**{**known, **changes})


def test_an_ensembles_card_states_how_each_member_was_trained() -> None:
    student = Provenance(**FER2013_DATA, teachers=taught(tta="flip"))
    members = (member(), member(name="pupil", training=student, weights={"fer2013": 0.75}))
    card = render_card(info_with(architecture="ensemble", members=members), 1000)
    assert "ensemble of 2 members, 0 parameters" in card
    assert "| 1 | small 2 | vgg | 1,234 | 0.250 | 0.750 | `abababababababab` |" in card
    assert "| 2 | pupil 2 | vgg | 1,234 | 0.750 | - | `abababababababab` |" in card
    first, second = card[card.index("### Member 1") : card.index("## Figures")].split("### Member")[1:]
    assert "28,698 faces of Training; no other images and no pretrained weights" in first
    assert "- Recipe `r`: 3 epochs" in first
    assert "- Offline distillation from `wise`" in second
    assert "FER2013's label is a search query" in card, "its members were trained on it"
    assert "selection split" in card, "its members were selected on it"


def test_an_ensembles_card_states_what_was_fitted_and_that_figures_are_out_of_fold() -> None:
    data = {
        "source": "faces.csv", "fingerprint": "cd" * 32, "fitted_on": "PublicTest",
        "fitted": {"fer2013": "weights and temperature", "ferplus": "nothing"},
    }  # fmt: skip
    card = render_card(info_with(data, members=(member(), member())), 1000)
    fingerprint = f"`{'cd' * 8}`"
    assert (
        f"- fer2013: weights and temperature fitted on PublicTest of faces.csv, fingerprint {fingerprint}"
        in card
    )
    assert "- ferplus: nothing was fitted to its labels" in card
    assert (
        "Accuracy, macro F1 and recall are those of ensembles whose weights were fitted to the other" in card
    )


def test_an_ensemble_without_figures_has_a_card() -> None:
    card = render_card(info_with(members=(member(),), metrics=()), 1000)
    assert "Nothing was measured." in card
    assert "- fer2013, ferplus: nothing was fitted to its labels" in card
