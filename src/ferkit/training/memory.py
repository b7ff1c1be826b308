"""Too little memory: what the frameworks raise, told as an error for people."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ferkit.errors import TrainingError

OUT_OF_MEMORY = "out of memory: "
"""Begins the reason where memory did not suffice, for training or for counting."""

_JAX = "RESOURCE_EXHAUSTED"
"""Begins JAX's message, whose class stands for every error of its runtime."""


def memory_errors() -> tuple[type[Exception], ...]:
    """Return what Python and the framework raise where memory does not suffice."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return (MemoryError, tf.errors.ResourceExhaustedError)
    return (MemoryError,)


def out_of_memory(error: Exception) -> str:
    """Return a reason of one line."""
    first = (str(error).strip().splitlines() or ["no further word"])[0]
    return f"{OUT_OF_MEMORY}{first[:200]}"


@contextlib.contextmanager
def explaining_memory() -> Iterator[None]:
    """Explain what is raised within the block where memory does not suffice.

    Raises:
        TrainingError: In its place; the message begins with :data:`OUT_OF_MEMORY`.
    """
    advice = "a smaller batch_size, or a smaller network, takes less"
    try:
        yield
    except memory_errors() as error:
        raise TrainingError(f"{out_of_memory(error)}; {advice}") from error
    except RuntimeError as error:
        if not str(error).startswith(_JAX):
            raise
        raise TrainingError(f"{out_of_memory(error)}; {advice}") from error
