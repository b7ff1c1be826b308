"""Recipes: shipped ones load, overrides reach every key, and errors name the key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferkit.core.errors import RecipeError

pytest.importorskip("keras", reason="needs ferkit[train]")

from ferkit.augment import PRESETS
from ferkit.training.optimize import make_optimizer, plateau_rate
from ferkit.training.recipe import (
    ProgressivePart,
    describe_recipe,
    dump_recipe,
    load_recipe,
    model_params,
    parse_recipe,
    shipped_recipes,
)

MINIMAL = {"name": "x", "model": {"name": "seed-cnn"}}


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_survive_a_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "copy.toml"
    path.write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(path) == recipe


def test_every_architecture_has_a_recipe():
    from ferkit.models import list_architectures

    assert {load_recipe(name).model.name for name in shipped_recipes()} == set(list_architectures())


def test_the_seed_recipe_is_the_students():
    recipe = load_recipe("seed")
    assert recipe.epochs == 20
    assert recipe.optimizer.name == "adam"
    assert recipe.data.balance == "copies"
    assert (recipe.augment.mirror, recipe.augment.upside_down) == (0.5, 0.5)


def test_overrides_reach_nested_keys_and_keep_their_types():
    recipe = load_recipe(
        "seed",
        ["epochs=3", "optimizer.learning_rate=0.01", "model.params.dense=[8, 4]", "data.balance=weights"],
    )
    assert recipe.epochs == 3
    assert recipe.optimizer.learning_rate == 0.01
    assert recipe.model.params["dense"] == [8, 4]
    assert recipe.data.balance == "weights"


def test_a_preset_can_be_a_name_or_a_start():
    assert parse_recipe({**MINIMAL, "augment": "modern"}).augment.rotation == 12
    varied = parse_recipe({**MINIMAL, "augment": {"preset": "modern", "rotation": 3}}).augment
    assert (varied.rotation, varied.mirror) == (3, 0.5)
    assert load_recipe("seed", ["augment.preset=none"]).augment.mirror == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, r"unknown key epoch; did you mean .epochs.\?"),
        ({"optimizer": {"learnin_rate": 1}}, r"did you mean .learning_rate.\?"),
        ({"augment": {"preset": "modern", "mixupp": 1}}, r"did you mean .mixup.\?"),
        ({"colour": 3}, "unknown key colour; see `ferkit recipes NAME`"),
        ({"epochs": 2.5}, "epochs: .* fractional part. Received: 2.5"),
        ({"epochs": True}, "epochs: .* Received: True"),
        ({"epochs": 0}, "epochs: .* Received: 0"),
        ({"mixed_precision": "half"}, "mixed_precision: .*'off', 'auto', 'bfloat16' or 'float16'"),
        ({"data": {"train_split": "train"}}, "data.train_split: .*'Training', 'PublicTest' or 'PrivateTest'"),
        ({"model": {"name": "vgg19"}}, "unknown architecture 'vgg19'"),
        ({"model": {"name": "vgg", "params": {"wide": 1}}}, "'wide'"),
        ({"augment": "rainbow"}, "unknown augmentation preset 'rainbow'"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name"),
        ({"schedule": {"name": "step"}}, "needs milestones"),
        ({"precise_batch_norm": 100, "early_stopping": 3}, "leave one of them out"),
        ({"progressive": {"sizes": [32], "until": []}}, "as many ends"),
        ({"progressive": {"sizes": [40, 32], "until": [0.2, 0.4]}}, "sizes must rise"),
        ({"progressive": {"sizes": [8], "until": [0.2]}}, "sizes must rise from 16"),
        ({"progressive": {"sizes": [32, 40], "until": [0.4, 0.4]}}, "ends must rise"),
        ({"progressive": {"sizes": [32], "until": [1.0]}}, "ends must rise between 0 and 1"),
        (
            {"progressive": {"sizes": [32], "until": [0.5]}, "early_stopping": 3},
            "early_stopping and a plateau",
        ),
        ({"distil": {"weight": 1.5}}, "less than or equal to 1"),
        ({"distil": {"temperature": 0}}, "greater than or equal to 0.1"),
        ({"schedule": {"name": "step", "milestones": [5, 3]}}, "must rise"),
        ({"schedule": {"name": "plateau", "warmup_epochs": 1}}, "warmup_epochs goes with"),
        ({"heads": {"label": 0}}, "at least one head"),
        ({"name": "../x"}, "name: "),
    ],
)
def test_wrong_recipes_are_refused_by_key(changes, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**MINIMAL, **changes})


def test_a_preset_replaces_an_augmentation_that_spells_out_every_key(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(load_recipe("small")), "utf-8")
    assert load_recipe(path).augment.mirror == 0.5
    none = load_recipe(path, ["augment.preset=none"])
    assert none.augment == PRESETS["none"]
    assert load_recipe(path, ["augment.preset=none", "augment.mirror=0.2"]).augment.mirror == 0.2
    assert load_recipe(path, ["augment.mirror=0.2", "augment.preset=none"]).augment.mirror == 0.2
    # Where a recipe starts from a preset, what it adds to it stays.
    assert load_recipe("small", ["augment.preset=mirror"]).augment.erasing == 0.25
    assert load_recipe("small", ["augment=mirror", "augment.preset=none"]).augment == PRESETS["none"]


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_text(dump_recipe(load_recipe("small")), "utf-8-sig")
    assert load_recipe(path) == load_recipe("small")


def test_changes_to_the_network_of_given_weights_are_its_parameters_alone():
    changes = ["epochs=3", "model.params.dropout=0.5", "model.params.squeeze=0"]
    assert model_params(changes) == {"dropout": 0.5, "squeeze": 0}
    assert model_params(["model.params={dropout = 0.1}"]) == {"dropout": 0.1}
    assert model_params(["epochs=3"]) == {}
    for change in ("model.name=vgg", "model={name = 'vgg'}", "model=vgg", "model.params=3"):
        with pytest.raises(RecipeError, match=r"only model\.params\.KEY"):
            model_params([change])


def test_every_key_is_described():
    rows = {row["key"]: row for row in describe_recipe(load_recipe("small"))}
    assert rows["epochs"] == {
        "key": "epochs", "value": 40, "default": 20, "meaning": "passes over the training faces",
    }  # fmt: skip
    assert rows["augment.zoom"]["value"] == [0.87, 1.2]
    assert rows["model.params.filters"]["default"] == [48, 96, 192]
    assert all(row["meaning"] for name in shipped_recipes() for row in describe_recipe(load_recipe(name)))


def test_files_that_are_no_recipe_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="no recipe 'nothing'; shipped are"):
        load_recipe("nothing")
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ", "utf-8")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(bad)
    for override in ("epochs", "=3", "epochs.x=3"):
        with pytest.raises(RecipeError):
            load_recipe("seed", [override])


def rates(schedule, steps=10, epochs=10):
    recipe = parse_recipe(
        {**MINIMAL, "epochs": epochs, "optimizer": {"learning_rate": 0.5}, "schedule": schedule}
    )
    optimizer = make_optimizer(recipe, steps)
    rate = optimizer._learning_rate
    return [float(rate(np.int32(k))) if callable(rate) else float(rate) for k in range(steps * epochs + 1)]


def test_cosine_warms_up_to_the_rate_and_ends_at_its_share():
    values = rates({"name": "cosine", "warmup_epochs": 2, "final": 0.1})
    assert values[0] < 0.05
    assert values[20] == pytest.approx(0.5, abs=1e-4)
    assert max(values) == pytest.approx(0.5, abs=1e-4)
    # Half way between the peak and the end: the mean of 0.5 and 0.05.
    assert values[60] == pytest.approx(0.275, abs=1e-3)
    assert values[100] == pytest.approx(0.05, abs=1e-4)


def test_steps_fall_at_their_epochs_after_a_warm_up():
    values = rates({"name": "step", "milestones": [4, 8], "factor": 0.1, "warmup_epochs": 2})
    assert values[0] < 0.1
    assert values[21] == pytest.approx(0.5)
    assert values[39] == pytest.approx(0.5)
    assert values[40] == pytest.approx(0.05)
    assert values[80] == pytest.approx(0.005)


def test_a_plateau_rate_follows_from_the_history():
    recipe = parse_recipe(
        {
            **MINIMAL,
            "optimizer": {"learning_rate": 1.0},
            "schedule": {"name": "plateau", "patience": 2, "factor": 0.5},
        }
    )
    losses = [3.0, 2.0, 2.1, 2.2, 1.9, 2.0, 2.0, 2.0, 2.0]
    found = [plateau_rate(recipe, losses[:k]) for k in range(len(losses) + 1)]
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimisers_are_what_the_recipe_names(name):
    recipe = parse_recipe(
        {**MINIMAL, "optimizer": {"name": name, "weight_decay": 0.01, "clip_norm": 1.5, "ema": 0.9}}
    )
    optimizer = make_optimizer(recipe, 10)
    assert type(optimizer).__name__.lower() == name
    assert optimizer.global_clipnorm == 1.5
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)
    # Elsewhere weight decay is part of the loss.
    assert (optimizer.weight_decay or 0) == (0.01 if name == "adamw" else 0)


@given(
    epochs=st.integers(1, 200),
    until=st.lists(st.floats(0.001, 0.9999), min_size=1, max_size=3, unique=True).map(sorted),
)
def test_a_progressive_run_ends_on_faces_of_the_full_size(epochs, until):
    part = ProgressivePart(sizes=tuple(range(16, 16 + len(until))), until=tuple(until))
    sides = [part.side(epoch, epochs, 48) for epoch in range(epochs)]
    assert sides[-1] == 48
    assert sides == sorted(sides)


def test_progressive_sizes_take_their_shares_of_the_epochs():
    part = ProgressivePart(sizes=(32, 40), until=(0.4, 0.7))
    sides = [part.side(epoch, 10, 48) for epoch in range(10)]
    assert sides == [32] * 4 + [40] * 3 + [48] * 3
