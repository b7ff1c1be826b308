"""The load test of benchmarks/, in short: full load, hostile input, kill -9."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from modelzoo import write_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service() -> Iterator[ModuleType]:
    path = Path(__file__).parents[1] / "benchmarks" / "service.py"
    spec = importlib.util.spec_from_file_location("service_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # the scripts import each other
        patch.setitem(sys.modules, "service_benchmark", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    model = write_tiny_model(tmp_path / "tiny.onnx")
    return [f"--option=--model={model}", "--option=--detector=none"]


def test_under_load_and_attack_there_is_no_error_but_the_intended_503(
    service: ModuleType, options: list[str]
) -> None:
    arguments = ["load", "soak", "stream", "--clients", "1", "64", "--seconds", "1", "--minutes", "0.05"]
    result = service.main([*arguments, *options])
    for figures in result["load"].values():
        assert set(figures["statuses"]) <= {200, 503}
        assert figures["statuses"][200] > 0
    assert result["soak"]["unintended_5xx"] == 0
    assert result["stream"]["frames_per_second"] > 0


def test_jobs_are_done_after_everything_was_killed(service: ModuleType, options: list[str]) -> None:
    result = service.main(["kill", "--jobs", "3", "--frames", "60", *options])
    assert result["kill"]["states"] == {"done": 3}
    assert max(result["kill"]["attempts"]) <= 2
