"""What happens to a batch of faces before the network sees it."""

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
    """Load the layer, and Keras with it, only where it is used; a recipe is read without."""
    if name in ("Augmenter", "augment_preview"):
        from ferkit.augment import layer

        return getattr(layer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
