"""Augmentation of faces and balancing of rare classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ferkit.augment.balance import BALANCES, balanced_rows, class_weights
from ferkit.augment.config import PRESETS, AugmentConfig

if TYPE_CHECKING:
    from ferkit.augment.layer import Augmenter, augment_preview

__all__ = [
    "BALANCES",
    "PRESETS",
    "AugmentConfig",
    "Augmenter",
    "augment_preview",
    "balanced_rows",
    "class_weights",
]


def __getattr__(name: str) -> Any:
    """Import the layer, and Keras with it, when it is used; recipes need neither."""
    if name in ("Augmenter", "augment_preview"):
        from ferkit.augment import layer

        return getattr(layer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
