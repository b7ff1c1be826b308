"""The rules of the house: what the repository may contain, and what CI runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20

WEIGHTS = {Path("src/ferkit/weights"): 24 * MIB, Path("zoo"): 64 * MIB}
"""Folders of trained weights and the most that each may hold."""

REGISTRIES = re.compile(
    r"index[-_]url|registry[\" ]*[=:] *\"http|https?://[^ \"]*/simple|/(wor|roo)[kt]/"
    r"|pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org|npmjs[.]org"
)
# The brackets keep this file from matching its own patterns.
UNFINISHED = re.compile(r"raise NotImplementedErro[r]|TOD[O]|FIXM[E]|XX[X]|pragma: no cove[r]")
BROAD = re.compile(r"except( Exception| BaseException)?:")
PICKLES = re.compile(r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib)\b|layers\.Lambda\b", re.M)


def tracked() -> list[Path]:
    """Files under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("NO REPOSITORY: the list of tracked files needs a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name for name in os.fsdecode(listed).split("\0") if name]
    return [file for file in files if file.is_file()]


def tracked_sizes() -> dict[Path, int]:
    """The size in bytes of each tracked file, by its path below the repository."""
    return {file.relative_to(ROOT): file.stat().st_size for file in tracked()}


def text_of(file: Path) -> str:
    """The text of a file; empty for a binary file."""
    content = file.read_bytes()
    return "" if b"\0" in content else content.decode(errors="replace")


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    found = {
        str(file.relative_to(ROOT)): match[0]
        for file in tracked()
        if (match := REGISTRIES.search(text_of(file)))
    }
    assert found == {}


def test_only_weights_are_larger_than_a_mebibyte() -> None:
    large = [path for path, size in tracked_sizes().items() if size > MIB]
    weights = [path for path in large if path.suffix in (".onnx", ".npz") and path.parent in WEIGHTS]
    assert sorted(set(large) - set(weights)) == []


@pytest.mark.parametrize(("folder", "limit"), WEIGHTS.items(), ids=str)
def test_weights_stay_below_the_limit_of_their_folder(folder: Path, limit: int) -> None:
    sizes = {path: size for path, size in tracked_sizes().items() if path.suffix in (".onnx", ".npz")}
    assert sum(size for path, size in sizes.items() if folder in path.parents) <= limit
    assert [path for path in sizes if not any(one in path.parents for one in WEIGHTS)] == []


def test_results_stay_below_two_mebibytes() -> None:
    assert sum(size for path, size in tracked_sizes().items() if path.parts[0] == "results") <= 2 * MIB


@pytest.mark.parametrize("pattern", [UNFINISHED, BROAD, PICKLES], ids=["unfinished", "broad", "pickles"])
def test_the_source_has_no_match_for(pattern: re.Pattern[str]) -> None:
    found = {
        str(file.relative_to(ROOT)): match[0]
        for file in tracked()
        if file.suffix == ".py" and "src" in file.parts and (match := pattern.search(text_of(file)))
    }
    assert found == {}


def test_every_module_opens_with_one_sentence() -> None:
    for file in (ROOT / "src").rglob("*.py"):
        first = text_of(file).split("\n", 1)[0]
        assert re.fullmatch(r'r?""".+[.](""")?', first), f"{file.relative_to(ROOT)}: {first}"


def test_ci_runs_the_tests_and_the_rules_of_style() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make test", "make lint"} <= set(re.findall(r"make \w+", script.read_text()))


@pytest.mark.parametrize("tool", ["ruff check", "ruff format --check", "mypy", "lint-imports"])
def test_make_lint_runs(tool: str) -> None:
    rule = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert tool in rule
