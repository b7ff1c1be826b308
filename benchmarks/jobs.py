"""Shared by the measuring processes: jobs arrive as lines of JSON, results are returned as lines of JSON.

Standard library only, since one of these processes runs in the environment of another package.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Handler = Callable[..., dict[str, Any]]


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""The processor clock counts only while this process runs, so other load changes it little."""

_clock = "wall"


def take_cores() -> int:
    """Read ``--cores N`` and ``--clock``, bind to the first N cores, and return N. Call it first."""
    global _clock
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    given = parser.parse_args()
    cores, _clock = int(given.cores), str(given.clock)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    return cores


def per_call(call: Callable[[], object], seconds: float) -> float:
    """Return the mean seconds of a call over as many calls as fit into ``seconds``, at least one."""
    clock = CLOCKS[_clock]
    calls, start = 0, clock()
    while True:
        call()
        calls += 1
        spent = clock() - start
        if spent >= seconds:
            return spent / calls


def per_call_in_turns(
    calls: Mapping[str, Callable[[], object]], seconds: float, least: int
) -> dict[str, float]:
    """Return the median seconds of each call over alternating rounds, after a warm-up of each.

    Args:
        calls: Functions to measure.
        seconds: Duration of all rounds together.
        least: Least number of rounds.
    """
    clock = CLOCKS[_clock]
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    begin = time.perf_counter()
    turns = 0
    while turns < least or time.perf_counter() - begin < seconds:
        turns += 1
        for name, call in calls.items():
            start = clock()
            call()
            seen[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seen.items()}


def serve(handlers: Mapping[str, Handler]) -> None:
    """Run jobs from stdin until it ends; ``job`` names the handler, the other keys are its arguments."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print write to stderr instead
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            result = handlers[arguments.pop("job")](**arguments)
        except Exception as error:  # noqa: BLE001  # reported to the calling process, which raises it
            result = {"error": f"{type(error).__name__}: {error}"}
        results.write(json.dumps(result) + "\n")
        results.flush()
