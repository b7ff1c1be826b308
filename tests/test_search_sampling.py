"""Which configurations are sampled and refused, what TPE learns, and which parameters are important."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.core.errors import ModelError, SearchError
from ferkit.search.pictures import importance
from ferkit.search.sampling import STARTUP, Cost, CostFilter, propose
from ferkit.search.space import Space, load_space, parse_space, shipped_spaces
from ferkit.search.study import Settings, create_search, read_search
from searchfiles import TINY, cost_of, play, write_search

SPACE = parse_space(TINY)


def cost_filter(space: Space = SPACE, **settings: object) -> CostFilter:
    return CostFilter(space, Settings(**{"trials": 10, **settings}), cost_of)  # type: ignore[arg-type]


def refused(trials) -> list[dict[str, object]]:
    return [refusal for trial in trials for refusal in trial.refused]


def test_random_trials_follow_from_seed_and_number_in_any_order() -> None:
    forward, backward = cost_filter(seed=3), cost_filter(seed=3)
    first = {n: propose(n, forward).values for n in range(8)}
    second = {n: propose(n, backward).values for n in reversed(range(8))}
    assert first == second
    assert {n: propose(n, cost_filter(seed=4)).values for n in range(8)} != first


def test_configurations_above_a_limit_are_refused_with_their_cost() -> None:
    limited = cost_filter(max_mmac=8)
    trials = [propose(n, limited) for n in range(20)]
    assert max(trial.mmac for trial in trials) <= 8
    assert refused(trials)
    for refusal in refused(trials):
        assert refusal["reason"] == f"{refusal['mmac']:.1f} MMAC exceed 8"
        assert refusal["mmac"] == sum(v for k, v in refusal["values"].items() if k.startswith("filters")) > 8
    by_parameters = cost_filter(max_params=40)
    trials = [propose(n, by_parameters) for n in range(8)]
    assert all(trial.parameters <= 40 for trial in trials)
    assert any("parameters exceed 40" in refusal["reason"] for refusal in refused(trials))


def cost_of_batch(recipe):
    return Cost(recipe.batch_size, 1.0)


def test_no_configuration_is_sampled_twice_and_an_exhausted_space_is_an_error() -> None:
    small = parse_space(
        'name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16, 32]'
    )
    known = CostFilter(small, Settings(trials=4), cost_of_batch)
    trials = [propose(n, known) for n in range(3)]
    assert {trial.values["b"] for trial in trials} == {8, 16, 32}
    with pytest.raises(SearchError, match=r"no configuration for trial 3 .* fewer --trials"):
        propose(3, known)
    assert {refusal["reason"] for refusal in refused(trials)} <= {"sampled before"}


def test_a_limit_below_every_network_names_the_cheapest() -> None:
    with pytest.raises(SearchError, match=r"--max-mmac 1\).* the cheapest .* 2\.0 MMAC and 20 parameters"):
        propose(0, cost_filter(max_mmac=1))


def fail_on_two(recipe):
    if len(recipe.model.params["filters"]) == 2:
        raise ModelError("nothing is left of the image")
    return cost_of(recipe)


def test_a_configuration_without_a_valid_network_is_refused_with_the_reason() -> None:
    failing = CostFilter(SPACE, Settings(trials=8), fail_on_two)
    trials = [propose(n, failing) for n in range(8)]
    assert {trial.values["depth"] for trial in trials} == {1}
    reasons = {r["reason"] for r in refused(trials) if r["values"]["depth"] == 2}
    assert reasons == {"nothing is left of the image"}


def test_a_configuration_that_the_recipe_refuses_is_refused_with_the_reason() -> None:
    # Each value is valid with some other; progressive sizes and early stopping exclude each other.
    space = parse_space(
        'name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16]\n'
        '[parameters.stop]\nkey = "early_stopping"\nchoice = [0, 3]'
    )
    clash = replace(space, fixed=((("progressive", "sizes"), [24]), (("progressive", "until"), [0.5])))
    known = CostFilter(clash, Settings(trials=2), cost_of_batch)
    trials = [propose(n, known) for n in range(2)]
    assert {trial.values["stop"] for trial in trials} == {0}
    assert refused(trials)
    assert all("leave one of them out" in r["reason"] for r in refused(trials) if r["values"]["stop"] == 3)


def test_a_space_without_valid_networks_is_an_error_with_the_reason() -> None:
    one = parse_space(TINY.replace("choice = [1, 2]", "choice = [2]"))
    with pytest.raises(SearchError, match=r"nothing is left of the image\. Use fewer"):
        propose(0, CostFilter(one, Settings(trials=1), fail_on_two))


@pytest.fixture
def tpe(tmp_path):
    """An empty TPE search with its folder."""

    def begin(name: str = "s", **settings: object):
        decided = Settings(**{"trials": 40, "method": "tpe", **settings})  # type: ignore[arg-type]
        create_search(tmp_path / name, SPACE, decided, {})
        return read_search(tmp_path / name)

    return begin


def train(search, count: int, filters: CostFilter | None = None):
    """Train so many trials, of which the accuracy is the number of filters."""
    filters = filters or CostFilter(SPACE, search.settings, cost_of)
    for _ in range(count):
        search.add(propose(len(search.trials), filters, search.study))
        trial = search.trials[len(search.trials) - 1]
        play(search, trial, "finished", [trial.mmac / 100])
    return list(search.trials.values())


def test_the_first_trials_of_tpe_are_those_of_random_search(tpe) -> None:
    guided = train(tpe(seed=7), STARTUP + 3)
    random = cost_filter(seed=7)
    expected = [propose(n, random).values for n in range(STARTUP)]
    assert [trial.values for trial in guided[:STARTUP]] == expected


def test_tpe_with_the_same_results_samples_the_same_trials_interrupted_or_not(tpe) -> None:
    whole = train(tpe("a", seed=5), STARTUP + 4)
    first = tpe("b", seed=5)
    train(first, STARTUP + 2)
    again = read_search(first.folder)  # as --resume does
    known = [trial.values for trial in again.trials.values()]
    resumed = train(again, 2, CostFilter(SPACE, again.settings, cost_of, known))
    assert [trial.values for trial in resumed] == [trial.values for trial in whole]


def test_tpe_samples_better_configurations_once_it_has_results(tpe) -> None:
    # Accuracy is the number of filters, so the best configurations have 8 + 8 of them.
    costs = [trial.mmac for trial in train(tpe(seed=1), 30)]
    assert np.mean(costs[-12:]) > np.mean(costs[:10]) + 2


def test_tpe_keeps_conditions_and_limits(tpe) -> None:
    trials = train(tpe(seed=2, max_mmac=8), 18)
    for trial in trials:
        assert ("filters2" in trial.values) == (trial.values["depth"] == 2)
        assert trial.mmac <= 8
    assert refused(trials)


def test_a_trial_of_tpe_is_sampled_at_random_when_all_suggestions_are_refused(tpe) -> None:
    search = tpe()
    train(search, 15)
    # TPE has learnt that many filters are good; now only the smallest networks are allowed.
    limited = CostFilter(SPACE, replace(search.settings, max_mmac=2.5), cost_of)
    assert propose(15, limited, search.study).mmac == 2.0


def test_importance_finds_the_parameter_that_decides(tmp_path) -> None:
    search = read_search(write_search(tmp_path / "s", SPACE, []))
    known = CostFilter(SPACE, search.settings, cost_of)
    for number in range(30):
        search.add(propose(number, known))
        trial = search.trials[number]
        play(search, trial, "finished", [0.1 * trial.values["filters1"]])
    shares = importance(search.study)
    assert "filters2" not in shares  # active only where depth is two
    assert next(iter(shares)) == "filters1"
    assert shares["filters1"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_too_few_or_equal_trials_is_empty(tmp_path) -> None:
    for name, accuracies in (("few", [0.5, 0.6]), ("equal", [0.5] * 6)):
        trials = [("finished", [accuracy]) for accuracy in accuracies]
        assert importance(read_search(write_search(tmp_path / name, SPACE, trials)).study) == {}


@pytest.mark.parametrize("name", shipped_spaces())
def test_optuna_stores_every_value_so_that_it_reads_back(name: str, tmp_path) -> None:
    space = load_space(name)
    create_search(tmp_path, space, Settings(trials=20), {})
    search = read_search(tmp_path)
    free = CostFilter(space, search.settings, lambda recipe: Cost(1, 1.0))
    for number in range(20):
        search.add(propose(number, free))
    again = read_search(tmp_path)
    assert {n: t.values for n, t in again.trials.items()} == {n: t.values for n, t in search.trials.items()}
