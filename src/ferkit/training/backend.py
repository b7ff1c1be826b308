"""Keras with the settings that ferkit needs; import it from here before anything imports TensorFlow."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ferkit.core.errors import MissingDependencyError, TrainingError
from ferkit.core.extras import require
from ferkit.training.precision import choose_precision, use_onednn

BACKENDS = ("tensorflow", "jax")
"""The backends of Keras that ferkit trains on; the first is Keras' default."""


def _settings() -> Path:
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"


def check_backend() -> None:
    """Refuse other backends of Keras, before Keras is imported and fails on them.

    Raises:
        TrainingError: If another one is chosen.
    """
    chosen, where = os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not chosen:
        where = str(_settings())
        try:
            chosen = json.loads(_settings().read_text("utf-8"))["backend"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # Keras uses its default, TensorFlow
    if chosen not in BACKENDS:
        raise TrainingError(
            f"ferkit trains, and reads runs, on Keras' backends {' and '.join(BACKENDS)}; set "
            f"KERAS_BACKEND to one of them. Received: {chosen!r} (from {where})"
        )


check_backend()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
use_onednn()
try:
    keras = require("keras", "train")
except MissingDependencyError as error:
    if isinstance(cause := error.__cause__, ValueError) and _settings().is_file():
        raise TrainingError(f"Keras refuses {_settings()}: {cause}") from cause
    raise
# keras.json may set others, for the user's own networks.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")


def choose_precision_here(wanted: str) -> tuple[str, str]:
    """Return :func:`ferkit.training.precision.choose_precision` for the device that Keras uses."""
    return choose_precision(wanted, _accelerator() if wanted == "auto" else None)


def _accelerator() -> tuple[str, float] | None:
    """Return the kind of the accelerator that Keras uses and its compute capability; None for the CPU."""
    if keras.backend.backend() == "jax":
        import jax

        device = jax.devices()[0]
        capability = float(getattr(device, "compute_capability", 0))
        return None if device.platform == "cpu" else (device.platform, capability)
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        major, minor = tf.config.experimental.get_device_details(device).get("compute_capability", (0, 0))
        return "gpu", major + minor / 10
    return None
