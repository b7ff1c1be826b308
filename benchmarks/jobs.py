"""What the measuring processes share: jobs come in as lines of JSON, answers go out as lines of JSON.

Standard library only: one of these processes runs in the environment of another package.
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
"""The processor's goes on while this process works only, so a busy machine changes it little."""

_clock = "wall"


def take_cores() -> int:
    """Read ``--cores N`` and ``--clock``, keep to the first N cores, and return N; to be called first."""
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
    """Return the seconds of one call: the mean over as many as fit into ``seconds``, one at least."""
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
    """Return the median seconds of each call: all in turns, after a turn that does not count.

    Args:
        calls: What to measure.
        seconds: Turns go on for so long, all calls together.
        least: Turns that are made in any case.
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
    """Do jobs until there are no more; each names its handler under ``do``, the rest are its arguments."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print, too
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = handlers[job.pop("do")](**job)
        except Exception as error:  # noqa: BLE001  # it is the caller who says what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
