"""What is drawn, what is refused, what TPE learns, and which parameters mattered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ferkit.core.errors import ModelError, SearchError
from ferkit.search.propose import (
    Cost,
    Gate,
    GuidedProposer,
    RandomProposer,
    _decode,
    distribution,
    encode,
    importance,
)
from ferkit.search.records import Settings, Trial
from ferkit.search.space import Space, load_space, parse_space, shipped_spaces
from searchfiles import TINY, cost_of

SPACE = parse_space(TINY)


def gate(space: Space = SPACE, **settings: object) -> Gate:
    return Gate(space, Settings(trials=10, **settings), cost_of)  # type: ignore[arg-type]


def done(number: int, values: dict[str, object], accuracy: float, state: str = "finished") -> Trial:
    history = [{"epoch": 1, "val_accuracy": accuracy, "seconds": 1.0}]
    return Trial(number, values, 0, 0.0, state=state, history=history)  # type: ignore[arg-type]


def test_the_same_seed_draws_the_same_trials_in_whatever_order_they_are_asked_for() -> None:
    forward, backward = RandomProposer(gate(seed=3)), RandomProposer(gate(seed=3))
    first = {n: forward.propose(n).values for n in range(1, 9)}
    second = {n: backward.propose(n).values for n in range(8, 0, -1)}
    assert first == second
    assert {n: RandomProposer(gate(seed=4)).propose(n).values for n in range(1, 9)} != first


def test_what_cannot_be_afforded_is_refused_and_counted_with_its_cost() -> None:
    limited = RandomProposer(gate(max_mmac=8))
    proposals = [limited.propose(n) for n in range(1, 21)]
    assert max(p.cost.mmac for p in proposals) <= 8
    assert limited.refused
    for refusal in limited.refused:
        assert refusal.reason == f"{refusal.mmac:.1f} MMAC exceed 8"
        assert refusal.mmac == sum(v for k, v in refusal.values.items() if k.startswith("filters")) > 8
    by_parameters = RandomProposer(gate(max_params=40))
    assert all(by_parameters.propose(n).cost.parameters <= 40 for n in range(1, 9))
    assert any("parameters exceed 40" in r.reason for r in by_parameters.refused)


def test_no_configuration_is_trained_twice_and_a_space_that_is_used_up_is_said() -> None:
    small = parse_space(
        'name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16, 32]'
    )
    measure = Gate(small, Settings(trials=4), cost_of_batch)
    proposer = RandomProposer(measure)
    assert {proposer.propose(n).values["b"] for n in (1, 2, 3)} == {8, 16, 32}
    with pytest.raises(SearchError, match=r"no configuration for trial 4 .* fewer --trials"):
        proposer.propose(4)
    assert {r.reason for r in proposer.refused} == {"drawn before"}


def cost_of_batch(recipe):
    return Cost(recipe.batch_size, 1.0)


def test_a_limit_that_nothing_meets_names_the_cheapest_network() -> None:
    with pytest.raises(SearchError, match=r"--max-mmac 1\).* the cheapest .* 2\.0 MMAC and 20 parameters"):
        RandomProposer(gate(max_mmac=1)).propose(1)


def refuse_two(recipe):
    if len(recipe.model.params["filters"]) == 2:
        raise ModelError("nothing is left of the image")
    return cost_of(recipe)


@pytest.mark.parametrize("proposer", [RandomProposer, GuidedProposer])
def test_a_configuration_that_makes_no_network_is_refused_with_its_reason(proposer) -> None:
    drawing = proposer(Gate(SPACE, Settings(trials=8), refuse_two))
    assert {drawing.propose(n).values["depth"] for n in range(1, 9)} == {1}
    reasons = {r.reason for r in drawing.refused if r.values["depth"] == 2}
    assert reasons == {"nothing is left of the image"}


def test_a_configuration_that_the_recipe_refuses_is_refused_with_its_reason() -> None:
    # Each value goes with some other; progressive sizes and early stopping do not go with each other.
    space = parse_space(
        'name = "s"\nrecipe = "seed"\n[parameters.b]\nkey = "batch_size"\nchoice = [8, 16]\n'
        '[parameters.stop]\nkey = "early_stopping"\nchoice = [0, 3]'
    )
    clash = replace(space, fixed=((("progressive", "sizes"), [24]), (("progressive", "until"), [0.5])))
    drawing = RandomProposer(Gate(clash, Settings(trials=2), cost_of_batch))
    assert {drawing.propose(n).values["stop"] for n in (1, 2)} == {0}
    assert drawing.refused
    assert all("leave one of them out" in r.reason for r in drawing.refused if r.values["stop"] == 3)


def test_where_nothing_makes_a_network_the_error_says_why() -> None:
    one = parse_space(TINY.replace("choice = [1, 2]", "choice = [2]"))
    with pytest.raises(SearchError, match=r"one of them: nothing is left of the image\. Ask for fewer"):
        RandomProposer(Gate(one, Settings(trials=1), refuse_two)).propose(1)


def test_tpe_draws_better_configurations_once_it_knows_some() -> None:
    # Accuracy is the number of filters, so the best configurations have 8 + 8 of them.
    guided = GuidedProposer(gate(seed=1))
    sums = []
    for number in range(1, 41):
        proposal = guided.propose(number)
        sums.append(proposal.cost.mmac)
        guided.epoch_done(number, 1, proposal.cost.mmac / 100)
        guided.ended(done(number, proposal.values, proposal.cost.mmac / 100))
    assert np.mean(sums[-15:]) > np.mean(sums[:10]) + 2


def test_tpe_keeps_conditions_and_limits() -> None:
    guided = GuidedProposer(gate(seed=2, max_mmac=8))
    for number in range(1, 21):
        proposal = guided.propose(number)
        assert ("filters2" in proposal.values) == (proposal.values["depth"] == 2)
        assert proposal.cost.mmac <= 8
        guided.ended(done(number, proposal.values, 0.5))
    assert guided.refused


def test_tpe_falls_back_on_chance_where_it_insists_on_what_cannot_be_afforded() -> None:
    earlier = [done(n, {"depth": 2, "filters1": 8, "filters2": 8, "dense": 8, "rate": 0.001 * n}, 0.9)
               for n in range(1, 16)]  # fmt: skip
    guided = GuidedProposer(gate(max_mmac=2.5), earlier)
    assert guided.propose(16).cost.mmac == 2.0


def test_tpe_goes_on_from_earlier_trials_of_every_state() -> None:
    first = GuidedProposer(gate(seed=5))
    trials = []
    for number, state in enumerate(("finished", "stopped", "failed", "waiting"), start=1):
        trials.append(done(number, first.propose(number).values, 0.1 * number, state))
    second = GuidedProposer(gate(seed=5), trials)
    assert [t.state.name for t in second.study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert second.study.trials[0].value == pytest.approx(0.1)
    assert second.study.trials[1].intermediate_values == {1: pytest.approx(0.2)}
    trials[3].state = "finished"
    second.ended(trials[3])
    assert second.study.trials[3].value == pytest.approx(0.4)
    assert second.propose(5).values != trials[0].values


@pytest.mark.parametrize("name", shipped_spaces())
def test_every_drawn_value_has_its_place_in_optunas_terms(name: str) -> None:
    space = load_space(name)
    for k in range(60):
        values = space.draw(np.random.default_rng(k))
        encoded = encode(space, values)
        for parameter in space.active(values):
            kind, code = distribution(parameter), encoded[parameter.name]
            assert kind._contains(kind.to_internal_repr(code)), parameter
            assert _decode(parameter, code) == values[parameter.name]


def test_importance_finds_the_parameter_that_decides_among_those_that_all_trials_share() -> None:
    trials = []
    for number in range(1, 41):
        values = SPACE.draw(np.random.default_rng([1, number]))
        trials.append(done(number, values, 0.1 * values["filters1"]))
    shares = importance(SPACE, trials)
    assert "filters2" not in shares  # active only where depth is two
    assert next(iter(shares)) == "filters1"
    assert shares["filters1"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_too_little_is_nothing() -> None:
    values = SPACE.draw(np.random.default_rng(0))
    assert importance(SPACE, []) == {}
    assert importance(SPACE, [done(1, values, 0.5), done(2, values, 0.6)]) == {}
    assert importance(SPACE, [done(n, values, 0.1 * n) for n in range(1, 9)]) == {}
