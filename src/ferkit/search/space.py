"""Search spaces: TOML files that say which keys of a recipe vary, over what, and on what condition."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ferkit.core.errors import RecipeError, SearchError
from ferkit.training.recipe import Recipe, load_recipe, parse_recipe

Values = dict[str, Any]
"""A configuration: the value of every parameter that is active in it, by the parameter's name."""

Key = tuple[str, ...]
"""A recipe's key, split at its dots; a number is a place in a list: ``("augment", "zoom", "0")``."""

_DIGITS = 4
"""Significant digits of a drawn real number: what people read is exactly what is trained."""


class _ParameterPart(BaseModel):
    """A table ``[parameters.NAME]`` as it stands in the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str = ""
    choice: list[Any] | None = None
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    log: bool = False
    when: dict[str, Any] = Field(default_factory=dict)


class _SpacePart(BaseModel):
    """A space's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    recipe: str
    fixed: dict[str, Any] = Field(default_factory=dict)
    winner: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, _ParameterPart]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that varies.

    Args:
        name: What tables and pictures call it.
        key: The recipe's key that it sets; empty for a switch, which only decides conditions.
        choices: Its values, or empty for a range.
        low: Start of a range.
        high: End of a range, which belongs to it.
        step: Distance between a range's values; None for all (of an integer range: 1).
        log: Whether a range is drawn uniformly in the logarithm.
        when: Names of other parameters with the values for which this one is active; all must hold.
    """

    name: str
    key: Key
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def integer(self) -> bool:
        """Whether this is a range of integers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in rising order, so that near values are alike."""
        if not self.choices:
            return True
        numbers = [v for v in self.choices if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) == len(self.choices) and all(a < b for a, b in itertools.pairwise(numbers))

    @property
    def continuous(self) -> bool:
        """Whether this is a range of real numbers without a step."""
        return not self.choices and not self.integer and self.step is None

    def steps(self) -> int:
        """Return the number of values of a range with steps (an integer range has the step 1)."""
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def extremes(self) -> tuple[Any, ...]:
        """Return every choice, or a range's two ends."""
        if self.choices:
            return self.choices
        return (self.low, self.at(self.steps() - 1) if not self.continuous else self.high)

    def at(self, place: int) -> Any:
        """Return value number ``place`` of a range with steps."""
        value = self.low + place * (self.step or 1)
        return value if self.integer else self.tidy(value)

    def tidy(self, value: float) -> Any:
        """Bring a number of the range to few digits without leaving the range."""
        if self.integer:
            return int(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), float(self.low)), float(self.high))

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of the parameter's."""
        if self.choices:
            return any(same(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.continuous or not self.low <= value <= self.high:
            return self.low <= value <= self.high
        return same(value, self.at(round((value - self.low) / (self.step or 1))))

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.log:
            # An integer stands for the interval around it, as in Optuna, so that the ends are not halved.
            half = 0.5 if self.integer else 0.0
            value = math.exp(rng.uniform(math.log(self.low - half), math.log(self.high + half)))
            return min(max(round(value), int(self.low)), int(self.high)) if half else self.tidy(value)
        if self.continuous:
            return self.tidy(rng.uniform(self.low, self.high))
        return self.at(int(rng.integers(self.steps())))


@dataclass(frozen=True, slots=True)
class Space:
    """A search space that was read and checked.

    Args:
        name: Its name.
        description: One sentence for people.
        parameters: What varies; each after those that its condition names.
        base: The recipe that every configuration starts from.
        fixed: Keys that are the same in every configuration, with their values.
        winner: Keys that the winner's recipe gets for its full training.
        text: The file, as it was read.
        overrides: Further fixed keys that came with it, as ``key=value``.
        source: Where it was read, for messages.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    base: Recipe
    fixed: tuple[tuple[Key, Any], ...]
    winner: tuple[tuple[Key, Any], ...]
    text: str
    overrides: tuple[str, ...]
    source: str

    def active(self, values: Values) -> Iterator[Parameter]:
        """Yield the parameters in order whose condition holds; ``values`` may grow on the way."""
        for parameter in self.parameters:
            if all(
                parent in values and any(same(values[parent], v) for v in wanted)
                for parent, wanted in parameter.when
            ):
                yield parameter

    def draw(self, rng: np.random.Generator, forced: Mapping[str, Any] | None = None) -> Values:
        """Draw a configuration; ``forced`` names values that are not drawn where they are active."""
        values: Values = {}
        for parameter in self.active(values):
            if forced and parameter.name in forced:
                values[parameter.name] = forced[parameter.name]
            else:
                values[parameter.name] = parameter.draw(rng)
        return values

    def probes(self, seed: int = 0) -> list[tuple[Parameter, Values]]:
        """Return configurations in which every choice, and both ends of every range, appear."""
        rng = np.random.default_rng(seed)
        found = []
        for parameter in self.parameters:
            for value in parameter.extremes():
                forced = {
                    parent: allowed[int(rng.integers(len(allowed)))]
                    for parent, allowed in _requirements(parameter, self.parameters).items()
                }
                found.append((parameter, self.draw(rng, {**forced, parameter.name: value})))
        return found

    def recipe(self, values: Values, name: str, description: str = "") -> Recipe:
        """Return a configuration as a recipe.

        Raises:
            SearchError: If the recipe refuses a value.
        """
        settings = [(p.key, values[p.name]) for p in self.active(values) if p.key]
        return self._built([*self.fixed, *settings], name, description, spell(values))

    def winning_recipe(self, values: Values, name: str, description: str) -> Recipe:
        """Return a configuration as the recipe of a full training, with the space's ``[winner]`` keys.

        Raises:
            SearchError: If the recipe refuses a value.
        """
        settings = [(p.key, values[p.name]) for p in self.active(values) if p.key]
        return self._built([*self.fixed, *settings, *self.winner], name, description, spell(values))

    def _built(self, settings: Sequence[tuple[Key, Any]], name: str, description: str, what: str) -> Recipe:
        recipe = self.base.model_dump(mode="json")
        for key, value in sorted(settings, key=lambda item: _order(item[0])):
            _set(recipe, key, copy.deepcopy(value), self.source)
        recipe["name"], recipe["description"] = name, description
        try:
            return parse_recipe(recipe, "recipe")
        except RecipeError as error:
            raise SearchError(f"{self.source}: the configuration {what} is refused: {error}") from None

    def most_epochs(self) -> int:
        """Return the most epochs that a configuration can have."""
        varied = [p for p in self.parameters if p.key == ("epochs",)]
        found = [value for p in varied for value in p.extremes()]
        if all(p.when for p in varied):  # There can be configurations in which none of them is active.
            found.append(dict(self.fixed).get(("epochs",), self.base.epochs))
        return int(max(found))


def same(a: Any, b: Any) -> bool:
    """Whether two values of a space are the same: 5 and 5.0 are, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return isinstance(a, bool) and isinstance(b, bool) and a == b
    return bool(a == b)


def spell(values: Mapping[str, Any]) -> str:
    """Return a configuration as text: ``depth 4, rate 0.01``."""
    return ", ".join(f"{name} {spell_value(value)}" for name, value in values.items()) or "without parameters"


def spell_value(value: Any) -> str:
    """Return a value as people write it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    return json.dumps(value)


def shipped_spaces() -> list[str]:
    """Return the names of the spaces that come with ferkit, sorted."""
    folder = resources.files("ferkit.search") / "spaces"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_space(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Space:
    """Read a space by the name of a shipped one, or from a TOML file, and check it.

    Args:
        name_or_path: ``compact``, or ``my/space.toml``.
        overrides: ``key=value``: further keys of the recipe that are the same in every configuration.

    Raises:
        SearchError: If there is no such space, or it contradicts itself or the recipe.
    """
    path = Path(name_or_path)
    folder: Path | None = None
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SearchError(f"cannot read search space {path}: {error}") from error
        folder = path.parent
    elif str(name_or_path) in shipped_spaces():
        text = (resources.files("ferkit.search") / "spaces" / f"{name_or_path}.toml").read_text("utf-8")
    else:
        near = difflib.get_close_matches(str(name_or_path), shipped_spaces(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SearchError(
            f"no search space {str(name_or_path)!r}; shipped are {', '.join(shipped_spaces())}, and a path "
            f"to a .toml file works too{hint}"
        )
    return parse_space(text, str(name_or_path), folder=folder, overrides=overrides)


def parse_space(
    text: str,
    source: str = "space",
    *,
    folder: Path | None = None,
    base: Recipe | None = None,
    overrides: Sequence[str] = (),
) -> Space:
    """Check a space's TOML.

    Args:
        text: The file.
        source: Names it in messages.
        folder: Where a recipe's path in it starts from.
        base: The recipe to start from, in place of the one that the file names.
        overrides: As in :func:`load_space`.

    Raises:
        SearchError: If the space contradicts itself or the recipe.
    """
    try:
        part = _SpacePart.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SearchError(f"{source} is not valid TOML: {error}") from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(p) for p in item['loc'])}: {item['msg']}"
            + (f". Received: {item['input']!r}" if item["type"] != "missing" else "")
            for item in error.errors()
        ]
        raise SearchError(f"{source}: " + "; ".join(lines)) from None
    if base is None:
        inside = folder / part.recipe if folder is not None and part.recipe.endswith(".toml") else part.recipe
        try:
            base = load_recipe(inside)
        except RecipeError as error:
            raise SearchError(f"{source}: {error}") from error
    fixed = [*_leaves(part.fixed), *(_override(text) for text in overrides)]
    named = {name: _parameter(name, table, source) for name, table in part.parameters.items()}
    space = Space(
        name=part.name,
        description=part.description,
        parameters=_sorted_by_condition(_with_checked_conditions(named, source), source),
        base=base,
        # The last one counts, so that an override replaces what the file fixes.
        fixed=tuple(dict(fixed).items()),
        winner=tuple(_leaves(part.winner)),
        text=text,
        overrides=tuple(overrides),
        source=source,
    )
    _check(space)
    return space


def _leaves(table: Mapping[str, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in table.items():
        key = (*above, *name.split("."))
        if isinstance(value, dict):
            yield from _leaves(value, key)
        else:
            yield key, value


def _override(text: str) -> tuple[Key, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise SearchError(f"an override is key=value. Received: {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return tuple(key.strip().split(".")), parsed


def _parameter(name: str, table: _ParameterPart, source: str) -> Parameter:
    where = f"{source}: parameter {name!r}"
    key = tuple(table.key.split(".")) if table.key else ()
    when = tuple(
        (parent, tuple(wanted) if isinstance(wanted, list) else (wanted,))
        for parent, wanted in table.when.items()
    )
    if table.choice is not None:
        if any(x is not None for x in (table.low, table.high, table.step)) or table.log:
            raise SearchError(f"{where} has both a choice and a range; give it one of them")
        if not table.choice:
            raise SearchError(f"{where} has an empty choice; list the values to choose from")
        for place, value in enumerate(table.choice):
            if any(same(value, other) for other in table.choice[:place]):
                raise SearchError(f"{where} names {value!r} twice, so it would be drawn twice as often")
        return Parameter(name, key, tuple(table.choice), when=when)
    if table.low is None or table.high is None:
        raise SearchError(f"{where} needs choice = [...], or low and high")
    low, high, step = table.low, table.high, table.step
    whole = isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int))
    if not whole:
        low, high, step = float(low), float(high), None if step is None else float(step)
    if not all(math.isfinite(x) for x in (low, high, step or 0)) or not low < high:
        raise SearchError(f"{where} needs a low below its high. Received: {low} and {high}")
    if table.log and (low <= 0 or step is not None):
        raise SearchError(f"{where}: a logarithmic range starts above 0 and has no step")
    if step is not None and not 0 < step <= high - low:
        raise SearchError(f"{where}: the step must lie above 0 and fit into {low}..{high}. Received: {step}")
    return Parameter(name, key, low=low, high=high, step=step, log=table.log, when=when)


def _with_checked_conditions(named: Mapping[str, Parameter], source: str) -> dict[str, Parameter]:
    """Refuse conditions on what is not there, cannot be compared, or never has the value."""
    for parameter in named.values():
        where = f"{source}: parameter {parameter.name!r}"
        for parent, wanted in parameter.when:
            if parent not in named:
                near = difflib.get_close_matches(parent, list(named), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise SearchError(f"{where} depends on {parent!r}, which is no parameter{hint}")
            if named[parent].continuous:
                raise SearchError(f"{where} depends on {parent!r}, which is continuous; use a choice there")
            if not wanted:
                raise SearchError(f"{where} depends on {parent!r}, but no value of it would do")
            for value in wanted:
                if not named[parent].holds(value):
                    raise SearchError(f"{where} depends on {parent!r} being {value!r}, which it never is")
    mentioned = {parent for p in named.values() for parent, _ in p.when}
    for parameter in named.values():
        if not parameter.key and parameter.name not in mentioned:
            raise SearchError(
                f"{source}: parameter {parameter.name!r} decides nothing: it has no key, and no condition "
                "names it"
            )
    return dict(named)


def _sorted_by_condition(named: Mapping[str, Parameter], source: str) -> tuple[Parameter, ...]:
    """Put every parameter after those that its condition names, else in the file's order."""
    done: dict[str, Parameter] = {}
    rest = dict(named)
    while rest:
        ready = [p for p in rest.values() if all(parent in done for parent, _ in p.when)]
        if not ready:
            circle = " -> ".join(rest)
            raise SearchError(f"{source}: the conditions of these parameters go in a circle: {circle}")
        for parameter in ready[:1]:
            done[parameter.name] = rest.pop(parameter.name)
    return tuple(done.values())


def _requirements(parameter: Parameter, parameters: Iterable[Parameter]) -> dict[str, tuple[Any, ...]]:
    """Return what a parameter needs to be active: each ancestor with the values that are left to it."""
    named = {p.name: p for p in parameters}
    needed: dict[str, tuple[Any, ...]] = {}
    waiting = list(parameter.when)
    while waiting:
        parent, wanted = waiting.pop()
        if parent in needed:
            wanted = tuple(v for v in needed[parent] if any(same(v, w) for w in wanted))
        needed[parent] = wanted
        waiting += named[parent].when
    return needed


def _check(space: Space) -> None:
    """Refuse what can be told without building a network.

    Raises:
        SearchError: If keys are unknown, set twice, or refused by the recipe.
    """
    for key, _ in (*space.fixed, *space.winner):
        _check_key(key, space.source)
    needs = {p.name: _requirements(p, space.parameters) for p in space.parameters}
    for place, parameter in enumerate(space.parameters):
        where = f"{space.source}: parameter {parameter.name!r}"
        empty = [parent for parent, allowed in needs[parameter.name].items() if not allowed]
        if empty:
            raise SearchError(f"{where} can never be active: no value of {empty[0]!r} meets its conditions")
        if not parameter.key:
            continue
        _check_key(parameter.key, where)
        for key, value in space.fixed:
            # A fixed list is what the places of it that vary start from.
            within = isinstance(value, list) and len(key) < len(parameter.key)
            if _overlap(key, parameter.key) and not within:
                raise SearchError(
                    f"{where} varies {'.'.join(parameter.key)}, but {'.'.join(key)} is fixed for all trials"
                )
        for other in space.parameters[:place]:
            if _overlap(other.key, parameter.key) and not _exclusive(
                needs[other.name], needs[parameter.name]
            ):
                raise SearchError(
                    f"{where} and parameter {other.name!r} can both set {'.'.join(parameter.key)} at once; "
                    "their conditions must exclude each other"
                )
    for parameter, values in space.probes():
        try:
            space.recipe(values, space.name)
            space.winning_recipe(values, space.name, "")
        except SearchError as error:
            shown = spell_value(values[parameter.name])
            raise SearchError(f"{error} (tried for {parameter.name!r} = {shown})") from None


def _overlap(a: Key, b: Key) -> bool:
    """Whether one key is the other or lies within it."""
    length = min(len(a), len(b))
    return bool(length) and a[:length] == b[:length]


def _exclusive(a: Mapping[str, tuple[Any, ...]], b: Mapping[str, tuple[Any, ...]]) -> bool:
    """Whether two sets of requirements cannot hold together."""
    return any(
        not any(same(x, y) for x in allowed for y in b[parent])
        for parent, allowed in a.items()
        if parent in b
    )


def _check_key(key: Key, where: str) -> None:
    """Refuse a key that no recipe has."""
    shown = ".".join(key)
    if key[0] in ("name", "description"):
        raise SearchError(f"{where}: the search gives each trial its own {key[0]}, so it cannot be set")
    at: Any = Recipe
    for depth, part in enumerate(key):
        if key[:depth] == ("model", "params") or (part.isdigit() and not _fields(at)):
            return  # The network's own parameters, or a place in a list: tried with real recipes.
        fields = _fields(at)
        known = [*fields, "preset"] if key[:depth] == ("augment",) else list(fields)
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {'.'.join((*key[:depth], near[0]))!r}?" if near else ""
            raise SearchError(f"{where}: no recipe has the key {shown!r}{hint}")
        at = fields[part].annotation if part in fields else str


def _order(key: Key) -> tuple[bool, list[tuple[int, str]]]:
    """Sort keys so that a table's kind comes before the rest of it, and a list's places in order."""
    kinds = {("model", "name"), ("augment",), ("augment", "preset")}
    return key not in kinds, [(int(part), "") if part.isdigit() else (0, part) for part in key]


def _fields(model: Any) -> Mapping[str, Any]:
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _set(recipe: dict[str, Any], key: Key, value: Any, source: str) -> None:
    """Set one key of a recipe's values; a number is a place in a list, or the place behind its end."""
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
                raise SearchError(
                    f"{source}: {'.'.join(key)} leaves a gap: the list has {len(at)} entries so far"
                )
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
