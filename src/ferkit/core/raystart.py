"""The start of Ray on this machine, and the connection to a cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ferkit.core.errors import FerkitError, OutputError
from ferkit.core.runtime import first_line, usable_cores

_ENVIRONMENT = {
    # Workers have the priority of the command; Ray's default is 15 below.
    "RAY_worker_niceness": "0",
    # Processes may take longer to start on a busy machine than Ray's defaults of 60 and 100 s.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_port_wait_time_s": "180",
}
_TEMPORARY, _TEMPORARY_LOCK = "ferkit-ray-", ".ray-lock"


@contextlib.contextmanager
def ray_running(
    address: str | None,
    *,
    cores: int,
    memory: int,
    fail: Callable[[str], FerkitError],
    log: Callable[[str], None],
) -> Iterator[None]:
    """Start Ray on this machine without its telemetry, or join a cluster; stop or leave it afterwards.

    Ray that this process has started or joined before is used as it is.

    Args:
        address: Address of a cluster (``auto`` on one of its nodes); None: this machine alone.
        cores: Cores that Ray has on this machine, at least; by default those that this process may use.
        memory: Bytes of the object store on this machine, at least 128 MiB.
        fail: The class of the errors.
        log: Receives a line about what was ignored.

    Raises:
        FerkitError: If Ray does not start, or there is no cluster at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with contextlib.ExitStack() as stack:
        if ray.is_initialized():
            pass
        elif address:
            stack.callback(ray.shutdown)
            try:
                ray.init(address=address, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise fail(f"no Ray cluster found at {address!r}: {first_line(error)}") from error
        else:
            if "RAY_ADDRESS" in os.environ:
                log(f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} is ignored; --address connects to a cluster")
            temporary = stack.enter_context(temporary_folder())
            stack.callback(ray.shutdown)  # Before its folder is removed.
            try:
                ray.init(
                    address="local",  # Whatever RAY_ADDRESS says.
                    num_cpus=max(usable_cores(), cores),
                    include_dashboard=False,
                    object_store_memory=max(128 << 20, memory),
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(temporary),
                    **options,
                )
            # Ray raises this very class if a node takes longer than 30 s to start.
            except Exception as error:
                raise fail(
                    f"Ray does not start on this machine: {first_line(error)}; it needs space in "
                    f"{temporary.parent} and in shared memory, and may take 30 s"
                ) from error
        yield


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for Ray with a short path (sockets lie in it), and remove those of killed processes."""
    from filelock import FileLock, Timeout

    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*/{_TEMPORARY_LOCK}"):
        with contextlib.suppress(Timeout, OSError), FileLock(left, timeout=0):
            shutil.rmtree(left.parent, ignore_errors=True)
    try:
        folder = tempfile.TemporaryDirectory(prefix=_TEMPORARY, ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(f"cannot make a temporary folder for Ray: {error.strerror or error}") from error
    with folder as name, FileLock(Path(name) / _TEMPORARY_LOCK, timeout=5):
        yield Path(name)
