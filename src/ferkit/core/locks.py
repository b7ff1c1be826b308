"""Locks that keep two processes from writing into one folder."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ferkit.core.errors import FerkitError, OutputError

LOCK = ".lock"
"""Name of the lock file in the folder; it stays when the lock is released."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of a file system that has no locks."""


@contextlib.contextmanager
def folder_lock(folder: Path, busy: FerkitError) -> Iterator[bool]:
    """Keep other processes out of a folder, which is created; the lock ends with the process.

    Args:
        folder: The folder.
        busy: Raised if another process holds the lock.

    Yields:
        Whether the folder is locked; False on a file system that has no locks.

    Raises:
        OutputError: If the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    locked = True
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder / LOCK, timeout=0, fallback_to_soft=False))
        except Timeout:
            raise busy from None
        except NotImplementedError:  # filelock, of a system without locks
            locked = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
            locked = False
        yield locked
