"""Training runs of a second an epoch, and callbacks that interrupt them."""

from __future__ import annotations

import keras

from ferkit.training.callbacks import TIMINGS
from ferkit.training.recipe import parse_recipe


def tiny(**changes):
    """A recipe that uses most of what there is and takes a second an epoch."""
    values = {
        "name": "tiny",
        "seed": 5,
        "epochs": 3,
        "batch_size": 32,
        "label_smoothing": 0.1,
        "deterministic": True,
        "model": {
            "name": "se-resnet",
            "params": {"stem": 4, "filters": [8, 8], "blocks": [1, 1], "drop_path": 0.2, "dropout": 0.2},
        },
        "heads": {"label": 1.0, "ferplus": 0.5},
        "augment": {"preset": "strong"},
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4, "ema": 0.9},
        "schedule": {"name": "cosine", "warmup_epochs": 1},
    }
    return parse_recipe({**values, **changes})


class StopAt(keras.callbacks.Callback):
    """Press Ctrl-C, or do something else, after the second step of an epoch (from 1)."""

    def __init__(self, epoch, action=None):
        super().__init__()
        self.epoch, self.action = epoch, action

    def on_epoch_begin(self, epoch, logs=None):
        self.running = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if self.running == self.epoch and batch == 1:
            if self.action is None:
                raise KeyboardInterrupt
            self.action()


class StopBeforeTraining(keras.callbacks.Callback):
    """Press Ctrl-C before the first step."""

    def on_train_begin(self, logs=None):
        raise KeyboardInterrupt


def numbers(history):
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in history]
