"""Ray, on this machine or a cluster: started, connected to, and asked what it has."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferkit import __version__
from ferkit.core.errors import OutputError, SearchError
from ferkit.core.extras import require
from ferkit.data import FaceDataset
from ferkit.search.records import LOCK, locked
from ferkit.search.worker import look_around

# Nothing is sent anywhere, nothing is written that we do not read, Tune leaves signals to us, trials run at
# the command's own priority (Ray's default is 15 below), and a process that starts slowly on a busy machine
# is waited for (Ray's default is to give it up after 60 or 100 s).
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_gcs_server_port_wait_time_s": "180",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_TEMPORARY = "ferkit-"
_TEMPORARY_LOCK = ".ray-lock"
"""Of Ray's temporary folder. Not the name of a search's own lock: a search may lie in that place, too."""
_WORKER_ENVIRONMENT = {
    # A worker goes on with the next trial once the thread of the last one has ended. Where ASHA stopped it,
    # Keras takes its time to leave; after the 2 s that Tune waits, the next trial would be lost, and Tune
    # wait for it for ever.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Without it a trial that asks for no GPU takes all there are.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where trials run; it may change when a search goes on.

    Args:
        cores: Cores for each trial.
        gpus: GPUs for each trial; a fraction shares one.
        parallel: Trials at a time; None: as many as the cores and GPUs allow.
        address: A Ray cluster's address (``auto`` on one of its nodes); None: this machine alone.
    """

    cores: int = 1
    gpus: float = 0.0
    parallel: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no machine has."""
        if self.cores < 1 or self.gpus < 0 or (self.parallel is not None and self.parallel < 1):
            raise SearchError(
                "a trial needs at least one core and 0 GPUs, and at least one trial runs at a time. "
                f"Received: {self.cores} cores, {self.gpus:g} GPUs, {self.parallel} in parallel"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise SearchError(f"above one GPU a trial has whole ones. Received: {self.gpus:g} GPUs")
        if self.address and self.address.startswith("ray://"):
            raise SearchError(
                "run the search on a node of the cluster, with --address auto. "
                f"Received: {self.address}, which is Ray's client protocol"
            )


@contextlib.contextmanager
def ray_running(machine: Machine, dataset: FaceDataset | None) -> Iterator[bool]:
    """Connect to Ray or start it on this machine, and stop it afterwards; a running one is used as it is.

    Yields:
        Whether it will be stopped afterwards.

    Raises:
        SearchError: If there is no cluster at the address, or it has not what a trial needs.
    """
    with _environment({**_ENVIRONMENT, **_WORKER_ENVIRONMENT}):
        import ray

        if ray.is_initialized():
            _check_resources(machine)
            yield False
            return
        common: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        with contextlib.ExitStack() as stack:
            stack.callback(ray.shutdown)
            if machine.address:
                try:
                    ray.init(
                        address=machine.address, runtime_env={"env_vars": dict(_WORKER_ENVIRONMENT)}, **common
                    )
                except (ConnectionError, ValueError, RuntimeError) as error:
                    raise SearchError(
                        f"no Ray cluster answers at {machine.address!r}: {one_line(error)}"
                    ) from error
            else:
                temporary = stack.enter_context(_temporary_folder())
                stack.callback(ray.shutdown)  # Before its folder goes.
                images = 0 if dataset is None else dataset.images.nbytes
                stack.enter_context(patient_start())
                try:
                    ray.init(
                        num_cpus=max(count_cores(), machine.cores * (machine.parallel or 1)),
                        include_dashboard=False,
                        object_store_memory=max(128 << 20, 2 * images),
                        _node_ip_address="127.0.0.1",
                        _temp_dir=str(temporary),
                        **common,
                    )
                except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                    raise SearchError(
                        f"Ray does not start on this machine: {one_line(error)}; it needs room in "
                        f"{temporary.parent} and in shared memory"
                    ) from error
            _check_resources(machine)
            yield True


@contextlib.contextmanager
def patient_start(seconds: float = 180.0) -> Iterator[None]:
    """Let Ray wait longer for a node to start: it gives up after 30 s, and has no setting for that.

    Args:
        seconds: How long a node may take on a machine that is busy with other work.
    """
    from ray._private import services

    ask = services.get_node

    def wait_for_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:  # Not known yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = ask


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a folder for Ray, and remove it afterwards, with those that killed searches left behind.

    Its path is short: sockets lie in it, whose paths have little room.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*/{_TEMPORARY_LOCK}"):
        with contextlib.suppress(SearchError, OutputError), locked(left, 0.0, "search"):
            shutil.rmtree(left.parent, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    except OSError as error:
        raise OutputError(f"cannot make a temporary folder for Ray: {error.strerror or error}") from error
    try:
        with locked(folder / _TEMPORARY_LOCK, 5.0, "search"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_resources(machine: Machine) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= machine.cores and n.get("GPU", 0) >= machine.gpus for n in nodes):
        have = "; ".join(f"{n.get('CPU', 0):g} cores and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise SearchError(
            f"a trial needs {machine.cores} cores and {machine.gpus:g} GPUs on one machine; there are: {have}"
        )


def require_libraries() -> None:
    """Refuse to start where a library is missing; only the workers load Keras, and only they pay for it."""
    for module, extra in (("keras", "train"), ("ray", "tune"), ("optuna", "tune"), ("pandas", "tune")):
        if importlib.util.find_spec(module) is None:
            require(module, extra)


def count_places(machine: Machine) -> int:
    """Return how many trials fit at a time."""
    import ray

    slots = sum(places_of(node["Resources"], machine) for node in ray.nodes() if node["Alive"])
    return max(1, slots if machine.parallel is None else min(machine.parallel, slots))


def places_of(have: Mapping[str, float], machine: Machine) -> int:
    """Return how many trials fit on a node with these resources at a time.

    A trial's share of a GPU is of a single one: three of 0.4 take two GPUs.
    """
    fit = int(have.get("CPU", 0) // machine.cores)
    if not machine.gpus:
        return fit
    gpus = int(have.get("GPU", 0))
    each = int(1 / machine.gpus + 1e-9)
    return min(fit, gpus * each if each else int(gpus / machine.gpus + 1e-9))


def check_nodes(folder: Path) -> None:
    """Refuse a cluster whose nodes cannot see the search's folder or run another version."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(look_around)
    file = str(folder / LOCK)
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        name = node["NodeManagerHostname"]
        try:
            version, visible = ray.get(look.options(num_cpus=0, scheduling_strategy=place).remote(file))
        except ray.exceptions.RayError as error:
            words = str(error).strip().splitlines()[-1:]
            raise SearchError(f"node {name} of the cluster cannot run ferkit: {' '.join(words)}") from error
        if version != __version__:
            raise SearchError(f"node {name} of the cluster has ferkit {version}, this one {__version__}")
        if not visible:
            raise SearchError(
                f"node {name} of the cluster does not see {folder}; --out must lie in a folder that all "
                "nodes share by the same path"
            )


def count_gpus() -> float:
    """Return the GPUs that Ray sees on all nodes."""
    import ray

    return float(sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]))


def one_line(error: BaseException) -> str:
    """Return what an error of another library says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
