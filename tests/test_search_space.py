"""Search spaces: what is sampled, how a configuration becomes a recipe, and which spaces are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("optuna", reason="needs ferkit[tune]")

import optuna

from ferkit.core.errors import SearchError
from ferkit.models.random_search_2021 import Params
from ferkit.models.seed_cnn import Params as SeedParams
from ferkit.search.space import Parameter, format_values, load_space, parse_space, same, shipped_spaces
from ferkit.training.recipe import load_recipe
from searchfiles import TINY

ONE = '[parameters.rate]\nkey = "optimizer.learning_rate"\nlow = 0.1\nhigh = 0.2\n'


def space_with(*tables: str, head: str = "") -> str:
    return f'name = "x"\nrecipe = "seed"\n{head}\n' + "\n".join(tables)


def sampled(text: str, times: int = 200) -> list[dict[str, object]]:
    space = parse_space(text)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    return [space.suggest(study.ask()) for _ in range(times)]


def test_three_valid_spaces_are_shipped() -> None:
    assert shipped_spaces() == ["compact", "seed", "study-2021"]
    for name in shipped_spaces():
        space = load_space(name)
        assert space.name == name
        assert space.description


def test_the_network_that_won_the_study_is_a_member_of_its_space() -> None:
    # Vulpe-Grigorași & Grigore 2021; the recipe `random-search-2021` is that network layer by layer.
    space, published = load_space("study-2021"), load_recipe("random-search-2021")
    values = {
        "depth": 5, "filters1": 256, "filters2": 512, "filters3": 384, "filters4": 192, "filters5": 384,
        "kernel": 3, "pool1": False, "pool2": True, "pool3": True, "pool4": True, "pool5": True,
        "conv_dropout": 0.4, "dense": 256, "dense_dropout": 0.3, "optimizer": "adam",
        "learning_rate": 0.001, "batch_size": 64,
    }  # fmt: skip
    assert [p.name for p in space.active(values)] == list(values)
    assert all(p.holds(values[p.name]) for p in space.active(values))
    recipe = space.recipe(values, "member")
    assert Params.model_validate(recipe.model.params) == Params()
    assert (recipe.optimizer, recipe.batch_size) == (published.optimizer, published.batch_size)


def test_the_students_network_is_a_member_of_its_space() -> None:
    space, published = load_space("seed"), load_recipe("seed")
    values = {
        "depth": 4, "filters1": 32, "filters2": 32, "filters3": 64, "filters4": 64, "kernel": 3,
        "dense_layers": 2, "dense1": 1024, "dense2": 4096, "dropout": 0.2, "balance": "copies",
        "augment": "student", "optimizer": "adam", "adam_rate": 0.001, "batch_size": 64,
    }  # fmt: skip
    assert [p.name for p in space.active(values)] == list(values)
    assert all(p.holds(values[p.name]) for p in space.active(values))
    recipe = space.recipe(values, "member")
    assert SeedParams.model_validate(recipe.model.params) == SeedParams()
    for part in ("data", "augment", "optimizer", "schedule", "heads", "batch_size"):
        assert getattr(recipe, part) == getattr(published, part), part


def test_a_parameter_is_sampled_only_where_its_condition_holds() -> None:
    found = sampled(TINY)
    assert {values["depth"] for values in found} == {1, 2}
    assert all(("filters2" in values) == (values["depth"] == 2) for values in found)


def test_a_configuration_becomes_a_recipe_with_its_lists_in_order() -> None:
    space = parse_space(TINY)
    values = {"depth": 2, "filters1": 8, "filters2": 4, "dense": 16, "rate": 0.01}
    recipe = space.recipe(values, "tiny-0001")
    assert recipe.name == "tiny-0001"
    assert recipe.model.params == {"filters": [8, 4], "dense": [16]}
    assert recipe.optimizer.learning_rate == 0.01
    assert recipe.epochs == 3
    assert recipe.augment == load_recipe("seed").augment  # untouched by the space


def test_the_winner_gets_the_keys_of_its_full_training() -> None:
    space = parse_space(TINY)
    values = {"depth": 1, "filters1": 8, "dense": 16, "rate": 0.01}
    recipe = space.recipe(values, "w", "d", winner=True)
    assert (recipe.epochs, recipe.augment.upside_down, recipe.augment.mirror) == (4, 0.0, 0.5)
    assert recipe.model == space.recipe(values, "x").model


def test_an_override_replaces_what_the_file_fixes() -> None:
    space = parse_space(TINY, overrides=["epochs=1", "model.params.kernel=5"])
    recipe = space.recipe({"depth": 1, "filters1": 8, "dense": 16, "rate": 0.01}, "x")
    assert (recipe.epochs, recipe.model.params["kernel"]) == (1, 5)


def test_two_ranges_for_one_key_take_turns() -> None:
    found = sampled(load_space("seed").text)
    for values in found:
        assert ("adam_rate" in values) == (values["optimizer"] == "adam")
        assert ("sgd_rate" in values) == (values["optimizer"] == "sgd")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('key = "batch_size"\nlow = 16\nhigh = 64\nstep = 16', {16, 32, 48, 64}),
        ('key = "batch_size"\nlow = 2\nhigh = 5', {2, 3, 4, 5}),
        ('key = "batch_size"\nlow = 1\nhigh = 3\nlog = true', {1, 2, 3}),
        ('key = "label_smoothing"\nlow = 0.0\nhigh = 0.3\nstep = 0.1', {0.0, 0.1, 0.2, 0.3}),
        ('key = "data.balance"\nchoice = ["none", "weights"]', {"none", "weights"}),
        ('key = "data.drop_flat"\nchoice = [true, false]', {True, False}),
    ],
)
def test_every_value_of_a_discrete_parameter_is_sampled(table: str, expected: set[object]) -> None:
    assert {values["p"] for values in sampled(space_with(f"[parameters.p]\n{table}"))} == expected


def test_a_logarithmic_range_is_uniform_in_the_logarithm() -> None:
    table = '[parameters.p]\nkey = "optimizer.learning_rate"\nlow = 0.0001\nhigh = 1.0\nlog = true'
    logs = [math.log10(float(values["p"])) for values in sampled(space_with(table), 500)]  # type: ignore[arg-type]
    # Uniform on -4..0: mean -2, standard error 4 / sqrt(12 * 500) = 0.052.
    assert np.mean(logs) == pytest.approx(-2, abs=0.2)
    assert min(logs) >= -4
    assert max(logs) <= 0


def test_real_numbers_are_sampled_with_four_digits_so_that_tables_show_what_was_trained() -> None:
    rates = [values["rate"] for values in sampled(TINY)]
    assert all(rate == float(f"{rate:.4g}") for rate in rates)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 10, allow_nan=False), st.floats(1.001, 1000), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_sample_lies_in_its_range(low: float, factor: float, log: bool, seed: int) -> None:
    parameter = Parameter(name="p", key="x", low=low, high=low * factor, log=log)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = parameter.suggest(study.ask())
    assert low <= value <= low * factor
    assert parameter.holds(value)


@settings(max_examples=50, deadline=None)
@given(st.floats(-9, 9), st.floats(1e-3, 1), st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
def test_a_sample_lies_on_a_step_of_its_range(low, step, steps, rest, seed) -> None:
    low, step = round(low, 3), round(step, 3)
    high = low + step * (steps + rest)
    parameter = Parameter(name="p", key="x", low=low, high=high, step=step)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = parameter.suggest(study.ask())
    assert value == pytest.approx(low + step * round((value - low) / step), abs=1e-9)
    assert low <= value <= high + 1e-9
    assert parameter.holds(value)
    assert parameter.extremes()[1] == pytest.approx(low + step * steps, abs=1e-9)


def test_lists_and_tables_can_be_chosen_from() -> None:
    text = space_with("[parameters.p]\nkey = 'model.params.filters'\nchoice = [[8], [8, 16], [16, 16]]")
    space, study = parse_space(text), optuna.create_study()
    trials = [study.ask() for _ in range(30)]
    values = [space.suggest(trial) for trial in trials]
    assert {tuple(v["p"]) for v in values} == {(8,), (8, 16), (16, 16)}
    assert [space.values_of(trial.params) for trial in trials] == values


def test_probes_contain_every_choice_and_both_ends_of_every_range() -> None:
    space = load_space("compact")
    probes = space.probes()
    for parameter in space.parameters:
        seen = [values[parameter.name] for p, values in probes if p is parameter]
        assert list(seen) == list(parameter.extremes())


def test_integers_and_reals_are_compared_as_numbers_and_booleans_are_not() -> None:
    assert same(5, 5.0)
    assert not same(1, True)
    assert not same("5", 5)
    assert format_values({"a": 1, "b": True, "c": "x", "d": 0.00012346, "e": [1, 2]}) == (
        "a 1, b true, c x, d 0.0001235, e [1, 2]"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"\nrecipe = "nope"\n[parameters]', "no recipe 'nope'"),
        ('name = "x"\nrecipe = "seed"', "parameters: Field required"),
        (space_with(ONE, head='colour = "red"'), "colour: Extra inputs"),
        (space_with("[parameters.p]\nkey = 'batch_size'\nchoice = []"), "empty choice"),
        (space_with("[parameters.p]\nkey = 'batch_size'"), "needs choice"),
        (space_with("[parameters.p]\nkey = 'batch_size'\nlow = 3"), "needs choice"),
        (
            space_with("[parameters.p]\nkey = 'batch_size'\nchoice = [1]\nlow = 3"),
            "both a choice and a range",
        ),
        (space_with("[parameters.p]\nkey = 'batch_size'\nchoice = [8, 8.0]"), "contains 8.0 twice"),
        (space_with("[parameters.p]\nkey = 'batch_size'\nlow = 9\nhigh = 3"), "low must lie below high"),
        (space_with("[parameters.p]\nkey = 'epochs'\nlow = 1\nhigh = nan"), "low must lie below high"),
        (space_with("[parameters.p]\nkey = 'batch_size'\nlow = 1\nhigh = 3\nstep = 5"), "the step must"),
        (space_with("[parameters.p]\nkey = 'label_smoothing'\nlow = 0.0\nhigh = 0.1\nlog = true"), "above 0"),
        (space_with("[parameters.p]\nkey = 'batchsize'\nchoice = [8]"), "did you mean 'batch_size'"),
        (space_with("[parameters.p]\nkey = 'optimizer.rate'\nchoice = [8]"), "no recipe has the key"),
        (space_with("[parameters.p]\nkey = 'optimiser.name'\nchoice = ['sgd']"), "mean 'optimizer'"),
        (space_with("[parameters.p]\nkey = 'epochs.0'\nchoice = [8]"), "single value"),
        (space_with("[parameters.p]\nkey = 'name'\nchoice = ['a']"), "sets name for each trial"),
        (space_with(ONE, head="fixed.optimizer.speed = 3"), "no recipe has the key 'optimizer.speed'"),
        (space_with(ONE, head="winner.epoch = 3"), "did you mean 'epochs'"),
        (space_with(ONE, head="fixed.optimizer.learning_rate = 0.1"), "optimizer.learning_rate is fixed"),
        (space_with(ONE, ONE.replace("s.rate", "s.rate2")), "can both set optimizer.learning_rate"),
        (space_with("[parameters.p]\nchoice = [1, 2]"), "no effect"),
        (space_with(ONE + "when = { depth = 5 }"), "'depth', which is no parameter"),
        (space_with(ONE + "when = { rate = 5 }"), "continuous"),
        (
            space_with("[parameters.d]\nchoice = [1, 2]", ONE + "when = { d = 5 }"),
            "= 5, which never occurs",
        ),
        (space_with("[parameters.d]\nchoice = [1, 2]", ONE + "when = { d = true }"), "which never occurs"),
        (space_with("[parameters.d]\nchoice = [1, 2]", ONE + "when = { d = [] }"), "list of values is empty"),
        (
            space_with(
                "[parameters.a]\nchoice = [1, 2]\nwhen = { b = 1 }",
                "[parameters.b]\nchoice = [1, 2]\nwhen = { c = 1 }",
                "[parameters.c]\nchoice = [1, 2]\nwhen = { a = 1 }",
            ),
            "circular: a, b, c",
        ),
        (space_with("[parameters.a]\nchoice = [1]\nwhen = { a = 1 }"), "circular: a"),
        (
            space_with(
                "[parameters.a]\nchoice = [1, 2]",
                "[parameters.b]\nchoice = [1, 2]\nwhen = { a = 1 }",
                ONE + "when = { a = 2, b = 1 }",
            ),
            "can never be active: no value of 'a'",
        ),
        (
            space_with("[parameters.p]\nkey = 'optimizer.learning_rate'\nchoice = [0.1, -1.0]"),
            "greater than 0",
        ),
        (space_with("[parameters.p]\nkey = 'optimizer.name'\nchoice = ['sgd', 'magic']"), r"p.* = magic"),
        (space_with("[parameters.p]\nkey = 'model.params.colour'\nchoice = [3]"), "parameter 'colour'"),
        (space_with("[parameters.p]\nkey = 'model.params.filters.6'\nchoice = [3]"), "leaves a gap"),
        (
            space_with("[parameters.p]\nkey = 'model.name'\nchoice = ['seed-cnn', 'nope']"),
            "unknown architecture",
        ),
        (
            space_with("[parameters.p]\nkey = 'augment.preset'\nchoice = ['nope']"),
            "unknown augmentation preset",
        ),
        (
            space_with("[parameters.p]\nkey = 'schedule.name'\nchoice = ['constant', 'step']"),
            "needs milestones",
        ),
    ],
)
def test_a_bad_space_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        parse_space(text, "bad.toml")


@pytest.mark.parametrize(
    "override", ["epochs", "=3", "colour=red", "epochs=many", "optimizer.learning_rate=1"]
)
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(SearchError):
        parse_space(space_with(ONE), overrides=[override])


def test_an_unknown_space_is_an_error_with_the_nearest_name(tmp_path) -> None:
    with pytest.raises(SearchError, match="did you mean 'compact'"):
        load_space("compct")
    with pytest.raises(SearchError, match="cannot read"):
        load_space(tmp_path / "absent.toml")


def test_another_network_or_preset_starts_from_its_own_defaults() -> None:
    text = space_with(
        "[parameters.net]\nkey = 'model.name'\nchoice = ['seed-cnn', 'se-resnet']",
        "[parameters.stem]\nkey = 'model.params.stem'\nchoice = [8, 16]\nwhen = { net = 'se-resnet' }",
        "[parameters.augment]\nkey = 'augment.preset'\nchoice = ['none', 'strong']",
        head="fixed.augment.erasing = 0.1",
    )
    recipe = parse_space(text).recipe({"net": "se-resnet", "stem": 8, "augment": "strong"}, "x")
    assert recipe.model.params == {"stem": 8}
    assert (recipe.augment.mixup, recipe.augment.erasing) == (0.2, 0.1)


def test_a_recipe_path_is_relative_to_the_space_file(tmp_path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nseed = 9\n[model]\nname = "seed-cnn"\n')
    (tmp_path / "space.toml").write_text('name = "x"\nrecipe = "mine.toml"\n' + ONE)
    assert load_space(tmp_path / "space.toml").recipe({"rate": 0.1}, "x").seed == 9


def test_one_entry_of_a_list_can_vary() -> None:
    text = space_with("[parameters.p]\nkey = 'model.params.filters.1'\nchoice = [8, 16]", head=(
        "fixed.model.params.filters = [32, 32, 64, 64]"
    ))  # fmt: skip
    assert parse_space(text).recipe({"p": 8}, "x").model.params["filters"] == [32, 8, 64, 64]
