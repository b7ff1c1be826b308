"""Search spaces: TOML files that define which keys of a recipe vary, over which values and conditions."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ferkit.core.errors import RecipeError, SearchError, near_matches
from ferkit.training.recipe import Recipe, load_recipe, parse_override, parse_recipe

Values = dict[str, Any]
"""A configuration: the value of every active parameter, by the parameter's name."""

Key = tuple[str, ...]
"""A recipe key, split at its dots; a number is an index into a list: ``("augment", "zoom", "0")``."""

_DIGITS = 4
"""Significant digits of a sampled real number, so that the value in a table is the value that was trained."""


class Parameter(BaseModel):
    """A parameter of the space: the table ``[parameters.NAME]`` of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = ""  # in tables, pictures and the Optuna study
    key: str = ""  # the recipe key that it sets; empty for a switch, which only decides conditions
    choice: list[Any] | None = None  # its values, or None for a range
    low: int | float = 0  # start of a range
    high: int | float = 0  # end of a range, inclusive
    # Distance between the values of a range; None: continuous, or 1 for a range of integers.
    step: int | float | None = None
    log: bool = False  # whether a range is sampled uniformly in the logarithm
    # Names of other parameters with the values for which this one is active; all must hold.
    when: dict[str, list[Any]] = Field(default_factory=dict)

    @field_validator("when", mode="before")
    @classmethod
    def _as_lists(cls, when: Any) -> Any:
        if not isinstance(when, dict):
            return when
        return {parent: values if isinstance(values, list) else [values] for parent, values in when.items()}

    @model_validator(mode="after")
    def _check(self) -> Parameter:
        low, high, step, given = self.low, self.high, self.step, self.model_fields_set
        if self.choice is not None:
            twice = [value for place, value in enumerate(self.choice) if value in self.choice[:place]]
            if given & {"low", "high", "step", "log"}:
                raise ValueError("both a choice and a range; give one of them")
            if not self.choice or twice:
                raise ValueError(f"the choice contains {twice[0]!r} twice" if twice else "empty choice")
        elif not {"low", "high"} <= given:
            raise ValueError("needs choice = [...], or low and high")
        elif not all(map(math.isfinite, (low, high, step or 0))) or not low < high:
            raise ValueError(f"low must lie below high. Received: {low} and {high}")
        elif self.log and (low <= 0 or step is not None):
            raise ValueError("a logarithmic range starts above 0 and has no step")
        elif step is not None and not 0 < step <= (high - low) * (1 + 1e-9):
            raise ValueError(f"the step must lie above 0 and fit into {low}..{high}. Received: {step}")
        return self

    @property
    def path(self) -> Key:
        """The recipe key, split at its dots; empty for a switch."""
        return tuple(self.key.split(".")) if self.key else ()

    @property
    def integer(self) -> bool:
        """Whether this is a range of integers."""
        return self.choice is None and not any(isinstance(x, float) for x in (self.low, self.high, self.step))

    @property
    def continuous(self) -> bool:
        """Whether this is a range of real numbers without a step."""
        return self.choice is None and not self.integer and self.step is None

    def extremes(self) -> tuple[Any, ...]:
        """Return every choice, or the first and the last value of a range."""
        if self.choice is not None:
            return tuple(self.choice)
        if self.step is None:
            return self.low, self.high
        last = self.low + math.floor((self.high - self.low) / self.step + 1e-9) * self.step
        return self.low, last if self.integer else float(f"{last:.10g}")

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of the parameter's values."""
        if self.choice is not None:
            return any(same(value, choice) for choice in self.choice)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.extremes()
        steps = (value - low) / (self.step or 1)
        return low <= value <= high and (self.continuous or math.isclose(steps, round(steps)))

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that Optuna suggests for a trial; real numbers are rounded to a few digits."""
        if self.choice is not None:
            labels = [_label(value) for value in self.choice]
            return self.choice[labels.index(trial.suggest_categorical(self.name, labels))]
        low, high = self.extremes()
        if self.integer:
            return trial.suggest_int(self.name, low, high, step=int(self.step or 1), log=self.log)
        value = trial.suggest_float(self.name, low, high, step=self.step, log=self.log)
        digits = _DIGITS if self.step is None else 10
        return min(max(float(f"{value:.{digits}g}"), float(low)), float(high))

    def value_of(self, stored: Any) -> Any:
        """Return the value for what an Optuna study stores of it."""
        return next((v for v in self.choice or () if _label(v) == stored), stored)

    def stored(self, value: Any) -> Any:
        """Return what an Optuna study stores of a value."""
        return value if self.choice is None else _label(value)


@dataclass(frozen=True, slots=True)
class Space:
    """A checked search space."""

    name: str
    description: str  # one sentence for people
    parameters: tuple[Parameter, ...]  # what varies; each after the parameters that its condition names
    base: Recipe  # the recipe that every configuration starts from
    fixed: tuple[tuple[Key, Any], ...]  # keys with the same value in every configuration
    winner: tuple[tuple[Key, Any], ...]  # keys that are added to the winner's recipe for its full training
    text: str  # the file's content
    overrides: tuple[str, ...]  # further fixed keys, as ``key=value``
    source: str  # the file, for messages

    def active(self, values: Values) -> Iterator[Parameter]:
        """Yield the parameters whose condition holds, in order; ``values`` may grow meanwhile."""
        for parameter in self.parameters:
            if all(
                parent in values and any(same(values[parent], v) for v in allowed)
                for parent, allowed in parameter.when.items()
            ):
                yield parameter

    def suggest(self, trial: optuna.Trial) -> Values:
        """Return the configuration that Optuna suggests for a trial, with conditions applied."""
        values: Values = {}
        for parameter in self.active(values):
            values[parameter.name] = parameter.suggest(trial)
        return values

    def values_of(self, stored: Mapping[str, Any]) -> Values:
        """Return the configuration of an Optuna trial's ``params``."""
        return {p.name: p.value_of(stored[p.name]) for p in self.parameters if p.name in stored}

    def probes(self) -> list[tuple[Parameter, Values]]:
        """Return configurations that contain every choice and both ends of every range."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        named = {p.name: p for p in self.parameters}
        found = []
        for parameter in self.parameters:
            for value in parameter.extremes():
                forced = {
                    parent: named[parent].stored(allowed[0])
                    for parent, allowed in _requirements(parameter, named).items()
                }
                study.enqueue_trial({**forced, parameter.name: parameter.stored(value)})
                found.append((parameter, self.suggest(study.ask())))
        return found

    def recipe(self, values: Values, name: str, description: str = "", *, winner: bool = False) -> Recipe:
        """Return the recipe of a configuration; ``winner`` adds the ``[winner]`` keys, for a full training.

        Raises:
            SearchError: If the recipe refuses a value.
        """
        settings = [*self.fixed, *((p.path, values[p.name]) for p in self.active(values) if p.key)]
        recipe = self.base.model_dump(mode="json")
        for key, value in sorted(
            [*settings, *(self.winner if winner else ())], key=lambda item: _sort_key(item[0])
        ):
            _set(recipe, key, copy.deepcopy(value), self.source)
        recipe["name"], recipe["description"] = name, description
        try:
            return parse_recipe(recipe, "recipe")
        except RecipeError as error:
            raise SearchError(
                f"{self.source}: the configuration {format_values(values)} is not valid: {error}"
            ) from None


def same(a: Any, b: Any) -> bool:
    """Whether two values of a space are equal: 5 and 5.0 are, 1 and true are not."""
    return isinstance(a, bool) is isinstance(b, bool) and bool(a == b)


def format_values(values: Mapping[str, Any]) -> str:
    """Return a configuration as text: ``depth 4, rate 0.01``."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in values.items()) or "no parameters"


def format_value(value: Any) -> str:
    """Return a value as text."""
    if isinstance(value, str):
        return value
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else json.dumps(value)


def _label(value: Any) -> Any:
    """Return a choice as Optuna stores it: scalars as they are, lists and tables as JSON."""
    return value if isinstance(value, str | int | float) else json.dumps(value)


def shipped_spaces() -> list[str]:
    """Return the names of the shipped spaces, sorted."""
    folder = resources.files("ferkit.search") / "spaces"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_space(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Space:
    """Read and check a space.

    Args:
        name_or_path: Name of a shipped space (``compact``) or path of a TOML file (``my/space.toml``).
        overrides: ``key=value``: further recipe keys with the same value in every configuration.

    Raises:
        SearchError: If there is no such space, or it contradicts itself or the recipe.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SearchError(f"cannot read search space {path}: {error}") from error
        return parse_space(text, str(path), folder=path.parent, overrides=overrides)
    if str(name_or_path) not in shipped_spaces():
        raise SearchError(
            f"no search space {str(name_or_path)!r}; pass a path to a .toml file or a shipped one: "
            f"{', '.join(shipped_spaces())}{_did_you_mean(str(name_or_path), shipped_spaces())}"
        )
    text = (resources.files("ferkit.search") / "spaces" / f"{name_or_path}.toml").read_text("utf-8")
    return parse_space(text, str(name_or_path), overrides=overrides)


class _SpaceFile(BaseModel):
    """The content of a space's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    recipe: str
    fixed: dict[str, Any] = Field(default_factory=dict)
    winner: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Parameter]

    @field_validator("parameters", mode="before")
    @classmethod
    def _named(cls, tables: Any) -> Any:
        if not isinstance(tables, dict):
            return tables
        return {name: {**t, "name": name} if isinstance(t, dict) else t for name, t in tables.items()}


def parse_space(
    text: str,
    source: str = "space",
    *,
    folder: Path | None = None,
    base: Recipe | None = None,
    overrides: Sequence[str] = (),
) -> Space:
    """Check the TOML text of a space.

    Args:
        text: The file's content.
        source: The file, for messages.
        folder: Folder that a relative path of the recipe starts from.
        base: The recipe to start from, in place of the one that the file names.
        overrides: As in :func:`load_space`.

    Raises:
        SearchError: If the space contradicts itself or the recipe.
    """
    try:
        file = _SpaceFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SearchError(f"{source} is not valid TOML: {error}") from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(p) for p in item['loc'])}: {item['msg'].removeprefix('Value error, ')}"
            + ("" if item["type"] in ("missing", "value_error") else f". Received: {item['input']!r}")
            for item in error.errors()
        ]
        raise SearchError(f"{source}: " + "; ".join(lines)) from None
    path = folder / file.recipe if folder is not None and file.recipe.endswith(".toml") else file.recipe
    try:
        base = base or load_recipe(path)
        replaced = [parse_override(override) for override in overrides]
    except RecipeError as error:
        raise SearchError(f"{source}: {error}") from error
    _check_conditions(file.parameters, source)
    space = Space(
        name=file.name,
        description=file.description,
        parameters=_sorted_by_condition(file.parameters, source),
        base=base,
        # The last value of a key counts, so that an override replaces what the file fixes.
        fixed=tuple(dict([*_leaves(file.fixed), *replaced]).items()),
        winner=tuple(_leaves(file.winner)),
        text=text,
        overrides=tuple(overrides),
        source=source,
    )
    _check_keys(space)
    for parameter, values in space.probes():
        try:
            space.recipe(values, space.name)
            space.recipe(values, space.name, winner=True)
        except SearchError as error:
            tried = format_value(values[parameter.name])
            raise SearchError(f"{error} (tried for {parameter.name!r} = {tried})") from None
    return space


def _leaves(table: Mapping[str, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in table.items():
        key = (*above, *name.split("."))
        if isinstance(value, dict):
            yield from _leaves(value, key)
        else:
            yield key, value


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = near_matches(name, known)
    return f"; {near}" if near else ""


def _check_conditions(named: Mapping[str, Parameter], source: str) -> None:
    """Refuse conditions on unknown or continuous parameters, and on values that never occur."""
    for parameter in named.values():
        where = f"{source}: parameter {parameter.name!r}"
        for parent, allowed in parameter.when.items():
            if parent not in named:
                raise SearchError(
                    f"{where} depends on {parent!r}, which is no parameter{_did_you_mean(parent, named)}"
                )
            if named[parent].continuous:
                raise SearchError(f"{where} depends on {parent!r}, which is continuous; use a choice there")
            if not allowed:
                raise SearchError(f"{where} depends on {parent!r}, but its list of values is empty")
            for value in allowed:
                if not named[parent].holds(value):
                    raise SearchError(f"{where} depends on {parent!r} = {value!r}, which never occurs")
    parents = {parent for p in named.values() for parent in p.when}
    for parameter in named.values():
        if not parameter.key and parameter.name not in parents:
            raise SearchError(
                f"{source}: parameter {parameter.name!r} has no effect: it has no key, and no condition "
                "names it"
            )


def _sorted_by_condition(named: Mapping[str, Parameter], source: str) -> tuple[Parameter, ...]:
    """Put every parameter after those that its condition names, otherwise in the file's order."""
    done: list[Parameter] = []
    rest = dict(named)
    while rest:
        ready = next((p for p in rest.values() if not any(parent in rest for parent in p.when)), None)
        if ready is None:
            raise SearchError(f"{source}: the conditions of these parameters are circular: {', '.join(rest)}")
        done.append(rest.pop(ready.name))
    return tuple(done)


def _requirements(parameter: Parameter, named: Mapping[str, Parameter]) -> dict[str, list[Any]]:
    """Return what makes a parameter active: each of its ancestors with the allowed values."""
    needed: dict[str, list[Any]] = {}
    waiting = list(parameter.when.items())
    while waiting:
        parent, allowed = waiting.pop()
        if parent in needed:
            allowed = [v for v in needed[parent] if any(same(v, w) for w in allowed)]
        needed[parent] = allowed
        waiting += named[parent].when.items()
    return needed


def _check_keys(space: Space) -> None:
    """Refuse keys that are unknown, or set twice, and parameters that are never active."""
    for key, _ in (*space.fixed, *space.winner):
        _check_key(key, space.source)
    named = {p.name: p for p in space.parameters}
    needs = {p.name: _requirements(p, named) for p in space.parameters}
    for place, parameter in enumerate(space.parameters):
        where = f"{space.source}: parameter {parameter.name!r}"
        empty = [parent for parent, allowed in needs[parameter.name].items() if not allowed]
        if empty:
            raise SearchError(f"{where} can never be active: no value of {empty[0]!r} meets its conditions")
        if not parameter.key:
            continue
        _check_key(parameter.path, where)
        for key, value in space.fixed:
            # A fixed list is the start value of a list whose entries vary.
            start = isinstance(value, list) and len(key) < len(parameter.path)
            if _overlap(key, parameter.path) and not start:
                raise SearchError(f"{where} varies {parameter.key}, but {'.'.join(key)} is fixed")
        for other in space.parameters[:place]:
            if _overlap(other.path, parameter.path) and not _exclusive(
                needs[other.name], needs[parameter.name]
            ):
                raise SearchError(
                    f"{where} and parameter {other.name!r} can both set {parameter.key} at once; "
                    "their conditions must exclude each other"
                )


def _overlap(a: Key, b: Key) -> bool:
    """Whether one key equals the other or lies within it."""
    length = min(len(a), len(b))
    return bool(length) and a[:length] == b[:length]


def _exclusive(a: Mapping[str, list[Any]], b: Mapping[str, list[Any]]) -> bool:
    """Whether two sets of requirements cannot hold together."""
    return any(
        not any(same(x, y) for x in allowed for y in b[parent])
        for parent, allowed in a.items()
        if parent in b
    )


def _check_key(key: Key, where: str) -> None:
    """Refuse a key that no recipe has."""
    if key[0] in ("name", "description"):
        raise SearchError(f"{where}: the search sets {key[0]} for each trial, so it cannot be set here")
    model: Any = Recipe
    for part in key:
        fields = getattr(model, "model_fields", None)
        if fields is None or key == ("augment", "preset"):
            return  # Parameters of the network and entries of lists are checked with real recipes.
        if part not in fields:
            hint = _did_you_mean(part, fields)
            raise SearchError(f"{where}: no recipe has the key {'.'.join(key)!r}{hint}")
        model = fields[part].annotation


def _sort_key(key: Key) -> tuple[bool, list[tuple[int, str]]]:
    """Sort the kind of a table before its other keys, and list entries by index."""
    kinds = {("model", "name"), ("augment",), ("augment", "preset")}
    return key not in kinds, [(int(part), "") if part.isdigit() else (0, part) for part in key]


def _set(recipe: dict[str, Any], key: Key, value: Any, source: str) -> None:
    """Set one key of a recipe's values; an index may be that of a list's next entry."""
    if key == ("model", "name"):
        if recipe["model"]["name"] != value:
            recipe["model"] = {"name": value, "params": {}}
        return
    if key in (("augment",), ("augment", "preset")):
        recipe["augment"] = dict(value) if isinstance(value, Mapping) else {"preset": value}
        return
    at: Any = recipe
    for depth, part in enumerate(key):
        last = depth == len(key) - 1
        if isinstance(at, list) and part.isdigit():
            place = int(part)
            if place > len(at):
                raise SearchError(f"{source}: {'.'.join(key)} leaves a gap: the list has {len(at)} entries")
            if place == len(at):
                at.append(value if last else {})
            elif last:
                at[place] = value
            at = at[place]
        elif isinstance(at, dict):
            if last:
                at[part] = value
            else:
                at = at.setdefault(part, [] if key[depth + 1].isdigit() else {})
        else:
            raise SearchError(f"{source}: {'.'.join(key[:depth])} is a single value; it has no {part!r}")
