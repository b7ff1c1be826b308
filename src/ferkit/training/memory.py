"""Too little memory: what the frameworks raise, told as an error for people."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ferkit.core.errors import OutputError, TrainingError

OUT_OF_MEMORY = "out of memory: "
"""Begins the reason where memory did not suffice, for training or for counting."""

_JAX = "RESOURCE_EXHAUSTED"
"""Begins JAX's message, whose class stands for every error of its runtime."""


_OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""What the system says of files for which TensorFlow has the same error as for memory."""


def memory_errors() -> tuple[type[Exception], ...]:
    """Return what Python and the framework raise where memory does not suffice."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return (MemoryError, tf.errors.ResourceExhaustedError)
    return (MemoryError,)


def out_of_memory(error: Exception) -> str:
    """Return a reason of one line."""
    return f"{OUT_OF_MEMORY}{_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no further word"])[0][:200]


@contextlib.contextmanager
def explaining_memory() -> Iterator[None]:
    """Explain what is raised within the block where memory does not suffice.

    Raises:
        TrainingError: In its place; the message begins with :data:`OUT_OF_MEMORY`.
        OutputError: Where it was the disk that did not suffice, or the number of open files.
    """
    advice = "a smaller batch_size, or a smaller network, takes less"
    try:
        yield
    except memory_errors() as error:
        if any(os.strerror(code) in str(error) for code in _OF_FILES):
            raise OutputError(f"cannot write the run: {_first_line(error)}") from error
        raise TrainingError(f"{out_of_memory(error)}; {advice}") from error
    except RuntimeError as error:
        if not str(error).startswith(_JAX):
            raise
        raise TrainingError(f"{out_of_memory(error)}; {advice}") from error
