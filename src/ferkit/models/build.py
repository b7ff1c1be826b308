"""From an architecture's name and parameters to a Keras model with one output per taxonomy."""

from __future__ import annotations

import fnmatch
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ferkit.core.errors import ModelError

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "seed-cnn": "ferkit.models.seed_cnn",
        "random-search-2021": "ferkit.models.random_search_2021",
        "mini-xception": "ferkit.models.mini_xception",
        "vgg": "ferkit.models.vgg",
        "se-resnet": "ferkit.models.se_resnet",
    }
)
"""The module of each architecture. It has ``Params``, ``features`` and, if its last layers are not the
usual ones, ``head``."""


class ArchitectureParams(BaseModel):
    """Base of every architecture's parameters: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    view_size: int | None = Field(
        None, description="side of the middle crop that the network sees; by default the whole face"
    )


@dataclass(frozen=True, slots=True)
class Architecture:
    """A registered architecture."""

    name: str  # in recipes
    summary: str  # one sentence
    params: type[ArchitectureParams]  # the pydantic class of its parameters
    # From float32 ``[N, s, s, 1]`` in 0..1 and parameters to ``[N, h, w, C]`` or ``[N, F]``.
    features: Callable[[Any, Any], Any]
    # From features, class count, parameters and a layer name to logits ``[N, K]``, or None for global average
    # pooling (where the features are a map), dropout and a dense layer.
    head: Callable[[Any, int, Any, str], Any] | None


def list_architectures(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, in the registry's order."""
    return [name for name in ARCHITECTURES if fnmatch.fnmatchcase(name, pattern)]


def get_architecture(name: str) -> Architecture:
    """Load an architecture by name.

    Raises:
        ModelError: If there is none of that name.
    """
    if name not in ARCHITECTURES:
        raise ModelError(f"unknown architecture {name!r}; known are {', '.join(ARCHITECTURES)}")
    module = importlib.import_module(ARCHITECTURES[name])
    summary = (module.__doc__ or "").strip().splitlines()[0]
    return Architecture(name, summary, module.Params, module.features, getattr(module, "head", None))


def parse_params(name: str, params: Mapping[str, Any]) -> ArchitectureParams:
    """Validate an architecture's parameters.

    Raises:
        ModelError: If a key is unknown or a value is out of range.
    """
    try:
        return get_architecture(name).params.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(get_architecture(name).params.model_fields)
            raise ModelError(f"architecture {name!r} has no parameter {where!r}; it has {known}") from None
        raise ModelError(
            f"architecture {name!r}, parameter {where!r}: {first['msg']}. Received: {first['input']!r}"
        ) from None


def build_model(
    name: str,
    heads: Mapping[str, int],
    *,
    input_size: int = 48,
    dtype: str = "float32",
    **params: Any,
) -> Any:
    """Build a network.

    Args:
        name: Name in :data:`ARCHITECTURES`.
        heads: Number of classes per taxonomy id; one output each.
        input_size: Side of a face in pixels.
        dtype: Keras dtype policy of the body (``float32``, ``mixed_bfloat16``, ``mixed_float16``).
        **params: The architecture's own parameters.

    Returns:
        A functional ``keras.Model``: float32 ``[N, S, S, 1]``, gray 0..255, to a dict of float32 logits
        ``[N, K]`` by taxonomy id. It scales (to 0..1) and crops by itself.

    Raises:
        ModelError: If the name, a parameter or a head is unusable.
    """
    import keras

    architecture = get_architecture(name)
    parsed = parse_params(name, params)
    if not heads:
        raise ModelError("a network needs at least one head")
    for taxonomy_id, classes in heads.items():
        if classes < 2:
            raise ModelError(f"head {taxonomy_id!r} needs two classes or more. Received: {classes}")
    view = parsed.view_size or input_size
    if not 8 <= view <= input_size or (input_size - view) % 2:
        raise ModelError(f"view_size must lie in 8..{input_size} and leave an even border. Received: {view}")
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        face = keras.Input((input_size, input_size, 1), dtype="float32", name="pixels")
        x = face
        if view != input_size:
            x = keras.layers.Cropping2D((input_size - view) // 2, name="view")(x)
        x = keras.layers.Rescaling(1 / 255, name="scale")(x)
        try:
            body = architecture.features(x, parsed)
            outputs = {
                taxonomy_id: (architecture.head or _pooled_head)(
                    body, classes, parsed, f"logits_{taxonomy_id}"
                )
                for taxonomy_id, classes in heads.items()
            }
        except ValueError as error:
            raise ModelError(
                f"{name} cannot be built for {view} pixels with {parsed.model_dump()}: {error}"
            ) from error
        return keras.Model(face, outputs, name=name.replace("-", "_"))
    finally:
        keras.config.set_dtype_policy(previous)


def _pooled_head(body: Any, classes: int, params: Any, name: str) -> Any:
    """Global average pooling where the features are a map, dropout, and a dense layer in float32."""
    from keras import layers

    suffix = name.removeprefix("logits_")
    if len(body.shape) == 4:
        body = layers.GlobalAveragePooling2D(name=f"pool_{suffix}")(body)
        rate = float(getattr(params, "dropout", 0.0))
        if rate:
            body = layers.Dropout(rate, name=f"drop_{suffix}")(body)
    return layers.Dense(classes, dtype="float32", name=name)(body)


def count_macs(model: Any) -> int:
    """Count the multiplications of one face through convolutions and dense layers.

    The same count that papers call MAC or, loosely, FLOPs / 2; normalisation and activations are left out.
    """
    from keras import layers

    total = 0
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if isinstance(layer, layers.SeparableConv2D):
            places = math.prod(layer.output.shape[1:3])
            kernel = math.prod(layer.kernel_size)
            channels = layer.input.shape[-1]
            total += places * channels * layer.depth_multiplier * (kernel + layer.filters)
        elif isinstance(layer, layers.DepthwiseConv2D | layers.Conv2D):
            total += math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.Dense):
            total += math.prod(layer.kernel.shape)
    return total
