"""Batches on Ray Data: the rows of the local engine, and the loss of a worker and of a node."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import modelzoo
from ferkit import Recognizer
from ferkit.detect import Detection
from samples import sample

pytest.importorskip("pyarrow", reason="batches on Ray need ferkit[cluster]")
pytest.importorskip("ray", reason="batches on Ray need ferkit[cluster]")

import pyarrow as pa
import ray

from ferkit.batch import inputs as batch_inputs
from ferkit.batch.engine import Engine
from ferkit.batch.inputs import Inputs
from ferkit.batch.output import Done
from ferkit.batch.ray_engine import RayWorkers, run_on_ray
from ferkit.batch.tables import Chunk, Tables
from ferkit.core.errors import FerkitError
from ferkit.core.raystart import ray_running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),  # Ray Data's own settings are deprecated ones
    pytest.mark.skipif(
        os.environ.get("FERKIT_RAY_TESTS") == "0",
        reason="SWITCHED OFF by FERKIT_RAY_TESTS=0: batches on a live Ray cluster",
    ),
]

CROPS = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx").read_bytes()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small crops, two photos, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for k in range(CROPS):
        Image.fromarray(np.full((16, 16), k, np.uint8)).save(folder / f"{k:03d}.png")
    for name in ("astronaut.jpg", "chelsea.png"):
        with Image.open(sample(name)) as photo:
            photo.convert("RGB").resize((200, 200)).save(folder / f"{Path(name).stem}.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray's own test cluster: two nodes on this machine, each with a place for one worker."""
    from ray.cluster_utils import Cluster

    # The detectors of this module travel to the workers, which cannot import it.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_worker_register_timeout_seconds", "600")
        patch.setenv("RAY_health_check_period_ms", "500")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.second = cluster.add_node(num_cpus=1)
            with ray_running(cluster.address, cores=1, memory=0, fail=FerkitError, log=print):
                yield cluster
        finally:
            cluster.shutdown()
            ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Slow:
    """Takes its time, finds one face, and leaves the number of its process in a folder."""

    name = "slow"

    def __init__(self, folder: str = "", seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds

    def detect(self, image: np.ndarray) -> tuple[Detection, ...]:
        if self.folder:
            (Path(self.folder) / str(os.getpid())).touch()
            time.sleep(self.seconds)
        return (Detection((0.0, 0.0, 16.0, 16.0), 0.5),)


class Deadly:
    """Ends its process at one photo, as a fault in a decoder would."""

    name = "deadly"

    def detect(self, image: np.ndarray) -> tuple[Detection, ...]:
        if image[0, 0, 0] == 7:
            os._exit(1)
        return (Detection((0.0, 0.0, 16.0, 16.0), 0.5),)


def make_engine(model: bytes, detector: Any = "yunet") -> Engine:
    recognizer = Recognizer(model, detector=detector, threads=1)
    return Engine(recognizer, Tables(recognizer.taxonomy.labels, {}), Done(), chunk=4)


def joined(chunks: list[Chunk]) -> tuple[pa.Table, pa.Table]:
    faces, photos = zip(*chunks, strict=True)
    return pa.concat_tables(faces), pa.concat_tables(photos).drop_columns("milliseconds")


def test_workers_of_ray_give_the_rows_of_the_local_engine(cluster: Any, model: bytes, photos: Path) -> None:
    engine, inputs = make_engine(model), Inputs([str(photos)])
    local = joined(list(engine.run(inputs.tasks(Done()))))
    chunks = list(run_on_ray(engine, inputs.tasks(Done()), RayWorkers(2, 2), threading.Event()))
    assert joined(chunks) == local
    assert len(local[1]) == CROPS + 3


def test_a_run_that_is_stopped_gives_up_what_is_not_there_yet(
    cluster: Any, model: bytes, photos: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    engine, inputs = make_engine(model, Slow(str(tmp_path), 0.01)), Inputs([str(photos)])
    results = run_on_ray(engine, inputs.tasks(Done()), RayWorkers(1, 1), stop)
    assert len(next(results).photos) == 4
    stop.set()
    assert list(results) == []


def test_a_photo_that_kills_its_workers_costs_its_own_row(cluster: Any, model: bytes, photos: Path) -> None:
    inputs = Inputs([str(photos / f"{k:03d}.png") for k in range(12)])
    chunks = run_on_ray(
        make_engine(model, Deadly()), inputs.tasks(Done()), RayWorkers(1, 1), threading.Event()
    )
    seen = joined(list(chunks))[1].to_pylist()
    assert [row["status"] for row in seen] == ["unreadable" if k == 7 else "ok" for k in range(12)]
    assert seen[7]["error"] == f"2 workers died while they read {photos / '007.png'}"


def test_a_killed_worker_and_a_lost_node_lose_nothing_and_repeat_nothing(
    cluster: Any, model: bytes, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_inputs, "TASK_PHOTOS", 4)
    inputs = Inputs([str(photos)])
    expected = joined(list(make_engine(model, Slow()).run(inputs.tasks(Done()))))
    engine = make_engine(model, Slow(str(tmp_path), 0.05))
    chunks = []
    for chunk in run_on_ray(engine, inputs.tasks(Done()), RayWorkers(2, 2), threading.Event()):
        chunks.append(chunk)
        if len(chunks) == 2:
            (first, *_) = sorted(int(path.name) for path in tmp_path.iterdir())
            os.kill(first, signal.SIGKILL)
        if len(chunks) == 6:
            cluster.remove_node(cluster.second, allow_graceful=False)
    assert (
        len(list(tmp_path.iterdir())) >= 3
    )  # processes: two workers, and one that took the place of the killed
    assert joined(chunks) == expected
