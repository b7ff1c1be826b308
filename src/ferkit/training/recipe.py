"""Recipes: everything that decides a training run but the data, in one TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_jsonable_python

from ferkit.augment.config import PRESETS, AugmentConfig
from ferkit.core.crops import TtaMode
from ferkit.core.errors import ModelError, RecipeError, near_matches
from ferkit.models.build import parse_params


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"neither true nor false is possible here. Received: {value}")
        return value


class ModelPart(_Part):
    """The network: an architecture and its parameters."""

    name: str = Field(description="an architecture of `ferkit models`")
    params: dict[str, Any] = Field(default_factory=dict, description="the architecture's own parameters")

    @model_validator(mode="after")
    def _known(self) -> ModelPart:
        try:
            parse_params(self.name, self.params)
        except ModelError as error:
            raise ValueError(str(error)) from error
        return self


class HeadsPart(_Part):
    """The weight of each head's loss; a head of weight 0 is not built."""

    label: float = Field(1.0, ge=0, description="the data's own labels")
    ferplus: float = Field(0.0, ge=0, description="FER+ votes as soft targets")

    @model_validator(mode="after")
    def _some(self) -> HeadsPart:
        if not self.label and not self.ferplus:
            raise ValueError("at least one head needs a weight above 0")
        return self


SplitName = Literal["Training", "PublicTest", "PrivateTest"]


class DataPart(_Part):
    """The faces to train on."""

    balance: Literal["none", "copies", "oversample", "weights"] = Field(
        "none", description="of rare classes: copied, drawn more often, or weighted"
    )
    drop_leaks: bool = Field(False, description="leave out training images that are also in another split")
    drop_flat: bool = Field(False, description="leave out images of one constant gray value")
    average_duplicates: bool = Field(
        False, description="give equal training images the mean of their targets"
    )
    train_split: SplitName = Field("Training", description="the split to train on")
    validation_split: SplitName = Field("PublicTest", description="the split to validate on")

    @model_validator(mode="after")
    def _different_splits(self) -> DataPart:
        if self.train_split == self.validation_split:
            raise ValueError(f"train_split and validation_split are both {self.train_split}")
        return self


class LossPart(_Part):
    """Changes of the cross-entropy."""

    logit_adjustment: float = Field(
        0.0,
        ge=0,
        le=2,
        description="log frequencies of the labels added to the logits in training, times this",
    )


class DistilPart(_Part):
    """How teachers enter the loss (Hinton et al. 2015); ``ferkit distil --teacher`` names them."""

    weight: float = Field(0.0, ge=0, le=1, description="the teachers' share of the loss; 0 is off")
    temperature: float = Field(1.0, ge=0.1, le=100, description="of the teachers' targets and the student")
    tta: TtaMode = Field("flip", description="test-time augmentation of the teachers: none, flip, ten-crop")
    calibrated: bool = Field(True, description="false: the teachers' probabilities before calibration")
    online: bool = Field(
        False, description="true: teachers predict in every step what the student sees; false: each face once"
    )

    @model_validator(mode="after")
    def _online_tta(self) -> DistilPart:
        if self.online and self.tta == "ten-crop":
            raise ValueError("online distillation takes tta none or flip, not ten-crop")
        return self


class ProgressivePart(_Part):
    """Smaller faces in the first epochs, for less arithmetic (Tan & Le 2021)."""

    sizes: tuple[int, ...] = Field((), description="sides in pixels, rising; empty: the data's own")
    until: tuple[float, ...] = Field((), description="share of the epochs at which each size ends")

    @model_validator(mode="after")
    def _fits(self) -> ProgressivePart:
        if len(self.sizes) != len(self.until):
            raise ValueError(f"{len(self.sizes)} sizes need as many ends, not {len(self.until)}")
        if any(size < 16 for size in self.sizes) or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes must rise from 16 pixels or more, not {list(self.sizes)}")
        if list(self.until) != sorted(set(self.until)) or any(not 0 < end < 1 for end in self.until):
            raise ValueError(f"ends must rise between 0 and 1, not {list(self.until)}")
        return self

    def side(self, epoch: int, epochs: int, own: int) -> int:
        """Return the side of the faces in an epoch (from 0); the last epoch has the data's ``own``."""
        for size, end in zip(self.sizes, self.until, strict=True):
            if epoch < min(math.floor(end * epochs + 1e-9), epochs - 1):
                return size
        return own


class OptimizerPart(_Part):
    """The optimiser."""

    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="adam, adamw or sgd")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="the first or, after warm-up, highest rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(True, description="sgd only")
    weight_decay: float = Field(
        0.0, ge=0, description="of kernels; decoupled for adamw, otherwise L2 in the loss"
    )
    clip_norm: float = Field(0.0, ge=0, description="limit of the gradient's global norm; 0 is off")
    ema: float = Field(0.0, ge=0, lt=1, description="average of the weights: decay per step; 0 is off")


class SchedulePart(_Part):
    """The learning rate over the run."""

    name: Literal["constant", "cosine", "step", "plateau"] = Field(
        "constant", description="constant, cosine, step or plateau"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="cosine, step: epochs of rising rate")
    final: float = Field(0.0, ge=0, le=1, description="cosine: the last rate as a share of the highest")
    milestones: tuple[int, ...] = Field((), description="step: epochs (from 0) at which the rate falls")
    factor: float = Field(0.1, gt=0, lt=1, description="step, plateau: factor of each fall")
    patience: int = Field(5, ge=1, description="plateau: epochs without a lower validation loss")

    @model_validator(mode="after")
    def _fits(self) -> SchedulePart:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, not {list(self.milestones)}")
        if self.name == "step" and not self.milestones:
            raise ValueError("a step schedule needs milestones")
        if self.name in ("constant", "plateau") and self.warmup_epochs:
            raise ValueError(f"warmup_epochs goes with cosine and step, not with {self.name}")
        return self


class Recipe(_Part):
    """Everything that decides a run, but for the data."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    description: str = Field("", description="one sentence for `ferkit recipes`")
    seed: int = Field(0, ge=0, lt=2**31, description="of all randomness")
    epochs: int = Field(20, ge=1, le=100_000, description="passes over the training faces")
    batch_size: int = Field(64, ge=1, le=65_536, description="faces per step")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixed_precision: Literal["off", "auto", "bfloat16", "float16"] = Field(
        "off", description="dtype of the feature maps; auto: the fastest here; weights and losses are float32"
    )
    deterministic: bool = Field(False, description="deterministic operations, somewhat slower")
    early_stopping: int = Field(0, ge=0, description="epochs without a better validation accuracy; 0 is off")
    freeze_body: bool = Field(False, description="train the heads alone, on the body of --init")
    precise_batch_norm: int = Field(
        0, ge=0, description="unaugmented faces for the final batch-norm statistics; 0 is off"
    )
    model: ModelPart
    heads: HeadsPart = HeadsPart()
    data: DataPart = DataPart()
    augment: AugmentConfig = AugmentConfig()
    progressive: ProgressivePart = ProgressivePart()
    loss: LossPart = LossPart()
    distil: DistilPart = DistilPart()
    optimizer: OptimizerPart = OptimizerPart()
    schedule: SchedulePart = SchedulePart()

    @model_validator(mode="after")
    def _validation_is_comparable(self) -> Recipe:
        if self.progressive.sizes and (self.early_stopping or self.schedule.name == "plateau"):
            raise ValueError(
                "early_stopping and a plateau schedule compare epochs by validation on full-size faces, and "
                "progressive runs train on smaller ones before the last stage; leave one of them out"
            )
        if self.precise_batch_norm and self.freeze_body:
            raise ValueError(
                "precise_batch_norm changes the statistics of the body, which freeze_body keeps; leave one "
                "of them out"
            )
        if self.loss.logit_adjustment and self.data.balance != "none":
            raise ValueError(
                f"data.balance = {self.data.balance!r} and loss.logit_adjustment both correct for the "
                "frequencies of labels; leave one of them out"
            )
        if self.precise_batch_norm and self.early_stopping:
            raise ValueError(
                "early_stopping compares epochs, and precise_batch_norm changes the network after the last "
                "one; leave one of them out"
            )
        return self

    @field_validator("augment", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        """Let ``augment`` be a preset's name, or a table that starts from ``preset``."""
        if isinstance(value, str):
            value = {"preset": value}
        if isinstance(value, Mapping) and "preset" in value:
            rest = dict(value)
            preset = rest.pop("preset")
            if preset not in PRESETS:
                raise ValueError(f"unknown augmentation preset {preset!r}; known are {', '.join(PRESETS)}")
            return {**PRESETS[preset].model_dump(), **rest}
        return value


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    folder = resources.files("ferkit.training") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a TOML file.

    Args:
        name_or_path: ``seed``, or ``my/recipe.toml``.
        overrides: ``key=value`` with dots between the parts of the key and a TOML value, such as
            ``optimizer.learning_rate=0.01``; a value that is no TOML is a string.

    Raises:
        RecipeError: If there is no such recipe, or a key or value in it is wrong.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read recipe {path}: {error}") from error
    elif str(name_or_path) in shipped_recipes():
        text = (resources.files("ferkit.training") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    else:
        raise RecipeError(
            f"no recipe {str(name_or_path)!r}; shipped are {', '.join(shipped_recipes())}, "
            "and a path to a .toml file works too"
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    augment = values.get("augment")
    complete = isinstance(augment, dict) and set(AugmentConfig.model_fields) <= set(augment)
    if complete and any(override.partition("=")[0].strip() == "augment.preset" for override in overrides):
        values["augment"] = {}  # the recipe in a run folder has every key: a preset replaces them all
    for override in overrides:
        _set(values, override)
    return parse_recipe(values, str(name_or_path))


def parse_recipe(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate a recipe's values; ``source`` names them in errors.

    Raises:
        RecipeError: If a key is unknown or a value is wrong.
    """
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{source}: " + "; ".join(map(_explain, error.errors()))) from None


def _explain(error: Any) -> str:
    """Return one error of a recipe's validation as a phrase."""
    key = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in error["loc"])
        fields: type[BaseModel] = Recipe
        for parent in parents:
            fields = _part_of(fields, parent) or fields
        near = near_matches(name, fields.model_fields)
        return f"unknown key {key}; {near or 'see `ferkit recipes NAME`'}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    return f"{key}: {error['msg']}" + (
        "" if error["type"] == "missing" else f". Received: {error['input']!r}"
    )


def _part_of(part: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the class of a table within a part of the recipe; None if the key is no table."""
    kind = part.model_fields[key].annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def describe_recipe(recipe: Recipe) -> list[dict[str, Any]]:
    """Return ``key``, ``value``, ``default`` and ``meaning`` of every key, those of the network included."""
    params = parse_params(recipe.model.name, recipe.model.params)
    return [*_describe(recipe), *_describe(params, "model.params.")]


def _describe(part: BaseModel, prefix: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    values = part.model_dump(mode="json")
    for key, field in type(part).model_fields.items():
        if _part_of(type(part), key) is not None:
            rows += _describe(getattr(part, key), f"{prefix}{key}.")
        elif prefix + key != "model.params":
            default = "" if field.is_required() else to_jsonable_python(field.get_default())
            row = {"key": prefix + key, "value": values[key], "default": default}
            rows.append({**row, "meaning": field.description or ""})
    return rows


def parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """Return key, split at its dots, and value of ``key=value``; a value that is no TOML is a string.

    Raises:
        RecipeError: If it has no key or no sign.
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"an override is key=value. Received: {override!r}")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return tuple(key.strip().split(".")), value


def _set(values: dict[str, Any], override: str) -> None:
    (*parents, last), value = parse_override(override)
    at = values
    for parent in parents:
        below = at.get(parent, {})
        if isinstance(below, str) and parent == "augment":
            below = {"preset": below}
        if not isinstance(below, dict):
            raise RecipeError(f"{override!r}: {parent} is a value, not a table")
        at[parent] = below
        at = below
    at[last] = value


def is_of_model(override: str) -> bool:
    """Tell whether an override changes the network."""
    return override.partition("=")[0].strip().partition(".")[0] == "model"


def model_params(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the network's parameters among the overrides, for a network whose architecture is given.

    Raises:
        RecipeError: If one of them changes the architecture.
    """
    values: dict[str, Any] = {}
    for override in filter(is_of_model, overrides):
        _set(values, override)
    part = values.get("model", {})
    if not isinstance(part, dict) or set(part) - {"params"} or not isinstance(part.get("params", {}), dict):
        raise RecipeError("--init brings its own architecture; of the model only model.params.KEY can be set")
    params: dict[str, Any] = part.get("params", {})
    return params


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as TOML, from which :func:`load_recipe` makes the same recipe."""
    values = recipe.model_dump(mode="json")
    tables = {k: v for k, v in values.items() if isinstance(v, dict)}
    lines = [f"{k} = {_toml(v)}" for k, v in values.items() if k not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{k} = {_toml(v)}" for k, v in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    return repr(value)
