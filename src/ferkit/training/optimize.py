"""The optimiser and the learning-rate schedule of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from ferkit.training.recipe import Recipe


def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> Any:
    """Return the Keras optimiser of a recipe, with its schedule over ``epochs * steps_per_epoch`` steps."""
    part = recipe.optimizer
    common: dict[str, Any] = {
        "learning_rate": _schedule(recipe, steps_per_epoch),
        "global_clipnorm": part.clip_norm or None,
        "use_ema": bool(part.ema),
        "ema_momentum": part.ema or 0.99,
    }
    if part.name == "sgd":
        return keras.optimizers.SGD(
            momentum=part.momentum, nesterov=part.nesterov and part.momentum > 0, **common
        )
    if part.name == "adam":
        return keras.optimizers.Adam(**common)
    optimizer = keras.optimizers.AdamW(weight_decay=part.weight_decay, **common)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _schedule(recipe: Recipe, steps_per_epoch: int) -> Any:
    part, rate = recipe.schedule, recipe.optimizer.learning_rate
    if part.name in ("constant", "plateau"):
        return rate
    warmup = min(round(part.warmup_epochs * steps_per_epoch), recipe.epochs * steps_per_epoch - 1)
    if part.name == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=rate / max(warmup, 1) if warmup else rate,
            decay_steps=max(recipe.epochs * steps_per_epoch - warmup, 1),
            alpha=part.final,
            warmup_target=rate if warmup else None,
            warmup_steps=warmup,
        )
    # Keras keeps a value up to and including its boundary.
    boundaries = [epoch * steps_per_epoch - 1 for epoch in part.milestones]
    values = [rate * part.factor**k for k in range(len(boundaries) + 1)]
    if warmup:
        ramp = 10
        steps = [round(warmup * (k + 1) / ramp) for k in range(ramp)]
        boundaries = steps + [b for b in boundaries if b > steps[-1]]
        values = [rate * (k + 1) / ramp for k in range(ramp)] + values[-(len(boundaries) - ramp + 1) :]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def plateau_rate(recipe: Recipe, validation_losses: Sequence[float]) -> float:
    """Return the learning rate of the next epoch under a plateau schedule.

    The rate falls by ``factor`` whenever the validation loss has had no new minimum for ``patience``
    epochs. It depends on the history alone, so that a resumed run has the same rate.
    """
    rate = recipe.optimizer.learning_rate
    best, waited = float("inf"), 0
    for loss in validation_losses:
        if loss < best:
            best, waited = loss, 0
        else:
            waited += 1
        if waited >= recipe.schedule.patience:
            rate, waited = rate * recipe.schedule.factor, 0
    return rate
