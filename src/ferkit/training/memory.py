"""Out of memory: the frameworks' exceptions as one error of ferkit."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ferkit.core.errors import OutputError, TrainingError
from ferkit.core.runtime import first_line

OUT_OF_MEMORY = "out of memory: "
"""The beginning of the reason where training, or building a network, ran out of memory."""

_JAX = "RESOURCE_EXHAUSTED"
"""The beginning of JAX's message; its class is that of every runtime error."""


_OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""System errors of files that TensorFlow reports with the same exception as memory."""


def memory_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of Python and the framework for too little memory."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return (MemoryError, tf.errors.ResourceExhaustedError)
    return (MemoryError,)


def out_of_memory(error: Exception) -> str:
    """Return a reason of one line."""
    return f"{OUT_OF_MEMORY}{first_line(error)[:200]}"


@contextlib.contextmanager
def explaining_memory() -> Iterator[None]:
    """Turn the frameworks' exceptions for too little memory into errors of ferkit.

    Raises:
        TrainingError: For too little memory; the message begins with :data:`OUT_OF_MEMORY`.
        OutputError: For a full disk, or too many open files.
    """
    advice = "a smaller batch_size, or a smaller network, takes less"
    try:
        yield
    except memory_errors() as error:
        if any(os.strerror(code) in str(error) for code in _OF_FILES):
            raise OutputError(f"cannot write the run: {first_line(error)[:200]}") from error
        raise TrainingError(f"{out_of_memory(error)}; {advice}") from error
    except RuntimeError as error:
        if not str(error).startswith(_JAX):
            raise
        raise TrainingError(f"{out_of_memory(error)}; {advice}") from error
