"""Measures what a search costs beside training: start, time between trials, end, and memory.

Tiny networks on cartoon faces, so that hardly anything but the engine is left to measure. Linux only: memory
is the proportional set size of every process that the search started, read from /proc twice a second.
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

from ferkit.search.engine import Machine, search
from ferkit.search.records import JOURNAL, Settings, read_events

from ferkit.data import load_data
from ferkit.search.report import summary
from ferkit.search.space import parse_space

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
    """Return what a process is in the search."""
    if command == "driver":
        return command
    if "ImplicitFunc" in command or "run_trial" in command:
        return "a trial's worker"
    if "Surveyor" in command:
        return "counting networks"
    return "Ray itself"


class Memory(threading.Thread):
    """Watches the largest total of each kind of process, in MiB, and its number of processes then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak: dict[str, tuple[float, int]] = {}
        self.done = threading.Event()

    def run(self) -> None:
        """Watch until told to stop."""
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


def measure(trials: int, parallel: int) -> dict[str, Any]:
    """Run a search and return what it cost."""
    data = load_data("cartoon:700:1", cache=False)
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        found = search(
            parse_space(SPACE),
            data,
            Path(folder) / "s",
            Settings(trials=trials),
            machine=Machine(parallel=parallel),
        )
        ended = time.time()
        events = list(read_events(Path(folder) / "s" / JOURNAL))
        facts = summary(found)
    memory.done.set()
    memory.join()
    first = min(e["time"] for e in events if e["event"] == "started")
    last = max(e["time"] for e in events if e["event"] == "finished")
    by_worker: dict[int, list[tuple[float, str]]] = defaultdict(list)
    worker = {e["trial"]: e["pid"] for e in events if e["event"] == "started"}
    for e in events:
        if e["event"] in ("started", "finished"):
            by_worker[worker[e["trial"]]].append((e["time"], e["event"]))
    gaps = [
        after - before
        for steps in by_worker.values()
        for (before, one), (after, other) in itertools.pairwise(steps)
        if (one, other) == ("finished", "started")
    ]
    return {
        "trials": trials,
        "parallel": parallel,
        "seconds_until_the_first_trial_trains": round(first - began, 1),
        "seconds_between_two_trials_of_a_worker": round(statistics.median(gaps), 2) if gaps else None,
        "seconds_beside_training_per_trial": facts["seconds_beside_training_per_trial"],
        "seconds_from_the_last_trial_to_the_end": round(ended - last, 1),
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
