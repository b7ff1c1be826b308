"""Measures the overhead of a search: start, time between trials, end, and memory.

The networks are tiny and the faces drawn, so that training costs little. Linux only: memory is the
proportional set size of every process that the search started, read from /proc twice a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from ferkit.data import load_data
from ferkit.search.cluster import Machine
from ferkit.search.driver import Callback, search
from ferkit.search.report import summary
from ferkit.search.space import parse_space
from ferkit.search.study import Settings, Trial

SPACE = """
name = "tiny"
recipe = "seed"
fixed.epochs = 3
fixed.data.balance = "none"
fixed.model.params = { filters = [4], dense = [8] }

[parameters.rate]
key = "optimizer.learning_rate"
low = 0.0001
high = 0.01
log = true
"""


def children_of(root: int) -> dict[int, str]:
    """Return the command line of a process and of everything below it."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
    found = {root: "driver"}
    while True:
        more = {pid: names[pid] for pid, above in parents.items() if above in found and pid not in found}
        if not more:
            return found
        found.update(more)


def kind_of(command: str) -> str:
    """Return the role of a process."""
    if command == "driver":
        return command
    if "TrialWorker" in command:
        return "workers"
    if "count_network" in command:
        return "profiler"
    return "Ray"


class Memory(threading.Thread):
    """Records the peak of each role in MiB, with its number of processes at that time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: dict[str, tuple[float, int]] = {}
        self.done = threading.Event()

    def run(self) -> None:
        """Measure until ``done`` is set."""
        while not self.done.wait(0.5):
            total: dict[str, float] = defaultdict(float)
            count: dict[str, int] = defaultdict(int)
            for pid, command in children_of(os.getpid()).items():
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                except OSError:
                    continue
                kind = kind_of(command)
                total[kind] += sum(int(x.split()[1]) for x in lines if x.startswith("Pss:")) / 1024
                count[kind] += 1
            for kind, size in total.items():
                if size > self.peak.get(kind, (0.0, 0))[0]:
                    self.peak[kind] = (size, count[kind])


class Times(Callback):
    """Records when trials begin and end, by the process of their worker."""

    def __init__(self) -> None:
        self.events: dict[int, list[tuple[str, float]]] = defaultdict(list)

    def on_trial_begin(self, trial: Trial) -> None:
        """Record the time."""
        self.events[trial.pid].append(("begin", time.time()))

    def on_trial_end(self, trial: Trial) -> None:
        """Record the time."""
        self.events[trial.pid].append(("end", time.time()))

    def of(self, event: str) -> list[float]:
        """Return the times of an event."""
        return [at for events in self.events.values() for name, at in events if name == event]


def measure(trials: int, parallel: int) -> dict[str, Any]:
    """Run a search and return its overhead."""
    data = load_data("cartoon:700:1", cache=False)
    memory, times = Memory(), Times()
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        found = search(
            parse_space(SPACE),
            data,
            Path(folder) / "s",
            Settings(trials=trials),
            machine=Machine(parallel=parallel),
            callbacks=[times],
        )
        ended = time.time()
        facts = summary(found)
    memory.done.set()
    memory.join()
    gaps = [
        after - before
        for events in times.events.values()
        for (one, before), (other, after) in itertools.pairwise(events)
        if (one, other) == ("end", "begin")
    ]
    return {
        "trials": trials,
        "parallel": parallel,
        "seconds_until_the_first_trial_trains": round(min(times.of("begin")) - began, 1),
        "seconds_between_two_trials_of_a_worker": round(statistics.median(gaps), 2) if gaps else None,
        "seconds_beside_training_per_trial": facts["seconds_beside_training_per_trial"],
        "seconds_from_the_last_trial_to_the_end": round(ended - max(times.of("end")), 1),
        "memory_mib": {
            kind: {"at_most": round(size), "processes": count}
            for kind, (size, count) in sorted(memory.peak.items())
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--parallel", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(measure(given.trials, given.parallel), indent=2))
