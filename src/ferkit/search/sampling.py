"""The configuration of the next trial: sampled by Optuna at random or by TPE, within the cost limits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from ferkit.core.errors import ModelError, SearchError
from ferkit.search.space import Space, Values
from ferkit.search.study import Settings, Trial
from ferkit.training.recipe import Recipe

PATIENCE = 500
"""Configurations in a row that may be refused before a search gives up."""

TPE_PATIENCE = 25
"""Refused suggestions in a row after which a trial of TPE is sampled at random."""

STARTUP = 10
"""Trials that TPE samples at random, exactly as random search with the same seed does."""


class NetworkTooLargeError(ModelError):
    """A network that does not fit into memory, so that its cost is unknown."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters and million multiply-accumulates per face of a network; 0 where they are unknown."""

    parameters: int = 0
    mmac: float = 0.0


Profiler = Callable[[Recipe], Cost]
"""Builds the network of a recipe and counts its cost; raises ModelError if it cannot be built."""


class CostFilter:
    """Refuse configurations that were sampled before, exceed a limit, or make no valid network.

    ``known`` are the configurations of earlier trials.
    """

    def __init__(
        self, space: Space, settings: Settings, profiler: Profiler, known: Iterable[Values] = ()
    ) -> None:
        self.space, self.settings, self.profiler = space, settings, profiler
        self.known = {_fingerprint(values) for values in known}
        self.cheapest: Cost | None = None
        self.invalid = ""

    def check(self, values: Values) -> tuple[Cost, str]:
        """Return the cost of a configuration and, if it is refused, the reason."""
        if _fingerprint(values) in self.known:
            return Cost(), "sampled before"
        try:
            self.space.recipe(values, self.space.name, winner=True)
            cost = self.profiler(self.space.recipe(values, self.space.name))
        except (SearchError, ModelError) as error:
            # The space was checked value by value, not in every combination.
            self.invalid = " ".join(str(error).split())
            return Cost(), self.invalid
        if self.cheapest is None or cost.mmac < self.cheapest.mmac:
            self.cheapest = cost
        most_mmac, most_params = self.settings.max_mmac, self.settings.max_params
        if most_mmac is not None and cost.mmac > most_mmac:
            return cost, f"{cost.mmac:.1f} MMAC exceed {most_mmac:g}"
        if most_params is not None and cost.parameters > most_params:
            return cost, f"{cost.parameters:,} parameters exceed {most_params:,}"
        self.known.add(_fingerprint(values))
        return cost, ""

    def exhausted(self, number: int) -> SearchError:
        """Return the error that explains why no configuration was found for a trial."""
        limits = {"--max-mmac": self.settings.max_mmac, "--max-params": self.settings.max_params}
        given = ", ".join(f"{option} {limit:g}" for option, limit in limits.items() if limit is not None)
        cheapest = f"; one of the errors: {self.invalid}" if self.invalid else ""
        if self.cheapest:
            cheapest += (
                f"; the cheapest valid network has {self.cheapest.mmac:.1f} MMAC and "
                f"{self.cheapest.parameters:,} parameters"
            )
        return SearchError(
            f"no configuration for trial {number} in {PATIENCE} samples of space {self.space.name}: each was "
            f"sampled before, exceeds the limits ({given or 'none'}) or makes no valid network{cheapest}. "
            "Use fewer --trials, a wider space or higher limits"
        )


def propose(number: int, cost_filter: CostFilter, study: optuna.Study | None = None) -> Trial:
    """Sample the configuration of a trial.

    In random search it depends on the seed and the number alone, and on earlier configurations only where it
    would repeat one. In TPE it depends on the results in ``study`` as well, except for the first ten trials.

    Raises:
        SearchError: If no acceptable configuration is found.
    """
    space, settings = cost_filter.space, cost_filter.settings
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    random = optuna.samplers.RandomSampler(seed=seed)
    # A study in memory: refused suggestions are no trials of the search.
    scratch = optuna.create_study(direction="maximize", sampler=random)
    if settings.method == "tpe" and number >= STARTUP and study is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group
            scratch.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True
            )
        scratch.add_trials(t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING)
    refused: list[dict[str, Any]] = []
    for attempt in range(PATIENCE):
        if attempt == TPE_PATIENCE:
            scratch.sampler = random
        sampled = scratch.ask()
        values = space.suggest(sampled)
        cost, reason = cost_filter.check(values)
        if not reason:
            epochs = space.recipe(values, space.name).epochs
            return Trial(number, values, cost.parameters, cost.mmac, epochs, sampled.distributions, refused)
        refused.append({"values": values, **asdict(cost), "reason": reason})
        scratch.tell(sampled, state=TrialState.FAIL)
    raise cost_filter.exhausted(number)


def _fingerprint(values: Values) -> str:
    return json.dumps(values, sort_keys=True)
