"""Training runs of a second an epoch, and a way to stop them."""

from __future__ import annotations

from ferkit.training.recipe import parse_recipe
from ferkit.training.trainer import Quiet


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


class StopAt(Quiet):
    """Presses Ctrl-C, or does something else, at one step."""

    def __init__(self, epoch, action=None):
        self.epoch, self.action = epoch, action

    def step(self, *, epoch, step, steps, images, loss, accuracy):
        if epoch == self.epoch and step == 2:
            if self.action is None:
                raise KeyboardInterrupt
            self.action()


def numbers(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]
