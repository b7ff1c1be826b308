"""A recipe: everything that decides a training run, in one TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ferkit.augment.config import PRESETS, AugmentConfig
from ferkit.core.crops import TtaMode
from ferkit.core.errors import ModelError, RecipeError
from ferkit.models.build import parse_params


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """Which network: an architecture's name and its own parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> ModelPart:
        try:
            parse_params(self.name, self.params)
        except ModelError as error:
            raise ValueError(str(error)) from error
        return self


class HeadsPart(_Part):
    """Weight of each head's loss; a head of weight 0 is not built."""

    label: float = Field(1.0, ge=0, description="the data's own labels")
    ferplus: float = Field(0.0, ge=0, description="FER+ votes as soft labels")

    @model_validator(mode="after")
    def _some(self) -> HeadsPart:
        if not self.label and not self.ferplus:
            raise ValueError("at least one head needs a weight above 0")
        return self


SplitName = Literal["Training", "PublicTest", "PrivateTest"]


class DataPart(_Part):
    """Which faces are trained on, and how often."""

    balance: Literal["none", "copies", "oversample", "weights"] = "none"
    drop_leaks: bool = Field(False, description="leave out training images that also stand in another split")
    drop_flat: bool = Field(False, description="leave out images of one gray value")
    train_split: SplitName = "Training"
    validation_split: SplitName = "PublicTest"

    @model_validator(mode="after")
    def _apart(self) -> DataPart:
        if self.train_split == self.validation_split:
            raise ValueError(f"train_split and validation_split are both {self.train_split}")
        return self


class DistilPart(_Part):
    """How a teacher's answers enter the loss (Hinton et al. 2015); ``ferkit distil`` names the teacher."""

    weight: float = Field(0.0, ge=0, le=1, description="share of the loss; the labels have the rest")
    temperature: float = Field(
        1.0, ge=0.1, le=100, description="of both the teacher's answers and the student"
    )
    tta: TtaMode = Field("flip", description="views that the teacher's answers are averaged over")
    calibrated: bool = Field(
        True, description="answers as the model file gives them; false: as the teacher's own loss left them"
    )
    every_step: bool = Field(
        False, description="asked in every step about what the student sees; false: once about each face"
    )

    @model_validator(mode="after")
    def _answerable(self) -> DistilPart:
        if self.every_step and self.tta == "ten-crop":
            raise ValueError("online distillation takes tta none or flip, not with ten-crop")
        return self


class ProgressivePart(_Part):
    """Smaller faces in the first epochs, where only what is coarse is learnt yet (Tan & Le 2021)."""

    sizes: tuple[int, ...] = Field((), description="sides in pixels; empty: the data's own throughout")
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
        """Return the side of the faces in an epoch (from 0) of a run, ``own`` being the data's.

        The last epoch always has the data's own.
        """
        for size, end in zip(self.sizes, self.until, strict=True):
            if epoch < min(math.floor(end * epochs + 1e-9), epochs - 1):
                return size
        return own


class OptimizerPart(_Part):
    """The optimiser; ``weight_decay`` is decoupled for adamw, else a factor of half the square norm."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=10)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(True, description="sgd only")
    weight_decay: float = Field(0.0, ge=0, description="kernels only")
    clip_norm: float = Field(0.0, ge=0, description="global norm of the gradient; 0 is off")
    ema: float = Field(0.0, ge=0, lt=1, description="decay per step; 0 is off")


class SchedulePart(_Part):
    """The learning rate over the run; epochs count from 0."""

    name: Literal["constant", "cosine", "step", "plateau"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0)
    final: float = Field(0.0, ge=0, le=1, description="cosine: last rate as a share of the first")
    milestones: tuple[int, ...] = Field((), description="step: epochs at which the rate falls")
    factor: float = Field(0.1, gt=0, lt=1, description="step, plateau: the rate's factor")
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
    """Everything that decides a run, but for the data's path."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**31)
    epochs: int = Field(20, ge=1, le=100_000)
    batch_size: int = Field(64, ge=1, le=65_536)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixed_precision: Literal["off", "bfloat16", "float16"] = "off"
    deterministic: bool = Field(False, description="deterministic operations, somewhat slower")
    early_stopping: int = Field(0, ge=0, description="epochs without a better validation accuracy; 0 is off")
    precise_batch_norm: int = Field(
        0, ge=0, description="unaugmented faces that its statistics are taken from at the end; 0 is off"
    )
    model: ModelPart
    heads: HeadsPart = HeadsPart()
    data: DataPart = DataPart()
    augment: AugmentConfig = AugmentConfig()
    progressive: ProgressivePart = ProgressivePart()
    distil: DistilPart = DistilPart()
    optimizer: OptimizerPart = OptimizerPart()
    schedule: SchedulePart = SchedulePart()

    @model_validator(mode="after")
    def _comparable(self) -> Recipe:
        if self.progressive.sizes and (self.early_stopping or self.schedule.name == "plateau"):
            raise ValueError(
                "early_stopping and a plateau schedule go by validation on faces of the full size, which a "
                "progressive run is not trained on before its last stage; leave one of them out"
            )
        if self.precise_batch_norm and self.early_stopping:
            raise ValueError(
                "early_stopping compares epochs, and precise_batch_norm makes the last one another kind of "
                "network than those before it; leave one of them out"
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
    """Return the names of the recipes that come with ferkit, sorted."""
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
            text = path.read_text(encoding="utf-8-sig")  # Notepad begins a file with a byte order mark
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
        values["augment"] = {}  # a run's own recipe spells out every key: a preset replaces them
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
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg']}"
            + (f". Received: {item['input']!r}" if item["type"] != "missing" else "")
            for item in error.errors()
        ]
        raise RecipeError(f"{source}: " + "; ".join(lines)) from None


def _set(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise RecipeError(f"an override is key=value. Received: {override!r}")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
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
    """Tell whether an override is about the network."""
    return override.partition("=")[0].strip().partition(".")[0] == "model"


def model_params(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the network's parameters that overrides name, for a network whose architecture is given.

    Raises:
        RecipeError: If one of them names an architecture.
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
    """Return the recipe as TOML that :func:`load_recipe` reads back to the same recipe."""
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
