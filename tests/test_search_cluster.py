"""Searches on a live Ray cluster of two nodes: results, losses, interruptions and their continuation."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ferkit.core.errors import FerkitError, OutputError, SearchError, TrainingError

pytest.importorskip("ray", reason="the search on a live Ray cluster needs ferkit[tune]")
pytest.importorskip("optuna", reason="the search on a live Ray cluster needs ferkit[tune]")
pytest.importorskip("keras", reason="the search on a live Ray cluster needs ferkit[tune]")


from ferkit.data import load_data
from ferkit.search.cluster import Machine, ray_running
from ferkit.search.driver import Callback, resume, sample, search
from ferkit.search.report import write_report
from ferkit.search.sampling import CostFilter, propose
from ferkit.search.space import parse_space
from ferkit.search.study import JOURNAL, Settings, read_search
from ferkit.search.worker import limit_resources
from ferkit.training.recipe import load_recipe
from ferkit.training.runs import load_run
from searchfiles import TINY, cost_of

# Nothing here depends on speed: a trial waits while the driver handles its epoch, so a trial that is killed,
# starved or interrupted there has not ended meanwhile.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.environ.get("FERKIT_RAY_TESTS") == "0",
        reason="SWITCHED OFF by FERKIT_RAY_TESTS=0: the search on a live Ray cluster",
    ),
]

SPACE = parse_space(TINY)
THREE = Settings(trials=3, seed=2, max_params=19_000)
LOST = "the worker died (killed, out of memory, or its machine was lost)"


@pytest.fixture(scope="module")
def faces():
    return load_data("cartoon:210:3", cache=False)


@pytest.fixture(scope="module", autouse=True)
def environment():
    """The environment of Ray and its workers; yields the drivers whose processes must all end."""
    drivers = [os.getpid()]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            # It must not matter: without --address a search starts Ray on this machine.
            "RAY_ADDRESS": "10.9.8.7:6379",
            # On a busy machine the tests would take very long, or not begin.
            "RAY_worker_niceness": "0",
            "RAY_worker_register_timeout_seconds": "600",
            "RAY_agent_register_timeout_ms": "600000",
            "RAY_gcs_server_port_wait_time_s": "180",
            # A lost node is noticed after 2.5 s, not 15; what a killed driver leaves goes after 20 s, not 60.
            "RAY_health_check_period_ms": "500",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
            # Without memory, oneDNN's convolution ends the process; TensorFlow's own says so.
            "TF_ENABLE_ONEDNN_OPTS": "0",
        }.items():
            patch.setenv(name, value)
        yield drivers
    for driver in drivers:
        wait_until_gone(driver)


@pytest.fixture(scope="module")
def cluster(environment, faces):
    """Ray's own test cluster: two nodes on this machine, each with a place for one trial."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        # Two GPUs that do not exist; no trial requests one.
        cluster.second = cluster.add_node(num_cpus=1, num_gpus=2)
        with ray_running(Machine(address=cluster.address), faces, print):
            yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def two(cluster):
    """Both nodes."""
    return Machine(address=cluster.address)


@pytest.fixture(scope="module")
def one(cluster):
    """One trial at a time."""
    return Machine(address=cluster.address, parallel=1)


class Recorder(Callback):
    """Keeps the events, and acts once on the chosen one."""

    def __init__(self, number: int = -1, event: str = "", action=None) -> None:
        self.events: list[tuple[int, str]] = []
        self.messages: list[str] = []
        self.chosen, self.action = (number, event), action

    def log(self, message: str) -> None:
        self.messages.append(message)

    def on_trial_begin(self, trial) -> None:
        self.record(trial, "begin")

    def on_epoch_end(self, trial) -> None:
        self.record(trial, "epoch")

    def on_trial_retry(self, trial) -> None:
        self.record(trial, "retry")

    def on_trial_end(self, trial) -> None:
        self.record(trial, "end")

    def record(self, trial, event: str) -> None:
        self.events.append((trial.number, event))
        if (trial.number, event) == self.chosen and self.action is not None:
            action, self.action = self.action, None
            action(trial)


def processes_of(driver: int) -> list[str]:
    """The processes that have open files in the Ray session that a process started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has just ended.
            files = [str(link.readlink()) for link in (folder / "fd").iterdir()]
            if folder.name != str(driver) and any(re.search(rf"/session_[^/]*_{driver}/", f) for f in files):
                found.append(f"{folder.name}: {(folder / 'cmdline').read_text().strip()}")
    return found


def wait_until_gone(driver: int) -> None:
    """Wait until no process of Ray is left that a process started."""
    deadline = time.monotonic() + 300
    while left := processes_of(driver):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def kill(trial) -> None:
    os.kill(trial.pid, signal.SIGKILL)


# This search comes first and runs in a process of its own, since it is killed and interrupted; what a killed
# driver leaves ends after a while and is awaited at the end.

DATA = "cartoon:210:3"
SEED = 2

# One configuration ends soon, the other never: it is killed and interrupted.
UNEVEN = """
name = "uneven"
recipe = "seed"

[fixed]
data.balance = "none"
model.params = { filters = [2], dense = [8] }

[winner]
epochs = 5

[parameters.length]
key = "epochs"
choice = [2, 4000]
"""


def wait_for_epoch(process: subprocess.Popen[str], run: Path, epoch: int) -> None:
    """Wait until a run has done an epoch; only the test's own time limit ends it."""
    while not (run / "history.json").exists() or len(json.loads((run / "history.json").read_text())) < epoch:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def test_a_search_survives_its_driver_and_an_interrupt(environment, tmp_path) -> None:
    out, space = tmp_path / "s", tmp_path / "uneven.toml"
    space.write_text(UNEVEN)
    uneven = CostFilter(parse_space(UNEVEN), Settings(trials=2, seed=SEED), cost_of)
    assert [propose(n, uneven).values["length"] for n in (0, 1)] == [2, 4000]

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ferkit", "search", *arguments, "--data", DATA, "--parallel", "1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        environment.append(process.pid)
        return process

    process = start(str(space), "--out", str(out), "--trials", "2", "--seed", str(SEED))
    first, second = out / "trials" / "0000", out / "trials" / "0001"
    wait_for_epoch(process, second, 2)
    assert processes_of(process.pid)
    process.kill()
    process.communicate()
    finished_at = (first / "weights.npz").stat().st_mtime_ns
    done = json.loads((second / "history.json").read_text())
    assert [t.state for t in read_search(out).trials.values()] == ["finished", "waiting"]

    # The search continues where it was, even if a worker outlives its driver for a while; Ctrl-C keeps and
    # reports what is done.
    process = start("--resume", str(out))
    wait_for_epoch(process, second, len(done) + 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "1 finished" in stdout
    assert "best: trial 0" in stdout
    assert f"ferkit train --recipe {out / 'winner.toml'}" in stdout
    assert f"interrupted; continue with: ferkit search --resume {out}" in stderr
    assert "RAY_ADDRESS=10.9.8.7:6379 is ignored" in stderr
    assert "Traceback" not in stderr
    found = read_search(out)
    assert [t.state for t in found.trials.values()] == ["finished", "waiting"]
    assert json.loads((second / "run.json").read_text())["state"] == "interrupted"
    assert (out / "leaderboard.csv").is_file()
    # What was done is kept, not repeated.
    assert (first / "weights.npz").stat().st_mtime_ns == finished_at
    rows = found.trials[1].history
    assert rows[: len(done)] == done
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.fixture(scope="module")
def finished(two, faces, tmp_path_factory):
    """A random search of three trials, two at a time, in which the worker of the first is killed once."""
    out = tmp_path_factory.mktemp("search") / "s"
    recorder = Recorder(0, "epoch", kill)
    command = ["ferkit", "search"]
    return search(SPACE, faces, out, THREE, machine=two, callbacks=[recorder], command=command), recorder


def test_every_trial_is_a_run_folder(finished, faces) -> None:
    found, _ = finished
    assert [t.state for t in found.trials.values()] == ["finished"] * 3
    for trial in found.trials.values():
        run = load_run(found.trial_folder(trial.number))
        assert run.facts["state"] == "finished"
        assert run.facts["command"] == ["ferkit", "search"]
        assert run.facts["data"]["fingerprint"] == faces.fingerprint
        assert run.recipe.name == f"tiny-{trial.number:04d}"
        assert run.recipe.model == SPACE.recipe(trial.values, "x").model
        assert run.facts["parameters"] == trial.parameters <= 19_000
        assert run.facts["mmac"] == pytest.approx(trial.mmac)
        assert run.history[-1]["val_accuracy"] == trial.accuracy
        assert len(run.history) == 3


def test_a_killed_worker_costs_a_retry_and_no_result(finished) -> None:
    found, recorder = finished
    assert (0, "retry") in recorder.events
    assert found.trials[0].lost == [LOST]
    assert [row["epoch"] for row in found.trials[0].history] == [1, 2, 3]


def test_unused_gpus_are_reported(finished) -> None:
    _, recorder = finished
    assert recorder.messages == ["2 GPUs found, and trials do not use them; --gpus 1 gives each trial one"]


@pytest.mark.parametrize(("gpus", "visible"), [(0, [""]), (1, ["0", "1"])])
def test_a_trial_sees_only_the_gpus_that_it_requests(cluster, gpus, visible) -> None:
    import ray

    # A lambda, since workers cannot import this module.
    seen = ray.remote(lambda gpus: (limit_resources(1, gpus), os.environ["CUDA_VISIBLE_DEVICES"])[1])
    assert ray.get(seen.options(num_cpus=0, num_gpus=gpus).remote(gpus)) in visible


# It has two configurations.
FEW = """
name = "few"
recipe = "seed"

[fixed]
epochs = 2
data.balance = "none"
model.params = { filters = [2], dense = [8] }

[parameters.batch]
key = "batch_size"
choice = [32, 64]
"""


def test_tpe_on_an_exhausted_space_ends_what_runs_and_reports_it(faces, two, tmp_path) -> None:
    # The third is sampled as soon as the first has ended, while the second may run.
    settings = Settings(trials=4, method="tpe")
    found = search(parse_space(FEW), faces, tmp_path / "s", settings, machine=two)
    assert [t.state for t in found.trials.values()] == ["finished"] * 2
    assert "no configuration for trial 2" in found.gave_up
    assert found.gave_up in write_report(found.folder).notes


def test_the_trials_do_not_depend_on_the_number_of_workers(finished, faces, cluster) -> None:
    found, _ = finished
    alone = sample(SPACE, faces, replace(THREE, trials=5))
    assert {t.number: t.values for t in alone[:3]} == {n: t.values for n, t in found.trials.items()}
    assert [refusal for trial in alone[:3] for refusal in trial.refused] == found.refused
    assert found.refused
    assert all("parameters exceed 19,000" in refusal["reason"] for refusal in found.refused)


def test_the_folder_holds_a_journal_the_trials_and_a_lock(finished) -> None:
    assert {path.name for path in finished[0].folder.iterdir()} == {".lock", JOURNAL, "trials"}


TROUBLED_SEED = 3

# Each of these configurations has its own trouble, and there are no others.
TROUBLED = """
name = "troubled"
recipe = "seed"

[fixed]
epochs = 2
batch_size = 64
data.balance = "none"
model.params.filters = [2, 2, 2]
model.params.dense = [8]
optimizer.name = "sgd"
optimizer.weight_decay = 10.0

[parameters.kind]
choice = ["sound", "hasty", "wide", "killed", "full"]

# Its weights need a few MiB, but each of its first maps, 64 x 48 x 48 x 16384 floats, needs 9 GiB.
[parameters.filters]
key = "model.params.filters.0"
choice = [16384]
when = { kind = "wide" }

[parameters.rate]
key = "optimizer.learning_rate"
choice = [0.001]
when = { kind = ["sound", "wide", "killed", "full"] }

# With a weight decay of 10 it multiplies every weight by 1 - 100 a step, which no float outlasts.
[parameters.high_rate]
key = "optimizer.learning_rate"
choice = [10.0]
when = { kind = "hasty" }
"""


class Trouble(Recorder):
    """Makes a worker short of memory or of disk, or kills it, while it waits."""

    def record(self, trial, event: str) -> None:
        super().record(trial, event)
        kind = trial.values["kind"]
        if event == "begin":
            # The wide network may have 3 GiB more than it has.
            pages = int(Path(f"/proc/{trial.pid}/statm").read_text().split()[0])
            soft = pages * resource.getpagesize() + (3 << 30) if kind == "wide" else resource.RLIM_INFINITY
            resource.prlimit(trial.pid, resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        if (kind, event) == ("killed", "epoch"):
            kill(trial)
        if (kind, event) == ("full", "begin"):
            resource.prlimit(trial.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


class Relief(Trouble):
    """The same trouble, but the disk has space again and nobody kills."""

    def record(self, trial, event: str) -> None:
        if trial.values["kind"] not in ("killed", "full"):
            super().record(trial, event)


@pytest.fixture(scope="module")
def troubled(one, faces, tmp_path_factory):
    """A search with one trial at a time, which ended when its last trial met a full disk."""
    out = tmp_path_factory.mktemp("troubled") / "s"
    with pytest.raises(OutputError) as caught:
        search(
            parse_space(TROUBLED), faces, out, Settings(trials=5, seed=TROUBLED_SEED, retries=0), machine=one,
            callbacks=[Trouble()],
        )  # fmt: skip
    found = read_search(out)
    return {t.values["kind"]: t for t in found.trials.values()}, found, str(caught.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hasty", "the loss became"),
        ("wide", "out of memory: "),
        ("killed", f"after 0 retries: {LOST}"),
    ],
)
def test_a_trial_in_trouble_fails_with_its_reason_and_the_others_continue(troubled, kind, reason) -> None:
    by_kind, found, _ = troubled
    trial = by_kind[kind]
    assert trial.state == "failed"
    assert reason in trial.reason
    facts = json.loads((found.trial_folder(trial.number) / "run.json").read_text())
    assert (facts["state"], facts["error"]) == ("failed", trial.reason)
    assert by_kind["sound"].state == "finished"


def test_a_full_disk_ends_the_search_with_one_error_and_damages_nothing(troubled) -> None:
    by_kind, found, error = troubled
    number = by_kind["full"].number
    assert number == 4  # TROUBLED_SEED makes it the last
    assert error.startswith(f"trial {number} cannot continue: cannot write ")
    assert "--resume continues" in error
    assert by_kind["full"].state == "waiting"
    assert not list(found.folder.rglob(".*-*"))  # no half-written file is left


def test_failed_trials_are_trained_again_on_request_and_finished_ones_are_not(
    troubled, faces, one, cluster
) -> None:
    by_kind, found, _ = troubled
    weights = found.trial_folder(by_kind["sound"].number) / "weights.npz"
    before = weights.stat().st_mtime_ns
    again = resume(found.folder, faces, retry_failed=True, machine=one, callbacks=[Relief()])
    states = {t.values["kind"]: t.state for t in again.trials.values()}
    assert states == {
        "sound": "finished",
        "hasty": "failed",
        "wide": "failed",
        "killed": "finished",
        "full": "finished",
    }
    assert weights.stat().st_mtime_ns == before
    for kind in ("killed", "full"):
        assert [row["epoch"] for row in again.trials[by_kind[kind].number].history] == [1, 2]


def test_tpe_with_asha_stops_poor_trials_and_keeps_their_runs(faces, one, tmp_path) -> None:
    # One at a time, since what ASHA stops depends on the trials before.
    settings = Settings(trials=4, method="tpe", asha=True, reduction=2, seed=1, max_params=40_000)
    found = search(SPACE, faces, tmp_path / "s", settings, machine=one)
    states = [t.state for t in found.trials.values()]
    assert set(states) == {"finished", "stopped"}
    for trial in found.trials.values():
        facts = json.loads((found.trial_folder(trial.number) / "run.json").read_text())
        assert facts["state"] == trial.state
        if trial.state == "stopped":
            assert len(trial.history) < 3
            assert trial.reason == f"ASHA, after epoch {len(trial.history)}"
            with pytest.raises(TrainingError, match="it is stopped"):
                load_run(found.trial_folder(trial.number))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            (
                "choice = [2, 4, 8]",
                'choice = [2]\n[parameters.f]\nkey = "model.params.view_size"\nchoice = [8, 7]',
            ),
            {},
            "no network can be built .*view_size",
        ),
        (("choice = [8, 16]", "choice = [8]"), {"max_mmac": 0.001}, "no configuration for trial 0"),
        (("[fixed]", "[fixed]\nheads.ferplus = 0.5"), {}, "no votes"),
    ],
    ids=["view", "limit", "votes"],
)
def test_an_impossible_search_is_refused_before_anything_starts(
    faces, two, tmp_path, change, settings, message
) -> None:
    space = parse_space(TINY.replace(*change))
    with pytest.raises(FerkitError, match=message):
        search(space, replace(faces, votes=None), tmp_path / "s", Settings(trials=2, **settings), machine=two)
    assert not (tmp_path / "s").exists()


def test_a_search_is_resumed_only_with_its_own_data(finished, tmp_path) -> None:
    with pytest.raises(SearchError, match="other data"):
        resume(finished[0].folder, load_data("cartoon:210:4", cache=False))


def test_a_trial_that_fits_on_no_machine_is_refused(faces, two, tmp_path) -> None:
    with pytest.raises(SearchError, match=r"needs 2 cores and 0 GPUs on one node. Found: 1 cores"):
        search(SPACE, faces, tmp_path / "s", Settings(trials=1), machine=Machine(cores=2))


@pytest.fixture(scope="module")
def extended(finished, cluster, one, faces):
    """The finished search with a fourth trial, which loses its node as it begins.

    The last search on the cluster: the node does not come back.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Placeholder:
        def here(self) -> None:
            """Return once the first node's core is taken."""

    place = NodeAffinitySchedulingStrategy(node_id=cluster.head_node.node_id, soft=False)
    placeholder = ray.remote(Placeholder).options(num_cpus=1, scheduling_strategy=place).remote()
    ray.get(placeholder.here.remote())

    def lose_node(trial) -> None:
        ray.kill(placeholder)
        cluster.remove_node(cluster.second, allow_graceful=False)

    found, _ = finished
    before = {n: (found.trial_folder(n) / "weights.npz").stat().st_mtime_ns for n in found.trials}
    recorder = Recorder(3, "begin", lose_node)  # an epoch may end too fast to be interrupted
    return resume(found.folder, faces, trials=4, machine=one, callbacks=[recorder]), recorder, before


def test_a_lost_node_costs_a_retry_and_no_result(extended) -> None:
    found, _, _ = extended
    trial = found.trials[3]
    assert (trial.state, trial.lost) == ("finished", [LOST])
    assert [row["epoch"] for row in trial.history] == [1, 2, 3]
    assert load_run(found.trial_folder(3)).facts["state"] == "finished"


def test_more_trials_are_added_and_finished_ones_are_not_repeated(extended, faces, one) -> None:
    found, recorder, before = extended
    assert {number for number, _ in recorder.events} == {3}
    assert {n: (found.trial_folder(n) / "weights.npz").stat().st_mtime_ns for n in before} == before
    assert found.trials[3].values == sample(SPACE, faces, replace(THREE, trials=4))[3].values
    # With nothing left to train it returns at once.
    assert resume(found.folder, faces, machine=one).trials.keys() == found.trials.keys()


def test_the_winner_of_a_search_is_a_recipe_for_a_full_training(extended) -> None:
    found, _, _ = extended
    write_report(found.folder)
    assert load_recipe(found.folder / "winner.toml").epochs == 4
