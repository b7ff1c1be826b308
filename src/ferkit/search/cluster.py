"""Ray on this machine or on a cluster: its start, its connection, and what its nodes offer."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ferkit import __version__
from ferkit.core import raystart
from ferkit.core.errors import SearchError
from ferkit.core.extras import require
from ferkit.data import FaceDataset
from ferkit.search.worker import inspect_node


@dataclass(frozen=True, slots=True)
class Machine:
    """Where trials run; it may change when a search is resumed."""

    cores: int = 1  # cores per trial
    gpus: float = 0.0  # GPUs per trial; a fraction shares one
    parallel: int | None = None  # trials at a time; None: as many as cores and GPUs allow
    # Address of a Ray cluster (``auto`` on one of its nodes); None: this machine alone.
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.cores < 1 or self.gpus < 0 or (self.parallel is not None and self.parallel < 1):
            raise SearchError(
                "cores and parallel must be 1 or more, and gpus 0 or more. "
                f"Received: cores {self.cores}, gpus {self.gpus:g}, parallel {self.parallel}"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise SearchError(f"gpus above 1 must be a whole number. Received: {self.gpus:g}")
        if self.address and self.address.startswith("ray://"):
            raise SearchError(
                "Ray's client protocol is not supported; run the search on a node of the cluster with "
                f"--address auto. Received: {self.address}"
            )


@contextlib.contextmanager
def ray_running(machine: Machine, dataset: FaceDataset, log: Callable[[str], None]) -> Iterator[None]:
    """Start or join Ray, with an object store for the faces; see :func:`ferkit.core.raystart.ray_running`.

    Raises:
        SearchError: If Ray does not start, there is no cluster at the address, or no node has the resources
            of a trial.
    """
    if importlib.util.find_spec("keras") is None:
        require("keras", "train")  # Only the workers import it.
    cores = machine.cores * (machine.parallel or 1)
    memory = 2 * dataset.images.nbytes
    with raystart.ray_running(machine.address, cores=cores, memory=memory, fail=SearchError, log=log):
        nodes = _resources()
        if not any(slots_of(node, machine) for node in nodes):
            found = "; ".join(f"{n.get('CPU', 0):g} cores and {n.get('GPU', 0):g} GPUs" for n in nodes)
            raise SearchError(
                f"a trial needs {machine.cores} cores and {machine.gpus:g} GPUs on one node. Found: {found}"
            )
        yield


def _resources() -> list[dict[str, float]]:
    """Return the resources of every living node."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def slots_of(node: Mapping[str, float], machine: Machine) -> int:
    """Return how many trials a node with these resources runs at a time.

    A fraction of a GPU is taken from one GPU: three trials with 0.4 need two GPUs.
    """
    slots = int(node.get("CPU", 0) // machine.cores)
    if not machine.gpus:
        return slots
    per_gpu = int(1 / machine.gpus + 1e-9)
    gpus = int(node.get("GPU", 0))
    return min(slots, gpus * per_gpu if per_gpu else int(gpus / machine.gpus + 1e-9))


def count_slots(machine: Machine) -> int:
    """Return how many trials run at a time."""
    slots = sum(slots_of(node, machine) for node in _resources())
    return max(1, slots if machine.parallel is None else min(machine.parallel, slots))


def count_gpus() -> float:
    """Return the number of GPUs on all nodes."""
    return sum(node.get("GPU", 0) for node in _resources())


def check_nodes(file: Path) -> None:
    """Refuse a cluster with nodes that do not see a file of the driver, or have another version of ferkit.

    Raises:
        SearchError: With the node's name.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in filter(lambda node: node["Alive"], ray.nodes()):
        name = f"node {node['NodeManagerHostname']} of the cluster"
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        inspect = ray.remote(inspect_node).options(num_cpus=0, scheduling_strategy=strategy)
        try:
            version, visible = ray.get(inspect.remote(str(file)))
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1:]
            raise SearchError(f"{name} cannot run ferkit: {' '.join(last)}") from error
        if version != __version__:
            raise SearchError(f"{name} has ferkit {version}, this one {__version__}")
        if not visible:
            raise SearchError(
                f"{name} does not see {file.parent}; --out must be a folder that all nodes share under the "
                "same path"
            )
