"""Searches that really run on Ray: results, losses, and going on after what can go wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ferkit.errors import FerkitError, OutputError, SearchError, TrainingError

pytest.importorskip("ray", reason="needs ferkit[tune]")
pytest.importorskip("optuna", reason="needs ferkit[tune]")

from ferkit.data import load_dataset
from ferkit.search.engine import Machine, Silent, draw, ray_running, resume, search
from ferkit.search.records import Settings, read_events, read_search
from ferkit.search.report import write_report
from ferkit.search.space import parse_space
from ferkit.training.recipe import load_recipe
from ferkit.training.runs import load_run
from searchfiles import TINY

# Three of these fail now and then where other work takes the cores: until they are steady, on request only.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.environ.get("FERKIT_RAY_TESTS") != "1",
        reason="NOT STEADY YET: the search on a live Ray cluster; FERKIT_RAY_TESTS=1 runs these tests",
    ),
]

SPACE = parse_space(TINY)


@pytest.fixture(scope="module")
def faces():
    return load_dataset("cartoon:210:3", cache=False)


@pytest.fixture(scope="module")
def cluster(faces):
    """Ray's own test cluster: two nodes on this machine, each with a place for one trial."""
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_worker_niceness", "0")  # On a busy machine the tests would take for ever.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.second = cluster.add_node(num_cpus=1)
        with ray_running(Machine(address=cluster.address), faces):
            yield cluster
    finally:
        cluster.shutdown()
        monkeypatch.undo()


@pytest.fixture(scope="module")
def two(cluster):
    """Both nodes."""
    return Machine(address=cluster.address)


@pytest.fixture(scope="module")
def one(cluster):
    """One trial at a time."""
    return Machine(address=cluster.address, parallel=1)


class Listener(Silent):
    """Keeps what it hears, and acts once when the wanted thing happens."""

    def __init__(self, number: int = 0, what: str = "", action=None) -> None:
        self.heard: list[tuple[int, str]] = []
        self.wanted, self.action = (number, what), action

    def changed(self, trial, what: str) -> None:
        self.heard.append((trial.number, what))
        if (trial.number, what) == self.wanted and self.action is not None:
            action, self.action = self.action, None
            action(trial)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(trial) -> None:
    os.kill(trial.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def finished(two, faces, tmp_path_factory):
    """A random search of four trials, two at a time, in which the worker of the first is killed once."""
    out = tmp_path_factory.mktemp("search") / "s"
    listener = Listener(1, "epoch", kill)
    settings = Settings(trials=4, seed=2, max_params=19_000)
    found = search(SPACE, faces, out, settings, machine=two, watcher=listener, command=["ferkit", "search"])
    return found, listener


def test_every_trial_is_a_run_that_other_commands_read(finished, faces) -> None:
    found, _ = finished
    assert [t.state for t in found.trials.values()] == ["finished"] * 4
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
    found, listener = finished
    assert (1, "retried") in listener.heard
    assert found.trials[1].retries == 1
    assert [row["epoch"] for row in found.trials[1].history] == [1, 2, 3]
    reasons = [e["reason"] for e in read_events(found.folder / "journal.jsonl") if e["event"] == "retried"]
    assert reasons == ["the worker died (killed, or its machine was lost)"]


def test_what_is_drawn_does_not_depend_on_the_number_of_workers(finished, faces, two) -> None:
    found, _ = finished
    alone, refused = draw(SPACE, faces, Settings(trials=6, seed=2, max_params=19_000))
    assert {p.number: p.values for p in alone[:4]} == {n: t.values for n, t in found.trials.items()}
    counted = [r for r in refused if r.number <= 4]
    assert counted == found.refused
    assert counted
    assert all("parameters exceed 19,000" in r.reason for r in counted)


def test_the_folder_keeps_nothing_of_rays(finished) -> None:
    names = {path.name for path in finished[0].folder.iterdir()}
    assert names == {".lock", "base.toml", "journal.jsonl", "search.json", "space.toml", "trials"}


def test_more_trials_are_added_and_finished_ones_are_not_repeated(finished, faces, two) -> None:
    found, _ = finished
    weights = [found.trial_folder(n) / "weights.npz" for n in found.trials]
    before = [path.stat().st_mtime_ns for path in weights]
    listener = Listener()
    more = resume(found.folder, faces, trials=5, machine=two, watcher=listener)
    assert {number for number, _ in listener.heard} == {5}
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert (
        more.trials[5].values
        == draw(SPACE, faces, Settings(trials=5, seed=2, max_params=19_000))[0][4].values
    )
    with pytest.raises(SearchError, match="has 5 trials already"):
        resume(found.folder, faces, trials=3)
    report = write_report(found.folder)
    assert load_recipe(report.search.folder / "winner.toml").epochs == 4
    # With nothing left to do it comes back at once.
    assert resume(found.folder, faces, machine=two).trials.keys() == more.trials.keys()


def test_trials_that_diverge_or_lack_memory_fail_with_their_reason_and_the_others_go_on(
    faces, one, tmp_path
) -> None:
    # At a rate of 10 a weight decay of 10 multiplies every weight by 1 - 100 a step, which no float outlasts.
    # The wide network is built in 76 MiB, but each of its first maps, 64 x 48 x 48 x 4096 floats, is 2.3 GiB.
    text = TINY.replace("choice = [2, 4, 8]", "choice = [2, 4096]").replace(
        "choice = [1, 2]", "choice = [1, 3]"
    )
    text = text.replace("depth = 2", "depth = 3").replace(
        "low = 0.0005\nhigh = 0.02\nlog = true", "choice = [0.001, 10.0]"
    )
    space = parse_space(
        text, overrides=["batch_size=64", "optimizer.name=sgd", "optimizer.weight_decay=10", "epochs=4"]
    )

    class Rationing(Listener):
        def changed(self, trial, what: str) -> None:
            if what == "started":  # The worker may have 1 GiB more than it has.
                pages = int(Path(f"/proc/{trial.pid}/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + (1 << 30)
                resource.prlimit(trial.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    settings = Settings(trials=3, seed=10, retries=0)
    found = search(space, faces, tmp_path / "s", settings, machine=one, watcher=Rationing())
    wide = [t for t in found.trials.values() if t.values["filters1"] == 4096]
    hasty = [t for t in found.trials.values() if t.values["rate"] == 10.0 and t not in wide]
    rest = [t for t in found.trials.values() if t not in wide and t not in hasty]
    assert wide
    assert hasty
    assert [t.state for t in rest] == ["finished"] * len(rest) != []
    # TensorFlow says that memory is exhausted, or its allocator ends the process; both are told.
    assert all("out of memory" in t.reason or "the worker died" in t.reason for t in wide)
    for trial in hasty:
        assert "the loss became" in trial.reason
        facts = json.loads((found.trial_folder(trial.number) / "run.json").read_text())
        assert (facts["state"], facts["error"]) == ("failed", trial.reason)
    assert {t.state for t in (*wide, *hasty)} == {"failed"}


def test_tpe_with_asha_stops_poor_trials_and_keeps_their_runs(faces, two, tmp_path) -> None:
    settings = Settings(trials=7, method="tpe", asha=True, reduction=2.0, seed=1, max_params=40_000)
    found = search(SPACE, faces, tmp_path / "s", settings, machine=two)
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


def test_a_full_disk_stops_the_search_and_resume_finishes_it_with_what_had_failed(
    faces, one, tmp_path
) -> None:
    class Trouble(Listener):
        def changed(self, trial, what: str) -> None:
            super().changed(trial, what)
            if (trial.number, what) == (1, "epoch"):
                kill(trial)
            if (trial.number, what) == (2, "started"):
                resource.prlimit(trial.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    settings = Settings(trials=2, seed=6, retries=0)
    with pytest.raises(OutputError, match=r"trial 2 cannot go on: cannot write .* --resume"):
        search(SPACE, faces, tmp_path / "s", settings, machine=one, watcher=Trouble())
    found = read_search(tmp_path / "s")
    assert [t.state for t in found.trials.values()] == ["failed", "waiting"]
    assert found.trials[1].reason == "after 0 retries: the worker died (killed, or its machine was lost)"
    facts = json.loads((found.trial_folder(1) / "run.json").read_text())
    assert (facts["state"], facts["error"]) == ("failed", found.trials[1].reason)
    assert not list(found.folder.rglob(".*-*"))  # no half-written file is left

    again = resume(found.folder, faces, retry_failed=True, machine=one)
    assert [t.state for t in again.trials.values()] == ["finished", "finished"]
    assert [row["epoch"] for row in again.trials[1].history] == [1, 2, 3]


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
        (("choice = [8, 16]", "choice = [8]"), {"max_mmac": 0.001}, "found no configuration for trial 1"),
        (("[fixed]", "[fixed]\nheads.ferplus = 0.5"), {}, "no votes"),
        (("[fixed]", '[fixed]\ndata.validation_split = "Nowhere"'), {}, "unknown split"),
    ],
    ids=["view", "limit", "votes", "split"],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    faces, two, tmp_path, change, settings, message
) -> None:
    space = parse_space(TINY.replace(*change))
    with pytest.raises(FerkitError, match=message):
        search(space, replace(faces, votes=None), tmp_path / "s", Settings(trials=2, **settings), machine=two)
    assert not (tmp_path / "s").exists()


def test_a_search_goes_on_only_with_its_own_data(finished, tmp_path) -> None:
    with pytest.raises(SearchError, match="other data"):
        resume(finished[0].folder, load_dataset("cartoon:210:4", cache=False))


def test_a_trial_that_fits_on_no_machine_is_refused(faces, two, tmp_path) -> None:
    with pytest.raises(SearchError, match=r"needs 2 cores and 0 GPUs on one machine; there are: 1 cores"):
        search(SPACE, faces, tmp_path / "s", Settings(trials=1), machine=Machine(cores=2))


def test_a_lost_node_costs_a_retry_and_no_result(cluster, two, faces, tmp_path) -> None:
    # Last of those on the cluster: the node does not come back.
    raylet = cluster.second.all_processes["raylet"][0].process.pid

    class Loss(Listener):
        def changed(self, trial, what: str) -> None:
            super().changed(trial, what)
            there = what == "epoch" and parent(trial.pid) == raylet
            if there and cluster.second is not None:
                gone, cluster.second = cluster.second, None
                cluster.remove_node(gone, allow_graceful=False)

    listener = Loss()
    space = parse_space(TINY, overrides=["epochs=12"])
    found = search(space, faces, tmp_path / "s", Settings(trials=3, seed=8), machine=two, watcher=listener)
    assert cluster.second is None
    assert [t.state for t in found.trials.values()] == ["finished"] * 3
    assert sum(t.retries for t in found.trials.values()) == 1
    reasons = [e["reason"] for e in read_events(found.folder / "journal.jsonl") if e["event"] == "retried"]
    assert reasons == ["the worker died (killed, or its machine was lost)"]
    for trial in found.trials.values():
        assert [row["epoch"] for row in trial.history] == list(range(1, 13))
        assert load_run(found.trial_folder(trial.number)).facts["state"] == "finished"


# What follows runs as a process of its own, since it is killed or interrupted.


DATA = "cartoon:700:3"


def command(out: Path, *more: str) -> list[str]:
    space = out.parent / "tiny.toml"
    space.write_text(TINY.replace("epochs = 3", "epochs = 30", 1))
    return [
        sys.executable, "-m", "ferkit", "search", str(space), "--data", DATA, "--out", str(out),
        "--trials", "2", "--parallel", "1", *more,
    ]  # fmt: skip


def wait_for(path: Path, what: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 500
    while not path.exists() or what not in path.read_text():
        assert process.poll() is None, "the search ended early"
        assert time.monotonic() < deadline, f"no {what} in {path}"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_search_survives_its_driver_and_an_interrupt(tmp_path) -> None:
    out = tmp_path / "s"
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    history = out / "trials" / "0001" / "history.json"
    wait_for(history, '"epoch": 3', process)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    # The driver takes its workers along.
    started = [e for e in read_events(out / "journal.jsonl") if e["event"] == "started"]
    deadline = time.monotonic() + 60
    while any(alive(e["pid"]) for e in started):
        assert time.monotonic() < deadline, "a worker outlived its driver by a minute"
        time.sleep(0.2)
    done = json.loads(history.read_text())
    assert 3 <= len(done) < 30

    # The search goes on where it was, and Ctrl-C keeps and reports what is done.
    arguments = [sys.executable, "-m", "ferkit", "search", "--resume", str(out), "--data", DATA]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(out / "trials" / "0002" / "history.json", '"epoch": 2', process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert "1 finished" in stdout
    assert "best: trial 1" in stdout
    assert f"ferkit train --recipe {out / 'winner.toml'}" in stdout
    assert f"interrupted; go on with: ferkit search --resume {out}" in stderr
    assert "Traceback" not in stderr
    found = read_search(out)
    assert [t.state for t in found.trials.values()] == ["finished", "waiting"]
    facts = json.loads((out / "trials" / "0002" / "run.json").read_text())
    assert facts["state"] == "interrupted"
    assert (out / "leaderboard.csv").is_file()
    rows = found.trials[1].history
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    # The epochs that were done are kept, not repeated.
    assert [row["seconds"] for row in rows[: len(done)]] == [row["seconds"] for row in done]
