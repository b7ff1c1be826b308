"""What happens to a batch of faces before the network sees it."""

from __future__ import annotations

from ferkit.augment.balance import BALANCES, balanced_rows, class_weights
from ferkit.augment.config import PRESETS, AugmentConfig
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
