"""How many cores a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ferkit.core.runtime import usable_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="control groups are those of Linux"
)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def cores(root: Path, limits: dict[str, str], own: str = "0::/\n") -> int:
    """The cores of a machine whose control groups hold these files."""
    (root / "own").write_text(own)
    for name, content in limits.items():
        path = root / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return usable_cores(root / "groups", root / "own")


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("900000 100000\n", 8),
        ("max 100000\n", 8),
    ],
)
def test_the_limit_of_a_container_bounds_the_cores(tmp_path: Path, limit: str, count: int) -> None:
    """A known fault: in a container with two cores of a machine with 64, 64 threads waited for each other."""
    assert cores(tmp_path, {"cpu.max": limit}) == count


@pytest.mark.parametrize(("quota", "count"), [("250000", 3), ("-1", 8), ("0", 1)])
def test_limits_of_the_first_version_of_control_groups_count_too(
    tmp_path: Path, quota: str, count: int
) -> None:
    limits = {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert cores(tmp_path, limits) == count


@pytest.mark.parametrize(
    ("own", "folder"),
    [("0::/system.slice/a.service\n", ""), ("9:name=x:/\n4:cpu,cpuacct:/system.slice/a\n", "cpu/")],
)
def test_the_least_limit_of_all_groups_around_the_process_counts(
    tmp_path: Path, own: str, folder: str
) -> None:
    limits = {
        f"{folder}system.slice/cpu.max": "300000 100000",
        f"{folder}{own.rpartition(':')[2].strip()[1:]}/cpu.max": "500000 100000",
        f"{folder}other.slice/cpu.max": "100000 100000",  # of somebody else
    }
    assert cores(tmp_path, limits, own) == 3


def test_what_is_not_there_or_no_number_limits_nothing(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "absent", tmp_path / "absent") == 8
    assert cores(tmp_path, {"cpu.max": "nonsense", "cpu/cpu.cfs_quota_us": "100000"}) == 8
