"""Which configuration comes next: drawn at random, or by Optuna's TPE from what the earlier ones gave."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ferkit.core.errors import ModelError, SearchError
from ferkit.search.records import Refusal, Settings, Trial
from ferkit.search.space import Parameter, Space, Values
from ferkit.training.recipe import Recipe

PATIENCE = 500
"""Configurations that may be refused in a row before a search gives up."""

GUIDED_PATIENCE = 25
"""Refused suggestions in a row after which TPE takes a random configuration."""


class TooLargeError(ModelError):
    """A network that cannot be counted, because memory does not suffice to build it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs."""

    parameters: int
    mmac: float


Measure = Callable[[Recipe], Cost]
"""Builds a recipe's network and counts; raises ModelError where it cannot be built."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration that is to be trained."""

    number: int
    values: Values
    cost: Cost


class Proposer(Protocol):
    """A source of configurations. ``refused`` collects what it drew in vain; the caller empties it."""

    refused: list[Refusal]

    def propose(self, number: int) -> Proposal:
        """Return the configuration of trial ``number``.

        Raises:
            SearchError: If no further one can be found within the limits.
        """

    def epoch_done(self, number: int, epoch: int, accuracy: float) -> None:
        """Hear how a trial goes."""

    def ended(self, trial: Trial) -> None:
        """Hear that a trial is finished, stopped or failed."""


class Gate:
    """Decides whether a configuration may be trained: not twice, and not above the limits.

    Args:
        space: What is searched.
        settings: Holds the limits.
        measure: Counts a network.
    """

    def __init__(self, space: Space, settings: Settings, measure: Measure) -> None:
        self.space, self.settings, self.measure = space, settings, measure
        self.known: set[str] = set()
        self.cheapest: Cost | None = None
        self.trouble = ""

    def remember(self, configurations: Iterable[Values]) -> None:
        """Let these not be trained again."""
        self.known |= {_fingerprint(values) for values in configurations}

    def try_values(self, number: int, values: Values) -> Proposal | Refusal:
        """Return the configuration as a proposal, or as refused with the reason.

        Values that no recipe or network can have together are refused as those that cost too much: the space
        was tried value by value, not in every combination.
        """
        if _fingerprint(values) in self.known:
            return Refusal(number, values, 0, 0.0, "drawn before")
        try:
            self.space.winning_recipe(values, self.space.name, "")
            cost = self.measure(self.space.recipe(values, self.space.name))
        except (SearchError, ModelError) as error:
            self.trouble = " ".join(str(error).split())
            return Refusal(number, values, 0, 0.0, self.trouble)
        if self.cheapest is None or cost.mmac < self.cheapest.mmac:
            self.cheapest = cost
        reason = over_limit(cost, self.settings)
        if reason:
            return Refusal(number, values, cost.parameters, cost.mmac, reason)
        self.known.add(_fingerprint(values))
        return Proposal(number, values, cost)

    def give_up(self, number: int, tried: int) -> SearchError:
        """Return the error that says why no configuration was found."""
        limits = [
            f"{name} {value:g}"
            for name, value in (
                ("--max-mmac", self.settings.max_mmac),
                ("--max-params", self.settings.max_params),
            )
            if value is not None
        ]
        cheapest = (
            f"; the cheapest network among them has {self.cheapest.mmac:.1f} MMAC and "
            f"{self.cheapest.parameters:,} parameters"
            if self.cheapest
            else ""
        )
        trouble = f"; one of them: {self.trouble}" if self.trouble else ""
        return SearchError(
            f"found no configuration for trial {number} among {tried} drawn in a row from {self.space.name}: "
            f"all were drawn before, exceed the limits ({', '.join(limits) or 'none'}) or make no network"
            f"{cheapest}{trouble}. Ask for fewer --trials, a wider space or higher limits"
        )


class RandomProposer:
    """Draws every configuration independently; trial k's depends on the seed and on k, and nothing else.

    (But for configurations drawn before, which are drawn again.)
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.refused: list[Refusal] = []

    def propose(self, number: int) -> Proposal:
        """Return the configuration of trial ``number``."""
        rng = np.random.default_rng([self.gate.settings.seed, number])
        for _ in range(PATIENCE):
            answer = self.gate.try_values(number, self.gate.space.draw(rng))
            if isinstance(answer, Proposal):
                return answer
            self.refused.append(answer)
        raise self.gate.give_up(number, PATIENCE)

    def epoch_done(self, number: int, epoch: int, accuracy: float) -> None:
        """Do nothing: what is drawn does not depend on results."""

    def ended(self, trial: Trial) -> None:
        """Do nothing."""


class GuidedProposer:
    """Optuna's tree-structured Parzen estimator over the space, conditions included.

    Trials stopped early count as pruned, not as finished; refused and failed configurations teach nothing.

    Args:
        gate: Decides what may be trained.
        trials: Earlier trials, to learn from; those not ended count as running.
    """

    def __init__(self, gate: Gate, trials: Sequence[Trial] = ()) -> None:
        import optuna

        self.gate = gate
        self.refused: list[Refusal] = []
        self._asked: dict[int, Any] = {}
        self._by_number: dict[int, int] = {}
        with warnings.catch_warnings():
            # group, multivariate and constant_liar are marked experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                # A resumed search must not draw its first random configurations again.
                seed=gate.settings.seed + 1_000_003 * len(trials),
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        self.study = _quiet_study(sampler)
        for trial in trials:
            self.study.add_trial(frozen_trial(gate.space, trial))
            self._by_number[trial.number] = len(self._by_number)

    def propose(self, number: int) -> Proposal:
        """Return the configuration of trial ``number``."""
        rng = np.random.default_rng([self.gate.settings.seed, number])
        for attempt in range(PATIENCE):
            if attempt >= GUIDED_PATIENCE:
                self.study.enqueue_trial(encode(self.gate.space, self.gate.space.draw(rng)))
            asked = self.study.ask()
            values = _suggested(self.gate.space, asked)
            answer = self.gate.try_values(number, values)
            if isinstance(answer, Proposal):
                self._by_number[number] = asked.number
                self._asked[number] = asked
                return answer
            self.refused.append(answer)
            self.study.tell(asked, state=_state("failed"))
        raise self.gate.give_up(number, PATIENCE)

    def epoch_done(self, number: int, epoch: int, accuracy: float) -> None:
        """Tell the study how a trial goes."""
        if number in self._asked:  # Not one that a resumed search took over.
            self._asked[number].report(accuracy, epoch)

    def ended(self, trial: Trial) -> None:
        """Tell the study what became of a trial."""
        state = _state(trial.state)
        value = trial.accuracy if trial.state == "finished" else None
        self.study.tell(self._by_number[trial.number], value, state=state)


def over_limit(cost: Cost, settings: Settings) -> str:
    """Return why a network cannot be afforded, or an empty text."""
    if settings.max_mmac is not None and cost.mmac > settings.max_mmac:
        return f"{cost.mmac:.1f} MMAC exceed {settings.max_mmac:g}"
    if settings.max_params is not None and cost.parameters > settings.max_params:
        return f"{cost.parameters:,} parameters exceed {settings.max_params:,}"
    return ""


def _fingerprint(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


# Optuna sees a parameter with ordered values as an integer, the place among them, so that near values count
# as alike; a choice without order as a category; and a range without steps as it is.


def distribution(parameter: Parameter) -> Any:
    """Return a parameter as Optuna's distribution."""
    from optuna import distributions as d

    if parameter.choices:
        if parameter.ordered and len(parameter.choices) > 1:
            return d.IntDistribution(0, len(parameter.choices) - 1)
        return d.CategoricalDistribution([json.dumps(v) for v in parameter.choices])
    if parameter.integer and parameter.log:
        return d.IntDistribution(int(parameter.low), int(parameter.high), log=True)
    if parameter.continuous:
        return d.FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)
    return d.IntDistribution(0, parameter.steps() - 1)


def encode(space: Space, values: Values) -> dict[str, Any]:
    """Return a configuration in Optuna's terms."""
    encoded = {}
    for parameter in space.active(values):
        value, kind = values[parameter.name], distribution(parameter)
        if parameter.choices:
            labels = [json.dumps(v) for v in parameter.choices]
            place = labels.index(json.dumps(value))
            encoded[parameter.name] = labels[place] if hasattr(kind, "choices") else place
        elif parameter.continuous or parameter.log:
            encoded[parameter.name] = value
        else:
            encoded[parameter.name] = round((value - parameter.low) / (parameter.step or 1))
    return encoded


def _decode(parameter: Parameter, value: Any) -> Any:
    if parameter.choices:
        return json.loads(value) if isinstance(value, str) else parameter.choices[int(value)]
    if parameter.continuous or parameter.log:
        return parameter.tidy(value)
    return parameter.at(int(value))


def _suggested(space: Space, asked: Any) -> Values:
    """Let an Optuna trial suggest a configuration, parameter by parameter as they become active."""
    values: Values = {}
    for parameter in space.active(values):
        kind = distribution(parameter)
        if hasattr(kind, "choices"):
            drawn = asked.suggest_categorical(parameter.name, kind.choices)
        elif isinstance(kind.high, float):
            drawn = asked.suggest_float(parameter.name, kind.low, kind.high, log=kind.log)
        else:
            drawn = asked.suggest_int(parameter.name, kind.low, kind.high, log=kind.log)
        values[parameter.name] = _decode(parameter, drawn)
    return values


def frozen_trial(space: Space, trial: Trial) -> Any:
    """Return a trial as one of an Optuna study."""
    import optuna

    return optuna.create_trial(
        state=_state(trial.state),
        value=trial.accuracy if trial.state == "finished" else None,
        params=encode(space, trial.values),
        distributions={p.name: distribution(p) for p in space.active(trial.values)},
        intermediate_values={int(row["epoch"]): row["val_accuracy"] for row in trial.history},
    )


def importance(space: Space, trials: Sequence[Trial], seed: int = 0) -> Mapping[str, float]:
    """Return each parameter's share in the variance of accuracy, largest first (fANOVA, Hutter et al. 2014).

    Only parameters that are active in every one of ``trials`` and vary there can be compared; with fewer than
    four trials, or none such, the answer is empty.
    """
    import optuna

    shared = [
        p.name
        for p in space.parameters
        if all(p.name in t.values for t in trials) and len({json.dumps(t.values[p.name]) for t in trials}) > 1
    ]
    accuracies = {t.accuracy for t in trials}
    if len(trials) < 4 or not shared or len(accuracies) < 2:
        return {}
    study = _quiet_study(optuna.samplers.RandomSampler(seed=seed))
    for trial in trials:
        study.add_trial(frozen_trial(space, trial))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=shared)
    return {name: float(share) for name, share in found.items()}


def _state(state: str) -> Any:
    from optuna.trial import TrialState

    return {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }.get(state, TrialState.RUNNING)


def _quiet_study(sampler: Any) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", sampler=sampler)
